# SPDX-License-Identifier: LGPL-2.1-or-later
"""One random merge of a chain, and everything that must hold after it."""

import json
import os
import shutil

import bitmap_model
import oracle
from oracle import Fail, Qcow2

CHECK_KEYS = ("check-errors", "corruptions", "leaks", "image-end-offset", "total-clusters",
              "allocated-clusters", "fragmented-clusters", "compressed-clusters")


class Merge:
    """What is asked for, and how the files were before."""

    def __init__(self, chain):
        self.chain = chain
        self.n = len(chain.layers)
        self.base = self.top = 0
        self.overlays, self.args, self.merge_args = "keep", [], []


def layer_name(rng, chain, i):
    """One of the ways a user may name a layer."""
    return rng.choice([f"[{i + 1}]", chain.layers[i].path, chain.path(i)])


def pick_merge(rng, chain):
    """A range, mostly one without a known reason to refuse it."""
    for _ in range(8):
        m = pick_any_merge(rng, chain)
        if not known_reasons(m) or rng.random() < 0.1:
            break
    return m


def pick_any_merge(rng, chain):
    m = Merge(chain)
    kind = rng.random()
    m.top = m.n - 1 if kind < 0.55 else rng.randrange(1, m.n)
    m.base = 0 if kind < 0.35 else rng.randrange(m.top)
    args = []
    if m.top != m.n - 1 or rng.random() < 0.2:
        args += ["--top", layer_name(rng, chain, m.top)]
    if m.base == m.top - 1 and rng.random() < 0.5:
        args += ["--shallow"]
    elif m.base != 0 or rng.random() < 0.3:
        args += ["--base", layer_name(rng, chain, m.base)]
    m.overlays = rng.choice(["keep", "keep", "empty", "delete", "quarantine"])
    base = chain.layers[m.base]
    may_go_up = base.fmt == "qcow2" and base.opts["compat"] != "0.10" and not base.snapshots
    up = may_go_up and not chain.easy and rng.random() < 0.4
    if up:
        m.overlays = "delete"
    if m.overlays == "empty" and chain.easy and m.base != m.top - 1:
        m.overlays = "keep"
    if m.overlays != "keep" or rng.random() < 0.3:
        args += [f"--overlays={m.overlays}"]
    m.reclaim = m.overlays != "quarantine" and not chain.easy and not up and rng.random() < 0.3
    if m.reclaim:
        args += ["--reclaim"]
    m.bitmaps = "merge"
    if any(x.has_bitmaps for x in chain.layers[m.base:m.top + 1]) and rng.random() < 0.4:
        m.bitmaps = rng.choice(["merge", "keep", "drop"])
        args += [f"--bitmaps={m.bitmaps}"]
    m.back = ""
    if not chain.easy and rng.random() < 0.1:
        args += ["--decompress"]
    if not m.reclaim and not chain.easy and not up and rng.random() < 0.35:
        raw = chain.layers[m.base].fmt == "raw"
        m.back = "--undo" if raw else rng.choice(["--atomic", "--undo"])
        args += [m.back]
    if up:
        args += ["--direction=" + rng.choice(["up", "auto"])]
    m.inode = os.stat(chain.path(m.base)).st_ino
    for option in ("--skip-equal", "--detect-zeroes"):
        if not chain.easy and rng.random() < 0.3:
            args += [option]
    m.batch = rng.choice([4096, 65536, 1 << 20, 512 << 20])  # test builds only
    if rng.random() < 0.5:
        args += ["--threads", str(rng.choice([1, 2, 3, 8]))]
    if rng.random() < 0.2:
        args.append("--cache=none")
    m.merge_args = args
    m.share = rng.choice([None, None, None, 512, 4096])  # blocks of a pretended file system, test builds only
    return m


def command(m, qmeld, extra=()):
    return [qmeld, "commit", *m.merge_args, *extra, m.chain.layers[-1].path]


def environment(m):
    env = {"QMELD_TEST_BATCH": str(m.batch)}
    return env | {"QMELD_TEST_SHARE": str(m.share)} if m.share else env


def known_reasons(m):
    """Why this merge may be refused (exit 2, nothing touched).  Empty: it must work."""
    ls, reasons = m.chain.layers, []
    base, top = ls[m.base], ls[m.top]
    grows = top.size > (base.size + 511) // 512 * 512
    v2 = base.fmt == "qcow2" and base.opts["compat"] == "0.10"
    if v2 and base.snapshots and grows:
        reasons.append("version 2 base with internal snapshots cannot grow")
    if any(ls[i].snapshots for i in range(m.base + 1, m.top + 1)):
        reasons.append("overlay has internal snapshots")
    if m.back and base.fmt == "qcow2" and base.dirty:
        reasons.append("a base that was not closed cleanly cannot be kept as it is")
    if m.bitmaps == "merge" and any(ls[i].has_bitmaps for i in range(m.base + 1, m.top + 1)):
        into = ls[m.base:m.top + 1] if any(a in m.merge_args for a in ("--direction=up", "--direction=auto")) else [base]
        if any(x.fmt == "raw" or x.opts["compat"] == "0.10" for x in into):
            if m.overlays == "delete":
                reasons.append("the base cannot hold bitmaps")
        elif not base.has_bitmaps and (base.opts["cluster_size"] <= 1024 or m.back):
            reasons.append("the base's header may have no room for bitmaps")
    if m.top < m.n - 1 and ls[m.top + 1].opts["cluster_size"] <= 1024:
        reasons.append("the child's header cluster may be full")
    return reasons


def compare_map(qmeld, path, fmt, cwd):
    want = oracle.must(["qemu-img", "map", "--output=json", "-f", fmt, path], cwd).out
    got = oracle.run([qmeld, "map", "--output=json", "-f", fmt, path], cwd)
    if got.rc != 0 or got.out != want:
        raise Fail(f"map of {path} (rc {got.rc}) differs:\n{got.err}--- qemu-img\n{want}"
                   f"--- qmeld\n{got.out}")


def compare_check(qmeld, path, cwd):
    rc, want, text = oracle.check(path, cwd=cwd)
    r = oracle.run([qmeld, "check", "--output=json", path], cwd)
    try:
        got = json.loads(r.out)
    except ValueError:
        raise Fail(f"check of {path}: no JSON, rc {r.rc}: {r.err}{r.out}") from None
    bad = [k for k in CHECK_KEYS if want.get(k, 0) != got.get(k, 0)]
    if r.rc != rc or bad:
        raise Fail(f"check of {path}: rc {r.rc}, qemu-img {rc}; "
                   + ", ".join(f"{k}: {got.get(k, 0)} not {want.get(k, 0)}" for k in bad)
                   + f"\n{text[:800]}\n{r.err[:800]}")
    return rc


def look(rng, m, qmeld):
    """Before anything is changed: does qmeld see what qemu-img sees?"""
    chain, cwd = m.chain, m.chain.folder
    top = chain.layers[-1]
    compare_map(qmeld, top.path, top.fmt, cwd)
    some = rng.choice([x for x in chain.layers if x.fmt == "qcow2"])
    compare_check(qmeld, some.path, cwd)


def take_stock(m):
    chain, cwd = m.chain, m.chain.folder
    ls = chain.layers
    m.view = {}
    for i in {m.base, m.top, min(m.top + 1, m.n - 1), m.n - 1}:
        m.view[i] = oracle.view(ls[i].path, ls[i].fmt, cwd)
    m.digest = oracle.digests(chain.paths())
    m.stat = {p: os.stat(p).st_mtime_ns for p in chain.paths()}
    m.snaps = {(i, s): oracle.view(ls[i].path, "qcow2", cwd, s)
               for i in {m.base, m.top + 1} & set(range(m.n)) for s in ls[i].snapshots}
    m.header = {i: Qcow2(chain.path(i)) for i in range(m.n) if ls[i].fmt == "qcow2"}
    m.exts = {i: q.extensions() for i, q in m.header.items()}
    m.backing = {i: q.backing() for i, q in m.header.items()}
    m.bits = m.header[m.base].bitmaps() if ls[m.base].has_bitmaps else {}
    # bitmaps are version 3's: whoever keeps the layers keeps theirs, and the base stays as it is
    holds = ls[m.base].fmt == "qcow2" and ls[m.base].opts["compat"] != "0.10"
    m.new_bits = bitmap_model.expect([m.header.get(i) for i in range(m.base, m.top + 1)], m.bitmaps if holds else "keep",
                                     max(len(m.view[m.base]), len(m.view[m.top])))
    m.check_rc = {i: oracle.check(ls[i].path, cwd=cwd)[0] for i in {m.base, min(m.top + 1, m.n - 1)}
                  if i in m.header}
    tail = m.view[m.base][len(m.view[m.top]):]
    m.want = m.view[m.top] + tail


def unchanged(m, why):
    for path, was in m.digest.items():
        if not os.path.exists(path) or oracle.digest(path) != was:
            raise Fail(f"{why}, but {path} changed")


def qemu_bits(m):
    """The bitmaps that qemu-img commit leaves in the same base: an upper bound for ours."""
    cwd = m.chain.folder
    copy = cwd + ".copy"
    shutil.copytree(cwd, copy)
    try:
        base, top = m.chain.layers[m.base], m.chain.layers[m.top]
        r = oracle.run(["qemu-img", "commit", "-q", "-f", "qcow2", "-b",
                        os.path.join(copy, base.path), top.path], copy)
        return Qcow2(os.path.join(copy, base.path)).bitmaps() if r.rc == 0 else None
    finally:
        shutil.rmtree(copy)


def check_bitmaps(m, before, upper):
    """Every byte that changed is marked; nothing is marked that QEMU would not have, and no layer."""
    q = Qcow2(m.chain.path(m.base))
    now = q.bitmaps()
    wrong = bitmap_model.compare(m.new_bits, q)
    if wrong:
        raise Fail(wrong)
    want = hide_tail(m) if m.top < m.n - 1 else m.want
    old = m.view[m.base] + bytes(max(0, len(want) - len(m.view[m.base])))
    for name, (flags, gran, bits) in now.items():
        if flags & 1 or name not in before or not before[name][0] & 2:
            continue
        have, had = oracle.set_bits(bits), m.new_bits[name].least
        changed = {g for g in range(len(want) // gran + 1)
                   if old[g * gran:(g + 1) * gran] != want[g * gran:(g + 1) * gran]}
        lost = (had | changed) - have
        if lost:
            raise Fail(f"bitmap {name}: granules {sorted(lost)[:8]} changed or were set, and are clear")
        if upper is None:
            continue
        end = len(m.view[m.base])  # the stale tail that QEMU forgets is zeroed, and marked, by us
        tail = set(range(end // gran, (end + q.cs - 1) // q.cs * q.cs // gran + 1))
        if m.top < m.n - 1:  # what the short top hid of a longer base is zeroed, and marked, too
            hidden = min(end, m.chain.layers[m.top + 1].size)
            tail |= set(range(m.chain.layers[m.top].size // gran, hidden // gran + 1))
        extra = have - had - oracle.set_bits(upper[name][2]) - tail
        if extra:
            raise Fail(f"bitmap {name}: granules {sorted(extra)[:8]} set, QEMU does not set them")


def hide_tail(m):
    """m.want, with zeros where top's end hid from the child what base holds."""
    end, child = len(m.view[m.top]), len(m.view[m.top + 1])
    zeros = bytes(max(0, min(child, len(m.want)) - end))
    return m.want[:end] + zeros + m.want[end + len(zeros):]


def check_base(m, upper):
    chain, cwd, ls = m.chain, m.chain.folder, m.chain.layers
    base, path = ls[m.base], m.chain.path(m.base)
    got = oracle.view(base.path, base.fmt, cwd)
    want, size = m.want, (len(m.want) + 511) // 512 * 512
    if m.top < m.n - 1:
        # a child longer than top read zeros there; base's own tail must not show through it
        want = hide_tail(m)
    diff = oracle.first_difference(want.ljust(size, b"\0"), got.ljust(size, b"\0"))
    if diff:
        raise Fail(f"base reads wrong, wanted and got: {diff}")
    if base.fmt == "raw":
        return
    rc, found, text = oracle.check(base.path, cwd=cwd)
    if rc != 0:
        raise Fail(f"base is not clean: rc {rc} {found}\n{text}")
    q = Qcow2(path)
    if os.stat(path).st_ino != m.inode:  # it went up: another file, over the old one's backing file
        chain.tags.add("up")
        if os.stat(path).st_nlink != 1 or q.backing()[0] != m.backing[m.base][0]:
            raise Fail(f"base's backing file was {m.backing[m.base]}, is {q.backing()}")
        return
    kept = [e for e in q.extensions() if e[0] not in (oracle.EXT_BITMAPS,)]
    if sorted(kept) != sorted(e for e in m.exts[m.base] if e[0] != oracle.EXT_BITMAPS):
        raise Fail(f"base's header extensions were {m.exts[m.base]}, are {q.extensions()}")
    if q.backing() != m.backing[m.base]:
        raise Fail(f"base's backing file was {m.backing[m.base]}, is {q.backing()}")
    if oracle.digest(path) != m.digest[path]:
        if q.incompat & 3 or q.autoclear & ~1:
            raise Fail(f"base written, incompat {q.incompat:#x}, autoclear {q.autoclear:#x} left")
    check_bitmaps(m, m.bits, upper)


def check_snapshots(m):
    for (i, name), was in m.snaps.items():
        now = oracle.view(m.chain.layers[i].path, "qcow2", m.chain.folder, name)
        n = min(len(was), len(now))
        if len(now) < len(was) or oracle.first_difference(was[:n], now[:n]):
            raise Fail(f"internal snapshot {name} of layer {i + 1} changed: "
                       f"{oracle.first_difference(was, now)}")


def check_child(m):
    """The header above the range names the base now, in the style it had."""
    i, ls = m.top + 1, m.chain.layers
    name, fmt = Qcow2(m.chain.path(i)).backing()
    old = m.backing[i][0]
    relative = ls[i].style in ("rel", "dot")
    if fmt != ls[m.base].fmt:
        raise Fail(f"child's backing format is {fmt!r}, the base is {ls[m.base].fmt}")
    if relative == name.startswith("/") or (relative and ":" in name.split("/")[0]):
        raise Fail(f"child's backing name was {old!r}, is {name!r}: the style is not kept")
    if relative:
        leads = os.path.join(os.path.dirname(m.chain.path(i)), name)
        if not os.path.samefile(leads, m.chain.path(m.base)):
            raise Fail(f"child's backing name {name!r} does not lead to the base")
    keep = [e for e in m.exts[i] if e[0] != oracle.EXT_FORMAT]
    now = [e for e in Qcow2(m.chain.path(i)).extensions() if e[0] != oracle.EXT_FORMAT]
    if sorted(keep) != sorted(now):
        raise Fail(f"child's header extensions were {keep}, are {now}")
    rc, found, text = oracle.check(ls[i].path, cwd=m.chain.folder)
    if rc not in (0, m.check_rc[i]):
        raise Fail(f"child is not clean: rc {rc} {found}\n{text}")


def check_emptied(m, i):
    q = Qcow2(m.chain.path(i))
    if q.mapped():
        raise Fail(f"emptied layer {i + 1} still maps {q.mapped()} clusters")
    rc, found, text = oracle.check(m.chain.layers[i].path, cwd=m.chain.folder)
    if rc != 0:
        raise Fail(f"emptied layer {i + 1} is not clean: rc {rc} {found}\n{text}")


def check_others(m):
    """Files outside the merge are the same, byte for byte; merged ones as was asked."""
    ls = m.chain.layers
    for i in range(m.n):
        path = m.chain.path(i)
        inside = m.base < i <= m.top
        if inside and m.overlays == "quarantine":
            if os.path.lexists(path) or oracle.digest(path + ".merged") != m.digest[path]:
                raise Fail(f"layer {i + 1} was to be renamed to {path}.merged, and no more")
            continue
        exists = os.path.exists(path)
        if inside and m.overlays == "delete":
            if exists:
                raise Fail(f"layer {i + 1} was to be deleted")
            continue
        if not exists:
            raise Fail(f"layer {i + 1} is gone")
        emptied = inside and (m.reclaim or (m.overlays == "empty" and i == m.top))
        if emptied:
            check_emptied(m, i)
        if i == m.base or i == m.top + 1 or emptied:
            continue
        if oracle.digest(path) != m.digest[path]:
            raise Fail(f"layer {i + 1} ({ls[i].path}) changed")


def check_all(m, upper):
    active = m.chain.layers[-1]
    if os.path.exists(m.chain.path(m.n - 1)):
        diff = oracle.first_difference(m.view[m.n - 1],
                                       oracle.view(active.path, "qcow2", m.chain.folder))
        if diff:
            raise Fail(f"the active layer reads otherwise, before and after: {diff}")
    check_base(m, upper)
    check_snapshots(m)
    if m.top < m.n - 1:
        check_child(m)
    check_others(m)


def again(m, qmeld, extra, story):
    """The same command once more is a success, and nobody reads anything else."""
    r = oracle.run(command(m, qmeld, extra), m.chain.folder, env=environment(m))
    story.append(f"again: rc {r.rc}")
    if r.rc != 0:
        raise Fail(f"the same merge again: rc {r.rc}: {r.err}")
    check_all(m, None)


def finish_or_take_back(m, qmeld, rng, upper, story):
    """A merge that is held: final it is what it was; taken back, so is all that was before."""
    cwd, name = m.chain.folder, m.chain.layers[-1].path
    if rng.random() < 0.4:
        r = oracle.run([qmeld, "finalize", name], cwd)
        story.append(f"finalize: rc {r.rc}: {r.err.strip()}")
        if r.rc != 0:
            raise Fail(f"finalize: rc {r.rc}: {r.err}")
        check_all(m, upper)
    else:
        r = oracle.run([qmeld, "revert", name], cwd)
        story.append(f"revert: rc {r.rc}: {r.err.strip()}")
        if r.rc != 0:
            raise Fail(f"revert: rc {r.rc}: {r.err}")
        child = m.chain.path(m.top + 1) if m.top < m.n - 1 else None
        for path in m.chain.paths():
            if path != child and oracle.digest(path) != m.digest[path]:
                raise Fail(f"after revert {path} is not what it was")
        if child and Qcow2(child).backing() != m.backing[m.top + 1]:
            raise Fail(f"after revert the child stands on {Qcow2(child).backing()}, "
                       f"before: {m.backing[m.top + 1]}")
        diff = oracle.first_difference(m.view[m.n - 1], oracle.view(name, "qcow2", cwd))
        if diff:
            raise Fail(f"after revert the active layer reads otherwise: {diff}")
    left = [f for f in os.listdir(os.path.dirname(m.chain.path(m.base))) if ".qmeld" in f]
    if left:
        raise Fail(f"left behind: {left}")


def one_layer(chain, qmeld):
    """Nothing to merge is a success that touches nothing."""
    before, only = oracle.digests(chain.paths()), chain.layers[0]
    compare_map(qmeld, only.path, only.fmt, chain.folder)
    r = oracle.run([qmeld, "commit", only.path], chain.folder)
    if r.rc != 0 or oracle.digests(chain.paths()) != before:
        raise Fail(f"a chain of one layer: rc {r.rc}, or it changed: {r.err}")
    return "merged"


def merge_and_check(rng, chain, qmeld, story):
    if len(chain.layers) == 1:
        return one_layer(chain, qmeld)
    m = pick_merge(rng, chain)
    look(rng, m, qmeld)
    try:
        take_stock(m)
    except Fail as e:  # 512-byte clusters, compressed twice: QEMU 7.2 cannot read them back
        story.append(str(e))
        return "qemu-img cannot read what it wrote"
    extra = []
    if any(x.no_format for x in chain.layers):
        r = oracle.run(command(m, qmeld), chain.folder)
        unchanged(m, "a missing backing format was met")
        if r.rc != 2 or "--backing-format" not in r.err:
            raise Fail(f"a missing backing format: rc {r.rc}, wanted 2: {r.err}")
        index = next(x.index for x in chain.layers if x.no_format)
        extra = ["--backing-format", chain.layers[index - 1].fmt]
    upper = None
    if m.bits and chain.plain_names and not chain.layers[m.base].dirty:
        upper = qemu_bits(m)
    story.append(" ".join(command(m, qmeld, extra)[1:]))
    r = oracle.run(command(m, qmeld, extra), chain.folder, env=environment(m))
    story.append(f"rc {r.rc}: {r.err.strip()}")
    if r.rc == 2:
        unchanged(m, "refused")
        reasons = known_reasons(m)
        if "--direction=up" in m.merge_args and "(--direction=down)" in r.err:
            reasons.append("cannot go up")
        if not reasons:
            raise Fail(f"refused without a known reason: {r.err}")
        return reasons[0]
    if r.rc != 0:
        raise Fail(f"rc {r.rc}: {r.err}")
    check_all(m, upper)
    last = m.n - 1 if os.path.exists(chain.path(m.n - 1)) else m.base
    compare_map(qmeld, chain.layers[last].path, chain.layers[last].fmt, chain.folder)
    if chain.layers[m.base].fmt == "qcow2":
        compare_check(qmeld, chain.layers[m.base].path, chain.folder)
    # emptied over middle layers, top stands on the base: numbers mean other layers then
    if m.top == m.n - 1 and m.overlays == "keep" and not m.reclaim and rng.random() < 0.2:
        again(m, qmeld, extra, story)
    if m.back and m.overlays == "keep" and os.path.exists(
            os.path.join(os.path.dirname(chain.path(m.base)),
                         f".{os.path.basename(chain.path(m.base))}.qmeld")):
        finish_or_take_back(m, qmeld, rng, upper, story)
    return "merged"
