# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the tests of the command line share: chains, calls, answers."""
import json
import os
import shutil
import struct
import subprocess
import sys
import time

QMELD, FORGE = (os.path.abspath(p) for p in sys.argv[1:3])
ANY = None  # an exit code that a test does not care about
HAVE_QEMU = shutil.which("qemu-img") is not None

CHAIN = """\
all cluster=64k
top.qcow2 | ..D.0..d....
mid.qcow2 | .CC0...c..
base.raw  | AAAA....A...
"""


class Skip(Exception):
    pass


def qmeld(*args, code=0, stdin=None, **kw):
    """Runs qmeld; the exit code must be as told.  Returns the finished process."""
    kw.setdefault("env", {**os.environ, "COLUMNS": "80", "NO_COLOR": "1"})
    done = subprocess.run([QMELD, *args], capture_output=True, text=True, errors="surrogateescape",
                          timeout=120, stdin=stdin, **kw)
    assert code in (ANY, done.returncode), (
        f"qmeld {' '.join(args)}: exit {done.returncode}, not {code}\n{done.stdout}{done.stderr}")
    return done


def forge(recipe, folder="."):
    with open("recipe", "w") as f:
        f.write(recipe)
    subprocess.run([FORGE, "recipe", folder], check=True)


def expected(layer):
    subprocess.run([FORGE, "--expect", "recipe", layer, "expected"], check=True)
    return contents("expected")


def qemu_img(*args, code=0):
    if not HAVE_QEMU:
        raise Skip("qemu-img is not installed")
    for _ in range(9):
        done = subprocess.run(["qemu-img", *args], capture_output=True, text=True)
        if "Unable to get accurate CPU usage" not in done.stderr:  # its timing of LUKS, on a busy machine
            break
    assert done.returncode == code, f"qemu-img {' '.join(args)}: {done.returncode} {done.stderr}"
    return done.stdout


def contents(path):
    with open(path, "rb") as f:
        return f.read()


def poke(path, offset, data):
    with open(path, "r+b") as f:
        f.seek(offset)
        f.write(data)


def same(got, want):
    assert got == want, f"got:\n{got}\nwant:\n{want}"


def make_leak():
    """t.qcow2, with a data cluster that L2 no longer names."""
    forge("all cluster=64k\nt.qcow2 | AB.C\n")
    with open("t.qcow2", "rb") as f:
        head = f.read(104)
        f.seek(struct.unpack(">Q", head[40:48])[0])
        l2 = struct.unpack(">Q", f.read(8))[0] & 0x00fffffffffffe00
    poke("t.qcow2", l2, bytes(8))


UP = """\
all cluster=64k
top.qcow2 | ..D.0.......
mid.qcow2 | .CC0CCCCCCC.
base.qcow2 | AAAA.a..A..B
"""


def files_here():
    return {n: contents(n) for n in os.listdir(".")}


def view(name):
    """What a guest reads, by another program."""
    qemu_img("convert", "-O", "raw", name, "view.raw")
    data = contents("view.raw")
    os.remove("view.raw")
    return data


# Pieces that do not join, so that a merge can be stopped between any two.
BIG = """\
all cluster=2M
top.qcow2 | ....B.B.B.B.
mid.qcow2 | .....C.C.C.C
base.raw  | AAAAAAAA....
"""
BIG_FILES = ("top.qcow2", "mid.qcow2", "base.raw")
JOURNAL = ".base.raw.qmeld"


def interrupt(number, *args, folder=".", rate="4M"):
    """Begins to merge the chain of BIG in folder and sends it a signal in the middle: exit code,
    stdout, stderr."""
    process = subprocess.Popen([QMELD, *(args or ("commit", "top.qcow2")), f"--bandwidth={rate}",
                                "--progress=json", "--output=json"], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, cwd=folder)
    for line in process.stderr:
        if json.loads(line)["phase"] == "copy":
            break
    time.sleep(0.2)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def fates(*args):
    return [layer["fate"] for layer in json.loads(qmeld("commit", "--output=json", *args).stdout)["layers"]]


def plan(*args, **kw):
    return json.loads(qmeld("plan", "--output=json", *args, **kw).stdout)


def kill_protecting():
    """A merge of BIG, killed while it gives sib.qcow2 what that would read otherwise."""
    process = subprocess.Popen([QMELD, "commit", "--protect", "--bandwidth=2M", "--progress=none", "top.qcow2"])
    while not os.path.exists(JOURNAL):
        same(process.poll(), None)
        time.sleep(0.02)
    time.sleep(0.5)
    process.kill()
    process.wait()
