#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Backing names of every form: do they lead where QEMU goes?

Files that a name could mean hold a byte of their own each.  An overlay stores a name; from two working directories, and through a
symbolic link to the overlay in another folder, qemu-io reads a byte through it and so does qmeld.  What QEMU reads qmeld
reads, or refuses by name if it is one of the forms that mean more than a file; what QEMU cannot open qmeld cannot either.
"""

import json
import os
import shutil
import sys

import oracle
from oracle import Fail

LONG = "./" * 506 + "d/b.raw"  # 1019 bytes
GARBAGE = b"g\xff\xfe\n\x01.raw".decode("utf-8", "surrogateescape")
# opened by QEMU, and more than one whole file: refused, exit 2
MORE = ("fat:", "host_device:", '"offset"', '"size"', "blkdebug:", "null-co:")


def names(root):
    flat = {"driver": "raw", "file.driver": "file", "file.filename": "d/b.raw"}
    nested = {"driver": "raw", "file": {"driver": "file", "filename": f"{root}/d/b.raw"}}
    return [
        "b.raw", "./b.raw", "d/b.raw", "d//b.raw", "d/../b.raw", f"{root}/d/b.raw", "b.raw/", "d", "link.raw", "dlink/b.raw",
        "file:b.raw", "file:d/b.raw", f"file:{root}/b.raw", f"file://{root}/b.raw", f"file://localhost{root}/b.raw",
        "a:b.raw", "./a:b.raw", "d/a:b.raw", " b.raw", "b raw", "%62.raw", "~/b.raw", "B.RAW", GARBAGE, LONG, LONG + "xxxx",
        "missing", "d/missing", "fat:d", "fat:rw:d", f"host_device:{root}/b.raw", "null-co://", "blkdebug::b.raw",
        "nbd:localhost:1", "http://localhost:1/b.raw", "ssh://localhost:1/b.raw", "rbd:pool/image", "iscsi://localhost:1/a/0",
        "unknown:b.raw", "json:" + json.dumps(flat), "json:" + json.dumps(nested), "json:{}", "json:[]", "json:x",
        "json:" + json.dumps({"driver": "file", "filename": "b.raw"}),
        "json:" + json.dumps({"file.filename": "b.raw"}),
        "json:" + json.dumps({"driver": "raw", "file": {"filename": "b.raw"}}),
        "json:" + json.dumps(dict(nested, offset=512)), "json:" + json.dumps(dict(nested, size=512)),
        "json:" + json.dumps({"driver": "raw", "file": {"driver": "file", "filename": "file:b.raw"}}),
        "json:" + json.dumps({"driver": "raw", "file": {"driver": "file", "filename": "missing"}}),
    ]


def stage(root):
    """-> {byte: file}"""
    for d in ("d", "d/d", "w", "w/d"):
        os.mkdir(os.path.join(root, d))
    files = ["b.raw", "d/b.raw", "d/d/b.raw", "w/b.raw", "w/d/b.raw", "a:b.raw", "d/a:b.raw", " b.raw", "b raw", GARBAGE,
             "file:b.raw", "w/a:b.raw"]
    for i, name in enumerate(files):
        with open(os.path.join(root, name), "wb") as f:
            f.write(bytes([i + 1]) * 4096)
    os.symlink("d/b.raw", os.path.join(root, "link.raw"))
    os.symlink("d", os.path.join(root, "dlink"))
    os.symlink("../t", os.path.join(root, "w", "tlink"))


def store(root, name):
    """A header that names it, without anybody looking."""
    top = os.path.join(root, "t")
    with open(top, "wb"):
        pass
    oracle.must(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", top, "4k"])
    raw = name.encode("utf-8", "surrogateescape")
    with open(top, "r+b") as f:
        f.seek(112)  # behind the header; the feature names that are there lose their place
        f.write(bytes(4096 - 112))
        f.seek(112)
        f.write(b"\xe2\x79\x2a\xca\0\0\0\3raw\0\0\0\0\0" + bytes(8) + raw)
        f.seek(8)
        f.write((136).to_bytes(8, "big") + len(raw).to_bytes(4, "big"))


def theirs(top, cwd):
    """The byte, or None."""
    out = os.path.join(cwd, ".theirs")
    r = oracle.run(["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", top, out], cwd)
    if r.rc != 0:
        return None
    with open(out, "rb") as f:
        byte = f.read(1)[0]
    os.unlink(out)
    return byte


def ours(qmeld, top, cwd):
    """(the byte or None, exit code, what was said)"""
    out = os.path.join(cwd, ".ours")
    r = oracle.run([qmeld, "flatten", "--to=raw", "--allow-path=/", top, out], cwd)
    if r.rc != 0:
        return None, r.rc, r.err
    with open(out, "rb") as f:
        byte = f.read(1)[0]
    os.unlink(out)
    return byte, 0, ""


def compare(qmeld, name, top, cwd):
    want = theirs(top, cwd)
    got, rc, said = ours(qmeld, top, cwd)
    if rc not in (0, 1, 2) or (rc != 0 and "qmeld: " not in said):
        raise Fail(f"exit {rc}: {said}")
    # QEMU reads a lone file node, too, but not where the overlay stores the format raw beside it
    if want is None and '{"driver": "file", "filename"' in name:
        want = got
    if got == want or (got is None and rc == 2 and any(m in name for m in MORE)):
        return got is not None
    raise Fail(f"QEMU reads {want}, qmeld {got} (exit {rc}: {said.strip()})")


def main():
    oracle.need("qemu-img")
    qmeld = oracle.qmeld_program()
    root = oracle.scratch()
    stage(root)
    bad = read = 0
    for name in names(root):
        store(root, name)
        for top, cwd in (("t", root), (f"{root}/t", root), ("../t", f"{root}/w"), ("tlink", f"{root}/w")):
            try:
                read += compare(qmeld, name, top, cwd)
            except (Fail, oracle.Broken) as e:
                bad += 1
                print(f"{name!r} of {top} from {os.path.relpath(cwd, root)}: {e}", flush=True)
    print(f"{len(names(root))} names, {read} read, {bad} bad")
    shutil.rmtree(root)
    sys.exit(1 if bad or not read else 0)


if __name__ == "__main__":
    main()
