# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the suites of stopped machines share: their stages, questions, and ways to die in the middle."""

import hashlib
import os
import xml.etree.ElementTree as ET

from rig import DISK, DOMAIN, Fail, wait_for

HERE = os.path.dirname(os.path.abspath(__file__))


# ---- the stage ----

def written_chain(m, *names, **kw):
    """base.raw <- names, each written to by the guest while it ran; then it is stopped."""
    m.disk("base.raw")
    m.define()
    m.writes()
    for name in names:
        m.snapshot(name, **kw)
        m.writes()
    m.destroy()


def fill(m, path, fmt, number):
    m.run("qemu-io", "-f", fmt, "-c", f"write -P {number} {number * 64}k 96k", path)


def drawn_chain(m, *names, prefix=""):
    """PREFIXbase.raw <- names, each with data of its own; PREFIXflat is what they read as."""
    below, fmt = m.path(prefix + "base.raw"), "raw"
    m.img("create", "-q", "-f", "raw", below, "2M")
    fill(m, below, "raw", 1)
    for number, name in enumerate(names, 2):
        path = m.path(name + ".qcow2")
        m.img("create", "-q", "-f", "qcow2", "-b", below, "-F", fmt, path)
        fill(m, path, "qcow2", number)
        below, fmt = path, "qcow2"
    m.img("convert", "-O", "raw", below, m.path(prefix + "flat"))
    return below


def drawn(m, *names):
    """A defined machine on a chain that was drawn; it never ran."""
    m.define([(drawn_chain(m, *names), "qcow2", "vda", "")], start=False)


def reads_as_before(m, name, prefix=""):
    fmt = "raw" if name.endswith(".raw") else "qcow2"
    m.img("compare", "-f", fmt, "-F", "raw", m.path(name), m.path(prefix + "flat"))


def starts(m):
    """A machine that can be started; nothing is run in it."""
    m.virsh("start", m.name, "--paused")
    m.destroy()


def goes_on(m, name):
    """Started on this image the guest finds all it wrote, and writes on."""
    before = m.is_right(name).newest
    m.virsh("start", m.name)
    m.writes(2)
    m.destroy()
    if m.is_right(name).newest <= before:
        raise Fail(f"what the guest wrote after the merge is not in {name}")


# ---- questions ----

def nothing_left(m):
    left = [n for n in os.listdir(m.dir) if n.startswith(".")]
    if left:
        raise Fail(f"left behind: {left}")


def is_source(m, name, target="vda", fmt=None):
    disk = disk_of(m, target)
    got = disk.find("source").get("file")
    if got != m.path(name):
        raise Fail(f"{target} is {got}, not {m.path(name)}")
    wanted = fmt or ("raw" if name.endswith(".raw") else "qcow2")
    if disk.find("driver").get("type") != wanted:
        raise Fail(f"{target}: format {disk.find('driver').get('type')}")


def disk_of(m, target="vda", domain=None):
    root = ET.fromstring(m.virsh("dumpxml", domain or m.name, "--inactive", "--security-info").out)
    for disk in root.iter("disk"):
        if disk.find("target").get("dev") == target:
            return disk
    raise Fail(f"no disk {target}")


def stored_chain(m, target="vda"):
    """Names of files in the kept definition's chain, and whether it is terminated."""
    node, names = disk_of(m, target), []
    while node is not None and node.find("source") is not None:
        names.append(os.path.basename(node.find("source").get("file")))
        node = node.find("backingStore")
    return names, node is not None


def snapshots(m):
    return m.virsh("snapshot-list", m.name, "--name", "--topological").out.split()


def state(m):
    """All that a refusal may not change."""
    files = {}
    for name in sorted(os.listdir(m.dir)):
        path = m.path(name)
        with open(path, "rb") as f:
            st = os.stat(path)
            files[name] = (hashlib.sha256(f.read()).hexdigest(), st.st_mode, st.st_uid)
    return files, m.xml("--inactive"), [m.virsh("snapshot-dumpxml", m.name, s).out for s in snapshots(m)]


def refused(m, *words, sentence, rc=2, disk="vda"):
    before = state(m)
    m.has(m.commit(*words, rc=rc, disk=disk), *([sentence] if isinstance(sentence, str) else sentence))
    if state(m) != before:
        raise Fail(f"something was changed although it was refused: {sentence}")


# ---- dying ----

def dies(m, *words, call, after=False, nth=1, command=None):
    m.run(*(command or [m.lab.qmeld, "blockcommit", m.name, "vda", *words]), rc=-9,
          env=m.kill_env(call, after=after, nth=nth))


def dies_at_change(m, number, *words):
    env = dict(m.preload(HERE + "/../oracle/killat.c"), KILL_AT=str(number))
    return m.run(m.lab.qmeld, "blockcommit", m.name, "vda", *words, rc=None, env=env).rc == -9


def has_journal(m):
    """A merge into base.raw has begun: the file is there before it counts, which it does with its head."""
    try:
        with open(m.path(".base.raw.qmeld"), "rb") as f:
            return any(f.read(8))
    except FileNotFoundError:
        return False


def dies_merging(m):
    """Killed while data is copied."""
    beside = m.commit_beside("--bandwidth=20000", "--bytes")
    wait_for("the journal", lambda: has_journal(m))
    beside.kill()
    beside.communicate()
    m.exists(".base.raw.qmeld", ".base.raw.qmeld-domain")


def note_of(m, base="base.raw"):
    return m.path(f".{base}.qmeld-domain")


def snapshotted(m, name, folder):
    """A machine with snapshots s1, s2, s3, taken while it ran."""
    os.makedirs(m.path(folder), exist_ok=True)
    m.own(m.path(folder))
    base = m.path(folder + "base.raw")
    m.img("create", "-q", "-f", "raw", base, "2M")
    xml = DOMAIN.format(name=name, serial=m.path(folder + "serial"), disks=DISK.format(
        path=base, fmt="raw", target="vda", more=""))
    with open(m.path(folder + "domain.xml"), "w", encoding="utf-8") as f:
        f.write(xml)
    m.virsh("define", m.path(folder + "domain.xml"))
    m.virsh("start", name, "--paused")
    for s in ("s1", "s2", "s3"):
        m.virsh("snapshot-create-as", name, s, "--diskspec", f"vda,file={m.path(folder + s)}.qcow2", "--disk-only")
    m.virsh("destroy", name)
    for number, s in enumerate(("s1", "s2", "s3"), 2):
        fill(m, m.path(folder + s) + ".qcow2", "qcow2", number)
