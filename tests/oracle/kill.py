#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A merge killed in front of each of its writes, truncations, holes and syncs.

After every kill: the active layer reads what it read before, base has leaks at worst, the child's
header is the old or the new one, and the same command again goes on by the journal and ends as an
undisturbed merge does: same bytes, files and bitmaps, no leaks, no journal.
Half of the kills tear the write first.  killat.c does the killing.
"""

import argparse
import os
import shutil
import signal
import sys

import oracle
from oracle import Fail, Qcow2


class Setup:
    """How to make the chain, and what merge of it is killed."""

    def __init__(self, make, args, base="b", base_fmt="qcow2", active="t", child=None):
        self.make, self.args, self.base, self.base_fmt = make, args, base, base_fmt
        self.active, self.child = active, child
        # test builds only; others do these small merges in one batch
        self.back = "--atomic" in args or "--undo" in args  # it can be taken back
        self.env = {"QMELD_TEST_BATCH": "32768"} if "--reclaim" in args else {}


def image(d, name, *options, size="", backing=None, fmt="qcow2"):
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", *options]
    if backing:
        argv += ["-b", backing, "-F", fmt]
    oracle.must(argv + [name] + ([size] if size else []), d)


def write(d, name, *commands):
    oracle.qemu_io(name, commands, "qcow2", d)


def growing(d):
    image(d, "b", "-o", "cluster_size=4k", size="4M")
    write(d, "b", "write -P 1 0 256k")
    image(d, "t", "-o", "cluster_size=4k", size="6M", backing="b")
    write(d, "t", "write -P 2 64k 300k", "write -z 1M 64k", "write -z 128k 16k",
          "write -P 3 5M 64k", "write -P 4 3001k 3k")


def again(d):
    """Much of the overlay is what the base has, and zeros as data."""
    image(d, "b", "-o", "cluster_size=4k", size="2M")
    write(d, "b", "write -P 1 0 256k", "write -c -P 5 512k 64k")
    image(d, "t", "-o", "cluster_size=4k", size="2M", backing="b")
    write(d, "t", "write -P 1 0 64k", "write -P 2 64k 32k", "write -P 0 128k 32k", "write -c -P 0 768k 16k",
          "write -P 5 500k 40k", "write -P 1 200k 10k", "write -P 0 1M 64k")


def elsewhere(d):
    """The base, and so the journal, lies in another folder than what is removed."""
    os.mkdir(os.path.join(d, "s"))
    image(d, "s/b", "-o", "cluster_size=4k", size="2M")
    write(d, "s/b", "write -P 1 0 256k")
    image(d, "m", "-o", "cluster_size=4k", size="2M", backing="s/b")
    write(d, "m", "write -P 2 64k 100k")
    image(d, "t", "-o", "cluster_size=4k", size="2M", backing="m")
    write(d, "t", "write -P 3 128k 100k", "write -z 1M 64k")


def raw_base(d):
    with open(os.path.join(d, "b"), "wb") as f:
        f.write(b"\x11" * 300000)
        f.truncate(1000001)
    image(d, "t", "-o", "cluster_size=4k", size="2M", backing="b", fmt="raw")
    write(d, "t", "write -P 2 64k 100k", "write -z 200k 64k", "write -P 3 1500k 8k")


def snapshots(d):
    image(d, "b", "-o", "cluster_size=4k", size="2M")
    write(d, "b", "write -P 1 0 512k")
    oracle.must(["qemu-img", "snapshot", "-c", "s", "b"], d)
    write(d, "b", "write -P 5 100k 20k")
    image(d, "t", "-o", "cluster_size=2k", size="2M", backing="b")
    write(d, "t", "write -P 2 64k 100k", "write -z 300k 64k", "write -P 3 1M 6k")


def extended(d):
    image(d, "b", "-o", "extended_l2=on,cluster_size=16k", size="2M")
    write(d, "b", "write -P 1 0 300k")
    image(d, "t", "-o", "cluster_size=512", size="2M", backing="b")
    write(d, "t", "write -P 2 64k 5k", "write -z 100k 3k", "write -P 3 1M 512", "write -z 1030k 1k")


def compressed(d):
    image(d, "b", "-o", "cluster_size=16k", size="2M")
    write(d, "b", "write -c -P 1 0 256k")
    image(d, "t", "-o", "cluster_size=16k", size="2M", backing="b")
    write(d, "t", "write -c -P 2 16k 64k", "write -P 3 130k 10k", "write -z 200k 20k")


def tables(d):
    """L1, refcount blocks and the refcount table grow."""
    image(d, "b", "-o", "cluster_size=512,refcount_bits=64", size="64k")
    write(d, "b", "write -P 1 0 32k")
    image(d, "t", "-o", "cluster_size=64k", size="5M", backing="b")
    write(d, "t", "write -P 2 16k 3M", "write -z 8k 1k")


def intermediate(d):
    image(d, "b", "-o", "cluster_size=4k", size="1M")
    write(d, "b", "write -P 1 0 128k")
    image(d, "m", "-o", "cluster_size=4k", size="2M", backing="b")
    write(d, "m", "write -P 2 64k 64k", "write -z 16k 8k", "write -P 3 1500k 64k")
    image(d, "c", size="2M", backing="m")
    write(d, "c", "write -P 4 0 4k")
    image(d, "t", size="2M", backing="c")
    write(d, "t", "write -P 5 256k 4k")


def deep(d):
    growing(d)
    image(d, "u", size="3M", backing="t")
    write(d, "u", "write -P 6 96k 100k", "write -P 7 2900k 100k")


def version2(d):
    image(d, "z", size="1M")
    write(d, "z", "write -P 9 0 1M")
    image(d, "b", "-o", "compat=0.10,cluster_size=4k", size="1M", backing="z")
    write(d, "b", "write -P 1 32k 64k")
    image(d, "t", size="1M", backing="b")
    write(d, "t", "write -z 0 64k", "write -P 2 128k 10k", "write -z 500k 8k")


def bitmaps(d):
    image(d, "b", "-o", "cluster_size=4k", size="1M")
    for name in ("one", "two"):
        oracle.must(["qemu-img", "bitmap", "--add", "-g", "4k", "b", name], d)
    write(d, "b", "write -P 1 0 128k")
    image(d, "t", "-o", "cluster_size=4k", size="3M", backing="b")
    write(d, "t", "write -P 2 64k 64k", "write -P 3 2M 16k")


def bitmaps_same_size(d):
    bitmaps(d)
    image(d, "t", "-o", "cluster_size=4k", size="1M", backing="b")
    write(d, "t", "write -P 2 64k 64k", "write -z 0 8k")


def dirty(d):
    image(d, "b", "-o", "lazy_refcounts=on,cluster_size=4k", size="1M")
    oracle.run(["qemu-io", "-c", "write -P 1 0 128k", "-c", "flush", "-c", "sigraise 9", "b"], d)
    image(d, "t", "-o", "cluster_size=4k", size="1M", backing="b")
    write(d, "t", "write -P 2 64k 128k")


def setups():
    """{mode: Setup}"""
    return {
        "growing": Setup(growing, ["t"]),
        "growing-empty": Setup(growing, ["--shallow", "--overlays=empty", "t"]),
        "growing-delete": Setup(growing, ["--overlays=delete", "t"]),
        "growing-quarantine": Setup(growing, ["--overlays=quarantine", "t"]),
        "elsewhere-delete": Setup(elsewhere, ["--overlays=delete", "t"], base="s/b"),
        "elsewhere-quarantine": Setup(elsewhere, ["--overlays=quarantine", "t"], base="s/b"),
        "raw": Setup(raw_base, ["t"], base_fmt="raw"),
        "raw-empty": Setup(raw_base, ["--overlays=empty", "t"], base_fmt="raw"),
        "snapshots": Setup(snapshots, ["t"]),
        "extended": Setup(extended, ["t"]),
        "compressed": Setup(compressed, ["t"]),
        "tables": Setup(tables, ["t"]),
        "intermediate": Setup(intermediate, ["--top", "m", "t"], child="c"),
        "intermediate-delete": Setup(intermediate, ["--top", "m", "--overlays=delete", "t"],
                                     child="c"),
        "intermediate-quarantine": Setup(intermediate,
                                         ["--top", "m", "--overlays=quarantine", "t"], child="c"),
        "deep": Setup(deep, ["u"], active="u"),
        "deep-delete": Setup(deep, ["--overlays=delete", "u"], active="u"),
        "version2": Setup(version2, ["t"]),
        "up": Setup(growing, ["--direction=up", "--overlays=delete", "t"]),
        "up-deep": Setup(intermediate, ["--direction=up", "--overlays=delete", "t"]),
        "up-intermediate": Setup(intermediate, ["--direction=up", "--top", "m", "--overlays=delete", "t"],
                                 child="c"),
        "bitmaps": Setup(bitmaps, ["t"]),
        "bitmaps-same-size": Setup(bitmaps_same_size, ["t"]),
        "dirty": Setup(dirty, ["t"]),
        "atomic": Setup(growing, ["--atomic", "t"]),
        "atomic-tables": Setup(tables, ["--atomic", "t"]),
        "atomic-snapshots-empty": Setup(snapshots, ["--atomic", "--overlays=empty", "t"]),
        "atomic-bitmaps": Setup(bitmaps, ["--atomic", "t"]),
        "atomic-intermediate": Setup(intermediate, ["--atomic", "--top", "m", "t"], child="c"),
        "undo-raw": Setup(raw_base, ["--undo", "t"], base_fmt="raw"),
        "undo-raw-delete": Setup(raw_base, ["--undo", "--overlays=delete", "t"], base_fmt="raw"),
        "sifted": Setup(again, ["--skip-equal", "--detect-zeroes", "t"]),
        "sifted-raw": Setup(raw_base, ["--skip-equal", "t"], base_fmt="raw"),
        "sifted-bitmaps": Setup(bitmaps, ["--skip-equal", "t"]),
        "sifted-reclaim": Setup(again, ["--skip-equal", "--detect-zeroes", "--reclaim", "t"]),
        "reclaim-growing": Setup(growing, ["--reclaim", "t"]),
        "reclaim-raw": Setup(raw_base, ["--reclaim", "--overlays=delete", "t"], base_fmt="raw"),
        "reclaim-compressed": Setup(compressed, ["--reclaim", "t"]),
        "reclaim-intermediate": Setup(intermediate, ["--reclaim", "--top", "m", "t"], child="c"),
        "reclaim-deep": Setup(deep, ["--reclaim", "u"], active="u"),
        "reclaim-delete": Setup(deep, ["--reclaim", "--overlays=delete", "u"], active="u"),
        "reclaim-bitmaps": Setup(bitmaps, ["--reclaim", "t"]),
    }


def files(d):
    """All names below d, but for a hint to a journal elsewhere that is gone: a crash right at the end leaves one."""
    found = [os.path.relpath(os.path.join(at, name), d) for at, _, names in os.walk(d) for name in names]
    return sorted(f for f in found if not (f.endswith(".qmeld-journal") and leads_nowhere(os.path.join(d, f))))


def leads_nowhere(hint):
    with open(hint, encoding="utf-8") as f:
        journal = (f.read().splitlines() + ["", ""])[1]
    return not os.path.exists(journal) and \
        os.path.realpath(os.path.dirname(journal)) != os.path.realpath(os.path.dirname(hint))


def fresh(template, d):
    shutil.rmtree(d, ignore_errors=True)
    shutil.copytree(template, d, symlinks=True)


def points(total, most):
    """Which writes to die at: all of them, or the ends and an even choice of the middle."""
    if total <= most:
        return list(range(1, total + 1))
    edge = most // 3
    middle = range(edge, total - edge, max(1, (total - 2 * edge) // (most - 2 * edge)))
    return sorted(set(range(1, edge + 1)) | set(middle) | set(range(total - edge + 1, total + 1)))


class Mode:
    def __init__(self, setup, qmeld, work, shim):
        self.setup, self.work = setup, work
        folder, name = os.path.split(setup.base)
        self.journal = os.path.join(work, "try", folder, f".{name}.qmeld")
        self.template, self.dir = os.path.join(work, "template"), os.path.join(work, "try")
        self.argv, self.shim = [qmeld, "commit", *setup.args], shim
        os.mkdir(self.template)
        setup.make(self.template)
        self.want = oracle.view(setup.active, "qcow2", self.template)
        self.old_child = Qcow2(os.path.join(self.template, setup.child)).backing() \
            if setup.child else None
        self.reference()

    def run(self, **env):
        extra = {"LD_PRELOAD": self.shim, **{k: str(v) for k, v in env.items()},
                 "ASAN_OPTIONS": "verify_asan_link_order=0", **self.setup.env}
        return oracle.run(self.argv, self.dir, env=extra)

    def reference(self):
        """The merge undisturbed: how many points there are, and what base must read in the end."""
        fresh(self.template, self.dir)
        counter = os.path.join(self.work, "count")
        r = self.run(KILL_COUNT=counter)
        if r.rc != 0:
            raise Fail(f"undisturbed: rc {r.rc}: {r.err}")
        with open(counter, encoding="utf-8") as f:
            self.total = int(f.read())
        if self.total < 3:
            raise oracle.Broken(f"only {self.total} changes seen: the helper does not see writes")
        self.final = oracle.view(self.setup.base, self.setup.base_fmt, self.dir)
        self.look("undisturbed", clean=True)
        self.new_child = Qcow2(os.path.join(self.dir, self.setup.child)).backing() \
            if self.setup.child else None
        self.kept = files(self.dir)
        self.flags = self.bitmap_flags() if self.setup.base_fmt == "qcow2" else {}

    def look(self, when, clean=False):
        """What must hold at every instant."""
        s = self.setup
        if os.path.exists(os.path.join(self.dir, s.active)):
            diff = oracle.first_difference(self.want, oracle.view(s.active, "qcow2", self.dir))
            if diff:
                raise Fail(f"{when}: the active layer reads otherwise: {diff}")
        else:
            diff = oracle.first_difference(self.final,
                                           oracle.view(s.base, s.base_fmt, self.dir))
            if diff:
                raise Fail(f"{when}: the active layer is gone and base reads wrong: {diff}")
        for name in [s.base] * (s.base_fmt == "qcow2") + [s.child] * bool(s.child):
            rc, found, text = oracle.check(name, cwd=self.dir)
            if rc not in ((0,) if clean else (0, 3)) and not self.still_dirty(name):
                raise Fail(f"{when}: {name}: qemu-img check says {rc}: {found} {text[:600]}")
        if s.child and not clean:
            now = Qcow2(os.path.join(self.dir, s.child)).backing()
            if now not in (self.old_child, self.new_child):
                raise Fail(f"{when}: the child's backing file is {now}")

    def still_dirty(self, name):
        """A dirty image has stale refcounts and says so; whoever writes it rebuilds them first."""
        return bool(Qcow2(os.path.join(self.dir, name)).incompat & 1)

    def finish(self, when):
        """The same command again."""
        s = self.setup
        journal = os.path.exists(self.journal)
        if not os.path.exists(os.path.join(self.dir, s.active)) and not journal:
            self.settled(when)
            return
        done = s.child and Qcow2(os.path.join(self.dir, s.child)).backing() == self.new_child
        if done and not journal:
            self.settled(when)  # the chain no longer has the layers that the command names
            return
        if not os.path.exists(os.path.join(self.dir, s.active)):
            told = oracle.run([self.argv[0], "status", s.active], self.dir)
            if os.path.basename(self.journal) not in told.out:
                raise Fail(f"{when}: status of the removed layer tells of no journal: {told.out}{told.err}")
        r = oracle.run(self.argv, self.dir, env=s.env)
        if r.rc != 0:
            raise Fail(f"{when}: the same command again: rc {r.rc}: {r.err}")
        self.look(f"{when}, finished", clean=True)
        self.settled(f"{when}, finished")

    def settled(self, when):
        """Everything is as the undisturbed merge left it."""
        s = self.setup
        diff = oracle.first_difference(self.final, oracle.view(s.base, s.base_fmt, self.dir))
        if diff:
            raise Fail(f"{when}: base reads wrong: {diff}")
        if files(self.dir) != self.kept:
            raise Fail(f"{when}: the files are {files(self.dir)}, not {self.kept}")
        if s.child and Qcow2(os.path.join(self.dir, s.child)).backing() != self.new_child:
            raise Fail(f"{when}: the child was not repointed")
        if s.base_fmt == "qcow2" and self.bitmap_flags() != self.flags:
            raise Fail(f"{when}: the bitmaps' flags are {self.bitmap_flags()}")

    def bitmap_flags(self):
        found = Qcow2(os.path.join(self.dir, self.setup.base)).bitmaps()
        return {name: bitmap[0] for name, bitmap in found.items()}

    def kill_at(self, n, tear):
        when = f"killed at change {n} of {self.total}" + (", torn" if tear else "")
        fresh(self.template, self.dir)
        r = self.run(KILL_AT=n, **({"KILL_TEAR": 1} if tear else {}))
        if r.rc == 0:
            return False
        if r.rc != -signal.SIGKILL:
            raise Fail(f"{when}: rc {r.rc}: {r.err}")
        self.look(when)
        if n % 3 == 0 and os.path.exists(self.journal):  # and who goes on dies, too
            r = self.run(KILL_AT=1 + n % 7)
            when += f", and again at change {1 + n % 7}"
            if r.rc not in (0, -signal.SIGKILL):
                raise Fail(f"{when}: rc {r.rc}: {r.err}")
            self.look(when)
        self.meet_newcomer(when)
        if n % 4 == 0 and self.guest_wrote(when):
            return True
        if self.setup.back and n % 2 and os.path.exists(self.journal):
            self.take_back(when)
        self.finish(when)
        return True

    def meet_newcomer(self, when):
        """Where the active layer is removed already, somebody gives its name to a new image, which may get its inode, too."""
        path = os.path.join(self.dir, self.setup.active)
        if os.path.exists(path) or not os.path.exists(self.journal):
            return
        image(self.dir, self.setup.active, size="1M")
        before = oracle.digest(path)
        r = oracle.run([self.argv[0], "resume", self.journal], self.dir)
        if not os.path.exists(path) or oracle.digest(path) != before:
            raise Fail(f"{when}: a new image of the removed layer's name is not what it was: rc {r.rc}: {r.err}")
        os.remove(path)

    def guest_wrote(self, when):
        """The active layer reads right, so its machine is started, and writes.  Not a byte of that may be lost, whether the merge
        goes on then or is refused; nor on the way out that a refusal names.  False: nothing is unfinished."""
        s, path = self.setup, os.path.join(self.dir, self.setup.active)
        if not os.path.exists(path) or not os.path.exists(self.journal):
            return False
        half = Qcow2(path).size // 1024 * 512
        oracle.qemu_io(s.active, ["write -P 201 0 4k", f"write -P 202 {half} 64k", "flush"], cwd=self.dir)
        new = oracle.view(s.active, "qcow2", self.dir)
        when += ", then the guest wrote"
        for more in ([], ["--force"]):  # layers between are images beside the chain, once nothing is unfinished
            r = oracle.run([*self.argv, *more], self.dir, env=s.env)
            name, fmt = (s.active, "qcow2") if os.path.exists(path) else (s.base, s.base_fmt)
            diff = oracle.first_difference(new, oracle.view(name, fmt, self.dir)[:len(new)])
            if diff:
                raise Fail(f"{when}: rc {r.rc}, and {name} reads otherwise: {diff} {r.err}")
            if r.rc == 0:
                return True
            if r.rc != 2:
                raise Fail(f"{when}: rc {r.rc}, wanted 0 or 2: {r.err}")
            if "remove the journal" not in r.err:
                return True  # it says something else that is to be done first
            os.unlink(self.journal)
        raise Fail(f"{when}: refused without a journal: {r.err}")

    def take_back(self, when):
        """Base, child and files are what they were, unless the way back was given up already."""
        s = self.setup
        r = oracle.run([self.argv[0], "revert", self.journal], self.dir)
        if r.rc == 2 and ("given up already" in r.err or "no unfinished merge" in r.err):
            return
        if r.rc != 0:
            raise Fail(f"{when}: revert: rc {r.rc}: {r.err}")
        paths = [os.path.join(d, s.base) for d in (self.dir, self.template)]
        if oracle.digest(paths[0]) != oracle.digest(paths[1]):
            raise Fail(f"{when}: after revert the base is not what it was")
        if s.child and Qcow2(os.path.join(self.dir, s.child)).backing() != self.old_child:
            raise Fail(f"{when}: after revert the child stands on something else")
        if files(self.dir) != files(self.template):
            raise Fail(f"{when}: after revert the files are {files(self.dir)}")
        self.look(f"{when}, taken back", clean=True)


def run_mode(name, setup, qmeld, folder, tools, most=80):
    """"" if all is well, else what is wrong."""
    work = os.path.join(folder, "kill-" + name)
    os.mkdir(work)
    shim = os.path.join(tools, "killat.so")
    if not os.path.exists(shim):
        shim = oracle.build_shim("killat", tools)
    try:
        mode = Mode(setup, qmeld, work, shim)
        kills = 0
        for i, n in enumerate(points(mode.total, most)):
            kills += mode.kill_at(n, tear=i % 2 == 1)
        if kills * 2 < min(most, mode.total):
            return f"{name}: only {kills} kills of {mode.total}: the test proves little"
        print(f"  {name}: {kills} kills, {mode.total} changes", flush=True)
        return ""
    except Fail as e:
        return f"{name}: {e}"


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("modes", nargs="*")
    p.add_argument("--most", type=int, default=60, help="kills a mode")
    p.add_argument("--keep", action="store_true")
    p.add_argument("--dir")
    opts = p.parse_args()
    oracle.need("qemu-img", "qemu-io")
    qmeld = oracle.qmeld_program("release", "plain")  # sanitizers want to be preloaded first
    folder = oracle.scratch(opts.dir)
    bad = 0
    modes = setups()
    for name in opts.modes or modes:
        text = run_mode(name, modes[name], qmeld, folder, folder, opts.most)
        if text:
            print(f"FAIL {text}", flush=True)
            bad += 1
    if bad and opts.keep:
        print(f"kept in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{len(opts.modes or modes)} modes, {bad} bad")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
