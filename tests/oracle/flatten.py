#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Views of random chains, flattened, against what qemu-img reads.

    flatten.py          a random layer or internal snapshot of a random chain, to raw, to qcow2 of every
                        kind, to standard output: the same bytes, a clean image, nothing left behind, and the
                        chain as it was, times of access included
    flatten.py --kill   the same, killed in front of a random change, up to three times: no name
                        until it is whole, and the same command goes on

Options as chains.py has them.
"""

import functools
import json
import os
import sys
import tempfile

import chains
import oracle
from oracle import Fail

KINDS = ["raw", "qcow2", "stdout"]


def pick_options(rng):
    """-> arguments for a qcow2 image, of any kind."""
    if rng.random() < 0.25:
        return ["--compat", "0.10", "--cluster-size", rng.choice(["512", "4k", "64k"])] + rng.choice([[], ["-c"]])
    cluster = rng.choice(["512", "1k", "4k", "16k", "64k", "256k", "2M"])
    args = ["--cluster-size", cluster, "--refcount-bits", str(rng.choice([1, 2, 4, 8, 16, 32, 64]))]
    if cluster in ("16k", "64k", "256k", "2M") and rng.random() < 0.4:
        args += ["--extended-l2", "on"]
    if rng.random() < 0.5:
        args += ["--compress", rng.choice(["zstd", "zlib", "zstd:1", "zlib:9"])]
    elif rng.random() < 0.3:
        args += ["--compression-type", "zstd"]
    return args


class Case:
    def __init__(self, rng, chain, qmeld):
        self.chain, self.qmeld = chain, qmeld
        self.top = chain.layers[rng.randrange(len(chain.layers))] if rng.random() < 0.4 else chain.layers[-1]
        self.kind = rng.choice(KINDS)
        self.snapshot = rng.choice(self.top.snapshots) if self.top.snapshots and rng.random() < 0.5 else None
        self.args = ["-f", self.top.fmt]
        if self.snapshot:
            self.args += ["--snapshot", self.snapshot]
        if self.kind == "qcow2":
            self.args += ["-O", "qcow2", *pick_options(rng)]
        if rng.random() < 0.2:
            self.args.append("--no-detect-zeroes")
        if rng.random() < 0.5:
            self.args += ["--threads", str(rng.choice([1, 2, 5]))]
        self.env = {"QMELD_TEST_BATCH": str(rng.choice([4096, 1 << 16, 1 << 20, 512 << 20])),
                    "QMELD_TEST_NO_SYNC": "1"}

    def command(self, out, *extra):
        return [self.qmeld, "flatten", *self.args, *extra, self.top.path, out]

    def want(self):
        """What the oracle reads; of a snapshot as long as its disk was."""
        bytes_ = oracle.view(self.top.path, self.top.fmt, self.chain.folder, self.snapshot)
        return bytes_ if self.top.fmt == "raw" or not self.snapshot else bytes_[:self.snapshot_size(len(bytes_))]

    def snapshot_size(self, default):
        info = oracle.must(["qemu-img", "info", "--output=json", "-f", "qcow2", self.top.path],
                           self.chain.folder).out

        for s in json.loads(info).get("snapshots", []):
            if self.snapshot in (s["id"], s["name"]):
                return sizes_of_snapshots(os.path.join(self.chain.folder, self.top.path)).get(s["id"], default)
        return default


def sizes_of_snapshots(path):
    """{id: disk size}, from the table; the specification's "Snapshots"."""
    q, found = oracle.Qcow2(path), {}
    at = q.snap_off
    for _ in range(q.nb_snap):
        raw = q.get(at, 40)
        id_len, name_len = int.from_bytes(raw[12:14], "big"), int.from_bytes(raw[14:16], "big")
        extra_len = int.from_bytes(raw[36:40], "big")
        extra = q.get(at + 40, extra_len)
        name = q.get(at + 40 + extra_len, id_len).decode()
        if extra_len >= 16:
            found[name] = int.from_bytes(extra[8:16], "big")
        at = (at + 40 + extra_len + id_len + name_len + 7) // 8 * 8
    return found


def times(paths):
    return {p: (os.stat(p).st_atime_ns, os.stat(p).st_mtime_ns, os.stat(p).st_ctime_ns) for p in paths}


def age(paths):
    """Times of access so old that relatime would renew them."""
    for p in paths:
        st = os.stat(p)
        os.utime(p, ns=(10 ** 18, st.st_mtime_ns))


def nothing_left(folder, names):
    left = sorted(set(os.listdir(folder)) - names)
    if left:
        raise Fail(f"left behind: {left}")


def compare(case, out, want):
    if case.kind == "qcow2":
        rc, _, text = oracle.check(out, cwd=case.chain.folder)
        if rc != 0:
            raise Fail(f"qemu-img check: rc {rc}: {text}")
        if oracle.Qcow2(out).backing()[0] is not None:
            raise Fail("it has a backing file")
        got = oracle.view(out, "qcow2", case.chain.folder)
    else:
        with open(out, "rb") as f:
            got = f.read()
    if got != want:
        raise Fail("the new image differs, " + oracle.first_difference(got, want))


def flatten_to(case, out, story, env=None):
    """-> rc; standard output, if asked for, goes to out."""
    argv = case.command("-" if case.kind == "stdout" else out)
    story.append(" ".join(argv[1:]) + " " + str({**case.env, **(env or {})}))
    if case.kind == "stdout":
        argv = ["sh", "-c", 'out=$1; shift; exec "$@" | cat >"$out"', "sh", out, *argv]
    r = oracle.run(argv, case.chain.folder, env={**case.env, **(env or {})})
    story.append(f"rc {r.rc}: {r.err.strip()}")
    return r


def format_is_missing(case):
    """A layer that stores no format for what is below it, at or under the one that is read."""
    below = [x for x in case.chain.layers if x.index <= case.top.index and x.no_format]
    return below[0] if below else None


def meet_missing_format(case, story):
    missing = format_is_missing(case)
    if not missing:
        return
    case_out = os.path.join(case.chain.folder, "flat")
    r = flatten_to(case, case_out, story)
    if case.kind != "stdout" and (r.rc != 2 or "--backing-format" not in r.err):
        raise Fail(f"a missing backing format: rc {r.rc}, wanted 2: {r.err}")
    if os.path.exists(case_out):
        os.unlink(case_out)
    case.args += ["--backing-format", case.chain.layers[missing.index - 1].fmt]


def view_and_check(rng, chain, qmeld, story):
    case = Case(rng, chain, qmeld)
    try:
        want = case.want()
    except Fail as e:  # 512-byte clusters, compressed twice: QEMU 7.2 cannot read them back
        story.append(str(e))
        return "qemu-img cannot read what it wrote"
    out = os.path.join(chain.folder, "flat")
    meet_missing_format(case, story)
    names = set(os.listdir(chain.folder))
    digests = oracle.digests(chain.paths())
    age(chain.paths())
    before = times(chain.paths())
    r = flatten_to(case, out, story)
    if r.rc != 0:
        raise Fail(f"rc {r.rc}: {r.err}")
    if times(chain.paths()) != before:
        raise Fail("times of the chain's files changed")
    if oracle.digests(chain.paths()) != digests:
        raise Fail("the chain's files changed")
    nothing_left(chain.folder, names | {"flat"})
    compare(case, out, want)
    refused_and_forced(rng, case, out, want, story)
    return "merged"


def refused_and_forced(rng, case, out, want, story):
    """What is there is replaced only if asked for, and never a layer."""
    if case.kind == "stdout":
        return
    was = oracle.digest(out)
    r = flatten_to(case, out, story)
    if r.rc != 2 or oracle.digest(out) != was:
        raise Fail(f"a file that is there: rc {r.rc}")
    layer = rng.choice(case.chain.paths()[:case.top.index + 1])
    link = os.path.join(case.chain.folder, "link")
    rng.choice([os.link, os.symlink])(layer, link)
    digests = oracle.digests(case.chain.paths())
    case.args.append("--force")
    r = flatten_to(case, link, story)
    os.unlink(link)
    if r.rc != 2 or oracle.digests(case.chain.paths()) != digests:
        raise Fail(f"a layer of the chain by another name: rc {r.rc}: {r.err}")
    r = flatten_to(case, out, story)
    if r.rc != 0:
        raise Fail(f"--force: rc {r.rc}: {r.err}")
    compare(case, out, want)


def kill_and_check(rng, chain, qmeld, story, shim=None):
    case = Case(rng, chain, qmeld)
    case.kind = "qcow2" if case.kind == "stdout" else case.kind
    if case.kind == "qcow2" and "-O" not in case.args:
        case.args += ["-O", "qcow2"]
    try:
        want = case.want()
    except Fail as e:
        story.append(str(e))
        return "qemu-img cannot read what it wrote"
    missing = format_is_missing(case)
    if missing:
        case.args += ["--backing-format", chain.layers[missing.index - 1].fmt]
    names = set(os.listdir(chain.folder)) | {"count"}
    count = os.path.join(chain.folder, "count")
    out = os.path.join(chain.folder, "flat")
    r = flatten_to(case, out, story, {"LD_PRELOAD": shim, "KILL_COUNT": count})
    if r.rc != 0:
        raise Fail(f"rc {r.rc}: {r.err}")
    os.unlink(out)
    with open(count, encoding="ascii") as f:
        most = int(f.read())
    for _ in range(rng.randint(1, 3)):
        env = {"LD_PRELOAD": shim, "KILL_AT": str(rng.randint(1, most)), "KILL_TEAR": rng.choice(["0", "1"])}
        r = flatten_to(case, out, story, env)
        if r.rc == 0:
            break
        if r.rc != -9:
            raise Fail(f"killed, and gone on with: rc {r.rc}: {r.err}")
        if os.path.exists(out):  # its name is the last thing that it gets
            compare(case, out, want)
    else:
        r = flatten_to(case, out, story)
    if r.rc != 0:
        raise Fail(f"going on: rc {r.rc}: {r.err}")
    compare(case, out, want)
    nothing_left(chain.folder, names | {"flat"})
    return "merged"


def main():
    check = view_and_check
    if "--kill" in sys.argv:
        sys.argv.remove("--kill")
        os.environ["QMELD"] = oracle.qmeld_program("plain", "release")  # a sanitizer wants to be preloaded first
        folder = tempfile.mkdtemp(prefix="qmeld-flatten.")
        check = functools.partial(kill_and_check, shim=oracle.build_shim("killat", folder))
    chains.main(check)


if __name__ == "__main__":
    main()
