#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""stopped_broken.py [CASE...]: merges for stopped machines that are killed in the middle, and gone on with."""

import os
import sys

from rig import Fail, case, main
from stage import (
    dies, dies_at_change, dies_merging, drawn, goes_on, is_source, note_of, nothing_left, reads_as_before,
    written_chain)


def ended(m):
    """All is merged and put right, and the stage is clear for the next round."""
    is_source(m, "base.raw")
    m.gone("a.qcow2", "b.qcow2")
    nothing_left(m)
    reads_as_before(m, "base.raw")
    m.virsh("undefine", m.name)
    os.unlink(m.path("base.raw"))


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
        ended(m)


@case("anywhere", "killed in front of changes of files all through it")
def anywhere(m):
    number, died = 1, True
    while died:
        drawn(m, "a", "b")
        died = dies_at_change(m, number, "--delete")
        if died:
            m.commit("--delete")
        ended(m)
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
