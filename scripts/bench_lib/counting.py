"""The part `code`: instructions under callgrind, which repeat where the clock does not."""
import os, re, shutil, subprocess

from .machine import example
from .tables import head, row

# How often each act of `one-act` is done in the shorter of two runs; the longer does it twice as often, and the difference is
# what the acts take, without starting and preparing. `plan` is not here: what gathers its facts would be counted with it.
TIMES = {
    "decode/rootfs of 10,000 inodes": 4, "decode/zstd chunk of 256 KiB": 8, "decode/zstd frame of 128 KiB": 32,
    "decode/digest of 256 KiB": 8, "lookup/directory of 10": 2_000, "lookup/directory of 100,000": 2_000,
    "read/plain, 128 KiB after each other": 512, "read/zstd, 128 KiB after each other": 256,
    "read/plain, 4 KiB at random": 2_000, "read/zstd, 4 KiB at random": 500,
    "mark/300 images, nothing remembered": 1, "mark/300 images, with the cache": 2,
}
# Each is counted so often, to see whether it repeats.
COUNTS = 2


def measure(bench):
    if not shutil.which("valgrind"):
        return None
    results = {}
    print("\nInstructions an act, from two runs that differ in how often it is done. Where counts differ by a little, seeds of hash"
          "\ntables are the reason; in `mark`, threads too")
    head("act", "instructions", "largest over smallest count, less 1")
    for act, times in TIMES.items() if bench.rounds else []:
        counts = [(instructions(act, 2 * times) - instructions(act, times)) / times for _ in range(COUNTS)]
        apart = max(counts) / min(counts) - 1
        results[act] = {"instructions": counts, "repeats_exactly": apart == 0}
        row(act, f"{min(counts):,.0f}", f"{apart:.1e}" if apart else "0: the same")
    return results


def instructions(act, times):
    """What a whole run takes. Its environment is empty, since the stack begins below it."""
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", example("one-act"), act, str(times)]
    done = subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True, env={"PATH": os.environ["PATH"]})
    return int(re.search(r"Collected : (\d+)", done.stderr)[1])
