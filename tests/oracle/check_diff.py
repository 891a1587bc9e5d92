#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Does qmeld check find what qemu-img check finds, and mend what it mends?

Each case is a seed: an image with random features and content, made by qemu-img and qemu-io, then
poked at random places of its metadata (or not at all).  Three questions are asked:
  1 qmeld check and qemu-img check: the same numbers, the same exit code
  2 qmeld check --repair on a copy: what could be read before reads the same after (snapshots,
    too), and qemu-img check agrees with the exit code
  3 where qemu-img check -r gets its copy clean, so does qmeld
What qemu-img cannot check (exit code 1, or it dies) qmeld must not call clean.
"""

import argparse
import json
import os
import random
import shutil
import struct
import subprocess
import sys

import oracle
from oracle import KIB, MIB

NUMBERS = ("corruptions", "leaks", "image-end-offset", "total-clusters", "allocated-clusters",
           "fragmented-clusters", "compressed-clusters")


def qemu(argv, folder):
    """qemu-img on damaged images may hit its own assertions, or find no end: rc None then."""
    try:
        p = subprocess.run(["qemu-img"] + argv, cwd=folder, timeout=60, check=False,
                           stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE)
    except subprocess.TimeoutExpired:
        return oracle.Result(None, "", "")
    rc = p.returncode if p.returncode >= 0 else None
    return oracle.Result(rc, p.stdout.decode("utf-8", "replace"),
                         p.stderr.decode("utf-8", "replace"))


# ---- images ----

def features(rng):
    bits = rng.choice([9, 9, 10, 12, 12, 14, 16, 16, 16, 18, 21])
    f = {"cluster_size": 1 << bits, "compat": rng.choice(["0.10", "1.1", "1.1", "1.1"])}
    if f["compat"] == "1.1":
        f["refcount_bits"] = rng.choice([1, 2, 4, 8, 16, 16, 32, 64])
        f["lazy_refcounts"] = rng.choice(["on", "off", "off"])
        f["compression_type"] = rng.choice(["zlib", "zlib", "zstd"])
        if bits >= 14:
            f["extended_l2"] = rng.choice(["on", "off"])
        if rng.random() < 0.08:
            f["data_file"] = "data.raw"
    if rng.random() < 0.1:
        f["preallocation"] = "metadata"
    return f


def some_writes(rng, size, f):
    cs = f["cluster_size"]
    plain = "data_file" not in f
    out = []
    for _ in range(rng.randrange(1, 12)):
        kind = rng.choice(["write", "write", "write", "zero", "discard", "comp"])
        at = rng.randrange(0, size // 512) * 512
        most = min(size - at, rng.choice([4 * KIB, cs, 4 * cs, 64 * KIB, 512 * KIB]))
        n = max(512, rng.randrange(0, most // 512 + 1) * 512)
        if at + n > size:
            continue
        if kind == "write":
            out.append(f"write -P {rng.randrange(1, 255)} {at} {n}")
        elif kind == "zero":
            out.append(f"write -z {rng.choice(['', '-u '])}{at} {n}")
        elif kind == "discard":
            out.append(f"discard {at} {n}")
        elif plain and f.get("refcount_bits", 16) > 1:
            at = at // cs * cs
            if at + cs <= size:
                out.append(f"write -c -P {rng.randrange(1, 255)} {at} {cs}")
    return out


def make_image(rng, folder):
    f = features(rng)
    cs = f["cluster_size"]
    size = rng.choice([1, 3, 16, 70, 200]) * cs + rng.choice([0, 512])
    size = min(max(size, 64 * KIB), 96 * MIB)
    opts = ",".join(f"{k}={v}" for k, v in f.items())
    oracle.must(["qemu-img", "create", "-q", "-f", "qcow2", "-o", opts, "i", str(size)], folder)
    rounds = rng.randrange(1, 4)
    snaps = 0
    for i in range(rounds):
        commands = some_writes(rng, size, f)
        if i == rounds - 1 and f.get("lazy_refcounts") == "on" and rng.random() < 0.4:
            commands.append("abort")  # leaves the dirty bit, and stale refcounts
        if commands:
            argv = ["qemu-io", "-f", "qcow2"] + [x for c in commands for x in ("-c", c)] + ["i"]
            subprocess.run(argv, cwd=folder, timeout=60, check=False, stdin=subprocess.DEVNULL,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if i < rounds - 1 and rng.random() < 0.5:
            snaps += qemu(["snapshot", "-c", f"s{i}", "i"], folder).rc == 0
        if f["compat"] == "1.1" and rng.random() < 0.2:
            qemu(["bitmap", "--add", "-g", str(rng.choice([512, 65536])), "i", f"b{i}"], folder)
    return f, snaps


# ---- damage ----

class Poker:
    def __init__(self, rng, path):
        self.rng = rng
        self.q = oracle.Qcow2(path)
        self.log = []

    def put(self, off, data, what):
        self.log.append(f"{what} at {off:#x}: {self.q.get(off, len(data)).hex()} -> {data.hex()}")
        self.q.put(off, data)

    def word(self, off, what, length=8):
        """One number on disk, changed in one of the ways numbers get damaged."""
        rng, q = self.rng, self.q
        old = int.from_bytes(q.get(off, length), "big")
        top = (1 << 8 * length) - 1
        end = os.path.getsize(q.path)
        somewhere = rng.randrange(0, max(1, end // q.cs)) * q.cs
        new = rng.choice([
            old ^ 1 << rng.randrange(8 * length), old ^ 1 << 8 * length - 1, 0, 1, top,
            old ^ 512, old + q.cs, old + end, somewhere, somewhere | 1 << 63,
            somewhere | 1 << 62, somewhere + 512, somewhere | 1, somewhere | 513,
            rng.getrandbits(8 * length), (end + q.cs - 1) // q.cs * q.cs])
        self.put(off, (new & top).to_bytes(length, "big"), what)

    def tables(self, l1_off, l1_size):
        for i in range(l1_size):
            t = int.from_bytes(self.q.get(l1_off + 8 * i, 8), "big") & oracle.OFFSET_MASK
            if t:
                yield t

    def used(self, off, length, step):
        """A place in a table, most often one that is in use."""
        raw = self.q.get(off, length)
        used = [i for i in range(0, length, step) if any(raw[i:i + step])]
        if used and self.rng.random() < 0.85:
            return off + self.rng.choice(used)
        return off + self.rng.randrange(0, max(1, length // step)) * step

    def l1(self):
        if self.q.l1_size:
            self.word(self.used(self.q.l1_off, 8 * self.q.l1_size, 8), "L1 entry")

    def l2(self):
        tables = list(self.tables(self.q.l1_off, self.q.l1_size))
        if tables:
            off = self.used(self.rng.choice(tables), self.q.cs, self.q.entry)
            self.word(off + self.rng.choice([0] * 3 + list(range(0, self.q.entry, 8))), "L2 entry")

    def same_l2(self):
        """Two guest clusters that share a host cluster."""
        tables = list(self.tables(self.q.l1_off, self.q.l1_size))
        if tables:
            a, b = (self.used(self.rng.choice(tables), self.q.cs, self.q.entry) for _ in "ab")
            self.put(a, self.q.get(b, self.q.entry), "L2 entry copied")

    def reftable(self):
        if self.q.rt_clusters:
            self.word(self.used(self.q.rt_off, self.q.rt_clusters * self.q.cs, 8), "reftable")

    def blocks(self):
        n = self.q.rt_clusters * self.q.cs // 8
        raw = self.q.get(self.q.rt_off, 8 * n)
        return [b for b in struct.unpack(f">{n}Q", raw) if b and b < os.path.getsize(self.q.path)]

    def refcount(self):
        blocks = self.blocks()
        if blocks:
            width = max(1, (1 << self.q.refcount_order) // 8)
            off = self.used(self.rng.choice(blocks), self.q.cs, width)
            new = self.rng.choice([0, 1, 2, 3, self.rng.getrandbits(8 * width)])
            self.put(off, (new & (1 << 8 * width) - 1).to_bytes(width, "big"), "refcount")

    def refblock_gone(self):
        blocks = self.blocks()
        if blocks:
            self.put(self.rng.choice(blocks), bytes(self.q.cs), "refcount block zeroed")

    def snapshot(self):
        if self.q.nb_snap:
            field, length = self.rng.choice([(0, 8), (8, 4), (12, 2), (14, 2), (36, 4)])
            if field == 36 and self.rng.random() < 0.7:
                self.put(self.q.snap_off + 36, struct.pack(">I", self.rng.choice([0, 8, 2000])),
                         "snapshot extra length")
            else:
                self.word(self.q.snap_off + field, "snapshot table", length)

    def snapshot_l1(self):
        if self.q.nb_snap:
            off, n = struct.unpack(">QI", self.q.get(self.q.snap_off, 12))
            if n:
                self.word(self.used(off, 8 * n, 8), "L1 entry of a snapshot")
                for t in self.tables(off, n):
                    if self.rng.random() < 0.5 and t < os.path.getsize(self.q.path):
                        self.word(self.used(t, self.q.cs, self.q.entry), "L2 entry of a snapshot")

    def bitmap(self):
        ext = self.q.extension(oracle.EXT_BITMAPS)
        if ext:
            directory = struct.unpack(">IIQQ", ext)[3]
            table = int.from_bytes(self.q.get(directory, 8), "big")
            if self.rng.random() < 0.5:
                self.word(table, "bitmap table")
            else:
                self.word(directory + 8 * self.rng.randrange(3), "bitmap directory")

    def header(self):
        q, rng = self.q, self.rng
        kind = rng.randrange(7)
        if kind == 0 and q.version > 2:
            self.put(72, struct.pack(">Q", q.incompat ^ rng.choice([1, 2, 3])), "feature bits")
        elif kind == 1:
            self.put(56, struct.pack(">I", rng.choice([0, 1, 2, q.rt_clusters + 1])),
                     "refcount table clusters")
        elif kind == 2 and q.l1_size:
            self.put(36, struct.pack(">I", q.l1_size + rng.choice([-1, 1, 7])), "L1 entries")
        elif kind == 3:
            self.put(48, struct.pack(">Q", q.rt_off + rng.choice([q.cs, 8 * q.cs])), "reftable off")
        elif kind == 4:
            self.put(60, struct.pack(">I", q.nb_snap + rng.choice([1, 0])), "snapshots")
        elif kind == 5:
            self.put(24, struct.pack(">Q", max(0, q.size - rng.choice([512, q.cs]))), "size")
        elif q.version > 2:
            self.put(88, struct.pack(">Q", q.autoclear ^ rng.choice([1, 4, 1 << 40])), "autoclear")

    def length(self):
        size = os.path.getsize(self.q.path)
        new = max(self.q.cs, size + self.rng.choice([-512, -self.q.cs, -1, 1, self.q.cs, MIB]))
        self.log.append(f"file length {size} -> {new}")
        os.truncate(self.q.path, new)

    def go(self):
        kinds = [self.l1, self.l2, self.l2, self.l2, self.same_l2, self.reftable, self.refcount,
                 self.refcount, self.refblock_gone, self.snapshot, self.snapshot_l1, self.bitmap,
                 self.header, self.length]
        for _ in range(self.rng.choice([0, 1, 1, 1, 2, 3])):
            self.rng.choice(kinds)()
            try:
                self.q = oracle.Qcow2(self.q.path)
            except (OSError, ValueError):
                return
            if not 9 <= self.q.cluster_bits <= 21 or self.q.l1_size > 1 << 16 or \
                    self.q.rt_clusters > 64:
                return


# ---- questions ----

def parsed(text):
    return json.loads(text) if text.lstrip().startswith("{") else {}


def ask(opts, folder):
    """Question 1.  Returns qemu-img's exit code."""
    theirs = qemu(["check", "-f", "qcow2", "--output=json", "i"], folder)
    ours = oracle.run([opts.qmeld, "check", "-f", "qcow2", "--output=json", "i"], folder)
    if theirs.rc is None:
        return None
    if theirs.rc == 1:
        if ours.rc != 1:
            raise oracle.Fail(f"exit code {ours.rc}, qemu-img cannot check it: {theirs.err}"
                              f"\n{ours.out}{ours.err}")
        return 1
    a, b = parsed(ours.out), parsed(theirs.out)
    diff = [f"{k}: {a.get(k, 0)} instead of {b.get(k, 0)}" for k in NUMBERS
            if a.get(k, 0) != b.get(k, 0)]
    if ours.rc != theirs.rc or diff:
        raise oracle.Fail(f"exit code {ours.rc}, qemu-img {theirs.rc}; {', '.join(diff)}\n"
                          f"ours: {ours.err}\ntheirs: {theirs.err}")
    return theirs.rc


def views(folder, name, snaps):
    """What can be read: {view: digest}."""
    found = {}
    for snap in [None] + [f"s{i}" for i in range(3)] * bool(snaps):
        argv = ["convert", "-f", "qcow2", "-O", "raw"] + (["-l", snap] if snap else [])
        if qemu(argv + [name, "view"], folder).rc == 0:
            found[snap] = oracle.digest(os.path.join(folder, "view"))
    return found


def data_as_table(path):
    """True if an L1 entry leads to a cluster that some L2 entry uses, too.

    qemu-img mends flags in such a "table", which is guest data; qmeld does not write there."""
    q = oracle.Qcow2(path)
    l1s = [(q.l1_off, q.l1_size)]
    off = q.snap_off
    for _ in range(min(q.nb_snap, 8)):
        raw = q.get(off, 40)
        l1s.append(struct.unpack(">QI", raw[:12]))
        off += (40 + sum(struct.unpack(">HH", raw[12:16])) + struct.unpack(">I", raw[36:])[0] + 7) \
            // 8 * 8
    tables, hosts = set(), set()
    for l1_off, n in l1s:
        if l1_off < 1 << 50:
            raw = q.get(l1_off, 8 * min(n, 1 << 16))
            tables.update(e & oracle.OFFSET_MASK for (e,) in struct.iter_unpack(">Q", raw) if e)
    for table in tables:
        if table < os.path.getsize(path):
            raw = q.get(table, q.cs)
            hosts.update(int.from_bytes(raw[i:i + 8], "big") & oracle.OFFSET_MASK & -q.cs
                         for i in range(0, q.cs, q.entry) if raw[i] & 0x40 == 0)
    return any(t and t in hosts for t in tables)


def repair(opts, folder, how, snaps):
    """Questions 2 and 3."""
    for copy in "qo":
        shutil.copy(os.path.join(folder, "i"), os.path.join(folder, copy))
    before = views(folder, "i", snaps)
    ours = oracle.run([opts.qmeld, "check", "-f", "qcow2", f"--repair={how}", "o"], folder)
    then = qemu(["check", "-f", "qcow2", "--output=json", "o"], folder)
    mended = qemu(["check", "-f", "qcow2", "-r", how, "q"], folder)
    # both refuse to lower refcounts while some are missing: code 1, and nothing written
    if then.rc is not None and ours.rc != then.rc and not (mended.rc == ours.rc == 1):
        raise oracle.Fail(f"--repair={how} exits with {ours.rc}, qemu-img check then with {then.rc}"
                          f"\nours: {ours.err}{ours.out}\ntheirs: {then.err}")
    after = views(folder, "o", snaps)
    for snap, digest in before.items():
        if after.get(snap) != digest:
            raise oracle.Fail(f"--repair={how} changed what {snap or 'the image'} reads as\n"
                              f"{ours.err}")
    theirs = qemu(["check", "-f", "qcow2", "q"], folder)
    # its mend for entries without data is a zero flag, also in version 2, where nobody can read
    # it; and it throws snapshots away that it does not understand
    flagged = oracle.Qcow2(os.path.join(folder, "i")).version == 2 and "preallocated" in ours.err
    kept = oracle.Qcow2(os.path.join(folder, "q")).nb_snap >= \
        oracle.Qcow2(os.path.join(folder, "i")).nb_snap
    if theirs.rc == 0 and ours.rc != 0 and kept and not flagged and \
            not data_as_table(os.path.join(folder, "i")):
        raise oracle.Fail(f"--repair={how}: qemu-img gets it clean, we say {ours.rc}\n"
                          f"{ours.err}{ours.out}")
    if how == "all" and ours.rc == 0:
        again = oracle.digest(os.path.join(folder, "o"))
        oracle.must([opts.qmeld, "check", "--repair=all", "o"], folder)
        if oracle.digest(os.path.join(folder, "o")) != again:
            raise oracle.Fail("a second repair of a clean image wrote to it")


def one_case(seed, folder, opts):
    rng = random.Random(seed)
    f, snaps = make_image(rng, folder)
    poker = Poker(rng, os.path.join(folder, "i"))
    try:
        poker.go()
        before = oracle.digest(os.path.join(folder, "i"))
        rc = ask(opts, folder)
        if oracle.digest(os.path.join(folder, "i")) != before:
            raise oracle.Fail("a check without a repair wrote to the image")
        if rc is not None:
            repair(opts, folder, rng.choice(["leaks", "all", "all"]), snaps)
    except oracle.Fail as why:
        lines = f"{f}\n{chr(10).join(poker.log)}\n{why}".splitlines()
        raise oracle.Fail("\n".join(line[:300] for line in lines[:60])) from None
    return rc


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--seed", type=int, default=1, help="the first seed")
    p.add_argument("--count", type=int, default=60)
    p.add_argument("--qmeld", help="the program under test")
    p.add_argument("--keep", action="store_true", help="keep the folders of failed cases")
    opts = p.parse_args()
    oracle.need("qemu-img", "qemu-io")
    opts.qmeld = os.path.abspath(opts.qmeld) if opts.qmeld else oracle.qmeld_program()
    root = oracle.scratch()
    bad, seen = 0, {}
    print(f"check_diff: seeds {opts.seed} to {opts.seed + opts.count - 1}", flush=True)
    for seed in range(opts.seed, opts.seed + opts.count):
        folder = os.path.join(root, str(seed))
        os.mkdir(folder)
        keep = False
        try:
            rc = one_case(seed, folder, opts)
            seen[rc] = seen.get(rc, 0) + 1
        except (oracle.Fail, oracle.Broken, subprocess.TimeoutExpired) as why:
            bad += 1
            keep = opts.keep
            print(f"seed {seed}: {why}", flush=True)
        if not keep:
            shutil.rmtree(folder)
    codes = ", ".join(f"{n} of code {'none' if rc is None else rc}"
                      for rc, n in sorted(seen.items(), key=str))
    print(f"check_diff: {opts.count} images, {bad} bad; qemu-img said: {codes}"
          + (f"; kept in {root}" if opts.keep else ""))
    if not opts.keep:
        shutil.rmtree(root)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
