#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Plans of random merges against the merges themselves.

    plan.py             lengths of all files to the byte, allocation to the block, the sums of the
                        report, refusals word for word
    plan.py --tight     the peak: on a file system that has just as much room the merge succeeds, and
                        with a block less than it needs it is refused, nothing touched (needs root)

Options as chains.py has them: chains and merges are made in the same way.
"""

import errno
import fcntl
import functools
import json
import os
import shutil
import struct
import sys

import chain_check
import chains
import oracle
from oracle import Fail

FIEMAP, EXTENTS = 0xC020660B, 256
SUMS = ["bytes-copied", "bytes-filled", "bytes-zeroed", "bytes-shared", "bytes-zero-found", "bytes-skipped", "base-old-size", "base-new-size"]


def extents(fd):
    """(from, to) of what is allocated; preallocated blocks are there, too."""
    at = 0
    while True:
        buf = bytearray(32 + EXTENTS * 56)
        struct.pack_into("=QQLLLL", buf, 0, at, 2**63 - 1 - at, 0, 0, EXTENTS, 0)
        fcntl.ioctl(fd, FIEMAP, buf)
        n = struct.unpack_from("=QQLLLL", buf)[3]
        for i in range(n):
            start, _, length, _, _, flags = struct.unpack_from("=QQQQQL", buf, 32 + i * 56)
            yield start, start + length
            at = start + length
            if flags & 1:
                return
        if n < EXTENTS:
            return


def data(fd):
    """The same where there is no FIEMAP: preallocated blocks are holes then."""
    at, size = 0, os.fstat(fd).st_size
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as e:
            if e.errno == errno.ENXIO:
                return
            raise
        at = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, at


def allocated(path):
    """Bytes of blocks that hold the file, without what the file system needs to find them."""
    fd = os.open(path, os.O_RDONLY)
    try:
        size = os.fstatvfs(fd).f_bsize
        try:
            found = list(extents(fd))
        except OSError as e:
            if e.errno not in (errno.EOPNOTSUPP, errno.ENOTTY):
                raise
            found = data(fd)
        return sum((to + size - 1) // size * size - start // size * size for start, to in found)
    finally:
        os.close(fd)


@functools.cache
def is_predictable(folder):
    """XFS and btrfs allocate more than is written, and when they like (docs/decisions/0013-dry-runs.md)."""
    return oracle.must(["stat", "-f", "-c", "%T", folder]).out.strip() not in ("xfs", "btrfs")


def space(chain):
    return {p: (os.path.getsize(p), allocated(p)) for p in chain.paths()}


def as_json(r, what):
    try:
        return json.loads(r.out)
    except ValueError:
        raise Fail(f"{what}: rc {r.rc}, no JSON: {r.err}{r.out}") from None


class Planned:
    """A merge, its plan, and the files as they were."""

    def __init__(self, rng, chain, qmeld, story):
        self.chain, self.qmeld = chain, qmeld
        self.m = chain_check.pick_merge(rng, chain)
        self.m.share = None  # what is pretended takes no space, and the copy that it really is does
        index = next((x.index for x in chain.layers if x.no_format), None)
        self.extra = ["--output=json"]
        if index is not None:
            self.extra += ["--backing-format", chain.layers[index - 1].fmt]
        self.interrupted = rng.random() < 0.25
        if self.interrupted:
            self.interrupt(story)
        self.m.digest = oracle.digests(chain.paths())
        self.before = space(chain)
        argv = chain_check.command(self.m, qmeld, self.extra)
        story.append(" ".join(argv[1:]))
        argv[1] = "plan"
        self.files = sorted(os.listdir(chain.folder))
        self.argv = argv
        self.ask()

    def interrupt(self, story):
        """The rest of a merge has a plan, too."""
        argv = chain_check.command(self.m, self.qmeld, [*self.extra, "--deadline=0"])
        r = oracle.run(argv, self.chain.folder, env=chain_check.environment(self.m))
        story.append(f"interrupted: rc {r.rc}")
        self.chain.tags.add(f"interrupted-{r.rc}")

    def ask(self):
        self.planned = oracle.run(self.argv, self.chain.folder, env=chain_check.environment(self.m))
        self.untouched("planned")
        self.plan = as_json(self.planned, "plan")

    def untouched(self, why):
        chain_check.unchanged(self.m, why)
        if sorted(os.listdir(self.chain.folder)) != self.files:
            raise Fail(f"{why}, but there are other files now: {os.listdir(self.chain.folder)}")

    def commit(self):
        return oracle.run(chain_check.command(self.m, self.qmeld, self.extra), self.chain.folder,
                          env=chain_check.environment(self.m))


def compare_refusal(p, done, report):
    """A rehearsal opens the layers by their absolute paths, and they are the same files."""
    def bare(text):
        return text.replace(p.chain.folder + os.sep, "")

    if "error" not in p.plan or (bare(json.dumps(p.plan["error"]))
                                 != bare(json.dumps(report["error"]))):
        raise Fail(f"commit: {report['error']}, planned: {p.plan}")
    def complaint(text):  # who would be broken is told in front of it
        return next((line for line in bare(text).split("\n") if line.startswith("qmeld: ")), "")

    if complaint(p.planned.err) != complaint(done.err):
        raise Fail(f"commit says {done.err!r}, plan says {p.planned.err!r}")


def compare_files(p):
    """What the plan says of each layer, against what became of it."""
    for i, path in enumerate(p.chain.paths()):
        said = p.plan["layers"][i]
        old, new = p.before[path], (0, 0)
        if "moved-to" in said and os.path.exists(path):
            raise Fail(f"{path} was to be renamed")
        path = said.get("moved-to", path)
        if os.path.exists(path) and said["fate"] != "replaced":  # its name leads to another layer
            new = os.path.getsize(path), allocated(path)
        if (said["old-length"], said["new-length"]) != (old[0], new[0]):
            raise Fail(f"layer {i + 1} is {new[0]} bytes long, planned: {said}, was: {old}")
        change = said["new-allocated"] - said["old-allocated"]
        if new[0] and change != new[1] - old[1] and is_predictable(p.chain.folder):
            raise Fail(f"layer {i + 1} has {new[1] - old[1]} bytes more, planned: {change} "
                       f"(was: {old}, is: {new})")


def plan_and_check(rng, chain, qmeld, story):
    if len(chain.layers) == 1:
        return chain_check.one_layer(chain, qmeld)
    p = Planned(rng, chain, qmeld, story)
    m = p.m
    measured = oracle.run([qmeld, "measure", "--output=json", *p.extra[1:], "--onto",
                           f"[{m.base + 1}]", "--top", f"[{m.top + 1}]", chain.layers[-1].path],
                          chain.folder, env=chain_check.environment(m))
    done = p.commit()
    report = as_json(done, "commit")
    story.append(f"rc {done.rc}: {done.err.strip()}")
    if done.rc != p.planned.rc:
        raise Fail(f"commit: rc {done.rc}: {done.err}; planned: rc {p.planned.rc}: {p.planned.err}")
    if done.rc == 2:
        compare_refusal(p, done, report)
        p.untouched("refused")
        return (chain_check.known_reasons(m) or ["as planned"])[0]
    if done.rc != 0:
        raise Fail(f"rc {done.rc}: {done.err}")
    wrong = [k for k in SUMS if report[k] != p.plan[k]]
    if wrong:
        raise Fail("; ".join(f"{k}: {report[k]}, planned: {p.plan[k]}" for k in wrong))
    compare_files(p)
    chain.tags.update(k for k in ("bytes-skipped", "bytes-zero-found") if report[k])
    if report["direction"] == "up":
        chain.tags.add("up")
        return "merged"
    if p.interrupted or {"--reclaim", "--atomic", "--undo", "--skip-equal", "--detect-zeroes",
                         "--decompress"} & set(m.merge_args):
        return "merged"  # that is not the merge that was measured
    sizes = as_json(measured, "measure")
    length = os.path.getsize(chain.path(m.base))
    if sizes["required"] != length or sizes["fully-allocated"] < length:
        raise Fail(f"the base is {length} bytes long, measured: {sizes}")
    return "merged"


# ---- tight ----

def set_room(folder, bytes_free):
    st = os.statvfs(folder)
    used = (st.f_blocks - st.f_bfree) * st.f_bsize
    mount = folder
    while not os.path.ismount(mount):
        mount = os.path.dirname(mount)
    size = "50%" if bytes_free is None else str(used + bytes_free)
    oracle.must(["mount", "-o", f"remount,size={size}", mount])


def unseen(chain):
    """tmpfs does not tell of preallocated pages.  Nobody is refused for what may be there."""
    return any(os.stat(p).st_blocks * 512 != allocated(p) for p in chain.paths())


def tight_with_reclaim(rng, p, disk, story):
    """Its batches are as large as there is room: so the plan is asked for where that is known."""
    room, hidden = rng.randrange(disk["peak"] // 4096 + 2) * 4096, unseen(p.chain)
    set_room(p.chain.folder, room)
    p.ask()
    done = p.commit()
    story.append(f"room {room}: planned rc {p.planned.rc}, rc {done.rc}: {p.planned.err}")
    if done.rc != p.planned.rc and not (p.planned.rc == 0 and hidden):
        raise Fail(f"room {room}: planned {p.planned.rc}: {p.planned.err}; rc {done.rc}: {done.err}")
    if done.rc == 2:
        p.untouched("refused for lack of room")
    elif done.rc == 0:
        compare_files(p)
    return "merged"


def tight_and_check(rng, chain, qmeld, story):
    """The file system is tmpfs, and nobody else is in it: what it has can be said to the block."""
    if len(chain.layers) == 1:
        return chain_check.one_layer(chain, qmeld)
    p = Planned(rng, chain, qmeld, story)
    if p.planned.rc != 0:
        return (chain_check.known_reasons(p.m) or ["as planned"])[0]
    disk = next(s for s in p.plan["space"] if s["what"] == "the file system")
    story.append(f"need {disk['need']}, peak {disk['peak']}, change {disk['change']}")
    if disk["peak"] != p.plan["peak"] or disk["need"] > disk["peak"]:
        raise Fail(f"peaks that are none: {p.plan['peak']}, {disk}")
    try:
        if "--reclaim" in p.m.merge_args:
            return tight_with_reclaim(rng, p, disk, story)
        if disk["need"] >= 4096 and not unseen(chain):
            set_room(chain.folder, disk["need"] - 4096)
            done = p.commit()
            if done.rc != 2 or as_json(done, "commit")["error"]["code"] != "nospace":
                raise Fail(f"a block too little for {disk}: rc {done.rc}: {done.err}")
            p.untouched("refused for lack of room")
        set_room(chain.folder, disk["peak"])
        done = p.commit()
        if done.rc != 0:
            raise Fail(f"room for the peak {disk}, but rc {done.rc}: {done.err}")
    finally:
        set_room(chain.folder, None)
    st = os.statvfs(chain.folder)
    story.append(f"free then: {st.f_bfree * st.f_bsize}")
    compare_files(p)
    return "merged"


def tight():
    if os.geteuid() != 0 or not shutil.which("unshare"):
        oracle.die_skip("needs root and unshare for a small file system")
    if "QMELD_TIGHT" not in os.environ:
        os.environ["QMELD_TIGHT"] = "1"
        os.execvp("unshare", ["unshare", "-m", sys.executable, *sys.argv])
    folder = oracle.scratch()
    r = oracle.run(["mount", "-t", "tmpfs", "none", folder])
    if r.rc != 0:
        oracle.die_skip(f"no tmpfs: {r.err}")
    sys.argv.remove("--tight")
    sys.argv += ["--dir", folder, "--jobs", "1"]
    chains.main(tight_and_check)


if __name__ == "__main__":
    if "--tight" in sys.argv:
        tight()
    chains.main(plan_and_check)
