# SPDX-License-Identifier: LGPL-2.1-or-later
"""What commands that only look print, beside what qemu-img prints."""
import json
import os
import re
import shutil
import struct
import subprocess
import xml.etree.ElementTree

from lib import (CHAIN, FORGE, HAVE_QEMU, QMELD, contents, forge, make_leak, poke, qemu_img, qmeld, same)


def verify__what_is_no_manifest_is_2_and_what_is_gone_is_3():
    forge(CHAIN)
    qmeld("flatten", "-q", "--manifest=m", "top.qcow2", "new")
    assert "all is as" in qmeld("verify", "m").stdout
    assert qmeld("verify", "new", code=2).stderr.startswith("qmeld: new: no manifest")
    os.rename("new", "elsewhere")
    assert "cannot be opened" in qmeld("verify", "m", code=3).stdout
    qmeld("verify", "--image=elsewhere", "m")
    told = json.loads(qmeld("verify", "--output=json", "--image=elsewhere", "m").stdout)
    assert told["leaves"] > 0 and told["findings"] == [] and told["unreadable"] == 0
    text = contents("m")
    for cut in range(0, len(text) - 3, 97):  # a torn or cut off manifest is never good
        with open("cut", "wb") as f:
            f.write(text[:cut])
        qmeld("verify", "-q", "--image=elsewhere", "cut", code=2)


def verify__a_missing_input_is_not_one_that_differs():
    """Layers that cannot be opened are 3, not 1; what differs is counted, whatever it is."""
    forge(CHAIN)
    qmeld("flatten", "-q", "--manifest=m", "top.qcow2", "new")
    os.rename("base.raw", "gone")
    told = json.loads(qmeld("verify", "--output=json", "m", code=3).stdout)
    assert told["spans-differ"] == told["inputs-differ"] == 0 and told["unreadable"] == 2, told
    os.rename("gone", "base.raw")
    with open("other", "wb") as f:
        f.write(re.sub(b'"merkle_root":"..', b'"merkle_root":"zz', contents("m")))
    assert "digests of the whole 1;" in qmeld("verify", "other", code=1).stdout


def verify__inputs_may_have_moved():
    forge(CHAIN)
    qmeld("flatten", "-q", "--manifest=m", "top.qcow2", "new")
    os.mkdir("there")
    for name in ("base.raw", "mid.qcow2", "top.qcow2", "new"):
        os.rename(name, f"there/{name}")
    moved = ("verify", "--output=json", "--image=there/new", "--inputs=there/top.qcow2", "m")
    same(json.loads(qmeld(*moved).stdout)["inputs"], 3)
    poke("there/base.raw", 5, b"?")
    told = json.loads(qmeld(*moved, code=1).stdout)
    same((told["inputs-differ"], told["findings"]), (1, ["input there/base.raw is another file, or has changed"]))
    os.unlink("there/base.raw")
    told = json.loads(qmeld(*moved, code=3).stdout)
    same((told["inputs-differ"], told["spans-differ"], told["unreadable"]), (0, 0, 4))
    assert "there/base.raw" in told["findings"][0], told
    shorter = ("verify", "--output=json", "--image=there/new", "--inputs=there/one.qcow2", "m")
    qmeld("create", "-q", "-f", "qcow2", "there/one.qcow2", "768K")
    told = json.loads(qmeld(*shorter, code=1).stdout)
    assert "the inputs are 1 files, and were 3" in told["findings"], told


def info__human_tells_layers_from_top_to_base():
    forge(CHAIN)
    out = qmeld("info", "top.qcow2").stdout
    same(re.findall(r"^\[(\d)\] (\S+)$", out, re.M),
         [("3", "top.qcow2"), ("2", "mid.qcow2"), ("1", "base.raw")])
    assert "backing file    mid.qcow2 (qcow2)" in out
    assert "virtual size    768 KiB (786432 bytes)" in out


def info__json_has_what_qemu_img_has():
    forge(CHAIN)
    want = json.loads(qemu_img("info", "--backing-chain", "--output=json", "top.qcow2"))
    got = json.loads(qmeld("info", "--output=json", "top.qcow2").stdout)
    same(len(got), len(want))
    for ours, theirs in zip(got, want):
        for key, value in theirs.items():
            assert key in ours, f"no {key}"
            same((key, ours[key]), (key, value))


def info__json_of_snapshots_and_bitmaps_is_qemu_imgs():
    qemu_img("create", "-q", "-f", "qcow2", "t", "1M")
    qemu_img("snapshot", "-c", "before", "t")
    qemu_img("bitmap", "--add", "-g", "32768", "t", "changed")
    want = json.loads(qemu_img("info", "--output=json", "t"))
    got = json.loads(qmeld("info", "--output=json", "t").stdout)[0]
    same(got["format-specific"]["data"]["bitmaps"], want["format-specific"]["data"]["bitmaps"])
    for key, value in want["snapshots"][0].items():
        same((key, got["snapshots"][0][key]), (key, value))


def info__single_looks_at_a_broken_chain():
    forge(CHAIN)
    os.unlink("base.raw")
    qmeld("info", "top.qcow2", code=1)
    assert "[1] top.qcow2" in qmeld("info", "--single", "top.qcow2").stdout


def info__names_cannot_drive_the_terminal_nor_break_json():
    name = b"a\x1b[2J\xff\xc2\x9b\xe2\x82\xac"
    qmeld("create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", "raw", "t", "1M")
    out = qmeld("info", "--single", "t").stdout
    assert "\x1b" not in out and r"a\x1b[2J\xff\xc2\x9b€" in out, out
    done = subprocess.run([QMELD, "info", "--single", "--output=json", "t"], capture_output=True)
    same(json.loads(done.stdout.decode("utf-8"))[0]["backing-filename"], "a\x1b[2J\ufffd\x9b€")


def map__json_is_the_text_of_qemu_img():
    forge(CHAIN)
    for args in ([], ["-s", "100k"], ["-l", "100k"], ["-s", "70000", "-l", "5"], ["-s", "10M"],
                 ["-s", "1M"], ["-l", "0"], ["--start-offset=64k", "--max-length=1G"]):
        same(qmeld("map", "--output=json", *args, "top.qcow2").stdout,
             qemu_img("map", "--output=json", *args, "top.qcow2"))


def map__json_of_random_chains_is_the_text_of_qemu_img():
    for seed in range(1, 13):
        forge(subprocess.run([FORGE, "--random", str(seed)], check=True, capture_output=True,
                             text=True).stdout)
        top, image_format = subprocess.run([FORGE, "--list", "recipe"], capture_output=True,
                                           text=True).stdout.splitlines()[0].split()
        for args in ([], ["-s", "70000", "-l", "300000"]):
            args = ["map", "-f", image_format, "--output=json", *args, top]
            got = qmeld(*args).stdout
            assert got == qemu_img(*args), f"seed {seed}"


def map__json_of_an_empty_image_is_one_empty_extent():
    qmeld("create", "-q", "-f", "qcow2", "t", "0")
    same(qmeld("map", "--output=json", "t").stdout, '[{ "start": 0, "length": 0, "depth": 0, '
         '"present": false, "zero": false, "data": false}]\n')


def map__table_is_that_of_qemu_img():
    forge(CHAIN.replace("d", "D").replace("c..\n", "C..\n"))
    same(qmeld("map", "top.qcow2").stdout, qemu_img("map", "top.qcow2"))


def map__table_shows_compressed_extents():
    forge(CHAIN)
    assert re.search(r"^0x70000 +0x10000 +compressed +top.qcow2$",
                     qmeld("map", "top.qcow2").stdout, re.M)


def map__strip_draws_layers_and_what_is_read():
    forge(CHAIN)
    picture = qmeld("map", "--format=strip", "top.qcow2").stdout
    same(picture[:picture.index("\n\n")],
         "               0\n"
         "               |-----------\n"
         "[3] top.qcow2  ..C.0..c....\n"
         "[2] mid.qcow2  .BB0...b..  \n"
         "[1] base.raw   AAAA0000A000\n"
         "               ------------\n"
         "reads as       ABC0000cA0..")


def map__strip_fits_the_terminal():
    forge("all cluster=4k size=64M\nvery-long-name-of-a-layer-that-goes-on.qcow2 | " + "A.b0" * 500 + "\n")
    for width in (40, 60, 132):
        out = qmeld("map", "--format=strip", "very-long-name-of-a-layer-that-goes-on.qcow2",
                    env={**os.environ, "COLUMNS": str(width)}).stdout
        rows = out[:out.index("\n\n")].splitlines()
        assert max(map(len, rows)) <= width and max(map(len, rows)) > width // 2 - 8, out


def map__strip_cuts_names_between_characters():
    name = "déjà-vu-" * 6 + "x.qcow2"
    forge("all cluster=64k\nt.qcow2 | AB\n")
    os.rename("t.qcow2", name)
    row = next(l for l in qmeld("map", "--format=strip", name).stdout.splitlines() if "[1]" in l)
    ruler = next(l for l in qmeld("map", "--format=strip", name).stdout.splitlines() if "|" in l)
    assert "~" in row and row.endswith("x.qcow2  AA") and len(row) == len(ruler), row


def map__strip_of_a_part_begins_at_a_whole_column():
    forge("all cluster=64k\nt.qcow2 | AB..CD..EF..GH..\n")
    out = qmeld("map", "--format=strip", "-s", "300k", "-l", "100k", "t.qcow2").stdout
    same(out[:out.index("\n\n")],
         "              256K\n"
         "              |--\n"
         "[1] t.qcow2   AA.\n"
         "              ---\n"
         "reads as      AA.")
    out = qmeld("map", "--format=strip", "-s", str((1 << 64) - 1), "t.qcow2").stdout
    assert "nothing to draw" in out


def map__strip_has_blocks_where_the_locale_has_them():
    forge(CHAIN)

    def draw(**env):
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "NO_COLOR", "LANG", "COLUMNS"))}
        return qmeld("map", "--format=strip", "top.qcow2", env={**clean, **env}).stdout
    blocks = draw(LC_ALL="C.UTF-8")
    assert "\u2588" in blocks and "\u2591" in blocks and "\033" not in blocks, blocks
    for letters in (draw(LC_ALL="C"), draw(LC_ALL="C.UTF-8", NO_COLOR="1")):
        assert letters.isascii() and "ABC0000cA0.." in letters, letters
    forge("all cluster=4k size=64M\nwide.qcow2 | " + "A.b0" * 500 + "\n")
    rows = qmeld("map", "--format=strip", "wide.qcow2",
                 env={k: v for k, v in os.environ.items() if k != "COLUMNS"}).stdout.splitlines()
    assert 50 < max(map(len, rows[:4])) <= 100, rows  # a pipe


def map__a_range_shows_what_a_merge_moves():
    forge(CHAIN)
    out = qmeld("map", "--format=strip", "--base=mid.qcow2", "top.qcow2").stdout
    row = next(line for line in out.splitlines() if line.startswith("goes to [2]"))
    same(row[-12:], "..C.0..c..00")  # the base ended: it grows, and must not show what is below
    cluster = int(re.search(r"one column: .* \((\d+) bytes\)", out)[1])
    assert re.search(rf"a merge of \[3\]\.\.\[3\] into \[2\] moves .* \({2 * cluster} bytes\) of data", out), out
    same(next(line for line in qmeld("map", "--format=strip", "--top=[2]", "top.qcow2").stdout.splitlines()
              if line.startswith("goes to [1]"))[-12:], ".BB0...b..00")  # docs/decisions/0004
    assert "does not lie below" in qmeld("map", "--format=svg", "--base=[3]", "top.qcow2", code=2).stderr
    assert "no layer" in qmeld("map", "--format=svg", "--base=[4]", "top.qcow2", code=2).stderr
    assert "picture" in qmeld("map", "--base=[1]", "top.qcow2", code=2).stderr


def map__svg_is_xml_whatever_the_names_are():
    name = 'a<b>&"\'\x1b[31m]]>-->\u202e\ufffe\xff</title><script>alert(1)</script>'.encode("utf-8", "surrogateescape")
    name = name.replace(b"/", b"_") + b"\xff.qcow2"
    forge("all cluster=64k\nt.qcow2 | AB0.\n")
    os.rename("t.qcow2", name)
    out = qmeld("map", "--format=svg", os.fsdecode(name)).stdout
    root = xml.etree.ElementTree.fromstring(out)
    assert not any(e.tag.endswith("script") for e in root.iter()), out
    assert "\x1b" not in out and "\u202e" not in out and "\ufffe" not in out, out
    text = "".join(root.itertext())
    assert "a<b>&" in text and "\\x1b[31m" in text and "\\u{202e}" in text, text


def map__strip_of_nothing_says_so():
    qmeld("create", "-q", "t.raw", "0")
    assert "nothing to draw" in qmeld("map", "--format=strip", "t.raw").stdout


def map__strip_shows_a_lonely_cluster():
    forge("all cluster=64k size=1T\nt.qcow2 | -\n  at 512G A\n")
    out = qmeld("map", "--format=strip", "t.qcow2").stdout
    row = next(line for line in out.splitlines() if line.startswith("reads as"))
    same(row.count("A"), 1)


def refcount_block(path):
    with open(path, "rb") as f:
        head = f.read(104)
        f.seek(struct.unpack(">Q", head[48:56])[0])
        return struct.unpack(">Q", f.read(8))[0]


def check_numbers(text):
    return {k: v for k, v in json.loads(text).items() if k != "filename"}


def check__sound_image_is_0_as_in_qemu_img():
    forge(CHAIN)
    same(qmeld("check", "top.qcow2").stdout, qemu_img("check", "top.qcow2"))
    same(check_numbers(qmeld("check", "--output=json", "top.qcow2").stdout),
         check_numbers(qemu_img("check", "--output=json", "top.qcow2")))


def check__leaks_are_3_and_repair_mends_them():
    make_leak()
    shutil.copy("t.qcow2", "u.qcow2")
    got = check_numbers(qmeld("check", "--output=json", "t.qcow2", code=3).stdout)
    same(got["leaks"], 1)
    if HAVE_QEMU:
        same(qmeld("check", "t.qcow2", code=3).stdout, qemu_img("check", "t.qcow2", code=3))
        same(got, check_numbers(qemu_img("check", "--output=json", "t.qcow2", code=3)))
    assert contents("t.qcow2") == contents("u.qcow2")
    got = check_numbers(qmeld("check", "-r", "leaks", "--output=json", "t.qcow2").stdout)
    same(got["leaks-fixed"], 1)
    qmeld("check", "t.qcow2")


def check__corruption_is_2():
    forge("all cluster=64k\nt.qcow2 | AB.C\n")
    poke("t.qcow2", refcount_block("t.qcow2") + 2 * 5, b"\0\0")
    done = qmeld("check", "t.qcow2", code=2)
    assert "Data may be corrupted" in done.stdout and done.stderr != ""
    if HAVE_QEMU:
        same(done.stdout, qemu_img("check", "t.qcow2", code=2))
    done = qmeld("check", "-q", "t.qcow2", code=2)
    same((done.stdout, done.stderr), ("", ""))


def check__raw_is_63_and_unknown_features_are_1():
    forge(CHAIN)
    qmeld("check", "-f", "raw", "base.raw", code=63)
    poke("top.qcow2", 72 + 7, b"\x20")  # an incompatible bit nobody knows
    qmeld("check", "top.qcow2", code=1)


def check__reports_what_is_odd_and_saves_what_is_lost():
    forge("all cluster=64k\n"
          "odd.qcow2 | AB.C.d.D\n"
          "  poke l2[1] = copied | @data[0]\n"
          "  poke l2[7] = copied | @reftable\n")
    lost = contents("odd.qcow2")
    told = json.loads(qmeld("check", "--report", "--output=json", "odd.qcow2", code=2).stdout)
    kinds = sorted((a["kind"], a.get("guest-offset")) for a in told["anomalies"])
    same([k for k in kinds if k[1] is not None], [("overlaps-metadata", 7 * 65536), ("referenced-twice", 65536)])
    same(told["anomalies-found"], len(kinds))
    os.mkdir("found")
    before = os.stat("odd.qcow2")
    text = qmeld("check", "--extract-unreferenced=found", "odd.qcow2", code=2).stdout
    same(os.stat("odd.qcow2").st_mtime_ns, before.st_mtime_ns)
    names = os.listdir("found")  # B's and D's clusters: leaked
    assert names and all(f"saved as found/{n}" in text for n in names), (names, text)
    same(sum(os.path.getsize(f"found/{n}") for n in names), 2 * 65536)
    for n in names:
        at = int(n[:-4], 16)
        part = contents(f"found/{n}")
        same(part, lost[at:at + len(part)])
    assert "File exists" in qmeld("check", "--extract-unreferenced=found", "odd.qcow2", code=1).stderr
    qmeld("check", "--extract-unreferenced=nowhere", "odd.qcow2", code=1)
    assert "leave out one" in qmeld("check", "--report", "--repair=all", "odd.qcow2", code=1).stderr


def check__report_looks_into_snapshots_and_among_compressed_data():
    forge("all cluster=4k\nodd.qcow2 | AB.b.\n  snapshot one C...D\n"
          "  poke snapshot[0].l1[0] = copied | @reftable\n"
          "  poke l2[0] = copied | @data[3]\n")
    told = json.loads(qmeld("check", "--report", "--output=json", "odd.qcow2", code=2).stdout)["anomalies"]
    same([(a["kind"], a["snapshot"], a["l2-table"]) for a in told if "snapshot" in a][0],
         ("overlaps-metadata", 1, True))
    same([a["compressed"] for a in told if a["kind"] == "overlaps-compressed"], [True])
    text = qmeld("check", "--report", "odd.qcow2", code=2).stdout
    assert "of the internal snapshot number 1" in text and "overlaps-compressed" in text, text


def check__report_of_a_sound_image_is_empty():
    forge("all cluster=4k\nsound.qcow2 | AB.b.\n  snapshot one ^C.^D\n")
    told = json.loads(qmeld("check", "--report", "--output=json", "sound.qcow2").stdout)
    same((told["anomalies"], told["anomalies-found"]), ([], 0))


SIBLINGS = """\
all cluster=64k
b.qcow2    | .D.0.e over=base.qcow2
a.qcow2    | ..D00D over=base.qcow2
base.qcow2 | AAA.AA
"""


def compare__says_what_qemu_img_says():
    forge(SIBLINGS)
    for pair, code in ((("a.qcow2", "a.qcow2"), 0), (("a.qcow2", "b.qcow2"), 1), (("a.qcow2", "none"), 2)):
        done = qmeld("compare", *pair, code=code)
        if HAVE_QEMU:
            same(done.stdout, qemu_img("compare", *pair, code=code))
    assert "none" in done.stderr
    same(qmeld("compare", "a.qcow2", "b.qcow2", code=1).stdout, "Content mismatch at offset 65536!\n")
    same(qmeld("compare", "-q", "a.qcow2", "b.qcow2", code=1).stdout, "")


def compare__lists_all_that_differs():
    forge(SIBLINGS)
    lines = qmeld("compare", "--all", "a.qcow2", "b.qcow2", code=1).stdout.splitlines()
    same(lines, ["Content mismatch at offset 65536, 131072 bytes",
                 "Content mismatch at offset 262144, 131072 bytes", "262144 bytes in 2 ranges differ."])
    told = json.loads(qmeld("compare", "--all", "--output=json", "a.qcow2", "b.qcow2", code=1).stdout)
    same(told["ranges"], [{"start": 65536, "length": 131072}, {"start": 262144, "length": 131072}])
    same((told["identical"], told["difference"], told["offset"], told["different-bytes"], told["truncated"]),
         (False, "content", 65536, 262144, False))
    same((told["bytes-shared"], told["bytes-read"]), (65536, 7 * 65536))


def compare__errors_have_the_codes_of_qemu_img():
    forge("all cluster=64k\nbad.qcow2 | A.b.\n  stream 2 garbage\n")
    with open("zero.raw", "wb") as f:
        f.truncate(4 * 65536)
    same(qmeld("compare", "bad.qcow2", "zero.raw", code=1).stdout, "Content mismatch at offset 0!\n")
    assert "inflate" in qmeld("compare", "--all", "bad.qcow2", "zero.raw", code=4).stderr
    forge("all cluster=64k\nlost.qcow2 | A.b.\n  poke l1[0] = 0x8000000000000200\n")
    qmeld("compare", "lost.qcow2", "zero.raw", code=3)


def compare__strict_looks_at_sizes_and_allocation():
    forge("all cluster=64k\nb.qcow2 | .0.. over=none\na.qcow2 | .... over=none\n")
    qmeld("compare", "a.qcow2", "b.qcow2")
    done = qmeld("compare", "-s", "a.qcow2", "b.qcow2", code=1)
    same(done.stdout, "Strict mode: Offset 65536 block status mismatch!\n")
    forge("all cluster=64k\nb.qcow2 | ..... over=none\na.qcow2 | .... over=none\n")
    same(qmeld("compare", "a.qcow2", "b.qcow2").stdout, "Warning: Image size mismatch!\nImages are identical.\n")
    same(qmeld("compare", "-s", "a.qcow2", "b.qcow2", code=1).stdout, "Strict mode: Image size mismatch!\n")
