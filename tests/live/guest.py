# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest that writes, without an operating system, and the judge of what it wrote.

The boot sector of the disk is all its code: it writes records of eight sectors over [FIRST, LAST), again and again.
Every sector of a record holds the pair (generation, sector number), 64 times.  The generation grows with each
pass over the range, and goes on after a reboot from the one that is found in sector FIRST.  One byte goes to the
serial line after each pass.  One write is in flight at a time, so at any instant the disk must read as: generation g
up to some sector, then g - 1 to the end, split between two records.  A write that was lost, torn, put in the wrong
place, or read from a layer that should not answer any more breaks that.

The code below is assembled from guest.S.
"""

import os
import struct
import subprocess

SECTOR = 512
FIRST, LAST = 2048, 2048 + 768  # 384 KiB that are written
RECORD = 8
# place of the numbers that guest.S leaves to us
AT_RANGE, AT_PACKET = 0xa0, 0xb0

CODE = bytes.fromhex(
    "31c08ed88ec08ed0bc007cfc8816777cbeb07cb442cd13668b2e0080664566a1a07c66a3b87cbf0080668b16b87cbb0800b9"
    "40006689e866ab6689d066abe2f466424b75ec668916787c8a16777cbeb07cb80043cd13b021721766a1787c66a3b87c663b"
    "06a47c72bdb02ebaf803eeebabbaf803eeebaf")


def boot_sector(first=FIRST, last=LAST):
    """The 512 bytes."""
    sector = bytearray(SECTOR)
    sector[:len(CODE)] = CODE
    struct.pack_into("<II", sector, AT_RANGE, first, last)
    struct.pack_into("<BBHHHQ", sector, AT_PACKET, 16, 0, RECORD, 0x8000, 0, first)
    sector[510:] = b"\x55\xaa"
    return bytes(sector)


def make_disk(path, size=16 << 20, fmt="raw"):
    """A new disk with the guest on it."""
    raw = path if fmt == "raw" else path + ".raw"
    with open(raw, "wb") as f:
        f.write(boot_sector())
        f.truncate(size)
    if fmt != "raw":
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", fmt, raw, path], check=True)


def read_range(path, fmt):
    """Guest sectors [FIRST, LAST) as QEMU reads them through the whole chain, whoever uses it."""
    copy = path + ".read"
    try:
        subprocess.run(["qemu-img", "convert", "-U", "-f", fmt, "-O", "raw", path, copy], check=True)
        with open(copy, "rb") as f:
            f.seek(FIRST * SECTOR)
            return f.read((LAST - FIRST) * SECTOR)
    finally:
        if os.path.exists(copy):
            os.unlink(copy)


class Judgement:
    """What a disk holds: gens of the first and of the last record, and what is wrong with it."""

    def __init__(self, data):
        self.wrong = []
        gens = []
        if len(data) != (LAST - FIRST) * SECTOR:
            self.wrong.append(f"{len(data)} bytes could be read")
            data = data.ljust((LAST - FIRST) * SECTOR, b"\0")
        for i in range(LAST - FIRST):
            sector = data[i * SECTOR:(i + 1) * SECTOR]
            gen, lba = struct.unpack_from("<II", sector)
            if gen and (lba != FIRST + i or sector != sector[:8] * 64):
                self.wrong.append(f"sector {FIRST + i} is torn or of another place")
            gens.append(gen)
        self.newest, self.oldest = gens[0], gens[-1]
        steps = [(i, gens[i - 1], gens[i]) for i in range(1, len(gens)) if gens[i] != gens[i - 1]]
        for i, before, after in steps:
            # several steps: passes that a reboot cut short.  Newer than what lies before it: never
            if after > before:
                self.wrong.append(f"sector {FIRST + i} has generation {after}, the one before it {before}")
            if i % RECORD and after:
                self.wrong.append(f"a record is torn at sector {FIRST + i}")
        self.wrong = self.wrong[:5]


def judge(path, fmt):
    return Judgement(read_range(path, fmt))
