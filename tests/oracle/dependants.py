#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Random trees: who else reads through a merge is found, refused for, and with --protect reads the same.

Per case: a chain, siblings on its layers and on each other, a merge.  Who is hurt is worked out here from the tree
alone, and must be what a refusal names.  Then the same with --protect, a half of them killed somewhere and gone
on with, by the same command or by resume: after each kill, and in the end, every image and every internal
snapshot of the tree reads what it read, by qemu-img, and is clean in the end.  Options as chains.py has them.
"""

import json
import os

import chain_check
import chain_gen
import chains
import oracle
from oracle import Fail


class Tree:
    def __init__(self, chain):
        self.chain, self.extra = chain, []  # (layer, what it stands on: a number of the chain, or another of these)

    def path(self, layer):
        return os.path.join(self.chain.folder, layer.path)

    def root(self, stands_on):
        """The layer of the chain that one reaches first."""
        while not isinstance(stands_on, int):
            stands_on = next(on for layer, on in self.extra if layer is stands_on)
        return stands_on


def grow(rng, chain, story):
    tree = Tree(chain)
    for i in range(rng.choice([1, 1, 2, 3, 5])):
        side = chain_gen.Chain(chain.folder)
        side.easy, side.alike = False, chain.alike
        on = rng.randrange(len(chain.layers))
        if tree.extra and rng.random() < 0.3:
            on = rng.choice(tree.extra)[0]
        below = chain.layers[on] if isinstance(on, int) else on
        side.layers = [below] * (100 * (i + 1))  # so that no name comes twice
        chain_gen.add_layer(rng, side, chain.patterns, story, rng.random() < 0.5)
        layer = side.layers[-1]
        if oracle.check(tree.path(layer))[0] not in (0, 3) or oracle.Qcow2(tree.path(layer)).incompat & 2:
            os.unlink(tree.path(layer))
            continue
        story.append(f"{layer.path} stands on {below.path}")
        tree.extra.append((layer, on))
    return tree


reach = {}  # of snapshots that were there before their image became longer: what their L1 table can tell of


def span(layer):
    size = layer.opts["cluster_size"]
    return size * (size // (16 if layer.opts.get("extended_l2") == "on" else 8))


def view_of(layer, folder, name):
    return oracle.view(layer.path, "qcow2", folder, name)[:reach.get((layer.path, name))]


def add_snapshots(rng, chain, layers, story):
    """Of overlays, with writes behind them, and of some that are longer afterwards."""
    for layer in layers:
        if layer.fmt != "qcow2" or layer.index == 0 or layer.dirty or layer.no_format or not layer.size \
                or layer.opts.get("refcount_bits", 16) < 4 or rng.random() > 0.35:
            continue
        for i in range(rng.choice([1, 1, 2, 3])):
            if oracle.run(["qemu-img", "snapshot", "-c", f"more{i}", layer.path], chain.folder).rc != 0:
                oracle.run(["qemu-img", "check", "-q", "-r", "leaks", layer.path], chain.folder)  # of that failure
                break
            layer.snapshots.append(f"more{i}")
            reach[layer.path, f"more{i}"] = layer.size + -layer.size % span(layer)
            if layer.opts["compat"] == "1.1" and rng.random() < 0.15 and not layer.has_bitmaps:
                layer.size += rng.randrange(1, 200) * 512
                oracle.must(["qemu-img", "resize", "-q", "-f", "qcow2", layer.path, str(layer.size)], chain.folder)
            cmds = chain_gen.pick_writes(rng, layer, chain.patterns, chain.alike)
            oracle.qemu_io(os.path.join(chain.folder, layer.path), cmds, cwd=chain.folder, strict=False)
        story.append(f"{layer.path}: snapshots {layer.snapshots}")


def hurt_layers(m):
    if m.overlays in ("delete", "quarantine"):
        return set(range(m.base, m.top + 1))
    return set(range(m.base, m.top))


def expected(tree, m):
    """{(file, kind, layer)} of images."""
    hurt = hurt_layers(m)
    out = set()
    for layer, on in tree.extra:
        root = tree.root(on)
        if root in hurt:
            kind = "overlay" if isinstance(on, int) else "deeper"
            out.add((os.path.realpath(tree.path(layer)), kind, root + 1))
    return out


def told(tree, text):
    found = json.loads(text)["dependants"]
    return {(os.path.realpath(os.path.join(tree.chain.folder, d["filename"])), d["kind"], d["layer"])
            for d in found if d["kind"] != "snapshot"}, {d["fate"] for d in found}


def all_views(tree, m):
    """What everybody reads whom the merge must not touch: {(layer, snapshot): bytes}."""
    chain, views = tree.chain, {}
    watched = [x for x, _ in tree.extra] + chain.layers[:m.base] + chain.layers[m.top + 1:]
    if m.overlays in ("keep", "empty"):
        watched.append(chain.layers[m.top])
    for layer in watched:
        views[layer.path, None] = oracle.view(layer.path, layer.fmt, chain.folder)
        for name in layer.snapshots if layer.fmt == "qcow2" else []:
            views[layer.path, name] = view_of(layer, chain.folder, name)
    for layer in chain.layers[m.base + 1:m.top] if m.overlays in ("keep", "empty") else []:
        for name in layer.snapshots:
            chain.tags.add("own-snapshots")
            views[layer.path, name] = view_of(layer, chain.folder, name)
    return views


def compare_views(tree, m, before, when):
    for (path, snapshot), was in before.items():
        layer = next(x for x in [*tree.chain.layers, *(x for x, _ in tree.extra)] if x.path == path)
        now = view_of(layer, tree.chain.folder, snapshot) if snapshot else \
            oracle.view(path, layer.fmt, tree.chain.folder)
        diff = oracle.first_difference(was, now)
        if diff:
            raise Fail(f"{when}: {path}, snapshot {snapshot}, reads otherwise: {diff}")


def reasons(tree, m):
    """Why --protect may be refused."""
    own = [x for x in tree.chain.layers[m.base + 1:m.top + 1] if x.snapshots]
    out = [x for x in chain_check.known_reasons(m) if x != "overlay has internal snapshots"]
    if own and (m.overlays in ("delete", "quarantine") or "--direction=auto" in m.merge_args or m.reclaim):
        out.append("internal snapshots go with their layer")
    hurt = hurt_layers(m)
    for layer, on in [*tree.extra, *((x, m.base) for x in own)]:
        if isinstance(on, int) and on in hurt | {m.base}:
            if layer.snapshots and layer.opts.get("extended_l2") == "on":
                out.append("an internal snapshot shares a part of a cluster")
            if layer not in own and layer.opts["cluster_size"] <= 1024 and on > m.base:
                out.append("a sibling's header cluster may be full")
    return out


def go(rng, tree, m, argv, before, story):
    chain, env = tree.chain, chain_check.environment(m)
    killed = 0
    while killed < 3 and rng.random() < 0.5:
        kill = dict(env, LD_PRELOAD=chain.shim, KILL_AT=str(rng.randrange(1, rng.choice([12, 40, 120]))),
                    ASAN_OPTIONS="verify_asan_link_order=0")
        r = oracle.run(argv, chain.folder, env=kill)
        story.append(f"killed: rc {r.rc}")
        if r.rc != -9:
            if r.rc not in (0, 2):
                raise Fail(f"under the killer: rc {r.rc}: {r.err}")
            return r
        killed += 1
        chain.tags.add("killed")
        if m.overlays in ("delete", "quarantine") and not os.path.exists(chain.path(len(chain.layers) - 1)):
            r = oracle.run([argv[0], "recover", "."], chain.folder, env=env)  # it is at its end
            if r.rc != 0:
                raise Fail(f"recover: rc {r.rc}: {r.err}")
            return oracle.Result(0, json.dumps({"dependants": [], "result": "done"}), "")
        compare_views(tree, m, before, f"after kill {killed}")
    if killed and rng.random() < 0.4:
        r = oracle.run([argv[0], "recover", "."], chain.folder, env=env)
        story.append(f"recover: rc {r.rc}: {r.err.strip()}")
        if r.rc == 0 and "nothing" not in r.out:  # all is done, and names may be gone
            chain.tags.add("recovered")
            return oracle.Result(0, json.dumps({"dependants": [], "result": "done"}), "")
    r = oracle.run(argv, chain.folder, env=env)
    story.append(f"rc {r.rc}: {r.err.strip()}")
    return r


def prepare(chain):
    chain.patterns = [os.path.join(os.path.dirname(chain.folder), f"p{i}") for i in range(chain_gen.N_PATTERNS)]
    place = os.path.join(os.path.dirname(chain.folder), f"shim{os.getpid()}")
    os.makedirs(place, exist_ok=True)
    chain.shim = os.path.join(place, "killat.so")
    if not os.path.exists(chain.shim):
        oracle.build_shim("killat", place)


def check_refusal(tree, m, qmeld, want):
    """Without --protect it is refused for exactly these, and nothing is touched."""
    chain = tree.chain
    files = [tree.path(x) for x, _ in tree.extra] + chain.paths()
    digests = oracle.digests(files)
    argv = chain_check.command(m, qmeld, m.extra + ["--output=json"])
    r = oracle.run(argv, chain.folder)
    if r.rc != 2 or oracle.digests(files) != digests:
        raise Fail(f"others are hurt, and rc {r.rc}: {r.err}")
    found, _ = told(tree, r.out)
    if found != want:
        raise Fail(f"found {sorted(found)}, wanted {sorted(want)}: {r.err}")


def check_end(tree, m, r, before, want):
    chain = tree.chain
    compare_views(tree, m, before, "in the end")
    for layer, _ in tree.extra:
        rc, found, text = oracle.check(tree.path(layer), cwd=chain.folder)
        if rc != 0:
            raise Fail(f"{layer.path} is not clean: {found} {text}")
    found, fates = told(tree, r.out)
    direct = {x for x in want if x[1] == "overlay"}
    if not direct <= found and not json.loads(r.out)["result"] == "already-merged" and "killed" not in chain.tags:
        raise Fail(f"the report tells of {found}, wanted {want}")
    if fates - {"protected"}:
        raise Fail(f"fates {fates}")


def protect_and_check(rng, chain, qmeld, story):
    if len(chain.layers) < 2:
        return "raw"
    prepare(chain)
    reach.clear()
    add_snapshots(rng, chain, chain.layers, story)
    tree = grow(rng, chain, story)
    add_snapshots(rng, chain, [x for x, _ in tree.extra], story)
    m = chain_check.pick_merge(rng, chain)
    m.merge_args = [x.replace("--direction=up", "--direction=auto") for x in m.merge_args]
    m.extra = ["--scan", ".", "--allow-path", "."]  # siblings may lie where no layer does
    if any(x.no_format for x in chain.layers):
        index = next(x.index for x in chain.layers if x.no_format)
        m.extra += ["--backing-format", chain.layers[index - 1].fmt]
    story.append(" ".join(chain_check.command(m, qmeld)))
    try:
        before = all_views(tree, m)
        new = oracle.view(chain.layers[m.top].path, "qcow2", chain.folder)
    except Fail:
        return "qemu-img cannot read what it wrote"
    want, why = expected(tree, m), reasons(tree, m)
    dry = oracle.run([qmeld, "plan", *m.merge_args, *m.extra, "--protect", "--output=json", chain.layers[-1].path],
                     chain.folder)
    if json.loads(dry.out).get("result") == "already-merged":  # then only those are hurt whose layer goes
        going = m.overlays in ("delete", "quarantine") or m.reclaim
        if json.loads(dry.out)["direction"] == "down":
            want = {x for x in want if x[2] != m.base + 1 and going}
        chain.tags.add("already")
    if want and not why:
        found, _ = told(tree, dry.out)
        if found != want:
            raise Fail(f"plan tells of {sorted(found)}, wanted {sorted(want)}: {dry.err}")
        check_refusal(tree, m, qmeld, want)
        chain.tags.add(f"hurt-{m.overlays}")
    argv = chain_check.command(m, qmeld, m.extra + ["--protect", "--output=json"])
    r = go(rng, tree, m, argv, before, story)
    if r.rc == 2 and why:
        compare_views(tree, m, before, "after a refusal")
        return "; ".join(sorted(set(why)))
    if r.rc != 0:
        raise Fail(f"rc {r.rc}: {r.err}")
    if dry.rc != 0:
        raise Fail(f"plan refused it: {dry.err}")
    check_end(tree, m, r, before, want)
    base = oracle.view(chain.layers[m.base].path, chain.layers[m.base].fmt, chain.folder)
    if base[:len(new)] != new:
        raise Fail("the base does not read as top did")
    return "merged"


if __name__ == "__main__":
    chains.main(protect_and_check)
