#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Power cuts under merges on ext4, XFS and btrfs, as a disk with a volatile cache has them.

A scenario runs once, on a disk whose writes and flushes are on record (disk.py), while the file system writes back at
random moments.  Then the power fails, again and again: what was flushed is on the disk, of what was written since then
any part.  The disk is mounted, which replays the file system's journal, and is looked at as its owner would: the top
reads what it read, nothing is corrupt, qmeld status can tell what is unfinished; what had ended with exit 0 is there in
full; going on - the same command, resume, or recover - ends as an undisturbed run.

A failure prints the line that repeats its seed; which writes there are differs from run to run, as the kernel has a say.
Exit 77 where this process may not use /dev/fuse and loop devices, or a file system's tools are missing.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time

import disk
import oracle
from oracle import Fail, MIB, Qcow2

# name: mkfs, size of the disk in MiB, mount's options
FILE_SYSTEMS = {
    "ext4": (["mkfs.ext4", "-q", "-F"], 96, ""),
    "ext4-writeback": (["mkfs.ext4", "-q", "-F"], 96, "data=writeback"),
    "xfs": (["mkfs.xfs", "-q", "-f"], 320, ""),
    "btrfs": (["mkfs.btrfs", "-q", "-f"], 160, ""),
}


class Scenario:
    """Commands, one after the other, and images that read the same all the time (always).  One that is gone in the end may be
    gone earlier, and then the base reads so.  path: what qmeld resume is given.  back: in the end the base is the same file."""

    def __init__(self, *commands, always=("top",), base="qcow2", path="top", back=False):
        self.commands, self.always, self.base, self.path, self.back = commands, always, base, path, back


def commit(*args, base="qcow2", **kw):
    return Scenario(["commit", *args, "top"], base=base, **kw)


SCENARIOS = {
    "keep": commit(),
    "keep-raw": commit(base="raw"),
    "delete": commit("--overlays=delete"),
    "delete-raw": commit("--overlays=delete", base="raw"),
    "quarantine": commit("--overlays=quarantine"),
    "empty": commit("--overlays=empty"),
    "middle": commit("--top=mid", "--overlays=delete"),
    "reclaim": commit("--reclaim", "--overlays=delete"),
    "reclaim-raw": commit("--reclaim", base="raw"),
    "atomic": commit("--atomic", "--overlays=delete"),
    "undo-raw": commit("--undo", "--overlays=quarantine", base="raw"),
    "up": commit("--direction=up", "--overlays=delete"),
    "up-middle": commit("--direction=up", "--top=mid", "--overlays=delete"),
    "protect": commit("--protect", "--overlays=delete", always=("top", "other")),
    "atomic-revert": Scenario(["commit", "--atomic", "top"], ["revert", "top"], back=True),
    "atomic-finalize": Scenario(["commit", "--atomic", "top"], ["finalize", "top"]),
    "undo-revert": Scenario(["commit", "--undo", "--top=mid", "top"], ["revert", "top"], base="raw", back=True),
    "undo-finalize": Scenario(["commit", "--undo", "top"], ["finalize", "top"], base="raw"),
    "direct": commit("--cache=none", "--overlays=delete", "--detect-zeroes"),
    "rebase": Scenario(["rebase", "-b", "base", "-F", "qcow2", "top"]),
    "fold": Scenario(["fold", "--keep=1", "top"]),
    "flatten": Scenario(["flatten", "--to=qcow2", "top", "flat"], path="flat"),
    "flatten-raw": Scenario(["flatten", "--to=raw", "top", "flat"], path="flat"),
}


def prepare(rng, d, scenario):
    """base <- mid <- top, and, if it is protected, other beside top."""
    size, old = 10 * MIB, rng.choice([10 * MIB, 7 * MIB + 512 * rng.randrange(2000)])
    argv = ["qemu-img", "create", "-q", "-f"]
    oracle.must([*argv, scenario.base, "base", str(old)], d)
    oracle.qemu_io("base", [f"write -P {rng.randrange(1, 255)} {MIB * i} 700k" for i in range(0, 6, 2)], scenario.base, d)
    layers = [("mid", "base", scenario.base), ("top", "mid", "qcow2")]
    if "other" in scenario.always:
        layers.append(("other", "mid", "qcow2"))
    for name, below, fmt in layers:
        cluster = rng.choice(["4k", "16k", "64k"])
        oracle.must([*argv, "qcow2", "-o", f"cluster_size={cluster}", "-b", below, "-F", fmt, name, str(size)], d)
        commands = []
        for _ in range(rng.randrange(10, 20)):
            at, n = 512 * rng.randrange(size // 512 - 1024), 512 * rng.randrange(1, 1024)
            zero = rng.random() < 0.2
            commands.append(f"write -z {at} {n}" if zero else f"write -P {rng.randrange(1, 255)} {at} {n}")
        oracle.qemu_io(name, commands, cwd=d)


def seen(path, fmt, d):
    r = oracle.run(["qemu-img", "convert", "-f", fmt, "-O", "raw", path, "../seen"], d)
    if r.rc != 0:
        raise Fail(f"qemu-img cannot read {path}: {r.err.strip()}")
    try:
        return oracle.digest(os.path.join(d, "../seen"))
    finally:
        os.unlink(os.path.join(d, "../seen"))


class Look:
    """What a folder is: its files, and what they read."""

    def __init__(self, scenario, d):
        self.names = sorted(os.listdir(d))
        self.views = {}
        for name in self.names:
            path = os.path.join(d, name)
            if name.endswith(".merged"):  # the layer it stands on has another name, too
                self.views[name] = oracle.digest(path)
            elif not name.startswith("."):
                self.views[name] = seen(name, format_of(path), d)
        self.backing = {n: Qcow2(os.path.join(d, n)).backing() for n in self.views
                        if format_of(os.path.join(d, n)) == "qcow2"}
        self.base = oracle.digest(os.path.join(d, "base")) if scenario.back else None

    def __eq__(self, other):
        return (self.names, self.views, self.backing) == (other.names, other.views, other.backing)


def format_of(path):
    with open(path, "rb") as f:
        return "qcow2" if f.read(4) == b"QFI\xfb" else "raw"


class Mount:
    """A device, mounted; its folder is .dir."""

    def __init__(self, kind, device, at):
        self.at, self.dir = at, os.path.join(at, "images")
        options = FILE_SYSTEMS[kind][2]
        if os.path.isfile(device):
            options += ",loop"
        argv = ["mount", "-t", kind.split("-", maxsplit=1)[0], "-o", options.strip(",") or "defaults", device, at]
        r = oracle.run(argv)
        if r.rc != 0:
            raise oracle.Broken(f"the file system cannot be mounted: {r.err.strip()}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        oracle.unmount(self.at)


class Writeback(threading.Thread):
    """The file system writes back at random moments, as it would under a merge that takes minutes."""

    def __init__(self, rng, at):
        super().__init__(daemon=True)
        self.rng, self.fd, self.over = rng, os.open(at, os.O_RDONLY), threading.Event()

    def run(self):
        while not self.over.wait(self.rng.random() * 0.08):
            disk.LIBC.syncfs(self.fd)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.join()
        os.close(self.fd)


class Trial:
    """One scenario on one file system, recorded once, and cut often."""

    def __init__(self, opts, qmeld, folder, kind, name):
        self.opts, self.qmeld, self.kind, self.name = opts, qmeld, kind, name
        self.scenario = SCENARIOS[name]
        self.rng = random.Random(f"{opts.seed} {kind} {name}")
        self.folder = os.path.join(folder, f"{kind}-{name}")
        self.at, self.cut_disk = os.path.join(self.folder, "at"), os.path.join(self.folder, "cut")
        os.makedirs(self.at)
        self.env = {"QMELD_TEST_BATCH": str(self.rng.choice([256, 512, 1024]) * 1024)}
        self.ends = []  # of the commands: (place in the record, what the folder was then)
        self.before = None

    def command(self, d, *argv):
        return oracle.run([self.qmeld, argv[0], *(["--progress=none"] if argv[0] != "status" else []), *argv[1:]], d,
                          env=self.env)

    def record(self):
        mkfs, size, _ = FILE_SYSTEMS[self.kind]
        d = disk.Disk(self.folder, size * MIB)
        try:
            oracle.must([*mkfs, d.device])
            with Mount(self.kind, d.device, self.at) as m:
                os.mkdir(m.dir)
                prepare(self.rng, m.dir, self.scenario)
                self.before = Look(self.scenario, m.dir)
                oracle.must(["sync", "-f", m.dir])
                d.begin()
                for argv in self.scenario.commands:
                    with Writeback(self.rng, self.at) if self.rng.random() < 0.7 else contextlib.nullcontext():
                        r = self.command(m.dir, *argv)
                    if r.rc != 0:
                        raise Fail(f"undisturbed: {argv}: rc {r.rc}: {r.err}")
                    self.ends.append([d.moment(), None])
                    self.ends[-1][1] = Look(self.scenario, m.dir)
                    time.sleep(self.rng.random() * 0.1)
                oracle.must(["sync", "-f", m.dir])
            return disk.Record(d)
        finally:
            d.close()

    def same(self, d, when):
        """Images that are there read what they read, or what then names does."""
        for name in self.scenario.always:
            path = os.path.join(d, name)
            if not os.path.exists(path):
                if name in self.ends[-1][1].names:
                    raise Fail(f"{when}: {name} is gone")
                path = os.path.join(d, "base")
            if seen(os.path.basename(path), format_of(path), d) != self.before.views[name]:
                raise Fail(f"{when}: {os.path.basename(path)} reads otherwise than {name} did")

    def sound(self, d, when, clean):
        for name in sorted(os.listdir(d)):
            path = os.path.join(d, name)
            # of a quarantined layer that one below has another name, too, cannot be opened; it is compared as a file
            if name.startswith(".") or name.endswith(".merged") or format_of(path) != "qcow2":
                continue
            rc, found, text = oracle.check(name, cwd=d)
            dirty = not clean and Qcow2(path).incompat & 1  # its refcounts are void, and it says so
            if rc not in ((0,) if clean else (0, 3)) and not dirty:
                raise Fail(f"{when}: {name}: qemu-img check says {rc}: {found} {text[:400]}")

    def status(self, d, when):
        r = self.command(d, "status", "--output=json", ".")
        found = json.loads(r.out)
        # held: done, and can be taken back; without its note a partial image is nothing to go on with, and the next run removes it
        unfinished = [x for x in found if not x.get("held") and ("partial" not in x or "note" in x)]
        if r.rc != (3 if unfinished else 0) or any("error" in x for x in found):
            raise Fail(f"{when}: status: rc {r.rc}: {r.out} {r.err}")
        return unfinished

    def go_on(self, rng, d, when, done):
        """What is left to do is done; done: so many commands were over."""
        how = rng.choice(["same", "same", "recover", "resume"])
        if how == "recover":
            r = self.command(d, "recover", ".")
            if r.rc != 0:
                raise Fail(f"{when}: recover: rc {r.rc}: {r.err}")
        elif how == "resume" and self.status(d, when) and os.path.exists(os.path.join(d, "top")):
            r = self.command(d, "resume", self.scenario.path if os.path.exists(os.path.join(d, "top")) else "base")
            if r.rc != 0:
                raise Fail(f"{when}: resume: rc {r.rc}: {r.err}")
        self.same(d, f"{when}, {how}")
        for argv in self.scenario.commands[done:]:
            if not self.status(d, when) and Look(self.scenario, d) == self.ends[-1][1]:
                return
            r = self.command(d, *argv)
            if r.rc != 0:
                raise Fail(f"{when}, {how}: {argv} again: rc {r.rc}: {r.err}")

    def look(self, rng, d, at, when):
        done = sum(at >= n for n, _ in self.ends)
        self.same(d, when)
        self.sound(d, when, clean=False)
        self.status(d, when)
        now = Look(self.scenario, d)
        if done == len(self.ends) and now != self.ends[-1][1]:
            raise Fail(f"{when}: all was done, but the files are {now.names}, not {self.ends[-1][1].names}; or read "
                       "otherwise")
        self.go_on(rng, d, when, done)
        self.same(d, f"{when}, gone on")
        self.sound(d, f"{when}, gone on", clean=True)
        end = Look(self.scenario, d)
        if self.scenario.back and end.base != self.before.base:
            raise Fail(f"{when}, gone on: base is not the file it was")
        if end != self.ends[-1][1]:
            want = self.ends[-1][1]
            raise Fail(f"{when}, gone on: the files are {end.names}, wanted {want.names}; others read: "
                       f"{[n for n in end.views if end.views[n] != want.views.get(n)]}; {end.backing}, {want.backing}")

    def cut(self, record, n):
        rng = random.Random(f"{self.opts.seed} {self.kind} {self.name} {n}")
        way = disk.WAYS[n % len(disk.WAYS)]
        at = rng.randrange(len(record.ops) + 1)
        when = f"{self.kind} {self.name} cut {n}, after {at} of {len(record.ops)} ({way})"
        record.cut(rng, at, way, self.cut_disk)
        with Mount(self.kind, self.cut_disk, self.at) as m:
            try:
                self.look(rng, m.dir, at, when)
            except Fail:
                if self.opts.keep:
                    record.cut(random.Random(f"{self.opts.seed} {self.kind} {self.name} {n}"), at, way, self.cut_disk)
                    shutil.copy(self.cut_disk, self.opts.keep)
                raise
        return 0 < at <= self.ends[-1][0]

    def run(self):
        record = self.record()
        for end in self.ends:
            end[0] = record.index(end[0])
        hits = bad = 0
        for n in range(self.opts.cuts):
            try:
                hits += self.cut(record, n)
            except (Fail, oracle.Broken) as e:
                bad += 1
                print(f"FAIL {e}\n     again: powercut.py --seed {self.opts.seed} --cuts {self.opts.cuts} "
                      f"--only {self.kind}:{self.name}", flush=True)
        print(f"{self.kind}:{self.name}: {len(record.ops)} operations, {len(record.flushes)} flushes, {self.opts.cuts} cuts, "
              f"{hits} of a merge at work, {bad} bad", flush=True)
        return hits, bad


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--cuts", type=int, default=4, help="of each scenario")
    p.add_argument("--only", action="append", help="FILE-SYSTEM:SCENARIO, one of them, or a part of it")
    p.add_argument("--keep", help="a copy of a disk that fails")
    p.add_argument("--no-sync", action="store_true", help="the program does not sync: this must fail")
    opts = p.parse_args()
    oracle.need("qemu-img", "qemu-io", "losetup", "mount", *{mkfs[0] for mkfs, _, _ in FILE_SYSTEMS.values()})
    if os.geteuid() != 0:
        oracle.die_skip("only root may mount file systems")
    qmeld = oracle.qmeld_program("plain", "dev")
    os.environ.pop("QMELD_TEST_NO_SYNC", None)
    if opts.no_sync:
        os.environ["QMELD_TEST_NO_SYNC"] = "1"
    folder = oracle.scratch(None)
    tried = hits = bad = 0
    print(f"seed {opts.seed}", flush=True)
    try:
        for kind in FILE_SYSTEMS:
            for name in SCENARIOS:
                if opts.only and not any(x in f"{kind}:{name}" for x in opts.only):
                    continue
                trial = Trial(opts, qmeld, folder, kind, name)
                try:
                    more = trial.run()
                    tried, hits, bad = tried + opts.cuts, hits + more[0], bad + more[1]
                except (Fail, oracle.Broken) as e:
                    bad += 1
                    print(f"FAIL {kind}:{name}: {e}", flush=True)
                disk.remove(trial.folder)
    finally:
        disk.remove(folder)
    print(f"{tried} cuts, {hits} of merges at work, {bad} bad")
    return 1 if bad or hits * 4 < tried else 0


if __name__ == "__main__":
    sys.exit(main())
