#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Do the pictures of a chain show what is there?

Random chains are drawn from recipes by the forge.  Then
    own      what a page says that each layer holds is what the recipe says
    view     who answers, in page and SVG, is what `map --output=json` says, byte for byte
    merged   what a page says that a base holds after a merge is what it holds after that merge
    readme   docs/chain.svg, the README's picture, is what the program draws now of the chain of tools/quickstart;
             --picture makes it anew
    busy     of an image with more pieces than a page can hold: the page's length stays within its cap, and
             each of its cells holds as much of everything as is there
Needs no QEMU.
"""

import argparse
import html.parser
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
QMELD = os.path.abspath(os.environ.get("QMELD") or os.path.join(ROOT, "build/dev/qmeld"))
FORGE = os.path.abspath(os.environ.get("FORGE") or os.path.join(ROOT, "build/dev/forge"))
ABSENT, ZERO, PACKED, DATA, MANY = range(5)
PAGE_CAP = 4 << 20


def must(*argv):
    r = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=300, check=False)
    assert r.returncode == 0, f"{argv}: exit {r.returncode}: {r.stderr.decode(errors='replace')}"
    return r.stdout.decode()


class Page(html.parser.HTMLParser):
    """The data of a page, found as a browser finds them."""

    def __init__(self, text):
        super().__init__()
        self.text, self.inside, self.scripts = "", False, 0
        self.feed(text)
        self.data = json.loads(self.text)
        assert self.scripts == 2, "a page has its data and its script"

    def handle_starttag(self, tag, attrs):
        self.inside = tag == "script" and dict(attrs).get("id") == "data"
        self.scripts += tag == "script"

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.text += data


def runs(data, flat):
    """[(start, length, [(kind, layer, bytes), ...]), ...]"""
    unit, out, at = data["unit"], [], data["start"] * data["unit"]
    for length, code in zip(flat[::2], flat[1::2]):
        pairs = zip(code[::2], code[1::2]) if isinstance(code, list) else [(code, length)]
        parts = [(c % 8, c // 8, n * unit) for c, n in pairs]
        assert sum(n for _, _, n in parts) == length * unit, "a run's parts are the whole of it"
        out.append((at, length * unit, parts))
        at += length * unit
    return out


def json_extents(path, depth):
    for e in json.loads(must(QMELD, "map", "--output=json", path)):
        kind = (DATA if "offset" in e else PACKED) if e["data"] else ZERO if e["present"] else ABSENT
        layer = depth - 1 - e["depth"] if kind != ABSENT else 0
        yield e["start"], e["length"], (kind, layer)


def per_cell(spans, size, cell):
    """A list of {what: bytes} for each cell; spans are (start, length, what)."""
    cells = [{} for _ in range((size + cell - 1) // cell)]
    for start, length, what in spans:
        while length:
            now = min(length, cell - start % cell)
            here = cells[start // cell]
            here[what] = here.get(what, 0) + now
            start, length = start + now, length - now
    return cells


def exact(list_of_runs):
    """Runs of a picture where nothing is put together."""
    for start, length, parts in list_of_runs:
        assert len(parts) == 1, "a cell that holds several things, in a small picture"
        yield start, length, parts[0][:2]


def random_chain(rng):
    rows, size = [], rng.randint(8, 70)
    n = rng.randint(2, 6)
    raw = rng.random() < 0.4
    for i in range(n):
        if rng.random() < 0.3:
            size = max(4, size + rng.randint(-6, 6))
        kinds = "A.a0" if i or not raw else "A."
        row, name = "", f"l{i}.{'raw' if not i and raw else 'qcow2'}"
        while len(row) < size:
            row += rng.choice(kinds) * rng.randint(1, 9)
        rows.append((name, row[:size]))
    return rng.choice((512, 4096, 65536) if not raw else (4096, 65536)), rows  # holes are blocks


def check_own(data, rows, cluster):
    end = len(rows[-1][1]) * cluster
    for i, (name, row) in enumerate(rows):
        kinds = {"A": DATA, "a": PACKED, "0": ZERO, ".": ZERO if name.endswith("raw") else ABSENT}
        spans = ((k * cluster, cluster, kinds[c]) for k, c in enumerate(row))
        want = per_cell(spans, end, cluster) if len(row) * cluster <= end else \
            per_cell(((k * cluster, cluster, kinds[c]) for k, c in enumerate(row) if (k + 1) * cluster <= end), end, cluster)
        got = per_cell(((s, n, what[0]) for s, n, what in exact(runs(data, data["own"][i]))), end, cluster)
        assert got == want, f"own content of {name}: {got} is not {want}"


PIECE = re.compile(r"M([\d.]+) ([\d.]+)H([\d.]+)V([\d.]+)H[\d.]+z")


def check_svg(top, want, size, columns_rule=1024):
    """Of cells that hold one thing: it has its colour there, from top to bottom, and no other has."""
    root = xml.etree.ElementTree.fromstring(must(QMELD, "map", "--format=svg", top))
    grain, left, strip = (int(root.get("data-" + k)) for k in ("grain", "left", "strip"))
    row = next(g for g in root.iter() if g.get("data-row") == "view")
    painted = {}
    for path in row.findall("{http://www.w3.org/2000/svg}path"):
        style = path.get("class").split()
        for x0, y0, x1, y1 in PIECE.findall(path.get("d")):
            first = round((float(x0) - left) / strip * size / grain)
            last = max(first + 1, round((float(x1) - left) / strip * size / grain + 0.499))
            for cell in range(first, last if float(x1) - float(x0) > 1.5 else first + 1):
                if float(y1) - float(y0) > 29.9:
                    painted.setdefault(cell, set()).update(style)
    cells = per_cell(want, size, grain)
    assert len(cells) <= columns_rule, "more columns than an SVG has"
    for i, cell in enumerate(cells):
        if len(cell) > 1:
            continue
        (kind, layer), = cell
        style = {DATA: {"seen", f"c{layer % 8}"}, PACKED: {"seen", f"c{layer % 8}", "packed"},
                 ZERO: {"zero"}, ABSENT: set()}[kind]
        assert painted.get(i, set()) == style, f"cell {i}: {painted.get(i)} is painted, not {style}"


def check_merge(rng, rows, cluster):
    if len(rows[-1][1]) < max(len(row) for _, row in rows):
        return 0  # a page ends with the top
    base = rng.randrange(len(rows) - 1)
    top = rng.randrange(base + 1, len(rows))
    where = (f"--base=[{base + 1}]", f"--top=[{top + 1}]")
    data = Page(must(QMELD, "map", "--format=html", *where, rows[-1][0])).data
    plan = Page(must(QMELD, "plan", "--format=html", *where, rows[-1][0])).data
    assert plan["merged"] == data["merged"] and plan["view"] == data["view"]
    size = len(rows[-1][1]) * cluster
    moved = {}
    for _, n, (kind, layer) in exact(runs(data, data["merged"])):
        if kind in (DATA, PACKED) and layer > base:
            moved["data"] = moved.get("data", 0) + n
    report = json.loads(must(QMELD, "plan", "--output=json", *where, rows[-1][0]))
    if report["result"] == "to-do":
        assert report["bytes-copied"] == moved.get("data", 0), (report["bytes-copied"], moved)
    must(QMELD, "commit", "-q", *where, rows[-1][0])
    after = Page(must(QMELD, "map", "--format=html", rows[base][0])).data

    def simple(cells):
        names = {DATA: "data", PACKED: "data", ZERO: "zero", ABSENT: "zero" if base == 0 else "absent"}
        return [{names[k]: n for k, n in cell.items()} for cell in cells]
    want = simple(per_cell(((s, n, w[0]) for s, n, w in exact(runs(data, data["merged"]))), size, cluster))
    got = simple(per_cell(((s, n, w[0]) for s, n, w in exact(runs(after, after["own"][base]))), size, cluster))
    while want and not want[-1]:
        want.pop()
    assert got[:len(want)] == want, f"after a merge into [{base + 1}] up to [{top + 1}]: {got} is not {want}"
    return 1


def case(seed):
    rng = random.Random(seed)
    cluster, rows = random_chain(rng)
    with open("recipe", "w", encoding="ascii") as f:
        f.write(f"all cluster={cluster}\n" + "".join(f"{n} | {r}\n" for n, r in reversed(rows)))
    must(FORGE, "recipe", ".")
    top, size = rows[-1][0], len(rows[-1][1]) * cluster
    data = Page(must(QMELD, "map", "--format=html", top)).data
    want = list(json_extents(top, len(rows)))
    assert data["exact"]
    assert per_cell(exact(runs(data, data["view"])), size, 512) == per_cell(want, size, 512), "the view"
    check_own(data, rows, cluster)
    check_svg(top, want, size)
    return check_merge(rng, rows, cluster)


def busy():
    """More pieces than a page can hold, and six layers in a column."""
    rng, n = random.Random(7), 40000
    rows = []
    for i in range(7):
        rows.append("".join(rng.choice("A." if i == 0 else "A..." if i < 4 else "A......0") for _ in range(n)))
    with open("recipe", "w", encoding="ascii") as f:
        f.write("all cluster=512\n" + "".join(f"b{i}.qcow2 | {r}\n" for i, r in reversed(list(enumerate(rows)))))
    must(FORGE, "recipe", ".")
    text = must(QMELD, "map", "--format=html", "b6.qcow2")
    assert len(text) <= PAGE_CAP, f"a page of {len(text)} bytes"
    data = Page(text).data
    assert not data["exact"]
    size, grain = n * 512, data["grain"] * data["unit"]
    want = list(json_extents("b6.qcow2", 7))
    check_svg("b6.qcow2", want, size)
    wanted = per_cell(want, size, grain)
    spans = [(s, length, parts) for s, length, parts in runs(data, data["view"])]
    assert sum(length for _, length, _ in spans) == size
    for start, length, parts in spans:
        if len(parts) == 1:
            continue
        assert start // grain == (start + length - 1) // grain, "a mixed cell is one cell"
        # what became "several things" may be some of what is told, too
        there = wanted[start // grain]
        for kind, layer, amount in parts:
            assert kind == MANY or amount <= there.get((kind, layer), 0), (start, parts, there)
        if all(kind != MANY for kind, _, _ in parts):
            assert {(k, l): a for k, l, a in parts} == there, (start, parts, there)
        assert sum(a for _, _, a in parts) == sum(there.values()) == length
    print(f"busy: {len(text)} bytes of page for {sum(1 for _ in want)} extents, cells of {grain}")


def readme_picture():
    with open(os.path.join(ROOT, "tools/quickstart"), encoding="utf-8") as f:
        recipe = f.read().split("<<'END'\n", 1)[1].split("\nEND\n", 1)[0]
    with open("recipe", "w", encoding="ascii") as f:
        f.write(recipe + "\n")
    must(FORGE, "recipe", ".")
    return must(QMELD, "map", "--format=svg", "three.qcow2")


def readme():
    with open(os.path.join(ROOT, "docs/chain.svg"), encoding="utf-8") as f:
        assert f.read() == readme_picture(), "docs/chain.svg is not what is drawn now: tests/oracle/pictures.py --picture"


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--count", type=int, default=40)
    p.add_argument("--picture", action="store_true", help="make docs/chain.svg, and nothing else")
    args = p.parse_args()
    failed = merges = 0
    last = {args.seed + args.count: busy, args.seed + args.count + 1: readme}
    for seed in range(args.seed, args.seed + args.count + 2):
        with tempfile.TemporaryDirectory(prefix="qmeld-pictures.") as folder:
            os.chdir(folder)
            try:
                if args.picture:
                    with open(os.path.join(ROOT, "docs/chain.svg"), "w", encoding="utf-8") as f:
                        f.write(readme_picture())
                    return 0
                if seed in last:
                    last[seed]()
                else:
                    merges += case(seed)
            except AssertionError as e:
                failed += 1
                print(f"seed {seed}: {str(e)[:2000]}")
            os.chdir("/")
    print(f"{args.count} chains, {merges} merges, {failed} failed")
    return 1 if failed or (args.count >= 20 and not merges) else 0


if __name__ == "__main__":
    sys.exit(main())
