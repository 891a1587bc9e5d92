# SPDX-License-Identifier: LGPL-2.1-or-later
"""Known cases about names, headers, map and check."""

import os
import re
import shutil
import struct

import oracle
from cases import NotHere, case


@case("c41", "backing names: relative, file:, with a colon, json")
def c41(t):
    os.mkdir(t.path("d"))
    t.create("d/b 1M")
    t.write("d/b", "write -P 1 0 64k")
    t.create("b 1M")
    t.write("b", "write -P 2 128k 128k")

    def names(name, answer):
        if os.path.exists(t.path("d/t")):
            os.unlink(t.path("d/t"))
        t.create(["-u", "-b", name, "-F", "qcow2", "d/t", "1M"])
        text = t.same_map("d/t")
        t.ok(('"length": 131072' in text) == (answer == 2), f"{name} leads to the wrong file")

    names("b", 1)
    names("file:b", 2)
    names('json:{"file.filename":"b"}', 2)
    names("json:{'file':{'driver':'file','filename':'d/b'}}", 1)
    names("json:{'driver':'qcow2','file.driver':'file','file.filename':'b'}", 2)
    os.rename(t.path("d/b"), t.path("d/a:b"))
    names("./a:b", 1)
    t.create("-u -b a:b -F qcow2 t 1M")
    t.refused("commit t", says="a:b")


@case("c42", "a stored format that contradicts a json driver: refused before writing")
def c42(t):
    t.create("b 1M")
    t.write("b", "write -P 1 0 64k")
    t.create(["-u", "-b", "json:{'driver':'qcow2','file.filename':'%s'}" % t.path("b"),
              "-F", "raw", "t", "1M"])
    t.write("t", "write -P 2 64k 64k")
    t.refused("commit t")


@case("c43", "names resolve beside the symlink that was opened")
def c43(t):
    os.mkdir(t.path("d"))
    os.mkdir(t.path("e"))
    t.create("d/b 1M")
    t.create("-u -b b -F qcow2 d/t 1M")
    os.symlink("../d/t", t.path("e/t"))
    t.same_map("d/t")
    t.refused("map e/t", rc=(1, 2))
    t.refused("commit e/t", rc=(1, 2), says="b")


@case("c44", "a child's header cluster that is too small: refused before anything is written")
def c44(t):
    for length, rc in ((60, 0), (390, 2)):
        name = "n" * 180 + "/" + "x" * (length - 181) if length > 200 else "x" * length
        if "/" in name:
            os.mkdir(t.path(name.split("/")[0]))
        t.create([name, "1M"])
        t.write(name, "write -P 1 0 64k")
        t.create(["-b", name, "-F", "qcow2", f"m{length}", "1M"])
        t.write(f"m{length}", "write -P 2 64k 64k")
        t.create(["-o", "cluster_size=512", "-b", f"m{length}", "-F", "qcow2", f"t{length}", "1M"])
        args = ["commit", "--top", f"m{length}", f"t{length}"]
        if rc == 2:
            t.refused(args)
        else:
            t.run(args)
            t.ok(t.q(f"t{length}").backing() == (name, "qcow2"), "child's header")
        t.reads(f"t{length}", "read -P 1 0 64k", "read -P 2 64k 64k")
        t.check(f"t{length}")


@case("c45", "unknown header extensions survive")
def c45(t):
    t.create("b 1M")
    t.create("-b b -F qcow2 m")
    t.write("m", "write -P 1 0 64k")
    t.create("-b m -F qcow2 t")
    unknown = [(0x11111111, b"one"), (0x22222222, b"twotwotwo")]
    for name in "bt":
        q = t.q(name)
        t.ok(q.rewrite_extensions(q.extensions() + unknown), "stage")
    t.commit("--top m t")
    for name in "bt":
        kept = [e for e in t.q(name).extensions() if e in unknown]
        t.ok(sorted(kept) == unknown, f"{name} has {t.q(name).extensions()}")
    t.ok(t.q("t").backing() == ("b", "qcow2"), "child's header")
    t.reads("t", "read -P 1 0 64k")


@case("c46", "how --base may name a layer")
def c46(t):
    t.create("b 1M")
    t.create("-b b -F qcow2 m")
    t.create("-b m -F qcow2 t")
    t.write("t", "write -P 1 0 64k")
    os.symlink("b", t.path("l"))
    os.mkdir(t.path("s"))
    for base in ("l", t.path("b"), "[1]", "./b"):
        t.commit("--base", [base], "t")
    for base in ("b", "../b"):  # as the chain has it, and as the working directory has it
        t.commit("--base", [base], "../t", cwd=t.path("s"))
    t.reads("b", "read -P 1 0 64k")
    t.create("stranger 1M")
    for base in ("t", "stranger", "[3]", "[0]", "[9]", "nothing"):
        t.refused(["commit", "--base", base, "t"])


@case("c47", "entries past the end of the file and reserved bits read as QEMU reads them")
def c47(t):
    for name, entry in (("far", 0x8000000100000000), ("bits", 0xBF000000000501FE),
                        ("odd", 0x8000000000050200)):
        t.create(f"b{name} 1M")
        t.write(f"b{name}", "write -P 9 0 1M")
        t.create(f"-b b{name} -F qcow2 {name}")
        t.write(name, "write -P 1 0 64k")
        t.q(name).set_l2(0, entry)
        t.run("check", name, rc=2)
    t.commit("far")
    t.reads("bfar", "read -P 0 0 64k", "read -P 9 64k 960k")
    t.commit("bits")
    t.reads("bbits", "read -P 1 0 64k", "read -P 9 64k 960k")
    t.refused("commit odd", rc=(1, 2))


@case("c48", "a zero flag in version 2 is corruption")
def c48(t):
    t.create("b 1M")
    t.create("-o compat=0.10 -b b -F qcow2 t")
    t.write("t", "write -P 1 0 64k")
    t.q("t").set_l2(0, 1)
    t.refused("commit t", rc=(1, 2))


@case("c49", "a chain that loops is an error, at once")
def c49(t):
    t.create("-u -b m -F qcow2 t 1M")
    t.create("-u -b t -F qcow2 m 1M")
    t.create("-u -b self -F qcow2 other 1M")
    os.rename(t.path("other"), t.path("self"))
    for name in ("t", "self"):
        for command in ("info", "map", "commit"):
            t.refused([command, name], rc=(1, 2), says="loop")


@case("c56", "preallocated metadata: map, and a merge into and out of it")
def c56(t):
    t.create("b 4M")
    t.create("-o preallocation=metadata p 4M")
    t.write("p", "write -P 1 64k 64k")
    text = t.same_map("p")
    t.ok('"zero": true, "data": true' in text, "the stage is wrong: nothing is preallocated")
    t.create("-b p -F qcow2 t")
    t.write("t", "write -P 2 1M 64k", "write -z 64k 32k")
    t.commit("t")
    t.reads("p", "read -P 0 0 96k", "read -P 1 96k 32k", "read -P 2 1M 64k", "read -P 0 1088k 1M")
    t.check("p")


@case("c58", "relative names that cross directories")
def c58(t):
    for name in "abc":
        os.mkdir(t.path(name))
    t.create("a/base 1M")
    t.write("a/base", "write -P 1 0 64k")
    t.create("-u -b ../a/base -F qcow2 b/mid 1M")
    t.write("b/mid", "write -P 2 64k 64k")
    t.create("-u -b ../b/mid -F qcow2 c/top 1M")
    t.write("c/top", "write -P 3 128k 64k")
    t.commit("--base ../a/base --top ../b/mid c/top")
    t.ok(t.q("c/top").backing() == ("../a/base", "qcow2"), f"child: {t.q('c/top').backing()}")
    t.reads("c/top", "read -P 1 0 64k", "read -P 2 64k 64k", "read -P 3 128k 64k")
    t.commit("--base ../a/base c/top")
    t.reads("a/base", "read -P 1 0 64k", "read -P 2 64k 64k", "read -P 3 128k 64k")


@case("c59", "map of a mixed chain, to the letter")
def c59(t):
    with open(t.path("z"), "wb") as f:
        f.truncate(1 << 20)
    t.write("z", "write -P 1 64k 64k", fmt="raw")
    t.create("-b z -F raw t 2M")
    t.write("t", "write -P 2 512k 64k", "write -z 700k 132k")
    text = t.same_map("t")
    t.ok(text.count("start") == 8 and '"present": false' in text, f"the stage is wrong:\n{text}")
    for clip in ("-s 70000 -l 100000", "-s 1M", "-l 1", "-s 3M"):
        want = oracle.run(["qemu-img", "map", "--output=json", *clip.split(), "t"], t.dir)
        got = oracle.run([t.qmeld, "map", "--output=json", *clip.split(), "t"], t.dir)
        t.ok((got.rc, got.out) == (want.rc, want.out), f"map {clip}: {got} not {want}")


@case("c60", "check: exit codes and repairs")
def c60(t):
    t.create("b 1M")
    t.write("b", "write -P 1 0 128k")
    t.run("check b")
    shutil.copy(t.path("b"), t.path("l"))
    t.q("l").set_l2(0, 0)
    t.run("check l", rc=3)
    t.run("check --repair=leaks l")
    t.check("l")
    shutil.copy(t.path("b"), t.path("e"))
    t.q("e").put(0x2000A, b"\0\0")
    t.run("check e", rc=2)
    before = oracle.digest(t.path("e"))
    t.run("check --repair=leaks e", rc=(1, 2))
    t.reads("e", "read -P 1 0 128k")
    if oracle.digest(t.path("e")) != before:
        t.ok(oracle.check("e", cwd=t.dir)[0] == 2, "a repair of leaks made it something else")
    t.run("check --repair=all e")
    t.check("e")
    t.reads("e", "read -P 1 0 128k")
    t.img("create -q -f raw x 1M")
    t.run("check -f raw x", rc=63)
    t.run("check nope", rc=1)


@case("c61", "measure of an image: what qemu-img measure says")
def c61(t):
    t.create("b 1M")
    theirs = oracle.must(["qemu-img", "measure", "-f", "qcow2", "b"], t.dir).out
    t.ok(t.run("measure", "b").out == theirs, "measure differs from qemu-img measure")


@case("c67", "header limits: one clear error each, nothing touched")
def c67(t):
    t.create("g 1M")
    t.create("-o cluster_size=8k small 1M")
    limits = [
        ("g", "cluster size", {"cluster_bits": 22}), ("g", "cluster size", {"cluster_bits": 8}),
        ("g", "L1", {"l1_size": 0x400001}), ("g", "L1", {"l1_size": 0}),
        ("g", "L1", {"l1_off": 0x30200}), ("g", "refcount table", {"rt_clusters": 129}),
        ("g", "refcount table", {"rt_clusters": 0}), ("g", "snapshot", {"nb_snap": 65537}),
        ("g", "backing", {"bf_off": 60000, "bf_size": 1024}),
        ("g", "backing", {"bf_off": 65537, "bf_size": 1}),
        ("g", "header", {"header_length": 96}), ("g", "refcount", {"refcount_order": 7}),
        ("g", "compression", {"comp_type": 1}), ("g", "data", {"incompat": 4}),
        ("g", "data", {"autoclear": 2}), ("small", "subcluster", {"incompat": 16}),
        ("g", "version", {"version": 4}), ("g", "", {"size": 1 << 62}),
    ]
    for source, word, fields in limits:
        shutil.copy(t.path(source), t.path("h"))
        t.q("h").set(**fields)
        t.refused("map -f qcow2 h", rc=(1, 2), says=word)
        if os.path.exists(t.path("t")):
            os.unlink(t.path("t"))
        t.create("-u -b h -F qcow2 t 1M")
        t.refused("commit t", rc=(1, 2), says=word)


@case("c68", "a raw file made by qemu-img has its first 4 KiB allocated")
def c68(t):
    t.img("create -q -f raw a 1M")
    with open(t.path("z"), "wb") as f:
        f.truncate(1 << 20)
    with open(t.path("odd"), "wb") as f:
        f.write(b"x" * 1000)
    t.create("empty 0")
    for name, fmt in (("a", "raw"), ("z", "raw"), ("odd", "raw"), ("empty", "qcow2")):
        t.same_map(name, fmt)


@case("c70", "a header extension that runs out of the header is an error")
def c70(t):
    t.create("b 1M")
    q = t.q("b")
    q.put(q.header_length, struct.pack(">II", 0x33333333, 1 << 30))
    t.refused("map -f qcow2 b", rc=(1, 2), says="extension")


@case("c71", "a file beside the chain costs one open, and one read of 4 KiB at most")
def c71(t):
    if not shutil.which("strace"):
        raise NotHere("strace is not installed")
    t.create("b 1M")
    t.create("-b b -F qcow2 t")
    t.create("lone 1M")
    t.write("t", "write -P 2 0 64k")
    for name, content in (("noise", b"\xff" * (1 << 20)), ("empty", b"")):
        with open(t.path(name), "wb") as f:
            f.write(content)
    trace = t.path("../trace-c71")
    r = oracle.run(["strace", "-f", "-y", "-s", "4", "-o", trace, t.qmeld, "commit", "t"], t.dir,
                   env={"ASAN_OPTIONS": "detect_leaks=0"})
    if r.rc != 0 and "ptrace" in r.err:
        raise NotHere("strace may not trace here")
    t.ok(r.rc == 0, r.err)
    with open(trace, encoding="utf-8", errors="backslashreplace") as f:
        lines = f.read().splitlines()
    os.unlink(trace)
    for name, most in (("lone", 1), ("noise", 1), ("empty", 1)):
        opens = [x for x in lines if re.search(rf'open\w*\(.*/{name}"', x)]
        reads = [x for x in lines if re.search(rf"\b(p?read\w*|mmap)\(.*/{name}>", x)]
        t.ok(len(opens) == 1, f"{name} is opened {len(opens)} times: {opens}")
        t.ok(len(reads) <= most and all(", 4096, 0" in x or "unfinished" in x for x in reads), f"{name} is read: {reads}")


def stranger(t, word, *args, rc=2):
    t.refused(*args, says=word, rc=rc)


@case("c72", "what is no image, or names none, is refused in a sentence, and nothing changes")
def c72(t):
    os.mkfifo(t.path("fifo"))
    os.mkdir(t.path("folder"))
    os.symlink("loop", t.path("loop"))
    with open(t.path("zero"), "wb"):
        pass
    for name in ("fifo", "folder", "/dev/null"):
        for command in ("commit", "info", "map", "check", "plan"):
            stranger(t, "neither a regular file nor a block device", command, name, rc=1 if command == "check" else 2)
    for name, word in (("nothing", "no such file"), ("zero/", "not a directory"), ("loop", "symbolic links")):
        stranger(t, word, "commit", name, rc=1)
    for fmt in ("vmdk", "vdi", "vhdx", "qed", "parallels", "vpc"):
        if oracle.run(["qemu-img", "create", "-q", "-f", fmt, "x." + fmt, "1M"], t.dir).rc != 0:
            continue
        t.create(f"-b x.{fmt} -F {fmt} over-{fmt}")
        stranger(t, f"qemu-img convert -f {fmt}", "commit", "over-" + fmt)
        stranger(t, f"qemu-img convert -f {fmt}", "info", "x." + fmt)
    for name in ("http://h/x", "https://h/x", "ftp://h/x", "ftps://h/x", "ssh://h/x", "rbd:p/x", "gluster://h/v/x",
                 "iscsi://h/x/0", "nfs://h/x", "sheepdog:x", "vxhs://h/x", "nvme://0000:01/1", "fat:/etc",
                 "blkdebug::x", "blkverify:a:b", "quorum:x", "throttle:x", "null-co://", "null-aio://",
                 "host_device:/dev/null", "luks:x", "fd:3", "foo:bar"):
        oracle.must(["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", "raw", "t", "1M"], t.dir)
        for command in ("commit", "map", "flatten"):
            stranger(t, f'"{name.split(":")[0]}"', command, "t", *(["out"] if command == "flatten" else []))
    for name, word, rc in (("fifo", "neither a regular", 2), ("folder", "neither a regular", 2), (".", "neither a regular", 2),
                           ("..", "regular file", 2), ("/dev/null", "--allow-path", 2), ("zero/", "not a directory", 1),
                           ("nothing", "no such file", 1), ("loop", "symbolic links", 1)):
        oracle.must(["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", "raw", "t", "1M"], t.dir)
        stranger(t, word, "commit", "t", rc=rc)
