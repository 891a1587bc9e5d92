#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Pages of chains in a real browser: headless Chromium, driven through its own protocol on a pipe.

    quiet     each page loads, paints every strip, and has nothing to say on the console; names that want to be
              scripts are text, and the policy lets no script in that is not ours
    zoom      keys, wheel, drag, double click and buttons change what is in sight, within its bounds
    tells     pointing at a strip, and going through it by keys, tells offsets, layer, state and bytes
    busy      a page at its cap is repainted in less than two seconds, on a machine that does other things, too
    sizes     narrow, wide, dark, light and printed: nothing wider than the page

--shots FOLDER keeps a picture of each.  Without chromium it skips (77).
"""

import argparse
import base64
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time

from pictures import FORGE, QMELD, must

EVIL = "</script><img src=x onerror=alert(1)>&quot;'`${x}\u202e.qcow2".replace("/", "\u2215")
RECIPE = """all cluster=64k
%s | ............DDDD....dd................................00..DD
two.qcow2   | ......CCCCCC........00CC..........CCCCCCCC..................
one.qcow2   | ..BBBB............BBBBBBbbbb..................BBBB..........
base.qcow2  | AAAAAAAAAAAA....AAAA........AAAAAAAA........AAAAAAAA........
"""


class Browser:
    """One page; commands and answers are JSON, each ended by a NUL, on descriptors 3 and 4."""

    def __init__(self, folder):
        there, ours = os.pipe()
        theirs_in, back = os.pipe()

        def keep():  # called in the child: the two become 3 and 4
            a, b = os.dup(there), os.dup(back)
            os.dup2(a, 3)
            os.dup2(b, 4)
        self.process = subprocess.Popen(
            [shutil.which("chromium"), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions",
             "--disable-background-networking", "--disable-dev-shm-usage", f"--user-data-dir={folder}", "--remote-debugging-pipe",
             "about:blank"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=keep, pass_fds=(3, 4, there, back))
        os.close(there)
        os.close(back)
        self.out, self.back, self.n, self.answers, self.events = ours, theirs_in, 0, {}, []
        self.news = threading.Condition()
        threading.Thread(target=self.listen, daemon=True).start()
        self.session = None
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(domain + ".enable")

    def listen(self):
        rest = b""
        while chunk := os.read(self.back, 1 << 20):
            rest += chunk
            *messages, rest = rest.split(b"\0")
            with self.news:
                for m in map(json.loads, messages):
                    if "id" in m:
                        self.answers[m["id"]] = m
                    else:
                        self.events.append(m)
                self.news.notify_all()

    def call(self, method, **params):
        self.n += 1
        message = {"id": self.n, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        with self.news:
            assert self.news.wait_for(lambda: self.n in self.answers, 60), f"{method}: no answer"
            answer = self.answers.pop(self.n)
        assert "error" not in answer, f"{method}: {answer}"
        return answer["result"]

    def load(self, path):
        self.events.clear()
        self.call("Page.navigate", url="file://" + path)
        with self.news:
            assert self.news.wait_for(lambda: any(e["method"] == "Page.loadEventFired" for e in self.events), 60), "not loaded"
        self.settle()

    def js(self, expression):
        r = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in r, r
        return r["result"].get("value")

    def settle(self):
        self.js("new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")

    def complaints(self):
        """What was said on the console, thrown, or asked of a network."""
        words = []
        for e in self.events:
            p = e.get("params", {})
            if e["method"] in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                words.append(json.dumps(p)[:400])
            if e["method"] == "Network.requestWillBeSent" and not p["request"]["url"].startswith("file://"):
                words.append(p["request"]["url"])
            if e["method"] == "Page.javascriptDialogOpening":
                words.append("a dialog")
        return words

    def key(self, key, shift=False):
        code = {"+": ("Equal", 187, "+")}.get(key, (key, 0, key if len(key) == 1 else ""))
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=code[0], modifiers=8 if shift else 0,
                      **({"text": code[2]} if kind == "keyDown" and code[2] else {}))
        self.settle()

    def mouse(self, kind, x, y, **more):
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)
        self.settle()

    def shot(self, path):
        with open(path, "wb") as f:
            f.write(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self):
        try:
            self.session = None
            self.call("Browser.close")
            self.process.wait(10)
        except (AssertionError, OSError, subprocess.TimeoutExpired):
            self.process.kill()
        self.process.wait()


SIGHT = "[Number(document.body.dataset.from), Number(document.body.dataset.to)]"
BOX = "(() => { const b = document.querySelectorAll('svg.strip')[%d].getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; })()"


def quiet(b, path, strips):
    b.load(path)
    assert b.js("document.querySelectorAll('svg.strip').length") == strips
    for i in range(strips):  # those that are far out of sight are painted when they come into it
        b.js(f"document.querySelectorAll('svg.strip')[{i}].scrollIntoView()")
        b.settle()
    b.js("scrollTo(0, 0)")
    b.settle()
    assert b.js("[...document.querySelectorAll('svg.strip')].every(s => s.querySelectorAll('path').length > 0)"), "an empty strip"
    assert not b.complaints(), b.complaints()
    assert b.js("document.querySelectorAll('img').length") == 0
    assert "<\u2215script><img" in b.js("document.querySelector('h1').textContent")


def intruder(b):
    """The policy, and not only our care: a script that got into the page would not run."""
    b.js("(() => { const s = document.createElement('script'); s.textContent = 'window.bad = 1'; document.body.append(s); })()")
    b.js("fetch('http://127.0.0.1:9/').catch(() => { window.refused = true; })")
    assert b.js("window.bad") is None and b.js("window.refused") is True
    assert b.complaints(), "the policy refused it without a word"


def zoom(b):
    whole = b.js(SIGHT)
    x, y, w, h = b.js(BOX % 0)
    length = lambda: (lambda s: s[1] - s[0])(b.js(SIGHT))
    b.key("+")
    assert length() == (whole[1] - whole[0]) // 2, b.js(SIGHT)
    seen = b.js(SIGHT)
    b.key("ArrowRight")
    assert b.js(SIGHT)[0] > seen[0] and abs(length() - (seen[1] - seen[0])) <= 1
    for _ in range(20):
        b.key("ArrowRight")
    assert b.js(SIGHT)[1] == whole[1], "beyond the end"
    b.key("0")
    assert b.js(SIGHT) == whole
    b.mouse("mouseWheel", x + w / 4, y + h / 2, deltaX=0, deltaY=-300)
    now = b.js(SIGHT)
    assert now[1] - now[0] < (whole[1] - whole[0]) * 0.7
    share = (whole[0] + (whole[1] - whole[0]) / 4 - now[0]) / (now[1] - now[0])
    assert abs(share - 0.25) < 0.02, "the wheel does not zoom where the pointer is"
    b.mouse("mousePressed", x + w / 2, y + h / 2, button="left", clickCount=1)
    b.mouse("mouseMoved", x + w / 2 - 100, y + h / 2, button="left", buttons=1)
    b.mouse("mouseReleased", x + w / 2 - 100, y + h / 2, button="left", clickCount=1)
    assert b.js(SIGHT)[0] > now[0], "dragging does not move it"
    for _ in range(40):
        b.js("document.getElementById('in').click()")
    b.settle()
    assert 0 < length() < (whole[1] - whole[0]), "too close"
    assert b.js("document.querySelectorAll('svg.strip path').length") > 0
    b.js("document.getElementById('all').click()")
    b.settle()
    assert b.js(SIGHT) == whole


def tells(b):
    x, y, w, h = b.js(BOX % 2)  # one.qcow2: 2 of 60 clusters, then 4 of data
    b.mouse("mouseMoved", x + w * 3.5 / 60, y + h / 2)
    text = b.js("document.getElementById('tip').innerText")
    assert b.js("!document.getElementById('tip').hidden")
    for want in ("one.qcow2", "0x20000 \u2013 0x60000", "256\u00a0KiB", "data, read from the top", "262\u202f144 bytes"):
        assert want in text, (want, text)
    b.mouse("mouseMoved", x + w * 23.0 / 60, y + h / 2)  # under two.qcow2's zeros, and two's data
    assert "hidden by [" in b.js("document.getElementById('tip').innerText")
    b.js("document.querySelectorAll('svg.strip')[2].focus()")
    b.key("ArrowRight")
    b.key("ArrowRight")
    said = b.js("document.getElementById('said').textContent")
    assert "one.qcow2" in said and "0x" in said and "bytes" in said, said
    b.key("Enter")
    sight = b.js(SIGHT)
    assert sight != [0, 60], sight
    b.key("ArrowDown")
    assert b.js("document.activeElement.dataset.row") == "3"
    b.key("Escape")
    b.key("0")


def sizes(b, name, shots):
    for width, height in ((1400, 900), (420, 800)):
        b.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        for scheme in ("light", "dark"):
            b.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            b.settle()
            assert b.js("document.documentElement.scrollWidth <= innerWidth"), f"{name} is wider than {width}"
            ground = b.js("getComputedStyle(document.documentElement).backgroundColor")
            assert (ground == "rgb(255, 255, 255)") == (scheme == "light"), ground
            if shots:
                b.shot(os.path.join(shots, f"{name}-{width}-{scheme}.png"))
    b.js("dispatchEvent(new Event('beforeprint'))")
    b.call("Emulation.setEmulatedMedia", media="print", features=[])
    b.settle()
    assert b.js("[...document.querySelectorAll('svg.strip')].every(s => s.querySelectorAll('path').length > 0 && s.hasAttribute('viewBox'))")
    assert b.js("getComputedStyle(document.querySelector('.bar')).display") == "none"
    if shots:
        b.shot(os.path.join(shots, f"{name}-print.png"))
    b.call("Emulation.setEmulatedMedia", media="", features=[])
    b.js("dispatchEvent(new Event('afterprint'))")
    b.call("Emulation.clearDeviceMetricsOverride")


def busy(b, folder, shots):
    rng = random.Random(3)
    rows = ["".join(rng.choice("A." if i == 0 else "A..a0...") for _ in range(30000)) for i in range(5)]
    with open("busy", "w", encoding="ascii") as f:
        f.write("all cluster=512\n" + "".join(f"b{i}.qcow2 | {r}\n" for i, r in reversed(list(enumerate(rows)))))
    must(FORGE, "busy", ".")
    page(os.path.join(folder, "busy.html"), "map", "--format=html", "--base=[2]", "b4.qcow2")
    b.load(os.path.join(folder, "busy.html"))
    assert not b.complaints(), b.complaints()
    took = min(b.js("(async () => { const t = performance.now(); dispatchEvent(new Event('resize')); "
                    "await new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r))); return performance.now() - t; })()")
               for _ in range(3))
    assert took < 2000, f"a repaint takes {took:.0f} ms"
    if shots:
        b.shot(os.path.join(shots, "busy.png"))
    return took


def page(path, *args):
    with open(path, "w", encoding="utf-8") as f:
        f.write(must(QMELD, *args))


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    p.add_argument("--shots", metavar="FOLDER", help="keep pictures of the pages there")
    shots = p.parse_args().shots
    if not shutil.which("chromium"):
        print("skipped: chromium is not installed")
        return 77
    shots = os.path.abspath(shots) if shots else None
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="qmeld-browser.", ignore_cleanup_errors=True) as folder:
        os.chdir(folder)
        with open("recipe", "w", encoding="utf-8") as f:
            f.write(RECIPE % "top.qcow2")
        must(FORGE, "recipe", ".")
        os.rename("top.qcow2", EVIL)
        page("map.html", "map", "--format=html", EVIL)
        page("plan.html", "plan", "--format=html", "--base=[2]", "--top=[3]", "--overlays=delete", EVIL)
        b = Browser(os.path.join(folder, "profile"))
        try:
            quiet(b, os.path.join(folder, "map.html"), 5)
            zoom(b)
            tells(b)
            assert not b.complaints(), b.complaints()
            sizes(b, "map", shots)
            intruder(b)
            quiet(b, os.path.join(folder, "plan.html"), 10)
            zoom(b)
            sizes(b, "plan", shots)
            took = busy(b, folder, shots)
        finally:
            b.close()
            os.chdir("/")
    print(f"pages load, zoom and tell; a busy one is repainted in {took:.0f} ms; {time.monotonic() - began:.1f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
