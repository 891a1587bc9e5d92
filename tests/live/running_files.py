#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""running_files.py [CASE...]: merges under running machines: who else has the files, which may go, what kinds there are."""

import os
import re
import subprocess
import sys
from uuid import uuid4

from rig import DISK, DOMAIN, RATE, SLOW, Fail, case, main, wait_for


@case("inside", "a snapshot inside of a merged layer reads through to the base: refused; one inside of the base is not")
def inside(m):
    m.disk("base.qcow2", "qcow2")
    m.define([(m.path("base.qcow2"), "qcow2", "vda", "")])
    m.writes()
    m.virsh("snapshot-create-as", m.name, "in-base")
    m.snapshot("a", metadata=True)
    m.virsh("snapshot-create-as", m.name, "in-a")
    m.snapshot("b", metadata=True)
    for words in (["--pivot"], ["--pivot", "--delete"], ["--top", m.path("a.qcow2"), "--wait"]):
        m.has(m.commit(*words, rc=2), "a.qcow2", 'snapshot "in-a" is kept inside')
    m.has(m.run(m.lab.qmeld, "snapshot-delete", m.name, "a", rc=2), 'snapshot "in-a" is kept inside')
    m.exists("a.qcow2")
    if [n for n in os.listdir(m.dir) if n.startswith(".")]:
        raise Fail(f"left behind: {os.listdir(m.dir)}")
    # b stands on what in-a is in, and changes only what in-a has of its own
    m.commit("--shallow", "--pivot")
    m.is_chain("a.qcow2", "base.qcow2")
    # libvirt has forgotten it, and the image has it still
    m.virsh("snapshot-delete", m.name, "in-a", "--metadata")
    m.has(m.commit("--pivot", rc=2), 'snapshot "in-a" is kept inside')
    # what the base has inside of it is no reason
    m.destroy()
    m.img("snapshot", "-d", "in-a", m.path("a.qcow2"))
    m.virsh("start", m.name, "--paused")
    m.commit("--pivot")
    m.destroy()
    m.is_right("base.qcow2")
    m.img("check", m.path("base.qcow2"))
    if "in-base" not in m.img("snapshot", "-l", m.path("base.qcow2")):
        raise Fail("the base has lost its snapshot")


@case("promises", "what QEMU does not do for us is refused; commands are printed so that a shell takes them")
def promises(m):
    m.disk("base.raw")
    m.define()
    m.snapshot("a")
    for option in ("--verify", "--protect"):
        m.has(m.commit("--pivot", option, rc=2), f"does not know {option}")
    m.is_chain("a.qcow2", "base.raw")
    m.fill()
    odd = "-a b'"
    uuid = m.virsh("domuuid", m.name).out.strip()
    m.destroy()
    m.virsh("domrename", m.name, "--", odd)
    try:
        m.virsh("start", uuid, "--paused")
        m.has(m.run(m.lab.qmeld, "commit", "--live=never", m.path("a.qcow2"), rc=2), uuid + " vda --pivot")
        m.run(m.lab.qmeld, "blockcommit", uuid, "vda", "--active", *SLOW)
        m.has(m.run(m.lab.qmeld, "blockcommit", "--wait", "--top=[1]", "--", odd, "vda", rc=2), "nothing under it")
        m.has(m.run(m.lab.qmeld, "blockcommit", "--keep-relative", "--base", m.path("a.qcow2"), "--", odd, "vda", rc=2),
              "does not lie under")
        m.virsh("blockjob", uuid, "vda", "--abort")
        m.virsh("blockcopy", uuid, "vda", m.path("copy"), "--format", "raw", "--transient-job", "--bytes",
                "--bandwidth", RATE)
        m.has(m.run(m.lab.qmeld, "blockcommit", "--pivot", "--", odd, "vda", rc=2), f"virsh blockjob {uuid} vda")
        m.virsh("blockjob", uuid, "vda", "--abort")
    finally:
        m.virsh("destroy", uuid, rc=None)
        m.virsh("domrename", uuid, m.name)


@case("delete", "merged files go once nothing names them: not before, and not what a snapshot has")
def delete(m):
    m.disk("base.raw")
    m.define()
    m.writes()
    m.snapshot("a")
    m.snapshot("b", metadata=True)
    m.snapshot("c")
    m.writes()
    done = m.commit("--pivot", "--delete")
    m.has(done, "a.qcow2", "b.qcow2 stays", "snapshot b")
    m.gone("c.qcow2")
    m.exists("b.qcow2")  # the snapshot's metadata names b, and the chain that it stands on
    m.is_chain("base.raw")
    m.writes()
    m.destroy()
    m.virsh("start", m.name)  # the kept definition is right
    m.writes()
    m.destroy()
    m.is_right("base.raw")


@case("kept", "a kept definition that is not the running one is put right, too")
def kept(m):
    m.chain("a", "b")
    xml = m.xml("--inactive")
    # as if somebody had edited it: the chain spelled out, another active layer
    broken = re.sub(r"<source file='[^']*b.qcow2'/>", f"<source file='{m.path('a.qcow2')}'/>", xml)
    if broken == xml:
        raise Fail("the stage is not set")
    with open(m.path("edited.xml"), "w", encoding="utf-8") as f:
        f.write(broken)
    m.virsh("define", m.path("edited.xml"))
    m.has(m.commit("--pivot", "--delete"), "put right")
    m.gone("a.qcow2", "b.qcow2")
    m.destroy()
    if m.source("--inactive") != m.path("base.raw"):
        raise Fail(f"the kept definition has {m.source('--inactive')}")
    m.virsh("start", m.name)
    m.writes()
    m.destroy()
    m.is_right("base.raw")
    # killed behind the pivot: the same command cannot know any more what was merged, and says what it sees
    m.virsh("start", m.name, "--paused")
    m.snapshot("c")
    kept_c = m.xml("--inactive")
    m.snapshot("d")
    with open(m.path("edited.xml"), "w", encoding="utf-8") as f:
        f.write(kept_c)
    m.virsh("define", m.path("edited.xml"))
    m.commit("--pivot", rc=-9, env=m.kill_env("virDomainUpdateDeviceFlags"))
    m.has(m.commit("--pivot"), "nothing to merge", "c.qcow2, which stands on")


@case("sibling", "a base that a stopped domain's overlay stands on is refused; nothing is touched")
def sibling(m):
    m.chain("a")
    m.img("create", "-q", "-f", "qcow2", "-b", m.path("base.raw"), "-F", "raw", m.path("other.qcow2"))
    xml = m.xml("--inactive").replace(f"<name>{m.name}</name>", f"<name>{m.name}2</name>")
    xml = re.sub(r"<uuid>.*?</uuid>|<mac .*?/>", "", xml)
    xml = re.sub(r"<source file='[^']*a.qcow2'/>", f"<source file='{m.path('other.qcow2')}'/>", xml)
    xml = re.sub(r"<backingStore.*</backingStore>", "", xml, flags=re.S)
    with open(m.path("other.xml"), "w", encoding="utf-8") as f:
        f.write(xml)
    m.virsh("define", m.path("other.xml"))
    try:
        m.has(m.commit("--pivot", rc=2), f"{m.name}2", "other.qcow2", "would change what that one reads")
        m.is_chain("a.qcow2", "base.raw")
    finally:
        m.virsh("undefine", m.name + "2")
    m.has(m.commit("--pivot", rc=2), "other.qcow2", "stands on a layer")  # nobody's by now
    os.unlink(m.path("other.qcow2"))
    m.commit("--pivot")


@case("folder", "an image beside the chain that no definition names is not spoilt; what an earlier merge left is no reason")
def folder(m):
    m.chain("a", "b")
    other, above = m.path("other.qcow2"), m.path("above.qcow2")
    m.img("create", "-q", "-f", "qcow2", "-b", m.path("a.qcow2"), "-F", "qcow2", other)
    m.has(m.commit("--pivot", rc=2), "other.qcow2", "stands on a layer", "--force")
    m.has(m.commit("--wait", "--top", m.path("a.qcow2"), "--delete", rc=2), "other.qcow2")
    m.is_chain("b.qcow2", "a.qcow2", "base.raw")
    # a does not read otherwise when it is merged into the base itself, and stays
    m.commit("--wait", "--top", m.path("a.qcow2"))
    m.is_chain("b.qcow2", "base.raw")
    os.unlink(other)
    m.snapshot("c")
    m.writes()
    m.img("create", "-q", "-f", "qcow2", "-b", m.path("base.raw"), "-F", "raw", other)
    m.img("create", "-q", "-f", "qcow2", "-b", other, "-F", "qcow2", above)
    m.has(m.commit("--shallow", "--pivot", "--scan=/nowhere", rc=1), "/nowhere")
    m.commit("--shallow", "--pivot")  # into b: nobody else has that
    m.has(m.commit("--pivot", rc=2), "stands on a layer", "and 1 more")
    m.has(m.commit("--pivot", "--force"), "reads something else now")
    m.is_chain("base.raw")
    m.snapshot("d")
    m.commit("--pivot", "--no-scan")
    m.destroy()
    m.is_right("base.raw")


@case("bitmaps", "a raw base cannot hold bitmaps: that is said")
def bitmaps(m):
    m.disk("base.raw")
    m.img("create", "-q", "-f", "qcow2", "-b", m.path("base.raw"), "-F", "raw", m.path("a.qcow2"))
    m.img("bitmap", "--add", m.path("a.qcow2"), "b1")
    m.define([(m.path("a.qcow2"), "qcow2", "vda", "")])
    m.writes()
    m.has(m.commit("--pivot"), "bitmap", "full one")


@case("image", "qmeld commit IMAGE: found by its locks, and merged through libvirt; or refused with the command")
def image(m):
    m.chain("a", "b")
    top, inner = m.path("b.qcow2"), m.path("a.qcow2")
    refused = m.run(m.lab.qmeld, "commit", "--live=never", top, rc=2)
    m.has(refused, "running machine", f"blockcommit -c qemu:///session {m.name} vda --pivot")
    for option in ("--overlays=empty", "--atomic", "--undo", "--skip-equal", "--cache=none", "--protect"):
        m.has(m.run(m.lab.qmeld, "commit", option, top, rc=2), f"does not know {option}")
    m.is_chain("b.qcow2", "a.qcow2", "base.raw")
    m.has(m.run(m.lab.qmeld, "commit", inner), "Commit complete")
    m.is_chain("b.qcow2", "base.raw")
    m.has(m.run(m.lab.qmeld, "commit", "--base=[1]", "--overlays=delete", top), "Successfully pivoted")
    m.is_chain("base.raw")
    m.gone("b.qcow2")
    m.writes()
    m.destroy()
    m.is_right("base.raw")


@case("nobodys", "a QEMU that is nobody's domain: refused with its pid")
def nobodys(m):
    m.disk("base.raw")
    m.img("create", "-q", "-f", "qcow2", "-b", m.path("base.raw"), "-F", "raw", m.path("a.qcow2"))
    with subprocess.Popen(m.lab.as_user([
            "qemu-system-x86_64", "-machine", "pc,accel=tcg", "-nodefaults", "-display", "none", "-S", "-drive",
            f"file={m.path('a.qcow2')},format=qcow2,if=virtio"]), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL) as qemu:
        try:
            wait_for("its locks", lambda: "pid" in m.run(m.lab.qmeld, "info", m.path("a.qcow2")).out)
            m.has(m.run(m.lab.qmeld, "commit", m.path("a.qcow2"), rc=2), f"pid {qemu.pid}")
        finally:
            qemu.kill()


@case("left", "what virsh leaves at a pivot is refused with what to do; so is a snapshot whose layer was merged; each advice works")
def left(m):
    m.disk("base.raw")
    m.define()
    m.writes()
    m.snapshot("a", metadata=True)
    m.writes()
    m.virsh("blockcommit", m.name, "vda", "--active", "--pivot")
    m.writes()
    forget = f"virsh snapshot-delete {m.name} a --metadata"
    m.has(m.run(m.lab.qmeld, "snapshot-delete", m.name, "a", rc=2), "merged already", forget)
    m.snapshot("b")
    m.writes()
    m.has(m.commit("--pivot", rc=2), "a.qcow2: it stands on a layer", "remove it, if it is what an earlier merge left")
    m.destroy()
    m.has(m.commit(rc=2), "snapshot a ", forget)
    m.run(*forget.split())
    os.unlink(m.path("a.qcow2"))
    m.virsh("start", m.name)
    m.writes()
    m.commit("--pivot", "--delete")
    m.gone("b.qcow2")
    m.writes()
    m.destroy()
    m.is_right("base.raw")


@case("elsewhere", "a machine runs on one image, and its kept definition names another that stands on our base, far away")
def elsewhere(m):
    m.chain("a")
    os.mkdir(m.path("far"))
    m.own(m.path("far"))
    far, now = m.path("far/kept.qcow2"), m.path("far/now.raw")
    m.img("create", "-q", "-f", "qcow2", "-b", m.path("base.raw"), "-F", "raw", far)
    m.img("create", "-q", "-f", "raw", now, "1M")
    other = m.name + "2"
    with open(m.path("other.xml"), "w", encoding="utf-8") as f:
        f.write(DOMAIN.format(name=other, serial=m.serial + "2", disks=DISK.format(
            path=now, fmt="raw", target="vda", more="")))
    m.virsh("define", m.path("other.xml"))
    try:
        m.virsh("start", other, "--paused")
        kept = m.virsh("dumpxml", other, "--inactive").out.replace(now, far).replace("type='raw'", "type='qcow2'")
        with open(m.path("other.xml"), "w", encoding="utf-8") as f:
            f.write(kept)
        m.virsh("define", m.path("other.xml"))
        m.has(m.commit("--pivot", rc=2), other, "kept.qcow2")
        m.is_chain("a.qcow2", "base.raw")
    finally:
        m.virsh("destroy", other, rc=None)
        m.virsh("undefine", other, rc=None)


@case("datafile", "a merged layer with an external data file stays, running and stopped: nothing else would tell of the data")
def datafile(m):
    m.disk("base.raw")
    for name in ("a", "b"):
        m.img("create", "-q", "-f", "qcow2", "-o", f"data_file={m.path(name + '.data')}", "-b", m.path("base.raw"), "-F",
              "raw", m.path(name + ".qcow2"))
    m.define([(m.path("a.qcow2"), "qcow2", "vda", "")])
    os.rename(m.path("b.qcow2"), m.lab.dir + "/b.qcow2")
    m.writes()
    m.has(m.commit("--pivot", "--delete"), "a.qcow2 stays", m.path("a.data"))
    m.exists("a.qcow2", "a.data")
    m.writes()
    m.destroy()
    m.is_right("base.raw")
    os.rename(m.lab.dir + "/b.qcow2", m.path("b.qcow2"))
    m.virsh("undefine", m.name)
    m.define([(m.path("b.qcow2"), "qcow2", "vda", "")])
    m.writes()
    m.destroy()
    m.has(m.commit("--delete"), "b.qcow2 stays", m.path("b.data"))
    m.exists("b.qcow2", "b.data")
    m.virsh("start", m.name)
    m.writes()
    m.destroy()
    m.is_right("base.raw")


ENCRYPTED = """<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{path}'>
<encryption format='luks'><secret type='passphrase' uuid='{uuid}'/></encryption></source>
<target dev='vda' bus='virtio'/></disk>"""


def encrypted_base(m):
    """base.qcow2 with the guest on it, a machine that runs on it, and what qemu-img needs to read it."""
    m.disk("plain.raw")
    with open(m.path("key"), "w", encoding="utf-8") as f:
        f.write("s3cret")
    key = ["--object", f"secret,id=s,file={m.path('key')}"]
    m.run("qemu-img", "create", "-q", "-f", "qcow2", *key, "-o",
          "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", m.path("base.qcow2"), "16M")
    image = f"driver=qcow2,encrypt.key-secret=s,file.filename={m.path('base.qcow2')}"
    m.run("qemu-img", "convert", "-n", *key, "-f", "raw", m.path("plain.raw"), "--target-image-opts", image)
    uuid = str(uuid4())
    with open(m.path("secret.xml"), "w", encoding="utf-8") as f:
        f.write(f"<secret ephemeral='no' private='no'><uuid>{uuid}</uuid></secret>")
    m.virsh("secret-define", m.path("secret.xml"))
    m.virsh("secret-set-value", uuid, "--file", m.path("key"), "--plain")
    m.define_xml(DOMAIN.format(name=m.name, serial=m.serial, disks=ENCRYPTED.format(path=m.path("base.qcow2"), uuid=uuid)))
    m.writes()
    return key, image, uuid


@case("luks", "an encrypted base: merged into by QEMU, and the definition keeps the secret; stopped, the refusal says how")
def luks(m):
    key, image, uuid = encrypted_base(m)
    try:
        for name in ("a", "b"):
            m.snapshot(name)
        m.writes()
        m.commit("--top", m.path("a.qcow2"), "--wait", "--delete")
        m.commit("--pivot", "--delete")
        m.gone("a.qcow2", "b.qcow2")
        m.snapshot("d")
        m.writes()
        m.destroy()
        m.has(m.commit("--delete", rc=2), f"virsh start --paused {m.name}", f"virsh destroy {m.name}")
        m.virsh("start", "--paused", m.name)
        m.commit("--delete", "--pivot")
        m.destroy()
        m.gone("d.qcow2")
        m.virsh("start", m.name)  # the kept definition has the secret
        m.writes()
        m.destroy()
        m.run("qemu-img", "convert", *key, "--image-opts", image, "-O", "raw", m.path("now.raw"))
        m.is_right("now.raw")
        # the definition tells of no encryption, and the header does
        m.img("create", "-q", "-u", "-f", "qcow2", "-b", m.path("base.qcow2"), "-F", "qcow2", m.path("e.qcow2"), "16M")
        m.virsh("undefine", m.name)
        m.define([(m.path("e.qcow2"), "qcow2", "vda", "")], start=False)
        m.has(m.commit(rc=2), "encrypted layer", f"virsh start --paused {m.name}")
    finally:
        m.virsh("secret-undefine", uuid)


NBD = """<disk type='network' device='disk'><driver name='qemu' type='qcow2'/>
<source protocol='nbd' name='a'>{host}</source><backingStore type='network'><format type='raw'/>
<source protocol='nbd' name='base'>{host}</source><backingStore/></backingStore>
<target dev='vda' bus='virtio'/></disk>"""


@case("nbd", "disks without paths: layers by index")
def nbd(m):
    m.disk("base.raw")
    socket = m.path("nbd")
    servers = []
    try:
        where = f"nbd+unix:///base?socket={socket}0"
        m.img("create", "-q", "-u", "-f", "qcow2", "-b", where, "-F", "raw", m.path("a.qcow2"), "16M")
        m.run("truncate", "-s", "32M", m.path("a.qcow2"))  # NBD cannot grow
        for number, (name, image) in enumerate((("base", "base.raw"), ("a", "a.qcow2"))):
            servers.append(subprocess.Popen(m.lab.as_user([
                "qemu-nbd", "-t", "-f", "raw", "-x", name, "-k", f"{socket}{number}", m.path(image)])))
            wait_for("qemu-nbd", lambda n=number: os.path.exists(f"{socket}{n}"))
        disk = NBD.replace("{host}", f"<host transport='unix' socket='{socket}1'/>", 1).replace(
            "{host}", f"<host transport='unix' socket='{socket}0'/>", 1)
        m.define_xml(DOMAIN.format(name=m.name, serial=m.serial, disks=disk))
        m.writes()
        m.has(m.run(m.lab.qmeld, "info", "-c", "qemu:///session", m.name), "vda[1] ", "vda[2] ", "nbd")
        m.has(m.commit("--base=nbd://x/base", "--pivot", rc=2), "vda[2]")
        m.has(m.commit("--base=vda[2]", "--pivot", "--delete"), "Successfully pivoted", "no file of this machine")
        m.writes()
        m.destroy()
        m.is_right("base.raw")
    finally:
        m.virsh("destroy", m.name, rc=None)
        for server in servers:
            server.terminate()
            server.wait()


VOLUME = """<disk type='volume' device='disk'><driver name='qemu' type='qcow2'/>
<source pool='{pool}' volume='{volume}'/><target dev='vda' bus='virtio'/></disk>"""


@case("volume", "a disk that is a volume of a pool: found by its file, removed, and the pool knows")
def volume(m):
    m.disk("base.raw")
    m.img("create", "-q", "-f", "qcow2", "-b", m.path("base.raw"), "-F", "raw", m.path("a.qcow2"))
    m.img("create", "-q", "-f", "qcow2", "-b", m.path("base.raw"), "-F", "raw", m.path("z.qcow2"))
    m.virsh("pool-create-as", m.name, "dir", "--target", m.dir)
    try:
        # another domain's disk is a volume on the same base: no definition has a path of it
        other = DOMAIN.format(name=m.name + "2", serial=m.serial + "2",
                              disks=VOLUME.format(pool=m.name, volume="z.qcow2"))
        m.define_xml(DOMAIN.format(name=m.name, serial=m.serial,
                                   disks=VOLUME.format(pool=m.name, volume="a.qcow2")))
        m.writes()
        with open(m.path("other.xml"), "w", encoding="utf-8") as f:
            f.write(other)
        m.virsh("define", m.path("other.xml"))
        m.has(m.commit("--pivot", rc=2), f"{m.name}2", "z.qcow2")
        m.virsh("undefine", m.name + "2")
        os.unlink(m.path("z.qcow2"))
        m.has(m.run(m.lab.qmeld, "commit", "--overlays=delete", m.path("a.qcow2")), "Successfully pivoted", "removed")
        m.gone("a.qcow2")
        if "a.qcow2" in m.virsh("vol-list", m.name).out:
            raise Fail("the pool still lists it")
        m.is_chain("base.raw")
        m.writes()
        m.destroy()
        if m.source("--inactive") != m.path("base.raw"):
            raise Fail(f"the kept definition has {m.source('--inactive')}")
        m.is_right("base.raw")
    finally:
        m.virsh("undefine", m.name + "2", rc=None)
        m.virsh("destroy", m.name, rc=None)
        m.virsh("pool-destroy", m.name, rc=None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
