#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The 69 known cases: chains on which QEMU's behaviour was studied, merged by qmeld.

Numbers c01..c69 are those of the study of QEMU 7.2.22 that the project started from.  Where QEMU is
right the same outcome is wanted; where it loses or leaks something, what is right is wanted,
and the case says so.  `cases.py c09 c27` runs some; --keep keeps the files of failed ones.
"""

import argparse
import os
import shlex
import shutil
import sys

import oracle
from oracle import Fail, Qcow2

CASES = []


class NotHere(Exception):
    """This machine cannot stage the case (mounts need root, for example)."""


def case(number, fact):
    def add(fn):
        CASES.append((number, fact, fn))
        return fn
    return add


def words(args):
    return [w for a in args for w in (shlex.split(a) if isinstance(a, str) else a)]


class Stage:
    """A fresh directory, the letters of the study, and assertions."""

    def __init__(self, folder, qmeld, tools):
        self.dir, self.qmeld, self.tools = folder, qmeld, tools

    def path(self, name):
        return os.path.join(self.dir, name)

    def create(self, *args):
        """create("-b b -F qcow2 t 1M"): qemu-img create -f qcow2"""
        oracle.must(["qemu-img", "create", "-q", "-f", "qcow2", *words(args)], self.dir)

    def img(self, *args):
        return oracle.must(["qemu-img", *words(args)], self.dir)

    def write(self, name, *commands, fmt="qcow2"):
        oracle.qemu_io(name, commands, fmt, self.dir)

    def reads(self, name, *commands, fmt="qcow2", cwd=None):
        if not oracle.reads(name, commands, fmt, cwd or self.dir):
            raise Fail(f"{name} does not read as {'; '.join(commands)}")

    def q(self, name):
        return Qcow2(self.path(name))

    def view(self, name, fmt="qcow2", snapshot=None):
        return oracle.view(name, fmt, self.dir, snapshot)

    def files(self):
        found = []
        for folder, _, names in os.walk(self.dir):
            found += [os.path.join(folder, n) for n in names
                      if os.path.isfile(os.path.join(folder, n))]
        return oracle.digests(found)

    def run(self, *args, rc=0, cwd=None, env=None):
        r = oracle.run([self.qmeld, *words(args)], cwd or self.dir, env=env)
        codes = rc if isinstance(rc, tuple) else (rc,)
        if r.rc not in codes:
            raise Fail(f"qmeld {' '.join(words(args))}: rc {r.rc}, wanted {rc}: {r.err}{r.out}")
        return r

    def commit(self, *args, rc=0, cwd=None):
        return self.run("commit", *args, rc=rc, cwd=cwd)

    def refused(self, *args, says=(), rc=2, cwd=None):
        """Exit 2, a sentence with these words in it, and every file as it was."""
        before = self.files()
        r = self.run(*args, rc=rc, cwd=cwd)
        for word in [says] if isinstance(says, str) else says:
            if word.lower() not in r.err.lower():
                raise Fail(f"qmeld {' '.join(args)}: {r.err.strip()!r} does not say {word!r}")
        if not r.err.strip():
            raise Fail(f"qmeld {' '.join(args)}: refused without a word")
        if self.files() != before:
            raise Fail(f"qmeld {' '.join(args)}: refused, but files changed")
        return r

    def check(self, name, rc=0):
        got, found, text = oracle.check(name, cwd=self.dir)
        if got != rc:
            raise Fail(f"qemu-img check {name}: rc {got}, wanted {rc}: {found} {text}")

    def same_map(self, name, fmt="qcow2", cwd=None):
        cwd = cwd or self.dir
        want = oracle.must(["qemu-img", "map", "--output=json", "-f", fmt, name], cwd).out
        got = oracle.run([self.qmeld, "map", "--output=json", "-f", fmt, name], cwd)
        if got.rc != 0 or got.out != want:
            raise Fail(f"map of {name}: rc {got.rc} {got.err}\nwanted\n{want}got\n{got.out}")
        return want

    def size(self, name):
        return os.stat(self.path(name)).st_size

    def blocks(self, name):
        return os.stat(self.path(name)).st_blocks

    def virtual(self, name):
        return self.q(name).size

    @staticmethod
    def ok(condition, what):
        if not condition:
            raise Fail(what)


def run_case(number, fn, folder, qmeld, keep):
    case_dir = os.path.join(folder, number)
    os.mkdir(case_dir)
    text = ""
    try:
        fn(Stage(case_dir, qmeld, folder))
        verdict = "pass"
    except NotHere as e:
        verdict, text = "skip", str(e)
    except (Fail, oracle.Broken, OSError, ValueError) as e:
        verdict = "BROKEN" if isinstance(e, oracle.Broken) else "FAIL"
        text = f"{type(e).__name__}: {e}"
    if verdict in ("pass", "skip") or not keep:
        shutil.rmtree(case_dir, ignore_errors=True)
    return verdict, text


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("cases", nargs="*")
    p.add_argument("--keep", action="store_true")
    p.add_argument("--dir")
    opts = p.parse_args()
    oracle.need("qemu-img", "qemu-io")
    qmeld = oracle.qmeld_program()
    folder = oracle.scratch(opts.dir)
    chosen = [c for c in sorted(CASES, key=lambda c: c[0]) if not opts.cases or c[0] in opts.cases]
    bad = [] if chosen else ["no such case"]
    print(f"tool: {qmeld}")
    for number, fact, fn in chosen:
        verdict, text = run_case(number, fn, folder, qmeld, opts.keep)
        print(f"{verdict} {number} {fact}" + (f"\n     {text}" if text else ""), flush=True)
        if verdict in ("FAIL", "BROKEN"):
            bad.append(number)
    if opts.keep and bad:
        print(f"kept in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{len(chosen)} cases, {len(bad)} bad: {' '.join(bad)}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.modules["cases"] = sys.modules["__main__"]  # one list of cases, not two
    import cases_content
    import cases_look
    import cases_state
    assert cases_content and cases_look and cases_state
    sys.exit(main())
