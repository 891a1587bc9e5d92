#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Chains whose layers keep their data in external data files: merged, rebased, flattened, mapped.

Per seed a chain of two to four qcow2 layers, the base with a data file (raw or not), others with and without one.
qemu-img makes it and says what each layer reads, before and after.  Then one of commit (with options), rebase and flatten.
A raw data file must be the guest's disk byte for byte afterwards, as it was before; a plan must be right about lengths; what is
refused must leave every file as it was.
"""

import argparse
import json
import os
import random
import shutil
import sys

import oracle
from oracle import Fail, Qcow2

EXT_DATA_FILE = 0x44415441
RAW_DATA = 2


class Layer:
    def __init__(self, name, size, cs, data=None, raw=False):
        self.name, self.size, self.cs, self.data, self.raw = name, size, cs, data, raw


def pick_size(rng):
    return rng.choice([rng.randrange(1, 9) << 18, rng.randrange(1, 4096) * 512, 1 << 20])


def scribble(rng, folder, layer, seed):
    commands = []
    for i in range(rng.randrange(1, 12)):
        unit = rng.choice([512, 4096, layer.cs])
        at = rng.randrange(0, max(1, layer.size // unit)) * unit
        n = min(rng.randrange(1, 9) * unit, layer.size - at)
        if n <= 0:
            continue
        kind = rng.choice(["write -P %d" % (seed + i & 255 or 1)] * 4 + ["write -z", "write -z -u", "discard"])
        commands.append(f"{kind} {at} {n}")
    if commands:
        oracle.qemu_io(layer.name, commands, "qcow2", folder)


def make_chain(rng, folder):
    layers = []
    for i in range(rng.randrange(2, 5)):
        extended = rng.random() < 0.3
        cs = rng.choice([16384, 65536] if extended else [512, 4096, 65536])
        size = pick_size(rng) if i == 0 or rng.random() < 0.4 else layers[-1].size
        data = f"data{i}" if i == 0 or rng.random() < 0.3 else None
        raw = data is not None and i == 0 and rng.random() < 0.5
        options = [f"cluster_size={cs}", f"extended_l2={'on' if extended else 'off'}"]
        if data:
            name = os.path.join(folder, data) if rng.random() < 0.3 else data
            options += [f"data_file={name}"] + (["data_file_raw=on"] if raw else [])
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", ",".join(options)]
        if layers:
            argv += ["-b", layers[-1].name, "-F", "qcow2"]
        oracle.must(argv + [f"l{i}", str(size)], folder)
        layers.append(Layer(f"l{i}", size, cs, data, raw))
        scribble(rng, folder, layers[-1], 16 * i + 1)
    return layers


def files_of(folder):
    return {n: oracle.digest(os.path.join(folder, n)) for n in sorted(os.listdir(folder))}


def view(folder, name):
    return oracle.view(name, "qcow2", folder)


def same(what, got, want):
    if got != want:
        raise Fail(f"{what}: {oracle.first_difference(got, want)}")


def check_maps(qmeld, folder, name):
    ours = oracle.run([qmeld, "map", "--output=json", name], folder)
    theirs = oracle.must(["qemu-img", "map", "--output=json", name], folder)
    if ours.rc != 0 or ours.out != theirs.out:
        raise Fail(f"map of {name}: rc {ours.rc} {ours.err}\n{ours.out}\n{theirs.out}")


def check_image(folder, layer, want):
    same(f"{layer.name} reads", view(folder, layer.name), want)
    rc, found, text = oracle.check(layer.name, cwd=folder)
    if rc != 0:
        raise Fail(f"{layer.name} is not clean: {found} {text}")
    if not layer.data:
        return
    header = Qcow2(os.path.join(folder, layer.name))
    if not header.incompat & 4 or bool(header.autoclear & RAW_DATA) != layer.raw:
        raise Fail(f"{layer.name}: features {header.incompat:#x}, autoclear {header.autoclear:#x}")
    if layer.raw:
        with open(os.path.join(folder, layer.data), "rb") as f:
            data = f.read()
            same(f"{layer.data}, raw,", data[:len(want)] if layer.tail else data, want)


def merged_view(base, child, top):
    """Base reads what top read; behind top's end its own, or zeros where a child that is longer read them."""
    hidden = max(len(top), min(len(base), len(child) if child is not None else 0))
    return top + bytes(hidden - len(top)) + base[hidden:]


def commit(rng, qmeld, folder, layers, views):
    top = rng.randrange(1, len(layers))
    base = rng.randrange(0, top)
    args = ["--base", layers[base].name, "--top", layers[top].name]
    args += rng.choice([[], [], ["--overlays=quarantine"], ["--skip-equal"], ["--detect-zeroes"], ["--verify"],
                        ["--cache=none"], ["--threads=1"], ["--overlays=delete"], ["--overlays=empty"],
                        ["--reclaim"], ["--undo"], ["--atomic"]])
    last = layers[-1].name
    before = files_of(folder)
    plan = oracle.run([qmeld, "plan", "--output=json", *args, last], folder)
    if files_of(folder) != before:
        raise Fail(f"a plan changed files: {args}")
    done = oracle.run([qmeld, "commit", *args, last], folder)
    if done.rc == 2:
        mine = [x for x in layers[base:top + 1] if x.data]
        if "data file" not in done.err or not mine or not set(args) & {
                "--overlays=delete", "--overlays=empty", "--reclaim", "--undo", "--atomic"}:
            raise Fail(f"refused: {args}: {done.err}")
        if files_of(folder) != before or plan.rc != 2:
            raise Fail(f"refused, and changed files, or planned (rc {plan.rc}): {args}")
        return "refused"
    if done.rc != 0 or plan.rc != 0:
        raise Fail(f"{args}: rc {done.rc}, plan {plan.rc}: {done.err}{plan.err}")
    planned = json.loads(plan.out)["layers"][base]
    length = os.path.getsize(os.path.join(folder, layers[base].name))
    if planned["new-length"] != length:
        raise Fail(f"{args}: planned a length of {planned['new-length']}, it is {length}")
    child = views[top + 1] if top + 1 < len(layers) else None
    check_image(folder, layers[base], merged_view(views[base], child, views[top]))
    gone = set(args) & {"--overlays=delete", "--overlays=quarantine"}
    for i in range(len(layers)):
        if i > top or (i == top and not gone):
            same(f"{layers[i].name} after {args}", view(folder, layers[i].name), views[i])
    if not gone or top + 1 < len(layers):
        check_maps(qmeld, folder, last)
    check_maps(qmeld, folder, layers[base].name)
    return "merged"


def rebase(rng, qmeld, folder, layers, views):
    onto = rng.randrange(0, len(layers) - 1)
    args = ["-b", layers[onto].name, "-F", "qcow2"] if rng.random() < 0.7 else ["-b", ""]
    done = oracle.run([qmeld, "rebase", *args, layers[-1].name], folder)
    if done.rc != 0:
        raise Fail(f"rebase {args}: rc {done.rc}: {done.err}")
    check_image(folder, layers[-1], views[-1])
    return "rebased"


def flatten(rng, qmeld, folder, layers, views):
    fmt = rng.choice(["raw", "qcow2"])
    args = ["--to", fmt, layers[-1].name, "out"] + (["--manifest=m"] if rng.random() < 0.5 else [])
    before = files_of(folder)
    done = oracle.run([qmeld, "flatten", *args], folder)
    if done.rc != 0:
        raise Fail(f"flatten {args}: rc {done.rc}: {done.err}")
    same("flattened", oracle.view("out", fmt, folder), views[-1])
    if "--manifest=m" in args:
        for x in layers:
            if x.data and f"/{x.data}\"" not in open(os.path.join(folder, "m")).read():
                raise Fail(f"the manifest does not list {x.data}")
        if oracle.run([qmeld, "verify", "m"], folder).rc != 0:
            raise Fail("a manifest does not verify")
    for n in ("out", "m"):
        if os.path.exists(os.path.join(folder, n)):
            os.unlink(os.path.join(folder, n))
    if files_of(folder) != before:
        raise Fail("flatten changed an input")
    return "flattened"


def others(qmeld, root):
    """Whoever reads the data file of a layer that changes is a dependant: over it as raw, or with it as its own."""
    folder = os.path.join(root, "others")
    os.mkdir(folder)
    create = ["qemu-img", "create", "-q", "-f", "qcow2"]
    oracle.must(create + ["-o", "data_file=data,data_file_raw=on", "b", "1M"], folder)
    oracle.must(create + ["-b", "b", "-F", "qcow2", "t"], folder)
    oracle.qemu_io("t", ["write -P 7 0 128k"], "qcow2", folder)
    for name, options in (("over", ["-b", "data", "-F", "raw", "over"]),
                          ("with", ["-o", "data_file=data", "-u", "with", "1M"])):
        shutil.copy(os.path.join(folder, "data"), os.path.join(folder, "saved"))
        oracle.must(create + options, folder)
        shutil.copy(os.path.join(folder, "saved"), os.path.join(folder, "data"))  # create empties it
        before = files_of(folder)
        done = oracle.run([qmeld, "commit", "t"], folder)
        if done.rc != 2 or name not in done.err or files_of(folder) != before:
            raise Fail(f"an image {name} the data file: rc {done.rc}: {done.err}")
        done = oracle.run([qmeld, "commit", "--protect", "t"], folder)
        if done.rc != 2 or "data file" not in done.err or files_of(folder) != before:
            raise Fail(f"an image {name} the data file, protected: rc {done.rc}: {done.err}")
        os.unlink(os.path.join(folder, name))
    if oracle.run([qmeld, "commit", "t"], folder).rc != 0:
        raise Fail("nobody stands on it any more, and it is not merged")
    shutil.rmtree(folder)


def one(seed, qmeld, root):
    rng = random.Random(seed)
    folder = os.path.join(root, str(seed))
    os.mkdir(folder)
    layers = make_chain(rng, folder)
    views = [view(folder, x.name) for x in layers]
    for x, want in zip(layers, views):  # QEMU may fill up a cluster behind the disk's end
        x.tail = x.raw and os.path.getsize(os.path.join(folder, x.data)) > len(want)
    check_maps(qmeld, folder, layers[-1].name)
    what = rng.choice([commit] * 5 + [rebase, flatten])(rng, qmeld, folder, layers, views)
    shutil.rmtree(folder)
    return what


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--count", type=int, default=40)
    p.add_argument("--keep", action="store_true", help="keep the files of failed cases")
    opts = p.parse_args()
    oracle.need("qemu-img", "qemu-io")
    qmeld = oracle.qmeld_program()
    root = oracle.scratch()
    bad, seen = [], {}
    try:
        others(qmeld, root)
    except Fail as e:
        bad.append("others")
        print(e, flush=True)
    for seed in range(opts.seed, opts.seed + opts.count):
        try:
            what = one(seed, qmeld, root)
        except (Fail, oracle.Broken) as e:
            bad.append(seed)
            what = "failed"
            print(f"seed {seed}: {e}\n", flush=True)
        seen[what] = seen.get(what, 0) + 1
    print(f"{opts.count} cases from seed {opts.seed}, {len(bad)} bad: {seen}")
    if bad and opts.keep:
        print(f"kept in {root}")
    else:
        shutil.rmtree(root, ignore_errors=True)
    sys.exit(1 if bad or not seen.get("merged") else 0)


if __name__ == "__main__":
    main()
