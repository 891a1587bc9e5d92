# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names in images, and other images that stand on layers."""
import json
import os
import shutil
import subprocess

from lib import (BIG, HAVE_QEMU, JOURNAL, Skip, contents, expected, files_here, forge, kill_protecting, qemu_img, qmeld,
                 same, view)


def foreign__layers_are_refused_with_the_command_that_converts_them():
    heads = [("vmdk", 0, b"KDMV"), ("vmdk", 0, b"# Disk DescriptorFile\nversion=1\n"),
             ("vmdk", 0, b"# made by hand\n\nversion=2\r\n"), ("vdi", 64, b"\x7f\x10\xda\xbe"),
             ("vpc", 0, b"conectix"), ("vhdx", 0, b"vhdxfile"), ("qed", 0, b"QED\0"), ("qcow", 0, b"QFI\xfb\0\0\0\1"),
             ("parallels", 0, b"WithoutFreeSpace"), ("bochs", 0, b"Bochs Virtual HD Image"),
             ("cloop", 0, b"#!/bin/sh\n#V2.0 Format\n"), ("luks", 0, b"LUKS\xba\xbe")]
    for driver, at, magic in heads:
        with open("base", "wb") as f:
            f.write(bytes(at) + magic + bytes(4096 - at - len(magic)))
        refused = qmeld("map", "base", code=2).stderr
        assert f"qemu-img convert -f {driver} -O qcow2 base" in refused, refused
        forge(f"all cluster=4k\ntop | A backing_format={driver}\nbase | B\n")
        for command in ("map", "commit", "flatten"):
            refused = qmeld(command, "top", *(["out"] if command == "flatten" else []), code=2).stderr
            assert f"qemu-img convert -f {driver} -O qcow2 base" in refused, refused
    shutil.copy("base", "x.dmg")
    with open("x.dmg", "r+b") as f:
        f.write(bytes(512))
    assert "-f dmg" in qmeld("map", "x.dmg", code=2).stderr
    assert qmeld("map", "-f", "raw", "x.dmg").stdout


def names__lead_out_only_to_images_and_with_allow_path_not_at_all():
    os.makedirs("a/here")
    os.mkdir("there")
    forge("all cluster=4k\ntop | .A backing=../../there/base.raw\nbase.raw | BB\n", "a/here")
    os.rename("a/here/base.raw", "there/base.raw")
    here, there = os.path.abspath("a/here"), os.path.abspath("there")
    for command in (["map"], ["info"], ["compare"], ["flatten", "--to=raw"], ["plan"], ["commit"], ["rebase", "-b", ""]):
        more = {"compare": ["a/here/top"], "flatten": ["out"]}.get(command[0], [])
        refused = qmeld(*command, "--allow-path", here, "a/here/top", *more, code=2).stderr
        assert "--allow-path=" + there in refused, refused
        os.truncate("there/base.raw", 8191)
        refused = qmeld(*command, "a/here/top", *more, code=2).stderr
        assert "--allow-path=" + there in refused, refused
        os.truncate("there/base.raw", 8192)
    before = contents("there/base.raw")
    os.truncate("there/base.raw", 8191)
    os.rename("there", "a/there")  # near, which no length is asked of
    qemu_img("rebase", "-u", "-F", "raw", "-b", "../there/base.raw", "a/here/top")
    qmeld("map", "a/here/top")
    qmeld("map", "--allow-path", here, "a/here/top", code=2)
    os.rename("a/there", "there")
    qemu_img("rebase", "-u", "-F", "raw", "-b", "../../there/base.raw", "a/here/top")
    os.truncate("there/base.raw", 8192)
    qmeld("map", "a/here/top")
    qmeld("map", "--allow-path", here, "--allow-path", there, "a/here/top")
    qmeld("compare", "--allow-path=/", "a/here/top", "a/here/top")
    assert qmeld("commit", "--allow-path=nowhere", "a/here/top", code=2).stderr
    assert contents("there/base.raw") == before
    os.truncate("there/base.raw", 8191)
    qmeld("commit", "--base", "there/base.raw", "a/here/top")  # the user's word
    assert contents("there/base.raw")[4096:4100] == contents("there/base.raw")[4096:4100] != before[4096:4100]


def data_file__is_found_from_the_working_directory():
    if not HAVE_QEMU:
        raise Skip("qemu-img is not installed")
    os.mkdir("d")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=x.dat", "b", "1M"], cwd="d", check=True)
    assert "in the folder of the image" in qmeld("map", "d/b", code=2).stderr
    qmeld("info", "d/b")
    os.chdir("d")
    qmeld("map", "b")
    os.rename("x.dat", "nbd:x:1")
    assert "nbd:x:1" not in qmeld("map", "b", code=1).stderr
    os.chdir("..")


def names__an_empty_one_is_said_to_be_empty():
    for command in ("commit", "check", "map", "info", "plan", "fold --keep=1", "flatten -O raw", "convert -O raw"):
        words = command.split() + [""] + (["new"] if "-O" in command else [])
        done = qmeld(*words, code=1 if command == "check" else 2)
        assert "empty name" in done.stderr, (command, done.stderr)
        assert os.listdir(".") == [], os.listdir(".")


TREE = """\
all cluster=64k
side.qcow2   | ..S.     over=top.qcow2
deep.qcow2   | .E..     over=sib.qcow2
sib.qcow2    | S...     over=base.qcow2
half.qcow2   | ...H     over=mid.qcow2
top.qcow2    | ..D.     over=mid.qcow2
mid.qcow2    | .CC.     over=base.qcow2
low.qcow2    | ...L     over=bottom.raw
base.qcow2   | AA..     over=bottom.raw
bottom.raw   | WWWW
"""


def dependants(*args, code=0, command="commit"):
    """The names, kinds and layers that a merge into [2] tells of."""
    said = json.loads(qmeld(command, "--base=[2]", "--output=json", *args, "top.qcow2", code=code).stdout)
    return [(os.path.basename(d["filename"]), d["kind"], d["layer"]) for d in said["dependants"]]


HURT = [("deep.qcow2", "deeper", 2), ("half.qcow2", "overlay", 3), ("sib.qcow2", "overlay", 2)]


def others__that_read_what_changes_are_named_and_the_merge_is_refused():
    forge(TREE)
    before = files_here()
    same(dependants(code=2), HURT)
    same(dependants("--overlays=empty", code=2), HURT)
    for overlays in ("delete", "quarantine"):  # then top's file goes, too
        same(dependants(f"--overlays={overlays}", code=2), HURT + [("side.qcow2", "overlay", 4)])
    same(dependants(code=2, command="plan"), HURT)
    done = qmeld("commit", "--base=[2]", "top.qcow2", code=2)
    assert "--force" in done.stderr and all(name in done.stderr for name, _, _ in HURT), done.stderr
    assert "side" not in done.stderr and "low" not in done.stderr
    assert before == files_here()


def others__that_read_what_stays_do_not_matter():
    forge(TREE)
    for name in ("sib.qcow2", "half.qcow2", "deep.qcow2"):
        os.remove(name)
    low, side = view("low.qcow2"), view("side.qcow2")
    same(dependants(), [])
    assert low == view("low.qcow2") and side == view("side.qcow2")
    same(dependants(), [])  # merged already: nothing changes
    forge(TREE)
    want = view("top.qcow2")
    said = json.loads(qmeld("commit", "--base=[3]", "--output=json", "--force", "top.qcow2").stdout)
    same([d["filename"] for d in said["dependants"]], ["half.qcow2"])
    assert view("mid.qcow2") == want


def others__are_broken_with_force_and_named():
    forge(TREE)
    want, sib = view("top.qcow2"), view("sib.qcow2")
    done = qmeld("commit", "--base=[2]", "--force", "top.qcow2")
    assert done.stdout.count("BROKEN") == 3, done.stdout
    assert view("top.qcow2") == want and view("sib.qcow2") != sib
    forge(TREE)
    same(dependants("--force"), HURT)
    forge(TREE)
    same(dependants("--no-scan"), [])


def others__are_found_whatever_they_call_it():
    """By file, not by name: links, json: names, other folders, through images that nobody listed."""
    def found(*args, code=2):
        said = json.loads(qmeld("commit", "--output=json", *args, "top.qcow2", code=code).stdout)
        same(said["result"], "failed" if code else "done")
        return sorted(os.path.basename(d["filename"]) for d in said["dependants"])

    def overlay(name, backing, fmt="qcow2"):
        qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", fmt, name, "256k")

    def anew():
        for name in os.listdir("."):
            shutil.rmtree(name) if os.path.isdir(name) and not os.path.islink(name) else os.remove(name)
        forge("top.qcow2 | ..D.\nbase.qcow2 | AAAA\n")

    here = os.getcwd()
    anew()
    os.link("base.qcow2", "hard")
    os.symlink("base.qcow2", "soft")
    overlay("a", "hard")
    overlay("b", "soft")
    overlay("c", os.path.join(here, "base.qcow2"))
    overlay("d", "file:" + os.path.join(here, "base.qcow2"))
    overlay("e", 'json:{"driver":"qcow2","file":{"driver":"file","filename":"%s/soft"}}' % here)
    overlay("harmless", "no-such-file")
    overlay("raw", "base.qcow2", "raw")
    same(found(), ["a", "b", "c", "d", "e", "raw"])
    anew()
    os.makedirs("far/away/x")
    overlay("far/away/f", here + "/base.qcow2")
    overlay("far/away/x/g", "../f")
    same(found("--scan=far/away/x"), ["f", "g"])
    same(found("--scan=far"), ["f", "g"])
    same(found("--scan=far/away/x/g"), ["f", "g"])
    same(found("--scan=far", "--scan=far/away", "--force", code=0), ["f", "g"])
    anew()
    os.mkdir("far")  # a loop of links, and images that stand on each other
    os.symlink("..", "far/up")
    overlay("far/h", "i")
    overlay("far/i", "h")
    os.mkfifo("far/fifo")
    os.mkfifo("fifo")
    same(found("--scan=far", code=0), [])
    anew()
    qmeld("commit", "--scan=nowhere", "top.qcow2", code=1)


def others__with_the_base_as_data_file_are_found():
    forge("top.qcow2 | ..D.\nbase.raw | AAAA\n")
    qemu_img("create", "-q", "-f", "qcow2", "-o", "data_file=d.raw,data_file_raw=on", "x.qcow2", "256k")
    os.remove("d.raw")
    os.link("base.raw", "d.raw")
    said = json.loads(qmeld("commit", "--output=json", "top.qcow2", code=2).stdout)
    same([(d["filename"], d["kind"], d["layer"]) for d in said["dependants"]], [("x.qcow2", "data-file", 1)])


def others__that_cannot_be_read_are_told_of():
    forge("top.qcow2 | ..D.\nbase.raw | AAAA\n")
    forge("bad.qcow2 | ....\n  poke header.backing_off = 0x7fffffffffffffff\n  poke header.backing_len = 0xffffffff\nbase.raw | AAAA\n")
    for name, head in (("short", b"QFI\xfb"), ("longer", b"QFI\xfb\0\0\0\3" + b"\xff" * 64), ("qed", b"QED\0" + b"\xff" * 4092)):
        with open(name, "wb") as f:
            f.write(head)
    os.mkdir("locked", 0)
    done = qmeld("commit", "--scan=.", "top.qcow2")
    if os.getuid() != 0:
        assert "locked" in done.stderr and "could not be read" in done.stderr, done.stderr
    os.rmdir("locked")


def others__snapshots_of_merged_layers_are_named():
    recipe = "top.qcow2 | ..D.\n  snapshot old ....\n  snapshot new .E..\nbase.qcow2 | AAAA\n"
    forge(recipe)
    before = files_here()
    done = qmeld("commit", "top.qcow2", code=2)
    assert "old" in done.stderr and "new" in done.stderr and before == files_here(), done.stderr
    said = json.loads(qmeld("commit", "--no-scan", "--output=json", "top.qcow2", code=2).stdout)
    same([(d["kind"], d["snapshot-name"], d["layer"]) for d in said["dependants"]],
         [("snapshot", "old", 2), ("snapshot", "new", 2)])
    for overlays in ("keep", "empty", "delete"):
        forge(recipe)
        want = view("top.qcow2")
        qmeld("commit", "--force", f"--overlays={overlays}", "top.qcow2")
        assert view("base.qcow2") == want
        if overlays != "delete":
            assert view("top.qcow2") == want
            qemu_img("check", "-q", "top.qcow2")


SNAPSHOTS = """\
all cluster=4k
top.qcow2 | ..D.  %s
  snapshot old ....
  snapshot new .E..
mid.qcow2 | F...
  snapshot same ^...
base.qcow2 | AAAA
"""


def snapshot_views(*which):
    views = []
    for name, snapshot in which:
        qemu_img("convert", "-O", "raw", "-l", snapshot, name, "view.raw")
        views.append(contents("view.raw"))
        os.remove("view.raw")
    return views


def others__snapshots_are_protected():
    which = ("top.qcow2", "old"), ("top.qcow2", "new"), ("mid.qcow2", "same")
    for overlays in ("keep", "empty"):
        forge(SNAPSHOTS % "")
        before, files = [view("top.qcow2"), *snapshot_views(*which)], files_here()
        planned = json.loads(qmeld("plan", "--protect", f"--overlays={overlays}", "--output=json", "top.qcow2").stdout)
        assert files == files_here()
        same([d["fate"] for d in planned["dependants"]], ["protected"] * 3)
        done = json.loads(qmeld("commit", "--protect", f"--overlays={overlays}", "--output=json", "top.qcow2").stdout)
        assert done["bytes-protected"] == planned["bytes-protected"] > 0, (planned, done)
        assert before == [view("top.qcow2"), *snapshot_views(*which)]
        for name in ("top.qcow2", "mid.qcow2", "base.qcow2"):
            qemu_img("check", "-q", name)
    forge(SNAPSHOTS % "")
    files = files_here()
    done = qmeld("commit", "--protect", "--overlays=delete", "top.qcow2", code=2)
    assert "would go with it" in done.stderr and files == files_here(), done.stderr


def others__a_part_of_a_cluster_that_a_snapshot_shares_cannot_be_protected():
    forge("all cluster=16k\ntop.qcow2 | D..\nmid.qcow2 | #.. extended_l2=1\n  sub 0 A" + 31 * "." +
          "\n  snapshot s ^..\nbase.qcow2 | BBB\n")
    files = files_here()
    done = qmeld("commit", "--protect", "top.qcow2", code=2)
    assert "a part of this cluster" in done.stderr and files == files_here(), done.stderr


def others__what_a_layer_has_behind_tops_end_is_kept_for_who_stands_on_it():
    for how in ("--reclaim", "--overlays=delete"):
        forge("all cluster=4k\nsib.qcow2 | ..... over=mid.qcow2\ntop.qcow2 | .B over=mid.qcow2\n"
              "mid.qcow2 | M...M\nbase.qcow2 | AAAAA\n")
        before = view("sib.qcow2")
        qmeld("commit", "--protect", how, "top.qcow2")
        assert view("sib.qcow2") == before, how


def killed_protecting_sib():
    """What sib.qcow2 reads, and what the base is to read in the end."""
    forge(BIG)
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "sib.qcow2")
    qemu_img("bitmap", "--add", "sib.qcow2", "mine")
    was, want = view("sib.qcow2"), expected("top.qcow2")
    kill_protecting()
    return was, want


def others__protecting_goes_on_where_it_was_killed():
    was, want = killed_protecting_sib()
    assert "in-use" not in str(json.loads(qemu_img("info", "--output=json", "sib.qcow2"))["format-specific"])
    qmeld("resume", JOURNAL)
    assert view("sib.qcow2") == was and contents("base.raw") == want


def others__an_image_that_was_renamed_before_it_was_protected_is_not_forgotten():
    was, want = killed_protecting_sib()
    os.rename("sib.qcow2", "moved.qcow2")
    done = qmeld("resume", JOURNAL, code=3)
    assert "moved.qcow2: it reads through layers of a merge that has begun" in done.stderr, done.stderr
    assert view("moved.qcow2") == was
    os.rename("moved.qcow2", "sib.qcow2")
    qmeld("resume", JOURNAL)
    assert view("sib.qcow2") == was and contents("base.raw") == want


def others__an_image_that_is_not_there_when_it_is_to_be_protected_stops_the_merge():
    was, want = killed_protecting_sib()
    before = contents("base.raw")
    os.mkdir("away")
    os.rename("sib.qcow2", "away/sib.qcow2")
    done = qmeld("resume", JOURNAL, code=3)
    assert "sib.qcow2: it is to get what it reads through the chain, and is not there" in done.stderr, done.stderr
    assert contents("base.raw") == before
    qmeld("revert", JOURNAL)
    os.rename("away/sib.qcow2", "sib.qcow2")
    assert view("sib.qcow2") == was and contents("base.raw") == before
    qmeld("commit", "--protect", "top.qcow2")
    assert view("sib.qcow2") == was and contents("base.raw") == want
