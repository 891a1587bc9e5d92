# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a merge or a new image will cost."""
import fcntl
import json
import os
import re
import struct
import subprocess

from lib import (CHAIN, HAVE_QEMU, QMELD, UP, contents, files_here, forge, plan, qemu_img, qmeld, same)


def plan__prices_both_directions():
    forge(UP)
    plan = json.loads(qmeld("plan", "--output=json", "top.qcow2").stdout)
    modes = {m["mode"]: m for m in plan["modes"]}
    up, flat = modes["--direction=up --overlays=delete"], modes["flatten"]
    assert up["possible"] and up["bytes-written"] < plan["bytes-written"] and flat["bound"], modes
    how = ["--direction=up", "--overlays=delete", "--output=json", "top.qcow2"]
    planned = json.loads(qmeld("plan", *how).stdout)
    assert planned["direction"] == "up" and planned["target-layer"] == 2, planned
    done = json.loads(qmeld("commit", *how).stdout)
    assert os.path.getsize("base.qcow2") == up["new-length"] == planned["layers"][1]["new-length"]
    assert done["bytes-copied"] == planned["bytes-copied"], (done, planned)


def state():
    return {n: (contents(n), os.stat(n).st_mtime_ns) for n in sorted(os.listdir("."))}


def plan__says_what_commit_then_does():
    forge(CHAIN)
    before = state()
    said = plan("top.qcow2")
    text = qmeld("plan", "top.qcow2").stdout
    assert state() == before, "plan has changed something"
    assert "merge of [2]..[3] into [1]" in text and "at most" in text, text
    done = json.loads(qmeld("commit", "--output=json", "top.qcow2").stdout)
    for key in ("bytes-copied", "bytes-filled", "bytes-zeroed", "base-new-size"):
        assert said[key] == done[key], (key, said[key], done[key])
    for layer in said["layers"]:
        assert layer["new-length"] == os.path.getsize(layer["filename"]), layer
    assert [x["fate"] for x in said["layers"]] == [x["fate"] for x in done["layers"]]
    same(plan("top.qcow2")["result"], "already-merged")
    assert "already merged" in qmeld("plan", "top.qcow2").stdout
    page = qmeld("plan", "--format=html", "top.qcow2").stdout
    assert "Already merged" in page and "goes to [1]" not in page  # the picture contradicts no sentence


def plan__of_a_merge_that_is_held_tells_that_it_is_done():
    """Its journal answers, and no layer is opened."""
    forge(CHAIN)
    qmeld("commit", "-q", "--undo", "--base=[1]", "--top=[2]", "top.qcow2")
    told = json.loads(qmeld("plan", "--output=json", "--undo", "--base=[1]", "--top=[2]", "top.qcow2").stdout)
    same([told[k] for k in ("result", "base-layer", "top-layer", "target-layer")], ["already-merged", 1, 2, 1])
    for layer in told["layers"]:
        same((layer["old-length"], layer["new-length"]), (os.path.getsize(layer["filename"]),) * 2)
    assert "qmeld finalize" in qmeld("plan", "top.qcow2", code=2).stderr  # other words


def plan__of_a_single_image_is_nothing_to_do():
    forge("one.qcow2 | A.A\n")
    assert "nothing to do" in qmeld("plan", "one.qcow2").stdout
    same(plan("one.qcow2")["result"], "nothing-to-do")


def plan__refuses_what_commit_refuses():
    forge("top.qcow2 | ..D.\n  snapshot s ....\nbase.qcow2 | AAAA\n")
    said, done = qmeld("plan", "top.qcow2", code=2), qmeld("commit", "top.qcow2", code=2)
    assert said.stderr.splitlines()[0] == done.stderr.splitlines()[1], said
    assert "would read wrong" in said.stdout and "would read wrong" in done.stderr.splitlines()[0]
    same(plan("top.qcow2", code=2)["error"]["code"], "usage")
    forge(CHAIN)
    said, done = (qmeld(c, "--base=[3]", "top.qcow2", code=2) for c in ("plan", "commit"))
    assert said.stderr.splitlines()[0] == done.stderr.splitlines()[0]
    for name in os.listdir("."):
        os.remove(name)
    forge("all cluster=4k\ntop.qcow2 | AAAA\nbase.qcow2 | B size=32k\n")  # up, the active layer would grow
    before = files_here()
    said, done = (qmeld(c, "--direction=up", "--overlays=delete", "top.qcow2", code=2) for c in ("plan", "commit"))
    assert said.stderr.splitlines()[0] == done.stderr.splitlines()[0]
    assert "longer than the active layer's" in done.stderr and files_here() == before, done.stderr


def plan__tells_of_files_renamed_and_deleted():
    forge(CHAIN)
    moved = plan("--overlays=quarantine", "top.qcow2")["layers"]
    assert moved[1]["moved-to"].endswith("mid.qcow2.merged") and "moved-to" not in moved[0]
    gone = plan("--overlays=delete", "top.qcow2")["layers"]
    assert gone[2]["fate"] == "deleted" and gone[2]["new-length"] == gone[2]["new-allocated"] == 0


def plan__looks_beside_whoever_uses_the_image():
    forge(CHAIN)
    with open("mid.qcow2", "r+b") as f:  # as a QEMU that writes has it: OFD locks, 101 and 201
        for byte in (100, 101, 201, 203):
            fcntl.fcntl(f, 37, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, byte, 1, 0))
        done = qmeld("plan", "--output=json", "top.qcow2")
        said = json.loads(done.stdout)
        assert said["result"] == "to-do" and said["obstacles"][0]["code"] == "busy", said
        assert f"pid {os.getpid()}" in qmeld("plan", "top.qcow2").stderr
        qmeld("commit", "top.qcow2", code=2)


def plan__goes_on_with_an_interrupted_merge():
    forge(CHAIN)
    os.mkdir("journals")
    with open("base.raw", "rb") as f:  # somebody reads the base: the journal is made, no more
        fcntl.fcntl(f, 37, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 100, 1, 0))
        qmeld("commit", "--journal-dir=journals", "top.qcow2", code=2)
    assert os.listdir("journals") == []
    qmeld("commit", "--journal-dir=journals", "--deadline=0", "top.qcow2", code=75)
    assert plan("--journal-dir=journals", "top.qcow2")["result"] == "to-do"


def plan__a_limit_on_file_sizes_is_seen_before_the_first_write():
    forge("all cluster=64k\ntop.qcow2 | DDDDDDDDDDDDDDDD\nbase.qcow2 | A...............\n")
    before = state()
    for command in ("plan", "commit"):
        done = subprocess.run(["sh", "-c", 'ulimit -f 600; exec "$0" "$@"', QMELD, command, "top.qcow2"],
                              capture_output=True, text=True)
        assert done.returncode == 2 and "ulimit" in done.stderr, done
    assert state() == before
    qmeld("commit", "top.qcow2")


def measure__is_the_length_of_the_base():
    forge(CHAIN.replace("base.raw ", "base.qcow2"))
    text = qmeld("measure", "--onto=base.qcow2", "top.qcow2").stdout
    sizes = [int(n) for n in re.fullmatch(
        r"required size: (\d+)\nfully allocated size: (\d+)\n", text).groups()]
    short = json.loads(qmeld("measure", "--onto=[1]", "--top=[2]", "--output=json", "top.qcow2").stdout)
    assert short["required"] <= sizes[0] and set(short) == {"required", "fully-allocated"}, short
    qmeld("commit", "top.qcow2")
    same(os.path.getsize("base.qcow2"), sizes[0])
    if HAVE_QEMU:  # the guest writes everywhere
        size = json.loads(qemu_img("info", "--output=json", "base.qcow2"))["virtual-size"]
        subprocess.run(["qemu-io", "-c", f"write -P 7 0 {size}", "base.qcow2"], check=True,
                       capture_output=True)
        assert 0 <= sizes[1] - os.path.getsize("base.qcow2") <= 65536, (sizes, os.path.getsize("base.qcow2"))


def measure__of_a_new_image_has_the_numbers_of_qemu_img():
    forge(CHAIN.replace("base.raw ", "base.qcow2"))
    for words in (["top.qcow2"], ["-O", "qcow2", "top.qcow2"], ["-O", "qcow2", "-o", "cluster_size=4k", "top.qcow2"],
                  ["-O", "qcow2", "-o", "compat=0.10,preallocation=full", "top.qcow2"], ["--size", "5G"],
                  ["-O", "qcow2", "-o", "extended_l2=on,refcount_bits=64", "--size", "5G"]):
        same(qmeld("measure", *words).stdout, qemu_img("measure", *words))
        same(json.loads(qmeld("measure", "--output=json", *words).stdout),
             json.loads(qemu_img("measure", "--output=json", *words)))


def measure__contradictions_are_refused():
    for words, text in (([], "one image or --size"), (["--size=1M", "x"], "--size"), (["-O", "qcow2", "--onto=[1]", "x"], "--onto"),
                        (["--top=[1]", "x"], "--onto"), (["-O", "vmdk", "--size=1M"], "vmdk"),
                        (["-o", "cluster_size=4k", "--size=1M"], "qcow2"), (["-O", "qcow2", "-o", "cluster_size=3k", "--size=1M"], "cluster")):
        assert text in qmeld("measure", *words, code=2).stderr, words
    for words, text in ((["--image-opts", "x"], "--image-opts"), (["--object=x", "x"], "--object"),
                        (["-l", "one", "--size=1M"], "-l"), (["-l", "one", "--onto=[1]", "x"], "-l")):
        assert text in qmeld("measure", *words, code=2).stderr, words
