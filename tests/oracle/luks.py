#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Chains whose layers are encrypted, each with a passphrase of its own or none, against qemu-img.

Per case: layers made by qemu-img, LUKS in all modes and hashes, legacy AES, plain, written to by qemu-io;
what the top reads as, by qemu-img with the secrets; then one of qmeld's commands, after which
the same bytes must be read where they are to be, qemu-img check must find nothing, and no passphrase may stand in
any file or any output.  Without its passphrase, and with a wrong one, a command must refuse and
change nothing.  Options as chains.py has them.
"""

import argparse
import glob
import hashlib
import json
import os
import random
import shutil
import sys
import time

import oracle
from oracle import Fail

PASSPHRASES = [b"correct horse", b"newline at the end\n", "pässword".encode(), b"x" * 200]
HASHES = ["sha1", "sha256", "sha512", "ripemd160"]
KINDS = ["aes-256 xts plain64", "aes-128 xts plain", "aes-256 cbc essiv", "aes-128 cbc plain64", "aes-256 ctr plain64",
         "aes-256 ecb plain64"]


class Layer:
    def __init__(self, name, below):
        self.name, self.below = name, below
        self.method, self.secret, self.raw = None, None, False

    def options(self, prefix=""):
        """For --image-opts: this layer and all below."""
        out = [f"{prefix}driver={'raw' if self.raw else 'qcow2'}", f"{prefix}file.filename={self.name}"]
        if self.method:
            out.append(f"{prefix}encrypt.key-secret=s{self.secret}")
        if self.below:
            out += self.below.options(prefix + "backing.")
        return out


def objects():
    return [w for i in range(len(PASSPHRASES)) for w in ("--object", f"secret,id=s{i},file=pass{i}")]


def encryption(rng, layer, may_aes):
    word = rng.choice(["plain", "luks", "luks", "luks", "aes" if may_aes else "luks"])
    if word == "plain":
        return []
    layer.method, layer.secret = word, rng.randrange(len(PASSPHRASES))
    if word == "aes":
        layer.secret = min(layer.secret, 2)
        return [f"encrypt.format=aes,encrypt.key-secret=s{layer.secret}"]
    alg, mode, ivgen = rng.choice(KINDS[:1] * 3 + KINDS).split()
    more = ",encrypt.ivgen-hash-alg=sha256" if ivgen == "essiv" else ""
    return [f"encrypt.format=luks,encrypt.key-secret=s{layer.secret},encrypt.iter-time=10,encrypt.cipher-alg={alg},"
            f"encrypt.cipher-mode={mode},encrypt.ivgen-alg={ivgen},encrypt.hash-alg={rng.choice(HASHES)}{more}"]


def create(rng, folder, name, below, size):
    layer = Layer(name, below)
    if not below and rng.random() < 0.15:
        layer.raw = True
        with open(os.path.join(folder, name), "wb") as f:
            f.write(rng.randbytes(size - rng.choice([0, 24, 100])))
        return layer
    cluster = rng.choice([4096, 16384, 65536, 65536, 131072])
    options = encryption(rng, layer, may_aes=below is not None)
    options.append(f"cluster_size={cluster}")
    if cluster >= 16384 and rng.random() < 0.25:
        options.append("extended_l2=on")
    elif rng.random() < 0.2:
        options.append("compat=0.10")
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", *objects(), "-o", ",".join(options)]
    if below:
        argv += ["-u", "-b", below.name, "-F", "raw" if below.raw else "qcow2"]
    oracle.must([*argv, name, str(size)], folder)
    return layer


def write(rng, folder, layer, size):
    """A few writes; qemu-io does what the layer cannot (zeros in version 2) in its own way."""
    argv = ["qemu-io", *objects(), "--image-opts", ",".join(layer.options())]
    for _ in range(rng.randrange(2, 7)):
        off = rng.randrange(size // 512) * 512
        length = min(size - off, rng.choice([512, 4096, 65536, rng.randrange(1, 600) * 512]))
        word = rng.choice(["write -P %d" % rng.randrange(1, 255)] * 4 + ["write -z", "write -P 0"])
        argv += ["-c", f"{word} {off} {length}"]
    if rng.random() < 0.4:
        argv += ["-c", f"write -c -P {rng.randrange(1, 255)} {rng.randrange(size // 131072) * 131072} 131072"]
    if not layer.raw:
        oracle.run(argv, folder)


def make(rng, folder):
    for i, p in enumerate(PASSPHRASES):
        with open(os.path.join(folder, f"pass{i}"), "wb") as f:
            f.write(p)
    with open(os.path.join(folder, "wrong"), "wb") as f:
        f.write(b"wrong horse")
    size = rng.randrange(600, 5000) * 512
    layers, below = [], None
    for i in range(rng.randrange(2, 5)):
        if i and rng.random() < 0.3:
            size += rng.randrange(-300, 900) * 512
        below = create(rng, folder, f"l{i}", below, size)
        write(rng, folder, below, size)
        layers.append(below)
        if i == 0 and not below.raw and rng.random() < 0.3:
            oracle.must(["qemu-img", "snapshot", "-c", "snap", *objects(), "--image-opts", ",".join(below.options())],
                        folder)
            write(rng, folder, below, size)
    return layers


def view(folder, options, out):
    oracle.must(["qemu-img", "convert", *objects(), "--image-opts", ",".join(options), "-O", "raw", out], folder)
    with open(os.path.join(folder, out), "rb") as f:
        return f.read()


def secrets(rng, layers):
    """The options: by name where it must be, else sometimes."""
    by_name = any(x.method == "aes" for x in layers) or rng.random() < 0.4
    if by_name:
        return [f"--secret={x.name}=pass{x.secret}" for x in layers if x.method]
    return [f"--secret=pass{i}" for i in sorted({x.secret for x in layers if x.method})]


def digests(folder):
    return {n: hashlib.sha256(open(os.path.join(folder, n), "rb").read()).digest()
            for n in sorted(os.listdir(folder)) if not os.path.isdir(os.path.join(folder, n))}


def nothing_leaks(folder, result, layers):
    text = (result.out + result.err).encode()
    for x in layers:
        if not x.method:
            continue
        p = PASSPHRASES[x.secret].strip()
        if p in text:
            raise Fail("a passphrase is printed")
        for path in glob.glob(os.path.join(folder, ".*")) + glob.glob(os.path.join(folder, "*.json")):
            if os.path.isfile(path) and p in open(path, "rb").read():
                raise Fail(f"a passphrase stands in {path}")


def refuses(qmeld, folder, argv, layers):
    """With no passphrase, and with a wrong one for all that can tell."""
    before = digests(folder)
    tries = [[]] if any(x.method for x in layers) else []
    if any(x.method == "luks" for x in layers) and all(x.method != "aes" for x in layers):
        tries.append(["--secret=wrong"])
    for t in tries:
        r = oracle.run([qmeld, *argv, *t], folder)
        if r.rc != 2:
            raise Fail(f"{argv} {t}: exit {r.rc}: {r.err}")
    if digests(folder) != before:
        raise Fail(f"{argv}: refused, and a file has changed")


def equal(name, got, expected):
    size = max(len(got), len(expected))
    if got.ljust(size, b"\0") != expected.ljust(size, b"\0"):
        at = next(i for i in range(size) if got.ljust(size, b"\0")[i] != expected.ljust(size, b"\0")[i])
        raise Fail(f"{name}: differs at {at}")


def check_clean(folder, layer):
    if layer.raw:
        return
    opts = [o for o in layer.options() if not o.startswith("backing.")]
    r = oracle.run(["qemu-img", "check", *objects(), "--image-opts", ",".join(opts)], folder)
    if r.rc != 0:
        raise Fail(f"qemu-img check {layer.name}: {r.rc}: {r.out}{r.err}")


def cannot_grow(r):
    return r.rc == 2 and "version 2 image with internal snapshots cannot" in r.err


def commit(rng, qmeld, folder, layers, ref, keys):
    base = layers[0]
    options = rng.sample(["--skip-equal", "--detect-zeroes", "--verify", "--decompress", "--cache=none"], rng.randrange(3))
    options.append(rng.choice(["--overlays=keep", "--overlays=empty", "--overlays=delete", "--reclaim", "--undo", "--atomic"]))
    if options[-1] == "--atomic" and base.raw:
        options.pop()
    argv = ["commit", *options, layers[-1].name]
    refuses(qmeld, folder, argv, layers)
    plan = oracle.run([qmeld, "plan", "--output=json", *options, *keys, layers[-1].name], folder)
    if rng.random() < 0.3:  # stopped on the way, as slow as it goes; then it is gone on with
        r = oracle.run([qmeld, *argv, *keys, "--bandwidth=64k", "--deadline=1", "-q"], folder)
        nothing_leaks(folder, r, layers)
        if cannot_grow(r):
            return "refused"
        if r.rc not in (0, 75):
            raise Fail(f"commit --deadline: {r.rc}: {r.err}")
        if r.rc == 75 and base.method != "aes":
            equal("the top, half-way", view(folder, layers[-1].options(), "half"), ref)
    r = oracle.run([qmeld, *argv, *keys], folder)
    nothing_leaks(folder, r, layers)
    if cannot_grow(r):
        return "refused"
    if r.rc != 0:
        raise Fail(f"{argv}: {r.rc}: {r.err}")
    # a longer base keeps what lies behind the top's end (docs/decisions/0004)
    equal("the base", view(folder, base.options(), "after")[:len(ref)], ref)
    check_clean(folder, base)
    if plan.rc == 0 and not base.raw and "--undo" not in options and "--atomic" not in options and "--reclaim" not in options:
        told = json.loads(plan.out)["layers"][0]["new-length"]
        if told != os.stat(os.path.join(folder, base.name)).st_size and r.out.startswith("merged"):
            raise Fail(f"plan said a length of {told}")
    return "commit"


def flatten(rng, qmeld, folder, layers, ref, keys):
    argv = ["flatten", *rng.choice([[], ["--to=qcow2"], ["--to=qcow2", "-c"], ["--manifest=m.json"]]), layers[-1].name, "flat"]
    refuses(qmeld, folder, argv, layers)
    r = oracle.run([qmeld, *argv, *keys], folder, env={"QMELD_TEST_SHARE": "4096"})
    nothing_leaks(folder, r, layers)
    if r.rc != 0:
        raise Fail(f"{argv}: {r.rc}: {r.err}")
    fmt = "qcow2" if "--to=qcow2" in argv else "raw"
    equal("what was flattened", view(folder, [f"driver={fmt}", "file.filename=flat"], "after"), ref)
    if "--manifest=m.json" in argv and oracle.run([qmeld, "verify", *keys, "m.json"], folder).rc != 0:
        raise Fail("verify does not agree")
    r = oracle.run([qmeld, "compare", *keys, layers[-1].name, "flat"], folder)
    if r.rc != 0:
        raise Fail(f"compare: {r.rc}: {r.out}{r.err}")
    return "flatten"


def rebase(rng, qmeld, folder, layers, ref, keys):
    top = layers[-1]
    argv = ["rebase", "--standalone", top.name]
    refuses(qmeld, folder, argv, layers)
    r = oracle.run([qmeld, *argv, *keys], folder)
    nothing_leaks(folder, r, layers)
    if top.method == "aes":
        if r.rc != 2 or "legacy" not in r.err:
            raise Fail(f"rebase of legacy AES: {r.rc}: {r.err}")
        return "refused"
    if r.rc != 0:
        raise Fail(f"{argv}: {r.rc}: {r.err}")
    top.below = None
    equal("the rebased image", view(folder, top.options(), "after"), ref)
    check_clean(folder, top)
    return "rebase"


def one_case(seed, folder, qmeld):
    rng = random.Random(seed)
    layers = make(rng, folder)
    ref = view(folder, layers[-1].options(), "ref")
    keys = secrets(rng, layers)
    return rng.choice([commit, commit, flatten, rebase])(rng, qmeld, folder, layers, ref, keys)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--seed", type=int, default=int(time.time()))
    p.add_argument("--count", type=int, default=20)
    p.add_argument("--keep", action="store_true", help="keep the files of failed cases")
    opts = p.parse_args()
    oracle.need("qemu-img", "qemu-io")
    qmeld = oracle.qmeld_program("dev", "plain", "release")
    folder, seen, bad = oracle.scratch(), {}, 0
    for seed in range(opts.seed, opts.seed + opts.count):
        case = os.path.join(folder, f"case{seed}")
        os.mkdir(case)
        try:
            what = one_case(seed, case, qmeld)
            seen[what] = seen.get(what, 0) + 1
            if opts.keep:
                print(f"seed {seed}: {what}", flush=True)
        except (oracle.Fail, oracle.Broken) as e:
            bad += 1
            print(f"seed {seed}: {e}" + (f"\n  kept: {case}" if opts.keep else ""), flush=True)
            if opts.keep:
                continue
        shutil.rmtree(case, ignore_errors=True)
    if not opts.keep or not bad:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{opts.count} cases from seed {opts.seed}, {bad} bad: " + " ".join(f"{k}:{v}" for k, v in sorted(seen.items())))
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
