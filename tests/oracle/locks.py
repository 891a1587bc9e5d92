#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""QEMU and qmeld keep out of each other's way.

While qmeld merges, no QEMU program opens a layer of the chain; while a QEMU program holds a layer,
qmeld refuses, names the holder and changes nothing; looking (info, map, check) works beside both.
"""

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time

import oracle
from oracle import Fail

F_OFD_GETLK = 36


def locked_bytes(path):
    """Which of QEMU's lock bytes somebody holds."""
    found = []
    fd = os.open(path, os.O_RDONLY)
    try:
        for at in [*range(100, 104), *range(200, 204)]:
            ask = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, at, 1, 0)
            if struct.unpack("hhqqi4x", fcntl.fcntl(fd, F_OFD_GETLK, ask))[0] != fcntl.F_UNLCK:
                found.append(at)
    finally:
        os.close(fd)
    return found


def wait_for_locks(path, process, seconds=20):
    end = time.time() + seconds
    while not locked_bytes(path):
        if process.poll() is not None:
            err = process.stderr.read().decode() if process.stderr else ""
            raise Fail(f"ended with {process.returncode} before it locked {path}: {err}")
        if time.time() > end:
            raise Fail(f"no lock on {path} after {seconds} s")
        time.sleep(0.02)


def stop(process):
    process.kill()
    process.wait(30)
    if process.stdin:
        process.stdin.close()


@contextlib.contextmanager
def held_by_qemu_io(folder, name, write, fmt="qcow2"):
    """A qemu-io that has the image open until the block ends; yields its pid."""
    argv = ["qemu-io", *([] if write else ["-r"]), "-f", fmt, name]
    p = subprocess.Popen(argv, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                         stderr=subprocess.PIPE)
    try:
        wait_for_locks(os.path.join(folder, name), p)
        yield p.pid
    finally:
        stop(p)
        p.stderr.close()


@contextlib.contextmanager
def held_by_daemon(folder, name):
    """A qemu-storage-daemon that exports the chain, as a running guest would hold it."""
    node = f"driver=qcow2,node-name=n0,file.driver=file,file.filename={name}"
    p = subprocess.Popen(["qemu-storage-daemon", "--blockdev", node, "--nbd-server",
                          f"addr.type=unix,addr.path={folder}/nbd.sock", "--export",
                          "type=nbd,id=e,node-name=n0,writable=on"], cwd=folder,
                         stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                         stderr=subprocess.PIPE)
    try:
        wait_for_locks(os.path.join(folder, name), p)
        yield p.pid
    finally:
        stop(p)
        p.stderr.close()


def make_chain(d, size="8M", base_fmt="qcow2", top=("write -P 2 2M 5M",)):
    if base_fmt == "raw":
        with open(os.path.join(d, "b"), "wb") as f:
            f.truncate(8 << 20)
    else:
        oracle.must(["qemu-img", "create", "-q", "-f", "qcow2", "b", size], d)
    for name, below, fmt in (("m", "b", base_fmt), ("t", "m", "qcow2")):
        oracle.must(["qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F", fmt, name], d)
    oracle.qemu_io("m", ["write -P 1 0 4M"], cwd=d)
    oracle.qemu_io("t", top, cwd=d)


def look_works(qmeld, d):
    for argv in (["info", "t"], ["map", "t"], ["map", "--output=json", "t"], ["check", "t"]):
        r = oracle.run([qmeld, *argv], d)
        if r.rc != 0:
            raise Fail(f"{' '.join(argv)} beside a holder: rc {r.rc}: {r.err}")


def refuses(qmeld, d, pid, command):
    before = oracle.digests([os.path.join(d, n) for n in "bmt"])
    r = oracle.run([qmeld, "commit", "t"], d)
    if r.rc != 2:
        raise Fail(f"a held chain: rc {r.rc}, wanted 2: {r.err}")
    if str(pid) not in r.err or command not in r.err:
        raise Fail(f"pid {pid} ({command}) is not named: {r.err}")
    if oracle.digests(before) != before:
        raise Fail("refused, but files changed")


def test_held_layers(qmeld, d):
    """Any layer, for writing or reading."""
    make_chain(d)
    for name in "tmb":
        for write in (False, True) if name == "t" else (False,):
            with held_by_qemu_io(d, name, write) as pid:
                # a reader shares with readers: only what the merge writes must be free
                if not write and name != "b":
                    continue
                refuses(qmeld, d, pid, "qemu-io")
                look_works(qmeld, d)
    with held_by_daemon(d, "t") as pid:
        refuses(qmeld, d, pid, "qemu-storage-d")
        look_works(qmeld, d)
    r = oracle.run([qmeld, "commit", "t"], d)
    if r.rc != 0:
        raise Fail(f"free again: rc {r.rc}: {r.err}")


def test_held_raw_base(qmeld, d):
    """A raw base that a QEMU writes."""
    make_chain(d, base_fmt="raw")
    with held_by_qemu_io(d, "b", write=True, fmt="raw") as pid:
        refuses(qmeld, d, pid, "qemu-io")


# SIGINT is ignored at first, as shells start background jobs: a merge listens all the same.
@contextlib.contextmanager
def slow_merge(qmeld, d, *args):
    p = subprocess.Popen([qmeld, "commit", "--bandwidth", "1M", *args, "t"], cwd=d,
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
                         stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                         stderr=subprocess.PIPE)
    try:
        wait_for_locks(os.path.join(d, "b"), p)
        time.sleep(0.2)
        yield p
    finally:
        if p.poll() is None:
            stop(p)
        p.stderr.close()


def test_nobody_enters(qmeld, d):
    """QEMU cannot open a layer while it is merged; a second qmeld neither."""
    for base_fmt in ("qcow2", "raw"):
        for name in ("b", "m", "t", ".b.qmeld"):
            if os.path.exists(os.path.join(d, name)):
                os.unlink(os.path.join(d, name))
        make_chain(d, base_fmt=base_fmt)
        with slow_merge(qmeld, d) as p:
            for name in "tmb":
                fmt = base_fmt if name == "b" else "qcow2"
                r = oracle.run(["qemu-io", "-f", fmt, "-c", "write -P 9 0 64k", name], d)
                if "lock" not in r.err + r.out:
                    raise Fail(f"qemu-io could open {name} ({fmt}) for writing: {r.err}{r.out}")
                r = oracle.run(["qemu-img", "resize", "-f", fmt, name, "16M"], d)
                if r.rc == 0:
                    raise Fail(f"qemu-img could resize {name}")
            refuses_second(qmeld, d, p.pid)
            look_works(qmeld, d)
            if p.poll() is not None:
                raise Fail("the merge ended while it was tested: it is not slow enough")


def refuses_second(qmeld, d, pid):
    r = oracle.run([qmeld, "commit", "t"], d)
    if r.rc != 2 or str(pid) not in r.err:
        raise Fail(f"a second qmeld: rc {r.rc}, wanted 2 and pid {pid}: {r.err}")


def wait_for_progress(process):
    """Until some bytes are copied; the record that says so came from --progress=json."""
    for line in process.stderr:
        if line.startswith(b"{"):
            record = json.loads(line)
            if record["phase"] == "copy" and record["done"] > 0:
                return record
    raise Fail("the merge ended before it said that anything was copied")


def test_stop_and_go_on(qmeld, d):
    """A signal stops at a point with a name (exit 75); the same command finishes.

    At 1 MiB a second the merge takes most of a minute, and nothing but its last 4 MiB would be done
    in spite of a signal: however slow this machine is, the signal comes in the middle.
    """
    want = None
    for sig in (signal.SIGTERM, signal.SIGINT):
        shutil.rmtree(d)
        os.mkdir(d)
        make_chain(d, size="48M", top=("write -P 2 2M 22M", "write -P 3 24M 24M"))
        want = want or oracle.view("t", "qcow2", d)
        with slow_merge(qmeld, d, "--progress", "json") as p:
            record = wait_for_progress(p)
            if record["done"] * 2 > record["total"]:
                raise Fail(f"the merge is not slow: {record}")
            p.send_signal(sig)
            try:
                rc = p.wait(30)
            except subprocess.TimeoutExpired:
                raise Fail(f"signal {sig}: no end after 30 s") from None
            if rc != 75:
                raise Fail(f"signal {sig}: rc {rc}, wanted 75: {p.stderr.read().decode()}")
        if oracle.view("t", "qcow2", d) != want:
            raise Fail(f"signal {sig}: top reads otherwise")
        if oracle.check("b", cwd=d)[0] not in (0, 3):
            raise Fail(f"signal {sig}: base is corrupt")
    r = oracle.run([qmeld, "commit", "t"], d)
    if r.rc != 0 or oracle.view("b", "qcow2", d) != want:
        raise Fail(f"going on: rc {r.rc}, or base reads wrong: {r.err}")


def test_shrinking_source(qmeld, d):
    """A source that loses its end in the middle: an error that names it, no SIGBUS, no damage."""
    make_chain(d)
    with slow_merge(qmeld, d, "--threads", "4") as p:
        os.truncate(os.path.join(d, "t"), 1 << 20)
        try:
            rc = p.wait(60)
        except subprocess.TimeoutExpired:
            raise Fail("no end after 60 s") from None
        err = p.stderr.read().decode()
        if rc not in (1, 2, 3):
            raise Fail(f"rc {rc}, wanted an error: {err}")
        if "qmeld: " not in err or "t:" not in err.replace("/t", " t"):
            raise Fail(f"the error does not name the file: {err}")
    if oracle.check("b", cwd=d)[0] not in (0, 3):
        raise Fail("base is corrupt")


def make_bottomless(path, backing):
    """An image of 8 MiB that claims 512 TiB of data: every L1 entry names one L2 table, every entry of
    that one cluster."""
    size, n = 65536, 1 << 20
    l1_off, l2_off, data_off = 3 * size, 3 * size + n * 8, 4 * size + n * 8
    ext = struct.pack(">II8sII", 0xe2792aca, 3, b"raw", 0, 0)
    header = struct.pack(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 104 + len(ext), len(backing), 16,
                         n * (512 << 20), 0, n, l1_off, size, 1, 0, 0, 0, 0, 0, 4, 104)
    with open(path, "wb") as f:
        f.write(header + ext + backing)
        f.seek(l1_off)
        f.write(struct.pack(">Q", 1 << 63 | l2_off) * n)
        f.write(struct.pack(">Q", 1 << 63 | data_off) * (size // 8))
        f.write(bytes(size))


def test_stop_while_counting(qmeld, d):
    """A top that claims more than anybody will wait for: the first signal ends it, nothing is touched."""
    with open(os.path.join(d, "b"), "wb") as f:
        f.truncate(1 << 20)
    make_bottomless(os.path.join(d, "t"), b"b")
    was = oracle.digests([os.path.join(d, "b"), os.path.join(d, "t")])
    with subprocess.Popen([qmeld, "commit", "t"], cwd=d, stderr=subprocess.PIPE) as p:
        try:
            wait_for_locks(os.path.join(d, "b"), p)
            time.sleep(0.5)
            p.send_signal(signal.SIGTERM)
            rc = p.wait(20)
        except subprocess.TimeoutExpired:
            raise Fail("no end 20 s after SIGTERM") from None
        finally:
            p.kill()
    if rc != 75 or oracle.digests([os.path.join(d, "b"), os.path.join(d, "t")]) != was:
        raise Fail(f"rc {rc}, wanted 75 and untouched files")


TESTS = [test_held_layers, test_held_raw_base, test_nobody_enters, test_stop_and_go_on,
         test_stop_while_counting, test_shrinking_source]


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("tests", nargs="*")
    p.add_argument("--dir")
    opts = p.parse_args()
    oracle.need("qemu-img", "qemu-io", "qemu-storage-daemon")
    qmeld = oracle.qmeld_program()
    folder, bad = oracle.scratch(opts.dir), 0
    for test in TESTS:
        name = test.__name__[5:]
        if opts.tests and name not in opts.tests:
            continue
        d = os.path.join(folder, name)
        os.mkdir(d)
        try:
            test(qmeld, d)
            print(f"pass {name}", flush=True)
        except (Fail, oracle.Broken) as e:
            print(f"FAIL {name}: {e}", flush=True)
            bad += 1
    shutil.rmtree(folder, ignore_errors=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
