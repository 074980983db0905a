"""The part `build`: pfs build and puzzlefs build, and what making it durable costs."""
import os, re, shutil

from . import trees
from .machine import measured, timed, traced
from .tables import column, head, middle, row, spread
from .trees import reader, remove

SYNCS = "fsync,fdatasync,syncfs,sync_file_range"


def commands(bench):
    return {"puzzlefs plain": ["puzzlefs", "build"], "pfs plain": [bench.pfs, "build", "-q"],
            "puzzlefs zstd": ["puzzlefs", "build", "-c"], "pfs zstd": [bench.pfs, "build", "-q", "--compress"]}


def time(bench):
    """Every build makes a store of its own, and all of them are removed at the end: 3 GB a round. ext4 without a journal looks
    at every inode that was freed in the last minute whenever it makes a file, which costs more than the build."""
    if not shutil.which("puzzlefs"):
        return None
    stores, tree = os.path.join(bench.work, "build-stores"), bench.tree().path
    samples = {name: [] for name in commands(bench)}
    remove(stores)
    os.mkdir(stores)
    for nth in bench.each_round("build"):
        reader("read", tree)
        for name, command in commands(bench).items():
            samples[name].append(one_build(name, command, tree, os.path.join(stores, f"{name.replace(' ', '-')}-{nth}")))
    remove(stores)
    print_times(samples)
    return samples


def one_build(name, command, tree, store):
    """A build into a new store. puzzlefs syncs nothing, so what that would take is measured after it."""
    os.sync()
    costs = measured(*command, tree, store + ":t")
    if name.startswith("puzzlefs"):
        costs["sync_seconds"] = timed("sync", "-f", store)
    else:
        os.sync()
        costs["sync_seconds"] = sum(took for _, _, _, took in traced(SYNCS, *command, tree, store + "-traced:t"))
    return costs


def empty(store):
    remove(store)
    os.sync()


def print_times(samples):
    print("\nBuilding into a new store, page cache warm. pfs has everything on stable storage when it returns: its syncs are"
          "\npart of its time, and measured in another build. puzzlefs syncs nothing: `sync -f` after it is the second row")
    head("", "seconds", "of it in syncs", "processor s", "peak MiB")
    for name, rounds in samples.items():
        syncs, seconds = column(rounds, "sync_seconds"), column(rounds, "seconds")
        cpu, peak = middle(column(rounds, "cpu")), middle(column(rounds, "peak_mib"), 0)
        foreign = name.startswith("puzzlefs")
        row(name, spread(seconds), "0" if foreign else spread(syncs), cpu, peak)
        if foreign:
            row(name + ", then sync -f", spread([sum(pair) for pair in zip(seconds, syncs)]), spread(syncs), cpu, peak)


def memory(bench):
    """Peak memory where the tree has very many entries, and where a file is very long."""
    points = {"1,000,000 entries": trees.many_files(bench.work, 1_000_000),
              "one sparse file of 20 GB": trees.sparse_file(bench.work, 20_000_000_000)}
    store, results = os.path.join(bench.work, "build-store"), {}
    head("tree", "", "seconds", "peak MiB")
    for tree_name, tree in points.items() if bench.rounds else []:
        for name, command in commands(bench).items():
            if name.startswith("pfs"):
                empty(store)
                costs = measured(*command, tree.path, store + ":t")
                results[f"{name}, {tree_name}"] = costs
                row(tree_name, name, f"{costs['seconds']:.1f}", f"{costs['peak_mib']:.0f}")
    remove(store)
    return results
