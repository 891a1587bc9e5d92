# SPDX-License-Identifier: LGPL-2.1-or-later
"""Known cases about states and dangers: dirty and corrupt images, feature bits, bitmaps, refusals,
locks, kills, full file systems, damaged tops."""

import os
import shutil
import subprocess

import kill
import locks
import oracle
from cases import NotHere, case
from cases_content import EMPTY


def pair(t, *base_options):
    t.create(*base_options, "b 1M")
    t.create("-b b -F qcow2 t")
    t.write("t", "write -P 2 0 64k")


@case("c25", "a corrupt base is refused (QEMU commits into it)")
def c25(t):
    pair(t)
    t.q("b").set(incompat=2)
    t.refused("commit t", says="corrupt")


@case("c26", "a corrupt top is refused")
def c26(t):
    pair(t)
    t.q("t").set(incompat=2)
    t.refused(["commit", *EMPTY.split(), "t"], says="corrupt")


def crashed_base(t):
    t.create("-o lazy_refcounts=on b 1M")
    oracle.run(["qemu-io", "-c", "write -P 1 0 128k", "-c", "flush", "-c", "sigraise 9", "b"],
               t.dir)
    t.ok(t.q("b").incompat == 1, "the stage is wrong: base is not dirty")


def into_crashed(t):
    t.create("-b b -F qcow2 t")
    t.write("t", "write -P 2 256k 64k")
    t.commit(EMPTY, "t")
    t.reads("b", "read -P 1 0 128k", "read -P 0 128k 128k", "read -P 2 256k 64k")
    t.ok(t.q("b").incompat & 1 == 0, "base is still dirty")
    t.check("b")


@case("c27", "the refcounts of a dirty base are rebuilt first (QEMU overwrites guest data)")
def c27(t):
    crashed_base(t)
    into_crashed(t)


@case("c28", "a dirty base that was repaired before")
def c28(t):
    crashed_base(t)
    t.run("check --repair=all b")
    into_crashed(t)


@case("c29", "an unknown incompatible bit is refused")
def c29(t):
    pair(t)
    t.q("t").set(incompat=0x20)
    t.refused("commit t", says="feature")


@case("c30", "unknown autoclear bits are cleared before the first write (QEMU leaves them)")
def c30(t):
    t.create("b 1M")
    t.q("b").set(autoclear=1 << 63)
    t.same_map("b")
    t.ok(t.q("b").autoclear == 1 << 63, "looking at an image changed it")
    t.create("-b b -F qcow2 t")
    t.write("t", "write 0 64k")
    t.commit(EMPTY, "t")
    t.ok(t.q("b").autoclear == 0, f"autoclear is {t.q('b').autoclear:#x}")


@case("c31", "autoclear bit 0 without a bitmaps extension must not stay")
def c31(t):
    pair(t)
    t.q("b").set(autoclear=1)
    before = t.files()
    r = t.commit("t", rc=(0, 2))
    if r.rc == 2:
        t.ok(t.files() == before, "refused, but files changed")
        return
    t.reads("b", "read -P 2 0 64k")
    t.write("b", "write -P 4 64k 64k")  # QEMU refuses every write while the bit lies
    t.check("b")


@case("c32", "bitmaps in base record the merge, top's stay")
def c32(t):
    t.create("b 1M")
    t.img("bitmap --add b e")
    t.img("bitmap --add --disable b d")
    t.write("b", "write 0 64k")
    t.create("-b b -F qcow2 t")
    t.img("bitmap --add t x")
    t.write("t", "write -P 2 128k 128k")
    t.commit(EMPTY, "t")
    bits = t.q("b").bitmaps()
    t.ok(bits["e"][0] == 2 and oracle.set_bits(bits["e"][2]) == {0, 2, 3}, f"e is {bits['e']}")
    t.ok(bits["d"][0] == 0 and not any(bits["d"][2]), f"d is {bits['d']}")
    top = t.q("t").bitmaps()
    t.ok(oracle.set_bits(top["x"][2]) == {2, 3}, f"x is {top['x']}")
    t.ok(t.q("t").l2(0x20000) == 0, "top is not emptied")
    t.check("b")
    t.check("t")


@case("c33", "an inconsistent bitmap stays as it is, and stops growth until it is removed")
def c33(t):
    t.create("b 1M")
    t.img("bitmap --add b e")
    q = t.q("b")
    directory = int.from_bytes(q.extension(oracle.EXT_BITMAPS)[16:], "big")
    q.put(directory + 12, bytes([0, 0, 0, 3]))
    shutil.copy(t.path("b"), t.path("b2"))
    t.create("-b b -F qcow2 t")
    t.write("t", "write 0 64k")
    t.commit("t")
    t.ok(t.q("b").bitmaps()["e"][0] == 3, "in_use is gone")
    t.create("-b b2 -F qcow2 t2 2M")
    t.write("t2", "write 0 64k")
    want = t.view("t2")
    t.refused("commit", "t2", says="bitmap \"e\"")
    t.img("bitmap --remove b2 e")
    t.commit("t2")
    t.ok(t.view("b2") == want, "the grown base reads wrong")
    t.check("b2")


@case("c34", "bitmaps of layers go into the base, as they do afterwards, the usual way")
def c34(t):
    t.create("b 2M")
    t.img("bitmap --add b k")
    t.write("b", "write 0 64k")
    t.create("-b b -F qcow2 t")
    t.img("bitmap --add t k")
    t.img("bitmap --add t n")
    t.write("t", "write 1M 128k")
    shutil.copy(t.path("b"), t.path("b0"))
    t.commit("--shallow --overlays=keep t")
    bits = t.q("b").bitmaps()
    shutil.copy(t.path("b0"), t.path("b"))
    t.commit("--shallow --overlays=keep --bitmaps=keep t")
    t.img("bitmap --merge k -b t -F qcow2 b k")
    t.img("bitmap --add --merge n -b t -F qcow2 b n")
    t.ok(t.q("b").bitmaps() == bits, f"they are {bits}, not {t.q('b').bitmaps()}")
    t.ok(oracle.set_bits(bits["k"][2]) == {0, 16, 17}, f"k is {bits['k']}")
    t.ok(oracle.set_bits(bits["n"][2]) == {16, 17}, f"n is {bits['n']}")


@case("c35", "a data file is looked for where QEMU does: in the working directory")
def c35(t):
    os.mkdir(t.path("d"))
    oracle.must(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=x.dat", "b", "1M"],
                t.path("d"))
    t.create("-u -b d/b -F qcow2 t 1M")
    t.refused("commit t", says="in the folder of the image")
    t.run("info d/b")


@case("c36", "a raw external data file stays the guest's disk, grown and zeroed")
def c36(t):
    t.create("-o data_file=b.dat,data_file_raw=on b 1M")
    t.write("b", "write -P 1 0 128k")
    t.create("-b b -F qcow2 t 2M")
    t.write("t", "write -P 2 64k 128k", "write -z 0 64k")
    t.commit("t")
    t.reads("b", "read -P 0 0 64k", "read -P 2 64k 128k", "read -P 0 192k 1856k")
    if os.path.getsize(t.path("b.dat")) != 2 << 20:
        raise oracle.Fail("the data file has not grown with the disk")
    with open(t.path("b.dat"), "rb") as f:
        if f.read() != bytes(64 << 10) + b"\2" * (128 << 10) + bytes(1856 << 10):
            raise oracle.Fail("the data file is not the disk")


@case("c37", "an encrypted base is refused without its passphrase")
def c37(t):
    secret = "--object secret,id=s,data=a"
    t.img("create -q -f qcow2", secret,
          "-o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 b 1M")
    t.create("-u -b b -F qcow2 t 1M")
    t.refused("commit t", says="--secret")
    t.run("info b")


@case("c38", "a sibling is a reason to refuse; if it shall be broken, its file is not touched")
def c38(t):
    t.create("b 1M")
    t.write("b", "write -P 1 0 1M")
    t.create("-b b -F qcow2 A")
    t.create("-b b -F qcow2 B")
    t.write("A", "write -P 2 0 64k")
    sibling = oracle.digest(t.path("B"))
    t.refused("commit A", says=["B", "--force"])
    t.commit("--force A")
    t.reads("A", "read -P 2 0 64k", "read -P 1 64k 960k")
    t.ok(oracle.digest(t.path("B")) == sibling, "the sibling's file changed")


@case("c39", "a header that says raw over a qcow2 file is refused (QEMU destroys the file)")
def c39(t):
    t.create("b 1M")
    t.create("-u -b b -F raw t 1M")
    t.write("t", "write -P 2 0 64k")
    t.refused("commit t", says="raw")


@case("c40", "no stored format: refused, naming --backing-format; with it, merged")
def c40(t):
    t.img("create -q -f raw b 1M")
    t.create("-b b -F raw t")
    q = t.q("t")
    t.ok(q.rewrite_extensions([e for e in q.extensions() if e[0] != oracle.EXT_FORMAT]), "stage")
    t.write("t", "write -P 2 0 64k")
    t.refused("commit t", says="--backing-format")
    t.commit("--backing-format raw t")
    t.reads("b", "read -P 2 0 64k", "read -P 0 64k 960k", fmt="raw")


@case("c53", "a child's header is written after everything it depends on (QEMU's rebase is not)")
def c53(t):
    setup = kill.setups()["intermediate"]
    text = kill.run_mode("intermediate", setup, t.qmeld, t.dir, t.tools, most=25)
    t.ok(not text, text)


@case("c55", "a base that somebody reads is refused, and not for longer than that")
def c55(t):
    pair(t)
    with locks.held_by_qemu_io(t.dir, "b", write=False) as pid:
        t.refused("commit t", says=(str(pid), "qemu-io"))
    t.commit("t")
    t.reads("b", "read -P 2 0 64k")


@case("c62", "killed at every write: top reads as before, base leaks at worst")
def c62(t):
    setup = kill.setups()["growing"]
    text = kill.run_mode("growing", setup, t.qmeld, t.dir, t.tools, most=60)
    t.ok(not text, text)


def mounted(t, script):
    """Runs a script in a private mount namespace with a 24 MiB file system at ./mnt."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        raise NotHere("needs root and unshare for a small file system")
    os.mkdir(t.path("mnt"))
    with open(t.path("script"), "w", encoding="utf-8") as f:
        f.write("set -e\nmount -t tmpfs -o size=24M none mnt\ncd mnt\n" + script)
    r = oracle.run(["unshare", "-m", "bash", "script"], t.dir,
                   env={"QMELD": t.qmeld, "CASE": t.dir})
    if "mount:" in r.err or "unshare:" in r.err:
        raise NotHere(r.err.strip())
    return r


@case("c63", "too little space: refused before the first write (QEMU leaves a half-written base)")
def c63(t):
    r = mounted(t, """
qemu-img create -q -f qcow2 b 64M; qemu-io -c 'write -P 1 0 8M' b >/dev/null
qemu-img create -q -f qcow2 -b b -F qcow2 t; qemu-io -c 'write -P 2 4M 12M' t >/dev/null
sha256sum b t >before
$QMELD commit t && rc=0 || rc=$?
echo rc=$rc
sha256sum -c --quiet before && echo untouched
qemu-io -r -c 'read -P 2 4M 12M' -c 'read -P 1 0 4M' t; qemu-img check b
""")
    t.ok("rc=2" in r.out, f"not refused: {r.out[:400]}{r.err[:400]}")
    t.ok("untouched" in r.out, "refused, but files changed")
    t.ok("fail" not in r.out, f"top reads wrong:\n{r.out}")


@case("c64", "no space for bitmaps: no success that loses them silently")
def c64(t):
    r = mounted(t, """
qemu-img create -q -f qcow2 b 64M; qemu-img bitmap --add -g 512 b m
qemu-io -c 'write 0 8M' b >/dev/null
qemu-img create -q -f qcow2 -b $PWD/b -F qcow2 $CASE/t; qemu-io -c 'write -P 4 0 8M' $CASE/t >/dev/null
qemu-img check b >/dev/null
if dd if=/dev/zero of=fill bs=4k 2>/dev/null; then echo 'the disk did not fill'; exit 1; fi
$QMELD commit $CASE/t && rc=0 || rc=$?
echo rc=$rc
rm fill
qemu-img info b
""")
    t.ok("rc=" in r.out, f"the script broke: {r.out}{r.err}")
    bitmap = r.out[r.out.find("bitmaps:"):]
    if "rc=0" in r.out:
        t.ok("in-use" not in bitmap and "name: m" in bitmap, f"rc 0, and the bitmap is lost:\n{r.out}")
    else:
        t.ok("name: m" in bitmap, f"the bitmap is gone:\n{r.out}{r.err}")


def damaged_top(t):
    t.create("b 8M")
    t.write("b", "write -P 1 0 8M")
    t.create("-b b -F qcow2 t")
    t.write("t", "write -P 2 0 4M", "write -c -P 3 6M 64k")


@case("c65", "a top that cannot be read: an error, never an abort, and the truth about the base")
def c65(t):
    damaged_top(t)
    t.q("t").set_l2(0, 0x8000000000050200)
    t.refused("commit t", rc=(1, 2))
    for name in "bt":
        os.unlink(t.path(name))
    damaged_top(t)
    t.q("t").set_l2(0x600000, 0x4000000000060000)
    before = t.files()
    r = t.commit("--decompress t", rc=(1, 2, 3))
    if r.rc == 3:  # half-way: allowed if top still reads what could be read, and base is sound
        t.reads("t", "read -P 2 0 4M", "read -P 1 4M 2M")
        rc, found, text = oracle.check("b", cwd=t.dir)
        t.ok(rc in (0, 3), f"base is corrupt: {found} {text}")
    else:
        t.ok(t.files() == before, f"rc {r.rc} says images are as they were, they are not")


@case("c66", "while a merge runs no one opens the chain; info -U does")
def c66(t):
    t.create("b 8M")
    t.create("-b b -F qcow2 t")
    t.write("t", "write -P 2 0 8M")
    p = subprocess.Popen([t.qmeld, "commit", "--bandwidth", "1M", "t"], cwd=t.dir,
                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        locks.wait_for_locks(t.path("b"), p)
        t.ok(oracle.run(["qemu-img", "info", "-U", "b"], t.dir).rc == 0, "info -U failed")
        for argv in (["qemu-io", "-r", "-c", "read 0 512", "b"],
                     ["qemu-io", "-c", "write 0 512", "t"],
                     ["qemu-img", "create", "-q", "-f", "qcow2", "b", "1M"]):
            r = oracle.run(argv, t.dir)
            t.ok(r.rc != 0 and "lock" in r.err + r.out, f"{' '.join(argv)}: rc {r.rc} {r.err}{r.out}")
        t.ok(p.poll() is None, "the merge ended before it was tested: make it slower")
    finally:
        p.terminate()
        p.wait(30)
    t.reads("t", "read -P 2 0 8M")
