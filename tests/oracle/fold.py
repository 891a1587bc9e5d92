#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Random folds: the oldest increments of a chain go into its full, and nobody reads anything else.

Per case: the commit with the base and top that the fold comes to is done first, and the files put back; the fold
must leave the same files, byte for byte.  qemu-img says that each increment that stays, and the full, read
right.  A third of the cases are killed, and gone on with by the same words; in some of those a backup has added
an increment meanwhile, and in some it was another merge that was killed, which a fold has to refuse by name.
Options as chains.py has them.
"""

import json
import os
import shutil

import chain_check
import chain_gen
import chains
import oracle
from oracle import Fail


def pick_fold(rng, chain):
    m = chain_check.Merge(chain)
    m.top = rng.randrange(1, m.n)
    m.keep, m.bitmaps = m.n - 1 - m.top, "merge"
    m.overlays = rng.choice(["delete", "delete", "quarantine", "keep", "empty"])
    m.args = [] if m.overlays == "delete" and rng.random() < 0.5 else [f"--overlays={m.overlays}"]
    m.reclaim = m.overlays != "quarantine" and rng.random() < 0.2
    m.back = ""
    if m.reclaim:
        m.args.append("--reclaim")
    elif m.overlays != "keep" and rng.random() < 0.2:  # kept, it would be held: chains.py has those
        m.back = "--undo" if chain.layers[0].fmt == "raw" else rng.choice(["--atomic", "--undo"])
        m.args.append(m.back)
    for option in ("--skip-equal", "--detect-zeroes", "--verify"):
        if rng.random() < 0.2:
            m.args.append(option)
    m.args.append("--allow-path=/")  # layers lie in folders beside each other
    m.inode = os.stat(chain.path(0)).st_ino
    m.batch, m.share = rng.choice([4096, 65536, 1 << 20, 512 << 20]), None
    if any(x.no_format for x in chain.layers):
        index = next(x.index for x in chain.layers if x.no_format)
        m.args += ["--backing-format", chain.layers[index - 1].fmt]
    return m


def files_of(chain):
    found = {}
    for folder, _, names in os.walk(chain.folder):
        found |= {os.path.relpath(os.path.join(folder, n), chain.folder): oracle.digest(os.path.join(folder, n))
                  for n in names if n != ".view.raw"}
    return found


def put_back(chain, saved):
    """The chain's folder keeps its name, as layers may have it in theirs."""
    shutil.rmtree(chain.folder)
    shutil.copytree(saved, chain.folder, symlinks=True)
    chain.m.inode = os.stat(chain.path(0)).st_ino


def say(chain, argv, story, env=None):
    r = oracle.run(argv, chain.folder, env=chain_check.environment(chain.m) | (env or {}))
    story.append(f"{' '.join(argv[1:])}: rc {r.rc}: {r.err.strip()}")
    return r


def same_views(chain, views, when):
    for i, was in views.items():
        layer = chain.layers[i]
        diff = oracle.first_difference(was, oracle.view(layer.path, layer.fmt, chain.folder))
        if diff:
            raise Fail(f"{when}, increment {i} reads otherwise: {diff}")


def killer(rng, chain):
    place = os.path.join(os.path.dirname(chain.folder), f"shim{os.getpid()}")  # each process its own
    os.makedirs(place, exist_ok=True)
    if not os.path.exists(os.path.join(place, "killat.so")):
        oracle.build_shim("killat", place)
    return {"LD_PRELOAD": os.path.join(place, "killat.so"), "KILL_AT": str(rng.randrange(1, 40)),
            "ASAN_OPTIONS": "verify_asan_link_order=0"}


def journal_of(chain):
    base = chain.path(0)
    path = os.path.join(os.path.dirname(base), f".{os.path.basename(base)}.qmeld")
    if not os.path.exists(path):
        return None
    with open(path, "rb") as f:  # its head is written last: without, it never became one
        return path if f.read(14) == b"qmeld journal\n" else None


def add_increment(chain, rng, story):
    """A backup goes on, whatever became of the fold."""
    newest = chain.layers[-1]
    layer = chain_gen.Layer(len(chain.layers), "newest.qcow2", "qcow2")
    oracle.must(["qemu-img", "create", "-q", "-f", "qcow2", "-F", newest.fmt, "-b", chain.path(newest.index),
                 layer.path], chain.folder)
    layer.size = newest.size // 512 * 512
    if layer.size >= 512:
        oracle.qemu_io(layer.path, [f"write -P 77 {rng.randrange(layer.size // 512) * 512} 512"], cwd=chain.folder)
    chain.layers.append(layer)
    story.append("a new increment")


def other_merge(rng, chain, m, commit, views, qmeld, story):
    """What was killed is no fold, though it has the very same words: a fold keeps its hands off, and names it."""
    say(chain, commit, story, killer(rng, chain))
    if not journal_of(chain) or not os.path.exists(chain.path(len(chain.layers) - 1)):
        return
    same_views(chain, views, "after the kill")
    before = files_of(chain)
    r = say(chain, [qmeld, "fold", f"--keep={m.keep}", *m.args, chain.layers[-1].path], story)
    if r.rc != 2 or "unfinished" not in r.err or files_of(chain) != before:
        raise Fail(f"a fold met another merge that is unfinished: rc {r.rc}: {r.err}")
    chain.tags.add("refused-other")
    r = say(chain, commit, story)
    if r.rc != 0:
        raise Fail(f"the merge could not be finished: {r.err}")


def fold_killed(rng, chain, m, fold, views, qmeld, story):
    """-> the views that are to be there afterwards, by layer; None: as if it had not been killed."""
    r = say(chain, fold, story, killer(rng, chain))
    if r.rc == 0 or not os.path.exists(chain.path(len(chain.layers) - 1)):
        return None
    chain.tags.add("killed")
    same_views(chain, views, "after the kill")
    if not journal_of(chain) or m.keep == 0 or rng.random() < 0.5:
        return None
    more = say(chain, [qmeld, "fold", f"--keep={m.keep + 1}", *m.args, chain.layers[-1].path], story)
    if journal_of(chain) and (more.rc != 2 or "no more than" not in more.err):
        raise Fail(f"asked to keep more than is left: rc {more.rc}: {more.err}")
    add_increment(chain, rng, story)
    chain.tags.add("grown")
    newest = chain.layers[-1]
    kept = {i: views[i] for i in range(m.top + 2, newest.index)}
    kept[newest.index] = oracle.view(newest.path, "qcow2", chain.folder)
    r = say(chain, [qmeld, "fold", f"--keep={m.keep}", *m.args, newest.path], story)
    if r.rc == 2 and chain.layers[m.top + 1].snapshots:
        return {}  # its first turn is done; the second may not touch internal snapshots
    if r.rc != 0:
        raise Fail(f"the grown chain: rc {r.rc}: {r.err}")
    depth = len(json.loads(oracle.must(["qemu-img", "info", "--backing-chain", "--output=json", newest.path],
                                       chain.folder).out))
    if depth != m.keep + 1:
        raise Fail(f"{depth - 1} increments are left, {m.keep} were to be kept")
    return kept


def check_grown(chain, kept):
    same_views(chain, kept, "grown and folded")
    rc, found, text = oracle.check(chain.layers[-1].path, cwd=chain.folder)
    if rc != 0 or journal_of(chain):
        raise Fail(f"grown and folded: {found} {text}, journal {journal_of(chain)}")


def fold_and_check(rng, chain, qmeld, story):
    if len(chain.layers) < 2:
        return "one layer"
    m = chain.m = pick_fold(rng, chain)
    try:
        chain_check.take_stock(m)
        views = {i: oracle.view(chain.layers[i].path, chain.layers[i].fmt, chain.folder)
                 for i in range(m.top + 1, m.n)}
    except Fail as e:
        story.append(str(e))
        return "qemu-img cannot read what it wrote"
    saved = chain.folder + ".saved"
    shutil.copytree(chain.folder, saved, symlinks=True)
    try:
        commit = [qmeld, "commit", f"--overlays={m.overlays}", *m.args, "--base", chain.layers[0].path,
                  "--top", chain.layers[m.top].path, chain.layers[-1].path]
        fold = [qmeld, "fold", f"--keep={m.keep}", *m.args, chain.layers[-1].path]
        r = say(chain, commit, story)
        want = files_of(chain)
        put_back(chain, saved)
        if r.rc == 2:
            reasons = chain_check.known_reasons(m)
            if not reasons or say(chain, fold, story).rc != 2 or files_of(chain) != want:
                raise Fail(f"refused as a commit ({reasons}), and as a fold? {r.err}")
            return reasons[0]
        if rng.random() < 0.15:
            other_merge(rng, chain, m, commit, views, qmeld, story)
            put_back(chain, saved)
        kept = fold_killed(rng, chain, m, fold, views, qmeld, story) if rng.random() < 0.4 else None
        if kept is not None:
            check_grown(chain, kept)
            return "merged"
        clean = not journal_of(chain) and files_of(chain) == files_of_folder(saved)
        there, journal = os.path.exists(chain.path(len(chain.layers) - 1)), journal_of(chain)
        if not there and journal:  # whoever is merged away himself does not lead to a journal elsewhere
            fold = [qmeld, "resume", journal]
        r = say(chain, fold, story) if there or journal else None
        if r and r.rc != 0:
            raise Fail(f"rc {r.rc}: {r.err}")
        if clean and "killed" not in chain.tags and files_of(chain) != want:
            raise Fail("the fold left other files than the commit that it is")
        if set(files_of(chain)) != set(want):
            raise Fail(f"files {sorted(set(files_of(chain)) ^ set(want))} are there, or not, after the fold only")
        chain_check.check_all(m, None)
        same_views(chain, views if m.keep else {}, "folded")
        if m.keep:
            done = files_of(chain)
            r = say(chain, [*fold, "--output=json"], story)
            if r.rc != 0 or json.loads(r.out)["result"] != "nothing-to-do" or files_of(chain) != done:
                raise Fail(f"once more: rc {r.rc}: {r.out} {r.err}")
    finally:
        shutil.rmtree(saved)
    return "merged"


def files_of_folder(folder):
    chain = chain_gen.Chain(folder)
    return files_of(chain)


if __name__ == "__main__":
    chains.main(fold_and_check)
