# SPDX-License-Identifier: LGPL-2.1-or-later
"""Merges, their reports, and their way back."""
import contextlib
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import time

from lib import (ANY, BIG, BIG_FILES, CHAIN, HAVE_QEMU, JOURNAL, QMELD, Skip, UP, contents, expected,
                 files_here, forge, interrupt, plan, poke, qemu_img, qmeld, same, view)


CHAIN_QCOW2 = """\
all cluster=64k
top.qcow2 | ..D.0..d....
mid.qcow2 | .CC0...c..
base.qcow2 | AAAA.a..A...
"""


def commit__up_gives_the_largest_layer_the_name_mode_and_times_of_the_base():
    forge(UP)
    os.remove("recipe")
    os.chmod("base.qcow2", 0o600)
    os.utime("base.qcow2", (1000000000, 1000000001))
    inode = os.stat("mid.qcow2").st_ino
    qmeld("flatten", "--quiet", "-O", "raw", "top.qcow2", "want.raw")
    done = qmeld("commit", "--direction=auto", "--overlays=delete", "--output=json", "top.qcow2")
    report = json.loads(done.stdout)
    assert report["direction"] == "up" and report["bytes-up"] < report["bytes-down"], report
    assert [x["fate"] for x in report["layers"]] == ["replaced", "merged-into", "deleted"], report
    st = os.stat("base.qcow2")
    assert st.st_ino == inode and st.st_nlink == 1
    assert st.st_mode & 0o7777 == 0o600 and st.st_mtime == 1000000001
    assert sorted(os.listdir(".")) == ["base.qcow2", "want.raw"], os.listdir(".")
    qmeld("compare", "-f", "qcow2", "-F", "raw", "base.qcow2", "want.raw")
    qmeld("check", "base.qcow2")


def commit__up_refuses_what_it_would_lose():
    def refused(why, recipe, *args, before=None):
        for name in os.listdir("."):
            os.remove(name)
        forge(recipe)
        if before:
            before()
        files = files_here()
        done = qmeld("commit", "--direction=up", *(args or ("--overlays=delete",)), "top.qcow2", code=2)
        assert why in done.stderr, done.stderr
        assert files == files_here()

    def link():
        os.rename("base.qcow2", "real")
        os.symlink("real", "base.qcow2")

    refused("--overlays=delete", UP, "--overlays=keep")
    refused("--reclaim", UP, "--overlays=delete", "--reclaim")
    refused("--atomic", UP, "--overlays=delete", "--atomic")
    refused("the base is raw", UP.replace("base.qcow2 | AAAA.a..A..B", "base.raw | AAAAAAAAAAAA"))
    refused("internal snapshots", UP + "  snapshot s AAAA\n")
    refused("version 3", UP.replace("A..B", "A..B version=2"))
    refused("features that the base has not", UP.replace("CCC.", "CCC. extended_l2=1").replace("0.......", "0....... extended_l2=1"))
    refused("the base's guest data is in an external data file", UP.replace("A.a..A..B", "A.A..A..B data_file=b.raw"))
    refused("its guest data is in an external data file",
            UP.replace("CCC.", "CCC. data_file=m.raw").replace("0.......", "0....... data_file=t.raw"))
    refused("hard links", UP, before=lambda: os.link("base.qcow2", "other"))
    refused("symbolic link", UP, before=link)
    qmeld("commit", "--direction=left", "top.qcow2", code=2)


BITMAPS = """\
all cluster=4k
top.qcow2 | A..B size=64k
  bitmap daily 512 2 1
  bitmap dead 4096 3
base.%s | CCCC size=64k
%s"""


def bitmaps__go_into_the_base_and_the_report_names_each():
    forge(BITMAPS % ("qcow2", "  bitmap dead 4096 2 01\n"))
    report = json.loads(qmeld("commit", "--output=json", "top.qcow2").stdout)
    assert [(b["name"], b["fate"], b["unreadable"]) for b in report["bitmaps"]] == [
        ("daily", "created", False), ("dead", "void", True)], report["bitmaps"]
    assert report["bitmaps"][0]["granularity"] == 512 and report["bitmaps"][0]["recording"], report
    info = qmeld("info", "base.qcow2").stdout
    assert re.search(r'"dead".*not closed cleanly', info) and '"daily", a bit for 512' in info, info
    again = qmeld("commit", "top.qcow2").stdout
    assert "already merged" in again, again
    qmeld("check", "base.qcow2")


def bitmaps__of_all_layers_go_into_a_flattened_image_if_asked():
    forge(BITMAPS % ("qcow2", "  bitmap dead 4096 2 01\n  bitmap old 4096 0 1\n"))
    before = contents("base.qcow2"), contents("top.qcow2")
    done = qmeld("flatten", "-O", "qcow2", "top.qcow2", "out").stdout
    assert 'bitmap "daily": not carried into the new image: top.qcow2 has it' in done, done
    assert '"daily"' not in qmeld("info", "out").stdout
    report = json.loads(qmeld("flatten", "-O", "qcow2", "--force", "--bitmaps=merge", "--output=json", "top.qcow2", "out").stdout)
    assert [(b["name"], b["fate"], b["unreadable"]) for b in report["bitmaps"]] == [
        ("daily", "created", False), ("dead", "left", True), ("old", "created", False)], report
    info = qmeld("info", "out").stdout
    assert '"daily", a bit for 512' in info and '"old"' in info and '"dead"' not in info, info
    assert "--skip-broken-bitmaps" in qmeld("convert", "-O", "qcow2", "--bitmaps", "top.qcow2", "new", code=2).stderr
    assert not os.path.exists("new")
    qmeld("convert", "-O", "qcow2", "--bitmaps", "--skip-broken-bitmaps", "top.qcow2", "new")
    info = qmeld("info", "new").stdout
    assert '"daily"' in info and '"dead"' not in info and '"old"' not in info, info
    for more, words in ((("-O", "raw"), "a raw disk"), (("-O", "qcow2", "--compat=0.10"), "version 2"),
                        (("-O", "qcow2", "-U"), "--force-share"), (("-O", "qcow2", "--salvage"), "salvaging"),
                        (("-O", "qcow2", "-s", "1"), "snapshot"), (("-O", "qcow2", "--skip-broken-bitmaps"), "goes with")):
        assert words in qmeld("flatten", "--bitmaps=merge", *more, "top.qcow2", "no", code=2).stderr, more
    assert "a raw disk" in qmeld("flatten", "--bitmaps=keep", "top.qcow2", "-", code=2).stderr
    assert "goes with --bitmaps" in qmeld("convert", "--skip-broken-bitmaps", "top.qcow2", "no", code=2).stderr
    assert "merge, keep or drop" in qmeld("flatten", "--bitmaps=all", "top.qcow2", "no", code=2).stderr
    assert not os.path.exists("no")
    same((contents("base.qcow2"), contents("top.qcow2")), before)


def bitmaps__a_base_that_cannot_hold_them_is_refused_and_the_words_go_on():
    forge(BITMAPS % ("raw", ""))
    before = files_here()
    done = qmeld("commit", "--overlays=delete", "top.qcow2", code=2)
    assert 'bitmap "daily" would be lost' in done.stderr and "--bitmaps=drop" in done.stderr, done.stderr
    assert files_here() == before
    assert "not carried" in qmeld("plan", "--bitmaps=drop", "top.qcow2").stdout
    done = qmeld("commit", "--bitmaps=drop", "--overlays=delete", "top.qcow2")
    assert 'bitmap "daily": not carried into the base' in done.stdout, done.stdout
    forge(BITMAPS % ("raw", ""))
    done = qmeld("commit", "top.qcow2")  # who stays keeps them: nothing is lost
    assert 'bitmap "daily": not carried into the base: top.qcow2 has it' in done.stdout, done.stdout


def bitmaps__drop_removes_what_would_be_incomplete_and_revert_brings_it_back():
    forge(BITMAPS % ("qcow2", "  bitmap daily 4096 2 01\n  bitmap own 4096 2 001\n"))
    before = contents("base.qcow2")
    qmeld("commit", "--bitmaps=drop", "--atomic", "top.qcow2")
    info = qmeld("info", "base.qcow2").stdout
    assert '"own"' in info and '"daily"' not in info, info
    qmeld("revert", ".base.qcow2.qmeld")
    assert contents("base.qcow2") == before
    for mode in ("keep", "merge"):
        forge(BITMAPS % ("qcow2", "  bitmap daily 4096 2 01\n"))
        qmeld("commit", "--bitmaps=" + mode, "top.qcow2")
        assert '"daily", a bit for 4 KiB' in qmeld("info", "base.qcow2").stdout
    assert "merge, keep or drop" in qmeld("commit", "--bitmaps=all", "top.qcow2", code=2).stderr


def commit__report_tells_what_each_file_is_worth():
    forge(CHAIN)
    want = expected("top.qcow2")
    out = qmeld("commit", "top.qcow2").stdout
    assert re.match(r"merged: \d+ KiB copied", out), out
    assert "[3] top.qcow2: reads as before; all of it is in [1] now" in out
    assert "[2] mid.qcow2: INVALID: reads wrong by itself; delete it together with [3]" in out
    assert "[1] base.raw: holds the merged data now" in out
    assert contents("base.raw") == want


DEEP = """\
all cluster=64k
l4.qcow2 | ......DD..DD...0
l3.qcow2 | ..CCCCC...00.cc.
l2.qcow2 | .BBBB..BBBBBBBB.
base.raw | AAAA....AAAA....
"""


def commit__layers_said_to_read_as_before_do():
    for overlays in ("keep", "empty", "delete", "quarantine"):
        for span in ([], ["--top=[3]"], ["--top=[3]", "--base=[2]"], ["--top=[2]"], ["--shallow"]):
            forge(DEEP)
            report = json.loads(qmeld("commit", "--output=json", f"--overlays={overlays}", *span,
                                      "l4.qcow2").stdout)
            for layer in report["layers"]:
                name, fate = layer["filename"], layer["fate"]
                assert os.path.exists(name) == (fate not in ("deleted", "quarantined"))
                assert (fate == "quarantined") == ("moved-to" in layer)
                if "moved-to" in layer:
                    os.unlink(layer["moved-to"])
                if fate in ("redundant", "emptied", "repointed", "untouched"):
                    expected(name)
                    qemu_img("compare", "-f", "raw" if name == "base.raw" else "qcow2", "-F", "raw",
                             name, "expected")
                    if name != "base.raw":
                        qemu_img("check", "-q", name)


def commit__json_report_is_one_object():
    forge(CHAIN)
    report = json.loads(qmeld("commit", "--output=json", "--overlays=delete", "top.qcow2").stdout)
    same(report["result"], "done")
    same([(l["layer"], l["filename"], l["fate"]) for l in report["layers"]],
         [(1, "base.raw", "merged-into"), (2, "mid.qcow2", "deleted"),
          (3, "top.qcow2", "deleted")])
    same(report["bytes-copied"], 3 * 65536)  # D, C and d; the zeros are not data
    assert not os.path.exists("top.qcow2") and not os.path.exists("mid.qcow2")


def commit__quarantine_renames_and_says_to_what():
    forge(CHAIN)
    was, want = contents("mid.qcow2"), expected("top.qcow2")
    with open("mid.qcow2.merged", "w", encoding="utf-8") as f:
        f.write("somebody's")
    out = qmeld("commit", "--overlays=quarantine", "top.qcow2").stdout
    assert "put aside" in out and "mid.qcow2.merged.1 now" in out and "top.qcow2.merged now" in out
    assert contents("base.raw") == want and contents("mid.qcow2.merged.1") == was
    assert contents("mid.qcow2.merged") == b"somebody's"
    assert not os.path.exists("mid.qcow2") and not os.path.exists("top.qcow2")


def commit__what_was_put_aside_stands_in_no_later_merges_way():
    forge("top.qcow2 | ..D.\nmid.qcow2 | .B..\nlow.qcow2 | A...\nbase.qcow2 | EEEE\n")
    want = expected("top.qcow2")
    for keep in (2, 1, 0):  # night after night
        qmeld("fold", f"--keep={keep}", "--overlays=quarantine", "top.qcow2")
    same(sorted(n for n in os.listdir(".") if "qcow2" in n),
         ["base.qcow2", "low.qcow2.merged", "mid.qcow2.merged", "top.qcow2.merged"])
    assert view("base.qcow2") == want
    try:
        same(os.getxattr("top.qcow2.merged", "user.qmeld.merged").split()[-1], b"top.qcow2.merged")
    except OSError as e:
        raise Skip(f"no extended attributes here: {e}") from None
    for name in ("mine.merged", "mine.merged.2", "mine.merged.x", "mine.mergedx", "mine"):  # nobody's merge put those aside
        forge("top.qcow2 | ..D.\nbase.qcow2 | EEEE\n")
        shutil.copy("top.qcow2", name)
        assert name in qmeld("commit", "top.qcow2", code=2).stderr
        os.remove(name)
    forge("top.qcow2 | ..D.\nmid.qcow2 | .B..\nbase.qcow2 | EEEE\n")
    qmeld("fold", "--keep=1", "--overlays=quarantine", "top.qcow2")
    os.rename("mid.qcow2.merged", "mid.qcow2")  # somebody wants it back
    assert "mid.qcow2" in qmeld("commit", "top.qcow2", code=2).stderr


def commit__what_was_left_behind_stands_in_no_later_merges_way():
    """Unless somebody has written to it: then he has a use for it."""
    def anew():
        forge("top.qcow2 | ..D.\nmid.qcow2 | .B..\nlow.qcow2 | A...\nbase.qcow2 | EEEE\n")
        qmeld("commit", "--top=[3]", "top.qcow2")

    anew()
    try:
        assert os.getxattr("low.qcow2", "user.qmeld.merged") and os.getxattr("mid.qcow2", "user.qmeld.merged")
    except OSError as e:
        raise Skip(f"no extended attributes here: {e}") from None
    want = expected("top.qcow2")
    qmeld("commit", "top.qcow2")
    assert view("base.qcow2") == want
    anew()
    os.utime("mid.qcow2")
    err = qmeld("commit", "top.qcow2", code=2).stderr
    assert "mid.qcow2" in err and "low.qcow2" not in err, err
    anew()
    shutil.copy("mid.qcow2", "copy.qcow2")  # without attributes: somebody's
    assert "copy.qcow2" in qmeld("commit", "top.qcow2", code=2).stderr


def commit__reclaim_leaves_empty_layers_and_says_so():
    forge(CHAIN)
    want = expected("top.qcow2")
    report = json.loads(qmeld("commit", "--output=json", "--reclaim", "top.qcow2").stdout)
    same(([l["fate"] for l in report["layers"]], report["reclaimed"]),
         (["merged-into", "emptied", "emptied"], True))
    assert contents("base.raw") == want
    for name in ("mid.qcow2", "top.qcow2"):
        qemu_img("check", "-q", name)
        assert os.stat(name).st_size <= 4 * 65536, name
    same(json.loads(qemu_img("info", "--output=json", "top.qcow2"))["backing-filename"], "base.raw")
    qemu_img("compare", "-f", "qcow2", "-F", "raw", "top.qcow2", "expected")
    forge(CHAIN)
    assert "there is no way back" in qmeld("commit", "--reclaim", "top.qcow2").stdout
    forge(CHAIN)
    report = json.loads(qmeld("commit", "--output=json", "--reclaim", "--overlays=delete", "top.qcow2").stdout)
    same([l["fate"] for l in report["layers"]], ["merged-into", "deleted", "deleted"])
    assert contents("base.raw") == want


def commit__skip_equal_and_detect_zeroes_say_what_they_left_out():
    def make():
        forge(CHAIN)
        want = bytearray(expected("top.qcow2"))
        with open("base.raw", "r+b") as f:
            f.seek(65536)
            f.write(want[65536:2 * 65536])
        return want

    want = make()
    plan = json.loads(qmeld("plan", "--output=json", "--skip-equal", "top.qcow2").stdout)
    report = json.loads(qmeld("commit", "--output=json", "--skip-equal", "top.qcow2").stdout)
    # C was there; the zero in the fifth place, and what mid's end hides, are holes
    for r in (plan, report):
        same([r["bytes-" + k] for k in ("skipped", "copied", "zeroed", "zero-found")],
             [4 * 65536, 2 * 65536, 65536, 0])
    assert contents("base.raw") == want
    make()
    assert "256 KiB skipped as the base had them" in qmeld("commit", "--skip-equal", "top.qcow2").stdout
    forge(CHAIN)
    report = json.loads(qmeld("commit", "--output=json", "--detect-zeroes", "top.qcow2").stdout)
    same([report["bytes-" + k] for k in ("skipped", "copied", "zero-found")], [0, 3 * 65536, 0])


def commit__reclaim_and_quarantine_exclude_each_other():
    forge(CHAIN)
    before = [contents(n) for n in ("base.raw", "mid.qcow2", "top.qcow2")]
    err = qmeld("commit", "--reclaim", "--overlays=quarantine", "top.qcow2", code=2).stderr
    assert "quarantine" in err and "--reclaim" in err, err
    same([contents(n) for n in ("base.raw", "mid.qcow2", "top.qcow2")], before)


def commit__quiet_is_silent():
    forge(CHAIN)
    done = qmeld("commit", "-q", "top.qcow2")
    same((done.stdout, done.stderr), ("", ""))


def commit__layers_are_named_by_number_or_path():
    for base, top in (("[2]", "[3]"), ("mid.qcow2", "top.qcow2")):
        forge(CHAIN)
        before = contents("base.raw")
        qmeld("commit", f"--base={base}", f"--top={top}", "top.qcow2")
        assert contents("base.raw") == before
        report = json.loads(qmeld("map", "--output=json", "mid.qcow2").stdout)
        assert report[0]["depth"] == 1
    for wrong in ("[0]", "[4]", "[", "[1]x", "[-1]", "stranger"):
        qmeld("commit", f"--base={wrong}", "top.qcow2", code=2)


def commit__progress_records_are_json_and_end_complete():
    forge(CHAIN)
    done = qmeld("commit", "--progress=json", "top.qcow2")
    records = [json.loads(line) for line in done.stderr.splitlines()]
    assert records and all({"phase", "done", "total", "elapsed", "rate"} <= set(r) for r in records)
    copied = [r["done"] for r in records if r["phase"] == "copy"]
    assert copied == sorted(copied)
    last = [r for r in records if r["total"]][-1]
    same(last["done"], last["total"])


def commit__verify_reads_back_and_says_so():
    forge(CHAIN)
    done = qmeld("commit", "--verify", "--output=json", "--progress=json", "top.qcow2")
    report = json.loads(done.stdout)
    assert report["verified"] is True and report["bytes-verified"] >= report["bytes-copied"] > 0
    records = [json.loads(line) for line in done.stderr.splitlines()]
    same([r["phase"] for r in records][-1], "verify")
    assert "read back" in qmeld("commit", "--verify", "top.qcow2").stdout
    assert "read back" not in qmeld("commit", "top.qcow2").stdout


def commit__auto_progress_is_silent_on_a_pipe():
    forge(CHAIN)
    same(qmeld("commit", "top.qcow2").stderr, "")


def read_terminal(args, limit=60, columns=60):
    """Runs qmeld with stderr on a terminal so many columns wide; what it wrote there, and the code."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, 0x5414, struct.pack("HHHH", 24, columns, 0, 0))  # TIOCSWINSZ
    process = subprocess.Popen([QMELD, *args], stdout=subprocess.DEVNULL, stderr=slave)
    os.close(slave)
    text = b""
    end = time.time() + limit
    while time.time() < end:
        if select.select([master], [], [], 0.2)[0]:
            try:
                chunk = os.read(master, 4096)
            except OSError:
                break
            if not chunk:
                break
            text += chunk
    os.close(master)
    return text.decode(), process.wait(timeout=limit)


def commit__bar_stays_in_its_line_and_is_wiped():
    forge(BIG)
    text, code = read_terminal(["commit", "--bandwidth=16M", "top.qcow2"])
    same(code, 0)
    frames = text.split("\r")
    assert any("of 16 MiB" in f and "[" in f for f in frames), text
    assert "\n" not in text
    assert all(len(f.replace("\033[K", "")) <= 59 for f in frames), frames
    same(frames[-1], "\033[K")


def commit__bar_gives_way_where_the_terminal_is_narrow():
    for columns in (40, 20, 12):
        forge(BIG)
        text, code = read_terminal(["commit", "top.qcow2"], columns=columns)
        same(code, 0)
        frames = [f.replace("\033[K", "") for f in text.split("\r")]
        assert all(len(f) < columns for f in frames), frames
        assert any("100%" in f for f in frames), frames
        assert all(("[" in f) == ("]" in f) for f in frames), frames


@contextlib.contextmanager
def environment(**more):
    """For programs that are started meanwhile."""
    before = dict(os.environ)
    os.environ.update(more)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def commit__signal_stops_with_75_and_again_finishes():
    forge(BIG)
    want = expected("top.qcow2")
    code, out, err = interrupt(signal.SIGINT)
    same(code, 75)
    report = json.loads(out)
    same((report["result"], report["resumed"], report["error"]["code"]),
         ("stopped", False, "canceled"))
    assert "top.qcow2" in err and f"qmeld resume ./{JOURNAL}" in err, err
    report = json.loads(qmeld("commit", "--output=json", "top.qcow2").stdout)
    same((report["result"], report["resumed"]), ("done", True))
    assert 0 < report["bytes-copied"] < 16 << 20, report  # what was done is not done again
    assert contents("base.raw") == want and not os.path.exists(JOURNAL)


def commit__what_was_stopped_is_not_read_again_unless_the_base_was_changed():
    forge(BIG)
    want = expected("top.qcow2")
    with environment(QMELD_TEST_BATCH="65536"):
        same(interrupt(signal.SIGTERM)[0], 75)
        process = subprocess.run([QMELD, "commit", "--progress=json", "--deadline=1", "--bandwidth=1M", "top.qcow2"],
                                 stderr=subprocess.PIPE, text=True)
        phases = {json.loads(line)["phase"] for line in process.stderr.splitlines() if line.startswith("{")}
        assert process.returncode == 75 and "copy" in phases and "compare" not in phases, phases
        subprocess.run(["cp", "-p", "base.raw", "saved"], check=True)
        same(interrupt(signal.SIGKILL)[0], -9)
        subprocess.run(["cp", "-p", "saved", "base.raw"], check=True)  # as it was noted, but not any more
        qmeld("commit", "top.qcow2")
    assert contents("base.raw") == want


def commit__deadline_stops_with_75():
    forge(BIG)
    want = expected("top.qcow2")
    done = qmeld("commit", "--bandwidth=4M", "--deadline=1s", "top.qcow2", code=75)
    assert "--deadline is over" in done.stderr and "qmeld resume" in done.stderr
    assert "resumed, and merged" in qmeld("commit", "--deadline=1h", "top.qcow2").stdout
    assert contents("base.raw") == want


def commit__deadline_of_0_changes_nothing():
    forge(BIG)
    before = [contents(f) for f in BIG_FILES]
    assert "as it was" in qmeld("commit", "--deadline=0", "top.qcow2", code=75).stderr
    assert [contents(f) for f in BIG_FILES] == before and not os.path.exists(JOURNAL)


def commit__sigusr1_tells_how_far_it_is():
    forge(BIG)
    process = subprocess.Popen([QMELD, "commit", "--bandwidth=8M", "-q", "top.qcow2"],
                               stderr=subprocess.PIPE, text=True)
    time.sleep(1)
    process.send_signal(signal.SIGUSR1)
    err = process.communicate(timeout=60)[1]
    same(process.returncode, 0)
    assert re.fullmatch(r"qmeld: copy: \S+ MiB of 16 MiB \(\d+ %\).*\n", err), err


def commit__again_is_already_merged():
    for overlays in ("keep", "empty"):
        forge(CHAIN)
        qmeld("commit", "-q", f"--overlays={overlays}", "top.qcow2")
        before = contents("base.raw")
        done = qmeld("commit", f"--overlays={overlays}", "top.qcow2")
        assert done.stdout.startswith("already merged: "), done.stdout
        report = qmeld("commit", f"--overlays={overlays}", "--output=json", "top.qcow2").stdout
        same(json.loads(report)["result"], "already-merged")
        assert contents("base.raw") == before


def commit__nohup_is_obeyed():
    forge(BIG)
    process = subprocess.Popen([QMELD, "commit", "--bandwidth=16M", "-q", "top.qcow2"],
                               preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    time.sleep(0.3)
    process.send_signal(signal.SIGHUP)
    same(process.wait(timeout=60), 0)


def commit__file_size_limit_is_seen_before_the_first_write():
    import resource

    forge(BIG)
    want, before = expected("top.qcow2"), contents("base.raw")
    limit = 18 << 20  # the base has 16 MiB and grows to 24
    done = qmeld("commit", "--output=json", "top.qcow2", code=ANY,
                 preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    report = json.loads(done.stdout)
    same(report["error"]["code"], "nospace")
    same((done.returncode, report["error"]["disk"]), (2, "old"))  # seen before the first write
    assert "as it was" in done.stderr and contents("base.raw") == before
    qmeld("commit", "-q", "top.qcow2")
    assert contents("base.raw") == want


def commit__image_in_use_is_refused_and_untouched():
    forge(CHAIN)
    before = [contents(f) for f in ("base.raw", "mid.qcow2", "top.qcow2")]
    with open("mid.qcow2", "r+b") as f:
        # an exclusive open-file lock (F_OFD_SETLK) on all bytes QEMU uses
        fcntl.fcntl(f, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 100, 200, 0))
        done = qmeld("commit", "top.qcow2", code=2)
    assert done.stderr.startswith("qmeld: ") and "mid.qcow2" in done.stderr
    same(done.stderr.count("\n"), 1)
    assert [contents(f) for f in ("base.raw", "mid.qcow2", "top.qcow2")] == before


def commit__image_without_layers_below_is_nothing_to_do():
    qmeld("create", "-q", "-f", "qcow2", "t", "1M")
    before = contents("t")
    assert qmeld("commit", "t").stdout.startswith("nothing to do")
    assert contents("t") == before


def commit__empty_file_is_no_success():
    with open("top.qcow2", "wb"):
        pass
    for command in (("commit",), ("plan",), ("fold", "--keep=1")):
        said = qmeld(*command, "top.qcow2", code=2).stderr
        assert said.startswith("qmeld: top.qcow2: the file is empty"), said
    assert qmeld("commit", "-f", "raw", "top.qcow2").stdout.startswith("nothing to do")


def commit__corrupt_image_is_refused_with_2():
    forge(CHAIN)
    poke("top.qcow2", 40, b"\0\0\0\0\0\1\0\1")  # an L1 table off its cluster
    done = qmeld("commit", "--output=json", "top.qcow2", code=2)
    same(json.loads(done.stdout)["result"], "failed")
    same(json.loads(done.stdout)["error"]["disk"], "old")


def revert__done_merge_into_qcow2_is_taken_back_bit_for_bit():
    forge(CHAIN_QCOW2)
    files = ("base.qcow2", "mid.qcow2", "top.qcow2")
    want, before = expected("top.qcow2"), [contents(f) for f in files]
    out = qmeld("commit", "--atomic", "top.qcow2").stdout
    assert "qmeld revert can take this back" in out, out
    out = qmeld("status").stdout  # nothing is unfinished, but it is shown
    assert "done, but not final" in out and "to take it back: qmeld revert" in out, out
    assert qmeld("commit", "--atomic", "top.qcow2").stdout.startswith("already merged")
    same(qmeld("recover", ".").stdout, "nothing is unfinished\n")
    done = qmeld("commit", "--shallow", "top.qcow2", code=2)
    assert "qmeld finalize" in done.stderr, done.stderr
    report = json.loads(qmeld("revert", "--output=json", "top.qcow2").stdout)
    same(report["result"], "reverted")
    same([contents(f) for f in files], before)
    same([f for f in os.listdir(".") if ".qmeld" in f], [])
    assert "no unfinished merge" in qmeld("revert", "top.qcow2", code=2).stderr
    qmeld("commit", "-q", "top.qcow2")
    if HAVE_QEMU:
        subprocess.run(["qemu-img", "convert", "-O", "raw", "base.qcow2", "got"], check=True)
        assert contents("got") == want


def revert__interrupted_merge_into_raw_is_taken_back_bit_for_bit():
    forge(BIG)
    before = [contents(f) for f in BIG_FILES]
    same(interrupt(signal.SIGTERM, "commit", "--undo", "top.qcow2")[0], 75)
    assert os.path.exists(JOURNAL + "-undo") and contents("base.raw") != before[0]
    assert "to take it back: qmeld revert" in qmeld("status", code=3).stdout
    same(json.loads(qmeld("revert", "--output=json", JOURNAL).stdout)["result"], "reverted")
    same([contents(f) for f in BIG_FILES], before)
    same([f for f in os.listdir(".") if ".qmeld" in f], [])


def revert__merge_without_a_way_back_is_refused():
    forge(BIG)
    same(interrupt(signal.SIGTERM)[0], 75)
    before = [contents(f) for f in (*BIG_FILES, JOURNAL)]
    done = qmeld("revert", "top.qcow2", code=2)
    assert "begun without --atomic or --undo" in done.stderr, done.stderr
    assert "not done yet" in qmeld("finalize", "top.qcow2", code=2).stderr
    assert [contents(f) for f in (*BIG_FILES, JOURNAL)] == before


def revert__base_written_to_since_is_refused():
    forge(CHAIN_QCOW2)
    qmeld("commit", "-q", "--atomic", "top.qcow2")
    os.utime("base.qcow2", (1, 1))
    before = contents("base.qcow2")
    done = qmeld("revert", "--output=json", "top.qcow2", code=2)
    same(json.loads(done.stdout)["error"]["disk"], "old")
    # "remove the journal, and merge again", as after an interruption, would lose what was written
    assert "base.qcow2" in done.stderr and "qmeld finalize" in done.stderr and "journal" not in done.stderr, done.stderr
    assert contents("base.qcow2") == before
    qmeld("finalize", "-q", "top.qcow2")
    same([f for f in os.listdir(".") if ".qmeld" in f], [])


def finalize__gives_up_what_revert_needs():
    forge(CHAIN_QCOW2)
    want = expected("top.qcow2")
    qmeld("commit", "-q", "--undo", "top.qcow2")
    same(json.loads(qmeld("finalize", "--output=json", "base.qcow2").stdout)["result"], "done")
    same([f for f in os.listdir(".") if ".qmeld" in f], [])
    if HAVE_QEMU:
        subprocess.run(["qemu-img", "check", "-q", "base.qcow2"], check=True)
        subprocess.run(["qemu-img", "convert", "-O", "raw", "base.qcow2", "got"], check=True)
        assert contents("got") == want


def finalize__needs_no_overlays_any_more():
    forge(CHAIN_QCOW2)
    qmeld("commit", "-q", "--atomic", "top.qcow2")
    os.remove("top.qcow2")
    os.remove("mid.qcow2")
    assert "mid.qcow2: it is not there any more" in qmeld("revert", "base.qcow2", code=2).stderr
    qmeld("finalize", "-q", "base.qcow2")
    same([f for f in os.listdir(".") if ".qmeld" in f], [])


def commit__ways_back_that_cannot_be_are_refused():
    forge(CHAIN)
    for words, why in ((["--atomic"], "--undo"), (["--undo", "--reclaim"], "--reclaim")):
        done = qmeld("commit", *words, "top.qcow2", code=2)
        assert why in done.stderr, done.stderr
    same([f for f in os.listdir(".") if ".qmeld" in f], [])


def revert__can_be_stopped_like_commit():
    forge("all cluster=2M\ntop.qcow2 | " + 256 * "D" + "\nbase.raw | " + 256 * "A" + "\n")
    before = contents("base.raw")
    qmeld("commit", "-q", "--undo", "top.qcow2")
    run = subprocess.Popen([QMELD, "revert", "--progress=json", "top.qcow2"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    told = json.loads(run.stderr.readline())  # the first of a phase comes at once: nearly all is still to be done
    run.send_signal(signal.SIGTERM)
    run.communicate()
    same((told["phase"], run.returncode), ("restore", 75))
    assert "being taken back" in qmeld("status", ".", code=3).stdout
    assert "taken back" in qmeld("resume", ".base.raw.qmeld").stdout
    assert contents("base.raw") == before
