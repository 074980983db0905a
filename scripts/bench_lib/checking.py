"""The part `check`: pfs check --data against what the disk and the processors can do."""
import concurrent.futures, hashlib, os, time

from .machine import drop_caches, measured, run
from .peers import PfsPlain
from .tables import head, median, row, spread


def measure(bench):
    image = PfsPlain(bench, bench.tree())
    image.make()
    blobs = Blobs(os.path.join(image.image, "blobs/sha256"))
    check = lambda: measured(bench.pfs, "check", "--data", "-q", image.image)["seconds"]
    acts = {"pfs check --data, cold": (drop_caches, check), "cat, cold": (drop_caches, blobs.cat),
            "cat by inode, 4 at a time, cold": (drop_caches, blobs.cat_by_inode),
            "pfs check --data, warm": (check, check), "cat, warm": (blobs.cat, blobs.cat),
            "SHA-256 in memory, all processors": (lambda: None, blobs.hash_in_memory)}
    samples = {name: [] for name in acts}
    for _ in bench.each_round("check"):
        for name, (prepare, act) in acts.items():
            prepare()
            samples[name].append(act())
    print_times(samples, blobs.size)
    return {"bytes": blobs.size, "blobs": len(blobs.paths), "seconds": samples}


def print_times(samples, size):
    print(f"\n{size / 1e6:,.0f} MB of blobs")
    head("", "seconds", "MB/s")
    for name, seconds in samples.items():
        row(name, spread(seconds), f"{size / 1e6 / median(seconds):,.0f}" if seconds else "-")
    ceilings = {"pfs check --data, cold": "cat by inode, 4 at a time, cold",
                "pfs check --data, warm": "SHA-256 in memory, all processors"}
    for act, ceiling in ceilings.items():
        if samples[act]:
            print(f"\n{act}: {median(samples[ceiling]) / median(samples[act]):.2f} of the ceiling, {ceiling} (0.7 aimed at)")


class Blobs:
    """The files of a store, read by other means than pfs."""

    def __init__(self, directory):
        with os.scandir(directory) as entries:
            found = [(entry.path, entry.inode(), entry.stat().st_size) for entry in entries]
        self.paths = sorted(path for path, _, _ in found)
        self.size = sum(size for _, _, size in found)
        self.by_inode = [path for path, _, _ in sorted(found, key=lambda blob: blob[1])]

    def cat(self):
        return self.read(self.paths, 1)

    def cat_by_inode(self):
        return self.read(self.by_inode, 4)

    def read(self, paths, processes):
        start = time.monotonic()
        run("sh", "-c", f"xargs -0 -n 128 -P {processes} cat > /dev/null", input="\0".join(paths))
        return time.monotonic() - start

    def hash_in_memory(self):
        contents = []
        for path in self.paths:
            with open(path, "rb") as file:
                contents.append(file.read())
        processors = os.cpu_count()
        start = time.monotonic()
        # hashlib lets other threads run while it hashes.
        with concurrent.futures.ThreadPoolExecutor(processors) as threads:
            list(threads.map(hash_each, (contents[first::processors] for first in range(processors))))
        return time.monotonic() - start


def hash_each(contents):
    for content in contents:
        hashlib.sha256(content).digest()
