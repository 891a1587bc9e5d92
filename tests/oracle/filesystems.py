#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Merges on ext4, XFS and btrfs, in loop devices, disturbed as real ones are.

killed     SIGKILL at a random moment, sometimes again while the same command goes on
cut        the power fails: the file system stops at once (FS_IOC_SHUTDOWN without flushing its log), and
           what is on the disk after it is mounted again is all there is (ext4, XFS)
full       another file takes all free space while the merge runs (ext4)
shared     data is shared, not copied (XFS, btrfs): no space is taken, also where there is none; what is on the disk
           when the merge says that it is done is all of it
cache      a merge leaves the page cache as it was (ext4)
verified   commit --verify asks the disk, not the page cache, and finds a byte that changed there (ext4)

After each: the top reads the same, qemu-img check finds no corruption, `qmeld status` says what is unfinished,
the same command again finishes, and everything is as an undisturbed merge leaves it.

A failure prints the line that repeats it.  Exit 77 where this process may not mount loop devices, or a file system's
tools are missing.
"""

import argparse
import contextlib
import fcntl
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time

import oracle
from oracle import Fail, MIB, Qcow2

SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2  # FS_IOC_SHUTDOWN
FIBMAP = 1

SHARES = ("xfs", "btrfs")
# name: the least size its mkfs takes, and whether it can be shut down
FILE_SYSTEMS = {"ext4": (96, True), "xfs": (320, True), "btrfs": (160, False)}
MKFS = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"],
        "btrfs": ["mkfs.btrfs", "-q", "-f"]}


class Mode:
    """Options of a merge, and what becomes of its layers.  needs: run only if the help knows this option."""

    def __init__(self, *args, gone=False, needs=None, bases=("raw", "qcow2")):
        self.args, self.gone, self.needs, self.bases = list(args), gone, needs, bases


MODES = {
    "keep": Mode(),
    "empty": Mode("--overlays=empty"),
    "delete": Mode("--overlays=delete", gone=True),
    "quarantine": Mode("--overlays=quarantine", gone=True),
    "reclaim": Mode("--reclaim", needs="--reclaim"),
    "reclaim-delete": Mode("--reclaim", "--overlays=delete", gone=True, needs="--reclaim"),
    # with keep there would be a way back, and an unfinished decision
    "atomic": Mode("--atomic", "--overlays=delete", gone=True, needs="--atomic", bases=("qcow2",)),
    "undo": Mode("--undo", "--overlays=delete", gone=True, needs="--undo", bases=("raw",)),
    "direct": Mode("--cache=none", "--overlays=delete", gone=True, needs="--cache"),
    "verify": Mode("--verify", "--overlays=delete", gone=True, needs="--verify"),
}


# ---- file systems ----

class Mounted:
    """A file system of its own, in a file of `folder`; .at is where it is mounted."""

    def __init__(self, folder, kind):
        self.kind, self.at = kind, os.path.join(folder, kind)
        self.file = self.at + ".disk"
        with open(self.file, "wb") as f:
            f.truncate(FILE_SYSTEMS[kind][0] * MIB)
        os.mkdir(self.at)
        oracle.must([*MKFS[kind], self.file])
        # of its own, for all mounts: one that goes by itself may go under the next mount
        r = oracle.run(["losetup", "-f", "--show", self.file])
        if r.rc != 0:
            oracle.die_skip(f"no loop devices here: {r.err.strip()}")
        self.device = r.out.strip()

    def mount(self):
        r = oracle.run(["mount", "-t", self.kind, self.device, self.at])
        if r.rc != 0:
            oracle.die_skip(f"{self.kind} cannot be mounted here: {r.err.strip()}")

    def unmount(self):
        oracle.unmount(self.at)

    def cut_power(self):
        """What is not on the disk is lost."""
        fd = os.open(self.at, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def __enter__(self):
        self.mount()
        return self

    def __exit__(self, *_):
        self.unmount()
        oracle.must(["losetup", "-d", self.device])
        os.unlink(self.file)


# ---- chains ----

class Chain:
    """A base, a layer between, and a top, made once; trials work on copies."""

    def __init__(self, rng, folder, base_fmt):
        self.base_fmt, self.made = base_fmt, os.path.join(folder, f"made-{base_fmt}")
        self.want = os.path.join(folder, f"want-{base_fmt}.raw")
        os.mkdir(self.made)
        size, old_size = 14 * MIB, rng.choice([14 * MIB, 9 * MIB + 512 * rng.randrange(2000)])
        if base_fmt == "raw":
            with open(os.path.join(self.made, "base"), "wb") as f:
                f.write(rng.randbytes(2 * MIB))
                f.truncate(old_size)
        else:
            self.image(rng, "base", old_size)
            self.fill(rng, "base", old_size)
        self.image(rng, "mid", size, "base", base_fmt)
        self.fill(rng, "mid", size)
        self.image(rng, "top", size, "mid", "qcow2")
        self.fill(rng, "top", size)
        oracle.must(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", "top", self.want], self.made)

    def image(self, rng, name, size, backing=None, fmt=None):
        cluster = rng.choice(["4k", "16k", "64k", "64k"])
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster}"]
        oracle.must(argv + (["-b", backing, "-F", fmt] if backing else []) + [name, str(size)], self.made)

    def fill(self, rng, name, size):
        commands = []
        for _ in range(rng.randrange(12, 24)):
            at, kind = 512 * rng.randrange(size // 512 - 2048), rng.random()
            n = 512 * rng.randrange(1, 2048)
            commands.append(f"write -z {at} {n}" if kind < 0.2 else
                            f"write -c -P {rng.randrange(1, 255)} {at // 65536 * 65536} 64k" if kind < 0.3
                            else f"write -P {rng.randrange(1, 255)} {at} {n}")
        oracle.qemu_io(name, commands, cwd=self.made, strict=False)
        # QEMU 7.2's compressed write over a cluster that has one can leave its COPIED flag wrong: nobody's merge takes that
        oracle.run(["qemu-img", "check", "-q", "-r", "all", name], self.made)

    def copy_to(self, d):
        shutil.rmtree(d, ignore_errors=True)
        oracle.must(["cp", "-a", "--sparse=always", self.made, d])
        oracle.must(["sync", "-f", d])


class Trial:
    """One merge of one copy of a chain."""

    def __init__(self, qmeld, chain, mode, d):
        self.qmeld, self.chain, self.mode, self.dir = qmeld, chain, mode, d
        self.argv = [qmeld, "commit", "--progress=none", *mode.args, "top"]
        chain.copy_to(d)

    def there(self, name):
        return os.path.exists(os.path.join(self.dir, name))

    def same(self, name, fmt, when):
        """name reads what top did; a base that is longer has its own tail."""
        r = oracle.run(["qemu-img", "compare", "-f", fmt, "-F", "raw", name, self.chain.want], self.dir)
        if r.rc != 0:
            raise Fail(f"{when}: {name} reads otherwise than top did: {r.out.strip()} {r.err.strip()}")

    def sound(self, when, clean):
        for name in ("base", "mid", "top"):
            if (name == "base" and self.chain.base_fmt == "raw") or not self.there(name):
                continue
            rc, found, text = oracle.check(name, cwd=self.dir)
            # the refcounts of a dirty image are void, and it says so: top, while it is being emptied
            dirty = not clean and Qcow2(os.path.join(self.dir, name)).incompat & 1
            if rc not in ((0,) if clean else (0, 3)) and not dirty:
                raise Fail(f"{when}: {name}: qemu-img check says {rc}: {found} {text[:400]}")

    def status(self, when):
        """The one unfinished merge, or None."""
        r = oracle.run([self.qmeld, "status", "--output=json", self.dir])
        found = json.loads(r.out)
        if len(found) > 1 or r.rc != (3 if found else 0) or (found and "error" in found[0]):
            raise Fail(f"{when}: status: rc {r.rc}: {r.out} {r.err}")
        if found and [len(found[0]["layers"]), found[0]["running"]] != [3, False]:
            raise Fail(f"{when}: status says {found[0]}")
        return found[0] if found else None

    def look(self, when):
        """What must hold at every moment.  True: nothing is left to do."""
        unfinished = self.status(when)
        if self.there("top"):
            self.same("top", "qcow2", when)
        elif not self.mode.gone or (unfinished and not unfinished["complete"]):
            raise Fail(f"{when}: top is gone")
        else:
            self.same("base", self.chain.base_fmt, when)
        self.sound(when, clean=False)
        return not unfinished and not self.there("top")

    def finish(self, when):
        if self.look(when):
            return
        r = oracle.run(self.argv, self.dir)
        if r.rc != 0:
            raise Fail(f"{when}: the same command again: rc {r.rc}: {r.err}")

    def finished(self, when):
        self.same("base", self.chain.base_fmt, when)
        self.sound(when, clean=True)
        if self.status(when):
            raise Fail(f"{when}: status still knows an unfinished merge")
        names = {"base"} if self.mode.gone else {"base", "mid", "top"}
        if "--overlays=quarantine" in self.mode.args:
            names |= {"mid.merged", "top.merged"}
        if set(os.listdir(self.dir)) != names:
            raise Fail(f"{when}: the files are {sorted(os.listdir(self.dir))}")
        for name in names - {"base", "mid", "top"}:
            if oracle.digest(os.path.join(self.dir, name)) != \
                    oracle.digest(os.path.join(self.chain.made, name.split(".", maxsplit=1)[0])):
                raise Fail(f"{when}: {name} is not what it was")
        if not self.mode.gone:
            self.same("top", "qcow2", when)

    def start(self, *args):
        # its own temporary files, if it has any, do not lie on the file system that is disturbed
        return subprocess.Popen([*self.argv[:-1], *args, "top"], cwd=self.dir,
                                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                stderr=subprocess.PIPE)


@contextlib.contextmanager
def running(trial, *args):
    p = trial.start(*args)
    try:
        yield p
    finally:
        if p.poll() is None:
            p.kill()
            p.wait(30)
        p.stderr.close()


def undisturbed(qmeld, chain, mode, d):
    """How long it takes, so that moments are chosen inside of it."""
    t = Trial(qmeld, chain, mode, d)
    begun = time.monotonic()
    r = oracle.run(t.argv, t.dir)
    took = time.monotonic() - begun
    if r.rc != 0:
        raise Fail(f"undisturbed: rc {r.rc}: {r.err}")
    t.finished("undisturbed")
    return took


# ---- disturbances ----

def killed(rng, trial, took):
    """SIGKILL, up to three times.  True if it hit a merge that was not over."""
    hit = False
    for n in range(rng.choice([1, 1, 2, 3])):
        after = rng.random() * took * 1.1
        when = f"kill {n + 1}, after {after:.3f} s"
        with running(trial) as p:
            time.sleep(after)
            p.kill()
            rc = p.wait(30)
            if rc not in (0, -signal.SIGKILL):
                raise Fail(f"{when}: rc {rc}: {p.stderr.read().decode()}")
        hit |= rc != 0
        if trial.look(when) or rc == 0:
            break
    trial.finish("after the kills")
    trial.finished("after the kills")
    return hit


def cut(rng, trial, took, fs):
    """The power fails while it works."""
    after = rng.random() * took * 1.1
    when = f"power cut after {after:.3f} s"
    with running(trial) as p:
        time.sleep(after)
        fs.cut_power()
        try:
            rc = p.wait(60)
        except subprocess.TimeoutExpired:
            raise Fail(f"{when}: no end after 60 s") from None
        err = p.stderr.read().decode()
    if rc not in (0, 1, 3):
        raise Fail(f"{when}: a disk that failed: rc {rc}, wanted 1 or 3: {err}")
    fs.unmount()
    fs.mount()
    trial.finish(when)
    trial.finished(when)
    return rc != 0


def eat_all(path):
    """A file that takes all space there is."""
    fd, at, step = os.open(path, os.O_WRONLY | os.O_CREAT), 0, 8 * MIB
    try:
        while step >= 4096:
            try:
                os.posix_fallocate(fd, at, step)
                at += step
            except OSError:
                step //= 2
        with contextlib.suppress(OSError):
            while True:
                at += os.pwrite(fd, bytes(4096), at)
                os.fsync(fd)
    finally:
        os.close(fd)


def wait_for(process, phase):
    """Until a progress record of that phase tells of bytes done."""
    for line in process.stderr:
        if line.startswith(b"{"):
            record = json.loads(line)
            if record["phase"] == phase and (record["done"] > 0 or phase == "verify"):
                return record
    raise Fail(f"ended with {process.wait(30)} before it said anything of phase {phase}")


def full(trial, fs):
    """No space is left in the middle: exit 3; with room again the same command finishes."""
    eater = os.path.join(fs.at, "eater")
    with running(trial, "--bandwidth=2M", "--progress=json") as p:
        wait_for(p, "copy")
        eat_all(eater)
        err = p.stderr.read().decode()
        rc = p.wait(60)
    if rc != 3 or "No space left" not in err or "again finishes" not in err:
        raise Fail(f"a full file system: rc {rc}, wanted 3 and words: {err}")
    when = "full"
    trial.look(when)
    if not trial.status(when):
        raise Fail("a full file system: status knows of nothing unfinished")
    os.unlink(eater)
    oracle.must(["sync", "-f", fs.at])
    trial.finish(when)
    trial.finished(when)


def blocks_read(trial, *args):
    """What the command asked the disk for, in bytes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_inblock
    r = oracle.run([*trial.argv[:-1], *args, "top"], trial.dir)
    if r.rc != 0:
        raise Fail(f"{args}: rc {r.rc}: {r.err}")
    return (resource.getrusage(resource.RUSAGE_CHILDREN).ru_inblock - before) * 512


def reads_the_disk(qmeld, chain, d):
    """Everything has just been written, so the page cache could answer; the disk is asked all the same."""
    copied = 4 * MIB  # at least, of 14
    trial = Trial(qmeld, chain, MODES["keep"], d)
    oracle.must(["cat", "base", "mid", "top"], d)
    cached = blocks_read(trial)
    trial = Trial(qmeld, chain, MODES["keep"], d)
    oracle.must(["cat", "base", "mid", "top"], d)
    verified = blocks_read(trial, "--verify")
    if cached > MIB or verified < cached + copied:
        raise Fail(f"--verify read {verified} bytes from the disk, a merge without it {cached}")


def finds_a_bad_sector(qmeld, chain, fs, d):
    """A byte changes on the disk after it was written, and the page cache does not know it."""
    trial = Trial(qmeld, chain, MODES["verify"], d)
    at = 13 * MIB  # the end, where it has not been yet when it is stopped
    oracle.qemu_io("top", [f"write -P 77 {at} 64k"], cwd=d)
    want = oracle.view("top", "qcow2", d)
    with running(trial, "--bandwidth=8M", "--progress=json") as p:
        record = wait_for(p, "verify")
        p.send_signal(signal.SIGSTOP)
        if record["done"] >= at - 4 * MIB:
            raise oracle.Broken(f"the merge was not stopped in time: {record}")
        with open(os.path.join(d, "base"), "rb") as f:
            size = os.fstatvfs(f.fileno()).f_bsize
            block = struct.unpack("i", fcntl.ioctl(f, FIBMAP, struct.pack("i", at // size)))[0]
        with open(fs.file, "r+b") as disk:
            disk.seek(block * size + 100)
            if block == 0 or disk.read(1) != bytes([77]):
                raise oracle.Broken("the block was not found on the disk")
            disk.seek(block * size + 100)
            disk.write(b"\0")
        p.send_signal(signal.SIGCONT)
        err = p.stderr.read().decode()
        rc = p.wait(60)
    if rc != 3 or f"guest offset {at + 100} the disk gave back other bytes" not in err:
        raise Fail(f"a bad sector: rc {rc}, wanted 3: {err}")
    state = trial.status("bad sector")
    if not state or state["complete"] or oracle.view("top", "qcow2", d) != want:
        raise Fail(f"a bad sector: status says {state}, or top is not what it was")
    r = oracle.run(trial.argv, d)
    if r.rc != 0 or oracle.view("base", chain.base_fmt, d)[:len(want)] != want:
        raise Fail(f"a bad sector, written again: rc {r.rc}: {r.err}")


# ---- sharing ----

def shared_chain(rng, d, base_fmt, sector):
    """20 MiB in two layers: long runs, scattered clusters, compressed ones, and an end that is no whole block.
    Returns what is compressed, as inflated."""
    size = 40 * MIB + sector
    shutil.rmtree(d, ignore_errors=True)
    os.mkdir(d)
    oracle.must(["qemu-img", "create", "-q", "-f", base_fmt, "base", str(size)], d)
    oracle.qemu_io("base", ["write -P 9 0 12M"], cwd=d, fmt=base_fmt)
    for name, below, fmt in (("mid", "base", base_fmt), ("top", "mid", "qcow2")):
        oracle.must(["qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F", fmt, name, str(size)], d)
        scattered = [64 * 1024 * i for i in rng.sample(range(256, 600), 60)]
        start = MIB * rng.randrange(4)
        oracle.qemu_io(name, [f"write -P {rng.randrange(1, 99)} {start} 8M",
                              *(f"write -P {rng.randrange(100, 255)} {at} 64k" for at in scattered),
                              f"write -P 7 {size - 70000 // 512 * 512} {70000 // 512 * 512}"], cwd=d)
    oracle.qemu_io("top", [f"write -c -P 33 {39 * MIB} 64k", f"write -c -P 34 {39 * MIB + 65536} 64k"], cwd=d)
    oracle.must(["sync", "-f", d])
    return 2 * 65536


def free_space(d):
    oracle.must(["sync", "-f", d])
    st = os.statvfs(d)
    return st.f_bavail * st.f_frsize


def snapshot_of_disk(fs, folder):
    """What is on the disk at this moment, mounted elsewhere."""
    at, disk = os.path.join(folder, "cut"), os.path.join(folder, "cut.disk")
    oracle.must(["cp", "--sparse=always", fs.file, disk])
    os.makedirs(at, exist_ok=True)
    fs.unmount()  # two file systems with one name cannot be mounted at a time
    if oracle.run(["mount", "-o", "loop", disk, at]).rc != 0:
        raise Fail("the disk as it was when the merge was done cannot be mounted")
    return at, disk


def shared(rng, qmeld, fs, base_fmt, folder):
    d = os.path.join(fs.at, "try")
    inflated = shared_chain(rng, d, base_fmt, 512 * rng.randrange(1, 8))
    want = oracle.view("top", "qcow2", d)
    before = free_space(d)
    plan = json.loads(oracle.must([qmeld, "plan", "--output=json", "top"], d).out)
    r = oracle.run([qmeld, "commit", "--progress=none", "--output=json", "top"], d)
    at, disk = snapshot_of_disk(fs, folder)
    try:
        if oracle.view("base", base_fmt, os.path.join(at, "try")) != want:
            raise Fail("what is on the disk when the merge is done is not all of it")
    finally:
        oracle.must(["umount", at])
        os.unlink(disk)
        fs.mount()
    done = json.loads(r.out)
    if r.rc != 0 or oracle.view("base", base_fmt, d) != want:
        raise Fail(f"rc {r.rc}, or base reads otherwise than top: {r.err}")
    copied = done["bytes-copied"] + done["bytes-filled"] - done["bytes-shared"]
    if done["bytes-shared"] != plan["bytes-shared"] or copied > inflated + 2 * MIB:
        raise Fail(f"{done['bytes-shared']} bytes were shared, {plan['bytes-shared']} planned, {copied} copied")
    if sum(x["bytes-shared"] for x in done["layers"]) != done["bytes-shared"]:
        raise Fail(f"the layers' sums are not the merge's: {done}")
    taken = before - free_space(d)
    if taken > copied + 2 * MIB:
        raise Fail(f"{taken} bytes of space were taken, and only {copied} copied")
    if base_fmt == "qcow2" and oracle.check("base", cwd=d)[0] != 0:
        raise Fail("base is not clean")
    return True


def shared_without_room(rng, qmeld, fs, base_fmt):
    """Room for what is copied and for metadata, and for nothing else."""
    d, eater = os.path.join(fs.at, "try"), os.path.join(fs.at, "eater")
    shared_chain(rng, d, base_fmt, 0)
    want = oracle.view("top", "qcow2", d)
    with open(eater, "wb") as f:
        os.posix_fallocate(f.fileno(), 0, free_space(d) - 8 * MIB)
    oracle.must(["sync", "-f", d])
    r = oracle.run([qmeld, "commit", "--progress=none", "--overlays=delete", "--output=json", "top"], d)
    os.unlink(eater)
    if r.rc != 0 or oracle.view("base", base_fmt, d) != want:
        raise Fail(f"rc {r.rc}, or base reads otherwise than top: {r.err}")
    done = json.loads(r.out)
    if done["bytes-shared"] * 10 < done["bytes-copied"] * 9:
        raise Fail(f"{done['bytes-shared']} bytes were shared of {done['bytes-copied']}")
    return True


# ---- the page cache ----

def cached(path):
    return int(oracle.must(["fincore", "-b", "-n", "-o", "RES", path]).out)


def cache_stays(rng, qmeld, fs, base_fmt):
    """Who has pages in the cache keeps them; a merge leaves none of its own, and reads past the cache what is
    not there."""
    d = os.path.join(fs.at, "try")
    shared_chain(rng, d, base_fmt, 0)
    want = oracle.view("top", "qcow2", d)
    fs.unmount()  # empties the cache
    fs.mount()
    for name, n in (("base", 5), ("mid", 3)):
        with open(os.path.join(d, name), "rb") as f:
            f.read(n * MIB)
    before = {name: cached(os.path.join(d, name)) for name in ("base", "mid", "top")}
    trace = os.path.join(d, "trace")
    oracle.must(["strace", "-f", "-e", "trace=openat", "-o", trace, qmeld, "commit", "--progress=none", "top"], d)
    after = {name: cached(os.path.join(d, name)) for name in before}
    # tables stay, and what the kernel read ahead before it was looked at counts as there
    if any(not before[x] - MIB // 4 <= after[x] <= before[x] + 4 * MIB for x in before):
        raise Fail(f"in the page cache were {before}, and are {after}")
    with open(trace, encoding="utf-8") as f:
        past = [line for line in f if re.search(r"O_DIRECT\b", line)]
    if not any("top" in line for line in past) or any("base" in line for line in past):
        raise Fail(f"read past the page cache is not what is not there, but: {past}")
    if oracle.view("base", base_fmt, d) != want:
        raise Fail("base reads otherwise than top")
    return True


# ---- all of it ----

def known_modes(qmeld):
    text = oracle.must([qmeld, "commit", "--help"]).out
    return {name: m for name, m in MODES.items() if not m.needs or m.needs in text}


class Run:
    def __init__(self, opts, qmeld, folder):
        self.opts, self.qmeld, self.folder = opts, qmeld, folder
        self.bad = self.trials = self.hits = 0

    def one(self, name, seed, test, *args):
        if self.opts.only and self.opts.only not in name:
            return
        rng = random.Random(seed)
        self.trials += 1
        try:
            self.hits += bool(test(rng, *args))
        except (Fail, oracle.Broken) as e:
            print(f"FAIL {name}: {e}\n     again: filesystems.py --seed {self.opts.seed} "
                  f"--rounds {self.opts.rounds} --only '{name}'", flush=True)
            self.bad += 1

    def merges(self, fs, chain):
        d, can_be_cut = os.path.join(fs.at, "try"), FILE_SYSTEMS[fs.kind][1]
        for mode_name, mode in known_modes(self.qmeld).items():
            if chain.base_fmt not in mode.bases:
                continue
            name = f"{fs.kind} {chain.base_fmt} {mode_name}"
            took = undisturbed(self.qmeld, chain, mode, d) if not self.opts.only or \
                self.opts.only.startswith(name) or self.opts.only in name else 0
            for i in range(self.opts.rounds):
                seed = f"{self.opts.seed} {name} {i}"
                self.one(f"{name} killed {i}", seed, lambda rng: killed(
                    rng, Trial(self.qmeld, chain, mode, d), took))
                if can_be_cut:
                    self.one(f"{name} cut {i}", seed, lambda rng: cut(
                        rng, Trial(self.qmeld, chain, mode, d), took, fs))

    def file_system(self, kind):
        rng = random.Random(f"{self.opts.seed} {kind}")
        before = self.trials, self.hits, time.monotonic()
        with Mounted(self.folder, kind) as fs:
            chains = {fmt: Chain(rng, self.folder, fmt) for fmt in ("raw", "qcow2")}
            d = os.path.join(fs.at, "try")
            for chain in chains.values():
                self.merges(fs, chain)
                if kind not in SHARES:  # there it needs no room: "shared without room"
                    self.one(f"{kind} {chain.base_fmt} full", 0, lambda _, chain=chain: full(
                        Trial(self.qmeld, chain, MODES["delete"], d), fs))
            for fmt in ("raw", "qcow2") if kind in SHARES else ():
                self.one(f"{kind} {fmt} shared", f"{self.opts.seed} {kind} {fmt}",
                         lambda rng, fmt=fmt: shared(rng, self.qmeld, fs, fmt, self.folder))
                self.one(f"{kind} {fmt} shared without room", f"{self.opts.seed} {kind} {fmt}",
                         lambda rng, fmt=fmt: shared_without_room(rng, self.qmeld, fs, fmt))
            if kind == "ext4":
                for fmt in ("raw", "qcow2"):
                    self.one(f"ext4 {fmt} cache", 0, lambda rng, fmt=fmt: cache_stays(
                        rng, self.qmeld, fs, fmt))
                self.one("ext4 verified reads the disk", 0,
                         lambda _: reads_the_disk(self.qmeld, chains["raw"], d))
                self.one("ext4 verified finds a bad sector", 0,
                         lambda _: finds_a_bad_sector(self.qmeld, chains["raw"], fs, d))
            for chain in chains.values():
                shutil.rmtree(chain.made)
        print(f"{kind}: {self.trials - before[0]} trials, {self.hits - before[1]} hit a merge at work, "
              f"{time.monotonic() - before[2]:.0f} s", flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--rounds", type=int, default=1, help="of each disturbance of each merge")
    p.add_argument("--only", help="trials whose name has this")
    p.add_argument("--fs", choices=FILE_SYSTEMS, help="this file system only")
    opts = p.parse_args()
    oracle.need("qemu-img", "qemu-io", "losetup", "mount", "strace", "fincore")
    if os.geteuid() != 0:
        oracle.die_skip("only root may mount file systems")
    qmeld = oracle.qmeld_program()
    folder = oracle.scratch(None)
    kinds = [k for k in FILE_SYSTEMS if opts.fs in (None, k)]
    missing = [MKFS[k][0] for k in kinds if not shutil.which(MKFS[k][0])]
    run = Run(opts, qmeld, folder)
    print(f"seed {opts.seed}", flush=True)
    try:
        for kind in kinds:
            if MKFS[kind][0] not in missing:
                run.file_system(kind)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{run.trials} trials, {run.bad} bad")
    if run.bad or (run.trials and not opts.only and run.hits * 4 < run.trials):
        if not run.bad:
            print(f"only {run.hits} hit a merge at work: this proves little")
        return 1
    if missing:
        oracle.die_skip(f"not installed: {', '.join(missing)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
