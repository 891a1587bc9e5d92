#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Does the sandbox hold?  breakout.c, preloaded, tries at each read of an image what a parser that was taken over would.

With --no-sandbox all of that must succeed, or this test could not fail.
"""

import os
import signal
import subprocess
import sys
import tempfile

import oracle

HELD = "commit --force --atomic t"
UNFINISHED = "commit --force t"  # killed behind its first writes
EXITS = {"compare": 1, "status": 3}  # those two differ; something is unfinished
CHANGES = {"write", "append", "truncate", "create", "unlink", "rename", "mkdir", "chmod"}
ALWAYS = {"exec", "older-thread", "fork", "kill", "ptrace", "process_vm", "limits", "openat2", "writable-code", "made-code",
          "chroot", "setresuid", "memfd", "mknod", "symlink", "typing", "typing-64", "packets"}
WRITER = ALWAYS | {"truncate", "mkdir", "chmod"}  # by name; what is open is cut and chmodded by its descriptor
CONNECTS = {"inet", "unix"}
CONFINED = CONNECTS | {"file-code"}
READER = CHANGES | ALWAYS
# What works all the same: the second SIGINT ends the process, and so do tests.
NEVER = {"kill-self", "raise-self"}

# a name, what is done first, arguments; what is refused at every read, and what at the last one; where nothing stands
# there all reads that a preload sees are those of opening
COMMANDS = [
    ("info t", None, READER, set()),
    ("map t", None, READER, CONNECTS | {"read"}),
    ("map --format=strip t", None, READER, CONNECTS),
    ("map --format=html t", None, READER, CONNECTS),
    ("check t", None, READER, CONNECTS),
    ("check --repair=all t", None, WRITER, CONFINED),
    ("compare t t2", None, READER, CONNECTS),
    ("plan --threads=2 t", None, READER, CONNECTS),
    ("measure --onto b t", None, READER, CONNECTS),
    ("measure -O qcow2 t", None, READER, CONNECTS),
    ("status", UNFINISHED, READER, set()),
    ("flatten --force t o", None, WRITER, CONFINED),
    ("flatten --force --manifest=m t o", None, WRITER, CONNECTS),
    ("verify m", None, READER, set()),
    ("create -f qcow2 new 1M", None, WRITER, CONFINED),
    ("create -f qcow2 -b t -F qcow2 new", None, WRITER, set()),
    ("commit --force --overlays=delete t", None, WRITER, CONFINED),
    ("commit --force --live=never --verify --threads=2 --shallow t", None, WRITER, CONFINED),
    ("commit --protect --shallow t", None, WRITER, set()),
    ("fold --force --keep 0 t", None, WRITER, CONFINED),
    ("rebase --standalone t", None, WRITER, CONFINED),
    ("rebase -b b -F qcow2 t", None, WRITER, CONFINED),
    ("resume t", UNFINISHED, WRITER, CONFINED),
    ("recover .", UNFINISHED, WRITER, CONFINED),
    ("revert t", HELD, WRITER, CONFINED),
    ("finalize t", HELD, WRITER, CONFINED),
]


def attempts(qmeld, words, env):
    """What was refused at each read."""
    done = subprocess.run([qmeld, *words], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                          check=False, timeout=60)
    lines = [ln for ln in done.stderr.splitlines() if ln.startswith("breakout:")]
    if done.returncode != EXITS.get(words[0], 0) or not lines:
        sys.exit(f"qmeld {' '.join(words)}: exit {done.returncode}, {len(lines)} reads\n{done.stderr[-2000:]}")
    return [{w.split("=")[0] for w in ln.split()[1:] if w.split("=")[1] != "ok"} for ln in lines]


def check(qmeld, begin, env, case, wrong):
    command, before, always, later = case
    words = command.split()
    begin(before)
    tried = attempts(qmeld, words, env)
    for i, refused in enumerate(tried):
        if not always <= refused:
            wrong.append(f"{command}: read {i + 1} could {sorted(always - refused)}")
            break
    for i, refused in enumerate(tried):
        if NEVER & refused:
            wrong.append(f"{command}: read {i + 1} could not {sorted(NEVER & refused)}")
            break
    if not later <= tried[-1]:
        wrong.append(f"{command}: the last read could {sorted(later - tried[-1])}")
    begin(before)
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
        killed = dict(os.environ, LD_PRELOAD=oracle.build_shim("killat", d), KILL_AT="8")

        def begin(before):
            for name in os.listdir("."):
                if name.endswith(".qmeld") or name == "new":
                    os.unlink(name)
            subprocess.run([forge, "recipe", "."], check=True, stdout=subprocess.DEVNULL)
            if before:
                done = subprocess.run([qmeld, *before.split()], env=killed if before == UNFINISHED else None,
                                      stdout=subprocess.DEVNULL, check=False, timeout=60)
                if done.returncode != (-signal.SIGKILL if before == UNFINISHED else 0):
                    sys.exit(f"qmeld {before}: exit {done.returncode}")

        for case in COMMANDS:
            check(qmeld, begin, env, case, wrong)
        os.chdir("/")
    for sentence in wrong:
        print(sentence)
    print(f"{len(COMMANDS)} commands, {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
