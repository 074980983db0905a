"""The part `mount`: one tree on every filesystem, listed and read."""
import os

from .peers import cold, made
from .tables import column, head, median, row, spread
from .trees import reader

WORKLOADS = ["stat cold", "stat warm", "read cold", "read warm", "big cold", "random"]
# Time of the peer over time of pfs zstd (plain for the upstream that is plain) that is aimed at: design of the mount.
TARGETS = {
    "upstream-plain": [5, 8, 3.5, 12, 20, 40], "upstream-zstd": [5, 8, 11, 40, 80, 150],
    "nydus": [1.2, 1.0, 1.1, 1.25, 0.8, 1.0], "squashfuse_ll": [4, 8, 1.8, 4.4, 1.4, 2.5],
    "squashfs": [1.2, 1.0, 1.6, 1.8, 1.4, None], "erofs-lz4hc": [1.1, 0.95, 0.95, 1.3, 0.7, None],
}


def measure(bench):
    big = big_file(bench.tree().path)
    peers, differences = made(bench, bench.tree())
    samples = {peer.name: [] for peer in peers}
    for _ in bench.each_round("mount"):
        for peer in peers:
            samples[peer.name].append(one_round(bench, peer, big))
    print_times(samples, differences)
    print_differences(differences)
    print_ratios(samples, differences)
    return {"big": big, "samples": samples, "differences": differences}


def big_file(tree):
    sizes = [(entry.stat().st_size, os.path.relpath(entry.path, tree))
             for directory, _, _ in os.walk(tree) for entry in os.scandir(directory)
             if entry.is_file(follow_symlinks=False)]
    return max(sizes)[1]


def one_round(bench, peer, big):
    times = {}
    for act in ["stat", "read"]:
        with cold(bench, peer):
            for temperature in ["cold", "warm"]:
                times[f"{act} {temperature}"] = reader(act, peer.path())["seconds"]
    with cold(bench, peer):
        times["big cold"] = reader("file", os.path.join(peer.path(), big))["seconds"]
    with cold(bench, peer):
        times["random"] = 1 / reader("random", os.path.join(peer.path(), big), "16384", "5")["iops"]
    return times


def marked(name, differences):
    return name + " \\*" if name in differences else name


def print_times(samples, differences):
    print("\nMedians (smallest to largest), seconds; random 4 KiB reads a second")
    head("", *WORKLOADS)
    for name, rounds in samples.items():
        cells = [spread(column(rounds, load), 3) for load in WORKLOADS[:-1]]
        random = median(column(rounds, "random"))
        row(marked(name, differences), *cells, f"{1 / random:,.0f}" if random else "-")


def print_differences(differences):
    for name, found in differences.items():
        print(f"\n\\* {name} does not show the tree as it is: {found['entries']:,} entries differ")
        for attribute, where in found["attributes"].items():
            first = where["first"]
            print(f"  - {attribute} of {where['entries']:,}, first {first['path']}: {first['shown']}, in the tree {first['tree']}")


def print_ratios(samples, differences):
    medians = {name: {load: median(column(rounds, load)) for load in WORKLOADS} for name, rounds in samples.items() if rounds}
    print("\nTime of the peer over time of pfs, and what was aimed at")
    head("", *WORKLOADS)
    for name, targets in TARGETS.items():
        own = "pfs-plain" if name == "upstream-plain" else "pfs-zstd"
        if name in medians and own in medians:
            ratios = [medians[name][load] / medians[own][load] for load in WORKLOADS]
            row(marked(name, differences), *(verdict(ratio, target) for ratio, target in zip(ratios, targets)))
    for own in ["pfs-plain", "pfs-zstd"]:
        if "null" in medians and own in medians:
            row(f"null filesystem over {own}",
                *(f"{medians['null'][load] / medians[own][load]:.2f}" for load in WORKLOADS))


def verdict(ratio, target):
    if target is None:
        return f"{ratio:.2f}"
    return f"{ratio:.2f} ({target}{'' if ratio >= target else ', short'})"
