# SPDX-License-Identifier: LGPL-2.1-or-later
"""Images for measuring: large ones, written in seconds.

qemu-img makes an image as fast as it writes it, and the forge wants a picture of each cluster.
What a benchmark needs is many gigabytes of clusters at places that a seed chooses, so this writer lays
tables and data out itself and writes them in long pieces.  What it writes is sound: refcounts, COPIED
flags, lengths; tools/bench has qemu-img check the first image of each workload.

Places: a run is (guest cluster, clusters); runs are allocated in the order in which they are given, as
a guest that wrote them in that order would have it, L2 tables in between.
"""

import array
import collections
import ctypes
import ctypes.util
import math
import os
import random
import struct
import sys
import zlib

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
COPIED, COMPRESSED = 1 << 63, 1 << 62
REFCOUNT_BITS = 16
IOV_MAX = 256


def be64s(values):
    """array('Q') as the bytes of big-endian numbers."""
    values = array.array("Q", values)
    if sys.byteorder == "little":
        values.byteswap()
    return values.tobytes()


class Content:
    """Bytes that no codec shrinks: pieces of one random pool, chosen by layer and guest offset, so that a
    cluster in the wrong place is seen."""

    def __init__(self, seed=1, length=16 * MIB):
        self.pool = memoryview(random.Random(seed).randbytes(length))

    def of(self, layer, guest_cluster, length):
        mix = (guest_cluster * 0x9E3779B97F4A7C15 + layer * 0xC2B2AE3D27D4EB4F) % (1 << 64)
        off = (mix >> 20) % ((len(self.pool) - length) // 512 + 1) * 512
        return self.pool[off:off + length]


class Payloads:
    """Compressed clusters: some dozen different ones, of random hexadecimal digits, so that a codec has
    work to do and comes to somewhat over a half."""

    def __init__(self, codec, cluster, seed=1, count=64):
        rng = random.Random(seed)
        compress = zlib_raw if codec == "zlib" else zstd_frame
        self.codec = codec
        self.all = [compress(rng.randbytes(cluster // 2).hex().encode()) for _ in range(count)]

    def of(self, layer, guest_cluster):
        return self.all[(guest_cluster * 2654435761 + layer * 40503) % len(self.all)]


def zlib_raw(data):
    """As QEMU has it: a raw stream with a window of 4 KiB (specification, "Compressed Clusters")."""
    c = zlib.compressobj(1, zlib.DEFLATED, -12)
    return c.compress(data) + c.flush()


def zstd_frame(data):
    lib = ctypes.CDLL(ctypes.util.find_library("zstd") or "libzstd.so.1")
    lib.ZSTD_compress.restype = ctypes.c_size_t
    lib.ZSTD_compress.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p,
                                  ctypes.c_size_t, ctypes.c_int]
    out = ctypes.create_string_buffer(len(data) + 1024)
    n = lib.ZSTD_compress(out, len(out), data, len(data), 1)
    if n > len(out):
        raise RuntimeError("zstd cannot compress")
    return out.raw[:n]


class Pieces:
    """Writes pieces that follow each other in one call."""

    def __init__(self, fd):
        self.fd, self.at, self.end, self.parts = fd, 0, 0, []

    def add(self, off, data):
        if off != self.end or len(self.parts) >= IOV_MAX:
            self.flush()
            self.at = self.end = off
        self.parts.append(data)
        self.end += len(data)

    def flush(self):
        off, parts = self.at, self.parts
        while parts:
            n = os.pwritev(self.fd, parts, off)
            off += n
            while parts and n >= len(parts[0]):
                n -= len(parts.pop(0))
            if parts and n:
                parts[0] = memoryview(parts[0])[n:]
        self.parts = []


class Qcow2:
    """One image while it is written."""

    def __init__(self, path, size, bits, layer):
        self.cluster, self.bits, self.size, self.layer = 1 << bits, bits, size, layer
        self.per_l2 = self.cluster // 8
        self.l1_entries = -(-size // (self.cluster * self.per_l2))
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        self.out = Pieces(self.fd)
        self.used = 1 + max(1, -(-self.l1_entries * 8 // self.cluster))  # header, L1
        self.tables = {}  # index in the L1: (place, entries)
        self.refs = collections.Counter()  # clusters that count more than once

    def table(self, index):
        if index not in self.tables:
            self.tables[index] = (self.used, array.array("Q", bytes(self.cluster)))
            self.used += 1
        return self.tables[index][1]

    def run(self, first, count, content):
        """Allocates and writes count clusters from guest cluster `first` on; without content: holes."""
        for guest in range(first, first + count):
            entries = self.table(guest // self.per_l2)
            host = self.used << self.bits
            entries[guest % self.per_l2] = COPIED | host
            self.used += 1
            if content:
                self.out.add(host, content.of(self.layer, guest, self.cluster))

    def compressed(self, runs, payloads):
        """Packs payloads as QEMU does: one behind the other, counted by every cluster they touch."""
        for first, count in runs:
            for guest in range(first, first + count):
                self.table(guest // self.per_l2)
        pos = self.used << self.bits
        x = 62 - (self.bits - 8)
        for first, count in runs:
            for guest in range(first, first + count):
                data = payloads.of(self.layer, guest)
                end = pos + len(data)
                sectors = (end - 1) // 512 - pos // 512
                self.table(guest // self.per_l2)[guest % self.per_l2] = \
                    COMPRESSED | sectors << x | pos
                self.out.add(pos, data)
                for k in range(pos >> self.bits, (end - 1 >> self.bits) + 1):
                    self.refs[k] += 1
                pos = end
        self.used = -(-pos >> self.bits)

    def finish(self, backing, backing_format, codec):
        """Tables, refcounts, header; the file's length."""
        self.out.flush()
        for place, entries in self.tables.values():
            os.pwrite(self.fd, be64s(entries), place << self.bits)
        l1 = array.array("Q", bytes(8 * self.l1_entries))
        for index, (place, _) in self.tables.items():
            l1[index] = COPIED | place << self.bits
        self.put_sparse(self.cluster, be64s(l1))
        reftable, reftable_clusters = self.put_refcounts()
        self.put_header(reftable, reftable_clusters, backing, backing_format, codec)
        os.ftruncate(self.fd, self.used << self.bits)
        os.close(self.fd)

    def put_sparse(self, off, data):
        for i in range(0, len(data), 4096):
            piece = data[i:i + 4096]
            if piece.count(0) != len(piece):
                os.pwrite(self.fd, piece, off + i)

    def put_refcounts(self):
        per_block = self.cluster * 8 // REFCOUNT_BITS
        data_end, blocks, table = self.used, 0, 1
        while True:
            total = data_end + table + blocks
            blocks_now, table_now = -(-total // per_block), -(-blocks * 8 // self.cluster) or 1
            if (blocks_now, table_now) == (blocks, table):
                break
            blocks, table = blocks_now, table_now
        counts = array.array("H", b"\1\0" * total) if sys.byteorder == "little" else \
            array.array("H", b"\0\1" * total)
        for cluster, n in self.refs.items():
            counts[cluster] = n
        if sys.byteorder == "little":
            counts.byteswap()
        first = data_end + table
        os.pwrite(self.fd, be64s((first + i) << self.bits for i in range(blocks)),
                  data_end << self.bits)
        os.pwrite(self.fd, counts.tobytes(), first << self.bits)
        self.used = total
        return data_end << self.bits, table

    def put_header(self, reftable, reftable_clusters, backing, backing_format, codec):
        zstd = codec == "zstd"
        extensions = b""
        if backing_format:
            name = backing_format.encode()
            extensions = struct.pack(">II", 0xE2792ACA, len(name)) + name + bytes(-len(name) % 8)
        extensions += bytes(8)
        name = (backing or "").encode()
        header = struct.pack(
            ">4sIQIIQIIQQIIQQQQIIB7x", b"QFI\xfb", 3,
            112 + len(extensions) if name else 0, len(name), self.bits, self.size, 0,
            self.l1_entries, self.cluster, reftable, reftable_clusters, 0, 0,
            8 if zstd else 0, 0, 0, 4, 112, int(zstd))
        os.pwrite(self.fd, header + extensions + name, 0)


def qcow2(path, size, runs, bits=16, backing=None, backing_format=None, layer=0, content=None,
          payloads=None):
    """content None and payloads None: the data clusters are holes of the file."""
    q = Qcow2(path, size, bits, layer)
    if payloads:
        q.compressed(runs, payloads)
    else:
        for first, count in runs:
            q.run(first, count, content)
    q.finish(backing, backing_format, payloads.codec if payloads else None)


def raw(path, size, runs, bits=16, layer=0, content=None):
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
    out = Pieces(fd)
    for first, count in runs:
        for guest in range(first, first + count):
            out.add(guest << bits, content.of(layer, guest, 1 << bits))
    out.flush()
    os.ftruncate(fd, size)
    os.close(fd)


def scatter(rng, size, amount, extent, bits=16):
    """Runs of `extent` bytes at different places, `amount` bytes in all, in the order of a random guest."""
    per = max(1, extent >> bits)
    slots = size // (per << bits)
    want = min(slots, max(1, math.ceil(amount / (per << bits))))
    return [(slot * per, per) for slot in rng.sample(range(slots), want)]
