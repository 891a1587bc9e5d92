#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""verify_manifest.py MANIFEST [RAW]: docs/manifest.md in fifty lines, on nothing but hashlib.

RAW is the image as a raw file, if the manifest's own is not one.  Prints what differs; exits 1 if anything does.
"""
import hashlib
import json
import sys

FREE = ("zero", "hole")  # kinds of spans that no file has bytes for


def sha(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def top(nodes):
    if len(nodes) == 1:
        return nodes[0]
    k = 1 << (len(nodes) - 1).bit_length() - 1
    return sha(b"\1", top(nodes[:k]), top(nodes[k:]))


def file_digest(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def load(path):
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def verify(m, raw):
    size, leaf, nodes, at = m["size"], m["leaf_size"], [], 0
    layers = {i["layer"]: i for i in m["inputs"]}
    for entry in m["leaves"]:
        assert entry["leaf"] == len(nodes) and entry["spans"][0]["start"] == at, "leaves and spans are without gaps"
        for span in entry["spans"]:
            assert span["start"] == at, "spans are without gaps"
            at += span["length"]
            data = raw[span["start"]:at]
            if span["kind"] in FREE and data.count(0) != len(data):
                yield f"{span['start']}: not zeros, and said to be {span['kind']}"
            if span["kind"] == "data":
                with open(layers[span["layer"]]["path"], "rb") as f:
                    f.seek(span["offset"])
                    if f.read(span["length"]).ljust(span["length"], b"\0") != data:
                        yield f"{span['start']}: not what layer {span['layer']} has at {span['offset']}"
        for i in range(entry["leaf"], entry["leaf"] + entry["count"]):
            if hashlib.sha256(raw[i * leaf:(i + 1) * leaf]).hexdigest() != entry["sha256"]:
                yield f"leaf {i} differs"
        nodes += [sha(b"\0", bytes.fromhex(entry["sha256"]))] * entry["count"]
    if at != size or len(raw) != size:
        yield f"the spans reach {at}, the image {len(raw)}, the disk has {size}"
    root = sha(b"\2", size.to_bytes(8, "big"), leaf.to_bytes(8, "big"), top(nodes) if nodes else sha())
    if root.hex() != m["merkle_root"] or hashlib.sha256(raw).hexdigest() != m["sha256"]:
        yield "the root or the digest of the disk differs"
    for i in m["inputs"]:
        if file_digest(i["path"]) != i["sha256"]:
            yield f"input {i['path']} differs"


if __name__ == "__main__":
    told = load(sys.argv[1])
    with open(sys.argv[2] if len(sys.argv) > 2 else told["output"]["path"], "rb") as image:
        found = list(verify(told, image.read()))
    print("\n".join(found) or "all is as the manifest says")
    sys.exit(1 if found else 0)
