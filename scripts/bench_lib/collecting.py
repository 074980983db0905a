"""The part `gc`: stores that puzzlefs has built, and a large synthetic one."""
import json, os, re, shutil, subprocess

from .machine import ROOT, drop_caches, measured, run, say, traced
from .tables import column, head, middle, row, spread
from .trees import SyntheticStore

SHAPE = (2_000, 5_000, 300_000)
# So many oldest tags are removed before a collection whose locks are looked at.
TAGS_COLLECTED = 10
DRY_RUNS = {
    "gc -n, page cache dropped, nothing remembered": (SyntheticStore.forget, drop_caches),
    "gc -n, page cache warm, nothing remembered": (SyntheticStore.forget, None),
    "gc -n, with its cache": (None, None),
    "gc -n, with its cache, page cache dropped": (None, drop_caches),
}


def images(bench):
    """scripts/bench-gc."""
    if not shutil.which("puzzlefs"):
        return None
    out = os.path.join(bench.work, "gc.json")
    if bench.rounds:
        subprocess.run([os.path.join(ROOT, "scripts/bench-gc"), "--json", out, "--pfs", bench.pfs, "--rounds",
                        str(bench.rounds), "--keep", os.path.join(bench.work, "gc-images")], check=True)
        with open(out) as file:
            return json.load(file)


def synthetic(bench):
    store = SyntheticStore(bench.work, *SHAPE)
    samples = {name: [] for name in [*DRY_RUNS, "delete of one tag"]}
    for _ in bench.each_round("gc.synthetic"):
        for name, costs in one_round(bench, store).items():
            samples[name].append(costs)
    print(f"\nA store of {SHAPE[0]:,} images of {SHAPE[1]:,} chunks, {SHAPE[2]:,} blobs")
    head("", "seconds", "processor s", "peak MiB")
    for name, rounds in samples.items():
        row(name, spread(column(rounds, "seconds")), middle(column(rounds, "cpu")), middle(column(rounds, "peak_mib"), 0))
    return {"costs": samples, "locks": locks(bench, store) if bench.rounds else None}


def one_round(bench, store):
    """Each act once. The first dry run that remembers nothing is followed by a collection, which remembers."""
    costs = {}
    for name, (forget, drop) in DRY_RUNS.items():
        if forget:
            forget(store)
        elif not os.path.exists(os.path.join(store.path, ".pfs/cache")):
            run(bench.pfs, "gc", "-q", "--now", store.path)
        if drop:
            drop()
        costs[name] = measured(bench.pfs, "gc", "-n", store.path)
    costs["delete of one tag"] = measured(bench.pfs, "delete", "-q", *store.oldest())
    return costs


def locks(bench, store):
    """How long the exclusive lock is held in a real delete and a real collection, ms."""
    run(bench.pfs, "gc", "-q", "--now", store.path)
    held = {"delete of one tag": exclusive_holds("delete", bench.pfs, "delete", "-q", *store.oldest())}
    run(bench.pfs, "delete", "-q", "--keep-blobs", *store.oldest(TAGS_COLLECTED))
    name = f"gc after {TAGS_COLLECTED} tags went"
    held[name] = exclusive_holds("gc", bench.pfs, "gc", "-q", "--now", store.path)
    print("\nThe store's lock, held exclusively, seen by strace")
    head("", "times", "ms at most")
    for act, milliseconds in held.items():
        row(act, len(milliseconds), f"{max(milliseconds, default=0):.1f}")
    return held


def exclusive_holds(act, *command):
    """For each time that the command held `.pfs/lock` exclusively, how many milliseconds."""
    since, holds = {}, []
    for _, entered, call, took in traced("flock", *command):
        found = re.search(r"flock\((\d+)<.*/\.pfs/lock>, (LOCK_\w+)", call)
        if not found:
            continue
        descriptor, operation = found.groups()
        if operation == "LOCK_EX":
            since[descriptor] = entered + took
        elif operation == "LOCK_UN" and descriptor in since:
            holds.append((entered - since.pop(descriptor)) * 1000)
    if since:
        say(f"{act}: a lock was never given back before the end")
    return holds
