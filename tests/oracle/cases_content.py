# SPDX-License-Identifier: LGPL-2.1-or-later
"""Known cases about guest bytes: sizes, zeros, subclusters, compression, snapshots below."""

import os
import zlib

import oracle
from cases import case

EMPTY = "--shallow --overlays=empty"  # what `qemu-img commit` without options does


@case("c01", "plain two-layer")
def c01(t):
    t.create("b 1M")
    t.write("b", "write -P 1 0 1M")
    t.create("-b b -F qcow2 t")
    t.write("t", "write -P 2 64k 64k")
    t.commit(EMPTY, "t")
    t.reads("b", "read -P 1 0 64k", "read -P 2 64k 64k", "read -P 1 128k 896k")
    t.ok(t.q("t").l2(0x10000) == 0, "top is not emptied")
    t.ok(t.size("t") == 262144, f"emptied top is {t.size('t')} bytes, QEMU leaves 4 clusters")
    t.ok(t.q("t").backing() == ("b", "qcow2"), "top's backing name changed")
    t.reads("t", "read -P 1 0 64k", "read -P 2 64k 64k", "read -P 1 128k 896k")
    t.check("t")


@case("c02", "keep leaves top byte-identical")
def c02(t):
    t.create("b 1M")
    t.create("-b b -F qcow2 t")
    t.write("t", "write -P 2 0 64k")
    was = oracle.digest(t.path("t"))
    t.commit("--shallow --overlays=keep t")
    t.ok(oracle.digest(t.path("t")) == was, "top changed")
    t.reads("b", "read -P 2 0 64k")


@case("c03", "a skipped middle layer becomes invalid, and the report says so")
def c03(t):
    t.create("b 1M")
    t.write("b", "write -P 1 0 1M")
    t.create("-b b -F qcow2 m")
    t.write("m", "write -P 2 64k 64k")
    t.create("-b m -F qcow2 t")
    t.write("t", "write -P 3 128k 64k")
    was = oracle.digests([t.path("m"), t.path("t")])
    r = t.commit("--base b --overlays=keep t")
    t.ok(oracle.digests([t.path("m"), t.path("t")]) == was, "m or t changed")
    t.reads("b", "read -P 2 64k 64k", "read -P 3 128k 64k")
    t.reads("t", "read -P 1 0 64k", "read -P 2 64k 64k", "read -P 3 128k 64k")
    t.ok(any("m" in line.replace(":", " ").split() and "invalid" in line.lower()
             for line in r.out.splitlines()), f"the report does not call m invalid:\n{r.out}")


@case("c04", "top larger: base grows")
def c04(t):
    t.create("b 1M")
    t.write("b", "write -P 1 0 1M")
    t.create("-b b -F qcow2 t 3M")
    t.write("t", "write -P 2 2M 64k")
    t.commit(EMPTY, "t")
    t.ok(t.virtual("b") == 3145728, "base is not 3 MiB")
    t.reads("b", "read -P 1 0 1M", "read -P 0 1M 1M", "read -P 2 2M 64k", "read -P 0 2112k 960k")


@case("c05", "top smaller: base keeps its tail")
def c05(t):
    t.create("b 2M")
    t.write("b", "write -P 1 0 2M")
    t.create("-b b -F qcow2 t 1M")
    t.write("t", "write -P 2 0 64k")
    t.commit(EMPTY, "t")
    t.ok(t.virtual("b") == 2097152, "base is not 2 MiB")
    t.reads("b", "read -P 2 0 64k", "read -P 1 64k 960k", "read -P 1 1M 1M")


@case("c06", "a short middle layer hides the base below its end")
def c06(t):
    t.create("b 3M")
    t.write("b", "write -P 1 0 3M")
    t.create("-b b -F qcow2 m 1M")
    t.create("-b m -F qcow2 t 2M")
    t.write("t", "write -P 3 1536k 64k")
    t.commit("--base b t")
    t.reads("b", "read -P 1 0 1M", "read -P 0 1M 512k", "read -P 3 1536k 64k",
            "read -P 0 1600k 448k", "read -P 1 2M 1M")


@case("c07", "a middle base that grows over its own longer backing")
def c07(t):
    t.create("b 3M")
    t.write("b", "write -P 1 0 3M")
    t.create("-b b -F qcow2 m 1M")
    t.create("-b m -F qcow2 t 2M")
    t.write("t", "write -P 3 1536k 64k")
    t.commit(EMPTY, "t")
    t.ok(t.q("m").l2(0x100000) == 1, "the new area has no zero flag")
    t.reads("m", "read -P 1 0 1M", "read -P 0 1M 512k", "read -P 3 1536k 64k",
            "read -P 0 1600k 448k")
    t.check("m")


@case("c08", "the same where version 2 has no zero flag: zeros written, or refused untouched")
def c08(t):
    t.create("b 3M")
    t.write("b", "write -P 1 0 3M")
    t.create("-o compat=0.10 -b b -F qcow2 m 1M")
    t.create("-b m -F qcow2 t 2M")
    t.write("t", "write -P 3 1536k 64k")
    before = t.files()
    r = t.commit("--shallow t", rc=(0, 2))
    t.reads("t", "read -P 1 0 1M", "read -P 0 1M 512k", "read -P 3 1536k 64k")
    if r.rc == 2:
        t.ok(t.files() == before, "refused, but files changed")
    else:
        t.reads("m", "read -P 1 0 1M", "read -P 0 1M 512k", "read -P 3 1536k 64k",
                "read -P 0 1600k 448k")
        t.check("m")


@case("c09", "stale bytes past base's old end are zeroed when it grows (QEMU shows them)")
def c09(t):
    t.create("b 256k")
    t.write("b", "write -P 9 0 256k")
    t.img("resize -q --shrink b 165888")
    t.create("-b b -F qcow2 t 256k")
    t.write("t", "write -P 9 0 512")
    t.reads("t", "read -P 0 165888 96256")
    t.commit("--shallow t")
    t.reads("b", "read -P 9 0 165888", "read -P 0 165888 96256")
    t.check("b")


@case("c10", "zero clusters onto version 3")
def c10(t):
    t.create("b 1M")
    t.write("b", "write -P 1 0 192k")
    t.create("-b b -F qcow2 t")
    t.write("t", "write -z 64k 192k")
    t.commit(EMPTY, "t")
    # without a backing file "unallocated" says the same as a zero flag
    t.ok(t.q("b").l2(0x10000) in (0, 1), "a zeroed cluster keeps its space")
    t.ok(t.q("b").l2(0x30000) in (0, 1), "zeros were allocated")
    t.reads("b", "read -P 1 0 64k", "read -P 0 64k 192k", "read -P 0 256k 768k")
    t.check("b")


@case("c11", "zero clusters onto version 2, without and with a backing file")
def c11(t):
    t.create("-o compat=0.10 b 1M")
    t.write("b", "write -P 1 0 192k")
    t.create("-b b -F qcow2 t")
    t.write("t", "write -z 64k 64k")
    t.commit(EMPTY, "t")
    t.ok(t.q("b").l2(0x10000) == 0, "not deallocated")
    t.reads("b", "read -P 1 0 64k", "read -P 0 64k 64k", "read -P 1 128k 64k")
    t.create("z 1M")
    t.write("z", "write -P 9 0 1M")
    t.create("-o compat=0.10 -b z -F qcow2 b2")
    t.create("-b b2 -F qcow2 t2")
    t.write("t2", "write -z 64k 64k")
    t.commit(EMPTY, "t2")
    t.reads("b2", "read -P 9 0 64k", "read -P 0 64k 64k", "read -P 9 128k 896k")
    t.check("b")
    t.check("b2")


@case("c12", "zero clusters onto raw become holes")
def c12(t):
    t.img("create -q -f raw b 1M")
    t.write("b", "write -P 1 0 1M", fmt="raw")
    t.create("-b b -F raw t")
    t.write("t", "write -z 128k 256k")
    t.commit(EMPTY, "t")
    t.reads("b", "read -P 1 0 128k", "read -P 0 128k 256k", "read -P 1 384k 640k", fmt="raw")
    t.ok(t.blocks("b") == 1536, f"{t.blocks('b')} blocks, 256 KiB are not punched")


@case("c13", "raw base of 1000 bytes")
def c13(t):
    with open(t.path("b"), "wb") as f:
        f.write(b"A" * 1000)
    t.create("-b b -F raw t")
    t.write("t", "write -P 2 0 512")
    t.commit(EMPTY, "t")
    with open(t.path("b"), "rb") as f:
        got = f.read()
    t.ok(got.ljust(1024, b"\0") == b"\2" * 512 + b"A" * 488 + bytes(24), f"base is {got[-40:]!r}")
    t.ok(len(got) in (1000, 1024), f"{len(got)} bytes long")


@case("c14", "a qcow2 size that is no multiple of 512 is floored")
def c14(t):
    t.create("b 1M")
    t.write("b", "write -P 7 0 64k")
    t.q("b").set(size=1000)
    t.create("-b b -F qcow2 t 2048")
    t.same_map("t")
    t.commit("--shallow t")
    t.reads("t", "read -P 7 0 512", "read -P 0 512 1536")
    t.ok(t.virtual("b") == 2048, f"base is {t.virtual('b')} bytes")
    t.reads("b", "read -P 7 0 512", "read -P 0 512 1536")


@case("c15", "virtual size no multiple of a cluster")
def c15(t):
    t.create("b 100000")
    t.create("-b b -F qcow2 t")
    t.write("t", "write -P 3 65536 34816")
    t.commit(EMPTY, "t")
    t.reads("b", "read -P 0 0 64k", "read -P 3 65536 34816")
    t.check("b")


@case("c16", "cluster sizes differ both ways")
def c16(t):
    t.create("-o cluster_size=4k b 1M")
    t.create("-o cluster_size=2M -b b -F qcow2 m")
    t.write("m", "write -P 2 640k 4k")
    t.create("-o cluster_size=512 -b m -F qcow2 t")
    t.write("t", "write -P 3 644k 512")
    t.commit("--base b t")
    t.reads("b", "read -P 0 0 640k", "read -P 2 640k 4k", "read -P 3 644k 512",
            "read -P 0 660k 300k")
    t.check("b")


@case("c17", "extended L2 overlay onto a standard base")
def c17(t):
    t.create("b 1M")
    t.write("b", "write -P 1 0 1M")
    t.create("-o extended_l2=on -b b -F qcow2 t")
    t.write("t", "write -P 2 2k 2k", "write -z 6k 2k", "write -P 3 66k 1k")
    t.commit(EMPTY, "t")
    want = ("read -P 1 0 2k", "read -P 2 2k 2k", "read -P 1 4k 2k", "read -P 0 6k 2k",
            "read -P 1 8k 56k", "read -P 1 64k 2k", "read -P 3 66k 1k", "read -P 1 67k 957k")
    t.reads("b", *want)
    t.reads("t", *want)
    t.check("b")


@case("c18", "standard overlay onto an extended L2 base with a backing file")
def c18(t):
    t.create("z 1M")
    t.write("z", "write -P 9 0 1M")
    t.create("-o extended_l2=on -b z -F qcow2 b")
    t.write("b", "write -P 1 0 2k")
    t.create("-o cluster_size=4k -b b -F qcow2 t")
    t.write("t", "write -P 2 8k 4k", "write -z 16k 4k")
    t.commit(EMPTY, "t")
    t.reads("b", "read -P 1 0 2k", "read -P 9 2k 6k", "read -P 2 8k 4k", "read -P 9 12k 4k",
            "read -P 0 16k 4k", "read -P 9 20k 44k")
    t.check("b")


@case("c19", "a subcluster both allocated and zero: an error, base untouched")
def c19(t):
    t.create("b 1M")
    t.create("-o extended_l2=on -b b -F qcow2 t 1M")
    t.write("t", "write -P 1 0 64k")
    q = t.q("t")
    q.set_l2(0, q.l2(0), 0x8000000080000000)
    t.refused("commit t", rc=(1, 2))
    t.run("check t", rc=2)


@case("c20", "zstd overlay onto a zlib base whose clusters share host clusters")
def c20(t):
    t.create("b 1M")
    t.write("b", "write -c -P 1 0 64k", "write -c -P 2 64k 64k")
    t.create("-o compression_type=zstd -b b -F qcow2 t")
    t.write("t", "write -c -P 3 0 64k", "write -c -P 4 128k 64k")
    t.commit(EMPTY, "t")
    t.reads("b", "read -P 3 0 64k", "read -P 2 64k 64k", "read -P 4 128k 64k")
    t.check("b")


def deflate(data, window_bits):
    o = zlib.compressobj(9, zlib.DEFLATED, window_bits)
    return o.compress(data) + o.flush()


def plant(t, name, payload, sectors):
    """Overlay `name` over base `name`.b, guest cluster 0 being this compressed stream."""
    t.create(f"{name}.b 1M")
    t.write(f"{name}.b", "write -P 5 0 64k")
    t.create(f"-b {name}.b -F qcow2 {name} 1M")
    t.write(name, "write -P 1 0 64k")
    q = t.q(name)
    host = q.l2(0) & oracle.OFFSET_MASK
    q.set_l2(0, 1 << 62 | sectors << (62 - (q.cluster_bits - 8)) | host)
    q.put(host, b"\xee" * 65536)
    q.put(host, payload)


@case("c21", "streams longer than a cluster decode, shorter ones are errors")
def c21(t):
    block = os.urandom(8192)
    wide = deflate(block * 8, -15)
    plant(t, "long", deflate(b"B" * 70000, -12), 0)
    plant(t, "short", deflate(b"C" * 65535, -12), 0)
    plant(t, "wide", wide, (len(wide) - 1) // 512)
    plant(t, "gzip", deflate(b"D" * 65536, 15), 0)
    t.commit("long")
    t.reads("long.b", "read -P 0x42 0 64k")
    t.commit("wide")
    t.ok(t.view("wide.b")[:65536] == block * 8, "a stream with a 32 KiB window decodes wrong")
    for name in ("short", "gzip"):
        t.refused(f"commit --decompress {name}", rc=(1, 2))
        t.refused(f"commit --verify {name}", rc=(1, 2))
        t.commit(name)  # passed on as it is, and as unreadable as it was
        t.img(f"check {name}.b")
        t.ok(t.q(f"{name}.b").l2(0) >> 62 & 1, "no compressed cluster in the base")


@case("c22", "a shared cluster is copied on write, the snapshot stays")
def c22(t):
    t.create("b 1M")
    t.write("b", "write -P 1 0 64k")
    t.img("snapshot -c s b")
    entry = t.q("b").l2(0)
    t.create("-b b -F qcow2 t")
    t.write("t", "write -P 2 0 64k")
    t.commit(EMPTY, "t")
    t.ok(t.q("b").l2(0) & oracle.OFFSET_MASK != entry & oracle.OFFSET_MASK, "written in place")
    t.reads("b", "read -P 2 0 64k")
    t.ok(t.view("b", snapshot="s")[:65536] == b"\1" * 65536, "the snapshot changed")
    t.check("b")


@case("c23", "base with a snapshot grows in version 3, is refused in version 2")
def c23(t):
    for compat in ("1.1", "0.10"):
        t.create(f"-o compat={compat} b{compat} 1M")
        t.write(f"b{compat}", "write -P 1 0 64k")
        t.img(f"snapshot -c s b{compat}")
        t.create(f"-b b{compat} -F qcow2 t{compat} 2M")
        t.write(f"t{compat}", "write -P 2 0 64k")
    t.commit("t1.1")
    t.check("b1.1")
    t.ok(t.view("b1.1", snapshot="s")[:1 << 20] == b"\1" * 65536 + bytes(983040), "snapshot changed")
    t.refused("commit t0.10", says="snapshot")


@case("c24", "snapshots inside top read through base: refused or said (QEMU is silent)")
def c24(t):
    t.create("b 1M")
    t.create("-b b -F qcow2 t")
    t.write("t", "write -P 1 0 64k")
    t.img("snapshot -c s t")
    t.write("t", "write -P 2 64k 64k")
    before = t.files()
    r = t.commit(EMPTY, "t", rc=(0, 2))
    t.ok("snapshot" in (r.err + r.out).lower(), "not a word about the snapshot in top")
    if r.rc == 2:
        t.ok(t.files() == before, "refused, but files changed")
    t.reads("t", "read -P 1 0 64k", "read -P 2 64k 64k")
    t.check("t")


@case("c50", "refcount widths 1 and 64")
def c50(t):
    for bits in (1, 64):
        t.create(f"-o refcount_bits={bits} b{bits} 1M")
        t.write(f"b{bits}", "write -P 1 0 256k")
        t.create(f"-b b{bits} -F qcow2 t{bits} 8M")
        t.write(f"t{bits}", "write -P 2 128k 4M")
        t.commit(EMPTY, f"t{bits}")
        t.check(f"b{bits}")
        t.check(f"t{bits}")
        t.reads(f"b{bits}", "read -P 1 0 128k", "read -P 2 128k 4M")


@case("c51", "L1 and refcount table grow in 512-byte clusters")
def c51(t):
    t.create("-o cluster_size=512 b 64k")
    t.create("-b b -F qcow2 t 24M")
    t.write("t", "write -P 2 0 24M")
    t.commit(EMPTY, "t")
    t.check("b")
    t.reads("b", "read -P 2 0 24M")
    t.ok(t.q("b").rt_clusters > 1, "the refcount table did not grow")


@case("c52", "a squash equals the top's view, whatever lies between")
def c52(t):
    t.create("b 1M")
    t.write("b", "write -P 1 0 1M")
    t.create("-b b -F qcow2 m")
    t.write("m", "write -P 2 64k 64k")
    t.create("-b m -F qcow2 t")
    t.write("t", "write -P 3 0 64k")
    want = t.view("t")
    t.commit("t")
    t.ok(t.view("b") == want, "base is not what top was")


@case("c54", "the new backing file is shorter or longer than what it replaces")
def c54(t):
    for name, size, fill in (("L", "4M", "write -P 8 0 4M"), ("S", "512k", "write -P 8 0 512k")):
        t.create(f"{name} {size}")
        t.write(name, fill)
        t.create(f"-b {name} -F qcow2 m{name} 1M")
        t.write(f"m{name}", "write -P 1 0 1M")
        t.create(f"-b m{name} -F qcow2 t{name} 2M")
        before = t.files()
        r = t.commit(f"--top m{name} t{name}", rc=(0, 2) if name == "L" else 0)
        t.reads(f"t{name}", "read -P 1 0 1M", "read -P 0 1M 1M")
        if r.rc == 2:  # L's own tail would show through t where m was shorter
            t.ok(t.files() == before, "refused, but files changed")
        else:
            t.ok(t.q(f"t{name}").backing() == (name, "qcow2"), "the child's header")


@case("c57", "a top of 0 bytes; an image without a backing file")
def c57(t):
    t.create("b 1M")
    t.write("b", "write -P 1 0 64k")
    t.create("-b b -F qcow2 t 0")
    t.commit("t")
    t.reads("b", "read -P 1 0 64k", "read -P 0 64k 960k")
    before = t.files()
    t.commit("b")  # a chain of one layer is merged already
    t.ok(t.files() == before, "there was nothing to do, but files changed")


@case("c69", "only what changed is written, never a whole granule (QEMU writes 64 KiB)")
def c69(t):
    with open(t.path("b"), "wb") as f:
        f.truncate(1 << 20)
    t.create("-o cluster_size=4k -b b -F raw t")
    t.write("t", "write -P 7 640k 4k")
    t.commit("t")
    t.reads("b", "read -P 0 0 640k", "read -P 7 640k 4k", "read -P 0 644k 380k", fmt="raw")
    t.ok(t.blocks("b") == 8, f"{t.blocks('b')} blocks for 4 KiB")
    t.create("-o cluster_size=512 b2 64k")
    t.create("-o cluster_size=512 -b b2 -F qcow2 t2")
    t.write("t2", "write -P 7 8k 512")
    t.commit("t2")
    t.ok(t.q("b2").mapped() == 1, f"{t.q('b2').mapped()} clusters for 512 bytes")
    t.check("b2")
