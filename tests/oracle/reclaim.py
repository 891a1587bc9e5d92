#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""commit --reclaim on a file system with room for about one batch.

A small ext4 on a loop device holds a chain whose overlays have several times the free space.  A merge without
--reclaim is refused and told what is missing; with it, it succeeds.  Then the same merges are killed at random
moments, and begun again, until one ends; and one meets a file system that is full.  Exit 77 where this process may not mount.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import oracle
from oracle import Fail, MIB

SIZE = 224 * MIB


class Disk:
    """A fresh ext4 on a loop device."""

    def __init__(self, folder):
        self.file, self.at = os.path.join(folder, "disk"), os.path.join(folder, "mnt")

    def __enter__(self):
        with open(self.file, "wb") as f:
            f.truncate(SIZE)
        os.mkdir(self.at)
        oracle.must(["mkfs.ext4", "-q", "-m", "0", self.file])
        r = subprocess.run(["mount", "-o", "loop", self.file, self.at], capture_output=True, text=True)
        if r.returncode != 0:
            print(f"skip: no loop mounts here: {r.stderr.strip()}")
            sys.exit(oracle.SKIP)
        return self.at

    def __exit__(self, *_):
        for _ in range(20):
            if subprocess.run(["umount", self.at], capture_output=True).returncode == 0:
                break
            time.sleep(0.2)
        os.rmdir(self.at)
        os.unlink(self.file)


def room(d):
    st = os.statvfs(d)
    return st.f_bfree * st.f_frsize


def fill_up(d, leave):
    """All but so many bytes are taken."""
    os.sync()
    n = room(d) - leave
    if n < 0:
        raise oracle.Broken(f"the chain leaves {room(d)} bytes, {leave} are wanted")
    oracle.must(["fallocate", "-l", str(n), "filler"], d)


def new(d, name, *options, size, backing, fmt="qcow2"):
    oracle.must(["qemu-img", "create", "-q", "-f", "qcow2", *options, "-b", backing, "-F", fmt, name, size], d)


def write(d, name, *commands):
    oracle.qemu_io(name, commands, "qcow2", d)


# each: 60 to 90 MiB in the overlays, of which the base has little

def into_raw(d):
    with open(os.path.join(d, "b"), "wb") as f:
        f.truncate(128 * MIB)
    new(d, "m", size="128M", backing="b", fmt="raw")
    write(d, "m", *(f"write -P {i + 1} {3 * i}M 2M" for i in range(20)))
    new(d, "t", size="128M", backing="m")
    write(d, "t", *(f"write -P {i + 101} {4 * i + 30}M 2M" for i in range(20)), "write -z 8M 6M")
    return "raw"


def into_qcow2(d):
    oracle.must(["qemu-img", "create", "-q", "-f", "qcow2", "b", "128M"], d)
    write(d, "b", "write -P 250 1M 4M")
    new(d, "m", "-o", "cluster_size=4k", size="128M", backing="b")
    write(d, "m", *(f"write -P {i + 1} {5 * i}M 3M" for i in range(20)))
    new(d, "t", "-o", "cluster_size=16k", size="128M", backing="m")
    write(d, "t", *(f"write -P {i + 101} {20 * i + 9}M 3333k" for i in range(6)))
    return "qcow2"


def into_growing(d):
    """The base grows, has bitmaps, and the overlay is of version 2, which is not emptied by shrinking."""
    oracle.must(["qemu-img", "create", "-q", "-f", "qcow2", "b", "20M"], d)
    write(d, "b", "write -P 250 0 2M")
    oracle.must(["qemu-img", "bitmap", "--add", "b", "on"], d)
    new(d, "t", "-o", "compat=0.10", size="100M", backing="b")
    write(d, "t", *(f"write -P {i + 1} {5 * i + 1}M 4M" for i in range(19)))
    return "qcow2"


def spent(d):
    return sum(os.stat(os.path.join(d, n)).st_blocks * 512 for n in os.listdir(d)
               if os.path.isfile(os.path.join(d, n)) and n != "filler")


def finished(d, want, base_fmt):
    os.unlink(os.path.join(d, "filler"))
    for name, fmt in (("t", "qcow2"), ("b", base_fmt)):
        got = subprocess.run(["qemu-img", "compare", "-f", fmt, "-F", "raw", name, want], cwd=d,
                             capture_output=True, text=True)
        if got.returncode != 0:
            raise Fail(f"{name} reads otherwise: {got.stdout}{got.stderr}")
    for name in ("t", "m", "b"):
        if not os.path.exists(os.path.join(d, name)) or (name == "b" and base_fmt == "raw"):
            continue
        rc, found, text = oracle.check(name, cwd=d)
        if rc != 0:
            raise Fail(f"qemu-img check {name}: rc {rc} {found} {text}")
        if name != "b" and os.stat(os.path.join(d, name)).st_blocks * 512 > 2 * MIB:
            raise Fail(f"{name} still takes {os.stat(os.path.join(d, name)).st_blocks * 512} bytes")
    if any(n.endswith(".qmeld") for n in os.listdir(d)):
        raise Fail("a journal is left")


def reads(d, want, when):
    r = subprocess.run(["qemu-img", "compare", "-U", "-f", "qcow2", "-F", "raw", "t", want], cwd=d,
                       capture_output=True, text=True)
    if r.returncode != 0:
        raise Fail(f"{when}: the top reads otherwise: {r.stdout}{r.stderr}")


def expected(d, folder):
    want = os.path.join(folder, "want")
    oracle.must(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", "t", want], d)
    return want


def succeeds(qmeld, d, want, fmt, rng):
    fill_up(d, 12 * MIB)
    before = oracle.digests([os.path.join(d, n) for n in ("b", "t")])
    r = oracle.run([qmeld, "commit", "t"], d)
    if r.rc != 2 or "make room for" not in r.err or "--reclaim" not in r.err:
        raise Fail(f"without --reclaim: rc {r.rc}, wanted 2, the shortfall and what helps: {r.err}")
    if oracle.digests(before) != before:
        raise Fail("refused, but a file changed")
    r = oracle.run([qmeld, "commit", "--reclaim", "t"], d)
    if r.rc != 0:
        raise Fail(f"with --reclaim: rc {r.rc}: {r.err}")
    finished(d, want, fmt)


def survives_kills(qmeld, d, want, fmt, rng):
    """What a kill leaves, taken but not used, may not add up."""
    fill_up(d, 16 * MIB)
    whole = time.monotonic()
    kills = 0
    while True:
        p = subprocess.Popen([qmeld, "commit", "--reclaim", "-q", "--bandwidth=40M", "t"], cwd=d,
                             stderr=subprocess.PIPE, text=True)
        try:
            err = p.communicate(timeout=rng.uniform(0.05, 0.7) if kills < 15 else 120)[1]
        except subprocess.TimeoutExpired:
            p.send_signal(signal.SIGKILL)
            p.communicate()
            kills += 1
            reads(d, want, f"killed {kills} times")
            continue
        if p.returncode != 0:
            raise Fail(f"after {kills} kills: rc {p.returncode}: {err}")
        break
    print(f"     {kills} kills, {time.monotonic() - whole:.1f} s")
    if kills < 3:
        raise oracle.Broken("it was over before it could be killed")
    finished(d, want, fmt)


def mends_a_full_disk(qmeld, d, want, fmt, rng):
    """Somebody else takes the room in the middle: exit 3; and it goes on when there is some again."""
    fill_up(d, 16 * MIB)
    p = subprocess.Popen([qmeld, "commit", "--reclaim", "-q", "--bandwidth=20M", "t"], cwd=d,
                         stderr=subprocess.PIPE, text=True)
    time.sleep(1)
    thief = os.path.join(d, "thief")
    with open(thief, "wb", buffering=0) as f:
        while p.poll() is None:
            try:
                f.write(b"x" * MIB)
            except OSError:
                time.sleep(0.01)
    err = p.communicate()[1]
    if p.returncode not in (0, 3) or (p.returncode == 3 and "space" not in err.lower()):
        raise Fail(f"rc {p.returncode}, wanted 3 (or 0, if it was quick): {err}")
    print(f"     rc {p.returncode}")
    reads(d, want, "the disk is full")
    os.unlink(thief)
    if p.returncode == 3:
        r = oracle.run([qmeld, "resume", "t"], d)
        if r.rc != 0:
            raise Fail(f"resume: rc {r.rc}: {r.err}")
    finished(d, want, fmt)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--only", default="")
    args = p.parse_args()
    oracle.need("qemu-img", "qemu-io", "mkfs.ext4", "mount", "fallocate")
    if os.geteuid() != 0:
        oracle.die_skip("only root may mount")
    qmeld, folder, bad = oracle.qmeld_program(), oracle.scratch(None), 0
    rng = random.Random(args.seed)
    try:
        for make in (into_raw, into_qcow2, into_growing):
            for test in (succeeds, survives_kills, mends_a_full_disk):
                name = f"{make.__name__}: {test.__name__}"
                if args.only not in name:
                    continue
                with Disk(folder) as d:
                    try:
                        fmt = make(d)
                        test(qmeld, d, expected(d, folder), fmt, rng)
                        print(f"pass {name}", flush=True)
                    except (Fail, oracle.Broken) as e:
                        print(f"FAIL {name}: {e}", flush=True)
                        bad += 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
