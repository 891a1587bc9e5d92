# SPDX-License-Identifier: LGPL-2.1-or-later
"""Random chains over every feature that a merge must get right, made with qemu-img and qemu-io.

Every 512 bytes that are written are unlike all others (make_patterns), so that a cluster that
lands in the wrong place is seen.  The same seed makes the same chain.
"""

import json
import os
import random

import oracle
from oracle import KIB, MIB

N_PATTERNS, PATTERN_LEN = 16, 3 * MIB
NAMES = ["img", "layer", "with space", "dotted.name", "ünï", "comma,x"]


class Layer:
    def __init__(self, index, path, fmt):
        self.index, self.path, self.fmt = index, path, fmt
        self.style = None      # how the header names the layer below
        self.size = 0          # virtual
        self.opts = {}
        self.snapshots = []
        self.has_bitmaps = False
        self.bad_bitmap = False
        self.dirty = False
        self.no_format = False  # the header does not say what the layer below is
        self.unknown_exts = []


class Chain:
    def __init__(self, folder):
        self.folder, self.layers, self.tags = folder, [], set()
        self.alike = 0  # the cluster size of all layers, 0: each its own

    def path(self, i):
        return os.path.join(self.folder, self.layers[i].path)

    def paths(self):
        return [self.path(i) for i in range(len(self.layers))]


def make_patterns(folder):
    """Files for `write -s`.  Compressible, and no two sectors alike."""
    rng, paths = random.Random(4711), []
    for i in range(N_PATTERNS):
        path = os.path.join(folder, f"p{i}")
        with open(path, "wb") as f:
            for _ in range(PATTERN_LEN // 512):
                f.write(rng.randbytes(16) + bytes([rng.randrange(1, 256)]) * 496)
        paths.append(path)
    return paths


def pick_size(rng, below, raw=False):
    """Growing, shrinking, equal; mostly no multiple of anything."""
    kind = rng.random()
    if below is not None and kind < 0.35:
        return (below + 511) // 512 * 512
    top = rng.choice([64 * KIB, 300 * KIB, MIB, 2 * MIB, 8 * MIB])
    size = rng.randrange(512, top + 1) if kind < 0.9 else top
    if rng.random() < 0.01:
        return 0
    return size if raw else size // 512 * 512


def pick_options(rng, layer, alike):
    """qemu-img create -o for a qcow2 layer."""
    o = {}
    if rng.random() < 0.18:
        o["compat"] = "0.10"
    else:
        o["compat"] = "1.1"
        o["refcount_bits"] = rng.choice([1, 2, 4, 8, 16, 16, 16, 32, 64])
        o["compression_type"] = rng.choice(["zlib", "zlib", "zstd"])
        o["lazy_refcounts"] = rng.choice(["off", "off", "off", "on"])
        o["extended_l2"] = rng.choice(["off", "off", "off", "on"])
    clusters = [512, 1024, 2048, 4096, 4096, 16 * KIB, 64 * KIB, 64 * KIB, 256 * KIB, 2 * MIB]
    if o.get("extended_l2") == "on":
        clusters = [16 * KIB, 32 * KIB, 64 * KIB, 256 * KIB]
    o["cluster_size"] = rng.choice(clusters)
    if alike:
        o["cluster_size"] = alike
        if "compression_type" in o:
            o["compression_type"] = "zlib"
            o["extended_l2"] = o["extended_l2"] if alike >= 16 * KIB else "off"
    if layer.index == 0 and rng.random() < 0.2:
        o["preallocation"] = rng.choice(["metadata", "falloc", "full"])
    layer.opts = o
    return ",".join(f"{k}={v}" for k, v in o.items())


def pick_name(rng, chain, below, layer, plain):
    """How the new layer's header is to name the one below it."""
    style = "rel" if plain else rng.choice(
        ["rel", "rel", "rel", "dot", "abs", "file-abs", "file-rel", "json", "json-nested"])
    target = os.path.join(chain.folder, below.path)
    rel = os.path.relpath(below.path, os.path.dirname(layer.path) or ".")
    layer.style = style
    chain.tags.add("name-" + style)
    quoted = target.replace("\\", "\\\\").replace('"', '\\"')
    return {
        "rel": rel, "dot": "./" + rel, "abs": target, "file-abs": "file:" + target,
        "file-rel": "file:" + below.path,
        "json": 'json:{"driver":"%s","file.filename":"%s"}' % (below.fmt, quoted),
        "json-nested": 'json:{"driver":"%s","file":{"driver":"file","filename":"%s"}}'
                       % (below.fmt, quoted),
    }[style]


def span(rng, size, unit, longest=256 * KIB):
    """A random span inside the image, in units; the same places are hit again and again."""
    slots = max(1, size // unit)
    at = rng.randrange(slots)
    if rng.random() < 0.5:
        at = min(at, rng.randrange(slots))
    if rng.random() < 0.15:
        at = slots - 1
    length = rng.choice([unit, unit, 2 * unit, 5 * unit, longest // 8, longest])
    length = max(unit, min(length, longest, size - at * unit) // unit * unit)
    return at * unit, length


def pick_writes(rng, layer, patterns, alike):
    """qemu-io commands.  Some may fail (compressed over allocated); that is fine."""
    cs, size, cmds = layer.opts["cluster_size"], layer.size, []
    if size < 512:
        return cmds
    for _ in range(rng.choice([0, 1, 2, 4, 8, 12])):
        what = rng.random()
        unit = rng.choice([512, 512, 4096, max(512, cs // 32), cs, cs])
        if size < unit:
            unit = 512
        off, length = span(rng, size, unit)
        if alike and cs <= size and rng.random() < 0.5:
            off, length = span(rng, size, cs, max(cs, 64 * KIB))
            cmds.append(f"write -c -s {rng.choice(patterns)} {off} {length}")
        elif what < 0.5:
            cmds.append(f"write -s {rng.choice(patterns)} {off} {length}")
        elif what < 0.68 and cs <= size:
            off, length = span(rng, size, cs, max(cs, 128 * KIB))
            cmds.append(f"write -c -s {rng.choice(patterns)} {off} {length}")
        elif what < 0.80:
            cmds.append(f"write -z {off} {length}")
        elif what < 0.87:
            cmds.append(f"write -z -u {off} {length}")
        elif what < 0.96:
            cmds.append(f"discard {off} {length}")
        else:
            cmds.append(f"write -P 0 {off} {length}")
    if rng.random() < 0.06 and size >= 2 * MIB:  # long enough for new L2 and refcount tables
        cmds.append(f"write -s {rng.choice(patterns)} 0 {min(size, PATTERN_LEN)}")
    return cmds


def write_again(chain, layer, story):
    """What the layer reads already, and zeros as data: for --skip-equal and --detect-zeroes.  The choice is
    the layer's, so that seeds keep their chains."""
    rng = random.Random(f"{sorted(layer.opts.items())} {layer.size}")
    cs, path = layer.opts["cluster_size"], os.path.join(chain.folder, layer.path)
    if layer.size < 512 or rng.random() < 0.6:
        return
    try:
        view, pieces, cmds = oracle.view(layer.path, "qcow2", chain.folder), [], []
    except oracle.Fail:
        return  # QEMU has broken it already, see add_layer
    if oracle.Qcow2(path).incompat & 2:
        return  # and has noticed
    for _ in range(rng.choice([1, 2, 4])):
        unit = rng.choice([512, 4096, cs, cs])
        off, length = span(rng, layer.size, min(unit, layer.size // 512 * 512))
        what = rng.random()
        if what < 0.3:
            cmds.append(f"write {rng.choice(['', '-c'])} -P 0 {off} {length}")
        else:
            pieces.append(os.path.join(chain.folder, f"again{len(pieces)}"))
            with open(pieces[-1], "wb") as f:
                f.write(view[off:off + length])
            cmds.append(f"write {'-c' if what < 0.45 else ''} -s {pieces[-1]} {off} {length}")
    oracle.qemu_io(path, cmds, cwd=chain.folder, strict=False)
    story.append(f"{layer.path}: again: " + "; ".join(cmds))
    for piece in pieces:
        os.unlink(piece)


def write_raw(rng, path, size, patterns):
    """A raw layer of any length, with holes and written zeros."""
    with open(path, "wb") as f:
        f.truncate(size)
        for _ in range(rng.choice([0, 1, 3, 8])):
            if size == 0:
                break
            off = rng.randrange(size) // rng.choice([1, 512, 4096]) \
                * rng.choice([1, 512, 4096]) % size
            length = min(size - off, rng.choice([1, 512, 4096, 70000, 300000]))
            f.seek(off)
            if rng.random() < 0.15:
                f.write(bytes(length))
            else:
                with open(rng.choice(patterns), "rb") as p:
                    f.write(p.read(length))


def put_content(rng, chain, layer, patterns, story):
    """Writes, snapshots and bitmaps, in the order a life might bring them."""
    path, base = os.path.join(chain.folder, layer.path), layer.index == 0
    v3 = layer.opts["compat"] == "1.1"

    def write():
        cmds = pick_writes(rng, layer, patterns, chain.alike)
        if cmds:
            story.append(f"{layer.path}: " + "; ".join(
                c.replace(os.path.dirname(patterns[0]) + "/", "") for c in cmds))
            oracle.qemu_io(path, cmds, cwd=chain.folder, strict=False)

    bitmaps = v3 and rng.random() < (0.25 if base else 0 if chain.easy else 0.1)
    if bitmaps:
        for i in range(rng.choice([1, 1, 2, 3])):
            argv = ["qemu-img", "bitmap", "--add", "-g", rng.choice(["512", "4k", "64k", "1M"])]
            argv += ["--disable"] if rng.random() < 0.3 else []
            oracle.must(argv + ["-f", "qcow2", layer.path, f"bm{i}"], chain.folder)
        layer.has_bitmaps = True
        chain.tags.add("bitmaps")
        story.append(f"{layer.path}: bitmaps")
    write()
    if not base and not chain.easy:
        write_again(chain, layer, story)
    if layer.opts.get("refcount_bits", 16) > 2 and layer.size and rng.random() < (
            0.3 if base else 0.04):
        for i in range(rng.choice([1, 1, 2])):
            r = oracle.run(["qemu-img", "snapshot", "-c", f"snap{i}", layer.path], chain.folder)
            if r.rc != 0:
                break  # compressed clusters have used the narrow refcounts up
            layer.snapshots.append(f"snap{i}")
            write()
        chain.tags.add("snapshots" if base else "overlay-snapshots")
        story.append(f"{layer.path}: snapshots {layer.snapshots}")
    if base and not chain.easy and rng.random() < 0.1 and layer.size > 1024 and not bitmaps \
            and not layer.snapshots:
        less = rng.randrange(512, layer.size) // 512 * 512
        oracle.must(["qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", layer.path, str(less)],
                    chain.folder)
        layer.size = less
        chain.tags.add("stale-tail")
        story.append(f"{layer.path}: shrunk to {less}")


def poke(rng, chain, layer, story):
    """States that no tool of QEMU's makes by request."""
    path = os.path.join(chain.folder, layer.path)
    v3 = layer.opts["compat"] == "1.1"
    if chain.easy:
        return
    if layer.opts.get("lazy_refcounts") == "on" and rng.random() < 0.3 and layer.size >= 65536 \
            and not layer.has_bitmaps:
        oracle.run(["qemu-io", "-f", "qcow2", "-c", "write -P 77 0 64k", "-c", "flush",
                    "-c", "sigraise 9", layer.path], chain.folder)
        layer.dirty = bool(oracle.Qcow2(path).incompat & 1)
        chain.tags.add("dirty")
        story.append(f"{layer.path}: crashed, dirty={layer.dirty}")
    q = oracle.Qcow2(path)
    if rng.random() < 0.12:
        extra = [(0x11111111, b"one"), (0x51AE6DEF, b"something longer than eight")]
        if q.rewrite_extensions(q.extensions() + extra):
            layer.unknown_exts = extra
            chain.tags.add("unknown-ext")
            story.append(f"{layer.path}: unknown extensions")
    if v3 and rng.random() < 0.1:
        q.set(autoclear=q.autoclear | 1 << rng.randrange(2, 64))
        chain.tags.add("unknown-autoclear")
        story.append(f"{layer.path}: unknown autoclear bit")
    if v3 and rng.random() < 0.05:
        q.set(compat=q.compat | 1 << rng.randrange(1, 64))
        chain.tags.add("unknown-compat")
        story.append(f"{layer.path}: unknown compatible bit")
    if layer.index and rng.random() < 0.03 and not any(x.no_format for x in chain.layers):
        q = oracle.Qcow2(path)
        if layer.style.startswith("json") or not q.rewrite_extensions(
                [e for e in q.extensions() if e[0] != oracle.EXT_FORMAT]):
            return
        layer.no_format = True
        chain.tags.add("no-format")
        story.append(f"{layer.path}: stored backing format removed")


def add_layer(rng, chain, patterns, story, plain):
    index = len(chain.layers)
    below = chain.layers[-1] if chain.layers else None
    folder = rng.choice(["", "", "d0", "d1"])
    if folder:
        os.makedirs(os.path.join(chain.folder, folder), exist_ok=True)
    raw = index == 0 and rng.random() < 0.3
    name = f"{rng.choice(NAMES if not plain else NAMES[:2])}{index}"
    layer = Layer(index, os.path.join(folder, name), "raw" if raw else "qcow2")
    layer.size = pick_size(rng, below and below.size, raw)
    path = os.path.join(chain.folder, layer.path)
    if raw:
        write_raw(rng, path, layer.size, patterns)
        chain.tags.add("raw-base")
        story.append(f"{layer.path}: raw, {layer.size} bytes")
    else:
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", pick_options(rng, layer, chain.alike)]
        if below:
            argv += ["-b", pick_name(rng, chain, below, layer, plain), "-F", below.fmt]
        argv += [layer.path, str(layer.size)]
        story.append(" ".join(argv[4:]))
        if oracle.run(argv, chain.folder).rc != 0:
            # a name too long for a small header cluster
            argv[argv.index("-b") + 1] = pick_name(rng, chain, below, layer, True)
            argv[5] = "cluster_size=4096,compat=1.1"
            layer.opts = {"cluster_size": 4096, "compat": "1.1"}
            story.append("again: " + " ".join(argv[4:]))
            oracle.must(argv, chain.folder)
        if rng.random() < 0.9:
            put_content(rng, chain, layer, patterns, story)
            if oracle.check(path)[0] != 0 or oracle.Qcow2(path).incompat & 2:
                # QEMU 7.2 breaks its own images where compressed writes meet subclusters,
                # 512-byte clusters, or refcounts too narrow for what is packed into one cluster
                story.append(f"{layer.path}: qemu-img broke it, made again without content")
                os.unlink(path)
                oracle.must(argv, chain.folder)
                layer.snapshots, layer.has_bitmaps = [], False
                layer.size = oracle.Qcow2(path).size
                chain.tags.add("qemu-broke-it")
    chain.layers.append(layer)
    if not raw:
        poke(rng, chain, layer, story)
        tag_options(chain, layer)


def tag_options(chain, layer):
    o = layer.opts
    where = "base" if layer.index == 0 else "overlay"
    chain.tags.add(f"{where}-v{2 if o['compat'] == '0.10' else 3}")
    chain.tags.add(f"{where}-cs{o['cluster_size']}")
    if o.get("extended_l2") == "on":
        chain.tags.add(f"{where}-extl2")
    if "refcount_bits" in o and layer.index == 0:
        chain.tags.add(f"rc{o['refcount_bits']}")
    if "preallocation" in o:
        chain.tags.add("prealloc-" + o["preallocation"])


def random_chain(rng, folder, patterns, story, easy=False):
    """easy: only what qemu-img itself merges as we do (see stand_in.py)."""
    chain = Chain(folder)
    chain.easy = easy
    if rng.random() < 0.3:  # layers that can take over each other's compressed clusters
        chain.alike = rng.choice([512, 1024, 4096, 16 * KIB, 64 * KIB, 64 * KIB, 2 * MIB])
        chain.tags.add(f"alike-{chain.alike}")
    chain.plain_names = easy or rng.random() < 0.4  # they stay good when the folder is copied
    for _ in range(rng.choice([2, 2, 3, 3, 4, 5, 6, 7])):
        add_layer(rng, chain, patterns, story, chain.plain_names)
    chain.tags.add(f"depth{len(chain.layers)}")
    return chain


def forge_chain(seed, folder, forge, story):
    """The second source: the project's own forge, which shares no code with any reader."""
    recipe = oracle.must([forge, "--random", str(seed)], folder).out
    story.extend(recipe.splitlines())
    with open(os.path.join(folder, "recipe"), "w", encoding="utf-8") as f:
        f.write(recipe)
    oracle.must([forge, "recipe", "."], folder)
    listed = [line.split() for line in oracle.must([forge, "--list", "recipe"], folder).out.splitlines()]
    chain = Chain(folder)
    chain.plain_names, chain.easy = False, False
    for index, (name, fmt, *_) in enumerate(reversed(listed)):
        layer = Layer(index, name, fmt)
        chain.layers.append(layer)
        if fmt == "raw":
            layer.size = os.path.getsize(os.path.join(folder, name))
            continue
        describe(chain, layer)
    chain.tags.add(f"depth{len(chain.layers)}")
    return chain


def describe(chain, layer):
    """What the checks must know of an image that somebody else made."""
    q = oracle.Qcow2(os.path.join(chain.folder, layer.path))
    layer.size = q.size // 512 * 512
    layer.opts = {"compat": "1.1" if q.version == 3 else "0.10", "cluster_size": q.cs,
                  "refcount_bits": 1 << q.refcount_order,
                  "extended_l2": "on" if q.extended else "off"}
    layer.dirty = bool(q.incompat & 1)
    name, fmt = q.backing()
    if name is not None:
        layer.no_format = fmt is None and not name.startswith("json:")
        head = name.split("/")[0]
        layer.style = "abs" if name.startswith("/") or ":" in head else "rel"
    info = oracle.must(["qemu-img", "info", "--output=json", layer.path], chain.folder).out
    layer.snapshots = [s["name"] for s in json.loads(info).get("snapshots", [])]
    layer.has_bitmaps = q.extension(oracle.EXT_BITMAPS) is not None
    tag_options(chain, layer)
