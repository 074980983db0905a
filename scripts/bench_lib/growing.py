"""The part `growth`: how costs grow over three sizes of what they could depend on."""
import fcntl, os, shutil, subprocess, time

from . import trees
from .machine import drop_caches, measured, run
from .peers import PfsPlain, cold
from .starts import first_stats
from .tables import column, head, median, middle, row, spread
from .trees import SyntheticStore, reader

CHUNKS = 5_000
# Images and blobs.
STORES = [(333, 50_000), (667, 100_000), (2_000, 300_000)]
ENTRIES = [25_000, 50_000, 100_000]


def access(bench):
    """The first lookup in a directory, and the first read at the end of a file, of a fresh mount."""
    work = bench.work
    lookups = [(f"{entries:,} entries", trees.one_directory(work, entries), f"f{entries // 2:06}")
               for entries in [1_000, 10_000, 100_000]]
    tails = [(f"{size // 1_000_000:,} MB", trees.sparse_file(work, size), "data")
             for size in [200_000_000, 2_000_000_000, 20_000_000_000]]
    return {"lookup": first_accesses(bench, "lookup", lookups), "tail": first_accesses(bench, "tail", tails)}


def first_accesses(bench, act, points):
    samples = {name: [] for name, _, _ in points}
    mounts = {name: PfsPlain(bench, tree) for name, tree, _ in points}
    for mount in mounts.values():
        mount.make()
    for _ in bench.each_round(act):
        for name, _, path in points:
            with cold(bench, mounts[name]):
                seconds = reader(act, os.path.join(mounts[name].path(), path))["seconds"]
                samples[name].append(seconds * 1000)
    print_curve(f"{act}, page cache dropped, ms", samples)
    return samples


def mount(bench):
    """Mount to first stat, page cache warm, of images with more and more entries."""
    points = {f"{entries:,} entries": trees.many_files(bench.work, entries) for entries in [10_000, 100_000, 1_000_000]}
    samples = first_stats(bench, points)
    print_curve("mount to first stat, page cache warm, ms", samples)
    return samples


def stores(bench):
    """Collecting and deleting in larger and larger stores, tags in proportion."""
    points = {f"{blobs:,} blobs": SyntheticStore(bench.work, images, CHUNKS, blobs) for images, blobs in STORES}
    curves = {act: {name: [] for name in points} for act in ACTS}
    for _ in bench.each_round("stores"):
        for name, store in points.items():
            for act, once in ACTS.items():
                curves[act][name].append(once(bench, store))
    for act, samples in curves.items():
        print_curve(act + ", s", {name: column(rounds, "seconds") for name, rounds in samples.items()})
        print_curve(act + ", peak MiB", {name: column(rounds, "peak_mib") for name, rounds in samples.items()})
    return curves


def entries(bench):
    """Indexes of more and more entries, half of them without a tag: what looks at all of them, and what removes half."""
    points = {f"{count:,} entries": trees.long_index(bench.work, count) for count in ENTRIES}
    curves = {act: {name: [] for name in points} for act in [*INDEX_ACTS, WAIT]}
    for _ in bench.each_round("entries"):
        for name, origin in points.items():
            store = copy_of(bench, origin)
            for act, arguments in INDEX_ACTS.items():
                # About a third of what the tags could free.
                words = {"STORE": store, "BYTES": f"{os.path.getsize(os.path.join(store, 'index.json')) // 2}B"}
                filled = [words.get(word, word.replace("STORE", store)) for word in arguments]
                curves[act][name].append(measured(bench.pfs, *filled))
            store = copy_of(bench, origin)
            run(bench.pfs, "pin", f"{store}:t1")
            waited = longest_wait(store, bench.pfs, "prune", "-q", "--yes", "--hold", "0", store)
            curves[WAIT][name].append({"longest_ms": waited})
            shutil.rmtree(store)
    *acts, lock = curves.items()
    for act, samples in acts:
        print_curve(act + ", s", {name: column(rounds, "seconds") for name, rounds in samples.items()})
    print_curve(lock[0] + ", longest ms", {name: column(rounds, "longest_ms") for name, rounds in lock[1].items()})
    return curves


def longest_wait(store, *command):
    """How long, in ms, a mount would have waited at most for the store's lock while a command ran."""
    command = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    longest = 0
    with open(os.path.join(store, ".pfs/lock")) as lock:
        while command.poll() is None:
            begun = time.perf_counter()
            fcntl.flock(lock, fcntl.LOCK_SH)
            longest = max(longest, time.perf_counter() - begun)
            fcntl.flock(lock, fcntl.LOCK_UN)
            time.sleep(0.001)
    if command.returncode:
        raise subprocess.CalledProcessError(command.returncode, command.args)
    return longest * 1000


def copy_of(bench, origin):
    store = os.path.join(bench.work, "index-copy")
    shutil.rmtree(store, ignore_errors=True)
    run("cp", "-a", origin, store)
    # An index that was written in the last two seconds is compared by its bytes.
    time.sleep(2.5)
    return store


WAIT = "how long another process waits for the lock in that prune"
# In this order.
INDEX_ACTS = {
    "gc -n": ["gc", "-n", "STORE"],
    "prune -n": ["prune", "-n", "STORE"],
    "prune -n --free": ["prune", "-n", "--free", "BYTES", "STORE"],
    "delete of one tag": ["delete", "-q", "--hold", "0", "STORE:t1"],
    "prune of half": ["prune", "-q", "--yes", "--hold", "0", "STORE"],
}


def collect_cold(bench, store):
    store.forget()
    drop_caches()
    return measured(bench.pfs, "gc", "-n", store.path)


def collect_cached(bench, store):
    run(bench.pfs, "gc", "-q", "--now", store.path)
    return measured(bench.pfs, "gc", "-n", store.path)


def delete_one(bench, store):
    return measured(bench.pfs, "delete", "-q", *store.oldest())


# In this order: a collection remembers what the next two need.
ACTS = {"gc -n, page cache dropped, nothing remembered": collect_cold, "gc -n, with its cache": collect_cached,
        "delete of one tag": delete_one}


def print_curve(title, samples):
    head(title, *samples, "growth")
    ends = [median(values) for values in [*samples.values()]]
    growth = f"{ends[-1] / ends[0]:.1f}" if all(ends) else "-"
    digits = 0 if "MiB" in title else 2
    cell = middle if "MiB" in title else spread
    row("", *(cell(values, digits) for values in samples.values()), growth)
