#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""`qmeld compare` against `qemu-img compare`, over random chains.

Per case: layers of one chain with each other, with flat copies of themselves, and with copies in
which some bytes were changed.  Exit code and words must be qemu-img's; the list of --all must be what
a comparison in Python finds; what both read from the same file must not be read.  Options as
chains.py has them.
"""

import json
import os
import random

import chains
import oracle
from oracle import Fail

SECTOR = 512


def say(argv, folder):
    r = oracle.run(argv, folder)
    return r.rc, r.out


def agree(qmeld, folder, a, b, options):
    """-> exit code of both."""
    argv = [*options, "-f", a[1], "-F", b[1], a[0], b[0]]
    theirs = say(["qemu-img", "compare", *argv], folder)
    mine = say([qmeld, "compare", *argv], folder)
    if mine != theirs:
        raise Fail(f"compare {' '.join(argv)}: {mine}, qemu-img says {theirs}")
    return theirs[0]


def ranges_of(x, y):
    """Sectors that differ, joined."""
    size = max(len(x), len(y))
    x, y = (v + bytes(size - len(v)) for v in (x, y))
    found = []
    for at in range(0, size, SECTOR):
        n = min(SECTOR, size - at)
        if x[at:at + n] == y[at:at + n]:
            continue
        if found and sum(found[-1]) == at:
            found[-1] = (found[-1][0], found[-1][1] + n)
        else:
            found.append((at, n))
    return found


def listed(qmeld, folder, a, b):
    """--all, against our own look at the bytes."""
    views = [oracle.view(path, fmt, folder) for path, fmt in (a, b)]
    r = oracle.run([qmeld, "compare", "--all", "--output=json", "-f", a[1], "-F", b[1], a[0], b[0]], folder)
    told = json.loads(r.out)
    expected = ranges_of(*views)
    got = [(x["start"], x["length"]) for x in told["ranges"]]
    if got != expected:
        raise Fail(f"compare --all {a[0]} {b[0]}: {got[:5]}... expected {expected[:5]}...")
    if r.rc != (1 if expected else 0) or told["identical"] == bool(expected):
        raise Fail(f"compare --all {a[0]} {b[0]}: exit {r.rc}, {told['identical']}")
    if told["different-bytes"] != sum(n for _, n in expected):
        raise Fail(f"compare --all {a[0]} {b[0]}: {told['different-bytes']} bytes differ")


def same_without_reading(qmeld, folder, a):
    """An image and itself."""
    told = json.loads(oracle.run([qmeld, "compare", "--output=json", "-f", a[1], "-F", a[1], a[0], a[0]],
                                 folder).out)
    if not told["identical"] or told["bytes-read"]:
        raise Fail(f"{a[0]} and itself: {told}")


def disturb(rng, path):
    """Some bytes of a raw file, not all in sectors that were data."""
    size = os.path.getsize(path)
    with open(path, "r+b") as f:
        for _ in range(rng.choice([1, 1, 3, 40])):
            at = rng.randrange(size)
            f.seek(at)
            old = f.read(1)
            f.seek(at)
            f.write(bytes([old[0] ^ rng.randrange(1, 256)]))


def compare_and_check(rng, chain, qmeld, story):
    layers = [(layer.path, layer.fmt) for layer in chain.layers]
    folder, pairs = chain.folder, []
    for _ in range(3):
        pairs.append((rng.choice(layers), rng.choice(layers)))
    top = rng.choice(layers)
    flat = [("flat.raw", "raw"), ("flat.qcow2", "qcow2"), ("other.raw", "raw")]
    for name, fmt in flat:
        oracle.must(["qemu-img", "convert", "-f", top[1], "-O", fmt, top[0], name], folder)
    if os.path.getsize(os.path.join(folder, "other.raw")):
        disturb(rng, os.path.join(folder, "other.raw"))
    pairs += [(top, f) for f in flat] + [(flat[2], top), (flat[1], flat[2])]
    seen = set()
    for a, b in pairs:
        story.append(f"compare {a[0]} {b[0]}")
        seen.add(agree(qmeld, folder, a, b, []))
        strictly(qmeld, folder, a, b)
    listed(qmeld, folder, *rng.choice(pairs))
    listed(qmeld, folder, top, flat[2])
    same_without_reading(qmeld, folder, top)
    chain.tags.update(f"compare-{code}" for code in seen)
    return "merged"


def strictly(qmeld, folder, a, b):
    """QEMU's flag "end of file" is in what it compares, and ours not: where it finds the last extents to
    differ, and nothing else, we find the bytes there, what comes behind, or nothing."""
    argv = ["-s", "-f", a[1], "-F", b[1], a[0], b[0]]
    theirs = say(["qemu-img", "compare", *argv], folder)
    mine = say([qmeld, "compare", *argv], folder)
    if mine == theirs:
        return
    if "block status" in theirs[1] and offset_in(mine[1]) >= offset_in(theirs[1]) \
            and only_the_end(folder, a, b, offset_in(theirs[1])):
        return
    raise Fail(f"compare {' '.join(argv)}: {mine}, qemu-img says {theirs}")


def offset_in(words):
    digits = "".join(c for c in words if c.isdigit())
    return int(digits) if digits else 1 << 64


def only_the_end(folder, a, b, at):
    """What qemu-img says of the place is the same for both: data, zero, offset or none."""
    flags = []
    for path, fmt in (a, b):
        listing = json.loads(oracle.must(["qemu-img", "map", "-f", fmt, "--output=json", path], folder).out)
        e = next(x for x in listing if x["start"] <= at < x["start"] + x["length"])
        flags.append((e["data"], e["zero"], e["present"], "offset" in e))
    return flags[0] == flags[1]


if __name__ == "__main__":
    chains.main(compare_and_check)
