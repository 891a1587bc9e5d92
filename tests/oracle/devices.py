#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Merges into block devices: loop devices with raw and with qcow2 inside.

Exit 77 where this process may not make loop devices.
"""

import os
import shutil
import subprocess
import sys

import oracle
from oracle import Fail


class Loop:
    """A loop device over a new sparse file."""

    def __init__(self, folder, name, size):
        self.file = os.path.join(folder, name)
        with open(self.file, "wb") as f:
            f.truncate(size)

    def __enter__(self):
        r = subprocess.run(["losetup", "-f", "--show", self.file], capture_output=True, text=True)
        if r.returncode != 0:
            print(f"no loop devices here: {r.stderr.strip()}")
            sys.exit(77)
        return r.stdout.strip()

    def __exit__(self, *_):
        self_device = subprocess.run(["losetup", "-j", self.file], capture_output=True, text=True).stdout
        subprocess.run(["losetup", "-d", self_device.split(":")[0]], check=True)


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


def main():
    oracle.need("qemu-img", "qemu-io", "losetup")
    qmeld, folder, bad = oracle.qmeld_program(), oracle.scratch(None), 0
    for test in (test_raw, test_raw_too_small, test_qcow2, test_qcow2_too_small, test_flatten_raw, test_flatten_qcow2,
                 test_flatten_version_2, test_flatten_too_small):
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
