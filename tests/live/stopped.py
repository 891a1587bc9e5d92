#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""stopped.py [CASE...]: merges for stopped machines, and what libvirt knows of them afterwards.

Where a guest runs (guest.py) everything that it ever wrote has to be there after the merge, in order, and it goes
on.  Where none is needed, images are filled by qemu-io, and a flat copy made before says what the disk must read.
"""

import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET

from rig import DISK, DOMAIN, Fail, case, main, wait_for
from stage import (
    dies, disk_of, drawn, drawn_chain, goes_on, has_journal, is_source, nothing_left, reads_as_before,
    refused, starts, stored_chain, written_chain)


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
    beside.send_signal(signal.SIGSTOP)  # however long a start takes here
    try:
        m.exists(".base.raw.qmeld")
        m.has(m.virsh("start", m.name, rc=1), "lock")
    finally:
        beside.send_signal(signal.SIGCONT)
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
        if time.monotonic() - began > 60:
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
