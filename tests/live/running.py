#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""running.py [CASE...]: merges under running machines, by a real libvirt and a real QEMU.

Each case has a machine whose guest writes all the time, and afterwards asks whether everything that it wrote is
there, in order (guest.py).
"""

import json
import os
import re
import signal
import subprocess
import sys
import time

from rig import DOMAIN, Fail, case, main, wait_for

SLOW = ("--bytes", "--bandwidth=200000")  # holds a job open: the first 2 MiB or so go at once


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


@case("async_end", "without --wait the job goes on, a second is refused, and the same command finishes")
def async_end(m):
    m.chain("a")
    m.fill()
    m.has(m.commit("--active", *SLOW), "Active Block Commit started")
    m.has(m.commit("--keep-relative", "--top=[1]", rc=2), "nothing under it")
    if "Active Block Commit" not in m.job():
        raise Fail(f"no job: {m.job()}")
    m.virsh("blockjob", m.name, "vda", "--bandwidth", "0")
    m.has(m.commit("--active", "--wait"), "Now in synchronized phase")
    m.writes()  # mirrored now
    m.has(m.commit("--pivot"), "Successfully pivoted")
    m.is_chain("base.raw")
    m.writes()
    m.destroy()
    m.is_right("base.raw")


@case("busy", "a disk with another job is refused, with what to do")
def busy(m):
    m.chain("a")
    m.fill()
    m.snapshot("b")
    m.commit("--top", m.path("a.qcow2"), *SLOW)
    m.has(m.commit("--pivot", rc=2), "(commit) runs on vda already")
    m.virsh("blockjob", m.name, "vda", "--abort")
    m.virsh("blockcopy", m.name, "vda", m.path("copy"), "--format", "raw", "--transient-job", "--bytes",
            "--bandwidth", "200000")
    m.has(m.commit("--pivot", rc=2), "(copy) runs on vda already")
    m.virsh("blockjob", m.name, "vda", "--abort")
    m.is_chain("b.qcow2", "a.qcow2", "base.raw")


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
                "--bandwidth", "200000")
        m.has(m.run(m.lab.qmeld, "blockcommit", "--pivot", "--", odd, "vda", rc=2), f"virsh blockjob {uuid} vda")
        m.virsh("blockjob", uuid, "vda", "--abort")
    finally:
        m.virsh("destroy", uuid, rc=None)
        m.virsh("domrename", uuid, m.name)


@case("killed-ours", "qmeld is killed around its calls to libvirt; the same command again ends it")
def killed_ours(m):
    m.disk("base.raw")
    m.define()
    m.writes()
    for number, (call, after) in enumerate((("virDomainBlockCommit", False), ("virDomainBlockCommit", True),
                                            ("virDomainBlockJobAbort", False), ("virDomainBlockJobAbort", True))):
        top = m.snapshot(f"k{number}")
        m.commit("--pivot", rc=-9, env=m.kill_env(call, after=after))
        m.is_right()
        m.commit("--pivot")
        m.is_chain("base.raw")
        os.unlink(top)
    m.writes()
    m.destroy()
    m.is_right("base.raw")


@case("slow-delete", "snapshot-delete has its rate; canceled it leaves all as it was, killed it is gone on with when the machine is stopped")
def slow_delete(m):
    m.disk("base.raw")
    m.define()
    m.writes()
    m.snapshot("a", metadata=True)
    m.fill()
    m.snapshot("b", metadata=True)
    m.writes()

    def begin():
        beside = m.lab.begin([m.lab.qmeld, "snapshot-delete", m.name, "a", "--bandwidth=200k"])
        wait_for("the job", lambda: "Block Commit" in m.job() or beside.poll() is not None)
        return beside

    beside = begin()
    beside.send_signal(signal.SIGTERM)
    m.end(beside, 75)
    m.is_chain("b.qcow2", "a.qcow2", "base.raw")
    if [n for n in os.listdir(m.dir) if n.startswith(".")]:
        raise Fail(f"left behind: {os.listdir(m.dir)}")
    beside = begin()
    beside.kill()
    beside.communicate()
    m.destroy()
    m.has(m.run(m.lab.qmeld, "status", m.dir, rc=3), m.name)
    m.run(m.lab.qmeld, "recover", m.dir)
    m.gone("a.qcow2")
    if m.virsh("snapshot-list", m.name, "--name").out.split() != ["b"]:
        raise Fail("the snapshot is still listed")
    m.is_right("b.qcow2")


@case("ctrl_c", "Ctrl-C cancels the job: the same chain, and the same command works afterwards")
def ctrl_c(m):
    m.chain("a", "b")
    m.fill()
    beside = m.commit_beside("--pivot", *SLOW)
    wait_for("the job", lambda: "Active Block Commit" in m.job())
    time.sleep(0.5)
    beside.send_signal(signal.SIGINT)
    m.has(m.end(beside, 75), "same chain as before")
    if "Active Block" in m.job():
        raise Fail(f"the job goes on: {m.job()}")
    m.is_chain("b.qcow2", "a.qcow2", "base.raw")
    m.writes()
    m.is_right("b.qcow2")
    m.commit("--pivot")
    m.writes()
    m.destroy()
    m.is_right("base.raw")


@case("timeout", "--timeout cancels as virsh's does")
def timeout(m):
    m.chain("a")
    m.fill()
    began = time.monotonic()
    m.has(m.commit("--pivot", "--timeout=2", *SLOW, rc=75), "Commit aborted")
    if time.monotonic() - began > 20:
        raise Fail("it took too long")
    m.is_chain("a.qcow2", "base.raw")


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


@case("destroyed", "the machine is destroyed in the middle: no event of the job, and no waiting")
def destroyed(m):
    m.chain("a")
    m.fill()
    beside = m.commit_beside("--pivot", *SLOW)
    wait_for("the job", lambda: "Active Block Commit" in m.job())
    m.destroy()
    m.has(m.end(beside, 1), "stopped before the merge was done")
    m.is_right("a.qcow2")
    m.virsh("start", m.name)
    m.writes()
    m.commit("--pivot")


@case("killed", "QEMU is killed in the middle")
def killed(m):
    m.chain("a")
    m.fill()
    m.snapshot("b")
    beside = m.commit_beside("--wait", "--top", m.path("a.qcow2"), *SLOW)
    wait_for("the job", lambda: "Block Commit" in m.job())
    os.kill(m.qemu_pid(), signal.SIGKILL)
    m.has(m.end(beside, 1), "stopped before the merge was done")
    m.is_right("b.qcow2")


@case("hung", "a QEMU that does not answer: Ctrl-C ends us, and says that the job is undecided")
def hung(m):
    m.chain("a")
    m.fill()
    beside = m.commit_beside("--pivot", *SLOW)
    wait_for("the job", lambda: "Active Block Commit" in m.job())
    pid = m.qemu_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(2)
        beside.send_signal(signal.SIGTERM)
        m.has(m.end(beside, 3, 35), "does not answer")
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for("QEMU", lambda: m.virsh("blockjob", m.name, "vda", rc=None).rc == 0)
    m.virsh("blockjob", m.name, "vda", "--bandwidth", "0", rc=None)
    m.commit("--pivot")  # whether the cancel came through or not
    m.writes()
    m.destroy()
    m.is_right("base.raw")


@case("full", "the base's file system runs full while it mirrors: FAILED after READY, and the chain is valid")
def full(m):
    small = m.path("small")
    os.mkdir(small)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=0777", "none", small],
                             stderr=subprocess.DEVNULL, check=False).returncode == 0
    if not mounted:
        print("      (not root: no small file system; the case is skipped)")
        return
    try:
        m.disk("small/base.raw")
        m.define([(m.path("small/base.raw"), "raw", "vda", "")])
        m.writes()
        m.snapshot("a")
        m.writes()
        with open(m.path("small/ballast"), "wb") as f:
            f.write(b"x" * (900 << 10))
        # beyond what the base holds: the guest's own range is there already
        m.fill()
        done = m.commit("--pivot", rc=1)
        m.has(done, "may be needed", "valid")
        if "No space left" not in done.err and "full" not in done.err:
            raise Fail(f"it does not say why:\n{done.err}")
        if m.layers() != [m.path("a.qcow2"), m.path("small/base.raw")]:
            raise Fail(f"the chain is {m.layers()}")
        m.writes()
        m.is_right("a.qcow2")
        os.unlink(m.path("small/ballast"))
        m.virsh("destroy", m.name)
    finally:
        m.virsh("destroy", m.name, rc=None)
        subprocess.run(["umount", "-l", small], check=False)


@case("daemon", "libvirtd is killed and started anew in the middle: found again, and finished")
def daemon(m):
    m.chain("a")
    m.fill()
    beside = m.commit_beside("--pivot", *SLOW)
    wait_for("the job", lambda: "Active Block Commit" in m.job())
    m.lab.stop_daemon(signal.SIGKILL)
    time.sleep(1)
    m.lab.start_daemon()
    m.virsh("blockjob", m.name, "vda", "--bandwidth", "0")
    m.has(m.end(beside, 0), "Successfully pivoted")
    m.is_chain("base.raw")
    m.writes()
    m.destroy()
    m.is_right("base.raw")


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


@case("refused", "what a driver without block jobs, and a daemon that is not there, say")
def refused(m):
    m.has(m.run(m.lab.qmeld, "blockcommit", "-c", "test:///default", "test", "vdz", "--pivot", rc=2), "no disk")
    m.has(m.run(m.lab.qmeld, "blockcommit", "-c", "qemu+unix:///session?socket=/nowhere", m.name, "vda",
                "--pivot", rc=1), "cannot connect")


@case("bitmaps", "a raw base cannot hold bitmaps: that is said")
def bitmaps(m):
    m.disk("base.raw")
    m.img("create", "-q", "-f", "qcow2", "-b", m.path("base.raw"), "-F", "raw", m.path("a.qcow2"))
    m.img("bitmap", "--add", m.path("a.qcow2"), "b1")
    m.define([(m.path("a.qcow2"), "qcow2", "vda", "")])
    m.writes()
    m.has(m.commit("--pivot"), "bitmap", "full one")


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
