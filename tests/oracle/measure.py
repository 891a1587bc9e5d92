#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""`qmeld measure` of new images against `qemu-img measure`: every layer of a random chain, and empty disks,
with random options.  Options as chains.py has them."""

import json
import random

import chains
import oracle
from oracle import Fail

CLUSTERS = ["512", "1k", "4k", "64k", "1M", "2M"]


def pick_options(rng):
    o = {}
    if rng.random() < 0.6:
        o["cluster_size"] = rng.choice(CLUSTERS)
    kind = rng.random()
    if kind < 0.2:
        o["compat"] = "0.10"
    elif kind < 0.6:
        o["refcount_bits"] = rng.choice(["1", "2", "8", "16", "64"])
        if o.get("cluster_size", "64k") in ("64k", "1M", "2M"):
            o["extended_l2"] = rng.choice(["on", "off"])
    if rng.random() < 0.4:
        o["preallocation"] = rng.choice(["off", "metadata", "falloc", "full"])
    if rng.random() < 0.15:
        o["backing_file"] = "any"
    return ["-o", ",".join(f"{k}={v}" for k, v in o.items())] if o else []


def agree(qmeld, folder, argv, story):
    """The same words, and the same JSON."""
    story.append("measure " + " ".join(argv))
    theirs, mine = (oracle.run([tool, "measure", *argv], folder) for tool in ("qemu-img", qmeld))
    if (theirs.rc != 0) != (mine.rc != 0) or theirs.out != mine.out:
        raise Fail(f"measure {argv}: {mine}, qemu-img says {theirs}")
    if theirs.rc != 0:
        if mine.rc != 2:
            raise Fail(f"measure {argv}: {mine}")
        return
    theirs, mine = (json.loads(oracle.run([tool, "measure", "--output=json", *argv], folder).out)
                    for tool in ("qemu-img", qmeld))
    if theirs != mine:
        raise Fail(f"measure {argv}: {mine}, qemu-img says {theirs}")


def measure_and_check(rng, chain, qmeld, story):
    for layer in chain.layers:
        agree(qmeld, chain.folder, ["-O", "raw", "-f", layer.fmt, layer.path], story)
        for _ in range(3):
            agree(qmeld, chain.folder, ["-O", "qcow2", *pick_options(rng), "-f", layer.fmt, layer.path], story)
        for name in layer.snapshots:
            for word in (name, "1", f"snapshot.name={name}", f"snapshot.id=1,snapshot.name={name}"):
                agree(qmeld, chain.folder, ["-O", rng.choice(["raw", "qcow2"]), "-l", word, "-f", layer.fmt,
                                            layer.path], story)
            agree(qmeld, chain.folder, ["-U", "-O", "qcow2", *pick_options(rng), "-l", name, "-f", layer.fmt,
                                        layer.path], story)
            chain.tags.add("snapshot-measured")
    for _ in range(6):
        size = rng.choice([rng.randrange(1 << 16), rng.randrange(1 << 30), rng.randrange(1 << 43)])
        agree(qmeld, chain.folder, ["-O", "qcow2", *pick_options(rng), "--size", str(size)], story)
        agree(qmeld, chain.folder, ["--size", str(size)], story)
    return "merged"


if __name__ == "__main__":
    chains.main(measure_and_check)
