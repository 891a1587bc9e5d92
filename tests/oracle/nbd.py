#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Images behind NBD servers (nbdkit, qemu-nbd), judged by qemu-img.

nbd.py: all cases, and some random chains with layers behind servers.  nbd.py CASE...: these.  nbd.py --chains N --seed N:
so many chains from this seed on.  Exit 77 where there is no nbdkit, or a qmeld without libnbd.
"""

import argparse
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import oracle
from oracle import Fail, KIB, MIB

CASES = {}


def case(f):
    CASES[f.__name__] = f
    return f


class Server:
    """A server on a socket in the case's directory; .uri is its export."""

    def __init__(self, d, image, *more, kind="nbdkit", log=False, start=True):
        self.d, self.image, self.kind, self.more = d, image, kind, list(more)
        self.n = len([n for n in os.listdir(d) if n.startswith("sock")])
        self.socket = os.path.join(d, f"sock{self.n}")
        open(self.socket, "w").close()
        self.uri = f"nbd+unix:///?socket={self.socket}"
        self.log = os.path.join(d, f"log{self.n}") if log else None
        self.process = None
        if start:
            self.start()

    def argv(self):
        if self.kind == "qemu-nbd":
            return ["qemu-nbd", "-t", "-f", "raw", "-k", self.socket, *self.more, self.image]
        argv = ["nbdkit", "-f", "-U", self.socket]
        if self.log:
            argv += ["--log=null", "--filter=log"]
        if any("=" not in m and not m.startswith("-") for m in self.more):  # a plugin of its own
            return argv + self.more
        argv += [m for m in self.more if m.startswith("-")] + ["file", self.image]
        return argv + [m for m in self.more if not m.startswith("-")] + ([f"logfile={self.log}"] if self.log else [])

    def start(self):
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        self.process = subprocess.Popen(self.argv(), cwd=self.d, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(500):
            if os.path.exists(self.socket):
                return self
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise oracle.Broken(f"{' '.join(self.argv())}: {self.process.stderr.read().decode()}")

    def stop(self, sig=signal.SIGTERM):
        if self.process:
            self.process.send_signal(sig)
            self.process.wait()
            self.process.stderr.close()
            self.process = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop(signal.SIGKILL)

    def commands(self, word):
        """[(offset, count)] of the commands of a kind since the log was last cleared."""
        with open(self.log, encoding="utf-8") as f:
            return [(int(m[1] or "0", 16), int(m[2] or "0", 16)) for m in re.finditer(
                rf" {word} id=\d+(?: offset=(0x[0-9a-f]+) count=(0x[0-9a-f]+))? .*\.\.\.$", f.read(), re.M)]

    def clear(self):
        with open(self.log, "w"):
            pass


def image(d, name, size, *writes, backing=None, backing_format=None, fmt="qcow2", options=()):
    argv = ["qemu-img", "create", "-q", "-f", fmt, *options]
    if backing:
        argv += ["-b", backing, "-F", backing_format]
    oracle.must(argv + [name, str(size)], d)
    if writes:
        oracle.qemu_io(name, writes, fmt=fmt, cwd=d)
    return os.path.join(d, name)


def pad(path, size):
    """An export does not grow: room for what the image will take."""
    with open(path, "r+b") as f:
        f.truncate(max(size, os.path.getsize(path)))


def run(qmeld, d, *argv, rc=0, says=None, env=None, timeout=120):
    r = oracle.run([qmeld, *argv], d, env=env, timeout=timeout)
    if rc is not None and r.rc not in (rc if isinstance(rc, tuple) else (rc,)):
        raise Fail(f"{' '.join(argv)}: rc {r.rc}, wanted {rc}: {r.err}{r.out}")
    if says and says not in r.err + r.out:
        raise Fail(f"{' '.join(argv)}: does not say \"{says}\": {r.err}{r.out}")
    return r


def same(got, want, what):
    if got[:len(want)] != want or any(got[len(want):]):
        raise Fail(f"{what}: {oracle.first_difference(got, want)}")


def no_journal(d):
    left = [n for n in os.listdir(d) if ".qmeld" in n]
    if left:
        raise Fail(f"left: {left}")


def simple(d, fmt="raw", room=0):
    """A base of 16 MiB, which is exported."""
    path = image(d, "base", "16M", "write -P 1 1M 3M", "write -P 2 9M 1M", fmt=fmt)
    pad(path, room)
    return path


def overlay(d, server, fmt="raw", name="t"):
    return image(d, name, "16M", "write -P 3 2M 4M", "write -z 9M 512k", "write -P 4 15M 64k",
                 backing=server.uri, backing_format=fmt)


# ---- what works ----

@case
def raw(qmeld, d):
    with Server(d, simple(d), log=True) as s:
        overlay(d, s)
        want = oracle.view("t", "qcow2", d)
        info = run(qmeld, d, "info", "t", says="NBD export, which nothing locks")
        if s.uri not in info.out:
            raise Fail(f"info does not name the export: {info.out}")
        s.clear()
        run(qmeld, d, "plan", "t", says="nothing locks")
        if s.commands("Write") + s.commands("Zero") + s.commands("Trim"):
            raise Fail("a plan writes")
        s.clear()
        run(qmeld, d, "commit", "--verify", "t")
        if (9 * MIB, 512 * KIB) not in s.commands("Zero"):
            raise Fail(f"zeros are not written as zeros: {s.commands('Zero')}")
        if not s.commands("Flush"):
            raise Fail("no flush")
        same(oracle.view("base", "raw", d), want, "base")
        same(oracle.view("t", "qcow2", d), want, "top")
        run(qmeld, d, "commit", "t", says="already")
        no_journal(d)


@case
def qcow2_inside(qmeld, d):
    """By qemu-nbd, which lets in one client at a time."""
    with Server(d, simple(d, "qcow2", 24 * MIB), kind="qemu-nbd") as s:
        overlay(d, s, "qcow2", "m")
        image(d, "t", "20M", "write -P 5 3M 2M", "write -P 6 18M 64k", backing="m", backing_format="qcow2")
        want = oracle.view("t", "qcow2", d)
        run(qmeld, d, "commit", "--top=m", "t")
        if oracle.Qcow2(os.path.join(d, "t")).backing() != (s.uri, "qcow2"):
            raise Fail(f"the child names {oracle.Qcow2(os.path.join(d, 't')).backing()}")
        same(oracle.view("t", "qcow2", d), want, "top")
        os.unlink(os.path.join(d, "m"))
        run(qmeld, d, "commit", "--overlays=empty", "t")
        same(oracle.view("t", "qcow2", d), want, "emptied top")
        same(oracle.view(s.uri, "qcow2", d), want, "base")
        if oracle.check(s.uri, cwd=d)[0] != 0:
            raise Fail("qemu-img check finds something")
        run(qmeld, d, "check", s.uri)
        no_journal(d)


@case
def ways_to_merge(qmeld, d):
    """Each with its way back, and past what can be skipped."""
    for n, options in enumerate((["--atomic"], ["--undo"], ["--reclaim"], ["--skip-equal", "--detect-zeroes"],
                                 ["--cache=none"], ["--threads=8"])):
        sub = os.path.join(d, str(n))
        os.mkdir(sub)
        with Server(sub, simple(sub, "qcow2", 40 * MIB)) as s:
            overlay(sub, s, "qcow2")
            want, old = oracle.view("t", "qcow2", sub), oracle.view(s.uri, "qcow2", sub)
            run(qmeld, sub, "commit", *options, "t")
            if options[0] in ("--atomic", "--undo"):
                same(oracle.view(s.uri, "qcow2", sub), want, f"{options}")
                run(qmeld, sub, "revert", "t")
                same(oracle.view(s.uri, "qcow2", sub), old, f"{options}, taken back")
                run(qmeld, sub, "commit", *options, "t")
                run(qmeld, sub, "finalize", "t")
            same(oracle.view(s.uri, "qcow2", sub), want, f"{options}")
            if oracle.check(s.uri, cwd=sub)[0] != 0:
                raise Fail(f"{options}: qemu-img check finds something")
            no_journal(sub)


@case
def undo_raw(qmeld, d):
    with Server(d, simple(d)) as s:
        overlay(d, s)
        want, old = oracle.view("t", "qcow2", d), oracle.view("base", "raw", d)
        run(qmeld, d, "commit", "--undo", "t")
        same(oracle.view("base", "raw", d), want, "base")
        run(qmeld, d, "revert", "t")
        same(oracle.view("base", "raw", d), old, "base, taken back")


@case
def overlays_behind_servers(qmeld, d):
    """Base a file, what is merged behind servers; deleting is refused by name."""
    image(d, "base", "16M", "write -P 1 0 2M", fmt="raw")
    os.mkdir(os.path.join(d, "served"))
    path = image(d, "served/m", "16M", "write -P 2 1M 2M", "write -c -P 9 8M 64k", backing=os.path.join(d, "base"),
                 backing_format="raw")
    pad(path, 8 * MIB)
    with Server(d, path) as s:
        overlay(d, s, "qcow2")
        want = oracle.view("t", "qcow2", d)
        for fate in ("delete", "quarantine"):
            run(qmeld, d, "commit", f"--overlays={fate}", "--top", s.uri, "t", rc=2, says="cannot be")
        r = run(qmeld, d, "map", "--output=json", "t")
        q = oracle.must(["qemu-img", "map", "--output=json", "t"], d)
        if [x for x in r.out.split() if x.isdigit()] != [x for x in q.out.split() if x.isdigit()]:
            raise Fail(f"map differs from qemu-img's:\n{r.out}\n{q.out}")
        run(qmeld, d, "commit", "--overlays=empty", "t")
        same(oracle.view("base", "raw", d), want, "base")
        same(oracle.view("t", "qcow2", d), want, "top")
        if oracle.check(s.uri, cwd=d)[0] != 0:
            raise Fail("qemu-img check finds something")


@case
def everything_behind_servers(qmeld, d):
    """Then the journal needs a place."""
    with Server(d, simple(d)) as b:
        path = overlay(d, b)
        pad(path, 16 * MIB)
        with Server(d, path) as t:
            want = oracle.view(t.uri, "qcow2", d)
            run(qmeld, d, "commit", t.uri, rc=2, says="--journal-dir")
            os.mkdir(os.path.join(d, "j"))
            run(qmeld, d, "commit", "--journal-dir=j", t.uri)
            same(oracle.view("base", "raw", d), want, "base")
            run(qmeld, d, "status", "--journal-dir=j", t.uri)


@case
def siblings(qmeld, d):
    """Who else stands on an export is found by its name; who stands on what lies behind it, is not."""
    with Server(d, simple(d)) as s:
        overlay(d, s)
        image(d, "other", "16M", "write -P 7 0 64k", backing=f"nbd:unix:{s.socket}", backing_format="raw")
        want = oracle.view("other", "qcow2", d)
        run(qmeld, d, "commit", "t", rc=2, says="other")
        same(oracle.view("other", "qcow2", d), want, "the other overlay")
        run(qmeld, d, "commit", "--force", "t")


@case
def other_commands(qmeld, d):
    with Server(d, simple(d, "qcow2", 20 * MIB)) as s, Server(d, image(d, "other", "16M", fmt="raw")) as o:
        overlay(d, s, "qcow2")
        want = oracle.view("t", "qcow2", d)
        run(qmeld, d, "flatten", "-O", "raw", "t", "flat")
        same(oracle.view("flat", "raw", d), want, "flat")
        run(qmeld, d, "compare", "t", "flat", says="identical")
        run(qmeld, d, "compare", "-f", "qcow2", s.uri, "flat", rc=1)
        run(qmeld, d, "flatten", "-O", "raw", "t", o.uri, rc=2, says="--force")
        with open(os.path.join(d, "other"), "r+b") as f:
            f.write(os.urandom(MIB) * 16)  # what is zeros has to be written, too
        run(qmeld, d, "flatten", "-O", "raw", "--force", "t", o.uri)
        same(oracle.view("other", "raw", d), want, "raw export")
        run(qmeld, d, "flatten", "-O", "raw", "--force", "t", s.uri, rc=2, says="a layer of the chain")
        run(qmeld, d, "rebase", "-b", o.uri, "-F", "raw", "t")
        same(oracle.view("t", "qcow2", d), want, "rebased")
        if oracle.Qcow2(os.path.join(d, "t")).backing() != (o.uri, "raw"):
            raise Fail("the header names another export")
        run(qmeld, d, "measure", "-O", "qcow2", "t")


@case
def flatten_into_qcow2(qmeld, d):
    path = image(d, "out", "20M", fmt="raw")
    with open(path, "r+b") as f:
        f.write(os.urandom(MIB) * 20)
    image(d, "t", "16M", "write -P 3 2M 4M", "write -P 4 15M 64k")
    with Server(d, path) as s:
        run(qmeld, d, "flatten", "-O", "qcow2", "--force", "t", s.uri)
        same(oracle.view(s.uri, "qcow2", d), oracle.view("t", "qcow2", d), "qcow2 in an export")
        if oracle.check(s.uri, cwd=d)[0] != 0:
            raise Fail("qemu-img check finds something")


@case
def repairs(qmeld, d):
    path = simple(d, "qcow2", 20 * MIB)
    q = oracle.Qcow2(path)
    block = int.from_bytes(q.get(q.rt_off, 8), "big")
    q.put(block + 2 * 20, b"\0\0")  # a refcount of a cluster in use
    q.put(block + 2 * 200, b"\0\1")  # a leak
    with Server(d, path) as s:
        run(qmeld, d, "check", s.uri, rc=2)
        run(qmeld, d, "check", "--repair=all", s.uri)
        if oracle.check(s.uri, cwd=d)[0] != 0:
            raise Fail("qemu-img check finds something")


@case
def names(qmeld, d):
    """As QEMU has them, in headers and on the command line."""
    with Server(d, simple(d)) as s:
        sock = s.socket
        for name in (f"nbd:unix:{sock}", f"nbd+unix:///?socket={sock}", f"nbd:unix:{sock}:exportname=x",
                     '{"driver":"raw","file":{"driver":"nbd","path":"%s"}}' % sock,
                     '{"driver":"raw","file.driver":"nbd","file.server.type":"unix","file.server.path":"%s"}' % sock,
                     '{"driver":"raw","file":{"driver":"nbd","server":{"type":"unix","path":"%s"},"export":"y z"}}' % sock):
            name = ("json:" if name[0] == "{" else "") + name
            image(d, "t", "16M", "write -P 3 2M 4M", backing=name, backing_format="raw")
            want = oracle.view("t", "qcow2", d)
            run(qmeld, d, "flatten", "-O", "raw", "--force", "t", "flat")
            same(oracle.view("flat", "raw", d), want, name)
            run(qmeld, d, "flatten", "-O", "raw", "--force", "-f", "raw", name, "flat")
            same(oracle.view("flat", "raw", d), oracle.view("base", "raw", d), name)


@case
def tls(qmeld, d):
    simple(d)
    with open(os.path.join(d, "keys"), "w", encoding="ascii") as f:
        f.write("me:" + "0123456789abcdef" * 4 + "\n")
    with Server(d, os.path.join(d, "base"), "--tls=require", f"--tls-psk={d}/keys") as s:
        run(qmeld, d, "info", "-f", "raw", s.uri, rc=1)
        uri = f"nbds+unix://me@/?socket={s.socket}&tls-psk-file={d}/keys"
        run(qmeld, d, "flatten", "-O", "raw", "-f", "raw", uri, "flat")
        same(oracle.view("flat", "raw", d), oracle.view("base", "raw", d), "over TLS")
        image(d, "t", "16M")
        oracle.must(["qemu-img", "rebase", "-u", "-b", f"nbds://x/{d}", "-F", "raw", "t"], d)
        run(qmeld, d, "info", "t", rc=(1, 2), says="only for names on the command line")


# ---- what is asked of the server ----

@case
def holes_are_not_read(qmeld, d):
    path = image(d, "base", "1G", "write -P 1 100M 64k", "write -P 1 900M 64k", fmt="raw")
    with Server(d, path, log=True) as s:
        run(qmeld, d, "flatten", "-O", "raw", "-f", "raw", s.uri, "flat")
        oracle.must(["cmp", "base", "flat"], d)
        read = sum(n for _, n in s.commands("Read"))
        if read > 4 * MIB:
            raise Fail(f"{read} bytes read of a disk that has 128 KiB")
        image(d, "t", "1G", "write -P 3 2M 64k", backing=s.uri, backing_format="raw")
        s.clear()
        run(qmeld, d, "compare", "-f", "raw", "-F", "raw", s.uri, "flat")
        read = sum(n for _, n in s.commands("Read"))
        if read > 4 * MIB:
            raise Fail(f"{read} bytes read for a comparison")


@case
def a_flush_at_every_barrier(qmeld, d):
    """As many as syncs of the file, were it one; and none of what was written comes after the last."""
    if not shutil.which("strace"):
        print("  skip: no strace")
        return
    for fmt in ("raw", "qcow2"):
        sub = os.path.join(d, fmt)
        os.mkdir(sub)
        path = simple(sub, fmt, 40 * MIB)
        shutil.copy(path, os.path.join(sub, "copy"))
        image(sub, "u", "16M", "write -P 3 2M 4M", "write -z 9M 512k", "write -P 4 15M 64k",
              backing=os.path.join(sub, "copy"), backing_format=fmt)
        r = oracle.run(["strace", "-f", "-y", "-e", "trace=fdatasync,fsync", "-o", "trace", qmeld, "commit", "u"], sub,
                       env={"ASAN_OPTIONS": "detect_leaks=0"})
        if r.rc != 0:
            raise Fail(r.err)
        with open(os.path.join(sub, "trace"), encoding="utf-8") as f:
            syncs = len(re.findall(rf"fdatasync\(\d+<{re.escape(sub)}/copy>\)", f.read()))
        with Server(sub, path, log=True) as s:
            overlay(sub, s, fmt)
            s.clear()
            run(qmeld, sub, "commit", "t")
            flushes = len(s.commands("Flush"))
            if not syncs or flushes < syncs:
                raise Fail(f"{fmt}: {flushes} flushes, and {syncs} syncs of a file")
            with open(s.log, encoding="utf-8") as f:
                words = re.findall(r" (Write|Zero|Flush) id=", f.read())
            if words[-1] != "Flush":
                raise Fail(f"{fmt}: the last is {words[-1]}")


@case
def blocks_of_4_kib(qmeld, d):
    """A server that refuses all that is not aligned; many threads write parts of its blocks."""
    with Server(d, simple(d, "qcow2", 24 * MIB), "--filter=blocksize-policy", "blocksize-minimum=4096",
                "blocksize-preferred=4096", "blocksize-maximum=64K", "blocksize-error-policy=error") as s:
        image(d, "t", "16M", *[f"write -P {1 + i % 200} {i * 40960} 512" for i in range(300)],
              backing=s.uri, backing_format="qcow2", options=["-o", "cluster_size=512"])
        want = oracle.view("t", "qcow2", d)
        run(qmeld, d, "commit", "--threads=8", "t")
        same(oracle.view(s.uri, "qcow2", d), want, "base")
        if oracle.check(s.uri, cwd=d)[0] != 0:
            raise Fail("qemu-img check finds something")


# ---- refusals ----

@case
def read_only(qmeld, d):
    with Server(d, simple(d), "-r") as s:
        overlay(d, s)
        before = oracle.digest(os.path.join(d, "base"))
        run(qmeld, d, "plan", "t", rc=2, says="read-only")
        run(qmeld, d, "commit", "t", rc=2, says="read-only")
        if oracle.digest(os.path.join(d, "base")) != before:
            raise Fail("it was written to")
        no_journal(d)


@case
def no_flush(qmeld, d):
    path = simple(d)
    with Server(d, path, "eval", "get_size=echo 16M", f"pread=dd if={path} skip=$4 count=$3 iflag=skip_bytes,count_bytes",
                f"pwrite=dd of={path} seek=$4 oflag=seek_bytes conv=notrunc", "can_write=exit 0") as s:
        image(d, "t", "16M", "write -P 3 2M 64k", backing=s.uri, backing_format="raw")
        run(qmeld, d, "commit", "t", rc=2, says="no flush")
        run(qmeld, d, "flatten", "-O", "raw", "t", "flat")


@case
def too_small(qmeld, d):
    for fmt in ("raw", "qcow2"):
        sub = os.path.join(d, fmt)
        os.mkdir(sub)
        with Server(sub, simple(sub, fmt), log=True) as s:
            image(sub, "t", "20M", "write -P 3 2M 6M", backing=s.uri, backing_format=fmt)
            s.clear()
            for command in ("plan", "commit"):
                r = run(qmeld, sub, command, "t", rc=2, says="are needed: enlarge it by")
                if "NBD export" not in r.err:
                    raise Fail(r.err)
            if s.commands("Write") + s.commands("Zero"):
                raise Fail("something was written")
            no_journal(sub)
            if fmt == "qcow2":  # so many bytes are enough
                r = run(qmeld, sub, "plan", "t", rc=2)
                need = int(re.search(r"(\d+) are needed", r.err)[1])
                s.stop()
                pad(s.image, need)
                s.start()
                run(qmeld, sub, "commit", "t")


@case
def no_server(qmeld, d):
    run(qmeld, d, "info", f"nbd+unix:///?socket={d}/none", rc=1, says="cannot connect")
    run(qmeld, d, "info", "nbd://127.0.0.1:1", rc=1, says="cannot connect")
    run(qmeld, d, "info", "nbd:nonsense", rc=2, says="not the name of an NBD export")
    image(d, "t", "16M")
    oracle.must(["qemu-img", "rebase", "-u", "-b", f"nbd:unix:{d}/none", "-F", "raw", "t"], d)
    run(qmeld, d, "commit", "t", rc=(1, 2), says="backing file of t")


@case
def a_loop(qmeld, d):
    path = image(d, "a", "16M")
    with Server(d, path) as s:
        oracle.must(["qemu-img", "rebase", "-u", "-b", f"nbd:unix:{s.socket}", "-F", "qcow2", "a"], d)
        run(qmeld, d, "info", s.uri, rc=(1, 2), says="loop")


@case
def no_nbd_server(qmeld, d):
    """Garbage, silence, and a hangup instead of a handshake."""
    for words in (b"HTTP/1.0 400 no\r\n\r\n" * 100, None, b""):
        path = os.path.join(d, "strange")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()

            def serve(listener=listener, words=words):
                try:
                    c, _ = listener.accept()
                except OSError:
                    return
                with c:
                    if words:
                        c.sendall(words)
                    if words is None:
                        time.sleep(3)
            t = threading.Thread(target=serve)
            t.start()
            run(qmeld, d, "info", f"nbd+unix:///?socket={path}", rc=1, env={"QMELD_TEST_NBD_PATIENCE": "1000"}
                if words is None and tests_build(qmeld) else None, timeout=60)
            t.join()
        os.unlink(path)


def tests_build(qmeld):
    with open(qmeld, "rb") as f:
        return b"QMELD_TEST_NBD_PATIENCE" in f.read()


# ---- failures ----

def interrupted(qmeld, d, s, want, again):
    """What must hold after a failure, and that the same command ends it."""
    s.stop(signal.SIGKILL)
    again()
    same(oracle.view("t", "qcow2", d), want, "top after the failure")
    if any(n.endswith(".qmeld") for n in os.listdir(d)):
        run(qmeld, d, "status", "t", rc=3)
    run(qmeld, d, "commit", "t")
    same(oracle.view("t", "qcow2", d), want, "top")
    no_journal(d)


def failing(qmeld, d, how):
    """how(server, process) disturbs a merge that takes two seconds."""
    for fmt in ("raw", "qcow2"):
        sub = os.path.join(d, fmt)
        os.mkdir(sub)
        path = simple(sub, fmt, 40 * MIB)
        s = Server(sub, path, "--filter=delay", "wdelay=40ms", start=False)
        plain = Server(sub, path, start=False)
        plain.socket, plain.uri = s.socket, s.uri
        with plain, s:
            plain.start()
            image(sub, "t", "16M", *[f"write -P {7 + i} {i * 300 + 100}k 256k" for i in range(50)], backing=s.uri,
                  backing_format=fmt)
            want = oracle.view("t", "qcow2", sub)
            plain.stop()
            s.start()
            with subprocess.Popen([qmeld, "commit", "--threads=2", "t"], cwd=sub, stderr=subprocess.PIPE,
                                  stdout=subprocess.DEVNULL, text=True,
                                  env=dict(os.environ, QMELD_TEST_NBD_PATIENCE="1500")) as p:
                time.sleep(0.7)
                how(s, p)
                _, err = p.communicate(timeout=60)
            if p.returncode not in (3, -signal.SIGKILL):
                raise Fail(f"{fmt}: rc {p.returncode}: {err}")
            if p.returncode == 3 and s.socket not in err:
                raise Fail(f"{fmt}: does not name the export: {err}")
            if p.returncode == 3 and not re.search("reset|timed out|[Ee]rror", err):
                raise Fail(f"{fmt}: does not say why: {err}")
            interrupted(qmeld, sub, s, want, plain.start)
            same(oracle.view(plain.uri, fmt, sub), want, "base")
            if fmt == "qcow2" and oracle.check(plain.uri, cwd=sub)[0] != 0:
                raise Fail("qemu-img check finds something")


@case
def the_server_is_killed(qmeld, d):
    failing(qmeld, d, lambda s, p: s.process.kill())


@case
def the_client_is_killed(qmeld, d):
    failing(qmeld, d, lambda s, p: p.kill())


@case
def the_server_falls_silent(qmeld, d):
    if not tests_build(qmeld):
        print("  (only test builds lose patience so soon)")
        return
    failing(qmeld, d, lambda s, p: s.process.send_signal(signal.SIGSTOP))


@case
def errors(qmeld, d):
    """Of each kind of command in turn; a merge that hears of one fails, and the next one ends it."""
    for n, (kind, code) in enumerate((("pwrite", "EIO"), ("zero", "EIO"), ("pread", "EIO"),
                                      ("pwrite", "ENOSPC"), ("extents", "EIO"), ("trim", "EIO"))):
        for fmt in ("raw", "qcow2"):
            sub = os.path.join(d, f"{n}{fmt}")
            os.mkdir(sub)
            with Server(sub, simple(sub, fmt, 40 * MIB), "--filter=error", f"error={code}",
                        f"error-{kind}-rate=1", f"error-file={sub}/now") as s:
                overlay(sub, s, fmt)
                want = oracle.view("t", "qcow2", sub)
                open(os.path.join(sub, "now"), "w").close()
                r = run(qmeld, sub, "commit", "t", rc=None)
                os.unlink(os.path.join(sub, "now"))
                if r.rc not in (0, 1, 2, 3) or (r.rc == 0 and kind == "pwrite"):
                    raise Fail(f"{kind} fails, rc {r.rc}: {r.err}")
                same(oracle.view("t", "qcow2", sub), want, f"{kind}: top")
                run(qmeld, sub, "commit", "t")
                same(oracle.view(s.uri, fmt, sub), want, f"{kind}: base")
                if fmt == "qcow2" and oracle.check(s.uri, cwd=sub)[0] != 0:
                    raise Fail(f"{kind}: qemu-img check finds something")
                no_journal(sub)


# ---- random chains ----

SERVERS = (("nbdkit",), ("qemu-nbd",), ("nbdkit", "--filter=noextents"), ("nbdkit", "--filter=nozero"),
           ("nbdkit", "--filter=blocksize-policy", "blocksize-minimum=4096", "blocksize-preferred=4096",
            "blocksize-maximum=128K", "blocksize-error-policy=error"),
           ("nbdkit", "--filter=nozero", "zeromode=notrim"), ("nbdkit", "--filter=fua", "fuamode=discard"))


def random_writes(rng, size):
    for _ in range(rng.randrange(1, 12)):
        off = rng.randrange(0, size // 512) * 512
        length = min(size - off, rng.choice((512, 4096, 65536, 300 * KIB, 2 * MIB)))
        yield f"write {'-z' if rng.random() < 0.2 else '-P %d' % rng.randrange(1, 255)} {off} {length}"


def random_chain(seed, qmeld, d):
    rng = random.Random(seed)
    n = rng.randrange(2, 5)
    formats = [rng.choice(("raw", "qcow2"))] + ["qcow2"] * (n - 1)
    places, servers = [], []
    try:
        for i in range(n):
            size = rng.choice((8, 12, 16)) * MIB + rng.choice((0, 512, 65536))
            options = ["-o", f"cluster_size={rng.choice((4096, 65536, 65536, 262144))}"] if i or formats[0] == "qcow2" \
                else []
            os.mkdir(os.path.join(d, str(i)))  # beside each other they would be found as each other's siblings
            path = image(d, f"{i}/disk", size, *random_writes(rng, size), backing=places[-1] if i else None,
                         backing_format=formats[i - 1], fmt=formats[i], options=options)
            if rng.random() < 0.7:
                pad(path, 48 * MIB if formats[i] == "qcow2" else 16 * MIB + 65536)
                kind, *more = rng.choice(SERVERS)
                servers.append(Server(d, path, *more, kind=kind))
                places.append(servers[-1].uri)
            else:
                places.append(path)
        base, top = sorted(rng.sample(range(n), 2))
        views = [oracle.view(p, f, d) for p, f in zip(places, formats)]
        os.mkdir(os.path.join(d, "j"))
        options = ["--journal-dir=j", f"--base=[{base + 1}]", f"--top=[{top + 1}]", f"--threads={rng.randrange(1, 9)}"]
        options += rng.sample(["--verify", "--skip-equal", "--detect-zeroes", "--decompress"], rng.randrange(0, 3))
        if rng.random() < 0.3:
            options += rng.choice((["--overlays=empty"], ["--reclaim"]))
        print_case = f"{places}, {options}"
        options += [f"--allow-path={p}" for p in places]
        run(qmeld, d, "plan", *options, places[-1])
        r = run(qmeld, d, "commit", *options, places[-1], rc=None)
        if r.rc != 0:
            raise Fail(f"{print_case}: rc {r.rc}: {r.err}")
        same(oracle.view(places[-1], formats[-1], d), views[-1], f"{print_case}: active layer")
        same(oracle.view(places[top], formats[top], d), views[top], f"{print_case}: top")
        got = oracle.view(places[base], formats[base], d)
        same(got[:len(views[top])], views[top], f"{print_case}: base")
        for i in range(n):
            if formats[i] == "qcow2" and oracle.check(places[i], cwd=d)[0] != 0:
                raise Fail(f"{print_case}: qemu-img check finds something in {i}")
        no_journal(os.path.join(d, "j"))
    finally:
        for s in servers:
            s.stop(signal.SIGKILL)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    p.add_argument("cases", nargs="*", metavar="CASE")
    p.add_argument("--chains", type=int)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--keep", action="store_true")
    opts = p.parse_args()
    oracle.need("qemu-img", "qemu-io", "qemu-nbd", "nbdkit")
    qmeld, folder, bad = oracle.qmeld_program(), oracle.scratch(None), 0
    if "was built without" in oracle.run([qmeld, "info", "nbd:unix:/none"], folder).err:
        oracle.die_skip("this qmeld has no libnbd")
    jobs = [(n, CASES[n]) for n in opts.cases or ([] if opts.chains else CASES)]
    chains = opts.chains or (0 if opts.cases else 8)
    jobs += [(f"chain{n}", lambda q, d, n=n: random_chain(n, q, d)) for n in range(opts.seed, opts.seed + chains)]
    for name, test in jobs:
        d = os.path.join(folder, name[:20])
        os.mkdir(d)
        start = time.time()
        try:
            test(qmeld, d)
            print(f"pass {name} {time.time() - start:.1f} s", flush=True)
        except (Fail, oracle.Broken) as e:
            print(f"FAIL {name}: {e}", flush=True)
            bad += 1
        if not opts.keep:
            shutil.rmtree(d, ignore_errors=True)
    if opts.keep:
        print(f"kept in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
