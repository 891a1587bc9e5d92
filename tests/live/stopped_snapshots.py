#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""stopped_snapshots.py [CASE...]: saved states, and what libvirt keeps of snapshots."""

import difflib
import os
import re
import sys

from rig import Fail, case, main, wait_for
from stage import (
    dies, disk_of, is_source, note_of, nothing_left, reads_as_before, refused, snapshots, snapshotted, starts)


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
