#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""qemu-img dressed as qmeld, to test the suites themselves: QMELD=tests/oracle/stand_in.py.

The expectations of `chains.py --easy` must hold for qemu-img, except that it fails where a version
2 base would need zero flags, and leaves the child's header as it likes; without --easy the suites must complain about it.
"""

import argparse
import json
import os
import subprocess
import sys


def info(path):
    out = subprocess.run(["qemu-img", "info", "--output=json", "--backing-chain", path],
                         check=True, stdout=subprocess.PIPE).stdout
    return json.loads(out)


def commit(args):
    p = argparse.ArgumentParser()
    for name in ("--base", "--top", "--overlays", "--threads", "--backing-format"):
        p.add_argument(name)
    p.add_argument("--shallow", action="store_true")
    p.add_argument("path")
    o = p.parse_args(args)
    chain = info(o.path)[::-1]
    if any("backing-filename" in x and "backing-filename-format" not in x for x in chain) \
            and not o.backing_format:
        print("no stored format: give --backing-format", file=sys.stderr)
        return 2
    paths = [os.path.realpath(x["filename"].replace("json:", "")) for x in chain]

    def find(name, default):
        if name is None:
            return default
        return int(name[1:-1]) - 1 if name.startswith("[") else paths.index(os.path.realpath(name))

    top = find(o.top, len(paths) - 1)
    base = top - 1 if o.shallow else find(o.base, 0)
    how = [] if o.overlays == "empty" and base == top - 1 else ["-b", paths[base]]
    r = subprocess.run(["qemu-img", "commit", "-q", *how, paths[top]], check=False)
    if r.returncode:
        return 2
    if top + 1 < len(paths):
        old = chain[top + 1]["backing-filename"]
        new = paths[base]
        if not old.startswith("/") and ":" not in old.split("/")[0]:
            new = os.path.relpath(new, os.path.dirname(paths[top + 1]))
        subprocess.run(["qemu-img", "rebase", "-u", "-b", new, "-F", chain[base]["format"],
                        paths[top + 1]], check=True)
    if o.overlays == "delete":
        for i in range(base + 1, top + 1):
            os.unlink(paths[i])
    return 0


def main():
    command, args = sys.argv[1], sys.argv[2:]
    if command == "commit":
        sys.exit(commit(args))
    os.execvp("qemu-img", ["qemu-img", command] + args)


main()
