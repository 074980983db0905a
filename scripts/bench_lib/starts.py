"""The part `start`: mount to first stat, memory of the daemons, python3 inside the mount."""
import os, time

from . import trees
from .machine import run, timed
from .peers import PfsPlain, cold, made
from .tables import head, row, spread
from .trees import reader


def first_stat(bench):
    work = bench.work
    points = {"10 MB": trees.one_file(work, 10_000_000), "1 GB": trees.one_file(work, 1_000_000_000),
              "the tree": bench.tree(), "10,000 entries": trees.many_files(work, 10_000),
              "100,000 entries": trees.many_files(work, 100_000), "1,000,000 entries": trees.many_files(work, 1_000_000)}
    samples = first_stats(bench, points)
    print("\nMount to first stat, page cache warm")
    head("image", "ms")
    for name, values in samples.items():
        row(name, spread(values, 1))
    return samples


def first_stats(bench, points):
    """Milliseconds to the first stat for each tree, after a mount that fills the page cache."""
    mounts = {name: PfsPlain(bench, tree) for name, tree in points.items()}
    for mount in mounts.values():
        mount.make()
        milliseconds_to_first_stat(bench, mount)
    samples = {name: [] for name in mounts}
    for _ in bench.each_round("mount to first stat"):
        for name, mount in mounts.items():
            samples[name].append(milliseconds_to_first_stat(bench, mount))
    return samples


def milliseconds_to_first_stat(bench, peer):
    os.makedirs(peer.mountpoint, exist_ok=True)
    something = os.path.join(peer.mountpoint, os.listdir(peer.tree.path)[0])
    start = time.monotonic()
    # Without what subprocess does around it: a millisecond.
    mounting = os.posix_spawn(bench.pfs, [bench.pfs, "mount", peer.image + ":t", peer.mountpoint], os.environ)
    _, status = os.waitpid(mounting, 0)
    if status:
        raise RuntimeError(f"pfs mount {peer.image} failed")
    os.stat(something)
    taken = time.monotonic() - start
    run(bench.pfs, "umount", peer.mountpoint)
    await_end(peer.image)
    return taken * 1000


def await_end(store):
    """The process that served a mount removes its pins when the mount is gone: the next mount should not compete with that."""
    deadline = time.monotonic() + 10
    # A lease that a process left behind by dying stays until a collection.
    while os.listdir(os.path.join(store, ".pfs/leases")) and time.monotonic() < deadline:
        time.sleep(0.01)


def memory(bench):
    peers, _ = made(bench, bench.tree())
    results = {}
    print("\nMemory of the daemon, MiB, idle and after all files were read; python3 in the mount, s, cold and warm")
    head("", "idle", "loaded", "python3")
    for peer in peers if bench.rounds else []:
        with cold(bench, peer):
            found = {"python": python_in(peer)}
        with cold(bench, peer):
            time.sleep(2)
            found["idle"] = peer.memory()
            reader("read", peer.path())
            found["loaded"] = peer.memory()
        results[peer.name] = found
        row(peer.name, found["idle"] or "-", found["loaded"] or "-", found["python"])
    return results


def python_in(peer):
    if not os.path.exists(os.path.join(peer.tree.path, "usr/bin/python3")):
        return []
    command = ["chroot", peer.path(), "/usr/bin/python3", "-c", "import json, argparse, subprocess"]
    return [round(timed(*command), 3) for _ in range(2)]
