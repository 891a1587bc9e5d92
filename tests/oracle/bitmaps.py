#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Persistent bitmaps through merges, judged by QEMU: random chains whose layers have bitmaps.

    bitmaps.py            the base's bitmaps after a merge are those that qemu-img commit and qemu-img bitmap
                          --merge leave, and what layers without them wrote; read by QEMU's own export
                          (qemu-nbd -B) now and then; those that a killed writer left say nothing
    bitmaps.py --kill     the same, each merge killed again and again until it is through
    bitmaps.py --flatten  a new image (qmeld flatten) has, with merge, what the model says of all layers put together, with
                          keep what qemu-img convert --bitmaps gives it; with --kill, killed until it is through
    bitmaps.py --backup   a full backup, guest writes through layers, merges; what the bitmap names, copied over the
                          backup, is the disk

Options: --seed N, --count N, --keep (the folder of a failure).
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time

import bitmap_model
import oracle
from oracle import Fail, KIB, MIB, Qcow2

NAMES = ["daily", "weekly", "odd"]


class World:
    def __init__(self, folder, rng):
        self.folder, self.rng = folder, rng
        self.story, self.layers = [], []

    def path(self, name):
        return os.path.join(self.folder, name)

    def img(self, *args):
        self.story.append("qemu-img " + " ".join(args))
        return oracle.must(["qemu-img", *args], self.folder)

    def write(self, name, n, kill=False):
        size, rng = Qcow2(self.path(name)).size, self.rng
        commands = []
        for _ in range(n):
            length = rng.choice([512, 4 * KIB, 64 * KIB, 300 * KIB])
            at = rng.randrange(max(1, (size - length) // 512)) * 512
            kind = rng.choice(["-P %d" % rng.randrange(1, 255)] * 4 + ["-z"])
            commands.append(f"write {kind} {at} {min(length, size - at)}")
        self.story.append(f"{name}: " + "; ".join(commands) + (", killed" if kill else ""))
        if not kill:
            oracle.qemu_io(name, commands, cwd=self.folder)
            return
        argv = ["qemu-io", "-f", "qcow2"]
        for c in commands + ["flush"]:
            argv += ["-c", c]
        subprocess.run(argv + ["-c", "abort", name], cwd=self.folder, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, check=False)

    def add_layer(self, depth):
        rng, name = self.rng, f"l{depth}"
        cs = rng.choice([4 * KIB, 16 * KIB, 64 * KIB, 64 * KIB])
        size = 2 * MIB if not self.layers else Qcow2(self.path(self.layers[-1])).size
        if self.layers and rng.random() < 0.3:
            size = max(512 * KIB, size + rng.choice([-512 * KIB, 512 * KIB, MIB, 3 * KIB]))
        options = f"cluster_size={cs},compat=1.1" + (",extended_l2=on" if cs >= 16 * KIB and rng.random() < 0.2 else "")
        backing = ["-b", self.layers[-1], "-F", "qcow2"] if self.layers else []
        self.img("create", "-q", "-f", "qcow2", "-o", options, *backing, name, str(size))
        self.write(name, rng.randrange(3))
        for bitmap in NAMES:
            if rng.random() < 0.55:
                self.img("bitmap", "--add", "-g", rng.choice(["512", "4k", "64k", "128k"]),
                         *(["--disable"] if rng.random() < 0.25 else []), name, bitmap)
        self.write(name, rng.randrange(5), kill=rng.random() < 0.08)
        self.layers.append(name)


def build(folder, rng):
    w = World(folder, rng)
    for depth in range(rng.choice([2, 2, 3, 3, 4])):
        w.add_layer(depth)
    return w


def by_qemu(w, base, top):
    """What qemu-img makes of a copy: commit, then each layer's bitmaps.  None where it cannot."""
    copy = w.folder + ".qemu"
    shutil.copytree(w.folder, copy)
    try:
        qs = [Qcow2(w.path(n)) for n in w.layers[base:top + 1]]
        if any(q.size != qs[0].size for q in qs):
            return None
        if oracle.run(["qemu-img", "commit", "-q", "-d", "-b", os.path.join(copy, w.layers[base]),
                       os.path.join(copy, w.layers[top])], copy).rc != 0:
            return None
        now = Qcow2(os.path.join(copy, w.layers[base])).bitmaps()
        for name in sorted({n for q in qs[1:] for n in q.bitmaps()}):
            holders = [q for q in qs if name in q.bitmaps()]
            if any(q.bitmaps()[name][0] & bitmap_model.IN_USE for q in holders):
                continue
            above = [q for q in holders if q is not qs[0]]
            if name not in now:
                gran = min(q.bitmaps()[name][1] for q in above)
                oracle.must(["qemu-img", "bitmap", "--add", "--disable", "-g", str(gran), w.layers[base],
                             name], copy)
            for q in above:
                oracle.must(["qemu-img", "bitmap", "--merge", name, "-b", os.path.basename(q.path), "-F",
                             "qcow2", w.layers[base], name], copy)
        return Qcow2(os.path.join(copy, w.layers[base])).bitmaps()
    finally:
        shutil.rmtree(copy)


def exported(path, name):
    """The dirty bytes that QEMU's server tells of: [(from, to)]."""
    socket = path + ".sock"
    server = subprocess.Popen(["qemu-nbd", "-r", "-t", "-k", socket, "-B", name, "-f", "qcow2", path],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            if os.path.exists(socket):
                break
            time.sleep(0.05)
        out = oracle.must(["nbdinfo", "--json", f"--map=qemu:dirty-bitmap:{name}",
                           f"nbd+unix:///?socket={socket}"]).out
        return [(e["offset"], e["offset"] + e["length"]) for e in json.loads(out) if e["type"]]
    finally:
        server.terminate()
        server.wait()
        if os.path.exists(socket):
            os.unlink(socket)


def compare_export(path):
    q = Qcow2(path)
    for name, (flags, gran, bits) in q.bitmaps().items():
        if flags & bitmap_model.IN_USE:
            continue
        want = {g for g in oracle.set_bits(bits)}
        have = {g for a, b in exported(path, name) for g in range(a // gran, (b + gran - 1) // gran)}
        if want != have:
            raise Fail(f"bitmap {name}: QEMU exports {sorted(want ^ have)[:8]} otherwise")


def merge(w, qmeld, args, kill):
    return run(w, [qmeld, "commit", *args], kill, lambda: not any(x.endswith(".qmeld") for x in os.listdir(w.folder)))


def run(w, argv, kill, is_through):
    """One piece of work; killed at times that grow, if it is to be."""
    w.story.append(" ".join(argv[1:]))
    wait, kills = 0.001, 0
    while kill:
        p = subprocess.Popen(argv, cwd=w.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            err = p.communicate(timeout=wait)[1]
            # killed behind the end: the names are gone, and so is the journal; what is checked next tells
            through = kills and is_through()
            if p.returncode == 0 or through:
                return kills
            raise Fail(f"after {kills} kills: rc {p.returncode}: {err.decode()}")
        except subprocess.TimeoutExpired:
            p.kill()
            p.communicate()
            kills, wait = kills + 1, wait * w.rng.choice([1.1, 1.3])
    r = oracle.run(argv, w.folder)
    if r.rc != 0:
        raise Fail(f"rc {r.rc}: {r.err}")
    return 0


def one(opts, folder, rng):
    w = build(folder, rng)
    n = len(w.layers)
    top = n - 1 if rng.random() < 0.7 else rng.randrange(1, n)
    base = rng.randrange(top)
    mode = rng.choice(["merge"] * 4 + ["keep", "drop"])
    qs = [Qcow2(w.path(x)) for x in w.layers[base:top + 1]]
    before = qs[0].bitmaps()
    grows = max(qs[0].size, qs[-1].size) > qs[0].size
    want = bitmap_model.expect(qs, mode, max(qs[0].size, qs[-1].size))
    theirs = by_qemu(w, base, top) if mode == "merge" else None
    args = [f"--base=[{base + 1}]", f"--top=[{top + 1}]", f"--bitmaps={mode}", w.layers[-1]]
    args = [rng.choice(["--overlays=keep", "--overlays=delete", "--reclaim", "--overlays=empty", "--atomic"])] + args
    in_use = [b for b, (flags, _, _) in qs[0].bitmaps().items() if flags & bitmap_model.IN_USE]
    first = not qs[0].bitmaps() and base > 0 and "--atomic" in args
    if (grows and in_use and mode != "drop") or first:
        r = oracle.run([opts.qmeld, "commit", *args], w.folder)
        if r.rc == 2 or (r.rc == 0 and first):
            return "refused"
        raise Fail(f"rc {r.rc}, and should have been refused: {r.err}")
    view = oracle.view(w.layers[-1], cwd=folder)
    kills = merge(w, opts.qmeld, args, opts.kill)
    path = w.path(w.layers[base])
    wrong = bitmap_model.compare(want, Qcow2(path))
    if wrong:
        raise Fail(wrong)
    if oracle.check(path)[0] != 0:
        raise Fail("the base is not clean")
    last = w.layers[-1] if os.path.exists(w.path(w.layers[-1])) else w.layers[base]
    if oracle.view(last, cwd=folder)[:len(view)] != view:
        raise Fail(f"{last} reads otherwise")
    for name, (flags, gran, bits) in (theirs or {}).items():
        now = Qcow2(path).bitmaps().get(name)
        if not now or (flags | now[0]) & bitmap_model.IN_USE:
            continue
        ours, wrong = oracle.set_bits(now[2]), set()
        if name in before and before[name][0] & bitmap_model.AUTO:
            wrong = ours - oracle.set_bits(bits)  # QEMU writes, and marks, whole 64 KiB
        else:
            wrong = oracle.set_bits(bits) - ours
        if wrong or gran != now[1]:
            raise Fail(f"bitmap {name}: qemu-img has not {sorted(wrong)[:8]}, granularity {gran}, here {now[1]}")
    if opts.export and rng.random() < 0.1 and "--atomic" not in args:
        compare_export(path)
    return f"{mode}, {kills} kills" if opts.kill else mode


def kept_by_qemu(w, top, skip):
    """The bitmaps that qemu-img convert gives a new image; None: it refuses."""
    r = oracle.run(["qemu-img", "convert", "--bitmaps", *skip, "-O", "qcow2", top, "theirs"], w.folder)
    if r.rc != 0:
        return None
    found = Qcow2(w.path("theirs")).bitmaps()
    os.unlink(w.path("theirs"))
    return {n: bitmap_model.Expected(flags, gran, oracle.set_bits(bits), set()) for n, (flags, gran, bits) in found.items()}


def flat(opts, folder, rng):
    """A chain's bitmaps in a new image."""
    w = build(folder, rng)
    top = rng.randrange(len(w.layers)) if rng.random() < 0.3 else len(w.layers) - 1
    qs = [Qcow2(w.path(x)) for x in w.layers[:top + 1]]
    mode = rng.choice(["merge", "merge", "keep", "drop"])
    skip = ["--skip-broken-bitmaps"] if mode == "keep" and rng.random() < 0.5 else []
    want = {"merge": lambda: bitmap_model.expect([None] + qs, "merge", qs[-1].size), "drop": dict,
            "keep": lambda: kept_by_qemu(w, w.layers[top], skip)}[mode]()
    options = ["--cluster-size", rng.choice(["512", "4k", "64k", "64k", "2M"]), "--refcount-bits", rng.choice(["1", "16", "64"])]
    options += ["-c"] if rng.random() < 0.3 else []
    words = ["convert", "-O", "qcow2", "--bitmaps", *skip] if mode == "keep" and rng.random() < 0.5 else \
        ["flatten", "-O", "qcow2", "--bitmaps=" + mode, *skip, *options]
    argv = [opts.qmeld, *words, "--output=json", w.layers[top], "flat"]
    out = w.path("flat")
    if want is None:
        r = oracle.run(argv, folder)
        if r.rc != 2 or "--skip-broken-bitmaps" not in r.err or os.path.exists(out):
            raise Fail(f"qemu-img refuses, and here rc {r.rc}: {r.err}")
        return "refused"
    kills = run(w, argv, opts.kill, lambda: os.path.exists(out) and not os.path.exists(w.path(".flat.qmeld-flatten")))
    wrong = bitmap_model.compare(want, Qcow2(out))
    if wrong:
        raise Fail(wrong)
    if oracle.check(out)[0] != 0:
        raise Fail("the new image is not clean")
    if oracle.view(out, cwd=folder) != oracle.view(w.layers[top], cwd=folder):
        raise Fail("the new image reads otherwise")
    if not opts.kill:
        os.unlink(out)
        told = json.loads(oracle.must(argv, folder).out)["bitmaps"]
        if {b["name"] for b in told if b["fate"] == "created"} != set(want):
            raise Fail(f"the report says {told}, and there are {sorted(want)}")
        if {b["name"] for b in told} != {n for q in qs for n in q.bitmaps()}:
            raise Fail(f"the report does not name all bitmaps: {told}")
    if opts.export and rng.random() < 0.1:
        compare_export(out)
    return f"{mode}, {kills} kills" if opts.kill else mode


def backup(opts, folder, rng):
    """Incremental backups go on over merges."""
    w = World(folder, rng)
    gran = rng.choice(["4k", "64k"])
    w.img("create", "-q", "-f", "qcow2", "l0", "4M")
    w.layers = ["l0"]
    w.write("l0", 6)
    w.img("convert", "-O", "raw", "l0", "backup.raw")
    w.img("bitmap", "--add", "-g", gran, "l0", "daily")
    w.write("l0", 3)
    for i in range(1, 4):
        w.img("create", "-q", "-f", "qcow2", "-b", w.layers[-1], "-F", "qcow2", f"l{i}")
        if rng.random() < 0.8:
            w.img("bitmap", "--add", "-g", gran, f"l{i}", "daily")
        w.layers.append(f"l{i}")
        w.write(f"l{i}", 4)
        if rng.random() < 0.4:
            merge(w, opts.qmeld, ["--shallow", "--overlays=delete", w.layers.pop()], opts.kill)
            w.write(w.layers[-1], 2)
    if len(w.layers) > 1:
        merge(w, opts.qmeld, ["--overlays=delete", w.layers[-1]], opts.kill)
    want = oracle.view("l0", cwd=folder)
    flags, granule, bits = Qcow2(w.path("l0")).bitmaps()["daily"]
    if flags != bitmap_model.AUTO:
        raise Fail(f"the bitmap's flags are {flags}")
    with open(w.path("backup.raw"), "r+b") as f:
        dirty = exported(w.path("l0"), "daily") if opts.export else \
            [(g * granule, (g + 1) * granule) for g in oracle.set_bits(bits)]
        for start, end in dirty:
            f.seek(start)
            f.write(want[start:end])
    with open(w.path("backup.raw"), "rb") as f:
        diff = oracle.first_difference(want, f.read())
    if diff:
        raise Fail(f"the incremental backup is not the disk: {diff}")
    if sum(end - start for start, end in dirty) >= 4 * MIB:
        raise Fail("the bitmap names all of the disk")
    return "backup"


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--count", type=int, default=30)
    p.add_argument("--kill", action="store_true")
    p.add_argument("--backup", action="store_true")
    p.add_argument("--flatten", action="store_true")
    p.add_argument("--keep", action="store_true")
    opts = p.parse_args()
    oracle.need("qemu-img", "qemu-io")
    opts.export = bool(shutil.which("qemu-nbd") and shutil.which("nbdinfo"))
    opts.qmeld = oracle.qmeld_program()
    if opts.flatten:
        os.environ["QMELD_TEST_BATCH"] = str(1 << 16)  # in test builds: short batches, of which one is gone on with
    home, bad, seen = oracle.scratch(), 0, {}
    for seed in range(opts.seed, opts.seed + opts.count):
        folder = os.path.join(home, str(seed))
        os.mkdir(folder)
        rng = random.Random(seed)
        try:
            end = (backup if opts.backup else flat if opts.flatten else one)(opts, folder, rng)
            seen[end.split(",")[0]] = seen.get(end.split(",")[0], 0) + 1
            shutil.rmtree(folder)
        except Fail as e:
            bad += 1
            print(f"FAIL seed {seed}: {e}")
            if opts.keep:
                print(f"  kept in {folder}")
            else:
                shutil.rmtree(folder)
    if not opts.keep:
        shutil.rmtree(home)
    print(f"{opts.count} cases, {bad} bad: " + ", ".join(f"{k} {v}" for k, v in sorted(seen.items())) +
          ("" if opts.export else "; without QEMU's export (qemu-nbd, nbdinfo)"))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
