"""The trees and stores that are measured. Each is made once, and has its name only when it is complete."""
import functools, hashlib, json, os, shutil
from dataclasses import dataclass

from .machine import example, install, run, say

PACKAGES = "python3,git,nodejs,nginx,postgresql"
# What `reader describe` tells of an entry beside its path.
ATTRIBUTES = ["mode", "owner", "group", "links", "size", "content"]


@dataclass(frozen=True)
class Tree:
    """A directory, and what the images of it are kept under: another for other contents."""
    path: str
    key: str


def once(path, make):
    """`path`, which `make` makes under another name if it is not there: what was interrupted is made afresh."""
    if not os.path.exists(path):
        new = path + "-new"
        remove(new)
        make(new)
        os.rename(new, path)
    return path


def remove(path):
    if os.path.isdir(path):
        shutil.rmtree(path)
    elif os.path.exists(path):
        os.remove(path)


def reader(*arguments):
    return json.loads(run(example("reader"), *arguments))


def entries_of(path):
    """Every path below a directory with its attributes."""
    return {entry[0]: entry[1:] for entry in reader("describe", path)["entries"]}


@functools.cache
def entries_of_tree(path):
    return entries_of(path)


def difference(shown, tree):
    """None, or how what a filesystem shows differs from the tree: in how many entries, and for each attribute in how many and
    where first."""
    wanted = entries_of_tree(tree.path)
    differing = [path for path in sorted(wanted.keys() | shown.keys()) if wanted.get(path) != shown.get(path)]
    attributes, absent = {}, [None] * len(ATTRIBUTES)
    for path in differing:
        for attribute, here, there in zip(ATTRIBUTES, shown.get(path, absent), wanted.get(path, absent)):
            if here != there:
                first = {"path": path, "shown": here, "tree": there}
                attributes.setdefault(attribute, {"entries": 0, "first": first})["entries"] += 1
    return {"entries": len(differing), "attributes": attributes} if differing else None


def given(path):
    """Any directory, known by all that is in it."""
    contents = json.dumps(sorted(entries_of_tree(path).items()))
    return Tree(path, hashlib.sha256(contents.encode()).hexdigest()[:12])


def reference_tree(work):
    """A Debian tree."""
    def make(new):
        install(["debootstrap"])
        say("making a Debian tree by debootstrap (some minutes)")
        run("debootstrap", "--variant=minbase", "--include=" + PACKAGES, "stable", new)
        shutil.rmtree(new + "/var/cache/apt/archives")
    return given(once(os.path.join(work, "tree"), make))


def generated(work, name, make):
    return Tree(once(os.path.join(work, name), make), name)


def many_files(work, entries):
    def make(new):
        for directory in range(entries // 1000):
            path = os.path.join(new, f"d{directory:04}")
            os.makedirs(path)
            for number in range(1000):
                with open(os.path.join(path, f"f{number:04}"), "w") as file:
                    file.write(str(number) if number % 2 else "")
    return generated(work, f"entries-{entries}", make)


def one_file(work, size):
    def make(new):
        os.makedirs(new)
        with open(os.path.join(new, "data"), "wb") as file:
            for _ in range(size // 1_000_000):
                file.write(os.urandom(1_000_000))
    return generated(work, f"bytes-{size}", make)


def one_directory(work, entries):
    def make(new):
        os.makedirs(new)
        for number in range(entries):
            open(os.path.join(new, f"f{number:06}"), "w").close()
    return generated(work, f"directory-{entries}", make)


def sparse_file(work, size):
    """Zeros: few distinct chunks, but a map as long as that of any other file of this size."""
    def make(new):
        os.makedirs(new)
        with open(os.path.join(new, "data"), "wb") as file:
            file.truncate(size)
    return generated(work, f"zeros-{size}", make)


class SyntheticStore:
    """A store of `make-synthetic-store`. Deleting takes the oldest tag, whose chunks are its own for the most part of a
    stride; when too many have gone, the store is made afresh."""

    GONE_MAX = 0.03

    def __init__(self, work, images, chunks, blobs):
        self.images = images
        self.path = os.path.join(work, f"synthetic-{images}-{chunks}-{blobs}")
        if os.path.exists(self.path) and len(self.tags()) < images * (1 - self.GONE_MAX):
            remove(self.path)
        shape = [str(number) for number in [images, chunks, blobs]]
        once(self.path, lambda new: run(example("make-synthetic-store"), new, *shape))

    def tags(self):
        with open(os.path.join(self.path, "index.json")) as file:
            entries = json.load(file)["manifests"]
        return sorted(entry["annotations"]["org.opencontainers.image.ref.name"] for entry in entries)

    def oldest(self, count=1):
        return [f"{self.path}:{tag}" for tag in self.tags()[:count]]

    def forget(self):
        """Removes what pfs remembers of documents."""
        shutil.rmtree(os.path.join(self.path, ".pfs/cache"), ignore_errors=True)


def long_index(work, entries):
    """A store whose index has so many entries, each with a manifest and a layer of its own; every second one has a tag."""
    path = os.path.join(work, f"index-{entries}")

    def make(new):
        blobs = os.path.join(new, "blobs/sha256")
        os.makedirs(blobs)

        def put(content, media_type):
            digest = hashlib.sha256(content).hexdigest()
            with open(os.path.join(blobs, digest), "wb") as file:
                file.write(content)
            return {"mediaType": f"application/vnd.oci.{media_type}", "digest": f"sha256:{digest}", "size": len(content)}

        config, listed = put(b"{}", "empty.v1+json"), []
        for number in range(entries):
            layer = put(f"layer {number}".encode() * 10, "image.layer.v1.tar")
            manifest = {"schemaVersion": 2, "config": config, "layers": [layer]}
            entry = put(json.dumps(manifest).encode(), "image.manifest.v1+json")
            if number % 2:
                entry["annotations"] = {"org.opencontainers.image.ref.name": f"t{number}"}
            listed.append(entry)
        for name, document in [("oci-layout", {"imageLayoutVersion": "1.0.0"}),
                               ("index.json", {"schemaVersion": 2, "manifests": listed})]:
            with open(os.path.join(new, name), "w") as file:
                json.dump(document, file)

    once(path, make)
    return path
