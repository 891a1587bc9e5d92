#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""bench.py - does tools/bench measure what it says, and notice what it promises to notice?

Runs it with tiny amounts: every row that needs no mount, and the curves.  Then with liars: programs
that do the work and spoil one byte of the base, one extent of the map, one count of the check, or the
exit code.  Each must be a failed row, or a benchmark could praise a program that loses data quickly.

  QMELD=/path/to/qmeld tests/oracle/bench.py
"""

import json
import os
import shutil
import sys
import tempfile

import oracle

ROWS = ["raw-1m", "qcow2-64k", "deep-commit", "deep-map", "zlib", "zstd",
        "check", "flatten-raw", "flatten-qcow2", "flatten-zlib"]

LIAR = """#!/usr/bin/env python3
import os, subprocess, sys
p = subprocess.run([{real!r}] + sys.argv[1:], stdout=subprocess.PIPE)
out = p.stdout
how = {how!r}
if how == "byte":
    name = next(n for n in ("base.raw", "base.qcow2") if os.path.exists(n))
    with open(name, "r+b") as f:
        at = end = 0
        while True:
            try:
                at = os.lseek(f.fileno(), end, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(f.fileno(), at, os.SEEK_HOLE)
        f.seek(end - 100)
        byte = f.read(1)
        f.seek(end - 100)
        f.write(bytes([byte[0] ^ 1]))
elif how == "map":
    out = out.replace(b'"depth": 0', b'"depth": 1', 1)
elif how == "check":
    out = out.replace(b'"allocated-clusters": ', b'"allocated-clusters": 1', 1)
sys.stdout.buffer.write(out)
sys.exit(1 if how == "exit" else p.returncode)
"""


def bench(folder, program, *args):
    """(exit code, results by row, what it said)"""
    found = os.path.join(folder, "found.json")
    r = oracle.run([sys.executable, os.path.join(oracle.ROOT, "tools", "bench"), "--scale", "0.002",
                    "--repeat", "1", "--dir", folder, "--qmeld", program, "--json", found, *args],
                   timeout=600)
    rows = {}
    if os.path.exists(found):
        with open(found, encoding="utf-8") as f:
            rows = {row["row"]: row for row in json.load(f)["rows"]}
        os.unlink(found)
    return r.rc, rows, r.out + r.err


def measures(folder, qmeld):
    svg = os.path.join(folder, "curves.svg")
    rc, rows, said = bench(folder, qmeld, "--svg", svg, "--only", *ROWS)
    if rc != 0:
        raise oracle.Fail(f"exit {rc}: {said}")
    for name in ROWS:
        row = rows[name]
        if "skipped" in row:
            if not name.startswith("flatten") or "no command flatten" not in row["skipped"]:
                raise oracle.Fail(f"{name}: {row['skipped']}")
            continue
        for who in ("ours", "other"):
            if row[who]["seconds"] <= 0 or row[who]["rss"] <= 0:
                raise oracle.Fail(f"{name}: nothing measured: {row}")
    with open(svg, encoding="utf-8") as f:
        drawn = f.read()
    if drawn.count("<polyline") != 6:
        raise oracle.Fail("not all curves are drawn")


def counts_bytes(qmeld):
    """On a disk, if there is one: a file system in memory has no block layer."""
    with tempfile.TemporaryDirectory(prefix="qmeld-bench-test.", dir="/var/tmp") as folder:
        rc, rows, said = bench(folder, qmeld, "--only", "raw-1m-cold")
        row = rows.get("raw-1m-cold")
        if rc != 0 or "failed" in row:
            raise oracle.Fail(f"exit {rc}: {said}")
        for who in ("ours", "other") if row["file_system"] != "tmpfs" else ():
            if row[who]["written"] < row["guest_bytes"]:
                raise oracle.Fail(f"{row[who]['written']} bytes written, of {row['guest_bytes']}")


def notices(folder, qmeld, how, row):
    liar = os.path.join(folder, "liar")
    with open(liar, "w", encoding="utf-8") as f:
        f.write(LIAR.format(real=qmeld, how=how))
    os.chmod(liar, 0o755)
    rc, rows, said = bench(folder, liar, "--only", row)
    if rc != 1 or "failed" not in rows.get(row, {}):
        raise oracle.Fail(f"{row}: a program that spoils {how} went through: exit {rc}\n{said}")


def main():
    oracle.need("qemu-img")
    qmeld = oracle.qmeld_program("release")
    folder = oracle.scratch()
    try:
        counts_bytes(qmeld)
        measures(folder, qmeld)
        for how, row in (("byte", "raw-1m"), ("byte", "qcow2-64k"), ("map", "deep-map"),
                         ("check", "check"), ("exit", "zlib")):
            notices(folder, qmeld, how, row)
        rc, rows, said = bench(folder, qmeld, "--against", qmeld, "--only", "deep-map")
        if rc != 0 or len(rows["deep-map"]["runs"].get("other", ())) != 1:
            raise oracle.Fail(f"qmeld against itself: exit {rc}\n{said}")
    finally:
        shutil.rmtree(folder)
    print("bench: ok")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (oracle.Fail, oracle.Broken) as e:
        print(f"FAIL: {e}")
        sys.exit(1)
