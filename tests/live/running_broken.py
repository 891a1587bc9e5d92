#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""running_broken.py [CASE...]: merges under running machines in which something breaks, stops, or is in the way."""

import os
import signal
import subprocess
import sys
import time

from rig import RATE, SLOW, Fail, case, main, wait_for


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
            "--bandwidth", RATE)
    m.has(m.commit("--pivot", rc=2), "(copy) runs on vda already")
    m.virsh("blockjob", m.name, "vda", "--abort")
    m.is_chain("b.qcow2", "a.qcow2", "base.raw")


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
        return m.under_way("snapshot-delete", m.name, "a", "--bandwidth=" + RATE)

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
    beside = m.under_way("blockcommit", m.name, "vda", "--pivot", *SLOW)
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
    if time.monotonic() - began > 60:  # at this rate the job itself takes longer
        raise Fail("it took too long")
    m.is_chain("a.qcow2", "base.raw")


@case("destroyed", "the machine is destroyed in the middle: no event of the job, and no waiting")
def destroyed(m):
    m.chain("a")
    m.fill()
    beside = m.under_way("blockcommit", m.name, "vda", "--pivot", *SLOW)
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
    beside = m.under_way("blockcommit", m.name, "vda", "--wait", "--top", m.path("a.qcow2"), *SLOW)
    os.kill(m.qemu_pid(), signal.SIGKILL)
    m.has(m.end(beside, 1), "stopped before the merge was done")
    m.is_right("b.qcow2")


@case("hung", "a QEMU that does not answer: Ctrl-C ends us, and says that the job is undecided")
def hung(m):
    m.chain("a")
    m.fill()
    beside = m.under_way("blockcommit", m.name, "vda", "--pivot", *SLOW)
    pid = m.qemu_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(2)  # mostly it waits for an answer by then; if not, the same must come of it
        beside.send_signal(signal.SIGTERM)
        m.has(m.end(beside, 3), "does not answer")
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for("QEMU", lambda: m.virsh("blockjob", m.name, "vda", rc=None).rc == 0)
    m.virsh("blockjob", m.name, "vda", "--bandwidth", "0", rc=None)
    # libvirt has thrown the cancel away with our connection, or it comes through now, under the next command
    if m.commit("--pivot", rc=None).rc != 0:
        m.commit("--pivot")
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
    beside = m.under_way("blockcommit", m.name, "vda", "--pivot", *SLOW)
    m.lab.stop_daemon(signal.SIGKILL)
    time.sleep(1)  # mostly it knows of the loss by then; if not, the same must come of it
    m.lab.start_daemon()
    m.virsh("blockjob", m.name, "vda", "--bandwidth", "0")
    m.has(m.end(beside, 0), "Successfully pivoted")
    m.is_chain("base.raw")
    m.writes()
    m.destroy()
    m.is_right("base.raw")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
