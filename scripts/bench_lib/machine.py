"""Commands, what they cost, and the machine that they run on."""
import contextlib, fcntl, os, platform, re, shutil, subprocess, sys, tempfile, time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# Where cargo puts what it builds.
TARGET = os.path.join(ROOT, os.environ.get("CARGO_TARGET_DIR", "target"))
APT = {"mksquashfs": "squashfs-tools", "mkfs.erofs": "erofs-utils", "squashfuse_ll": "squashfuse",
       "debootstrap": "debootstrap", "fusermount3": "fuse3", "strace": "strace", "time": "time",
       "valgrind": "valgrind"}
CARGO = {"puzzlefs": "puzzlefs --version 0.2.0", "nydusd": "nydus-rs --version 2.2.0"}
# The packages that these are built with.
BUILT_WITH = {"puzzlefs": ["gcc", "libc6-dev", "capnproto", "libssl-dev", "pkg-config"],
              "nydusd": ["gcc", "g++", "libc6-dev", "cmake", "make", "perl", "libssl-dev", "pkg-config"]}
# Commands that show a version, and how the version looks in what they print.
VERSIONS = {
    # nydusd does not know its own.
    "puzzlefs": (["cargo", "install", "--list"], r"puzzlefs v([\w.+-]+)"),
    "nydus": (["cargo", "install", "--list"], r"nydus-rs v([\w.+-]+)"),
    "squashfuse": (["squashfuse_ll", "--version"], r"squashfuse ([\w.-]+)"),
    "mksquashfs": (["mksquashfs", "-version"], r"mksquashfs version ([\w.-]+)"),
    "mkfs.erofs": (["mkfs.erofs", "-V"], r"mkfs\.erofs \D*([\w.-]+)"),
    "valgrind": (["valgrind", "--version"], r"valgrind-([\w.-]+)"),
}


def run(*command, **options):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options).stdout


def say(text):
    print(text, file=sys.stderr, flush=True)


def example(name):
    return os.path.join(TARGET, "release/examples", name)


def install(tools):
    """Installs what is missing of these tools, and says what cannot be had."""
    missing = [tool for tool in tools if not shutil.which(tool)]
    packages = [APT[tool] for tool in missing if tool in APT]
    packages += sorted({package for tool in missing for package in BUILT_WITH.get(tool, [])})
    if packages:
        say(f"installing {' '.join(packages)}")
        subprocess.run(["apt-get", "update", "-qq"], stdout=subprocess.DEVNULL)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages], stdout=subprocess.DEVNULL)
    for tool in missing:
        if tool in CARGO:
            say(f"installing {CARGO[tool]} (some minutes)")
            subprocess.run(["cargo", "install", "--quiet", "--locked", *CARGO[tool].split()],
                           env=dict(os.environ, RUSTC_BOOTSTRAP="1"))
        if not shutil.which(tool):
            say(f"missing: {tool}; its rows will be missing too")


def drop_caches():
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")


def timed(*command):
    """Seconds that a command takes."""
    start = time.monotonic()
    run(*command)
    return time.monotonic() - start


def measured(*command):
    """What a command costs: seconds by the clock, processor seconds, peak memory in MiB.

    GNU time starts it, because the peak of a process begins with that of the one that started it, and Python has more than
    some of the commands.
    """
    with tempfile.NamedTemporaryFile("r") as usage:
        seconds = timed("time", "-o", usage.name, "-f", "%U %S %M", *command)
        user, system, peak_kb = usage.read().split()[-3:]
    return {"seconds": seconds, "cpu": float(user) + float(system), "peak_mib": int(peak_kb) / 1024}


def traced(calls, *command):
    """The system calls of these names that a command and its threads make: process, seconds at entry, text, duration."""
    with tempfile.NamedTemporaryFile("r") as trace:
        run("strace", "-f", "--seccomp-bpf", "-y", "-ttt", "-T", "-e", "trace=" + calls, "-o", trace.name, *command)
        return calls_in(trace.read())


def calls_in(log):
    """The calls in a log of strace. One that another process or thread interrupts stands in two lines, begun and resumed."""
    begun, found = {}, []
    for line in log.splitlines():
        process, entered, text = line.split(None, 2)
        if text.endswith(" <unfinished ...>"):
            begun[process] = entered, text.removesuffix(" <unfinished ...>")
            continue
        if resumed := re.match(r"<\.\.\. \w+ resumed>", text):
            entered, start = begun.pop(process)
            text = start + text[resumed.end():]
        if call := re.fullmatch(r"(.*\)) += \S+.* <([\d.]+)>", text):
            found.append((int(process), float(entered), call[1], float(call[2])))
    return found


@contextlib.contextmanager
def alone_in(work):
    """Nobody else benches in this directory, and no mount in it outlives this one or comes from one that was killed."""
    os.makedirs(work, exist_ok=True)
    with open(os.path.join(work, "lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"another scripts/bench works in {work}: wait for it, or choose another --work")
        unmount_below(work)
        try:
            yield
        finally:
            unmount_below(work)


def unmount_below(directory):
    with open("/proc/self/mountinfo") as file:
        points = [line.split()[4].encode().decode("unicode_escape") for line in file]
    for point in reversed(points):
        if point.startswith(os.path.realpath(directory) + "/"):
            if subprocess.run(["umount", point], stderr=subprocess.DEVNULL).returncode != 0:
                subprocess.run(["umount", "-l", point])


def version(command, pattern):
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError:
        return None
    found = re.search(pattern, done.stdout)
    return found and found[1]


def description(pfs):
    with open("/proc/cpuinfo") as file:
        model = re.search(r"model name\s*: (.*)", file.read())
    versions = {"pfs": version([pfs, "--version"], r"pfs (.*)")}
    versions.update((tool, version(*how)) for tool, how in VERSIONS.items())
    return {"processor": model and model[1], "processors": os.cpu_count(), "kernel": platform.release(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "date": time.strftime("%F"),
            "versions": versions}
