//! An image as a FUSE filesystem.
//!
//! The requests that never come are the fast ones: open, opendir, flush and access are answered so that the kernel does
//! not ask again, everything else so that it may remember the answer for ever. An image never changes, so there is
//! nothing to invalidate, and no open file has a state.

use std::{
    cell::RefCell,
    ffi::OsStr,
    io,
    os::fd::OwnedFd,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};

use super::{
    answers::{FOREVER, attributes, file_type, nothing},
    errno::Trouble,
    push::Push,
};
use crate::tree::{ChunkReader, FileKind, Node, View};

/// An opened image and the reader of its chunks, ready to be mounted.
pub struct Image {
    view: Arc<View>,
    chunks: Arc<ChunkReader>,
    /// Whether the kernel understands ENOSYS to open and to opendir; old ones take it for a failure.
    stateless: (bool, bool),
    push: Arc<OnceLock<Push>>,
}

/// It also bounds what one read asks for.
const REQUEST_BYTES_MAX: u32 = 1 << 20;
/// Readahead requests that may wait at a time.
const BACKGROUND_MAX: u16 = 64;
/// What `statfs` counts in.
const STATFS_BLOCK_BYTES: u32 = 4096;
const NAME_BYTES_MAX: u32 = 255;
/// Readahead is at most this much at a time as long as nobody raises it; a read buffer this large is kept.
const KEPT_BUFFER_BYTES: usize = REQUEST_BYTES_MAX as usize;
/// Inode numbers are never used again for something else.
const GENERATION: Generation = Generation(0);
/// So many entries of a directory that is listed are looked at for files: what stands first is read first.
const LISTED_ENTRIES_MAX: usize = 256;
/// `.` and `..` stand before the entries.
const DOTS: u64 = 2;

/// What makes for few requests, each of them optional: an older kernel mounts all the same.
const WISHES: [InitFlags; 6] = [
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_MAX_PAGES,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_EXPORT_SUPPORT,
];

thread_local! {
    /// The bytes of a reply: one buffer a worker, because a fresh one would be zeroed and faulted in for every read.
    static REPLY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Image {
    /// The filesystem of this image.
    pub fn new(view: Arc<View>, chunks: Arc<ChunkReader>) -> Self {
        Self { view, chunks, stateless: (false, false), push: Arc::default() }
    }

    /// What starts pushing small files into the page cache, to be called with the connection once there is one.
    pub(super) fn pushing(&self) -> impl FnOnce(OwnedFd) -> io::Result<()> + use<> {
        let (view, chunks, push) = (self.view.clone(), self.chunks.clone(), self.push.clone());
        move |device| Push::start(view, chunks, device).map(|started| drop(push.set(started)))
    }

    fn node(&self, ino: INodeNo) -> Result<Node, Trouble> {
        self.view.node(ino.0).ok_or(Trouble::NoInode)
    }

    /// Also answers `.` and `..`, which the kernel asks for when a file handle of NFS comes in.
    fn find(&self, parent: INodeNo, name: &[u8]) -> Result<Option<Node>, Trouble> {
        match name {
            b"." => self.node(parent).map(Some),
            b".." => self.view.parent(parent.0).map(|ino| self.view.node(ino)).ok_or(Trouble::NoInode),
            _ if self.view.parent(parent.0).is_none() => Err(Trouble::NoDirectory),
            _ => Ok(self.view.lookup(parent.0, name)),
        }
    }

    /// Calls `add` with name, number of the next entry and node until it says that it is full.
    fn list(&self, ino: INodeNo, offset: u64, add: &mut dyn FnMut(&OsStr, u64, &Node) -> bool) -> Result<(), Trouble> {
        let here = self.node(ino)?;
        let above = self.view.parent(ino.0).ok_or(Trouble::NoDirectory)?;
        let dots = [(&b"."[..], here), (b"..", self.node(INodeNo(above))?)];
        let first = usize::try_from(offset.saturating_sub(DOTS)).map_err(|_| Trouble::WrongKind)?;
        let entries = self.view.read_dir(ino.0, first).ok_or(Trouble::NoDirectory)?;
        if offset == 0 {
            self.chunks.note_listing(self.view.file_maps(ino.0, LISTED_ENTRIES_MAX));
        }
        let skipped = usize::try_from(offset.min(DOTS)).expect("at most 2");
        let all = dots.into_iter().skip(skipped).chain(entries);
        for ((name, node), next) in all.zip(offset + 1..) {
            if add(OsStr::from_bytes(name), next, &node) {
                break;
            }
        }
        Ok(())
    }

    fn read_into(&self, ino: INodeNo, offset: u64, out: &mut [u8]) -> Result<usize, Trouble> {
        match self.view.file_map(ino.0) {
            Some(map) => {
                if let Some(push) = self.push.get() {
                    push.note(ino.0, offset, map.size(), self.chunks.has_lost(map));
                }
                self.chunks.read_at(ino.0, map, offset, out).map_err(|_| Trouble::Damage)
            }
            None if self.node(ino)?.kind == FileKind::Unknown => Ok(0),
            None => Err(Trouble::WrongKind),
        }
    }

    fn xattr(&self, ino: INodeNo, name: &OsStr) -> Result<&[u8], Trouble> {
        let mut xattrs = self.xattrs(ino)?;
        xattrs.find(|(key, _)| *key == name.as_bytes()).map(|(_, value)| value).ok_or(Trouble::NoAttribute)
    }

    /// The names of the attributes, each with a NUL at its end. Those of `trusted.` are for the superuser alone to see, as
    /// in other filesystems: the kernel would refuse everybody else their values.
    fn xattr_names(&self, ino: INodeNo, superuser: bool) -> Result<Vec<u8>, Trouble> {
        let shown = self.xattrs(ino)?.filter(|(key, _)| superuser || !key.starts_with(b"trusted."));
        Ok(shown.flat_map(|(key, _)| key.iter().copied().chain([0])).collect())
    }

    fn xattrs(&self, ino: INodeNo) -> Result<impl Iterator<Item = (&[u8], &[u8])>, Trouble> {
        if !self.view.has_xattrs() {
            return Err(Trouble::NeverAgain);
        }
        self.view.xattrs(ino.0).ok_or(Trouble::NoInode)
    }
}

/// A size of 0 asks how long the answer would be.
fn answer_xattr(answer: Result<&[u8], Trouble>, size: u32, reply: ReplyXattr) {
    match answer {
        Err(trouble) => reply.error(trouble.into()),
        Ok(bytes) if size == 0 => reply.size(u32::try_from(bytes.len()).unwrap_or(u32::MAX)),
        Ok(bytes) if bytes.len() > size as usize => reply.error(Trouble::BufferTooSmall.into()),
        Ok(bytes) => reply.data(bytes),
    }
}

fn answer_open(stateless: bool, flags: FopenFlags, reply: ReplyOpen) {
    match stateless {
        true => reply.error(Trouble::NeverAgain.into()),
        false => reply.opened(FileHandle(0), flags),
    }
}

/// Operations that would change the image. The kernel refuses them itself as long as the mount is read-only; somebody
/// may remount it.
macro_rules! refuse_as_read_only {
    ($($operation:ident($($argument:ty),*) -> $reply:ty;)*) => {$(
        fn $operation(&self, _request: &Request, $(_: $argument,)* reply: $reply) {
            reply.error(Trouble::ReadOnly.into());
        }
    )*};
}

impl Filesystem for Image {
    refuse_as_read_only! {
        mknod(INodeNo, &OsStr, u32, u32, u32) -> ReplyEntry;
        mkdir(INodeNo, &OsStr, u32, u32) -> ReplyEntry;
        unlink(INodeNo, &OsStr) -> ReplyEmpty;
        rmdir(INodeNo, &OsStr) -> ReplyEmpty;
        symlink(INodeNo, &OsStr, &Path) -> ReplyEntry;
        rename(INodeNo, &OsStr, INodeNo, &OsStr, RenameFlags) -> ReplyEmpty;
        link(INodeNo, INodeNo, &OsStr) -> ReplyEntry;
        create(INodeNo, &OsStr, u32, u32, i32) -> ReplyCreate;
        write(INodeNo, FileHandle, u64, &[u8], WriteFlags, OpenFlags, Option<LockOwner>) -> ReplyWrite;
        fallocate(INodeNo, FileHandle, u64, u64, i32) -> ReplyEmpty;
        copy_file_range(INodeNo, FileHandle, u64, INodeNo, FileHandle, u64, u64, CopyFileRangeFlags) -> ReplyWrite;
        setxattr(INodeNo, &OsStr, &[u8], i32, u32) -> ReplyEmpty;
        removexattr(INodeNo, &OsStr) -> ReplyEmpty;
        setattr(
            INodeNo, Option<u32>, Option<u32>, Option<u32>, Option<u64>, Option<TimeOrNow>, Option<TimeOrNow>,
            Option<SystemTime>, Option<FileHandle>, Option<SystemTime>, Option<SystemTime>, Option<SystemTime>,
            Option<BsdFileFlags>
        ) -> ReplyAttr;
    }

    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let offered = config.capabilities();
        for wish in WISHES.into_iter().filter(|wish| offered.contains(*wish)) {
            config.add_capabilities(wish).map_err(|_| io::Error::other("the kernel offers what it refuses"))?;
        }
        let understands = |flag| offered.contains(flag);
        self.stateless =
            (understands(InitFlags::FUSE_NO_OPEN_SUPPORT), understands(InitFlags::FUSE_NO_OPENDIR_SUPPORT));
        // Both are within what fuser allows; if it thought otherwise, its own values would do.
        let _ = config.set_max_write(REQUEST_BYTES_MAX);
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.find(parent, name.as_bytes()) {
            Ok(Some(node)) => reply.entry(&FOREVER, &attributes(&node), GENERATION),
            Ok(None) => reply.entry(&FOREVER, &nothing(), GENERATION),
            Err(trouble) => reply.error(trouble.into()),
        }
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.node(ino) {
            Ok(node) => reply.attr(&FOREVER, &attributes(&node)),
            Err(trouble) => reply.error(trouble.into()),
        }
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        match self.view.readlink(ino.0) {
            Some(target) => reply.data(target),
            None => reply.error(Trouble::WrongKind.into()),
        }
    }

    /// The default would let the kernel drop the file's cached pages at every open.
    fn open(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        answer_open(self.stateless.0, FopenFlags::FOPEN_KEEP_CACHE, reply);
    }

    fn opendir(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        answer_open(self.stateless.1, FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR, reply);
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        REPLY.with_borrow_mut(|buffer| {
            let size = (size as usize).min(KEPT_BUFFER_BYTES);
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            match self.read_into(ino, offset, &mut buffer[..size]) {
                Ok(len) => {
                    reply.data(&buffer[..len]);
                    if let Some(push) = self.push.get() {
                        push.note_answered(ino.0, offset, len);
                    }
                }
                Err(trouble) => reply.error(trouble.into()),
            }
        });
    }

    fn readdir(&self, _request: &Request, ino: INodeNo, _handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let mut add = |name: &OsStr, next, node: &Node| reply.add(INodeNo(node.ino), next, file_type(node.kind), name);
        match self.list(ino, offset, &mut add) {
            Ok(()) => reply.ok(),
            Err(trouble) => reply.error(trouble.into()),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let mut add = |name: &OsStr, next, node: &Node| {
            reply.add(INodeNo(node.ino), next, name, &FOREVER, &attributes(node), GENERATION)
        };
        match self.list(ino, offset, &mut add) {
            Ok(()) => reply.ok(),
            Err(trouble) => reply.error(trouble.into()),
        }
    }

    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        answer_xattr(self.xattr(ino, name), size, reply);
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let names = self.xattr_names(ino, request.uid() == 0);
        answer_xattr(names.as_deref().map_err(|trouble| *trouble), size, reply);
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let blocks = self.view.total_bytes().div_ceil(u64::from(STATFS_BLOCK_BYTES));
        let inodes = self.view.inodes();
        reply.statfs(blocks, 0, 0, inodes, 0, STATFS_BLOCK_BYTES, NAME_BYTES_MAX, STATFS_BLOCK_BYTES);
    }

    fn flush(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.error(Trouble::NeverAgain.into());
    }

    fn access(&self, _request: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.error(Trouble::NeverAgain.into());
    }
}
