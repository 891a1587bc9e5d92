# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a merge makes of persistent bitmaps, said once more and in another way: over sets of bytes' granules."""

import collections

import oracle

IN_USE, AUTO = 1, 2

# flags None: not told.  least <= its bits <= least | most, in granules; most None: whatever
Expected = collections.namedtuple("Expected", "flags granularity least most")


def spread(bits, granularity, to, size):
    """Granules of another size that these touch."""
    out = set()
    for bit in bits:
        start, end = bit * granularity, min((bit + 1) * granularity, size)
        out |= set(range(start // to, (end + to - 1) // to))
    return out


def clusters(q):
    """Guest clusters that a layer has an entry for."""
    return {at // q.cs for at in range(0, q.size, q.cs) if any(q.entry_at(at)[1:])}


def gaps(qs, name, base, to):
    """(granules that layers without the bitmap surely wrote above one that records, and those that they may have)."""
    least, most = set(), set()
    recording = name in base and base[name][0] & AUTO
    size = largest = qs[0].size if recording and qs[0] else 0
    for q in qs[1:]:
        have = q.bitmaps()
        if recording:
            if q.size > size and largest > size:
                most |= set(range(size // to, -(-min(q.size, largest) // to)))
            size, largest = q.size, max(q.size, largest)
            if name not in have:
                touched = spread(clusters(q), q.cs, to, q.size)
                most |= touched
                least |= set() if q.extended else touched
        elif name in have and have[name][0] & AUTO:
            size = largest = q.size
        recording = recording or (name in have and bool(have[name][0] & AUTO))
    return least, most


def expect(qs, mode, new_size):
    """qs: the layers from the base to top, None for a raw base.  {name: Expected} of the base; KeyError-free:
    names that are not in it must not be there."""
    base = qs[0].bitmaps() if qs[0] else {}
    above = [q.bitmaps() for q in qs[1:]]
    names = {n for b in above for n in b}
    out = {}
    for name in set(base) | names:
        holders = [b[name] for b in [base] + above if name in b]
        broken = any(h[0] & IN_USE for h in holders)
        flags, gran, bits = base.get(name, (None, None, b""))
        own = oracle.set_bits(bits)
        if mode == "keep" or name not in names:
            if name in base and not (mode == "drop" and flags & IN_USE):
                out[name] = Expected(flags, gran, own, None if flags & AUTO else set())
        elif mode == "drop":
            continue
        elif broken:
            if name in base:
                out[name] = Expected(flags | IN_USE, gran, set(), None)
        else:
            to = gran or min(h[1] for h in holders)
            least, most = set(own), set()
            for q, have in zip(qs[1:], above):
                if name in have:
                    least |= spread(oracle.set_bits(have[name][2]), have[name][1], to,
                                    min(q.size, new_size))
            if not (flags or 0) & AUTO:
                sure, maybe = gaps(qs, name, base, to)
                least, most = least | sure, most | maybe
            out[name] = Expected(holders[-1][0] & AUTO, to, least,
                                 None if (flags or 0) & AUTO else most)
    return out


def compare(want, q):
    """None, or what is wrong with the bitmaps of q."""
    now = q.bitmaps()
    if set(now) != set(want):
        return f"bitmaps are {sorted(now)}, not {sorted(want)}"
    for name, (flags, gran, bits) in now.items():
        e = want[name]
        if (flags, gran) != (e.flags, e.granularity):
            return f"bitmap {name}: flags {flags:#x}, granularity {gran}, not {e.flags:#x} and {e.granularity}"
        if flags & IN_USE:
            continue
        have = oracle.set_bits(bits)
        end = -(-q.size // gran)
        least = {b for b in e.least if b < end}
        if least - have:
            return f"bitmap {name}: granules {sorted(least - have)[:8]} are clear"
        if e.most is not None and have - e.least - e.most:
            return f"bitmap {name}: granules {sorted(have - e.least - e.most)[:8]} are set"
    return None
