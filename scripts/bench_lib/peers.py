"""The filesystems that are compared: how an image of a tree is made for each, and how it is mounted."""
import contextlib, json, os, re, shutil, subprocess, time

from . import trees
from .machine import drop_caches, example, run, say


class Peer:
    """A filesystem with a tree on it."""
    tools = []
    image_name = None

    def __init__(self, bench, tree):
        self.pfs, self.tree = bench.pfs, tree
        self.place = os.path.join(bench.work, "images-" + tree.key)
        self.image = os.path.join(self.place, self.image_name or self.name)
        self.mountpoint = os.path.join(self.place, "mnt-" + self.name)
        self.process = None

    def make(self):
        os.makedirs(self.place, exist_ok=True)
        trees.once(self.image, self.write)

    def path(self):
        return self.mountpoint

    def mount(self):
        os.makedirs(self.mountpoint, exist_ok=True)
        self.attach()
        self.wait_until_mounted()

    def wait_until_mounted(self):
        for _ in range(20000):
            if os.path.ismount(self.mountpoint):
                os.stat(self.mountpoint)
                return
            if self.process and self.process.poll() is not None:
                break
            time.sleep(0.0005)
        raise RuntimeError(f"{self.name} did not mount")

    def foreground(self, *command):
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def unmount(self):
        if os.path.ismount(self.mountpoint):
            for _ in range(50):
                if subprocess.run(["umount", self.mountpoint], stderr=subprocess.DEVNULL).returncode == 0:
                    break
                time.sleep(0.1)
        if self.process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
            if self.process.poll() is None:
                self.process.terminate()
                self.process.wait()
            self.process = None

    def read_ahead(self, kb):
        device = os.stat(self.mountpoint).st_dev
        path = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
        if os.path.exists(path):
            with open(path, "w") as file:
                file.write(str(kb))

    def memory(self):
        """Resident, proportional and peak memory of the daemon in MiB, or None where the kernel is the filesystem."""
        if self.process is None:
            return None
        with open(f"/proc/{self.process.pid}/smaps_rollup") as file:
            rollup = dict(re.findall(r"^(\w+):\s+(\d+) kB", file.read(), re.M))
        with open(f"/proc/{self.process.pid}/status") as file:
            peak = re.search(r"VmHWM:\s+(\d+)", file.read())[1]
        return {key: round(int(value) / 1024, 1) for key, value in
                [("rss", rollup["Rss"]), ("pss", rollup["Pss"]), ("peak", peak)]}


class Directory(Peer):
    name = "directory"

    def make(self):
        pass

    def path(self):
        return self.tree.path

    def mount(self):
        pass

    def unmount(self):
        pass

    def read_ahead(self, kb):
        pass


class Null(Peer):
    name = "null"

    def make(self):
        pass

    def attach(self):
        self.foreground(example("null-filesystem"), self.tree.path, self.mountpoint)


class Pfs(Peer):
    options = []

    def write(self, new):
        run(self.pfs, "build", "-q", *self.options, self.tree.path, new + ":t")

    def attach(self):
        self.foreground(self.pfs, "mount", "-f", self.image + ":t", self.mountpoint)


class PfsPlain(Pfs):
    name = "pfs-plain"


class PfsZstd(Pfs):
    name, options = "pfs-zstd", ["--compress"]


class Upstream(Peer):
    tools, options = ["puzzlefs"], []

    def write(self, new):
        run("puzzlefs", "build", *self.options, self.tree.path, new + ":t")

    def attach(self):
        self.foreground("puzzlefs", "mount", "-f", self.image + ":t", self.mountpoint)


class UpstreamPlain(Upstream):
    name = "upstream-plain"


class UpstreamZstd(Upstream):
    name, options = "upstream-zstd", ["-c"]


class PfsOfUpstream(UpstreamZstd):
    name, image_name = "pfs-on-upstream-zstd", "upstream-zstd"
    attach = Pfs.attach


class Nydus(Peer):
    tools = ["nydusd"]
    name, image_name, emptied = "nydus", "nydus", True

    def write(self, new):
        blobs = os.path.join(new, "blobs")
        os.makedirs(blobs)
        run("nydus-image", "create", "--fs-version", "6", "--compressor", "zstd", "--blob-dir", blobs,
            "--bootstrap", os.path.join(new, "bootstrap"), self.tree.path, stderr=subprocess.DEVNULL)

    def make(self):
        super().make()
        self.cache = os.path.join(self.place, self.name + "-cache")
        os.makedirs(self.cache, exist_ok=True)
        self.config = os.path.join(self.place, self.name + ".json")
        backend = {"type": "localfs", "config": {"dir": os.path.join(self.image, "blobs")}}
        cache = {"type": "blobcache", "config": {"work_dir": self.cache}}
        with open(self.config, "w") as file:
            json.dump({"device": {"backend": backend, "cache": cache}, "mode": "direct", "digest_validate": False,
                       "enable_xattr": True}, file)

    def attach(self):
        if self.emptied:
            shutil.rmtree(self.cache)
            os.makedirs(self.cache)
        self.foreground("nydusd", "fuse", "--rlimit-nofile", "0", "--thread-num", "2", "--config", self.config,
                        "--bootstrap", os.path.join(self.image, "bootstrap"), "--mountpoint", self.mountpoint,
                        "--log-level", "error")


class NydusFilled(Nydus):
    name, emptied = "nydus-filled", False


class Squashfs(Peer):
    tools = ["mksquashfs"]
    name, image_name = "squashfs", "squashfs.img"

    def write(self, new):
        run("mksquashfs", self.tree.path, new, "-comp", "zstd", "-quiet", "-no-progress")

    def attach(self):
        run("mount", "-o", "loop,ro", self.image, self.mountpoint)


class SquashfuseLl(Squashfs):
    tools = ["mksquashfs", "squashfuse_ll"]
    name = "squashfuse_ll"

    def attach(self):
        self.foreground("squashfuse_ll", "-f", self.image, self.mountpoint)


class Erofs(Peer):
    tools = ["mkfs.erofs"]
    name, image_name, options = "erofs-plain", "erofs-plain.img", []

    def write(self, new):
        run("mkfs.erofs", *self.options, new, self.tree.path, stderr=subprocess.DEVNULL)

    def attach(self):
        run("mount", "-t", "erofs", "-o", "loop,ro", self.image, self.mountpoint)


class ErofsLz4hc(Erofs):
    name, image_name, options = "erofs-lz4hc", "erofs-lz4hc.img", ["-zlz4hc"]


PEERS = [Directory, Null, PfsPlain, PfsZstd, UpstreamPlain, UpstreamZstd, PfsOfUpstream, Nydus, NydusFilled,
         SquashfuseLl, Squashfs, ErofsLz4hc, Erofs]


def chosen(bench):
    return [kind for kind in PEERS if not bench.peers or kind.name in bench.peers]


def made(bench, tree):
    """The peers that could be made, and what is different in those that do not show the tree as it is."""
    peers, differences = [], {}
    for kind in chosen(bench):
        peer = kind(bench, tree)
        try:
            peer.make()
            peer.mount()
            difference = trees.difference(trees.entries_of(peer.path()), tree)
            peers.append(peer)
            if difference:
                differences[peer.name] = difference
        except (RuntimeError, OSError, subprocess.CalledProcessError) as cause:
            say(f"missing: {peer.name}: {cause}")
        finally:
            peer.unmount()
    return peers, differences


@contextlib.contextmanager
def cold(bench, peer):
    """A fresh mount after the page cache was dropped."""
    peer.unmount()
    drop_caches()
    try:
        peer.mount()
        if not bench.defaults:
            peer.read_ahead(128)
        yield
    finally:
        peer.unmount()
