# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the oracle suites share: running tools, and a small qcow2 reader of our own.

qemu-img and qemu-io are the oracle: they say what an image reads as and whether it is clean.  The
reader here looks at what they do not print (single table entries, header extensions, bitmap
bits) and pokes images into states no tool makes.  It shares no code with qmeld, and trusts its
input: it only ever sees images that these suites made.
"""

import collections
import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SKIP = 77
EXT_END, EXT_FORMAT, EXT_BITMAPS = 0, 0xE2792ACA, 0x23852875
OFFSET_MASK = 0x00FFFFFFFFFFFE00
KIB, MIB = 1024, 1024 * 1024

Result = collections.namedtuple("Result", "rc out err")


class Fail(Exception):
    """The tool under test is wrong."""


class Broken(Exception):
    """The test could not set its stage: not the tool's fault, still a failure."""


def die_skip(why):
    print(f"skip: {why}")
    sys.exit(SKIP)


def need(*tools):
    for tool in tools:
        if not shutil.which(tool):
            die_skip(f"{tool} is not installed")


def find_program(name, *presets):
    """QMELD=/path (or FORGE=...) wins; else the first build that has it."""
    given = os.environ.get(name.upper())
    if given:
        return os.path.abspath(given)
    for preset in presets or ("dev", "release", "plain"):
        for sub in ("", "tools", "tests"):
            path = os.path.join(ROOT, "build", preset, sub, name)
            if os.access(path, os.X_OK):
                return path
    return None


def qmeld_program(*presets):
    path = find_program("qmeld", *presets)
    if not path:
        die_skip("qmeld is not built: set QMELD or build a preset")
    return path


def scratch(parent=None):
    """A fresh directory; in memory if there is room, as a merge syncs often."""
    if parent is None and not os.environ.get("TMPDIR"):
        try:
            st = os.statvfs("/dev/shm")
            if st.f_bavail * st.f_frsize > 2 << 30 and os.access("/dev/shm", os.W_OK):
                parent = "/dev/shm"
        except OSError:
            pass
    return tempfile.mkdtemp(prefix="qmeld-oracle.", dir=parent)


def run(argv, cwd=None, timeout=180, env=None, stdin=None):
    full = dict(os.environ, LC_ALL="C")
    full.update(env or {})
    try:
        p = subprocess.run(argv, cwd=cwd, timeout=timeout, env=full, input=stdin,
                           stdin=None if stdin is not None else subprocess.DEVNULL,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except subprocess.TimeoutExpired:
        raise Fail(f"no end after {timeout} s: {' '.join(map(str, argv))}") from None
    out, err = (b.decode("utf-8", "backslashreplace") for b in (p.stdout, p.stderr))
    if "Sanitizer" in err or "runtime error:" in err:
        raise Fail(f"sanitizer report from {' '.join(map(str, argv))}\n{err[:4000]}")
    if p.returncode < 0 and p.returncode != -signal.SIGKILL:
        raise Fail(f"died of signal {-p.returncode}: {' '.join(map(str, argv))}\n{err[:2000]}")
    return Result(p.returncode, out, err)


# qemu-img times its key derivation by the clock of its processor, and gives up where a busy machine lets that stand still
UNTIMED = "Unable to get accurate CPU usage"


def must(argv, cwd=None, **kw):
    for _ in range(9):
        r = run(argv, cwd, **kw)
        if UNTIMED not in r.err:
            break
    if r.rc != 0:
        raise Broken(f"rc {r.rc}: {' '.join(map(str, argv))}\n{r.err or r.out}")
    return r


def qemu_io(path, commands, fmt="qcow2", cwd=None, strict=True):
    """All commands in one process.  strict: each must succeed."""
    argv = ["qemu-io", "-f", fmt]
    for c in commands:
        argv += ["-c", c]
    r = run(argv + [path], cwd)
    if "can't open" in r.err + r.out or (strict and r.rc != 0):
        raise Broken(f"rc {r.rc}: {' '.join(argv)} {path}\n{r.err}{r.out}")
    return r


def reads(path, commands, fmt="qcow2", cwd=None):
    """True if qemu-io can do all reads and every pattern matches."""
    argv = ["qemu-io", "-r", "-f", fmt]
    for c in commands:
        argv += ["-c", c]
    r = run(argv + [path], cwd)
    text = r.out + r.err
    return r.rc == 0 and "fail" not in text and "can't open" not in text


def view(path, fmt="qcow2", cwd=None, snapshot=None):
    """What the oracle reads from the image, chain included."""
    out = os.path.join(cwd or os.path.dirname(path), ".view.raw")
    argv = ["qemu-img", "convert", "-f", fmt, "-O", "raw"]
    if snapshot is not None:
        argv += ["-l", snapshot]
    r = run(argv + [path, out], cwd)
    if r.rc != 0:
        raise Fail(f"qemu-img cannot read {path}: {r.err.strip()}")
    try:
        with open(out, "rb") as f:
            return f.read()
    finally:
        os.unlink(out)


def check(path, fmt="qcow2", cwd=None):
    r = run(["qemu-img", "check", "-f", fmt, "--output=json", path], cwd)
    return r.rc, (json.loads(r.out) if r.out.strip().startswith("{") else {}), r.err


def digest(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


def digests(paths):
    return {p: digest(p) for p in paths if os.path.exists(p)}


def first_difference(a, b):
    if a == b:
        return None
    n = min(len(a), len(b))
    lo, hi = 0, n
    if a[:n] == b[:n]:
        return f"lengths {len(a)} and {len(b)}"
    while hi - lo > 1:
        mid = (lo + hi) // 2
        if a[lo:mid] == b[lo:mid]:
            lo = mid
        else:
            hi = mid
    return f"first at byte {lo} ({lo:#x}): {a[lo:lo + 16].hex()} and {b[lo:lo + 16].hex()}"


FIELDS = {  # name: (offset, length); the specification's header table
    "magic": (0, 4), "version": (4, 4), "bf_off": (8, 8), "bf_size": (16, 4),
    "cluster_bits": (20, 4), "size": (24, 8), "crypt": (32, 4), "l1_size": (36, 4),
    "l1_off": (40, 8), "rt_off": (48, 8), "rt_clusters": (56, 4), "nb_snap": (60, 4),
    "snap_off": (64, 8), "incompat": (72, 8), "compat": (80, 8), "autoclear": (88, 8),
    "refcount_order": (96, 4), "header_length": (100, 4), "comp_type": (104, 1),
}


class Qcow2:
    """One qcow2 file, read when asked, never kept open."""

    def __init__(self, path):
        self.path = path
        raw = self.get(0, 112)
        for name, (off, length) in FIELDS.items():
            setattr(self, name, int.from_bytes(raw[off:off + length], "big"))
        if self.version < 3:
            self.incompat = self.compat = self.autoclear = self.comp_type = 0
            self.refcount_order, self.header_length = 4, 72
        self.cs = 1 << self.cluster_bits
        self.extended = bool(self.incompat & 16)
        self.entry = 16 if self.extended else 8
        self.per_l2 = self.cs // self.entry

    def get(self, off, length):
        with open(self.path, "rb") as f:
            f.seek(off)
            b = f.read(length)
        return b + bytes(length - len(b))

    def put(self, off, data):
        with open(self.path, "r+b") as f:
            f.seek(off)
            f.write(data)

    def set(self, **fields):
        for name, value in fields.items():
            off, length = FIELDS[name]
            self.put(off, value.to_bytes(length, "big"))

    def extensions(self):
        """[(type, data)], up to the end marker."""
        area = self.get(0, self.cs)
        off, end, found = self.header_length, self.bf_off or self.cs, []
        while off + 8 <= end:
            kind, length = struct.unpack_from(">II", area, off)
            if kind == EXT_END:
                break
            found.append((kind, area[off + 8:off + 8 + length]))
            off += 8 + (length + 7) // 8 * 8
        return found

    def extension(self, kind):
        return next((d for k, d in self.extensions() if k == kind), None)

    def backing(self):
        """(name, format) as stored, or (None, None)."""
        if not self.bf_off or not self.bf_size:
            return None, None
        name = self.get(self.bf_off, self.bf_size).decode("utf-8", "surrogateescape")
        fmt = self.extension(EXT_FORMAT)
        return name, fmt.decode() if fmt is not None else None

    def rewrite_extensions(self, exts):
        """Lays the header cluster out anew with these extensions; False if they do not fit."""
        name = self.get(self.bf_off, self.bf_size) if self.bf_off else b""
        area = self.get(0, self.header_length)
        for kind, data in exts:
            area += struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)
        area += bytes(8)
        if len(area) + len(name) > self.cs:
            return False
        if self.bf_off:
            area = area[:8] + struct.pack(">Q", len(area)) + area[16:] + name
        self.put(0, area + bytes(self.cs - len(area)))
        self.__init__(self.path)
        return True

    def entry_at(self, guest):
        """(file offset of the L2 entry, entry, bitmap word); offset 0: no table."""
        index = guest // self.cs
        l1 = int.from_bytes(self.get(self.l1_off + 8 * (index // self.per_l2), 8), "big")
        table = l1 & OFFSET_MASK
        if not table:
            return 0, 0, 0
        off = table + index % self.per_l2 * self.entry
        raw = self.get(off, self.entry)
        return off, int.from_bytes(raw[:8], "big"), int.from_bytes(raw[8:], "big")

    def l2(self, guest):
        return self.entry_at(guest)[1]

    def set_l2(self, guest, entry, bitmap=None):
        off = self.entry_at(guest)[0]
        assert off, "no L2 table there"
        self.put(off, entry.to_bytes(8, "big"))
        if bitmap is not None:
            self.put(off + 8, bitmap.to_bytes(8, "big"))

    def mapped(self):
        """Number of guest clusters with an entry in the active tables."""
        n = 0
        for guest in range(0, self.size, self.cs * self.per_l2):
            off = self.entry_at(guest)[0]
            if off:
                table = self.get(off, self.cs)
                n += sum(any(table[i:i + self.entry]) for i in range(0, self.cs, self.entry))
        return n

    def bitmaps(self):
        """{name: (flags, granularity, bytes of bits)}; the image is trusted to be sound."""
        ext = self.extension(EXT_BITMAPS)
        if ext is None:
            return {}
        count, _, _, pos = struct.unpack(">IIQQ", ext)
        found = {}
        for _ in range(count):
            table, entries, flags, _, gran, name_len, extra = struct.unpack(
                ">QIIBBHI", self.get(pos, 24))
            name = self.get(pos + 24 + extra, name_len).decode()
            bits = b""
            for i in range(entries):
                e = int.from_bytes(self.get(table + 8 * i, 8), "big")
                if e & OFFSET_MASK:
                    bits += self.get(e & OFFSET_MASK, self.cs)
                else:
                    bits += (b"\xff" if e & 1 else b"\0") * self.cs
            n_bits = (self.size + (1 << gran) - 1) >> gran
            bits = bits[:(n_bits + 7) // 8]
            if n_bits % 8 and bits:  # bits past the end mean nothing
                bits = bits[:-1] + bytes([bits[-1] & ((1 << n_bits % 8) - 1)])
            found[name] = (flags, 1 << gran, bits)
            pos += (24 + extra + name_len + 7) // 8 * 8
        return found


def set_bits(bits):
    return {i * 8 + k for i, byte in enumerate(bits) if byte for k in range(8) if byte >> k & 1}


def build_shim(name, folder):
    """Compiles tests/oracle/NAME.c into a preloadable library."""
    out = os.path.join(folder, name + ".so")
    cc = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not cc:
        die_skip("no C compiler for the preload helper")
    must([cc, "-O1", "-shared", "-fPIC", "-o", out,
          os.path.join(ROOT, "tests", "oracle", name + ".c"), "-ldl"])
    return out


def unmount(at):
    """Somebody may still look at what is mounted there, for a moment."""
    for _ in range(100):
        r = run(["umount", at])
        if r.rc == 0:
            return
        time.sleep(0.1)
    raise Broken(f"cannot unmount {at}: {r.err}")
