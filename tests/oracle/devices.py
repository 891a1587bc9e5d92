#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""devices.py [TEST...]: merges among block devices, which are loop devices with raw and with qcow2 inside.

Exit 77 where this process may not make loop devices.
"""

import os
import random
import re
import shutil
import subprocess
import sys
import time

import oracle
from oracle import Fail




class Loop:
    """A loop device over a sparse file, a new one if it is not there."""

    def __init__(self, folder, name, size, *options):
        self.file, self.options = os.path.join(folder, name), options
        with open(self.file, "ab") as f:
            f.truncate(size)

    def __enter__(self):
        r = subprocess.run(["losetup", "-f", "--show", *self.options, self.file], capture_output=True, text=True)
        if r.returncode != 0:
            print(f"no loop devices here: {r.stderr.strip()}")
            sys.exit(77)
        return r.stdout.strip()

    def __exit__(self, *_):
        self_device = subprocess.run(["losetup", "-j", self.file], capture_output=True, text=True).stdout
        subprocess.run(["losetup", "-d", self_device.split(":")[0]], check=True)


def taken(path):
    return os.stat(path).st_blocks * 512


def holds(d, device, view, fmt):
    """It reads so, and is sound."""
    if oracle.view(device, fmt, d)[:len(view)] != view:
        raise Fail(f"{device} reads otherwise")
    if fmt == "qcow2" and oracle.check(device, cwd=d)[0] != 0:
        raise Fail(f"qemu-img check finds something in {device}")


def overlay(d, device, fmt, size, writes):
    oracle.must(["qemu-img", "create", "-q", "-f", "qcow2", "-b", device, "-F", fmt, "t", size], d)
    oracle.qemu_io("t", writes, cwd=d)


def merged(qmeld, d, device, fmt):
    want = oracle.view("t", "qcow2", d)
    r = oracle.run([qmeld, "commit", "t"], d)
    if r.rc != 0:
        raise Fail(f"rc {r.rc}: {r.err}")
    got = oracle.view(device, fmt, d)
    if got[:len(want)] != want:
        raise Fail("the device reads otherwise than the top did")
    if oracle.view("t", "qcow2", d) != want:
        raise Fail("the top reads otherwise")
    if any(n.endswith(".qmeld") for n in os.listdir(d)):
        raise Fail("a journal is left")


def refused(qmeld, d, device, fmt):
    before = oracle.view(device, fmt, d)
    r = oracle.run([qmeld, "commit", "t"], d)
    if r.rc != 2 or device not in r.err:
        raise Fail(f"rc {r.rc}, wanted 2 and the device's name: {r.err}")
    if oracle.view(device, fmt, d) != before:
        raise Fail("the device was changed")


def test_raw(qmeld, d):
    with Loop(d, "disk", 16 << 20) as device:
        overlay(d, device, "raw", "16M", ["write -P 1 1M 3M", "write -z 2M 64k", "write -c -P 5 8M 64k"])
        merged(qmeld, d, device, "raw")


def test_raw_too_small(qmeld, d):
    with Loop(d, "disk", 8 << 20) as device:
        overlay(d, device, "raw", "16M", ["write -P 1 1M 3M"])
        refused(qmeld, d, device, "raw")


def test_qcow2(qmeld, d):
    with Loop(d, "disk", 32 << 20) as device:
        oracle.must(["qemu-img", "create", "-q", "-f", "qcow2", device, "64M"], d)
        oracle.qemu_io(device, ["write -P 1 0 8M"], cwd=d)
        overlay(d, device, "qcow2", "64M", ["write -P 2 4M 12M", "write -z 0 1M"])
        merged(qmeld, d, device, "qcow2")
        if oracle.check(device, cwd=d)[0] != 0:
            raise Fail("qemu-img check finds something")


def test_qcow2_too_small(qmeld, d):
    with Loop(d, "disk", 8 << 20) as device:
        oracle.must(["qemu-img", "create", "-q", "-f", "qcow2", device, "64M"], d)
        oracle.qemu_io(device, ["write -P 1 0 4M"], cwd=d)
        overlay(d, device, "qcow2", "64M", ["write -P 2 8M 12M"])
        refused(qmeld, d, device, "qcow2")


def flattened(qmeld, d, fmt, size, *options):
    """Over rubbish: what is zeros has to be written, too."""
    with Loop(d, "disk", size) as device:
        with open(device, "wb") as f:
            f.write(os.urandom(1 << 20) * (size >> 20))
        oracle.must(["qemu-img", "create", "-q", "-f", "qcow2", "t", "16M"], d)
        oracle.qemu_io("t", ["write -P 1 0 100k", "write -P 2 5M 3M", "write -P 3 15M 1M"], cwd=d)
        argv = [qmeld, "flatten", "-O", fmt, *options, "t", device]
        if oracle.run(argv, d).rc != 2:
            raise Fail("a device was written to without --force")
        r = oracle.run([*argv, "--force"], d)
        want = oracle.view("t", "qcow2", d)
        if size < 16 << 20:
            if r.rc not in (2, 3) or "device" not in r.err:
                raise Fail(f"too small: rc {r.rc}: {r.err}")
            return
        if r.rc != 0:
            raise Fail(f"rc {r.rc}: {r.err}")
        if oracle.view(device, fmt, d)[:len(want)] != want:
            raise Fail("the device reads otherwise")
        if fmt == "qcow2" and oracle.check(device, cwd=d)[0] != 0:
            raise Fail("qemu-img check finds something")


def test_flatten_raw(qmeld, d):
    flattened(qmeld, d, "raw", 24 << 20)


def test_flatten_qcow2(qmeld, d):
    flattened(qmeld, d, "qcow2", 24 << 20)


def test_flatten_version_2(qmeld, d):
    flattened(qmeld, d, "qcow2", 24 << 20, "--compat=0.10", "-c")


def test_flatten_too_small(qmeld, d):
    flattened(qmeld, d, "raw", 8 << 20)


def chain_of_devices(qmeld, d, *losetup):
    """Base, middle and active layer, each a device with qcow2 inside: the journal needs a place."""
    with Loop(d, "b", 32 << 20, *losetup) as b, Loop(d, "m", 24 << 20, *losetup) as m, \
            Loop(d, "t", 24 << 20, *losetup) as t:
        for device, below, writes in ((b, None, ["write -P 1 0 6M"]), (m, b, ["write -P 2 4M 6M", "write -z 1M 1M"]),
                                      (t, m, ["write -P 3 9M 3M", "write -P 4 600k 512"])):
            backing = ["-b", below, "-F", "qcow2"] if below else []
            oracle.must(["qemu-img", "create", "-q", "-f", "qcow2", *backing, device, "16M"], d)
            oracle.qemu_io(device, writes, cwd=d)
        want, middle = oracle.view(t, "qcow2", d), oracle.view(m, "qcow2", d)
        for fate in ("delete", "quarantine"):
            r = oracle.run([qmeld, "commit", "--journal-dir=.", f"--overlays={fate}", t], d)
            if r.rc != 2 or "a block device cannot be" not in r.err:
                raise Fail(f"{fate}: rc {r.rc}: {r.err}")
        r = oracle.run([qmeld, "commit", t], d)
        if r.rc != 2 or "--journal-dir" not in r.err:
            raise Fail(f"rc {r.rc}, wanted a word about --journal-dir: {r.err}")
        if [n for n in os.listdir("/dev") if n.endswith(".qmeld")]:
            raise Fail("a journal in /dev")
        run = [qmeld, "commit", "--journal-dir=.", "--cache=none", "--verify"]
        r = oracle.run([*run, "--top", m, t], d)
        if r.rc != 0:
            raise Fail(f"rc {r.rc}: {r.err}")
        holds(d, t, want, "qcow2")
        holds(d, b, middle, "qcow2")
        if oracle.Qcow2(t).backing() != (b, "qcow2"):
            raise Fail(f"the child names {oracle.Qcow2(t).backing()}")
        before = taken(os.path.join(d, "t"))
        r = oracle.run([*run, "--overlays=empty", t], d)
        if r.rc != 0:
            raise Fail(f"rc {r.rc}: {r.err}")
        holds(d, t, want, "qcow2")
        holds(d, b, want, "qcow2")
        if not losetup and taken(os.path.join(d, "t")) > before - (2 << 20):
            raise Fail(f"the emptied device takes {taken(os.path.join(d, 't'))} bytes, {before} before")
        if [n for n in os.listdir(d) if n.endswith(".qmeld")]:
            raise Fail("a journal is left")


def test_chain(qmeld, d):
    chain_of_devices(qmeld, d)


def test_sectors_of_4096(qmeld, d):
    chain_of_devices(qmeld, d, "--sector-size", "4096")


def test_small_clusters_on_large_sectors(qmeld, d):
    """Zeros and tables of 512 bytes where a sector has 4096; past the page cache, too."""
    for n, how in enumerate(([], ["--cache=none"], ["--atomic"])):
        sub = os.path.join(d, str(n))
        os.mkdir(sub)
        with Loop(sub, "disk", 24 << 20, "--sector-size", "4096") as device:
            oracle.must(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", device, "8M"], sub)
            oracle.qemu_io(device, ["write -P 1 0 3M"], cwd=sub)
            writes = [f"write {'-z' if i % 3 == 0 else f'-P {i % 250 + 1}'} {i * 3584} {512 * (1 + i % 5)}"
                      for i in range(400)]
            oracle.must(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "-b", device, "-F", "qcow2",
                         "t", "8M"], sub)
            oracle.qemu_io("t", writes, cwd=sub)
            want = oracle.view("t", "qcow2", sub)
            r = oracle.run([qmeld, "commit", *how, "t"], sub)
            if r.rc != 0:
                raise Fail(f"{how}: rc {r.rc}: {r.err}")
            holds(sub, device, want, "qcow2")
    with Loop(d, "raw", 8 << 20, "--sector-size", "4096") as device:
        with open(device, "wb") as f:
            f.write(os.urandom(8 << 20))
        overlay(d, device, "raw", "8M", ["write -z 512 4M", "write -P 7 5000k 512", "write -z 6M 1536"])
        merged(qmeld, d, device, "raw")


def test_partitions(qmeld, d):
    """Two of one disk: as little one file as two files are."""
    if not shutil.which("sfdisk"):
        print("  sfdisk is not installed: no partitions")
        return
    with Loop(d, "disk", 64 << 20, "-P") as device:
        subprocess.run(["sfdisk", "-q", device], input="2048,40960\n43008,40960\n", text=True, check=True,
                       capture_output=True)
        subprocess.run(["partx", "-u", device], capture_output=True, check=False)
        one, two = device + "p1", device + "p2"
        if not os.path.exists(two):
            print("  this kernel makes no partitions of loop devices")
            return
        oracle.must(["qemu-img", "create", "-q", "-f", "qcow2", one, "12M"], d)
        oracle.qemu_io(one, ["write -P 1 0 6M"], cwd=d)
        oracle.must(["qemu-img", "create", "-q", "-f", "qcow2", "-b", one, "-F", "qcow2", two, "12M"], d)
        oracle.qemu_io(two, ["write -P 2 3M 6M"], cwd=d)
        want = oracle.view(two, "qcow2", d)
        r = oracle.run([qmeld, "commit", "--journal-dir=.", two], d)
        if r.rc != 0:
            raise Fail(f"rc {r.rc}: {r.err}")
        holds(d, one, want, "qcow2")


def test_claimed(qmeld, d):
    """A header alone leads to no device that is mounted; the user may."""
    with Loop(d, "disk", 16 << 20) as device:
        oracle.must(["mkfs.ext4", "-q", device])
        at = os.path.join(d, "at")
        os.mkdir(at)
        overlay(d, device, "raw", "16M", ["write -P 1 1M 3M"])
        oracle.must(["mount", "-o", "ro", device, at])
        try:
            for more, rc in ([], 2), (["--allow-path=/dev"], 0):
                r = oracle.run([qmeld, "map", *more, "t"], d)
                if r.rc != rc or (rc and ("in use by this machine" not in r.err or "--allow-path" not in r.err)):
                    raise Fail(f"rc {r.rc}: {r.err}")
        finally:
            oracle.must(["umount", at])
        if oracle.run([qmeld, "map", "t"], d).rc != 0:
            raise Fail("nobody has it, and it is refused")


def test_read_only(qmeld, d):
    """Also to root; a plan foresees it."""
    with Loop(d, "disk", 16 << 20, "-r") as device:
        overlay(d, device, "raw", "16M", ["write -P 1 1M 3M"])
        r = oracle.run([qmeld, "plan", "t"], d)
        if r.rc != 2 or f"{device}: the block device is read-only" not in r.err:
            raise Fail(f"the plan says nothing: rc {r.rc}: {r.out}{r.err}")
        r = oracle.run([qmeld, "commit", "t"], d)
        if r.rc != 2 or f"{device}: the block device is read-only" not in r.err:
            raise Fail(f"rc {r.rc}: {r.err}")
        if [n for n in os.listdir(d) if n.endswith(".qmeld")]:
            raise Fail("a journal is left")


def test_too_small_by_how_much(qmeld, d):
    """Plan and merge say the same number, and it is enough, and no sector less is."""
    for extra, rc in ((-4096, 2), (0, 0)):
        sub = os.path.join(d, str(extra))
        os.mkdir(sub)
        with Loop(sub, "disk", 8 << 20) as device:
            oracle.must(["qemu-img", "create", "-q", "-f", "qcow2", device, "64M"], sub)
            oracle.qemu_io(device, ["write -P 1 0 4M"], cwd=sub)
            overlay(sub, device, "qcow2", "64M", ["write -P 2 8M 12M", "write -P 3 50M 64k"])
            said = [re.search(r"(\d+) are needed", oracle.run([qmeld, c, "t"], sub).err) for c in ("plan", "commit")]
            if not all(said) or said[0][1] != said[1][1]:
                raise Fail(f"plan and commit do not agree: {said}")
            with open(os.path.join(sub, "disk"), "r+b") as f:
                f.truncate(int(said[0][1]) + extra)
            oracle.must(["losetup", "-c", device])
            r = oracle.run([qmeld, "commit", "t"], sub)
            if r.rc != rc:
                raise Fail(f"{extra} bytes: rc {r.rc}, wanted {rc}: {r.err}")


def test_reclaim(qmeld, d):
    """What a device gives up is discarded: the file behind it has holes."""
    os.mkdir(os.path.join(d, "disks"))
    with Loop(os.path.join(d, "disks"), "m", 32 << 20) as m:
        oracle.must(["qemu-img", "create", "-q", "-f", "qcow2", "b", "32M"], d)
        oracle.must(["qemu-img", "create", "-q", "-f", "qcow2", "-b", os.path.join(d, "b"), "-F", "qcow2", m, "32M"], d)
        oracle.qemu_io(m, ["write -P 2 0 20M"], cwd=d)
        overlay(d, m, "qcow2", "32M", ["write -P 3 10M 1M"])
        want = oracle.view("t", "qcow2", d)
        r = oracle.run([qmeld, "commit", "--allow-path=/", "--reclaim", "t"], d)
        if r.rc != 0:
            raise Fail(f"rc {r.rc}: {r.err}")
        holds(d, os.path.join(d, "b"), want, "qcow2")
        holds(d, "t", want, "qcow2")
        if oracle.check(m, cwd=d)[0] != 0 or taken(os.path.join(d, "disks/m")) > 4 << 20:
            raise Fail(f"the device takes {taken(os.path.join(d, 'disks/m'))} bytes still, or is not sound")


def test_repair(qmeld, d):
    """Refcounts are built anew without room behind the end."""
    with Loop(d, "disk", 24 << 20) as device:
        oracle.must(["qemu-img", "create", "-q", "-f", "qcow2", device, "16M"], d)
        oracle.qemu_io(device, ["write -P 1 0 8M"], cwd=d)
        want = oracle.view(device, "qcow2", d)
        q = oracle.Qcow2(device)
        q.put(q.rt_off, bytes(512))
        if oracle.run([qmeld, "check", device], d).rc != 2:
            raise Fail("the damage is not found")
        r = oracle.run([qmeld, "check", "--repair=all", device], d)
        if r.rc != 0:
            raise Fail(f"rc {r.rc}: {r.err}{r.out}")
        holds(d, device, want, "qcow2")


def test_held(qmeld, d):
    """A device that a QEMU has is refused, and who has it is named."""
    with Loop(d, "disk", 16 << 20) as device:
        overlay(d, device, "raw", "16M", ["write -P 1 1M 3M"])
        with subprocess.Popen(["qemu-nbd", "-t", "-f", "raw", "-k", os.path.join(d, "s"), device]) as p:
            try:
                for _ in range(300):
                    if os.path.exists(os.path.join(d, "s")):
                        break
                    time.sleep(0.01)
                r = oracle.run([qmeld, "commit", "t"], d)
                if r.rc != 2 or f"pid {p.pid}" not in r.err:
                    raise Fail(f"rc {r.rc}, wanted 2 and pid {p.pid}: {r.err}")
            finally:
                p.kill()
        merged(qmeld, d, device, "raw")


def test_killed(qmeld, d):
    """At any moment; the same command goes on."""
    rng = random.Random(1)
    for fmt, size in (("raw", "24M"), ("qcow2", "24M")):
        sub = os.path.join(d, fmt)
        os.mkdir(sub)
        with Loop(sub, "disk", 48 << 20) as device:
            for n in range(4):
                if fmt == "qcow2":
                    oracle.must(["qemu-img", "create", "-q", "-f", "qcow2", device, size], sub)
                oracle.qemu_io(device, [f"write -P {n + 1} 0 8M"], fmt=fmt, cwd=sub)
                overlay(sub, device, fmt, size, [f"write -P {i + 9 + n} {i * 450 + 64}k 300k" for i in range(50)])
                want = oracle.view("t", "qcow2", sub)
                with subprocess.Popen([qmeld, "commit", "t"], cwd=sub, stdout=subprocess.DEVNULL,
                                      stderr=subprocess.DEVNULL) as p:
                    time.sleep(rng.uniform(0.02, 0.2))
                    p.kill()
                if oracle.view("t", "qcow2", sub) != want:
                    raise Fail(f"{fmt}: killed, the top reads otherwise")
                merged(qmeld, sub, device, fmt)
                if fmt == "qcow2" and oracle.check(device, cwd=sub)[0] != 0:
                    raise Fail("qemu-img check finds something")


def main():
    oracle.need("qemu-img", "qemu-io", "losetup")
    qmeld, folder, bad = oracle.qmeld_program(), oracle.scratch(None), 0
    named = [f"test_{n}" for n in sys.argv[1:]]
    for test in [f for n, f in globals().items() if n.startswith("test_") and (not named or n in named)]:
        d = os.path.join(folder, test.__name__[5:])
        os.mkdir(d)
        try:
            test(qmeld, d)
            print(f"pass {test.__name__[5:]}", flush=True)
        except (Fail, oracle.Broken) as e:
            print(f"FAIL {test.__name__[5:]}: {e}", flush=True)
            bad += 1
    shutil.rmtree(folder, ignore_errors=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
