#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Does the sandbox hold?  breakout.c, preloaded, tries at each read of an image what a parser that was taken over would.

With --no-sandbox all of that must succeed, or this test could not fail.
"""

import os
import subprocess
import sys
import tempfile

import oracle

CHANGES = {"write", "append", "truncate", "create", "unlink", "rename", "mkdir", "chmod"}
ALWAYS = {"exec", "ptrace", "kill", "openat2"}
CONNECTS = {"inet", "unix"}
# arguments: what is refused at every read, and what at the last one; where nothing stands there all reads that a preload
# sees are those of opening
COMMANDS = {
    "info t": (CHANGES | ALWAYS, set()),
    "map t": (CHANGES | ALWAYS, CONNECTS | {"read"}),
    "map --format=strip t": (CHANGES | ALWAYS, CONNECTS),
    "map --format=html t": (CHANGES | ALWAYS, CONNECTS),
    "check t": (CHANGES | ALWAYS, CONNECTS),
    "check --repair=all t": (ALWAYS, CONNECTS),
    "compare t t2": (CHANGES | ALWAYS, CONNECTS),
    "plan --threads=2 t": (CHANGES | ALWAYS, CONNECTS),
    "measure --onto b t": (CHANGES | ALWAYS, CONNECTS),
    "measure -O qcow2 t": (CHANGES | ALWAYS, CONNECTS),
    "flatten --force t o": (ALWAYS, CONNECTS),
    "flatten --force --manifest=m t o": (ALWAYS, CONNECTS),
    "verify m": (CHANGES | ALWAYS, set()),
}


def attempts(qmeld, words, env):
    """What was refused at each read."""
    done = subprocess.run([qmeld, *words], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                          check=False, timeout=60)
    lines = [ln for ln in done.stderr.splitlines() if ln.startswith("breakout:")]
    if done.returncode != (words[0] == "compare") or not lines:  # those two differ
        sys.exit(f"qmeld {' '.join(words)}: exit {done.returncode}, {len(lines)} reads\n{done.stderr[-2000:]}")
    return [{w.split("=")[0] for w in ln.split()[1:] if w.split("=")[1] != "ok"} for ln in lines]


def check(qmeld, env, command, wrong):
    always, later = COMMANDS[command]
    words = command.split()
    tried = attempts(qmeld, words, env)
    for i, refused in enumerate(tried):
        if not always <= refused:
            wrong.append(f"{command}: read {i + 1} could {sorted(always - refused)}")
            break
    if not later <= tried[-1]:
        wrong.append(f"{command}: the last read could {sorted(later - tried[-1])}")
    free = attempts(qmeld, [words[0], "--no-sandbox", *words[1:]], env)
    kept = set.union(*free)
    if kept:
        wrong.append(f"{command}: --no-sandbox refused {sorted(kept)}")


def main():
    qmeld, forge = oracle.qmeld_program("release", "plain"), oracle.find_program("forge", "release", "plain", "dev")
    wrong = []
    with tempfile.TemporaryDirectory(prefix="qmeld-sandbox-") as d:
        os.chdir(d)
        with open("recipe", "w", encoding="ascii") as f:
            f.write("all cluster=4k size=1M\nt | AB.0c..A\nt2 | AB.0c..A over=b\nb | .XX.YZ..a\n")
        subprocess.run([forge, "recipe", "."], check=True, stdout=subprocess.DEVNULL)
        with open("victim", "w", encoding="ascii") as f:
            f.write("as it was")
        state = subprocess.run([qmeld, "info", "-v", "t"], capture_output=True, text=True, check=False).stderr
        if "sandbox: on" not in state:
            print(f"skip: {state.strip()}")
            return 77
        env = dict(os.environ, LD_PRELOAD=oracle.build_shim("breakout", d), BREAKOUT_VICTIM=os.path.join(d, "victim"))
        for command in COMMANDS:
            check(qmeld, env, command, wrong)
        os.chdir("/")
    for sentence in wrong:
        print(sentence)
    print(f"{len(COMMANDS)} commands, {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
