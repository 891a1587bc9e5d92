# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command line itself: options, codes, streams; qemu-img's words."""
import json
import os
import re
import shutil
import subprocess

from lib import (ANY, CHAIN, HAVE_QEMU, QMELD, Skip, contents, expected, fates, forge, make_leak, qemu_img, qmeld, same)


COMMANDS = [line.split("\t")[0] for line in subprocess.run(
    [QMELD, "help", "--options"], stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()]


def usage__no_command_is_refused_with_the_overview_on_stderr():
    done = qmeld(code=2)
    assert done.stdout == "" and "qmeld COMMAND" in done.stderr


def usage__help_is_an_answer_and_so_on_stdout():
    for args in (["help"], ["--help"], ["-h"]):
        done = qmeld(*args)
        assert "qmeld COMMAND" in done.stdout and done.stderr == ""


def usage__version_is_one_line():
    assert re.fullmatch(r"qmeld \d+\.\d+\.\d+\n", qmeld("--version").stdout)


def usage__unknown_command_is_named():
    assert '"unfold"' in qmeld("unfold", code=2).stderr
    assert '"unfold"' in qmeld("help", "unfold", code=2).stderr


def usage__the_word_that_was_meant_is_told():
    for typed, meant in (("comit", "commit"), ("commti", "commit"), ("resum", "resume"), ("merge", "commit"),
                         ("version", "--version")):
        assert f"is `qmeld {meant}` meant?" in qmeld(typed, code=2).stderr
        assert f"is `qmeld {meant}` meant?" in qmeld("help", typed, code=2).stderr
    for typed in ("x", "unfold", "c" * 5000):  # nothing like it: no guess
        assert "meant" not in qmeld(typed, code=2).stderr
    for typed, meant in (("--overlayz=keep", "overlays"), ("--verfy", "verify"), ("--bsae=x", "base")):
        said = qmeld("commit", typed, "x", code=2).stderr
        assert f"unknown option {typed.split('=')[0]}: is --{meant} meant?" in said, said
    assert "meant" not in qmeld("commit", "--nonsense", "x", code=2).stderr
    assert "--o is the beginning of more than one option" in qmeld("commit", "--o", "x", code=2).stderr
    assert "none was named" in qmeld("commit", code=2).stderr
    assert "1 was named" in qmeld("compare", "a", code=2).stderr


def usage__every_command_explains_itself_in_two_ways():
    for command in COMMANDS:
        text = qmeld("help", command).stdout
        assert text.startswith(f"qmeld {command} - ")
        same(qmeld(command, "--help").stdout, text)
        same(qmeld(command, "-h").stdout, text)
        assert max(map(len, text.splitlines())) <= 94, command


def usage__help_is_about_one_command():
    assert "one command is expected, 2 were named" in qmeld("help", "commit", "map", code=2).stderr


def usage__every_option_of_the_help_is_accepted():
    for command in COMMANDS:
        options = set(re.findall(r"^\s+(?:-\w, )?--([a-z0-9-]+)", qmeld("help", command).stdout, re.M))
        assert len(options) >= 3, options
        for option in options:
            # help behind the option: an option that is not known complains first
            done = qmeld(command, f"--{option}", "x", "--help", code=ANY)
            assert "unknown option" not in done.stderr and "beginning of" not in done.stderr, f"{command} --{option}"


def usage__wrong_options_exit_2_and_say_where_help_is():
    for command in COMMANDS:
        code = 1 if command == "check" else 2  # there 2 means corruption, as in qemu-img
        for wrong in (["--nonsense"], ["-Z"], ["--output"], ["--output=xml", "x"], ["--help=1"],
                      *([[]] if command != "status" else [])):
            done = qmeld(command, *wrong, code=code)
            assert done.stdout == "" and f"see qmeld help {command}" in done.stderr, wrong


def usage__two_images_are_refused():
    for command in ("commit", "resume", "recover", "info", "map"):
        assert "2 were named" in qmeld(command, "a", "b", code=2).stderr


def usage__contradictions_are_refused():
    qmeld("map", "--format=strip", "--output=json", "x", code=2)
    for wrong in (["--pivot", "--keep-overlay"], ["--active", "--delete"], ["--verbose"], ["--async"],
                  ["--bytes"], ["--bandwidth=4M"], ["--timeout=0"], ["--bandwidth=9e18"],
                  ["--bytes", "--bandwidth=9E"]):
        assert "see qmeld help blockcommit" in qmeld("blockcommit", "vm", "vda", *wrong, code=2).stderr
    assert "--image-format" in qmeld("map", "--format=qcow2", "x", code=2).stderr


def usage__without_the_live_module_only_its_commands_are_missed():
    alone = os.path.abspath("qmeld-alone")
    shutil.copy(QMELD, alone)

    def ask(*args, **env):
        done = subprocess.run([alone, *args], capture_output=True, text=True, timeout=60,
                              env={**os.environ, **env})
        return done.returncode, done.stderr

    for args in (["blockcommit", "vm", "vda", "--pivot"], ["info", "-c", "qemu:///system", "vm"]):
        code, said = ask(*args)
        assert code == 2 and "live mode is not installed: install" in said, said
    code, said = ask("blockcommit", "vm", "vda", QMELD_LIVE_MODULE="/dev/null")
    assert code == 2 and "live mode cannot be loaded" in said, said
    forge(CHAIN)
    assert ask("info", "top.qcow2") == (0, "")


def usage__bad_values_are_refused():
    for args in (["--threads=-1"], ["--threads=two"], ["--threads="], ["--bandwidth=fast"],
                 ["--bandwidth=-5"], ["--overlays=burn"], ["--progress=loud"], ["--deadline=soon"],
                 ["--deadline=1w"], ["--deadline=1hh"], ["--deadline=-1"], ["--deadline="],
                 ["--deadline=999999999999999999d"]):
        qmeld("commit", *args, "x", code=2)
    for args in (["-s", "-1"], ["-l", "1x"], ["-s", ""]):
        qmeld("map", *args, "x", code=2)
    qmeld("check", "--repair=some", "x", code=1)


def usage__what_is_no_image_is_told_what_it_is():
    for name, head in (("a.vhdx", b"vhdxfile"), ("a.vmdk", b"KDMV")):
        with open(name, "wb") as file:
            file.write(head.ljust(65536, b"\0"))
        for command in ("info", "commit", "map", "check"):
            done = qmeld(command, name, code=ANY)
            assert done.returncode in (1, 2) and f"{name}: it looks like a " in done.stderr, done.stderr
            assert f"-O qcow2 {name} NEW.qcow2`" in done.stderr, done.stderr
    os.makedirs("folder")
    for name in ("folder", "/dev/null"):
        assert "neither a regular file nor a block device" in qmeld("commit", name, code=2).stderr
    # which file failed comes first, that it may have been a machine's name second
    assert qmeld("info", "absent", code=1).stderr.startswith("qmeld: absent: cannot open: No such file")
    assert qmeld("flatten", "a.vmdk", "absent/x", code=2).stdout == ""


def usage__a_backing_file_that_is_gone_is_told_with_the_way_out():
    qmeld("create", "-q", "-f", "qcow2", "lower.qcow2", "1M")
    qmeld("create", "-q", "-f", "qcow2", "-b", "lower.qcow2", "-F", "qcow2", "upper.qcow2")
    os.rename("lower.qcow2", "moved.qcow2")
    for command in ("info", "map", "commit"):
        said = qmeld(command, "upper.qcow2", code=1).stderr
        assert "lower.qcow2: backing file of upper.qcow2: cannot open: No such file" in said, said
        assert "`qmeld rebase --unsafe -b NEW -F FORMAT upper.qcow2`" in said, said
    qmeld("rebase", "--unsafe", "-b", "moved.qcow2", "-F", "qcow2", "upper.qcow2")
    assert "moved.qcow2" in qmeld("info", "upper.qcow2").stdout
    said = qmeld("flatten", "upper.qcow2", "absent/x", code=1).stderr
    assert said.startswith("qmeld: absent/x: ") and "No such file or directory" in said, said


def usage__nothing_to_do_says_why():
    qmeld("create", "-q", "-f", "qcow2", "lower.qcow2", "1M")
    assert qmeld("commit", "lower.qcow2").stdout == "nothing to do: the image has no backing file that it could be merged into\n"
    assert "no backing file" in qmeld("plan", "lower.qcow2").stdout
    assert qmeld("fold", "--keep=1", "lower.qcow2").stdout == "nothing to do: there are no more increments than are to stay\n"


def usage__missing_file_fails_and_is_named():
    for command in ("commit", "status", "resume", "info", "map", "check"):
        done = qmeld(command, "absent.qcow2", code=1)
        assert done.stderr.startswith("qmeld: ") and "absent.qcow2: " in done.stderr, done.stderr
        assert done.stdout == ""


def process__closed_descriptors_do_not_become_the_image():
    """The image must not be opened as number 2: findings would be written into it.  (1 is closed
    as well because the library opens read-only first, then for writing.)"""
    make_leak()
    shutil.copy("t.qcow2", "u.qcow2")
    qmeld("check", "--repair=leaks", "t.qcow2")
    subprocess.run([QMELD, "check", "--repair=leaks", "u.qcow2"], stdin=subprocess.DEVNULL,
                   preexec_fn=lambda: (os.close(1), os.close(2)))
    assert contents("u.qcow2") == contents("t.qcow2")


def process__output_that_cannot_be_written_is_a_failure():
    forge(CHAIN)
    for args in (["map", "top.qcow2"], ["info", "top.qcow2"], ["help"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run([QMELD, *args], stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 1 and "standard output" in done.stderr, (args, done)


def process__lost_report_does_not_make_a_merge_a_failure():
    forge(CHAIN)
    with open("/dev/full", "w") as full:
        done = subprocess.run([QMELD, "commit", "top.qcow2"], stdout=full, stderr=subprocess.PIPE,
                              text=True)
    assert done.returncode == 0 and "standard output" in done.stderr, done
    assert contents("base.raw") == expected("top.qcow2")


def process__low_descriptor_limit_is_raised_for_deep_chains():
    depth = 80
    lines = [f"l{i}.qcow2 | {'.' * (i % 7)}{chr(65 + i % 26)}" for i in range(depth, 0, -1)]
    forge("all cluster=4k size=64k\n" + "\n".join(lines) + "\n")
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    done = qmeld("info", "--output=json", f"l{depth}.qcow2",
                 preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (32, hard)))
    same(len(json.loads(done.stdout)), depth)


def as_qmeld_img(*args, code=0):
    """The same program, called as qmeld-img."""
    if not os.path.islink("qmeld-img"):
        os.symlink(QMELD, "qmeld-img")
    done = subprocess.run(["./qmeld-img", *args], capture_output=True, text=True, timeout=120)
    assert done.returncode == code, f"qmeld-img {args}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done


def words__b_and_d_leave_the_image_as_it_is():
    for args, want in ((("-f", "qcow2", "-b", "base.raw", "top.qcow2"), ["merged-into", "invalid", "redundant"]),
                       (("-d", "top.qcow2"), ["untouched", "merged-into", "redundant"]),
                       (("-d", "-b", "base.raw", "-r", "1G", "-t", "unsafe", "top.qcow2"),
                        ["merged-into", "invalid", "redundant"])):
        forge(CHAIN)
        before = contents("top.qcow2")
        same(fates(*args), want)
        assert contents("top.qcow2") == before


def words__qmeld_img_merges_one_layer_and_empties_it():
    forge(CHAIN)
    done = json.loads(as_qmeld_img("commit", "--output=json", "top.qcow2").stdout)
    same([layer["fate"] for layer in done["layers"]], ["untouched", "merged-into", "emptied"])
    forge(CHAIN)
    done = json.loads(as_qmeld_img("commit", "-d", "--output=json", "top.qcow2").stdout)
    same([layer["fate"] for layer in done["layers"]], ["untouched", "merged-into", "redundant"])
    done = json.loads(as_qmeld_img("plan", "--output=json", "top.qcow2").stdout)
    same([layer["fate"] for layer in done["layers"]][2], "redundant")  # ours has no twin in qemu-img


def words__qmeld_img_prints_what_scripts_wait_for():
    forge(CHAIN)
    done = as_qmeld_img("commit", "top.qcow2")
    same((done.stdout, done.stderr), ("Image committed.\n", ""))
    same(as_qmeld_img("commit", "-q", "top.qcow2").stdout, "")
    same(as_qmeld_img("commit", "-b", "base.raw", "top.qcow2").stdout, "Image committed.\n")
    assert "base.raw" in as_qmeld_img("commit", "-v", "-d", "top.qcow2").stdout  # ours was asked for
    for args in (("rebase", "-b", "", "top.qcow2"), ("rebase", "-u", "-b", "base.raw", "-F", "raw", "top.qcow2"),
                 ("convert", "top.qcow2", "out"), ("convert", "-O", "qcow2", "-c", "top.qcow2", "out")):
        done = as_qmeld_img(*args)
        same((args, done.stdout, done.stderr), (args, "", ""))
    assert "would be rebased" in as_qmeld_img("rebase", "--dry-run", "-b", "", "top.qcow2").stdout
    assert "result" in json.loads(as_qmeld_img("convert", "--output=json", "top.qcow2", "out").stdout)
    for args in (("convert", "-p", "top.qcow2", "out"), ("compare", "-p", "out", "top.qcow2"),
                 ("rebase", "-p", "-b", "", "top.qcow2"), ("commit", "-p", "mid.qcow2")):
        done = as_qmeld_img(*args)
        assert re.match(r"    \(0\.00/100%\)\n(    \(\d+\.\d\d/100%\)\n)*    \(100\.00/100%\)\n\n?", done.stdout), done
        same(done.stderr, "")


def words__qmeld_img_info_is_qemu_img_info():
    if not HAVE_QEMU:
        raise Skip("there is no qemu-img")
    make = (("-f", "qcow2", "base.qcow2", "1000000"), ("-f", "qcow2", "-o", "compat=0.10", "old.qcow2", "10M"),
            ("-f", "raw", "flat.raw", "10k"),
            ("-f", "qcow2", "-o", "lazy_refcounts=on,cluster_size=4k", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2"),
            ("-f", "qcow2", "-o", "data_file=d.raw,data_file_raw=on", "data.qcow2", "10M"),
            ("-u", "-f", "qcow2", "-b", "lost.qcow2", "-F", "raw", "orphan.qcow2", "1G"))
    for args in make:
        qemu_img("create", "-q", *args)
    more = (("-f", "qcow2", "-o", "preallocation=metadata", "more.qcow2", "1M"),
            ("-f", "qcow2", "-o", "compat=1.1,preallocation=off,lazy_refcounts=on", "more.qcow2", "1M"),
            ("-f", "raw", "-o", "preallocation=full", "more.raw", "1M"))
    for args in make[:4] + more:
        theirs = qemu_img("create", *args)
        same(as_qmeld_img("create", *args).stdout, theirs)
    for args in (("--add", "top.qcow2", "b0"), ("--add", "--disable", "-g", "128k", "top.qcow2", "b1")):
        qemu_img("bitmap", *args)
    for name in ("base.qcow2", "old.qcow2", "flat.raw", "top.qcow2", "data.qcow2", "orphan.qcow2"):
        same(as_qmeld_img("info", "-U", name).stdout, qemu_img("info", name))
    for name in ("./top.qcow2", os.path.abspath("top.qcow2")):
        same(as_qmeld_img("info", name).stdout, qemu_img("info", name))
    same(as_qmeld_img("info", "--backing-chain", "top.qcow2").stdout, qemu_img("info", "--backing-chain", "top.qcow2"))
    ours, theirs = (json.loads(text) for text in (as_qmeld_img("info", "--output=json", "top.qcow2").stdout,
                                                  qemu_img("info", "--output=json", "top.qcow2")))
    same({key: ours[key] for key in theirs if key != "full-backing-filename"},
         {key: theirs[key] for key in theirs if key != "full-backing-filename"})
    same(len(json.loads(as_qmeld_img("info", "--backing-chain", "--output=json", "top.qcow2").stdout)), 2)
    qemu_img("snapshot", "-c", "monday", "top.qcow2")
    ours, theirs = as_qmeld_img("info", "top.qcow2").stdout, qemu_img("info", "top.qcow2")
    same(re.sub(r"\d+ [KM]iB", "", ours), re.sub(r"\d+ [KM]iB", "", theirs))
    as_qmeld_img("info", "nothing", code=1)


def words__qmeld_img_has_the_codes_of_qemu_img():
    forge(CHAIN)
    for args in (("commit", "--nonsense"), ("commit", "nothing.qcow2"), ("rebase", "-b", "x", "top.qcow2"),
                 ("convert", "top.qcow2"), ("create", "-f", "qcow2", "new"), ("info", "nothing"),
                 ("map", "nothing"), ("measure", "nothing"), ("check", "nothing")):
        as_qmeld_img(*args, code=1)
    as_qmeld_img("compare", "top.qcow2", "nothing", code=2)
    as_qmeld_img("compare", "-U", "-T", "none", "top.qcow2", "base.raw", code=1)
    as_qmeld_img("check", "-U", "-T", "none", "top.qcow2")
    as_qmeld_img("check", "-U", "-r", "all", "top.qcow2", code=1)
    as_qmeld_img("check", "-T", "fast", "top.qcow2", code=1)
    as_qmeld_img("map", "-U", "top.qcow2")
    as_qmeld_img("plan", "--nonsense", code=2)  # ours has no twin in qemu-img


def words__what_means_nothing_here_is_refused_in_a_sentence():
    forge(CHAIN)
    before = contents("base.raw"), contents("mid.qcow2"), contents("top.qcow2")
    for args, words in ((("commit", "-t", "fast", "top.qcow2"), "-t is none"),
                        (("commit", "-r", "slow", "top.qcow2"), "bandwidth"),
                        (("commit", "-d", "--overlays=delete", "top.qcow2"), "-d leaves the image"),
                        (("commit", "--image-opts", "top.qcow2"), "--image-opts"),
                        (("commit", "--object", "secret,id=x", "top.qcow2"), "--secret"),
                        (("compare", "--image-opts", "top.qcow2", "mid.qcow2"), "--image-opts"),
                        (("map", "--image-opts", "top.qcow2"), "--image-opts"),
                        (("info", "--object", "secret,id=x", "top.qcow2"), "--secret"),
                        (("compare", "-T", "fast", "top.qcow2", "mid.qcow2"), "-T is none"),
                        (("rebase", "-U", "-b", "", "top.qcow2"), "-U"),
                        (("rebase", "-T", "fast", "-b", "", "top.qcow2"), "-T is none"),
                        (("convert", "-B", "base.raw", "top.qcow2", "out"), "qmeld create -b"),
                        (("convert", "-n", "top.qcow2", "base.raw"), "block device"),
                        (("convert", "-S", "0", "-c", "-O", "qcow2", "top.qcow2", "out"), "-S 0"),
                        (("convert", "-o", "preallocation=full", "-c", "-O", "qcow2", "top.qcow2", "out"), "preallocation"),
                        (("convert", "-o", "preallocation=metadata", "top.qcow2", "out"), "no metadata"),
                        (("convert", "-r", "1M", "top.qcow2", "out"), "ionice"),
                        (("convert", "--target-is-zero", "top.qcow2", "out"), "goes with -n"),
                        (("convert", "--bitmaps", "top.qcow2", "out"), "bitmaps"),
                        (("convert", "-l", "snapshot.id=1,snapshot.name=x", "top.qcow2", "out"), "one of them"),
                        (("convert", "top.qcow2", "-"), "./-"),
                        (("convert", "top.qcow2", "mid.qcow2", "out"), "several images"),
                        (("convert", "top.qcow2"), "an image and a name")):
        assert words in qmeld(*args, code=2).stderr, args
    same((contents("base.raw"), contents("mid.qcow2"), contents("top.qcow2")), before)
    assert not os.path.exists("out")


def words__convert_replaces_what_is_there():
    forge(CHAIN)
    want = expected("top.qcow2")
    with open("out", "w") as f:
        f.write("what was there")
    qmeld("convert", "-f", "qcow2", "-p", "-q", "top.qcow2", "out")
    same(contents("out"), want)
    done = json.loads(qmeld("convert", "-O", "qcow2", "-c", "-o", "cluster_size=64k,compression_type=zstd",
                            "--output=json", "top.qcow2", "out").stdout)
    assert done["result"] == "done" and done["bytes-compressed"] > 0, done


def words__convert_s_0_writes_all():
    forge(CHAIN)
    want = expected("top.qcow2")
    for args in (["-S", "0"], ["-S", "4k", "-S", "0"], ["-o", "preallocation=full"]):
        qmeld("convert", "-q", *args, "top.qcow2", "out")
        same(contents("out"), want)
        assert os.stat("out").st_blocks * 512 >= len(want), args
    qmeld("convert", "-q", "-S", "0", "-S", "4k", "top.qcow2", "out")
    same(contents("out"), want)
    assert os.stat("out").st_blocks * 512 < len(want)
    qmeld("convert", "-q", "-O", "qcow2", "-S", "0", "top.qcow2", "out")
    assert os.stat("out").st_blocks * 512 > len(want)
    qmeld("compare", "top.qcow2", "out")


def words__q_overrides_p():
    forge(CHAIN)
    for args in (("commit", "-p", "-q", "top.qcow2"), ("rebase", "-p", "-q", "-b", "", "top.qcow2")):
        done = qmeld(*args)
        same((done.stdout, done.stderr), ("", ""))
