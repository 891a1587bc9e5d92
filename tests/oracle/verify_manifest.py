#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""verify_manifest.py MANIFEST [RAW]: docs/manifest.md on nothing but hashlib.  RAW: the image, if its own file is not
raw.  Prints what differs, and exits 1 if anything does."""
import hashlib
import json
import sys


def sha(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def top(nodes):
    k = 1 << max(len(nodes) - 1, 1).bit_length() - 1
    return nodes[0] if len(nodes) == 1 else sha(b"\1", top(nodes[:k]), top(nodes[k:]))


def read(path, offset=0, length=-1):
    with open(path, "rb") as f:
        f.seek(offset)
        return f.read(length)


def verify(m, raw):
    size, leaf, nodes, at = m["size"], m["leaf_size"], [], 0
    paths = {i["layer"]: i["path"] for i in m["inputs"]}
    for entry in m["leaves"]:
        for span in entry["spans"]:
            start, kind, data = span["start"], span["kind"], raw[at:at + span["length"]]
            if start != at or (kind in ("zero", "hole") and any(data)):
                yield f"{start}: a gap, or not zeros and said to be {kind}"
            if kind == "data" and read(paths[span["layer"]], span["offset"], len(data)).ljust(len(data), b"\0") != data:
                yield f"{start}: not what layer {span['layer']} has at {span['offset']}"
            at += span["length"]
        for i in range(entry["leaf"], entry["leaf"] + entry["count"]):
            if sha(raw[i * leaf:(i + 1) * leaf]).hex() != entry["sha256"] or i != len(nodes):
                yield f"leaf {i} differs"
            nodes.append(sha(b"\0", bytes.fromhex(entry["sha256"])))
    root = sha(b"\2", size.to_bytes(8, "big"), leaf.to_bytes(8, "big"), top(nodes) if nodes else sha())
    if not at == len(raw) == size or root.hex() != m["merkle_root"] or sha(raw).hex() != m["sha256"]:
        yield "the size, the root or the digest of the disk differs"
    for i in m["inputs"]:
        if "sha256" in i and sha(read(i["path"])).hex() != i["sha256"]:
            yield f"input {i['path']} differs"


if __name__ == "__main__":
    told = json.loads(read(sys.argv[1]))
    found = list(verify(told, read(sys.argv[2] if len(sys.argv) > 2 else told["output"]["path"])))
    sys.exit("\n".join(found) or 0)
