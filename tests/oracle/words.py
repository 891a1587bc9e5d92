#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The same words given to qemu-img and to qmeld, side by side, on the same random chain.

Per case: a chain, and a copy of its folder; `qemu-img commit|rebase|convert ...` in the one, the same with qmeld (as
qmeld-img where what is left out must mean the same, too) in the other.  Afterwards either both have failed, and
qmeld has changed nothing, or every image of the one folder reads, and is made, as that of the other: content, size,
backing name, what of the top is allocated.  What is known to differ is in docs/from-qemu-img.md.

    words.py [--seed N] [--count N] [--keep]
"""

import argparse
import json
import os
import random
import shutil
import sys

import oracle
from oracle import Broken, Fail, KIB, MIB

CACHES = ["none", "writeback", "writethrough", "directsync", "unsafe"]


# ---- chains ----

def write_some(rng, path, fmt, size, mark):
    unit = rng.choice([4 * KIB, 64 * KIB])
    commands = []
    for _ in range(rng.randrange(1, 7)):
        off = rng.randrange(0, size // unit) * unit
        length = min(size - off, unit * rng.randrange(1, 9))
        kind = rng.choice(["write -P %d" % (mark * 16 + rng.randrange(16)), "write -z", "write -P 0"])
        commands.append(f"{kind} {off} {length}")
    oracle.qemu_io(path, commands, fmt, strict=True)


def random_chain(rng, folder):
    """-> [(name, format)], base first.  Each layer is as long as the one below, or longer."""
    size = rng.choice([1, 2, 3]) * MIB
    sub = "base/" if rng.random() < 0.3 else ""
    if sub:
        os.mkdir(os.path.join(folder, "base"))
    fmt = rng.choice(["raw", "qcow2"])
    layers = [(f"{sub}b.{fmt}", fmt)]
    for i in range(rng.randrange(1, 5)):
        layers.append((f"o{i}.qcow2", "qcow2"))
    for i, (name, fmt) in enumerate(layers):
        path = os.path.join(folder, name)
        argv = ["qemu-img", "create", "-q", "-f", fmt]
        if fmt == "qcow2":
            argv += ["-o", "cluster_size=" + rng.choice(["4k", "64k"])]
        if i:
            argv += ["-b", layers[i - 1][0], "-F", layers[i - 1][1]]
            size += rng.choice([0, 0, 0, 512 * KIB])
        oracle.must([*argv, path, str(size)], folder)
        write_some(rng, path, fmt, size, i + 1)
    return layers


# ---- what is compared ----

def look(folder):
    """All that scripts could care about, of every image of a folder."""
    found = {}
    for where, _, names in os.walk(folder):
        for name in sorted(names):
            path = os.path.join(where, name)
            short = os.path.relpath(path, folder)
            fmt = "raw" if name.endswith(".raw") else "qcow2"
            info = json.loads(oracle.must(["qemu-img", "info", "-f", fmt, "--output=json", path]).out)
            rc = oracle.check(path, fmt)[0] if fmt == "qcow2" else 0
            data = info.get("format-specific", {}).get("data", {})
            found[short] = {"view": oracle.view(path, fmt), "size": info["virtual-size"],
                            "check": rc, "backing": info.get("backing-filename"),
                            "backing-format": info.get("backing-filename-format"),
                            "cluster": info.get("cluster-size"), "compat": data.get("compat"),
                            "compression": data.get("compression-type"), "extended": data.get("extended-l2")}
    return found


def depth0(folder, name):
    """Guest ranges that the image itself answers for."""
    r = oracle.must(["qemu-img", "map", "-f", "qcow2", "--output=json", name], folder)
    found = []
    for e in json.loads(r.out):
        if e["depth"] == 0 and (e["data"] or e["zero"]) and e.get("present", True):
            if found and found[-1][1] == e["start"]:
                found[-1] = (found[-1][0], e["start"] + e["length"])
            else:
                found.append((e["start"], e["start"] + e["length"]))
    return found


def compare(theirs, mine, but=()):
    a, b = look(theirs), look(mine)
    if a.keys() != b.keys():
        raise Fail(f"files: qemu-img leaves {sorted(a)}, qmeld {sorted(b)}")
    for name in a:
        for what, value in a[name].items():
            if what == "view" and value != b[name][what]:
                raise Fail(f"{name}: {oracle.first_difference(value, b[name][what])}")
            if value != b[name][what] and what not in but:
                raise Fail(f"{name}: {what}: {value} after qemu-img, {b[name][what]} after qmeld")


# ---- words ----

def pick_commit(rng, layers, story):
    """-> (the program's name, arguments)"""
    top = layers[-1][0]
    words = ["-f", "qcow2"] if rng.random() < 0.5 else []
    if rng.random() < 0.4:
        words += ["-t", rng.choice(CACHES)]
    if rng.random() < 0.3:
        words += ["-r", rng.choice(["0", "1G", "500M"])]
    words += [w for w in ("-p", "-q") if rng.random() < 0.3]
    stays = rng.random() < 0.4
    words += ["-d"] if stays else []
    based = rng.random() < 0.6
    if based:
        name = layers[rng.randrange(len(layers) - 1)][0]
        words += ["-b", rng.choice([name, "./" + name])]
    wrong = rng.random()
    if wrong < 0.04:
        words += ["-b", top]
    elif wrong < 0.08:
        words += ["-t", "sometimes"]
    elif wrong < 0.12:
        words += ["-b", "stranger.qcow2"]
    elif wrong < 0.16:
        words += ["-r", "fast"]
    elif wrong < 0.2:
        words += rng.choice([["--image-opts"], ["--object", "secret,id=s,data=x"]])
        return None, ["commit", *words, top]
    story.append("qmeld" if stays or based else "qmeld-img")
    return "qmeld" if (stays or based) and rng.random() < 0.7 else "qmeld-img", ["commit", *words, top]


def pick_rebase(rng, layers, story):
    top = layers[-1][0]
    words = ["-f", "qcow2"] if rng.random() < 0.5 else []
    words += ["-t", rng.choice(CACHES)] if rng.random() < 0.4 else []
    words += ["-T", rng.choice(CACHES)] if rng.random() < 0.4 else []
    words += [w for w in ("-p", "-q") if rng.random() < 0.3]
    target = rng.randrange(len(layers))
    if target == len(layers) - 1:
        words += ["-b", ""]
    else:
        words += ["-b", layers[target][0]]
        if rng.random() < 0.9:  # without it both refuse
            words += ["-F", layers[target][1]]
    if rng.random() < 0.25 and words[-1] != "":  # without a name qemu-img leaves the format in the header
        words += ["-u"]
    if rng.random() < 0.05:
        words += ["-T", "never"]
    return "qmeld", ["rebase", *words, top]


def pick_convert(rng, layers, story):
    name, fmt = rng.choice(layers)
    words = ["-f", fmt] if rng.random() < 0.6 or fmt == "raw" else []
    out, options = rng.choice([("out.raw", []), ("out.raw", ["-O", "raw"]), ("out.qcow2", ["-O", "qcow2"]),
                               ("out.qcow2", ["-O", "qcow2"])])
    words += options
    if out == "out.qcow2":
        o = {}
        if rng.random() < 0.5:
            o["cluster_size"] = rng.choice(["4k", "64k", "1M"])
        if rng.random() < 0.3:
            o["compression_type"] = rng.choice(["zlib", "zstd"])
        elif rng.random() < 0.2:
            o["compat"] = rng.choice(["0.10", "1.1"])
        if rng.random() < 0.15:
            o["preallocation"] = rng.choice(["off", "metadata", "falloc", "full"])
        words += ["-o", ",".join(f"{k}={v}" for k, v in o.items())] if o else []
    elif rng.random() < 0.15:
        words += ["-o", "preallocation=" + rng.choice(["off", "metadata", "falloc", "full"])]
    if rng.random() < (0.4 if out == "out.qcow2" else 0.1):  # of a raw disk both refuse
        words += ["-c"]
    words += ["-S", rng.choice(["4k", "64k", *(["0"] if "-c" not in words else [])])] if rng.random() < 0.3 else []
    words += ["-m", str(rng.randrange(1, 9))] if rng.random() < 0.3 else []
    words += ["-t", rng.choice(CACHES)] if rng.random() < 0.3 else []
    words += ["-T", rng.choice(CACHES)] if rng.random() < 0.3 else []
    words += [w for w in ("-p", "-q", "-W", "-U") if rng.random() < 0.2]
    if rng.random() < 0.1:
        words += ["-S", "much"]
    return "qmeld", ["convert", *words, name, out]


# ---- a case ----

def add_snapshot(rng, folder, layers, argv):
    """An internal snapshot, and the words for it."""
    name, fmt = layers[-1]
    if argv[0] != "convert" or argv[-2] != name or rng.random() < 0.4:
        return argv
    path = os.path.join(folder, name)
    oracle.must(["qemu-img", "snapshot", "-c", "monday", path])
    size = json.loads(oracle.must(["qemu-img", "info", "--output=json", path]).out)["virtual-size"]
    write_some(rng, path, fmt, size, 9)
    return [argv[0], "-l", rng.choice(["monday", "1", "snapshot.name=monday", "snapshot.id=1"]), *argv[1:]]


def one_case(rng, folder, programs, story):
    theirs, mine = os.path.join(folder, "theirs"), os.path.join(folder, "mine")
    os.mkdir(theirs)
    layers = random_chain(rng, theirs)
    story.append(" <- ".join(f"{n} ({f})" for n, f in layers))
    pick = rng.choice([pick_commit, pick_rebase, pick_convert])
    name, argv = pick(rng, layers, story)
    argv = add_snapshot(rng, theirs, layers, argv)
    if argv[0] == "convert" and rng.random() < 0.3:  # something is there already
        oracle.must(["qemu-img", "create", "-q", "-f", "qcow2", os.path.join(theirs, argv[-1]), "5M"])
    shutil.copytree(theirs, mine)
    story.append(f"{name} {' '.join(argv)}")
    before = oracle.digests(os.path.join(d, n) for d, _, names in os.walk(mine) for n in names)
    b = oracle.run([programs[name or "qmeld"], *argv], mine)
    story.append(f"qmeld: rc {b.rc} {b.err.strip()}")
    if name is None:  # said to be refused, whatever QEMU makes of it
        a = None
    else:
        a = oracle.run(["qemu-img", *argv], theirs)
        story.append(f"qemu-img: rc {a.rc} {a.err.strip()}")
        if (a.rc == 0) != (b.rc == 0):
            raise Fail(f"qemu-img ends with {a.rc}, qmeld with {b.rc}")
    if a is None or a.rc != 0:
        if b.rc != 2 or "qmeld: " not in b.err:
            raise Fail(f"refused with {b.rc}: {b.err}")
        if oracle.digests(os.path.join(d, n) for d, _, names in os.walk(mine) for n in names) != before:
            raise Fail("a refusal that changed something")
        return "refused"
    if "-q" in argv and (b.out or b.err):
        raise Fail(f"-q, and it says: {b.out}{b.err}")
    compare(theirs, mine)
    top = layers[-1][0]
    if argv[0] == "commit" and depth0(theirs, top) != depth0(mine, top):
        raise Fail(f"{top} itself has {depth0(mine, top)}, after qemu-img {depth0(theirs, top)}")
    return argv[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    oracle.need("qemu-img", "qemu-io")
    qmeld = oracle.qmeld_program()
    home = oracle.scratch()
    programs = {"qmeld": qmeld, "qmeld-img": os.path.join(home, "qmeld-img")}
    os.symlink(qmeld, programs["qmeld-img"])
    counts, failed = {}, 0
    for seed in range(args.seed, args.seed + args.count):
        story, folder = [], os.path.join(home, str(seed))
        os.mkdir(folder)
        try:
            kind = one_case(random.Random(seed), folder, programs, story)
            counts[kind] = counts.get(kind, 0) + 1
        except (Fail, Broken) as e:
            failed += 1
            print(f"FAIL seed {seed}: {e}\n  " + "\n  ".join(story), flush=True)
            if args.keep:
                print(f"  kept: {folder}")
                continue
        shutil.rmtree(folder)
    if not args.keep or not failed:
        shutil.rmtree(home)
    print(f"{args.count} cases: {failed} failed; " + ", ".join(f"{n} {k}" for k, n in sorted(counts.items())))
    lacking = {"commit", "rebase", "convert", "refused"} - counts.keys()
    if args.count >= 40 and lacking:
        print(f"none of {', '.join(sorted(lacking))}: that proves nothing about them")
        return 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
