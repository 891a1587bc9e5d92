#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Random chains, one random merge each, compared byte for byte with what qemu-img reads.

A case is its seed: `chains.py --seed N --count 1 --keep` makes the same chain again and keeps it.
Per case: a chain over every feature (chain_gen.py), one `qmeld commit` of a random range, and
then everything that must hold (chain_check.py).  A merge may refuse (exit 2) only for a reason
known beforehand, and then no file may have changed.
"""

import argparse
import collections
import multiprocessing
import os
import random
import shutil
import sys
import time
import traceback

import chain_check
import chain_gen
import oracle


def one_case(seed, folder, opts, check):
    """-> (seed, outcome, tags, text).  outcome: merged, refused, failed, broken."""
    rng = random.Random(seed)
    case = os.path.join(folder, f"case{seed}")
    os.mkdir(case)
    story, tags, keep = [], [], False
    try:
        if opts.forge:
            chain = chain_gen.forge_chain(seed, case, opts.forge, story)
        else:
            chain = chain_gen.random_chain(rng, case, opts.patterns, story, opts.easy)
        tags = sorted(chain.tags)
        outcome = check(rng, chain, opts.qmeld, story)
        return seed, outcome, sorted(chain.tags), ""
    except (oracle.Fail, oracle.Broken) as e:
        keep = True
        kind = "failed" if isinstance(e, oracle.Fail) else "broken"
        return seed, kind, tags, f"{e}\n  story:\n    " + "\n    ".join(story)
    except Exception:  # a bug of the suite must name its seed, too
        keep = True
        return seed, "broken", tags, traceback.format_exc() + "\n    ".join(story)
    finally:
        if not (keep and opts.keep):
            shutil.rmtree(case, ignore_errors=True)


def worker(job):
    return one_case(*job)


def parse_args():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--seed", type=int, default=None, help="first seed; default: by the clock")
    p.add_argument("--count", type=int, default=100)
    p.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1))
    p.add_argument("--seconds", type=float, default=0, help="stop starting cases after this long")
    p.add_argument("--keep", action="store_true", help="keep the files of failed cases")
    p.add_argument("--dir", help="where to work")
    p.add_argument("--source", choices=["qemu", "forge"], default="qemu",
                   help="who makes the chains")
    p.add_argument("--easy", action="store_true", help="only what qemu-img gets right, too")
    p.add_argument("--max-failures", type=int, default=10)
    return p.parse_args()


def report(done, failures, refused, tags, opts, started):
    print(f"{done} cases from seed {opts.seed}, {len(failures)} bad, "
          f"{sum(refused.values())} refused for a known reason, {time.time() - started:.0f} s")
    for reason, n in sorted(refused.items()):
        print(f"  refused: {reason}: {n}")
    print("  seen: " + " ".join(f"{t}:{n}" for t, n in sorted(tags.items())))
    for seed in failures:
        print(f"  again: {os.path.relpath(sys.argv[0])} --source {opts.source} --seed {seed} "
              "--count 1 --keep")
    if done >= 20 and sum(refused.values()) * 4 > done:
        print("too many refusals: the suite proves nothing")
        return 1
    return 1 if failures or done == 0 else 0


def main(check=chain_check.merge_and_check):
    opts = parse_args()
    oracle.need("qemu-img", "qemu-io")
    opts.qmeld = oracle.qmeld_program()
    opts.forge = oracle.find_program("forge") if opts.source == "forge" else None
    if opts.source == "forge" and not opts.forge:
        oracle.die_skip("forge is not built")
    if opts.seed is None:
        opts.seed = int(time.time()) % 1000000 * 1000
    print(f"tool: {opts.qmeld}; first seed: {opts.seed}", flush=True)
    folder = oracle.scratch(opts.dir)
    opts.patterns = chain_gen.make_patterns(folder)
    jobs = [(opts.seed + i, folder, opts, check) for i in range(opts.count)]
    started, done = time.time(), 0
    failures, refused, tags = [], collections.Counter(), collections.Counter()
    with multiprocessing.Pool(opts.jobs) as pool:
        for seed, outcome, seen, text in pool.imap_unordered(worker, jobs):
            done += 1
            tags.update(seen)
            if outcome in ("failed", "broken"):
                failures.append(seed)
                print(f"seed {seed}: {outcome}: {text}\n", flush=True)
            elif outcome != "merged":
                refused[outcome] += 1
            late = opts.seconds and time.time() - started > opts.seconds
            if late or len(failures) >= opts.max_failures:
                pool.terminate()
                break
    if opts.keep and failures:
        print(f"kept in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(report(done, failures, refused, tags, opts, started))


if __name__ == "__main__":
    main()
