# SPDX-License-Identifier: LGPL-2.1-or-later
"""What was begun, and how it is gone on with."""
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import time
import zlib

from lib import (ANY, BIG, BIG_FILES, JOURNAL, QMELD, Skip, contents, expected, fates, forge, interrupt, kill_protecting, poke,
                 qemu_img, qmeld, same, view)


def status__tells_that_others_are_protected_first():
    forge(BIG)
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "sib.qcow2")
    was, want = view("sib.qcow2"), expected("top.qcow2")
    kill_protecting()
    out = qmeld("status", ".", code=3).stdout
    assert "get what they read through it first; no layer has changed" in out, out
    same(out.count("reads as before"), 3)
    [told] = json.loads(qmeld("status", "--output=json", ".", code=3).stdout)
    same((told["protecting"], told["complete"]), (True, False))
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "late.qcow2")
    done = qmeld("resume", JOURNAL, code=3)
    assert "late.qcow2: it reads through layers of a merge that has begun" in done.stderr, done.stderr
    os.remove("late.qcow2")
    assert "revert" in out and told["revertible"], out  # without --atomic: there is nothing to take back yet
    before = contents("base.raw")
    qmeld("revert", JOURNAL)
    assert view("sib.qcow2") == was and contents("base.raw") == before and not os.path.exists(JOURNAL)
    qemu_img("check", "-q", "sib.qcow2")
    qmeld("commit", "--protect", "top.qcow2")
    assert view("sib.qcow2") == was and contents("base.raw") == want


def status__nothing_is_0():
    forge(BIG)
    same(qmeld("status").stdout, ".: nothing is unfinished\n")
    same(json.loads(qmeld("status", "--output=json", ".", "top.qcow2").stdout), [])


def status__tells_what_files_are_worth_and_is_3():
    forge(BIG)
    same(interrupt(signal.SIGTERM)[0], 75)
    before = [contents(f) for f in (*BIG_FILES, JOURNAL)]
    for path in (".", *BIG_FILES, JOURNAL):
        out = qmeld("status", path, code=3).stdout
        assert "unfinished: the merge of " in out and "/mid.qcow2: INVALID" in out, out
        assert "/top.qcow2: reads as before" in out and "/base.raw: half merged" in out, out
        assert re.search(r"^  to finish it: qmeld resume \S*/?\.base\.raw\.qmeld$", out, re.M), out
        found, = json.loads(qmeld("status", "--output=json", path, code=3).stdout)
        assert 0 < found["done"] < found["size"] == 24 << 20, found
        same((found["running"], found["complete"], found["overlays"]), (False, False, "keep"))
        same([(l["layer"], os.path.basename(l["filename"]), l["state"]) for l in found["layers"]],
             [(1, "base.raw", "half-merged"), (2, "mid.qcow2", "invalid"),
              (3, "top.qcow2", "as-before")])
    assert [contents(f) for f in (*BIG_FILES, JOURNAL)] == before
    same(len(json.loads(qmeld("status", "--output=json", ".", "top.qcow2", code=3).stdout)), 2)


def status__finds_the_journal_beside_a_base_elsewhere():
    os.mkdir("below")
    forge(BIG)
    os.rename("base.raw", "below/base.raw")
    qemu_img("rebase", "-u", "-f", "qcow2", "-b", "below/base.raw", "-F", "raw", "mid.qcow2")
    same(interrupt(signal.SIGKILL)[0], -9)
    qmeld("status", ".", code=0)
    for path in ("top.qcow2", "mid.qcow2", "below", "below/base.raw"):
        found, = json.loads(qmeld("status", "--output=json", path, code=3).stdout)
        same(os.path.basename(found["journal"]), JOURNAL)
    want = expected("top.qcow2")
    qmeld("resume", "-q", "top.qcow2")
    assert contents("below/base.raw") == want and os.listdir("below") == ["base.raw"]


def status__says_that_a_process_is_at_work():
    forge(BIG)
    process = subprocess.Popen([QMELD, "commit", "--bandwidth=64k", "-q", "top.qcow2"])
    end = time.time() + 30
    while not os.path.exists(JOURNAL) or qmeld("status", code=ANY).returncode == 0:
        assert time.time() < end
        time.sleep(0.05)
    out = qmeld("status", code=3).stdout
    assert "at work now" in out and "to finish" not in out, out
    assert "another process" in qmeld("resume", "top.qcow2", code=2).stderr
    process.kill()
    process.wait()
    assert "unfinished: " in qmeld("status", code=3).stdout


def status__journals_nobody_can_use_do_not_hide_the_others():
    forge(BIG)
    interrupt(signal.SIGKILL)
    with open(".a.raw.qmeld", "wb") as f:
        f.write(b"?" * 8192)
    shutil.copy(JOURNAL, ".z.raw.qmeld")
    poke(".z.raw.qmeld", 4100, b"\0\xff")
    open(".empty.raw.qmeld", "w").close()  # a crash before anything was changed leaves such
    os.mkdir(".folder.qmeld")
    found = json.loads(qmeld("status", "--output=json", code=3).stdout)
    same({os.path.basename(f["journal"]): f.get("error", {}).get("code") for f in found},
         {JOURNAL: None, ".a.raw.qmeld": "corrupt", ".z.raw.qmeld": "corrupt",
          ".folder.qmeld": "usage"})
    qmeld("commit", "-q", "top.qcow2")  # strangers do not matter to it, either


def resume__goes_on_after_any_kind_of_end():
    for number in (signal.SIGKILL, signal.SIGTERM):
        for path in (*BIG_FILES, JOURNAL, os.path.abspath(JOURNAL)):
            forge(BIG)
            want = expected("top.qcow2")
            code, _, _ = interrupt(number)
            same(code, 75 if number == signal.SIGTERM else -9)
            report = json.loads(qmeld("resume", "--output=json", path).stdout)
            same((report["result"], report["resumed"]), ("done", True))
            same([l["fate"] for l in report["layers"]], ["merged-into", "invalid", "redundant"])
            assert contents("base.raw") == want and not os.path.exists(JOURNAL)


def resume__what_reclaim_gave_up_is_in_the_base_alone():
    forge(BIG)
    want = expected("top.qcow2")
    size = sum(os.stat(n).st_blocks for n in ("mid.qcow2", "top.qcow2"))
    same(interrupt(signal.SIGTERM, "commit", "--reclaim", "top.qcow2")[0], 75)
    found, = json.loads(qmeld("status", "--output=json", code=3).stdout)
    same((found["reclaim"], found["complete"]), (True, False))
    assert "it can only be finished" in qmeld("status", code=3).stdout
    assert sum(os.stat(n).st_blocks for n in ("mid.qcow2", "top.qcow2")) <= size - 4096
    qemu_img("compare", "-f", "qcow2", "-F", "raw", "top.qcow2", "expected")
    assert "is unfinished" in qmeld("commit", "top.qcow2", code=2).stderr  # other words
    report = json.loads(qmeld("commit", "--output=json", "--reclaim", "top.qcow2").stdout)
    same((report["result"], report["resumed"], report["reclaimed"]), ("done", True, True))
    assert contents("base.raw") == want and not os.path.exists(JOURNAL)


def resume__can_be_stopped_like_commit():
    forge(BIG)
    want = expected("top.qcow2")
    interrupt(signal.SIGTERM)
    done = [json.loads(qmeld("status", "--output=json", code=3).stdout)[0]["done"]]
    same(interrupt(signal.SIGTERM, "resume", "top.qcow2")[0], 75)
    done += [json.loads(qmeld("status", "--output=json", code=3).stdout)[0]["done"]]
    assert 0 < done[0] < done[1], done
    qmeld("resume", "-q", "--bandwidth=0", "--threads=2", "top.qcow2")
    assert contents("base.raw") == want


def resume__keeps_to_what_was_asked_for():
    for overlays, fates in (("empty", ["merged-into", "invalid", "emptied"]),
                            ("delete", ["merged-into", "deleted", "deleted"]),
                            ("quarantine", ["merged-into", "quarantined", "quarantined"])):
        forge(BIG)
        want = expected("top.qcow2")
        interrupt(signal.SIGTERM, "commit", f"--overlays={overlays}", "top.qcow2")
        report = json.loads(qmeld("resume", "--output=json", "top.qcow2").stdout)
        same([l["fate"] for l in report["layers"]], fates)
        assert contents("base.raw") == want
        assert os.path.exists("top.qcow2") == (overlays == "empty")


def resume__a_name_that_is_taken_meanwhile_is_not_replaced():
    """Status and resume, when one file has its new name and the other cannot have it."""
    forge(BIG)
    want, aside = expected("top.qcow2"), ["mid.qcow2.merged", "top.qcow2.merged"]
    interrupt(signal.SIGTERM, "commit", "--overlays=quarantine", "top.qcow2")
    with open(aside[0], "w", encoding="utf-8") as f:
        f.write("somebody's")
    done = qmeld("resume", "top.qcow2", code=3)
    assert "mid.qcow2: it cannot be renamed" in done.stderr, done.stderr
    assert os.path.exists(aside[1]) and not os.path.exists("top.qcow2")
    for path in (".", JOURNAL, "mid.qcow2", aside[1], os.path.abspath("top.qcow2")):
        found, = json.loads(qmeld("status", "--output=json", path, code=3).stdout)
        same((found["complete"], found["overlays"]), (True, "quarantine"))
        same([l["state"] for l in found["layers"]],
             ["complete", "to-be-quarantined", "quarantined"])
        same([os.path.basename(l.get("moved-to", "")) for l in found["layers"]], ["", *aside])
    assert "to be put aside as" in qmeld("status", code=3).stdout
    os.unlink(aside[0])
    qmeld("commit", "-q", "--overlays=quarantine", "top.qcow2")
    assert contents("base.raw") == want and all(os.path.exists(n) for n in aside)
    assert not os.path.exists("mid.qcow2") and not os.path.exists(JOURNAL)


def resume__without_anything_unfinished_is_refused():
    forge(BIG)
    assert "no unfinished merge" in qmeld("resume", "top.qcow2", code=2).stderr
    assert "qmeld recover" in qmeld("resume", ".", code=2).stderr


def two_merges():
    """The chain of BIG with two merges of it unfinished, of which only one can be meant: a copy of
    the journal, which says that it was made where it is, stands for the other."""
    forge(BIG)
    interrupt(signal.SIGTERM)
    data = contents(JOURNAL)
    intent = json.loads(data[4096:4096 + struct.unpack_from(">I", data, 20)[0]])
    intent["journal"] = os.path.abspath(".other.raw.qmeld")
    text = json.dumps(intent).encode()
    head = data[:20] + struct.pack(">II", len(text), zlib.crc32(text))
    with open(".other.raw.qmeld", "wb") as f:
        f.write(head + struct.pack(">I", zlib.crc32(head)) + data[32:4096] + text)


def resume__several_merges_of_a_layer_are_listed():
    two_merges()
    before = [contents(f) for f in BIG_FILES]
    err = qmeld("resume", "top.qcow2", code=2).stderr
    assert "2 unfinished merges" in err and "qmeld resume ./.other.raw.qmeld" in err, err
    assert [contents(f) for f in BIG_FILES] == before


def unfinished__guest_that_wrote_a_qcow2_header_into_a_raw_base_is_no_obstacle():
    """A merge of a raw base that looks like qcow2 is refused; but this one was half done then."""
    qmeld("create", "-q", "-f", "qcow2", "inner", "1M")
    header = contents("inner")[:512]
    for args in (["resume", JOURNAL], ["resume", "top.qcow2"], ["commit", "top.qcow2"]):
        forge(BIG.replace("| ....B", "| A...B"))
        with open("top.qcow2", "rb") as f:
            f.seek(struct.unpack(">Q", f.read(48)[40:])[0])
            f.seek(struct.unpack(">Q", f.read(8))[0] & 0x00fffffffffffe00)
            data = struct.unpack(">Q", f.read(8))[0] & 0x00fffffffffffe00
        want = header + expected("top.qcow2")[512:]
        poke("top.qcow2", data, header)
        interrupt(signal.SIGTERM)
        same(contents("base.raw")[:512], header)
        qmeld(*args, "-q")
        assert contents("base.raw") == want


def unfinished__changed_layer_is_refused_with_2_and_named():
    for args in (["commit", "top.qcow2"], ["resume", "top.qcow2"], ["recover", "."]):
        for name in ("top.qcow2", "mid.qcow2"):
            forge(BIG)
            want = expected("top.qcow2")
            interrupt(signal.SIGTERM)
            os.utime(name, (1, 1))
            before = [contents(f) for f in (*BIG_FILES, JOURNAL)]
            done = qmeld(*args, code=2)
            assert f"/{name}: it has changed" in done.stderr, done.stderr
            assert "remove the journal" in done.stderr
            assert [contents(f) for f in (*BIG_FILES, JOURNAL)] == before
            os.unlink(JOURNAL)  # the way out that was named
            qmeld("commit", "-q", "top.qcow2")
            assert contents("base.raw") == want


def unfinished__base_replaced_by_another_file_is_refused():
    forge(BIG)
    interrupt(signal.SIGTERM)
    shutil.copy("base.raw", "copy")
    os.rename("copy", "base.raw")
    assert "/base.raw: it is another file than when" in qmeld("resume", "top.qcow2", code=2).stderr


def unfinished__older_base_put_back_is_merged_again():
    """The journal knows what was in the base, not what is: a restored base must not cost a byte."""
    forge(BIG)
    old = contents("base.raw")
    interrupt(signal.SIGTERM)
    with open("base.raw", "r+b") as f:  # the same inode
        f.write(old)
    qmeld("commit", "top.qcow2")
    put_back = contents("base.raw")
    forge(BIG)
    qmeld("commit", "top.qcow2")
    assert put_back == contents("base.raw") != old


def unfinished__overlays_do_not_go_over_an_older_base_put_back():
    """All is in the base, and only names were left to change, when it is restored: the copies are the last ones."""
    forge(BIG)
    old = contents("base.raw")
    interrupt(signal.SIGTERM, "commit", "--overlays=quarantine", "top.qcow2")
    with open("top.qcow2.merged", "w", encoding="utf-8") as f:
        f.write("somebody's")
    qmeld("resume", "top.qcow2", code=3)
    os.unlink("top.qcow2.merged")
    merged = contents("base.raw")
    assert merged != old
    with open("base.raw", "r+b") as f:
        f.write(old)
    done = qmeld("resume", "top.qcow2", code=2)
    assert "does not hold what was merged" in done.stderr, done.stderr
    assert os.path.exists("top.qcow2") and os.path.exists("mid.qcow2")
    with open("base.raw", "r+b") as f:
        f.write(merged)
    qmeld("resume", "top.qcow2")
    assert contents("base.raw") == merged and not os.path.exists("top.qcow2")


def unfinished__other_request_is_refused_with_the_way_out():
    for args in (["--shallow", "top.qcow2"], ["--overlays=delete", "top.qcow2"],
                 ["--top=[2]", "top.qcow2"], ["mid.qcow2"]):
        forge(BIG)
        interrupt(signal.SIGTERM)
        before = [contents(f) for f in (*BIG_FILES, JOURNAL)]
        done = qmeld("commit", *args, code=2)
        way = re.search(r"`qmeld (resume) (\S+)`", done.stderr)
        assert way, done.stderr
        assert [contents(f) for f in (*BIG_FILES, JOURNAL)] == before
        qmeld(*way.groups())


def unfinished__sibling_of_the_top_is_refused():
    forge(BIG)
    interrupt(signal.SIGTERM)
    shutil.copy("top.qcow2", "sibling.qcow2")
    assert "qmeld resume" in qmeld("commit", "sibling.qcow2", code=2).stderr


def unfinished__damaged_journal_is_named_and_nothing_done():
    for offset in (0, 20, 4200):  # magic, head, intent
        forge(BIG)
        want = expected("top.qcow2")
        interrupt(signal.SIGTERM)
        poke(JOURNAL, offset, b"\xff\xfe")
        before = [contents(f) for f in BIG_FILES]
        for args in (["commit", "top.qcow2"], ["resume", JOURNAL], ["resume", "base.raw"],
                     ["recover", "."]):
            done = qmeld(*args, code=2)
            assert JOURNAL in done.stderr and "damaged" in done.stderr, done.stderr
            assert [contents(f) for f in BIG_FILES] == before
        assert "damaged" in qmeld("status", code=3).stdout
        os.rename(JOURNAL, "away")  # as the sentence says
        qmeld("commit", "-q", "top.qcow2")
        assert contents("base.raw") == want


def unfinished__journal_of_somebody_else_is_not_obeyed():
    if os.geteuid() != 0:
        raise Skip("only root can make somebody else's file")
    forge(BIG)
    interrupt(signal.SIGTERM)
    for uid, mode in ((1234, 0o644), (0, 0o666)):
        os.chown(JOURNAL, uid, uid)
        os.chmod(JOURNAL, mode)
        before = [contents(f) for f in BIG_FILES]
        for args in (["commit", "top.qcow2"], ["resume", JOURNAL], ["recover", "."]):
            assert f"belongs to user {uid}" in qmeld(*args, code=2).stderr
            assert [contents(f) for f in BIG_FILES] == before
        same(json.loads(qmeld("status", "--output=json", code=3).stdout)[0]["error"]["code"], "usage")


def unfinished__journal_in_the_hands_of_others_reaches_what_they_do():
    """Who owns a directory can give any file of root's in it the name of a journal."""
    if os.geteuid() != 0:
        raise Skip("only root can make somebody else's directory")
    os.mkdir("hers")
    for uid, mode in ((1234, 0o755), (0, 0o777), (0, 0o1777)):
        forge(BIG)
        want, before = expected("top.qcow2"), [contents(f) for f in BIG_FILES]
        os.chown("hers", uid, uid)
        os.chmod("hers", mode)
        words = ["commit", "--overlays=quarantine", "--journal-dir=hers", "top.qcow2"]
        done = qmeld(*words, code=2)  # none is begun that nobody could go on with
        assert "base.raw" in done.stderr and "others than you" in done.stderr, done.stderr
        same((os.listdir("hers"), [contents(f) for f in BIG_FILES]), ([], before))
        os.chown("hers", 0, 0)
        os.chmod("hers", 0o755)
        interrupt(signal.SIGTERM, *words)
        before = [contents(f) for f in BIG_FILES]
        os.chown("hers", uid, uid)
        os.chmod("hers", mode)
        for args in (words, ["resume", "hers/" + JOURNAL], ["recover", "hers"]):
            done = qmeld(*args, code=2)
            assert "base.raw" in done.stderr and "others than you" in done.stderr, done.stderr
            same([contents(f) for f in BIG_FILES], before)
        same(json.loads(qmeld("status", "--output=json", "hers", code=3).stdout)[0]["error"]["code"],
             "usage")
        os.chown("base.raw", uid, uid)  # one file of hers is not the others
        done = qmeld("resume", "hers/" + JOURNAL, code=2)
        assert ("mid.qcow2" if uid else "base.raw") in done.stderr, done.stderr
        os.chown("base.raw", 0, 0)
        os.chown("hers", 0, 0)
        os.chmod("hers", 0o755)
        qmeld("recover", "-q", "hers")
        assert contents("base.raw") == want
        for path in ("mid.qcow2.merged", "top.qcow2.merged"):
            if os.path.exists(path):
                os.remove(path)


def unfinished__what_lies_beside_its_journal_is_within_reach():
    if os.geteuid() != 0:
        raise Skip("only root can make somebody else's directory")
    for uid, mode in ((1234, 0o755), (0, 0o1777)):
        forge(BIG)
        want = expected("top.qcow2")
        os.chown(".", uid, uid)
        os.chmod(".", mode)
        interrupt(signal.SIGTERM)
        qmeld("recover", "-q", ".")
        assert contents("base.raw") == want


def unfinished__below_its_journal_and_where_everybody_may_write_is_within_reach():
    if os.geteuid() != 0:
        raise Skip("only root can make somebody else's directory")
    for uid, mode, sub in ((1234, 0o755, 0o755), (0, 0o1777, 0o755), (0, 0o777, 0o777)):
        home = "shared" if sub == 0o755 else "."
        for folder in ("shared", home + "/below"):
            os.mkdir(folder)
        qmeld("create", "-q", "-f", "qcow2", "shared/base.qcow2", "1M")
        back = "../base.qcow2" if home == "shared" else "../shared/base.qcow2"
        top = home + "/below/top.qcow2"
        qmeld("create", "-q", "-f", "qcow2", "-b", back, "-F", "qcow2", top)
        os.chown("shared", uid, uid)
        os.chmod("shared", mode)
        os.chmod(home + "/below", sub)
        assert "merged" in qmeld("commit", "--overlays=delete", top).stdout or not os.path.exists(top)
        shutil.rmtree("shared")
        shutil.rmtree("below", ignore_errors=True)


def unfinished__link_in_the_place_of_what_was_kept_is_not_followed():
    """It would be written to by who goes on, and read into the base by who goes back."""
    forge(BIG)
    interrupt(signal.SIGTERM, "commit", "--undo", "top.qcow2")
    os.rename(JOURNAL + "-undo", "kept")
    shutil.copy("kept", "victim")
    os.symlink("victim", JOURNAL + "-undo")
    before = [contents(f) for f in (*BIG_FILES, "victim")]
    for args in (["commit", "--undo", "top.qcow2"], ["resume", JOURNAL], ["revert", JOURNAL]):
        done = qmeld(*args, code=ANY)
        assert done.returncode in (2, 3) and "a link to another file" in done.stderr, done.stderr
        same([contents(f) for f in (*BIG_FILES, "victim")], before)
    os.rename("kept", JOURNAL + "-undo")
    qmeld("revert", "-q", JOURNAL)


def unfinished__journal_dir_holds_the_journal():
    os.mkdir("journals")
    forge(BIG)
    want = expected("top.qcow2")
    for args in (["resume", "top.qcow2"], ["commit", "top.qcow2"]):
        forge(BIG)
        interrupt(signal.SIGTERM, "commit", "--journal-dir=journals", "top.qcow2")
        same(os.listdir("journals"), [JOURNAL])
        assert not os.path.exists(JOURNAL)
        qmeld("status", "top.qcow2", code=0)
        qmeld("status", "--journal-dir=journals", "top.qcow2", code=3)
        qmeld("status", "journals", code=3)
        qmeld(args[0], "-q", "--journal-dir=journals", *args[1:])
        same(os.listdir("journals"), [])
        assert contents("base.raw") == want


def unfinished__copy_of_a_journal_merges_nothing_again():
    """A backup of the folder, made while a merge was interrupted, names the layers by the same absolute paths."""
    os.mkdir("there")
    forge(BIG, "there")
    interrupt(signal.SIGTERM, folder="there")
    shutil.copytree("there", "copy")
    qmeld("commit", "-q", "there/top.qcow2")
    poke("there/base.raw", 1 << 20, b"a guest goes on with the base")
    before = {f: contents(f"there/{f}") for f in BIG_FILES}
    copied = f"copy/{JOURNAL}"
    for args in (["resume", copied], ["recover", "copy"], ["revert", copied], ["commit", "copy/top.qcow2"]):
        assert f"made as {os.getcwd()}/there/{JOURNAL}" in qmeld(*args, code=2).stderr
        assert {f: contents(f"there/{f}") for f in BIG_FILES} == before
    same(json.loads(qmeld("status", "--output=json", "copy", code=3).stdout)[0]["error"]["code"], "usage")
    want = expected("top.qcow2")
    os.remove(copied)
    qmeld("commit", "-q", "copy/top.qcow2")  # what the refusal says
    assert contents("copy/base.raw") == want


def unfinished__journal_of_another_chain_is_not_overwritten():
    for folder in ("a", "b", "journals"):
        os.mkdir(folder)
    for folder in ("a", "b"):
        forge(BIG, folder)
    want = expected("top.qcow2")
    interrupt(signal.SIGTERM, "commit", "--journal-dir=../journals", "top.qcow2", folder="a")
    before = contents(f"journals/{JOURNAL}")
    done = qmeld("commit", "--journal-dir=journals", "b/top.qcow2", code=2)
    assert "another unfinished merge" in done.stderr, done.stderr
    assert contents(f"journals/{JOURNAL}") == before
    qmeld("recover", "-q", "journals")
    assert contents("a/base.raw") == want
    qmeld("commit", "-q", "--journal-dir=journals", "b/top.qcow2")
    assert contents("b/base.raw") == want


def unfinished__symbolic_link_in_the_journals_place_is_not_followed():
    forge(BIG)
    with open("precious", "wb") as f:
        f.write(bytes(1024) + b"precious")
    os.symlink("precious", JOURNAL)
    qmeld("commit", "-q", "top.qcow2")
    same(contents("precious")[1024:], b"precious")


def recover__finishes_all_and_can_be_repeated():
    same(qmeld("recover", ".").stdout, "nothing is unfinished\n")
    os.mkdir("journals")
    for folder in ("a", "b", "c"):
        os.mkdir(folder)
        forge(BIG.replace("base.raw ", f"{folder}.raw"), folder)
        interrupt(signal.SIGTERM, "commit", "--journal-dir=../journals", "top.qcow2", folder=folder)
    want = expected("top.qcow2")
    os.utime("b/top.qcow2", (1, 1))
    with open("journals/.0.qmeld", "wb") as f:
        f.write(b"?" * 8192)
    done = qmeld("recover", "journals", code=2)
    same(len(done.stdout.splitlines()), 2)
    assert "/a.raw holds the merged data now" in done.stdout and "/b/top.qcow2" in done.stderr
    assert contents("a/a.raw") == want == contents("c/c.raw")
    same(sorted(os.listdir("journals")), [".0.qmeld", ".b.raw.qmeld"])
    results = json.loads(qmeld("recover", "--output=json", "journals", code=2).stdout)
    same([(os.path.basename(r["journal"]), r["result"], r["error"]["code"]) for r in results],
         [(".0.qmeld", "failed", "corrupt"), (".b.raw.qmeld", "failed", "stale")])
    for name in os.listdir("journals"):
        os.unlink(os.path.join("journals", name))
    same(json.loads(qmeld("recover", "--output=json", "journals").stdout), [])


def recover__stops_before_the_next_at_its_deadline():
    forge(BIG)
    interrupt(signal.SIGTERM)
    before = [contents(f) for f in (*BIG_FILES, JOURNAL)]
    assert "left unfinished" in qmeld("recover", "--deadline=0", ".", code=75).stderr
    assert [contents(f) for f in (*BIG_FILES, JOURNAL)] == before
    assert "qmeld resume" in qmeld("recover", "top.qcow2", code=2).stderr
