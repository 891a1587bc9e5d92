#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""running.py [CASE...]: merges under running machines, by a real libvirt and a real QEMU.

Each case has a machine whose guest writes all the time, and afterwards asks whether everything that it wrote is
there, in order (guest.py).
"""

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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
