#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Random rebases: the image reads the same, is clean, stands where it was to stand.

Per case: a chain, and as new backing file one of its own layers, another chain, a copy of what the old one
reads with some bytes changed, or none.  Before: the same dry, to compare its numbers.  qemu-img says what
the image reads, before and after; a third of the cases are killed somewhere and gone on with, by the
same command or by resume.  Options as chains.py has them.
"""

import json
import os

import chain_gen
import chains
import oracle
from oracle import Fail, Qcow2

import compare


def add_stranger(rng, chain, story):
    """Another chain, in a folder beside."""
    folder = os.path.join(chain.folder, "other")
    os.mkdir(folder)
    other = chain_gen.random_chain(rng, folder, chain.patterns, story)
    if any(x.no_format for x in other.layers) or "name-file-rel" in other.tags:  # those count from here
        return None
    top = other.layers[-1]
    return os.path.join(folder, top.path), top.fmt


def add_neighbour(rng, chain, below, story):
    """What the old backing file reads, but for some bytes; of another size at times."""
    fmt = rng.choice(["raw", "qcow2"])
    path = os.path.join(chain.folder, "neighbour." + fmt)
    raw = os.path.join(chain.folder, "neighbour.tmp")
    oracle.must(["qemu-img", "convert", "-f", below.fmt, "-O", "raw", below.path, raw], chain.folder)
    if os.path.getsize(raw):
        compare.disturb(rng, raw)
        if rng.random() < 0.4:
            os.truncate(raw, rng.randrange(512, 2 * os.path.getsize(raw) + 512))
    oracle.must(["qemu-img", "convert", "-f", "raw", "-O", fmt, raw, path], chain.folder)
    os.unlink(raw)
    story.append(f"neighbour: {fmt}, {os.path.getsize(path)} bytes")
    return path, fmt


def pick_target(rng, chain, story):
    """-> (path, format), or None: no backing file."""
    kind = rng.choice(["none", "layer", "layer", "stranger", "neighbour"])
    if len(chain.layers) == 1 and kind in ("layer", "neighbour"):
        kind = "stranger"
    if kind == "layer":
        layer = rng.choice(chain.layers[:-1])
        if not any(x.no_format for x in chain.layers[:layer.index + 1]):
            chain.tags.add("onto-layer")
            return chain.path(layer.index), layer.fmt
        kind = "none"
    if kind == "stranger":
        found = add_stranger(rng, chain, story)
        if found:
            chain.tags.add("onto-stranger")
            return found
        kind = "none"
    chain.tags.add("onto-" + kind)
    return add_neighbour(rng, chain, chain.layers[-2], story) if kind == "neighbour" else None


def pick_words(rng, chain, target):
    """-> (arguments, the name that must be stored)"""
    if target is None:
        return (["--standalone"] if rng.random() < 0.5 else ["-b", ""]), None
    path, fmt = target
    folder = os.path.dirname(chain.path(len(chain.layers) - 1))
    name = rng.choice([os.path.relpath(path, folder), path, "./" + os.path.relpath(path, folder)])
    if ":" in name.split("/")[0]:
        name = path
    return ["-b", name, "-F", fmt], name


def all_files(chain):
    found = []
    for folder, _, names in os.walk(chain.folder):
        found += [os.path.join(folder, n) for n in names]
    return found


def features(path):
    q = Qcow2(path)
    keep = {k: d for k, d in q.extensions() if k not in (oracle.EXT_FORMAT, oracle.EXT_BITMAPS)}
    return keep, q.bitmaps()


def go(rng, chain, argv, story):
    """Done, or killed and gone on with.  -> the report"""
    cwd, env = chain.folder, {"QMELD_TEST_BATCH": str(rng.choice([4096, 65536, 1 << 20, 512 << 20]))}
    image = chain.layers[-1].path
    if rng.random() < 0.33:
        kill = dict(env, LD_PRELOAD=chain.shim, KILL_AT=str(rng.randrange(1, 30)),
                    ASAN_OPTIONS="verify_asan_link_order=0")
        r = oracle.run(argv, cwd, env=kill)
        story.append(f"killed: rc {r.rc}")
        if r.rc == 2:  # refused before the killer's turn came
            return r
        if r.rc not in (0, -9):
            raise Fail(f"under the killer: rc {r.rc}: {r.err}")
        chain.tags.add("killed" if r.rc else "not-killed")
        same_view(chain, "after the kill")
        if r.rc and rng.random() < 0.5 and journal_of(chain):
            r = oracle.run([argv[0], "resume", image], cwd, env=env)
            if r.rc != 0 and "no unfinished" not in r.err:  # a journal that never became one
                raise Fail(f"resume: rc {r.rc}: {r.err}")
            chain.tags.add("resumed" if r.rc == 0 else "killed-early")
    r = oracle.run([*argv, "--output=json"], cwd, env=env)
    story.append(f"rc {r.rc}: {r.err.strip()}")
    return r


def journal_of(chain):
    path = chain.path(len(chain.layers) - 1)
    journal = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.qmeld")
    return os.path.exists(journal) and os.path.getsize(journal)


def same_view(chain, when):
    diff = oracle.first_difference(chain.before, oracle.view(chain.layers[-1].path, "qcow2", chain.folder))
    if diff:
        raise Fail(f"{when} the image reads otherwise: {diff}")


def check_after(chain, digests, known, stored, fmt):
    image = chain.path(len(chain.layers) - 1)
    same_view(chain, "afterwards")
    rc, found, text = oracle.check(image, cwd=chain.folder)
    if rc != 0:
        raise Fail(f"the image is not clean: {found} {text}")
    if Qcow2(image).backing() != (stored, fmt):
        raise Fail(f"it stands on {Qcow2(image).backing()}, not on {(stored, fmt)}")
    if features(image) != known:
        raise Fail(f"extensions or bitmaps changed: {features(image)} from {known}")
    for path in all_files(chain):
        if path != image and os.path.basename(path) != ".view.raw" and digests.get(path) != oracle.digest(path):
            raise Fail(f"{path} was changed, or left behind")


def rebase_and_check(rng, chain, qmeld, story):
    top, image = chain.layers[-1], chain.path(len(chain.layers) - 1)
    if top.fmt != "qcow2":
        return "raw"
    chain.patterns = [os.path.join(os.path.dirname(chain.folder), f"p{i}") for i in range(chain_gen.N_PATTERNS)]
    place = os.path.join(os.path.dirname(chain.folder), f"shim{os.getpid()}")  # each process its own
    os.makedirs(place, exist_ok=True)
    chain.shim = os.path.join(place, "killat.so")
    if not os.path.exists(chain.shim):
        oracle.build_shim("killat", place)
    try:
        chain.before = oracle.view(top.path, "qcow2", chain.folder)
    except Fail:
        return "qemu-img cannot read what it wrote"
    target = pick_target(rng, chain, story)
    words, stored = pick_words(rng, chain, target)
    extra = []
    if any(x.no_format for x in chain.layers):
        index = next(x.index for x in chain.layers if x.no_format)
        extra = ["--backing-format", chain.layers[index - 1].fmt]
    verify = rng.random() < 0.3
    argv = [qmeld, "rebase", *words, *extra, *(["--verify"] if verify else []), top.path]
    story.append(" ".join(argv[1:]))
    digests, known = oracle.digests(all_files(chain)), features(image)
    dry = oracle.run([*argv, "--dry-run", "--output=json"], chain.folder)
    if oracle.digests(all_files(chain)) != digests:
        raise Fail("the dry run changed something")
    r = go(rng, chain, argv, story)
    if r.rc == 2:
        if oracle.digests(all_files(chain)) != digests:
            raise Fail(f"refused, and something changed: {r.err}")
        if dry.rc != 2:
            raise Fail(f"refused, but not dry: {r.err}")
        return known_reason(top, stored, r.err)
    if r.rc != 0:
        raise Fail(f"rc {r.rc}: {r.err}")
    check_after(chain, digests, known, stored, target[1] if target else None)
    told, planned = json.loads(r.out), json.loads(dry.out)
    if told["verified"] != verify or (told["bytes-copied"] > 0 and verify and not told["bytes-verified"]):
        raise Fail(f"--verify {verify}, and verified {told['verified']}, {told['bytes-verified']} bytes")
    if "killed" not in chain.tags and "not-killed" not in chain.tags:
        for key in ("bytes-copied", "bytes-compared", "bytes-shared", "new-length"):
            if told[key] != planned[key]:
                raise Fail(f"{key}: {told[key]}, and dry {planned[key]}")
    r = oracle.run([*argv, "--output=json"], chain.folder)  # once more: nothing is copied
    if r.rc != 0 or json.loads(r.out)["bytes-copied"]:
        raise Fail(f"the same again: rc {r.rc}: {r.err} {r.out}")
    check_after(chain, digests, known, stored, target[1] if target else None)
    return "merged"


def known_reason(top, stored, text):
    if top.snapshots:
        return "internal snapshots"
    if stored and "header" in text and (int(top.opts["cluster_size"]) <= 1024):
        return "the header cluster may be full"
    raise Fail(f"refused without a known reason: {text}")


if __name__ == "__main__":
    chains.main(rebase_and_check)
