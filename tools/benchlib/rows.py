# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is measured: workloads, and what is done with them.

A workload is a folder with a chain.  A row does one thing to it, with each of two programs in turn,
and says whether both came to the same.  A commit keeps its overlays, so only the base is made anew
for every run.
"""

import json
import os
import random

import images
import run
from images import GIB, KIB, MIB, TIB
from run import Cannot, Failed


class Chain:
    """A base and overlays: what to build, and where it is once it is built."""

    def __init__(self, key, size, overlays, each, extent, base="qcow2", based=0, codec=None):
        self.key, self.size, self.overlays, self.each, self.extent = key, size, overlays, each, extent
        self.base_format, self.based, self.codec = base, based, codec

    def scaled(self, f):
        """Amounts scale; virtual size, depth and extents are what the workload is about.  Sizes that are
        mostly data shrink along, so that scatter stays what it is."""
        size = self.size if self.size >= TIB else max(64 * MIB, int(self.size * f) // MIB * MIB)
        return Chain(self.key, size, self.overlays, max(self.extent, int(self.each * f)),
                     self.extent, self.base_format, int(self.based * f), self.codec)

    def build(self, folder):
        """Names in this process, files in another: what writing them takes of memory would be the floor of
        every program's peak that is started from here (ru_maxrss counts what was there before exec)."""
        self.folder = folder
        self.base = "base." + self.base_format
        self.pristine = "pristine." + self.base_format
        self.layers = [f"overlay{i + 1}.qcow2" for i in range(self.overlays)]
        self.top = ([self.base] + self.layers)[-1]
        run.in_child(self.write)
        if os.path.exists(self.at(self.pristine)):
            self.fresh()
        run.tool(["qemu-img", "check", "-q", self.at(self.top)], what="the writer of images")

    def write(self):
        rng, content = random.Random(7), images.Content()
        payloads = images.Payloads(self.codec, 64 * KIB) if self.codec else None
        based = images.scatter(rng, self.size, self.based, MIB) if self.based else []
        if self.base_format == "raw":
            images.raw(self.at(self.pristine), self.size, based, content=content)
        else:
            images.qcow2(self.at(self.pristine), self.size, based, content=content)
        below, kind = self.base, self.base_format
        for i, name in enumerate(self.layers):
            images.qcow2(self.at(name), self.size,
                         images.scatter(rng, self.size, self.each, self.extent), backing=below,
                         backing_format=kind, layer=i + 1, content=content, payloads=payloads)
            below, kind = name, "qcow2"

    def at(self, name):
        return os.path.join(self.folder, name)

    def files(self):
        return [self.at(name) for name in [self.base] + self.layers]

    def fresh(self):
        """The base as it was."""
        run.copy(self.at(self.pristine), self.at(self.base))

    def payload(self):
        return self.overlays * self.each

    def room(self):
        """Bytes that a row needs on the disk: overlays with their tables, base and its copies, results."""
        tables = min(self.size // (512 * MIB) + 1, self.each // self.extent) * self.overlays
        return 3 * (self.payload() + self.based + tables * 64 * KIB) + 64 * MIB


class Row:
    """One line of the table.  For each program in turn: prepare, argv, compare."""

    cold = False
    sample = False
    most_repeats = None
    no_reference = None  # why there is no reference to run

    def __init__(self, name, title, target, chain, fs="here"):
        self.name, self.title, self.target, self.chain, self.fs = name, title, target, chain, fs

    def needs(self, bench):
        """Raises Cannot if a program lacks what this row is about."""

    def prepare(self, who):
        """Before each run."""

    def command(self, program, who):
        """argv, and the files that it writes."""
        raise NotImplementedError

    def output(self, who):
        """Where the program's standard output goes; None: nowhere."""

    def settle(self, who):
        """After each run."""

    def compare(self, first):
        """After both have run: Failed if they do not agree.  first: of this row."""

    def moved(self):
        """The files whose data a copy of the same moves; none: it is not about that."""
        return []


class Commit(Row):
    """Everything into the base; overlays stay, so that they need not be built anew."""

    def __init__(self, *args, cold=False, direct=False, **kw):
        super().__init__(*args, **kw)
        self.cold, self.direct = cold, direct

    def prepare(self, who):
        self.chain.fresh()

    def command(self, program, who):
        c = self.chain
        if who == "qemu-img":
            # -d: an overlay that is kept, as with ours
            cache = ["-t", "none"] if self.direct else []
            return [program, "commit", "-q", "-d", *cache, "-b", c.base, c.top], [c.base]
        return [program, "commit", "-q", *(["--cache=none"] if self.direct else []), c.top], [c.base]

    def settle(self, who):
        os.replace(self.chain.at(self.chain.base), self.chain.at("result." + who))

    def compare(self, first):
        c = self.chain
        ours, theirs = c.at("result.qmeld"), c.at("result." + self.reference)
        same_content(ours, theirs, c.base_format)
        if first and c.base_format == "qcow2":
            run.tool(["qemu-img", "check", "-q", "-f", "qcow2", ours], what="check of our result")
        for path in (ours, theirs):
            os.unlink(path)

    def moved(self):
        return self.chain.layers


class Slow(Commit):
    """The reference takes minutes."""

    most_repeats = 2


class Map(Row):
    """qemu-img map and qmeld map print the same."""

    def prepare(self, who):
        if not os.path.exists(self.chain.at(self.chain.base)):
            self.chain.fresh()

    def command(self, program, who):
        return [program, "map", "--output=json", self.chain.top], []

    def output(self, who):
        return self.chain.at("map." + who)

    def compare(self, first):
        ours, theirs = (json_of(self.output(who)) for who in ("qmeld", self.reference))
        if ours != theirs:
            raise Failed(f"{self.name}: maps differ: {len(ours)} and {len(theirs)} extents")


class Check(Row):
    """One large image; what is counted is the same."""

    keys = ("image-end-offset", "total-clusters", "allocated-clusters", "fragmented-clusters",
            "compressed-clusters", "leaks", "corruptions", "check-errors")

    def command(self, program, who):
        return [program, "check", "--output=json", self.chain.top], []

    def output(self, who):
        return self.chain.at("check." + who)

    def compare(self, first):
        ours, theirs = ({k: json_of(self.output(who)).get(k, 0) for k in self.keys}
                        for who in ("qmeld", self.reference))
        if ours != theirs:
            raise Failed(f"{self.name}: counts differ: {ours} and {theirs}")


class Allocated(Chain):
    """One image of which only the tables are there: nobody who checks looks at data."""

    def write(self):
        images.qcow2(self.at(self.base), self.size,
                     images.scatter(random.Random(7), self.size, self.each, self.extent))

    def scaled(self, f):
        return Allocated(self.key, max(GIB, int(self.size * f)), 0, int(self.each * f), self.extent)

    def room(self):
        return self.each // 512 + 64 * MIB


class Flatten(Row):
    """A chain into one new image."""

    def __init__(self, name, title, target, chain, to, compress=False):
        super().__init__(name, title, target, chain)
        self.to, self.compress = to, compress

    def needs(self, bench):
        for program in bench.qmelds():
            if run.subprocess.run([program, "flatten", "--help"], capture_output=True,
                                  check=False).returncode != 0:
                raise Cannot(f"this {os.path.basename(program)} has no command flatten")

    def prepare(self, who):
        if not os.path.exists(self.chain.at(self.chain.base)):
            self.chain.fresh()
        if os.path.exists(self.chain.at("flat." + who)):
            os.unlink(self.chain.at("flat." + who))

    def command(self, program, who):
        out = "flat." + who
        if who == "qemu-img":
            how = ["-c"] if self.compress else []
            return [program, "convert", "-q", "-m", "16", "-W", "-O", self.to] + how + \
                [self.chain.top, out], [out]
        how = ["--compress=zlib"] if self.compress else []
        return [program, "flatten", "-q", "-O", self.to] + how + [self.chain.top, out], [out]

    def compare(self, first):
        c = self.chain
        ours, theirs = c.at("flat.qmeld"), c.at("flat." + self.reference)
        same_content(ours, theirs, self.to)
        if first:
            same_content(ours, c.at(c.top), self.to, "qcow2")
            if self.to == "qcow2":
                run.tool(["qemu-img", "check", "-q", ours], what="check of our result")
        if self.compress and os.stat(ours).st_blocks > os.stat(theirs).st_blocks * 1.25:
            raise Failed(f"{self.name}: {os.stat(ours).st_blocks * 512} bytes, "
                         f"{os.stat(theirs).st_blocks * 512} from {self.reference}")
        for path in (ours, theirs):
            os.unlink(path)

    def moved(self):
        return [self.chain.base] + self.chain.layers


class Memory(Commit):
    """The greatest anonymous memory; there is no reference to run: QEMU opens no such chain in reasonable
    memory."""

    sample = True
    most_repeats = 1
    no_reference = "memory has a bound of its own"
    limit = 128 * MIB

    def compare(self, first):
        os.unlink(self.chain.at("result.qmeld"))


class MemoryMap(Map):
    sample = True
    most_repeats = 1
    no_reference = "memory has a bound of its own"
    limit = 128 * MIB

    def compare(self, first):
        """The clusters of all layers are scattered, so a map has at least as many extents as layers."""
        n = len(json_of(self.output("qmeld")))
        if n < self.chain.overlays:
            raise Failed(f"{self.name}: only {n} extents")


def json_of(path):
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def same_content(a, b, fmt, fmt_b=None):
    run.tool(["qemu-img", "compare", "-q", "-f", fmt, "-F", fmt_b or fmt, a, b],
             what=f"{os.path.basename(a)} and {os.path.basename(b)} read differently")


def all_rows():
    """design: sizes of --full; everything else scales."""
    big = dict(size=8 * GIB, overlays=3, each=GIB, extent=MIB, base="raw", based=512 * MIB)
    small = dict(size=8 * GIB, overlays=3, each=512 * MIB, extent=64 * KIB, based=512 * MIB)
    raw1m = Chain("raw-1m", **big)
    qcow64k = Chain("qcow2-64k", **small)
    deep = Chain("deep", 10 * GIB, 200, 4 * MIB, 64 * KIB, based=64 * MIB)
    # (qemu-img takes minutes for one commit of this)
    huge = Chain("huge", 64 * TIB, 3, 500 * MIB, 64 * KIB)
    many = Chain("many", 64 * TIB, 1000, 512 * KIB, 64 * KIB)
    rows = [
        Commit("raw-1m", "3 overlays of 1 GiB, 1 MiB extents, into raw", 2.0, raw1m),
        Commit("raw-1m-cold", "the same with cold caches", 1.7, raw1m, cold=True),
        Commit("raw-1m-direct", "the same, cold, past the page cache (--cache=none, -t none)", None,
               raw1m, cold=True, direct=True),
        Commit("qcow2-64k", "3 overlays of 512 MiB, 64 KiB scattered, into qcow2", 1.6, qcow64k),
        Flatten("flatten-raw", "that chain flattened to raw", 1.8, qcow64k, "raw"),
        Flatten("flatten-qcow2", "that chain flattened to qcow2", 1.8, qcow64k, "qcow2"),
    ]
    for fs in ("xfs", "btrfs"):
        rows.append(Commit(f"{fs}-qcow2-64k", f"{fs}: 64 KiB scattered, into qcow2", 10,
                           Chain("qcow2-64k", **small), fs=fs))
        rows.append(Commit(f"{fs}-raw-1m", f"{fs}: 1 MiB extents into raw", 50, Chain("raw-1m", **big),
                           fs=fs))
    rows += [
        Commit("deep-commit", "200 overlays of 4 MiB over 10 GiB: commit", 15, deep),
        Map("deep-map", "200 overlays of 4 MiB over 10 GiB: map", 40, deep),
        Slow("huge-commit", "64 TiB, 3 overlays, 24,000 scattered clusters: commit", 15, huge),
        Map("huge-map", "64 TiB, 3 overlays, 24,000 scattered clusters: map", 50, huge),
    ]
    for codec in ("zlib", "zstd"):
        rows.append(Commit(codec, f"overlay of {codec} clusters into qcow2 of the same kind", 10,
                           Compressed(codec, 4 * GIB, 1, 512 * MIB, 64 * KIB, codec=codec)))
    rows += [
        Flatten("flatten-zlib", "flattened, zlib compressed (qemu-img convert -c -m 16)", 8,
                Hexadecimal("hex", 4 * GIB, 1, 512 * MIB, 64 * KIB), "qcow2", compress=True),
        Check("check", "check of 1 TiB with 100 GiB allocated", 5,
              Allocated("allocated", TIB, 0, 100 * GIB, MIB)),
        Memory("memory-commit", "64 TiB, 1,000 layers: commit, anonymous memory", None, many),
        MemoryMap("memory-map", "64 TiB, 1,000 layers: map, anonymous memory", None, many),
    ]
    return rows


class Compressed(Chain):
    """A base of the same compression type, which is in its header."""

    def write(self):
        super().write()
        if self.codec == "zstd":
            images.qcow2(self.at(self.pristine), self.size, [(0, 1)],
                         payloads=images.Payloads("zstd", 64 * KIB, count=1))

    def scaled(self, f):
        c = super().scaled(f)
        return Compressed(c.key, c.size, c.overlays, c.each, c.extent, codec=c.codec)


class Hexadecimal(Chain):
    """Data that a codec brings to about a half."""

    def write(self):
        super().write()
        content = images.Content()
        content.pool = memoryview(random.Random(3).randbytes(8 * MIB).hex().encode())
        images.qcow2(self.at(self.top), self.size,
                     images.scatter(random.Random(7), self.size, self.each, self.extent),
                     backing=self.base, backing_format=self.base_format, content=content)

    def scaled(self, f):
        c = super().scaled(f)
        return Hexadecimal(c.key, c.size, c.overlays, c.each, c.extent)


def series():
    """Curves: name of the axis, what is written at it, the chain."""
    def commit(axis, at, **kw):
        return axis, at, Commit(f"{axis}-{at}", f"{axis} {at}", None, Chain(f"{axis}-{at}", **kw))

    for depth in (1, 4, 16, 64, 256):
        yield commit("depth", depth, size=8 * GIB, overlays=depth, each=256 * MIB // depth,
                     extent=64 * KIB)
    for amount in (16, 64, 256, 1024):
        yield commit("size", amount, size=8 * GIB, overlays=1, each=amount * MIB, extent=64 * KIB)
    for extent in (64, 256, 1024, 4096, 16384):
        yield commit("scatter", extent, size=8 * GIB, overlays=1, each=256 * MIB,
                     extent=extent * KIB)
