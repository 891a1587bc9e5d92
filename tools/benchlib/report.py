# SPDX-License-Identifier: LGPL-2.1-or-later
"""The table on the terminal and in Markdown, JSON, and curves as SVG."""

import json
import math
import os
import platform
import subprocess

from run import MIB


def seconds(x):
    return "-" if x is None else f"{x:.3f}" if x < 10 else f"{x:.1f}"


def mib(x):
    return "-" if x is None else f"{x / MIB:.0f}" if x >= 10 * MIB else f"{x / MIB:.1f}"


def verdict(r):
    if r.get("failed"):
        return "FAILED"
    if r.get("skipped"):
        return "skipped"
    if r["target"] is None and r.get("limit") is None:
        return ""
    return "pass" if r["passed"] else "short"


COLUMNS = ("row", "target", "ratio", "", "ours s", "other s", "copy s", "CPU s", "other", "RSS MiB",
           "other", "read MiB", "other", "written MiB", "other")


def cells(r):
    """One row as strings."""
    if r.get("failed") or r.get("skipped"):
        return [r["title"], target_of(r), "", verdict(r)] + [""] * (len(COLUMNS) - 4)
    ours, other = r["ours"], r["other"] or {}
    ratio = f"{r['ratio']:.1f}x" if r["ratio"] else f"{mib(ours['anon'])} MiB"
    out = [r["title"], target_of(r), ratio, verdict(r), seconds(ours["seconds"]),
           seconds(other.get("seconds")), seconds(r["plain_copy"])]
    for key, show in (("cpu", seconds), ("rss", mib), ("read", mib), ("written", mib)):
        out += [show(ours[key]), show(other.get(key))]
    return out


def target_of(r):
    if r.get("limit"):
        return f"{mib(r['limit'])} MiB"
    return f"{r['target']:g}x" if r["target"] else ""


def table(results):
    rows = [list(COLUMNS)] + [cells(r) for r in results]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = []
    for row in rows:
        lines.append("  ".join(c.ljust(w) if i == 0 else c.rjust(w)
                               for i, (c, w) in enumerate(zip(row, widths))).rstrip())
    return "\n".join(lines)


def markdown(results):
    heads = ["row", "target", "measured", "", "ours, s", "qemu-img, s", "plain copy, s",
             "CPU s, ours : theirs", "RSS MiB, ours : theirs", "written MiB, ours : theirs"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for r in results:
        c = cells(r)
        pair = [f"{c[i]} : {c[i + 1]}" if c[i] else "" for i in (7, 9, 13)]
        lines.append("| " + " | ".join(c[:7] + pair) + " |")
    return "\n".join(lines)


def machine(folder, kind):
    """Where this was measured; no names of it."""
    model = "unknown processor"
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            model = next((line.split(":", 1)[1].strip() for line in f
                          if line.startswith("model name")), model)
    except OSError:
        pass
    qemu = subprocess.run(["qemu-img", "--version"], capture_output=True, text=True,
                          check=False).stdout.split("\n")[0]
    ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 30
    return {"processor": model, "processors": os.cpu_count(), "memory_gib": ram,
            "kernel": platform.release(), "file_system": kind, "reference": qemu,
            "load": os.getloadavg()[0]}


def machine_line(m):
    return (f"{m['processors']} x {m['processor']}, {m['memory_gib']} GiB, Linux {m['kernel']}, "
            f"{m['file_system']}; {m['reference']}; load at the beginning {m['load']:.1f}")


def write_json(path, document):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(document, f, indent=2)
        f.write("\n")


# ---- curves ----

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 320, 260, 52, 42, 30
TITLES = {"depth": ("256 MiB in so many overlays", "overlays"),
          "size": ("one overlay", "MiB in it"),
          "scatter": ("256 MiB in extents of", "KiB each")}
STROKES = {"ours": "#0a6", "other": "#c40"}


class Axes:
    """Both logarithmic."""

    def __init__(self, xs, ys):
        self.x0, self.x1 = math.log(min(xs)), math.log(max(xs)) + 1e-9
        self.y0, self.y1 = math.log(min(ys) * 0.7), math.log(max(ys) * 1.4)

    def x(self, v):
        return LEFT + (math.log(v) - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - 16)

    def y(self, v):
        return HEIGHT - BOTTOM - (math.log(v) - self.y0) / (self.y1 - self.y0) * (
            HEIGHT - BOTTOM - TOP)

    def decades(self):
        """1, 2, 5, 10... inside the range."""
        for e in range(-3, 7):
            for m in (1, 2, 5):
                v = m * 10.0 ** e
                if self.y0 <= math.log(v) <= self.y1:
                    yield v


def text(x, y, s, anchor="middle", size=11):
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{s}</text>')


def panel(axis, points):
    """points: [(at, ours MiB/s, other MiB/s)]"""
    a = Axes([p[0] for p in points], [v for p in points for v in p[1:]])
    title, unit = TITLES[axis]
    out = [text(WIDTH / 2, 16, title, size=12),
           text(WIDTH / 2, HEIGHT - 6, unit),
           f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - 16}" '
           f'height="{HEIGHT - BOTTOM - TOP}" fill="none" stroke="#999"/>']
    for v in a.decades():
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - 16}" y1="{a.y(v):.1f}" y2="{a.y(v):.1f}" '
                   'stroke="#ddd"/>')
        out.append(text(LEFT - 6, a.y(v) + 4, f"{v:g}", "end"))
    for at, *_ in points:
        out.append(text(a.x(at), HEIGHT - BOTTOM + 16, f"{at}"))
    for i, who in enumerate(("ours", "other"), 1):
        line = " ".join(f"{a.x(p[0]):.1f},{a.y(p[i]):.1f}" for p in points)
        out.append(f'<polyline points="{line}" fill="none" stroke="{STROKES[who]}" '
                   'stroke-width="2"/>')
        out += [f'<circle cx="{a.x(p[0]):.1f}" cy="{a.y(p[i]):.1f}" r="3" fill="{STROKES[who]}"/>'
                for p in points]
    return out


def write_svg(path, curves, names):
    """curves: {axis: [(at, ours, other)]}, MiB/s; names: of the two programs."""
    shown = [(axis, sorted(points)) for axis, points in curves.items() if len(points) > 1]
    width, height = WIDTH * max(1, len(shown)), HEIGHT + 24
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
           f'viewBox="0 0 {width} {height}" font-family="sans-serif">',
           f'<rect width="{width}" height="{height}" fill="#fff"/>']
    for i, (axis, points) in enumerate(shown):
        out += [f'<g transform="translate({i * WIDTH},0)">'] + panel(axis, points) + ["</g>"]
    for i, who in enumerate(("ours", "other")):
        x = LEFT + i * 200
        out.append(f'<line x1="{x}" x2="{x + 20}" y1="{HEIGHT + 10}" y2="{HEIGHT + 10}" '
                   f'stroke="{STROKES[who]}" stroke-width="2"/>')
        out.append(text(x + 26, HEIGHT + 14, f"{names[i]}, MiB of guest data a second", "start"))
    out.append("</svg>")
    with open(path, "w", encoding="utf-8") as f:
        f.write("\n".join(out) + "\n")
