#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Views of random chains, flattened, against what qemu-img reads.

    flatten.py          a random layer or internal snapshot of a random chain, to raw, to qcow2 of every
                        kind, to standard output: the same bytes, a clean image, nothing left behind, and the
                        chain as it was, times of access included
    flatten.py --kill   the same, killed in front of a random change, up to three times: no name
                        until it is whole, and the same command goes on

    flatten.py --trace  with a manifest, under strace: nothing is opened for writing but the new files

    flatten.py --salvage  tables are spoiled first: what is lost is listed, and all else is right
    flatten.py --evil   every malformed image of tests/evil, salvaged

Half of all write a manifest, which is verified twice: by qmeld, and by verify_manifest.py; then a byte of an input, of the
image and of the manifest is changed, and has to be found.  Options as chains.py has them.
"""

import functools
import json
import os
import re
import shutil
import sys
import tempfile

import chains
import oracle
import verify_manifest
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
        self.args = ["-f", self.top.fmt, "--allow-path", chain.folder]  # layers lie in folders of their own
        if self.snapshot:
            self.args += ["--snapshot", self.snapshot]
        if self.kind == "qcow2":
            self.args += ["-O", "qcow2", *(self.pick_alike(rng) if rng.random() < 0.4 else pick_options(rng))]
        self.prealloc = self.pick_preallocation(rng)
        if rng.random() < 0.2:
            self.args.append("--no-detect-zeroes")
        if rng.random() < 0.5:
            self.args += ["--threads", str(rng.choice([1, 2, 5]))]
        self.manifest = rng.random() < 0.5
        if self.manifest:
            self.args += ["--manifest=" + os.path.join(chain.folder, "flat.json"),
                          "--leaf=" + rng.choice(["4k", "64k", "1M", "2M"])]
        self.env = {"QMELD_TEST_BATCH": str(rng.choice([4096, 1 << 16, 1 << 20, 512 << 20])),
                    "QMELD_TEST_NO_SYNC": "1"}
        if rng.random() < 0.4:  # in test builds: as if on a file system that shares blocks of this size
            self.env["QMELD_TEST_SHARE"] = str(rng.choice([512, 4096, 65536]))

    def pick_alike(self, rng):
        """-> arguments with which compressed clusters of a layer can be passed on."""
        layers = [x for x in self.chain.layers if x.fmt == "qcow2"]
        if not layers:
            return pick_options(rng)
        q = oracle.Qcow2(os.path.join(self.chain.folder, rng.choice(layers).path))
        extended = rng.random() < 0.3 and q.cs >= 16384
        return ["--cluster-size", str(q.cs), "--refcount-bits", str(rng.choice([1, 2, 16])),
                "--compress", "zstd" if q.comp_type else "zlib", *(["--extended-l2", "on"] if extended else [])]

    def pick_preallocation(self, rng):
        if self.kind == "stdout" or "-c" in self.args or "--compress" in self.args or rng.random() < 0.7:
            return None
        mode = rng.choice(["off", "falloc", "full", *(["metadata"] if self.kind == "qcow2" else [])])
        self.args += ["--preallocation", mode]
        return mode

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


def every_cluster_has_its_place(case, out):
    told = json.loads(oracle.run(["qemu-img", "check", "--output=json", "-f", "qcow2", out], case.chain.folder).out)
    if told.get("allocated-clusters", 0) != told["total-clusters"]:
        raise Fail(f"{case.prealloc}: {told}")


def compare(case, out, want):
    if case.kind == "qcow2":
        rc, _, text = oracle.check(out, cwd=case.chain.folder)
        if rc != 0:
            raise Fail(f"qemu-img check: rc {rc}: {text}")
        if case.prealloc not in (None, "off"):
            every_cluster_has_its_place(case, out)
        if oracle.Qcow2(out).backing()[0] is not None:
            raise Fail("it has a backing file")
        got = oracle.view(out, "qcow2", case.chain.folder)
    else:
        with open(out, "rb") as f:
            got = f.read()
    if case.prealloc in ("falloc", "full") and os.stat(out).st_blocks * 512 < len(want):
        raise Fail(f"{case.prealloc}: {os.stat(out).st_blocks} blocks for {len(want)} bytes")
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
    chain.tags |= {"flatten-" + word for word in ("shared", "passed") if word in r.out}
    if times(chain.paths()) != before:
        raise Fail("times of the chain's files changed")
    if oracle.digests(chain.paths()) != digests:
        raise Fail("the chain's files changed")
    nothing_left(chain.folder, names | {"flat"} | ({"flat.json"} if case.manifest else set()))
    compare(case, out, want)
    if case.manifest:
        tampered(rng, case, out, want, story)
    refused_and_forced(rng, case, out, want, story)
    return "merged"


def manifest_of(case, out, want, story):
    """Written beside the image; verified by us, and by fifty lines that share nothing with us."""
    record, raw = out + ".json", os.path.join(case.chain.folder, "want")
    with open(raw, "wb") as f:
        f.write(want)
    told = json.loads(verify_manifest.read(record))
    bad = list(verify_manifest.verify(told, want))
    if bad:
        raise Fail("the independent verifier: " + "; ".join(bad[:5]))
    argv = [case.qmeld, "verify", "--allow-path", case.chain.folder, *(["--image", out] if case.kind == "stdout" else []), record]
    r = oracle.run(argv, case.chain.folder)
    story.append(f"verify: rc {r.rc}: {r.out} {r.err}")
    if r.rc != 0:
        raise Fail(f"verify: rc {r.rc}: {r.out}{r.err}")
    return argv, told, raw


def flip(path, at):
    with open(path, "r+b") as f:
        f.seek(at)
        old = f.read(1)
        f.seek(at)
        f.write(bytes([old[0] ^ 0x41]))


def tampered(rng, case, out, want, story):
    """A byte of an input or of the disk is another: verify says so, and which."""
    argv, told, raw = manifest_of(case, out, want, story)
    files = [p for p in case.chain.paths()[:case.top.index + 1] if os.path.getsize(p)]
    if files:
        path = rng.choice(files)
        at = rng.randrange(os.path.getsize(path))
        st = os.stat(path)
        flip(path, at)
        os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))
        r = oracle.run(argv, case.chain.folder)
        if r.rc != 1 or os.path.basename(path) not in r.out:
            raise Fail(f"byte {at} of {path} changed: rc {r.rc}: {r.out}{r.err}")
        flip(path, at)
    if case.kind != "qcow2" and want:
        at = rng.randrange(len(want))
        flip(out, at)
        r = oracle.run(argv, case.chain.folder)
        leaf = at // told["leaf_size"]
        if r.rc != 1 or f"leaf {leaf} differs" not in r.out:
            raise Fail(f"byte {at} of the image changed: rc {r.rc}: {r.out}{r.err}")
        flip(out, at)
    os.unlink(raw)
    record = out + ".json"
    with open(record, "r+b") as f:  # a digit of a digest
        text = f.read()
        f.seek(text.index(b'"sha256":"') + 10)
        f.write(b"0" if text[f.tell():f.tell() + 1] != b"0" else b"1")
    r = oracle.run(argv, case.chain.folder)
    if r.rc not in (1, 2) or (want and r.rc != 1):
        raise Fail(f"the manifest changed: rc {r.rc}: {r.out}{r.err}")
    os.unlink(record)
    case.args = [a for a in case.args if not a.startswith(("--manifest", "--leaf"))]


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
    if oracle.digest(out) != was:
        raise Fail("the same command made another file: something depends on who was faster")


TOUCHES = ("open", "openat", "creat", "truncate", "unlink", "unlinkat", "rename", "renameat", "renameat2", "link",
           "linkat", "symlink", "symlinkat", "mkdir", "mkdirat", "chmod", "fchmodat", "chown", "fchownat", "utimensat",
           "setxattr", "mknod", "mknodat")
HARMLESS = ("/dev/null", "/proc/", "/sys/")


def written(trace, cwd):
    """Names that system calls could change, or change what they lead to."""
    for line in trace.splitlines():
        m = re.match(r"(?:\d+ +)?(\w+)\(", line)
        if not m or m.group(1) not in TOUCHES or re.search(r"= -1 E", line):
            continue
        if m.group(1) in ("open", "openat") and not re.search(r"O_WRONLY|O_RDWR|O_CREAT|O_TRUNC", line):
            continue
        for name in re.findall(r'"((?:[^"\\]|\\.)*)"', line)[:2]:
            path = os.path.join(cwd, name)
            if not path.startswith(HARMLESS):
                yield path, line


def trace_and_check(rng, chain, qmeld, story):
    """A forensic run opens nothing for writing but the image, the manifest, and its own two files."""
    case = Case(rng, chain, qmeld)
    case.kind = "qcow2" if case.kind == "stdout" else case.kind
    if case.kind == "qcow2" and "-O" not in case.args:
        case.args += ["-O", "qcow2"]
    missing = format_is_missing(case)
    if missing:
        case.args += ["--backing-format", chain.layers[missing.index - 1].fmt]
    place = os.path.join(chain.folder, "there")
    os.mkdir(place)
    out, record, trace = (os.path.join(place, n) for n in ("flat", "case.json", "trace"))
    case.args = [a for a in case.args if not a.startswith("--manifest")] + ["--manifest=" + record]
    argv = ["strace", "-f", "-o", trace, *case.command(out)]
    r = oracle.run(argv, chain.folder)
    if r.rc != 0 and "ptrace" in r.err:
        return "strace may not trace here"
    if r.rc != 0:
        raise Fail(f"rc {r.rc}: {r.err}")
    ours = {os.path.join(place, n) for n in ("flat", "case.json", ".flat.qmeld-partial", ".flat.qmeld-flatten",
                                             ".case.json.qmeld-partial")}
    with open(trace, encoding="utf-8", errors="backslashreplace") as f:
        found = list(written(f.read(), chain.folder))
    if not found:
        raise oracle.Broken("strace saw nothing")
    bad = [line for path, line in found if path not in ours]
    if bad:
        raise Fail("opened for writing, or changed: " + "; ".join(bad[:5]))
    nothing_left(place, {"flat", "case.json", "trace"})
    return "merged"


# ---- salvage ----

def lost_ranges(path, size):
    """From a ddrescue map file, which must cover the disk."""
    at, found = 0, []
    with open(path, encoding="ascii") as f:
        lines = [x.split() for x in f if not x.startswith("#")]
    if lines[0] != ["0x00000000", "+", "1"]:
        raise Fail(f"map file: status {lines[0]}")
    for pos, length, status in lines[1:]:
        if int(pos, 16) != at or status not in "+-":
            raise Fail(f"map file: {pos} {status} where {at:#x} is expected")
        at += int(length, 16)
        if status == "-":
            found.append((int(pos, 16), at))
    if at != size:
        raise Fail(f"map file: it ends at {at}, the disk at {size}")
    return found


def salvage(qmeld, folder, image, fmt, story, extra=()):
    """-> (rc, bytes, lost ranges); None if the image cannot even be opened."""
    out, record, losses = (os.path.join(folder, n) for n in ("saved", "saved.json", "saved.map"))
    argv = [qmeld, "flatten", "--salvage", "--fill=LOST!", "--manifest=" + record, "--salvage-map=" + losses,
            "--leaf=4k", "--allow-path=/", *(["-f", fmt] if fmt else []), *extra, image, out]
    r = oracle.run(argv, folder, timeout=120)
    story.append(f"{' '.join(argv[1:])}: rc {r.rc}: {r.err.strip()}")
    if r.rc in (1, 2):
        nothing_left(folder, set(os.listdir(folder)) - {"saved", "saved.json", "saved.map"})
        return None
    if r.rc not in (0, 4):
        raise Fail(f"rc {r.rc}: {r.err}")
    with open(out, "rb") as f:
        got = f.read()
    told = json.loads(verify_manifest.read(record))
    lost = lost_ranges(losses, told["size"])
    if (r.rc == 4) != bool(lost):
        raise Fail(f"rc {r.rc}, and lost is {lost}")
    spans, at = [], 0
    for span in (x for leaf in told["leaves"] for x in leaf["spans"] if x["kind"] == "lost"):
        if spans and spans[-1][1] == span["start"]:
            spans[-1] = (spans[-1][0], span["start"] + span["length"])
        else:
            spans.append((span["start"], span["start"] + span["length"]))
    if spans != lost:
        raise Fail(f"the manifest has lost {spans}, the map file {lost}")
    for a, b in lost:
        if got[a:b] != bytes(b"LOST!"[i % 5] for i in range(a, b)):
            raise Fail(f"{a} to {b} is lost, and not filled")
    bad = list(verify_manifest.verify(told, got))
    r2 = oracle.run([qmeld, "verify", "--allow-path=/", record], folder)
    if bad or r2.rc != 0:
        raise Fail(f"verify: rc {r2.rc}: {r2.out}{r2.err}; {bad[:3]}")
    for path in (out, record, losses):
        os.unlink(path)
    return r.rc, got, lost


def damage(rng, chain, story):
    """Spoils entries of tables of one layer; -> guest ranges that may be lost."""
    layers = [x for x in chain.layers if x.fmt == "qcow2"]
    layer = rng.choice(layers)
    q = oracle.Qcow2(os.path.join(chain.folder, layer.path))
    spoiled = []
    for _ in range(rng.randint(1, 6)):
        guest = rng.randrange(0, max(q.size, 1))
        off, entry, _ = q.entry_at(guest)
        if not off or not entry & oracle.OFFSET_MASK or entry >> 62 & 1 or q.cs == 512:
            continue
        if rng.random() < 0.3:
            index = guest // (q.cs * q.per_l2)
            q.put(q.l1_off + 8 * index, (q.l2(guest) and (1 << 63 | 0x200 | q.cs)).to_bytes(8, "big"))
            spoiled.append((index * q.cs * q.per_l2, (index + 1) * q.cs * q.per_l2))
        else:
            q.put(off, (entry | 0x200).to_bytes(8, "big"))
            spoiled.append((guest // q.cs * q.cs, guest // q.cs * q.cs + q.cs))
        story.append(f"{layer.path}: spoiled at guest {guest:#x}")
    return spoiled


def salvage_and_check(rng, chain, qmeld, story):
    """What is not lost is right; what is lost was spoiled."""
    top = chain.layers[-1]
    try:
        want = oracle.view(top.path, top.fmt, chain.folder)
    except Fail as e:
        story.append(str(e))
        return "qemu-img cannot read what it wrote"
    missing = [x for x in chain.layers if x.no_format]
    extra = ["--allow-path", chain.folder]
    if missing:
        extra += ["--backing-format", chain.layers[missing[0].index - 1].fmt]
    spoiled = damage(rng, chain, story)
    saved = salvage(qmeld, chain.folder, top.path, top.fmt, story, extra)
    if not saved:
        raise Fail("it could not be opened")
    _, got, lost = saved
    story.append(f"lost: {lost}")
    ok = bytearray(want)
    for a, b in lost:
        if not any(x <= a and b <= y for x, y in merged(spoiled)):
            raise Fail(f"{a} to {b} is lost, and was never spoiled: {spoiled}")
        ok[a:b] = got[a:b]
    if bytes(ok) != got:
        raise Fail("what is not lost differs, " + oracle.first_difference(got, bytes(ok)))
    return "merged"


def merged(ranges):
    out = []
    for a, b in sorted(ranges):
        if out and a <= out[-1][1]:
            out[-1] = (out[-1][0], max(b, out[-1][1]))
        else:
            out.append((a, b))
    return out


def evil(qmeld, forge):
    """Every malformed image there is: no crash, no hang, and every byte is accounted for."""
    folder, failures, saved, refused = oracle.scratch(), 0, 0, 0
    for name in sorted(os.listdir(os.path.join(oracle.ROOT, "tests", "evil"))):
        if not name.endswith(".recipe"):
            continue
        recipe, story = os.path.join(oracle.ROOT, "tests", "evil", name), []
        case = os.path.join(folder, name)
        os.mkdir(case)
        try:
            r = oracle.run([forge, recipe, "."], case)
            listed = oracle.must([forge, "--list", recipe], case).out.split() if r.rc == 0 else []
            if not listed:
                continue
            size = virtual_size(qmeld, os.path.join(case, listed[0]))
            if (size or 0) > 64 << 20:  # what the disk claims is larger than anybody fills
                story.append("too large")
                extra_run(qmeld, case, listed[0])
                refused += 1
                continue
            if salvage(qmeld, case, listed[0], None, story):
                saved += 1
            else:
                refused += 1
        except Fail as e:
            failures += 1
            print(f"{name}: {e}\n  " + "\n  ".join(story), flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    print(f"{saved} salvaged, {refused} refused, {failures} bad")
    sys.exit(1 if failures or saved < 110 else 0)


def virtual_size(qmeld, path):
    r = oracle.run([qmeld, "info", "--output=json", path], os.path.dirname(path))
    found = re.search(r'"virtual-size": (\d+)', r.out)
    return int(found.group(1)) if r.rc == 0 and found else None


def extra_run(qmeld, folder, image):
    """No fill, so that what is lost costs nothing; to nowhere it must end, too."""
    r = oracle.run([qmeld, "flatten", "--salvage", "-O", "qcow2", "--deadline=20", image, "saved"], folder, timeout=60)
    if r.rc not in (0, 1, 2, 4, 75):
        raise Fail(f"rc {r.rc}: {r.err}")


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
    if case.manifest:
        os.unlink(out + ".json")
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
    if r.rc == 2 and os.path.exists(out) and "it is there already" in r.err:
        story.append("killed when all was done")  # nothing left to do, and the note is gone: looked at below
    elif r.rc != 0:
        raise Fail(f"going on: rc {r.rc}: {r.err}")
    compare(case, out, want)
    if case.manifest:
        os.unlink(manifest_of(case, out, want, story)[2])
    nothing_left(chain.folder, names | {"flat"} | ({"flat.json"} if case.manifest else set()))
    return "merged"


def main():
    check = view_and_check
    if "--trace" in sys.argv:
        sys.argv.remove("--trace")
        oracle.need("strace")
        os.environ["QMELD"] = oracle.qmeld_program("release", "plain")  # leak detection cannot be traced
        check = trace_and_check
    if "--evil" in sys.argv:
        evil(oracle.qmeld_program(), oracle.find_program("forge") or oracle.die_skip("forge is not built"))
    if "--salvage" in sys.argv:
        sys.argv.remove("--salvage")
        check = salvage_and_check
    if "--kill" in sys.argv:
        sys.argv.remove("--kill")
        os.environ["QMELD"] = oracle.qmeld_program("plain", "release")  # a sanitizer wants to be preloaded first
        folder = tempfile.mkdtemp(prefix="qmeld-flatten.")
        check = functools.partial(kill_and_check, shim=oracle.build_shim("killat", folder))
    chains.main(check)


if __name__ == "__main__":
    main()
