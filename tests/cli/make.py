# SPDX-License-Identifier: LGPL-2.1-or-later
"""New images, other backing files, shorter chains."""
import json
import os
import signal
import subprocess

from lib import (ANY, BIG, CHAIN, QMELD, Skip, contents, expected, forge, interrupt, poke, qemu_img, qmeld,
                 same, view)


def flatten__a_pipe_gets_the_disk_and_nothing_else():
    forge(CHAIN)
    qmeld("flatten", "-q", "top.qcow2", "disk.raw")
    done = subprocess.run([QMELD, "flatten", "top.qcow2", "-"], capture_output=True, timeout=60)
    assert done.returncode == 0 and done.stdout == contents("disk.raw"), done.stderr
    done = qmeld("flatten", "--output=json", "top.qcow2", "-", code=2)
    assert "no place for a report" in done.stderr


def flatten__a_closed_pipe_is_a_failure():
    forge(CHAIN)
    r, w = os.pipe()
    os.close(r)
    done = subprocess.run([QMELD, "flatten", "top.qcow2", "-"], stdout=w, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(w)
    assert done.returncode == 1 and "standard output" in done.stderr, done


def flatten__options_that_contradict_each_other_leave_nothing():
    forge(CHAIN)
    before = sorted(os.listdir("."))
    for wrong in (["-c"], ["--cluster-size=4k"], ["-O", "vmdk"], ["-O", "qcow2", "--compress=lzo"],
                  ["-O", "qcow2", "--compress=zlib:10"], ["-O", "qcow2", "--compress=zlib", "--compression-type=zstd"],
                  ["--leaf=4k"], ["--manifest=m", "--leaf=5000"], ["--fill=x"], ["--salvage-map=m"],
                  ["--salvage", "--fill="], ["--snapshot=none"], ["-O", "qcow2", "--cluster-size=3k"],
                  ["--manifest=top.qcow2", "--force"], ["--preallocation=metadata"],
                  ["-O", "qcow2", "-c", "-o", "preallocation=full"], ["-o", "backing_file=x"]):
        done = qmeld("flatten", *wrong, "top.qcow2", "new", code=2)
        assert done.stderr.startswith("qmeld: "), done.stderr
        assert sorted(os.listdir(".")) == before, (wrong, os.listdir("."))


def flatten__the_report_has_the_digests():
    forge(CHAIN)
    told = json.loads(qmeld("flatten", "--output=json", "--manifest=m", "top.qcow2", "new").stdout)
    noted = json.loads(contents("m"))
    assert told["sha256"] == noted["sha256"] and told["merkle-root"] == noted["merkle_root"]
    assert noted["command"][1:] == ["flatten", "--output=json", "--manifest=m", "top.qcow2", "new"]


def flatten__compressed_clusters_are_passed_on_unless_a_level_is_said():
    forge("all cluster=4k\ntop.qcow2 | a.cD0f\nbase.qcow2 | ABCDEFG\n")
    flat = ["flatten", "--output=json", "--force", "-O", "qcow2", "--cluster-size=4k"]
    for how, passed in ((["-c"], 3), (["--compress=zlib:2"], 0), (["--compress=zstd"], 0), ([], 0)):
        told = json.loads(qmeld(*flat, *how, "top.qcow2", "new").stdout)
        same(told["bytes-passed"], passed * 4096)
        same(json.loads(qmeld("compare", "--output=json", "top.qcow2", "new").stdout)["identical"], True)
        same(json.loads(qmeld("check", "--output=json", "new").stdout).get("compressed-clusters", 0) > 0, bool(how))


def flatten__what_is_encrypted_is_not_shared():
    """In test builds as if the file system could share blocks; its bytes there are not the guest's."""
    with open("pw", "w") as f:
        f.write("secret")
    qemu_img(*["create", "-q", "--object", "secret,id=s,file=pw", "-f", "qcow2", "-o",
                    "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", "top.qcow2", "1M"])
    subprocess.run(["qemu-io", "--object", "secret,id=s,file=pw", "--image-opts", "-c", "write -P 7 64k 512k",
                    "driver=qcow2,file.filename=top.qcow2,encrypt.key-secret=s"], check=True, capture_output=True)
    for to in ("raw", "qcow2"):
        qmeld("flatten", "-q", "-O", to, "--secret=pw", "top.qcow2", "new." + to,
              env={**os.environ, "QMELD_TEST_SHARE": "4096"})
        qmeld("flatten", "-q", "new." + to, to)
        assert contents(to) == bytes(65536) + b"\7" * 524288 + bytes(458752), to


SMALL_BATCHES = {**os.environ, "QMELD_TEST_BATCH": "8192", "COLUMNS": "80"}


def cut_flatten_short(*args):
    """The new image may not get longer than 400 KB: as if there were no room."""
    import resource

    forge("all cluster=4k size=1M\ntop.qcow2 | .B\nbase.raw | " + "ABCDEFGHIJKLMNOPQRSTUVWXYZ" * 8 + "\n")
    limits = (400000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    done = qmeld("flatten", "-q", "-O", "qcow2", "--cluster-size=4k", *args, "top.qcow2", "new", code=ANY,
                 env=SMALL_BATCHES, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits))
    if done.returncode == 2:  # no test build: its batches are longer than this image
        raise Skip("batches cannot be made small in this build")
    assert done.returncode == 3 and "same command again" in done.stderr, done
    assert os.path.exists(".new.qmeld-partial") and not os.path.exists("new")


def flatten__status_knows_what_is_not_complete():
    cut_flatten_short()
    for path in (".", "new", ".new.qmeld-flatten", ".new.qmeld-partial"):
        done = qmeld("status", path, code=3)
        assert "flattening of" in done.stdout and "INVALID" in done.stdout and "qmeld resume" in done.stdout, done
        told = json.loads(qmeld("status", "--output=json", path, code=3).stdout)
        assert [t["work"] for t in told] == ["flatten"] and told[0]["size"] == 1 << 20 and not told[0]["running"], told
    os.unlink(".new.qmeld-flatten")
    assert "left over" in qmeld("status", code=0).stdout
    assert "no note" in qmeld("resume", ".new.qmeld-partial", code=ANY).stderr
    qmeld("revert", ".new.qmeld-partial")
    same(sorted(os.listdir(".")), ["base.raw", "recipe", "top.qcow2"])


def flatten__note_that_was_never_whole_is_left_over():
    """What a power cut leaves while the note is made: its name, or its length, and no head."""
    for length, partial in ((0, True), (4096, True), (4096, False)):
        cut_flatten_short()
        if not partial:
            os.unlink(".new.qmeld-partial")
        with open(".new.qmeld-flatten", "wb") as f:
            f.truncate(length)
        said = qmeld("status").stdout
        assert "left over" in said and "qmeld resume" not in said, said
        assert "note" not in json.loads(qmeld("status", "--output=json").stdout)[0]
        qmeld("recover", ".")
        qmeld("revert", ".new.qmeld-partial" if partial else ".new.qmeld-flatten")
        same(sorted(os.listdir(".")), ["base.raw", "recipe", "top.qcow2"])


def flatten__resume_recover_and_revert_know_it_too():
    for end in (["resume", "new"], ["resume", ".new.qmeld-flatten"], ["recover", "."]):
        cut_flatten_short("--refcount-bits=1", "--manifest=m", "--leaf=64k")
        os.mkdir("elsewhere")
        assert "finished" in qmeld(end[0], os.path.join(os.getcwd(), end[1]), cwd="elsewhere",
                                   env=SMALL_BATCHES).stdout
        same(json.loads(qmeld("compare", "--output=json", "top.qcow2", "new").stdout)["identical"], True)
        assert "all is as" in qmeld("verify", "m").stdout
        assert "nothing is unfinished" in qmeld("status").stdout
        assert not [n for n in os.listdir(".") if n.startswith(".")], os.listdir(".")
        for name in ("new", "m"):
            os.unlink(name)
        os.rmdir("elsewhere")
    cut_flatten_short("--preallocation=full")  # the note says so, too
    qmeld("resume", "new", env=SMALL_BATCHES)
    assert os.stat("new").st_blocks * 512 >= 1 << 20
    same(json.loads(qmeld("compare", "--output=json", "top.qcow2", "new").stdout)["identical"], True)
    os.unlink("new")
    cut_flatten_short("--manifest=m", "--leaf=64k")
    qmeld("revert", "new")
    assert not [n for n in os.listdir(".") if n.startswith(".")], os.listdir(".")
    cut_flatten_short()
    poke("base.raw", 0, b"changed")
    assert "has changed since" in qmeld("resume", "new", code=ANY, env=SMALL_BATCHES).stderr
    qmeld("revert", "new")


def flatten__note_in_the_hands_of_others_is_not_gone_by():
    if os.geteuid() != 0:
        raise Skip("only root can make somebody else's directory")
    cut_flatten_short("--manifest=m", "--leaf=64k")
    os.chown(".", 1234, 1234)
    for args in (["resume", "new"], ["recover", "."]):
        done = qmeld(*args, code=2)
        assert "others than you can put files beside it" in done.stderr, done.stderr
    assert not os.path.exists("new")
    qmeld("flatten", "-q", "-O", "qcow2", "--cluster-size=4k", "--manifest=m", "--leaf=64k", "top.qcow2", "new",
          env=SMALL_BATCHES)  # as it says
    same(json.loads(qmeld("compare", "--output=json", "top.qcow2", "new").stdout)["identical"], True)
    same([n for n in os.listdir(".") if n.startswith(".")], [])


def create__sizes_are_read_as_qemu_img_reads_them():
    for text, size in (("0", 0), ("512", 512), ("64k", 65536), ("64K", 65536), ("1M", 1 << 20),
                       ("1.5M", 3 << 19), ("0x10000", 65536), ("1024b", 1024), ("0.25k", 256),
                       ("1.999999999999999999999M", (2 << 20) - 1)):
        qmeld("create", "-q", "t.raw", text)
        got = os.path.getsize("t.raw")
        assert size <= got < size + 512, f"{text}: {got}"  # raw may be rounded up to a sector


def create__what_is_no_size_makes_no_file():
    for text in ("", "-1", "+1", " 1", "1kk", "1 k", "k", "1.5", "0x", "0x1k", "1e3", "17E", "1.k",
                 "99999999999999999999", "nan"):
        qmeld("create", "t.raw", text, code=2)
        assert not os.path.exists("t.raw"), text


def create__options_reach_the_image():
    qmeld("create", "-q", "-f", "qcow2", "-o",
          "cluster_size=4k,compression_type=zstd,lazy_refcounts,refcount_bits=8", "t.qcow2", "1M")
    info = json.loads(qmeld("info", "--output=json", "t.qcow2").stdout)[0]
    data = info["format-specific"]["data"]
    assert info["cluster-size"] == 4096 and info["virtual-size"] == 1 << 20
    same((data["compression-type"], data["lazy-refcounts"], data["refcount-bits"], data["compat"]),
         ("zstd", True, 8, "1.1"))


def create__long_options_say_the_same_as_o():
    qmeld("create", "-q", "-f", "qcow2", "-o", "cluster_size=8k,compat=v2,size=1M", "a.qcow2")
    qmeld("create", "-q", "--format=qcow2", "--cluster-size=8k", "--compat=0.10", "--size=1M",
          "b.qcow2")
    same(contents("a.qcow2").hex(), contents("b.qcow2").hex())


def create__a_size_that_is_said_twice_is_refused():
    for args in (("-o", "size=3M", "t", "1M"), ("--size=1M", "t", "1M")):
        assert "twice" in qmeld("create", *args, code=2).stderr
        assert not os.path.exists("t")


def create__comma_in_a_value_is_doubled():
    qmeld("create", "-q", "-f", "qcow2", "-u", "-o", "backing_file=a,,b,backing_fmt=raw", "t", "1M")
    info = json.loads(qmeld("info", "--single", "--output=json", "t").stdout)[0]
    same((info["backing-filename"], info["backing-filename-format"]), ("a,b", "raw"))


def create__size_comes_from_the_backing_file():
    qmeld("create", "-q", "base.raw", "3M")
    done = qmeld("create", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "t.qcow2")
    same(done.stdout, "t.qcow2: qcow2, 3 MiB (3145728 bytes), on base.raw\n")


def create__unknown_options_are_refused():
    for pair in ("nocow=on", "encryption=on", "data_file=x", "cluster_size", "cluster_size=0",
                 "refcount_bits=0", "extended_l2=yes", "=", "preallocation=some"):
        qmeld("create", "-f", "qcow2", "-o", pair, "t.qcow2", "1M", code=2)
        assert not os.path.exists("t.qcow2"), pair


REBASE = """\
all cluster=64k
top.qcow2 | ..D.0..d....
mid.qcow2 | .CC0...c..
old.qcow2 | AAAA.a..A... over=none
new.qcow2 | AABA.a..A.B. over=none
"""


def rebase__keeps_what_is_read():
    forge(REBASE)
    expected("top.qcow2")
    dry = qmeld("rebase", "--dry-run", "-b", "new.qcow2", "-F", "qcow2", "top.qcow2").stdout
    done = qmeld("rebase", "-b", "new.qcow2", "-F", "qcow2", "top.qcow2").stdout
    assert "256 KiB copied" in dry and "256 KiB copied" in done, (dry, done)
    assert dry.startswith("would be rebased onto new.qcow2") and done.startswith("rebased onto new.qcow2")
    assert f"then {os.path.getsize('top.qcow2')}" in dry, dry
    qmeld("compare", "-F", "raw", "top.qcow2", "expected")
    qmeld("check", "top.qcow2")
    os.unlink("old.qcow2")
    qmeld("rebase", "--standalone", "top.qcow2")
    os.unlink("new.qcow2")
    qmeld("compare", "-F", "raw", "top.qcow2", "expected")


def rebase__onto_a_layer_below_reads_nothing_that_is_shared():
    forge(REBASE)
    told = json.loads(qmeld("rebase", "-b", "old.qcow2", "-F", "qcow2", "--output=json", "top.qcow2").stdout)
    # mid's C of cell 1, its compressed cell is hidden; zeros of cell 3 over A
    same((told["result"], told["bytes-copied"], told["backing-filename"]), ("done", 65536, "old.qcow2"))
    assert told["bytes-shared"] > 0
    os.unlink("mid.qcow2")
    expected("top.qcow2")
    qmeld("compare", "-F", "raw", "top.qcow2", "expected")


def rebase__unsafe_changes_the_name_only():
    forge(REBASE)
    before = contents("top.qcow2")[65536:]
    qmeld("rebase", "-u", "-b", "nowhere", "-F", "raw", "top.qcow2")
    same(contents("top.qcow2")[65536:], before)
    assert "nowhere" in qmeld("info", "top.qcow2", code=1).stderr
    qmeld("rebase", "--unsafe", "-b", "mid.qcow2", "-F", "qcow2", "top.qcow2")
    expected("top.qcow2")
    qmeld("compare", "-F", "raw", "top.qcow2", "expected")


def rebase__names_are_stored_as_given_or_made_relative():
    os.mkdir("a")
    os.mkdir("b")
    forge(REBASE)
    os.rename("new.qcow2", "b/new.qcow2")
    for name in ("top", "mid", "old"):
        os.rename(f"{name}.qcow2", f"a/{name}.qcow2")
    told = json.loads(qmeld("rebase", "-b", "../b/./new.qcow2", "-F", "qcow2", "--output=json", "a/top.qcow2").stdout)
    same(told["backing-filename"], "../b/./new.qcow2")
    full = os.path.join(os.path.realpath("."), "b/new.qcow2")
    told = json.loads(qmeld("rebase", "-b", full, "-F", "qcow2", "--output=json", "a/top.qcow2").stdout)
    same(told["backing-filename"], full)
    told = json.loads(qmeld("rebase", "-b", full, "-F", "qcow2", "--keep-relative", "--output=json", "a/top.qcow2").stdout)
    same(told["backing-filename"], "../b/new.qcow2")


def rebase__refuses_loops_snapshots_and_riddles():
    forge(REBASE)
    before = contents("top.qcow2")
    for words, text in ((["-b", "top.qcow2", "-F", "qcow2"], "loop"),
                        (["-b", "new.qcow2"], "-F"),
                        ([], "--standalone"),
                        (["-b", "new.qcow2", "-F", "qcow2", "--standalone"], "--standalone"),
                        (["-b", "new.qcow2", "-F", "raw"], "qcow2 header")):
        assert text in qmeld("rebase", *words, "top.qcow2", code=2).stderr, words
    assert "raw image" in qmeld("rebase", "-f", "raw", "--standalone", "recipe", code=2).stderr
    qmeld("rebase", "-b", "nowhere", "-F", "raw", "top.qcow2", code=1)
    same(contents("top.qcow2"), before)
    forge(REBASE.replace("..D.0..d....", "..D.0..d....\n  snapshot one ...D"))
    assert "snapshots" in qmeld("rebase", "--standalone", "top.qcow2", code=2).stderr
    qmeld("rebase", "-u", "-b", "mid.qcow2", "-F", "qcow2", "top.qcow2")


def rebase__that_was_interrupted_is_told_of_and_finished():
    os.environ["QMELD_TEST_BATCH"] = "4000000"  # or all of it is one batch
    try:
        stop_rebases()
    finally:
        del os.environ["QMELD_TEST_BATCH"]


def stop_rebases():
    for way in (["resume", "top.qcow2"], ["rebase", "-b", "", "top.qcow2"], ["recover", "."]):
        forge(BIG)
        want = expected("top.qcow2")
        code, out, err = interrupt(signal.SIGTERM, "rebase", "--standalone", "top.qcow2", rate="1M")
        same((code, json.loads(out)["result"]), (75, "stopped"))
        assert "the rebase is half done" in err and "qmeld resume ./.top.qcow2.qmeld" in err, err
        told = qmeld("status", code=3).stdout
        assert "the rebase of" in told and "onto nothing" in told and "INVALID" not in told, told
        told = json.loads(qmeld("status", "--output=json", code=3).stdout)
        same((told[0]["work"], told[0]["new-backing"]), ("rebase", None))
        assert "unfinished" in qmeld("rebase", "-b", "base.raw", "-F", "raw", "top.qcow2", code=2).stderr
        assert "a rebase in this chain" in qmeld("commit", "top.qcow2", code=2).stderr
        qmeld(*way)
        same(qmeld("status").stdout, ".: nothing is unfinished\n")
        os.unlink("mid.qcow2")
        qmeld("compare", "-F", "raw", "top.qcow2", "expected")
        same(contents("expected"), want)
        qmeld("check", "top.qcow2")


INCREMENTS = """\
all cluster=64k
d5.qcow2 | E......a
d4.qcow2 | .D...0..
d3.qcow2 | ..C.....
d2.qcow2 | ..BB.B..
full.raw | AAAAAAAA
"""


def fold__keeps_so_many_increments():
    forge(INCREMENTS)
    d4 = expected("d4.qcow2")
    want = expected("d5.qcow2")
    full = expected("d3.qcow2")
    out = qmeld("fold", "--keep=2", "d5.qcow2").stdout
    assert "its backing file is [1] now" in out, out
    same(sorted(n for n in os.listdir(".") if n.endswith((".qcow2", ".raw"))), ["d4.qcow2", "d5.qcow2", "full.raw"])
    same(contents("full.raw"), full)
    for name, view in (("d4.qcow2", d4), ("d5.qcow2", want)):
        with open("view", "wb") as f:
            f.write(view)
        qmeld("compare", "-F", "raw", name, "view")
    assert "nothing to do" in qmeld("fold", "--keep=2", "d5.qcow2").stdout
    assert "nothing to do" in qmeld("fold", "--keep=9", "d5.qcow2").stdout
    qmeld("fold", "--keep=0", "d5.qcow2")
    same(contents("full.raw"), want)
    assert not os.path.exists("d5.qcow2")


def fold__puts_increments_aside_if_asked():
    forge(INCREMENTS)
    qmeld("fold", "--keep=3", "--overlays=quarantine", "d5.qcow2")
    assert os.path.exists("d2.qcow2.merged") and not os.path.exists("d2.qcow2")
    assert "--keep" in qmeld("fold", "d5.qcow2", code=2).stderr
    assert "--keep" in qmeld("fold", "--keep=some", "d5.qcow2", code=2).stderr


def fold__keeps_its_hands_off_another_merge():
    forge(BIG)
    same(interrupt(signal.SIGTERM, "commit", "--overlays=delete", "--base=base.raw", "--top=mid.qcow2", "top.qcow2",
                   rate="2M")[0], 75)
    out = qmeld("fold", "--keep=1", "top.qcow2", code=2).stderr
    assert "another merge of this chain" in out and "qmeld resume" in out, out
    qmeld("resume", ".base.raw.qmeld")


def fold__goes_on_when_a_backup_has_grown_the_chain():
    forge(BIG)
    want = expected("top.qcow2")
    same(interrupt(signal.SIGTERM, "fold", "--keep=1", "top.qcow2", rate="2M")[0], 75)
    out = qmeld("status", code=3).stdout
    assert "the fold of all up to" in out and "keeps 1 increments" in out, out
    same(json.loads(qmeld("status", "--output=json", code=3).stdout)[0]["work"], "fold")
    qmeld("create", "-f", "qcow2", "-b", "top.qcow2", "-F", "qcow2", "new.qcow2")
    out = qmeld("fold", "--keep=3", "new.qcow2", code=2).stderr
    assert "leaves no more than 2 increments" in out, out
    report = json.loads(qmeld("fold", "--keep=1", "--output=json", "new.qcow2").stdout)
    same((report["result"], report["resumed"]), ("done", True))
    same(sorted(n for n in os.listdir(".") if n.endswith((".qcow2", ".raw"))), ["base.raw", "new.qcow2"])
    with open("view", "wb") as f:
        f.write(want)
    qmeld("compare", "-F", "raw", "new.qcow2", "view")


def fold__that_was_interrupted_goes_on():
    forge(BIG)
    want = expected("top.qcow2")
    middle = expected("mid.qcow2")
    same(interrupt(signal.SIGTERM, "fold", "--keep=1", "top.qcow2", rate="2M")[0], 75)
    assert "unfinished" in qmeld("status", code=3).stdout
    report = json.loads(qmeld("fold", "--keep=1", "--output=json", "top.qcow2").stdout)
    same((report["result"], report["resumed"]), ("done", True))
    same(contents("base.raw"), middle)
    assert not os.path.exists("mid.qcow2")
    report = json.loads(qmeld("fold", "--keep=1", "--output=json", "top.qcow2").stdout)
    same(report["result"], "nothing-to-do")
    with open("view", "wb") as f:
        f.write(want)
    qmeld("compare", "-F", "raw", "top.qcow2", "view")
