#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""running.py [CASE...]: merges under running machines, by a real libvirt and a real QEMU.

Each case has a machine whose guest writes all the time, and afterwards asks whether everything that it wrote is
there, in order (guest.py).  Here: which layers, what becomes of the chain, and what is said.
"""

import json
import os
import re
import sys

from rig import Fail, case, main


@case("pivot", "the whole chain into the base, and the machine goes on there")
def pivot(m):
    m.chain("a", "b", "c")
    done = m.commit("--pivot", "--verbose")
    m.has(done, "Block Commit: [100 %]", "Successfully pivoted")
    m.is_chain("base.raw")
    before = m.is_right("base.raw").newest
    m.writes(2)
    m.destroy()
    if m.is_right("base.raw").newest <= before:
        raise Fail("what the guest wrote after the pivot is not in the base")


@case("inner", "a and b into the base, by path: base <- c is left, then all of it")
def inner(m):
    m.chain("a", "b", "c")
    m.has(m.commit("--base", m.path("base.raw"), "--top", m.path("b.qcow2"), "--wait"), "Commit complete")
    m.is_chain("c.qcow2", "base.raw")
    m.is_right("c.qcow2")
    m.commit("--pivot")
    m.is_chain("base.raw")
    m.writes()
    m.destroy()
    m.is_right("base.raw")


@case("index", "layers by the indexes of the running definition, which are no depths")
def index(m):
    m.chain("a", "b", "c")
    found = re.findall(r"<(?:source file='([^']*)'|backingStore) .*?index='(\d+)'", m.xml())
    if [i for _, i in found] != ["4", "3", "2", "1"] and [i for _, i in found] != ["4", "3", "2", "1"][:len(found)]:
        raise Fail(f"the stage is not set: {found}")
    m.has(m.commit("--base=vda[1]", "--top=vda[3]", "--wait"), "Commit complete")
    m.is_chain("c.qcow2", "base.raw")
    # now 4 and 1 are left, and there is no vda[2]
    m.has(m.commit("--base=vda[2]", "--pivot", rc=2), "vda[4]", "vda[1]")
    m.commit("--base=vda[1]", "--top=vda[4]", "--pivot")
    m.is_chain("base.raw")
    # a chain that is there when the machine starts is counted the other way round
    m.destroy()
    m.is_right("base.raw")


@case("probed", "a chain found at the machine's start: the active layer is vda[1], the base vda[3]")
def probed(m):
    m.chain("a", "b")
    m.destroy()
    m.virsh("start", m.name)
    m.writes()
    if "<backingStore type='file' index='3'>" not in m.xml():
        raise Fail("the stage is not set")
    m.commit("--base=vda[3]", "--top=vda[2]", "--wait")
    m.is_chain("b.qcow2", "base.raw")
    m.commit("--pivot", "--base=[1]")
    m.is_chain("base.raw")
    m.writes()
    m.destroy()
    m.is_right("base.raw")


@case("names", "a disk by its source, layers by links and by [N]; what is in no chain is refused")
def names(m):
    m.chain("a", "b")
    os.symlink(m.path("base.raw"), m.path("link"))
    m.has(m.commit("--wait", "--top", m.path("a.qcow2"), "--base", m.path("link"),
                   disk=m.path("b.qcow2")), "Commit complete")
    m.is_chain("b.qcow2", "base.raw")
    m.has(m.commit("--pivot", "--base=/nowhere", rc=2), "is no layer", "base.raw")
    m.has(m.commit("--pivot", disk="vdz", rc=2), "has no disk")
    m.has(m.run(m.lab.qmeld, "blockcommit", "nobody", "vda", "--pivot", rc=2), "has no domain")
    m.has(m.commit("--wait", "--base", m.path("b.qcow2"), "--top", m.path("base.raw"), rc=2), "nothing under it")
    m.has(m.commit("--wait", rc=2), "add --pivot")
    m.has(m.commit("--wait", "--active", "--top=[1]", rc=2), "nothing under it")
    m.is_chain("b.qcow2", "base.raw")
    m.commit("--pivot", "--top=[2]", "--base=[1]")
    m.has(m.commit("--pivot"), "nothing to merge")
    m.is_chain("base.raw")


@case("shallow", "one level, and its base must be the one below")
def shallow(m):
    m.chain("a", "b", "c")
    m.has(m.commit("--shallow", "--base=[1]", "--pivot", rc=2), "--shallow")
    m.commit("--shallow", "--pivot")
    m.is_chain("b.qcow2", "a.qcow2", "base.raw")
    m.commit("--shallow", "--top", m.path("a.qcow2"), "--wait")
    m.is_chain("b.qcow2", "base.raw")
    m.writes()
    m.is_right("b.qcow2")


@case("keep", "--keep-overlay: the base has all of it, the machine stays where it is")
def keep(m):
    m.chain("a")
    m.has(m.commit("--keep-overlay"), "overlay image kept")
    m.is_chain("a.qcow2", "base.raw")
    m.writes()
    m.is_right("a.qcow2")
    if m.job().strip() not in ("", "No current block job for vda"):
        raise Fail(f"a job is left: {m.job()}")


@case("relative", "relative names, twice in one run: where libvirt forgets to count anew")
def relative(m):
    os.mkdir(m.path("sub"))
    m.own(m.path("sub"))
    m.disk("base.raw")
    for name, below, fmt in (("sub/s1", "../base.raw", "raw"), ("s2", "sub/s1.qcow2", "qcow2"),
                             ("s3", "s2.qcow2", "qcow2")):
        m.img("create", "-q", "-u", "-f", "qcow2", "-b", below, "-F", fmt, m.path(name + ".qcow2"), "16M")
    m.define([(m.path("s3.qcow2"), "qcow2", "vda", "")])
    m.writes(2)

    def name_in(image):
        return json.loads(m.img("info", "-U", "--output=json", m.path(image)))["backing-filename"]

    m.commit("--wait", "--keep-relative", "--top=[2]")
    if name_in("s2.qcow2").startswith("/"):
        raise Fail(f"s2 has {name_in('s2.qcow2')}")
    m.is_chain("s3.qcow2", "s2.qcow2", "base.raw")
    # libvirt would write ../base.raw into s3 now, and there is no such file
    m.has(m.commit("--wait", "--keep-relative", "--top=[2]", rc=2), "wrong relative name")
    m.is_chain("s3.qcow2", "s2.qcow2", "base.raw")
    m.has(m.commit("--wait", "--top=[2]"), "absolute backing name")
    m.is_chain("s3.qcow2", "base.raw")
    m.writes()
    m.destroy()
    m.virsh("start", m.name)
    m.writes()
    m.destroy()
    m.is_right("s3.qcow2")


@case("absolute", "--keep-relative where nothing is relative")
def absolute(m):
    m.chain("a", "b")
    m.has(m.commit("--wait", "--keep-relative", "--top=[2]", rc=2), "absolute")
    m.is_chain("b.qcow2", "a.qcow2", "base.raw")


@case("transient", "a machine without a kept definition, and a transient disk, which is refused")
def transient(m):
    m.chain("a", persistent=False)
    m.commit("--pivot", "--delete")
    m.is_chain("base.raw")
    m.gone("a.qcow2")
    m.writes()
    m.destroy()
    m.is_right("base.raw")
    m.disk("t.qcow2", "qcow2")
    m.define([(m.path("t.qcow2"), "qcow2", "vda", "<transient/>")])
    m.writes()
    m.has(m.commit("--pivot", rc=2), "transient")


@case("paused", "a machine that is paused merges as well")
def paused(m):
    m.chain("a")
    m.virsh("suspend", m.name)
    m.commit("--pivot")
    m.virsh("resume", m.name)
    m.writes()
    m.destroy()
    m.is_right("base.raw")


@case("grown", "an overlay larger than its base: the base grows")
def grown(m):
    m.chain("a")
    m.virsh("blockresize", m.name, "vda", "24M")
    m.commit("--pivot")
    if os.stat(m.path("base.raw")).st_size != 24 << 20:
        raise Fail("the base did not grow")
    m.writes()
    m.destroy()
    m.is_right("base.raw")


BUSES = (("sata", "sda", "", ""), ("virtio", "vda", "ioeventfd='off'", ""),
         ("scsi", "sda", "", "<controller type='scsi' model='lsilogic'/>"),
         ("scsi", "sda", "cache='none' io='native' discard='unmap' detect_zeroes='unmap'",
          "<controller type='scsi' model='virtio-scsi'/>"))


@case("buses", "QEMU aborts at the pivot if a vCPU's own write meets it: the guest is held for that long, and goes on")
def buses(m):
    for bus, target, driver, more in BUSES:
        m.define_bus(bus, target, driver, more)
        m.snapshot("a", target=target)
        m.writes()
        m.has(m.commit("--pivot", "--delete", disk=target), "Successfully pivoted")
        m.gone("a.qcow2")
        m.writes()  # it runs
        if bus == "sata":
            m.virsh("suspend", m.name)  # who is suspended stays so
            m.snapshot("b", target=target)
            m.commit("--pivot", "--delete", disk=target)
            m.has(m.virsh("domstate", m.name), "paused")
        m.destroy()
        m.is_right("base.raw")
        m.virsh("undefine", m.name)
        os.unlink(m.serial)


@case("held", "killed while the guest is held: the same command ends the merge, and says how the machine goes on")
def held(m):
    for number, (call, after) in enumerate((("virDomainBlockJobAbort", False), ("virDomainResume", False))):
        m.define_bus("sata", "sda")
        top = m.snapshot(f"k{number}", target="sda")
        m.writes()
        m.commit("--pivot", rc=-9, env=m.kill_env(call, after=after), disk="sda")
        m.has(m.virsh("domstate", m.name), "paused")
        m.has(m.commit("--pivot", disk="sda"), f"virsh resume {m.name}")
        m.virsh("resume", m.name)
        m.writes()
        m.destroy()
        m.is_right("base.raw")
        m.virsh("undefine", m.name)
        os.unlink(m.serial)
        os.unlink(top)


@case("json", "the report as JSON, and info")
def report(m):
    m.chain("a", "b")
    done = json.loads(m.commit("--wait", "--top=[2]", "--delete", "--output=json").out)
    if done["result"] != "merged" or done["merged"] != [{"filename": m.path("a.qcow2"), "removed": True}]:
        raise Fail(f"{done}")
    m.gone("a.qcow2")
    info = json.loads(m.run(m.lab.qmeld, "info", "--output=json", m.name).out)
    disk = info["disks"][0]
    if info["state"] != "running" or [i["filename"] for i in disk["images"]] != m.layers() or (
            disk["chain"][0]["name"] != "vda[3]"):
        raise Fail(f"{info}")
    m.has(m.run(m.lab.qmeld, "info", m.name), "running", "vda[3] ", "vda[1] ", "virtual size")
    failed = m.commit("--top=/nowhere", "--wait", "--output=json", rc=2)
    if json.loads(failed.out)["error"]["code"] != "usage":
        raise Fail(failed.out)


@case("refused", "what a driver without block jobs, and a daemon that is not there, say")
def refused(m):
    m.has(m.run(m.lab.qmeld, "blockcommit", "-c", "test:///default", "test", "vdz", "--pivot", rc=2), "no disk")
    m.has(m.run(m.lab.qmeld, "blockcommit", "-c", "qemu+unix:///session?socket=/nowhere", m.name, "vda",
                "--pivot", rc=1), "cannot connect")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
