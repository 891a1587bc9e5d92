#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""memory.py - does memory follow what is there, and neither virtual size nor depth?

The promise: 64 TiB with 1,000 layers are mapped, planned and merged within 128 MiB beyond mapped file pages.
Here 64 TiB with two numbers of layers are, while the anonymous memory of the process is watched; the
larger must keep within what is left for it, and what a layer more costs, times 1,000, must keep within the promise.
`tools/bench --full --only memory-commit memory-map` measures the whole of it.

  memory.py [--layers FEW MANY]
"""

import argparse
import os
import shutil
import subprocess
import sys

import oracle

sys.path.insert(0, os.path.join(oracle.ROOT, "tools", "benchlib"))
sys.dont_write_bytecode = True

import rows  # noqa: E402
import run  # noqa: E402

PROMISE, LAYERS = 128 << 20, 1000
SIZE = 64 << 40
COMMANDS = {"map": ["map", "--output=json"], "plan": ["plan"], "commit": ["commit", "-q"]}


def peak(argv, at):
    """Greatest anonymous memory; a run that ends before anybody looks is tried again (a second commit finds
    that all is merged, and has opened as many layers)."""
    for _ in range(10):
        cost = run.run(argv, at, sample=True)
        if cost.anon:
            return cost.anon
    raise oracle.Broken(f"{' '.join(argv)}: ended before its memory could be looked at")


def peaks(qmeld, folder, depth):
    """{command: greatest anonymous memory}"""
    at = os.path.join(folder, str(depth))
    os.makedirs(at)
    chain = rows.Chain("memory", SIZE, depth, 4 << 16, 1 << 16)
    chain.build(at)
    found = {}
    for name, argv in COMMANDS.items():
        found[name] = peak([qmeld] + argv + [chain.top], at)
    # it was the whole chain that was merged
    merged = oracle.must([qmeld, "map", "--output=json", chain.base], cwd=at).out.count('"data": true')
    whole = oracle.must([qmeld, "map", "--output=json", chain.top], cwd=at).out.count('"data": true')
    if merged < depth or whole != merged:
        raise oracle.Fail(f"{depth} layers: {merged} extents of data in the base, {whole} in all")
    shutil.rmtree(at)
    return found


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--layers", nargs=2, type=int, default=(60, 260), metavar=("FEW", "MANY"))
    few, many = p.parse_args().layers
    oracle.need("qemu-img")
    qmeld = oracle.qmeld_program("release")
    run.raise_limits()
    folder = oracle.scratch()
    try:
        low, high = (peaks(qmeld, folder, n) for n in (few, many))
    finally:
        shutil.rmtree(folder)
    bad = 0
    for name in COMMANDS:
        a_layer = max(0, high[name] - low[name]) / (many - few)
        whole = low[name] + a_layer * (LAYERS - few)
        print(f"{name}: {high[name] >> 20} MiB with {many} layers, {a_layer / 1024:.1f} KiB a layer, "
              f"{whole / (1 << 20):.0f} MiB with {LAYERS}")
        bad += whole > PROMISE
    if bad:
        raise oracle.Fail(f"more than {PROMISE >> 20} MiB")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (oracle.Fail, oracle.Broken, run.Failed, subprocess.SubprocessError) as e:
        print(f"FAIL: {e}")
        sys.exit(1)
