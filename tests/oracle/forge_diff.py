#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Is the forge right?  Random recipes, each layer looked at by qemu-img.

The forge is a second opinion on qmeld, so it needs one itself: every layer of a whole recipe must be
clean in `qemu-img check`, and must read, through its chain, as `forge --expect` says.  With
--qmeld the readers under test are asked as well (check and map), which needs no merge.

A case is its seed: `forge_diff.py --seed N --count 1 --keep` makes it again and keeps it.
"""

import argparse
import filecmp
import json
import os
import shutil
import sys

import oracle


def layers_of(forge, folder):
    out = oracle.must([forge, "--list", "recipe"], folder).out
    return [line.split() for line in out.splitlines()]


def same_view(forge, folder, name, fmt):
    oracle.must([forge, "--expect", "recipe", name, "want"], folder)
    oracle.must(["qemu-img", "convert", "-f", fmt, "-O", "raw", name, "got"], folder)
    want, got = (os.path.join(folder, n) for n in ("want", "got"))
    if filecmp.cmp(want, got, shallow=False):
        return
    with open(want, "rb") as a, open(got, "rb") as b:
        raise oracle.Fail(f"{name}: forge and qemu-img differ, "
                          f"{oracle.first_difference(a.read(), b.read())}")


def snapshots_read(folder, name):
    """Internal snapshots must be readable; what they hold is not drawn by --expect."""
    info = json.loads(oracle.must(["qemu-img", "info", "--output=json", name], folder).out)
    for snap in info.get("snapshots", []):
        oracle.must(["qemu-img", "convert", "-l", snap["name"], "-O", "raw", name, "got"], folder)


def qmeld_agrees(qmeld, folder, name, fmt):
    if fmt == "qcow2":
        ours = oracle.run([qmeld, "check", "--output=json", name], folder)
        theirs = oracle.run(["qemu-img", "check", "--output=json", name], folder)
        if ours.rc != theirs.rc or json.loads(ours.out) != json.loads(theirs.out):
            raise oracle.Fail(f"{name}: check differs\n{ours.rc} {ours.out}{ours.err}\n"
                              f"{theirs.rc} {theirs.out}")
    ours = oracle.run([qmeld, "map", "--output=json", "-f", fmt, name], folder)
    theirs = oracle.must(["qemu-img", "map", "--output=json", "-f", fmt, name], folder)
    if ours.rc != 0 or json.loads(ours.out) != json.loads(theirs.out):
        raise oracle.Fail(f"{name}: map differs\n{ours.rc} {ours.out}{ours.err}\n{theirs.out}")


def one_case(seed, folder, opts):
    recipe = oracle.must([opts.forge, "--random", str(seed)], folder).out
    with open(os.path.join(folder, "recipe"), "w", encoding="utf-8") as f:
        f.write(recipe)
    oracle.must([opts.forge, "recipe", "."], folder)
    for name, fmt in layers_of(opts.forge, folder):
        if fmt == "qcow2":
            rc, _, err = oracle.check(name, fmt, folder)
            if rc != 0:
                raise oracle.Fail(f"{name}: qemu-img check says {rc}: {err}")
            snapshots_read(folder, name)
        same_view(opts.forge, folder, name, fmt)
        if opts.qmeld:
            qmeld_agrees(opts.qmeld, folder, name, fmt)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--seed", type=int, default=1, help="the first seed")
    p.add_argument("--count", type=int, default=40)
    p.add_argument("--forge", default=oracle.find_program("forge"))
    p.add_argument("--qmeld", help="ask this qmeld, too")
    p.add_argument("--keep", action="store_true", help="keep the folders of all cases")
    opts = p.parse_args()
    oracle.need("qemu-img")
    if not opts.forge:
        oracle.die_skip("forge is not built: set FORGE or build a preset")
    opts.forge = os.path.abspath(opts.forge)
    opts.qmeld = opts.qmeld and os.path.abspath(opts.qmeld)
    root = oracle.scratch()
    bad = 0
    for seed in range(opts.seed, opts.seed + opts.count):
        folder = os.path.join(root, str(seed))
        os.mkdir(folder)
        try:
            one_case(seed, folder, opts)
        except (oracle.Fail, oracle.Broken) as why:
            bad += 1
            print(f"seed {seed}: {why}", flush=True)
        if not opts.keep:
            shutil.rmtree(folder)
    print(f"forge_diff: {opts.count} recipes from seed {opts.seed}, {bad} bad"
          + (f", kept in {root}" if opts.keep else ""))
    if not opts.keep:
        shutil.rmtree(root)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
