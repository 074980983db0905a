#!/usr/bin/env python3
"""Make the seeds of the fuzz targets from the golden stores.

usage: make-corpus.py     (needs tar with zstd; writes fuzz/corpus/)
"""
import json
import pathlib
import struct
import subprocess
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
SEEKABLE_MAGIC = struct.pack("<I", 0x8F92EAB1)


def seed(target, name, data):
    directory = HERE / "corpus" / target
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_bytes(data)


def rootfs_seeds(name, blobs, digests):
    """digests: the rootfs, and for version 2 its metadata blobs, each of which makes a seed."""
    rootfs, *metadata = [(blobs / digest).read_bytes() for digest in digests]
    for at, blob in enumerate(metadata or [b""]):
        seed("rootfs_decode", f"{name}-{at}", struct.pack("<I", len(rootfs)) + rootfs + blob)


def digest_of(descriptor):
    return descriptor["digest"].removeprefix("sha256:")


def store_seeds(store):
    blobs = store / "blobs" / "sha256"
    for at, entry in enumerate(json.loads((store / "index.json").read_bytes())["manifests"]):
        text = (blobs / digest_of(entry)).read_bytes()
        if text[:1] == b"{":
            rootfs_seeds(f"{store.name}-{at}", blobs, [digest_of(json.loads(text)["layers"][0])])
        else:
            inodes = [blob.name for blob in blobs.iterdir() if blob.read_bytes() in text or blob.name == ""]
            named = [blob.name for blob in blobs.iterdir() if bytes.fromhex(blob.name) in text]
            rootfs_seeds(f"{store.name}-{at}", blobs, [digest_of(entry)] + named[:8])
    chunks = [blob for blob in blobs.iterdir() if blob.read_bytes().endswith(SEEKABLE_MAGIC)]
    for blob in sorted(chunks, key=lambda blob: blob.stat().st_size)[:8]:
        seed("seek_table", blob.name[:16], blob.read_bytes())


with tempfile.TemporaryDirectory() as temp:
    for archive in sorted((HERE.parent / "tests" / "golden").glob("*.tar.zst")):
        subprocess.run(["tar", "-C", temp, "--zstd", "-xf", archive], check=True)
    for index in pathlib.Path(temp).rglob("index.json"):
        store_seeds(index.parent)
