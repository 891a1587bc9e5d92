#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""stopped.py [CASE...]: merges for stopped machines, and what libvirt knows of them afterwards.

Where a guest runs (guest.py) everything that it ever wrote has to be there after the merge, in order, and it goes
on.  Where none is needed, images are filled by qemu-io, and a flat copy made before says what the disk must read.
"""

import difflib
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET

from rig import DISK, DOMAIN, Fail, case, main, wait_for

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
    beside = m.commit_beside("--bandwidth=60000", "--bytes")
    wait_for("the journal", lambda: has_journal(m))
    beside.kill()
    beside.communicate()
    m.exists(".base.raw.qmeld", ".base.raw.qmeld-domain")


def note_of(m, base="base.raw"):
    return m.path(f".{base}.qmeld-domain")


# ---- merges ----

@case("whole", "the whole chain of a stopped machine into the base; it goes on there")
def whole(m):
    written_chain(m, "a", "b", "c")
    m.has(m.commit(), "Commit complete")
    is_source(m, "base.raw")
    m.exists("a.qcow2", "b.qcow2", "c.qcow2")
    nothing_left(m)
    goes_on(m, "base.raw")
    m.has(m.commit(), "nothing to merge")


@case("inner", "a and b into the base, by path; exactly their nodes leave the kept chain")
def inner(m):
    m.disk("base.raw")
    m.define()
    for name in ("a", "b", "c"):
        m.snapshot(name)
    m.destroy()
    if stored_chain(m)[0] != ["c.qcow2", "b.qcow2", "a.qcow2", "base.raw"]:
        raise Fail(f"libvirt's own chain is {stored_chain(m)}")
    ended = stored_chain(m)[1]
    m.img("convert", "-O", "raw", m.path("c.qcow2"), m.path("flat"))
    m.commit("--base", m.path("base.raw"), "--top", m.path("b.qcow2"), "--delete")
    if stored_chain(m) != (["c.qcow2", "base.raw"], ended):
        raise Fail(f"the kept chain is {stored_chain(m)}")
    m.gone("a.qcow2", "b.qcow2")
    nothing_left(m)
    reads_as_before(m, "c.qcow2")
    starts(m)


@case("numbers", "layers by [N]; numbers of a running machine mean nothing now; the rest of a disk is kept")
def numbers(m):
    more = "<serial>s1</serial><boot order='1'/>"
    m.define([(drawn_chain(m, "a", "b"), "qcow2", "vda", more)], start=False)
    refused(m, "--base=vda[1]", sentence="number of the running machine")
    m.commit("--base=[1]", "--top=[2]")
    is_source(m, "b.qcow2")
    m.commit("--shallow", "--delete")
    is_source(m, "base.raw")
    m.gone("b.qcow2")
    m.exists("a.qcow2")
    disk = disk_of(m)
    if disk.find("serial").text != "s1" or disk.find("boot") is None or disk.find("address") is None:
        raise Fail(ET.tostring(disk, encoding="unicode"))
    reads_as_before(m, "base.raw")


@case("start", "no start while it is merged; the merge goes on, and then it starts")
def start(m):
    drawn(m, "a", "b")
    beside = m.commit_beside("--bandwidth=60000", "--bytes")
    wait_for("the journal", lambda: has_journal(m))
    m.has(m.virsh("start", m.name, rc=1), "lock")
    m.end(beside, 0)
    is_source(m, "base.raw")
    reads_as_before(m, "base.raw")
    starts(m)


@case("all-disks", "all disks as one; killed between them, the same command ends it")
def all_disks(m):
    disks = [(drawn_chain(m, "a", "b"), "qcow2", "vda", ""), (drawn_chain(m, "x", prefix="2"), "qcow2", "vdb", "")]
    m.img("create", "-q", "-f", "raw", m.path("plain.raw"), "1M")
    m.define(disks + [(m.path("plain.raw"), "raw", "vdc", "")], start=False)
    command = [m.lab.qmeld, "blockcommit", m.name, "--all-disks", "--delete"]
    dies(m, call="virDomainUpdateDeviceFlags", nth=2, command=command)
    is_source(m, "base.raw")
    is_source(m, "x.qcow2", "vdb")
    m.has(m.run(m.lab.qmeld, "status", m.dir, rc=3), f"machine \"{m.name}\"", "vda", "vdb")
    m.run(*command)
    is_source(m, "base.raw")
    is_source(m, "2base.raw", "vdb")
    m.gone("a.qcow2", "b.qcow2", "x.qcow2")
    reads_as_before(m, "base.raw")
    reads_as_before(m, "2base.raw", "2")
    nothing_left(m)
    starts(m)


@case("verified", "--verify reads back what was merged of every disk, and the report has the sum")
def verified(m):
    m.define([(drawn_chain(m, "a", "b"), "qcow2", "vda", ""), (drawn_chain(m, "x", prefix="2"), "qcow2", "vdb", "")],
             start=False)
    told = m.run(m.lab.qmeld, "blockcommit", m.name, "--all-disks", "--delete", "--verify", "--output=json").out
    numbers = {key: int(re.search(f'"{key}": *([0-9]+)', told).group(1)) for key in ("bytes-copied", "bytes-verified")}
    # clusters of 64 KiB: three from a and b, two from x; none is empty, or was there before
    if numbers != {"bytes-copied": 5 << 16, "bytes-verified": 5 << 16} or '"verified": true' not in told:
        raise Fail(f"of two disks: {told}")
    reads_as_before(m, "base.raw")
    reads_as_before(m, "2base.raw", "2")


@case("volume", "a disk of a storage pool becomes a file; the pool sees what is gone")
def volume(m):
    drawn_chain(m, "a", "b")
    pool = f"<pool type='dir'><name>{m.name}</name><target><path>{m.dir}</path></target></pool>"
    with open(m.path("pool.xml"), "w", encoding="utf-8") as f:
        f.write(pool)
    m.virsh("pool-create", m.path("pool.xml"))
    try:
        disk = f"<disk type='volume' device='disk'><driver name='qemu' type='qcow2'/><source pool='{m.name}' " \
               "volume='b.qcow2'/><target dev='vda' bus='virtio'/></disk>"
        m.define_xml(DOMAIN.format(name=m.name, serial=m.serial, disks=disk), start=False)
        m.commit("--delete")
        is_source(m, "base.raw")
        m.gone("a.qcow2", "b.qcow2")
        if "b.qcow2" in m.virsh("vol-list", m.name).out:
            raise Fail("the pool still shows what was removed")
        reads_as_before(m, "base.raw")
    finally:
        m.virsh("pool-destroy", m.name, rc=None)


# ---- refusals ----

# holds byte 0 as virtlockd does, until it is told to end (in a process of its own: whoever closes the file loses it)
LOCKD = "import fcntl, sys; f = open(sys.argv[1], 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX, 1, 0); " \
        "print('held', flush=True); sys.stdin.read()"


@case("refusals", "what would spoil something is refused, and nothing is touched")
def refusals(m):
    drawn(m, "a", "b")
    top = m.path("b.qcow2")
    refused(m, "--keep-overlay", sentence="no job")
    refused(m, "--base", top, "--top", m.path("a.qcow2"), sentence="must lie below")
    refused(m, "--base=/nowhere", sentence="no layer of disk")
    refused(m, disk="vdz", sentence='has no disk "vdz"')
    with subprocess.Popen([sys.executable, "-c", LOCKD, top], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as lockd:
        lockd.stdout.readline()
        refused(m, sentence="virtlockd")
        lockd.communicate(b"")
    for more, word in (("<transient/>", "transient"), ("<readonly/>", "read-only")):
        m.virsh("undefine", m.name)
        m.define([(top, "qcow2", "vda", more)], start=False)
        refused(m, sentence=word)
    m.virsh("undefine", m.name)
    m.define([(top, "raw", "vda", "")], start=False)
    m.has(m.commit(), "nothing to merge")  # raw has no layers, whatever it looks like
    m.virsh("undefine", m.name)
    network = "<disk type='network' device='disk'><driver name='qemu' type='qcow2'/><source protocol='nbd' name='x'>" \
              "<host name='127.0.0.1' port='1'/></source><target dev='vda' bus='virtio'/></disk>"
    m.define_xml(DOMAIN.format(name=m.name, serial=m.serial, disks=network), start=False)
    refused(m, sentence="network")


@case("shared", "a base that another machine, or another branch, reads through is refused")
def shared(m):
    drawn(m, "a", "b")
    m.img("create", "-q", "-f", "qcow2", "-b", m.path("a.qcow2"), "-F", "qcow2", m.path("other.qcow2"))
    other = DOMAIN.format(name="other", serial=m.path("s2"), disks=DISK.format(
        path=m.path("other.qcow2"), fmt="qcow2", target="vda", more=""))
    with open(m.path("other.xml"), "w", encoding="utf-8") as f:
        f.write(other)
    m.virsh("define", m.path("other.xml"))
    try:
        refused(m, sentence=["other", "other.qcow2"])
        refused(m, "--shallow", sentence="other")
    finally:
        m.virsh("undefine", "other")
    refused(m, "--shallow", sentence="other.qcow2")  # libvirt knows of it no more, and it is there
    refused(m, "--shallow", "--protect", "--delete", sentence="--protect")
    # upon stands on b, which reads as before and only loses its file; other must not be why
    away = m.lab.dir + "/away"
    m.img("create", "-q", "-f", "qcow2", "-b", m.path("b.qcow2"), "-F", "qcow2", m.path("upon.qcow2"))
    os.rename(m.path("other.qcow2"), away)
    refused(m, "--shallow", "--delete", sentence=["upon.qcow2", "rebase them"])
    os.unlink(m.path("upon.qcow2"))
    os.rename(away, m.path("other.qcow2"))
    m.img("convert", "-O", "raw", m.path("other.qcow2"), m.path("other"))
    m.commit("--shallow", "--protect")
    is_source(m, "a.qcow2")
    m.img("compare", "-f", "qcow2", "-F", "raw", m.path("other.qcow2"), m.path("other"))


def define_other(m, path, fmt="qcow2"):
    with open(m.path("other.xml"), "w", encoding="utf-8") as f:
        f.write(DOMAIN.format(name="other", serial=m.path("s2"), disks=DISK.format(
            path=path, fmt=fmt, target="vda", more="")))
    m.virsh("define", m.path("other.xml"))


@case("asked", "plain commit asks libvirt for images elsewhere: kept, in a snapshot, running; a daemon that hangs is not waited for")
def asked(m):
    os.mkdir(m.path("far"))
    m.own(m.path("far"))
    drawn(m, "a", "b")
    far = m.path("far/other.qcow2")
    m.img("create", "-q", "-f", "qcow2", "-b", m.path("base.raw"), "-F", "raw", far)
    for name in ("base.raw", "b.qcow2", "far/other.qcow2"):
        m.own(m.path(name))
    commit = (m.lab.qmeld, "commit", "--overlays=keep", m.path("b.qcow2"))
    define_other(m, far)
    try:
        m.has(m.run(*commit, rc=2), "other.qcow2")
        m.has(m.run(m.lab.qmeld, "fold", "--keep=1", m.path("b.qcow2"), rc=2), "other.qcow2")
        told = m.run(m.lab.qmeld, "plan", "--output=json", m.path("b.qcow2"), rc=2).out
        if far not in told:
            raise Fail(f"plan does not tell of {far}: {told}")
        # only a snapshot knows the image: the machine itself stands on another
        m.virsh("snapshot-create-as", "other", "s", "--disk-only", "--diskspec", f"vda,file={m.path('far/s')}")
        m.virsh("undefine", "other", "--snapshots-metadata")
        m.img("rebase", "-u", "-b", "", m.path("far/s"))
        define_other(m, m.path("far/s"))
        m.has(m.run(*commit, rc=0, env={"LIBVIRT_DEFAULT_URI": ""}), "merged")  # nobody is asked
    finally:
        m.virsh("undefine", "other", "--snapshots-metadata", rc=None)


@case("asked-running", "a machine that runs on a layer refuses a plain commit; so does no silence of the daemon")
def asked_running(m):
    drawn(m, "a", "b")
    m.own(m.path("base.raw"))
    m.own(m.path("b.qcow2"))
    define_other(m, m.path("base.raw"), "raw")
    try:
        m.virsh("start", "other", "--paused")
        m.has(m.run(m.lab.qmeld, "commit", m.path("b.qcow2"), rc=2), "other", "blockcommit")
        m.virsh("destroy", "other")
        m.lab.daemon.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        try:
            r = m.run(m.lab.qmeld, "commit", "-v", m.path("b.qcow2"))
        finally:
            m.lab.daemon.send_signal(signal.SIGCONT)
        if time.monotonic() - began > 30:
            raise Fail(f"a daemon that hangs is waited for {time.monotonic() - began} s")
        m.has(r, "libvirt was not asked")
    finally:
        m.virsh("destroy", "other", rc=None)
        m.virsh("undefine", "other", rc=None)


@case("disagree", "definition and headers that tell different chains are refused")
def disagree(m):
    drawn_chain(m, "a", "b")
    m.img("create", "-q", "-f", "qcow2", "-b", m.path("base.raw"), "-F", "raw", m.path("z.qcow2"))
    chain = f"<backingStore type='file'><format type='qcow2'/><source file='{m.path('z.qcow2')}'/></backingStore>"
    m.define([(m.path("b.qcow2"), "qcow2", "vda", chain)], start=False)
    refused(m, sentence="headers")


# ---- crashes ----

@case("killed", "killed between merge and definition, and after each later step; all three ways end it")
def killed(m):
    ways = [[m.lab.qmeld, "blockcommit", m.name, "vda", "--delete"], [m.lab.qmeld, "resume", note_of(m)],
            [m.lab.qmeld, "resume", m.path("base.raw")], [m.lab.qmeld, "recover", m.dir]]
    places = [("virDomainUpdateDeviceFlags", False, 1), ("virDomainUpdateDeviceFlags", True, 1), ("unlink", False, 1),
              ("unlink", True, 1), ("unlink", True, 2), ("unlink", True, 3)]
    for number, (call, after, nth) in enumerate(places):
        drawn(m, "a", "b")
        dies(m, "--delete", call=call, after=after, nth=nth)
        told = m.run(m.lab.qmeld, "status", m.dir, rc=None)
        if os.path.exists(note_of(m)):
            m.has(told, f"machine \"{m.name}\"", "qmeld resume")
            if told.rc != 3:
                raise Fail(f"status: exit {told.rc}")
        m.run(*ways[number % len(ways)])
        is_source(m, "base.raw")
        m.gone("a.qcow2", "b.qcow2")
        nothing_left(m)
        reads_as_before(m, "base.raw")
        m.virsh("undefine", m.name)
        os.unlink(m.path("base.raw"))


@case("anywhere", "killed in front of changes of files all through it")
def anywhere(m):
    number, died = 1, True
    while died:
        drawn(m, "a", "b")
        died = dies_at_change(m, number, "--delete")
        if died:
            m.commit("--delete")
        is_source(m, "base.raw")
        m.gone("a.qcow2", "b.qcow2")
        nothing_left(m)
        reads_as_before(m, "base.raw")
        m.virsh("undefine", m.name)
        os.unlink(m.path("base.raw"))
        number += 3
    if number < 10:
        raise Fail("it did not die often enough")


@case("without", "without libvirt recover leaves it alone and says what is left; with it that is done")
def without(m):
    drawn(m, "a", "b")
    dies_merging(m)
    alone = m.run(m.lab.qmeld, "recover", m.dir, rc=3, env={"QMELD_LIVE_MODULE": "/nowhere.so"})
    m.has(alone, "left to do", m.name, "qmeld resume")
    m.exists(".base.raw.qmeld", ".base.raw.qmeld-domain")
    is_source(m, "b.qcow2")
    reads_as_before(m, "b.qcow2")
    m.run(m.lab.qmeld, "resume", m.path("a.qcow2"))
    is_source(m, "base.raw")
    reads_as_before(m, "base.raw")
    nothing_left(m)


@case("gone", "the note of a machine that is not defined any more says what to do; defined again it is ended")
def gone(m):
    drawn(m, "a", "b")
    dies(m, call="virDomainUpdateDeviceFlags")
    text = m.virsh("dumpxml", m.name, "--inactive").out
    m.virsh("undefine", m.name)
    m.has(m.run(m.lab.qmeld, "resume", note_of(m), rc=3), "any more", "remove this note")
    m.define_xml(text, start=False)
    m.run(m.lab.qmeld, "resume", note_of(m))
    is_source(m, "base.raw")
    nothing_left(m)


@case("branch", "a snapshot on another branch, with its state in the range, refuses the merge")
def branch(m):
    snapshotted(m, m.name, "")
    text = m.virsh("snapshot-dumpxml", m.name, "s2").out
    m.img("create", "-q", "-f", "qcow2", "-b", m.path("s1.qcow2"), "-F", "qcow2", m.path("side.qcow2"))
    text = text.replace("<name>s2</name>", "<name>side</name>").replace(m.path("s2.qcow2"), m.path("side.qcow2"))
    with open(m.path("side.xml"), "w", encoding="utf-8") as f:
        f.write(text)
    m.virsh("snapshot-create", m.name, m.path("side.xml"), "--redefine")
    refused(m, sentence="side")
    os.unlink(m.path("side.qcow2"))
    refused(m, sentence=["side", "branch"])
    m.virsh("snapshot-delete", m.name, "side", "--metadata")
    m.commit()
    is_source(m, "base.raw")


@case("ran", "a machine that ran after the crash loses nothing: before the definition changed, and after")
def ran(m):
    written_chain(m, "a")
    dies(m, call="virDomainUpdateDeviceFlags")
    m.virsh("start", m.name)  # on the old chain
    m.writes(1)
    m.has(m.run(m.lab.qmeld, "resume", note_of(m), rc=None), "left to do")
    m.destroy()
    m.commit()
    is_source(m, "base.raw")
    m.is_right("base.raw")
    m.virsh("start", m.name)
    m.snapshot("b")
    m.writes(1)
    m.destroy()
    dies(m, call="virDomainUpdateDeviceFlags", after=True)
    goes_on(m, "base.raw")  # on the new one
    newest = m.is_right("base.raw").newest
    m.commit()
    if m.is_right("base.raw").newest != newest:
        raise Fail("an old layer was merged over what the guest wrote since")
    nothing_left(m)


@case("anew", "a machine that ran after half a merge has it begun anew")
def anew(m):
    written_chain(m, "a")
    dies_merging(m)
    m.virsh("start", m.name)
    m.writes(1)
    m.has(m.commit("--pivot", rc=2), "interrupted")
    m.destroy()
    m.has(m.commit(), "begun anew")
    is_source(m, "base.raw")
    nothing_left(m)
    goes_on(m, "base.raw")


# ---- saved states, snapshots ----

@case("saved", "a saved state refuses the merge, or goes on with the merged chain")
def saved(m):
    m.chain("a", "b")
    m.virsh("managedsave", m.name)
    m.has(m.commit(rc=2), "saved state")
    m.commit("--managed-save=update", "--delete")
    is_source(m, "base.raw")
    m.gone("a.qcow2", "b.qcow2")
    passes = m.passes()
    m.virsh("start", m.name)  # goes on, does not boot
    wait_for("the guest", lambda: m.passes() > passes)
    m.destroy()
    m.is_right("base.raw")


def normal(m, name, text):
    """Of XML of machine NAME, what must be equal: without times, identities, folders."""
    text = re.sub(r"<(uuid|creationTime|cookie)>.*?</\1>|<cookie>.*?</cookie>", "", text, flags=re.S)
    text = text.replace(m.path("twin/"), "DIR/").replace(m.path(""), "DIR/")
    return text.replace(f"<name>{name}</name>", "<name>NAME</name>")


def all_texts(m, name):
    texts = [m.virsh("dumpxml", name, "--inactive").out]
    for s in m.virsh("snapshot-list", name, "--name", "--topological").out.split():
        texts.append(m.virsh("snapshot-dumpxml", name, s).out)
    current = m.virsh("snapshot-current", name, "--name", rc=None).out
    return [normal(m, name, t) for t in texts] + [current]


def same_texts(m, twin, what):
    ours, theirs = all_texts(m, m.name), all_texts(m, twin)
    if ours != theirs:
        raise Fail(what + ": " + "\n".join(difflib.unified_diff(
            "\n".join(ours).split("\n"), "\n".join(theirs).split("\n"), "ours", "virsh", n=2)))


def forget_machine(m, name):
    for left in m.virsh("snapshot-list", name, "--name", rc=None).out.split():
        m.virsh("snapshot-delete", name, left, "--metadata", rc=None)
    m.virsh("undefine", name, rc=None)


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


@case("snapshots", "snapshot-delete leaves what virsh snapshot-delete leaves: the one in the middle, the newest, the oldest")
def delete_snapshots(m):
    twin = m.name + "-twin"
    for s in ("s2", "s3", "s1"):
        snapshotted(m, m.name, "")
        snapshotted(m, twin, "twin/")
        m.img("convert", "-O", "raw", m.path("s3.qcow2"), m.path("flat"))
        try:
            m.virsh("snapshot-delete", twin, s)
            m.run(m.lab.qmeld, "snapshot-delete", m.name, s)
            same_texts(m, twin, s)
            files = [sorted(n for n in os.listdir(m.path(f)) if n.startswith("s") and n.endswith(".qcow2"))
                     for f in ("", "twin/")]
            if files[0] != files[1]:
                raise Fail(f"{s}: files {files}")
            reads_as_before(m, os.path.basename(disk_of(m).find("source").get("file")))
            nothing_left(m)
            starts(m)
        finally:
            for name in (m.name, twin):
                forget_machine(m, name)
            for folder in ("", "twin/"):
                for n in os.listdir(m.path(folder)):
                    if n.endswith((".qcow2", ".raw")):
                        os.unlink(m.path(folder + n))


@case("running", "snapshot-delete of a running machine: QEMU merges, virsh would leave the same")
def running(m):
    twin = m.name + "-twin"
    for name, folder in ((m.name, ""), (twin, "twin/")):
        snapshotted(m, name, folder)
        m.virsh("start", name, "--paused")
    m.img("convert", "-U", "-O", "raw", m.path("s3.qcow2"), m.path("flat"))
    try:
        for s in ("s2", "s3"):
            m.virsh("snapshot-delete", twin, s)
            m.run(m.lab.qmeld, "snapshot-delete", m.name, s)
            same_texts(m, twin, s)
        nothing_left(m)
        m.gone("s2.qcow2", "s3.qcow2")
        dies(m, call="virDomainSnapshotDelete", command=[m.lab.qmeld, "snapshot-delete", m.name, "s1"])
        m.run(m.lab.qmeld, "resume", note_of(m))
        if snapshots(m):
            raise Fail(f"snapshots are {snapshots(m)}")
        m.destroy()
        is_source(m, "base.raw")
        reads_as_before(m, "base.raw")
        nothing_left(m)
    finally:
        for name in (m.name, twin):
            m.virsh("destroy", name, rc=None)
            forget_machine(m, name)


@case("metadata", "blockcommit forgets snapshots whose layers were merged, and libvirt deletes the rest")
def metadata(m):
    snapshotted(m, m.name, "")
    m.commit("--base=[1]", "--top=[2]", "--delete")
    if snapshots(m) != ["s2", "s3"]:
        raise Fail(f"snapshots are {snapshots(m)}")
    m.gone("s1.qcow2")
    m.virsh("snapshot-delete", m.name, "s2")
    m.virsh("snapshot-delete", m.name, "s3")
    is_source(m, "base.raw")


@case("partly", "a snapshot of two disks with one of them merged keeps the other")
def partly(m):
    for prefix in ("", "2"):
        m.img("create", "-q", "-f", "raw", m.path(prefix + "base.raw"), "2M")
    m.define([(m.path("base.raw"), "raw", "vda", ""), (m.path("2base.raw"), "raw", "vdb", "")], start=False)
    m.virsh("start", m.name, "--paused")
    for s in ("s1", "s2"):
        m.virsh("snapshot-create-as", m.name, s, "--disk-only", "--diskspec", f"vda,file={m.path('a' + s)}",
                "--diskspec", f"vdb,file={m.path('b' + s)}")
    m.destroy()
    dies(m, "--delete", call="virDomainSnapshotCreateXML")
    m.commit("--delete")
    if snapshots(m) != ["s1", "s2"]:
        raise Fail(f"snapshots are {snapshots(m)}")
    is_source(m, "base.raw")
    m.gone("as1", "as2")
    for s in ("s1", "s2"):
        text = m.virsh("snapshot-dumpxml", m.name, s).out
        if m.path("as") in text or "<disk name='vda' snapshot='no'/>" not in text:
            raise Fail(text)
    for s in ("s2", "s1"):
        m.run(m.lab.qmeld, "snapshot-delete", m.name, s)
    is_source(m, "2base.raw", "vdb")
    m.gone("bs1", "bs2")
    nothing_left(m)
    starts(m)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
