# SPDX-License-Identifier: LGPL-2.1-or-later
"""A disk whose writes are on record, so that its power can fail at any moment, and in any legal way.

A loop device lies on the one file of a FUSE file system that is served from here.  So each write, hole and flush
that the kernel gives to the device passes by, in order.  What a power failure may leave is then made from the record:
all up to the last flush that was answered, and of what came after it anything.  Device mapper's log-writes does the
same where a kernel has it; this needs /dev/fuse and loop devices.
"""

import bisect
import ctypes
import errno
import mmap
import os
import shutil
import signal
import struct
import time

import oracle

WRITE, HOLE, FLUSH = 1, 2, 3
PAGE = 4096
RECORD = struct.Struct("<IIQ")  # kind, length, offset; a write's bytes follow
# of the memory that is shared with the server
RECORDING, LOGGED = range(2)
LIBC = ctypes.CDLL(None, use_errno=True)

# the protocol of /dev/fuse, linux/fuse.h
LOOKUP, FORGET, GETATTR, SETATTR, OPEN, READ, FUSE_WRITE, STATFS, RELEASE, FSYNC = 1, 2, 3, 4, 14, 15, 16, 17, 18, 20
FUSE_FLUSH, INIT, OPENDIR, RELEASEDIR, INTERRUPT, DESTROY, BATCH_FORGET, FALLOCATE = 25, 26, 27, 29, 36, 38, 42, 43
FOPEN_DIRECT_IO, FUSE_MAX_PAGES = 1, 1 << 22
MOST = 1 << 20


class Server:
    """Answers the kernel, in a process of its own, until the file system is unmounted."""

    def __init__(self, fuse, size, now, log, control):
        self.fuse, self.size, self.now, self.log, self.control = fuse, size, now, log, control

    def attributes(self, node):
        mode, size = (0o100600, self.size) if node == 2 else (0o040700, 0)
        return struct.pack("<6Q10I", node, size, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, PAGE, 0)

    def note(self, kind, off, length, data=b""):
        if self.control[RECORDING]:
            os.write(self.log, RECORD.pack(kind, length, off) + data)
            self.control[LOGGED] += RECORD.size + len(data)

    def answer(self, op, node, body):
        """(errno, bytes), or None: wants no answer"""
        if op == INIT:
            return 0, struct.pack("<4I2H2I2H8I", 7, 31, MOST, FUSE_MAX_PAGES, 16, 12, MOST, 1, MOST // PAGE, 0,
                                  *[0] * 8)
        if op == LOOKUP:
            if body != b"disk\0":
                return errno.ENOENT, b""
            return 0, struct.pack("<4Q2I", 2, 0, 3600, 3600, 0, 0) + self.attributes(2)
        if op in (GETATTR, SETATTR):
            return 0, struct.pack("<Q2I", 3600, 0, 0) + self.attributes(node)
        if op in (OPEN, OPENDIR):
            return 0, struct.pack("<Q2I", 0, FOPEN_DIRECT_IO, 0)
        if op == STATFS:
            return 0, struct.pack("<5Q4I24x", 0, 0, 0, 0, 0, PAGE, 255, PAGE, 0)
        if op in (RELEASE, RELEASEDIR, FUSE_FLUSH, DESTROY):
            return 0, b""
        if op in (FORGET, BATCH_FORGET, INTERRUPT):
            return None
        return self.data(op, body)

    def data(self, op, body):
        if op == READ:
            _, off, length = struct.unpack_from("<QQI", body)
            return 0, os.pread(self.now, length, off)
        if op == FUSE_WRITE:
            _, off, length = struct.unpack_from("<QQI", body)
            self.note(WRITE, off, length, body[40:40 + length])
            os.pwrite(self.now, body[40:40 + length], off)
            return 0, struct.pack("<2I", length, 0)
        if op == FALLOCATE:
            _, off, length = struct.unpack_from("<QQQ", body)
            self.note(HOLE, off, length)
            punch(self.now, off, length)
            return 0, b""
        if op == FSYNC:
            self.note(FLUSH, 0, 0)
            return 0, b""
        return errno.ENOSYS, b""

    def serve(self):
        while True:
            try:
                request = os.read(self.fuse, MOST + 2 * PAGE)
            except OSError as e:
                if e.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue
                return  # ENODEV: unmounted
            _, op, unique, node = struct.unpack_from("<IIQQ", request)
            answer = self.answer(op, node, request[40:])
            if answer is not None:
                failed, data = answer
                try:
                    os.write(self.fuse, struct.pack("<IiQ", 16 + len(data), -failed, unique) + data)
                except OSError as e:
                    if e.errno != errno.ENOENT:  # who asked has gone
                        return


def punch(fd, off, length):
    # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
    if LIBC.fallocate(fd, 3, ctypes.c_long(off), ctypes.c_long(length)) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")


class Disk:
    """A loop device, .device, of so many bytes.  Its record is empty until begin()."""

    def __init__(self, folder, size, sector=512):
        self.folder, self.size = folder, size
        self.at, self.now = os.path.join(folder, "fuse"), os.path.join(folder, "now")
        self.before, self.log = os.path.join(folder, "before"), os.path.join(folder, "log")
        os.mkdir(self.at)
        now = os.open(self.now, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(now, size)
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.control = memoryview(mmap.mmap(-1, PAGE)).cast("Q")
        try:
            fuse = os.open("/dev/fuse", os.O_RDWR)
        except OSError as e:
            oracle.die_skip(f"no FUSE here: {e}")
        options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0".encode()
        if LIBC.mount(b"disk", os.fsencode(self.at), b"fuse", 0, options) != 0:
            oracle.die_skip(f"no FUSE here: mount: {os.strerror(ctypes.get_errno())}")
        self.pid = os.fork()
        if self.pid == 0:
            try:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                Server(fuse, size, now, log, self.control).serve()
            finally:
                os._exit(0)
        for fd in (fuse, now, log):
            os.close(fd)
        r = oracle.run(["losetup", "-f", "--show", "-b", str(sector), os.path.join(self.at, "disk")])
        if r.rc != 0:
            self.end_server()
            oracle.die_skip(f"no loop devices here: {r.err.strip()}")
        self.device = r.out.strip()

    def begin(self):
        """What is on the disk now is all there, and is what the record begins with."""
        self.control[RECORDING] = 0
        os.truncate(self.log, 0)
        self.control[LOGGED] = 0
        oracle.must(["cp", "--sparse=always", self.now, self.before])
        self.control[RECORDING] = 1

    def moment(self):
        """A place in the record: all that was written until now is in front of it."""
        return self.control[LOGGED]

    def end_server(self):
        for _ in range(100):
            if LIBC.umount2(os.fsencode(self.at), 0) == 0:
                break
            time.sleep(0.05)
        else:
            LIBC.umount2(os.fsencode(self.at), 2)  # MNT_DETACH
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def close(self):
        oracle.must(["losetup", "-d", self.device])
        self.end_server()


class Record:
    """What happened to a disk, from begin() to now."""

    def __init__(self, disk):
        self.disk, self.ops, self.ends, self.flushes = disk, [], [], []
        with open(disk.log, "rb") as f:
            while True:
                head = f.read(RECORD.size)
                if len(head) < RECORD.size:
                    break
                kind, length, off = RECORD.unpack(head)
                if kind == FLUSH:
                    self.flushes.append(len(self.ops))
                self.ops.append((kind, off, length, f.tell()))
                if kind == WRITE:
                    f.seek(length, os.SEEK_CUR)
                self.ends.append(f.tell())

    def index(self, moment):
        """How many operations were over at that moment."""
        return bisect.bisect_right(self.ends, moment)

    def parts(self, rng, at, way):
        """What of the first `at` operations is on the disk: (operation, from, to) in bytes of it."""
        i = bisect.bisect_right(self.flushes, at - 1)
        flushed = self.flushes[i - 1] if i else 0
        for n in range(at):
            kind, _, length, _ = self.ops[n]
            if kind == FLUSH:
                continue
            if n < flushed or way == "all":
                yield n, 0, length
            elif way == "some" and rng.random() < 0.5:
                yield n, 0, length
            elif way == "but-one-page" and rng.random() < 0.9:
                yield n, 0, length
            elif way == "pages" and kind == WRITE:
                for page in range(0, length, PAGE):
                    if rng.random() < 0.5:
                        yield n, page, min(page + PAGE, length)

    def cut(self, rng, at, way, path):
        """Makes path the disk as a power failure after `at` operations leaves it."""
        oracle.must(["cp", "--sparse=always", self.disk.before, path])
        with open(self.disk.log, "rb") as log, open(path, "r+b", buffering=0) as out:
            for n, start, end in self.parts(rng, at, way):
                kind, off, length, pos = self.ops[n]
                if kind == HOLE:
                    punch(out.fileno(), off, length)
                else:
                    log.seek(pos + start)
                    out.seek(off + start)
                    out.write(log.read(end - start))


WAYS = ["all", "none", "some", "pages", "but-one-page"]


def remove(folder):
    shutil.rmtree(folder, ignore_errors=True)
