#!/usr/bin/env python3
"""Make the seeds of the fuzz targets: the golden stores' blobs, and some small messages.

usage: make-corpus.py     (needs tar with zstd, and the capnp tool; writes fuzz/corpus/)
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
    """digests: the rootfs, and for version 2 the blobs that it names, each of which makes a seed."""
    rootfs, *named = [(blobs / digest).read_bytes() for digest in digests]
    for at, blob in enumerate(named or [b""]):
        seed("rootfs_decode", f"{name}-{at}", with_length(rootfs) + blob)


def with_length(rootfs):
    return struct.pack("<I", len(rootfs)) + rootfs


def digest_of(descriptor):
    return descriptor["digest"].removeprefix("sha256:")


def store_seeds(store):
    blobs = store / "blobs" / "sha256"
    for at, entry in enumerate(json.loads((store / "index.json").read_bytes())["manifests"]):
        text = (blobs / digest_of(entry)).read_bytes()
        if text[:1] == b"{":
            rootfs_seeds(f"{store.name}-{at}", blobs, [digest_of(json.loads(text)["layers"][0])])
        else:
            named = [blob.name for blob in blobs.iterdir() if bytes.fromhex(blob.name) in text]
            rootfs_seeds(f"{store.name}-{at}", blobs, [digest_of(entry)] + named[:8])
    chunks = [blob for blob in blobs.iterdir() if blob.read_bytes().endswith(SEEKABLE_MAGIC)]
    for blob in sorted(chunks, key=lambda blob: blob.stat().st_size)[:8]:
        seed("seek_table", blob.name[:16], blob.read_bytes())


def encode(struct_name, text):
    command = ["capnp", "encode", HERE.parent / "schema" / "metadata.capnp", struct_name]
    return subprocess.run(command, input=text.encode(), stdout=subprocess.PIPE, check=True).stdout


def small_seeds():
    """Messages of a few hundred bytes, which are mutated far more often than the golden ones."""
    data = lambda fill: '0x"' + fill * 32 + '"'
    blob = lambda fill, **more: "digest = " + data(fill) + "".join(f", {key} = {value}" for key, value in more.items())
    inodes = [
        '(ino = 1, mode = (dir = (entries = [(ino = 2, name = "a"), (ino = 3, name = "b"), (ino = 4, name = "c")])))',
        f"(ino = 2, mode = (file = [(blob = ({blob('01')}), len = 9), (blob = ({blob('02', offset=7)}), len = 5)]))",
        '(ino = 3, mode = (symlink = void), additional = (symlinkTarget = "a", xattrs = [(key = "k", value = "v")]))',
        '(ino = 4, mode = (dir = (entries = [(ino = 5, name = "d"), (ino = 2, name = "e"), (ino = 6, name = "f")])))',
        "(ino = 5, mode = (char = (major = 1, minor = 3)), permissions = 438, uid = 7, gid = 8)",
        "(ino = 6, mode = (whiteout = void))",
        "(ino = 7, mode = (fifo = void))",
    ]
    layer = lambda *rows: "inodes = [" + ", ".join(rows) + "]"
    below = ['(ino = 1, mode = (dir = (entries = [(ino = 8, name = "z")], lookBelow = true)))', "(ino = 8, mode = (socket = void))"]
    verity = f"[(digest = {data('01')}, verity = {data('03')})]"
    layers = {"one": [layer(*inodes)], "two": [layer(*inodes), layer(*below)]}
    for name, vectors in layers.items():
        metadatas = ", ".join(f"({vector})" for vector in vectors)
        text = f"(metadatas = [{metadatas}], fsVerityData = {verity}, manifestVersion = 3)"
        seed("rootfs_decode", f"small-{name}", with_length(encode("RootfsInline", text)))
    split = f"(metadatas = [({blob('04')})], fsVerityData = {verity}, manifestVersion = 2)"
    seed("rootfs_decode", "small-split", with_length(encode("RootfsSplit", split)) + encode("InodeVector", f"({layer(*inodes)})"))


small_seeds()
with tempfile.TemporaryDirectory() as temp:
    for archive in sorted((HERE.parent / "tests" / "golden").glob("*.tar.zst")):
        subprocess.run(["tar", "-C", temp, "--zstd", "-xf", archive], check=True)
    for index in pathlib.Path(temp).rglob("index.json"):
        store_seeds(index.parent)
