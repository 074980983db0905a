//! A FUSE filesystem that has nothing to do: the tree and all its bytes are in memory. What it reaches is what FUSE
//! itself allows, so the benchmarks quote mounts as fractions of it.
//!
//! `null-filesystem TREE MOUNTPOINT` serves in the foreground, with the settings of pfs, until it is unmounted.

use std::{
    collections::HashMap,
    error::Error,
    ffi::{OsStr, OsString},
    fs::{self, Metadata},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::Path,
    process::ExitCode,
    time::{Duration, UNIX_EPOCH},
};

use fuser::{
    AccessFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyXattr, Request, SessionACL,
};

const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);
const GENERATION: Generation = Generation(0);
const WORKERS: usize = 2;
const REQUEST_BYTES_MAX: u32 = 1 << 20;
const BACKGROUND_MAX: u16 = 64;
const DIRECTORY_BLOCK_BYTES: u32 = 128 << 10;
const WISHES: [InitFlags; 6] = [
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_MAX_PAGES,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_EXPORT_SUPPORT,
];

/// An inode and all that is in it.
struct Node {
    attributes: FileAttr,
    content: Content,
}

enum Content {
    None,
    /// Of a file, or the target of a symbolic link.
    Bytes(Vec<u8>),
    /// Names and inodes, `.` and `..` first, and where each name is.
    Directory {
        entries: Vec<(OsString, u64)>,
        places: HashMap<OsString, u64>,
    },
}

/// Inode `n` is at place `n - 1`.
struct Memory {
    nodes: Vec<Node>,
}

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            eprintln!("null-filesystem: {cause}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(tree), Some(mountpoint)) = (arguments.next(), arguments.next()) else {
        return Err("null-filesystem TREE MOUNTPOINT".into());
    };
    let memory = Memory::load(Path::new(&tree))?;
    let mut config = Config::default();
    config.n_threads = Some(WORKERS);
    config.acl = SessionACL::All;
    config.mount_options =
        vec![MountOption::RO, MountOption::FSName("null-filesystem".into()), MountOption::DefaultPermissions];
    Ok(fuser::Session::new(memory, Path::new(&mountpoint), &config)?.run()?)
}

impl Memory {
    fn load(tree: &Path) -> io::Result<Self> {
        let mut memory = Self { nodes: Vec::new() };
        let root = fs::symlink_metadata(tree)?;
        memory.add(tree, &root, u64::from(INodeNo::ROOT), &mut HashMap::new())?;
        Ok(memory)
    }

    /// Takes in what is at `path` and below; gives its inode. Names of one file share an inode.
    fn add(
        &mut self,
        path: &Path,
        metadata: &Metadata,
        parent: u64,
        known: &mut HashMap<(u64, u64), u64>,
    ) -> io::Result<u64> {
        let identity = (metadata.dev(), metadata.ino());
        if let Some(ino) = known.get(&identity) {
            return Ok(*ino);
        }
        let ino = self.nodes.len() as u64 + 1;
        known.insert(identity, ino);
        self.nodes.push(Node { attributes: attributes(ino, metadata), content: Content::None });
        let content = match metadata.file_type() {
            kind if kind.is_dir() => self.add_directory(path, ino, parent, known)?,
            kind if kind.is_symlink() => Content::Bytes(fs::read_link(path)?.as_os_str().as_bytes().into()),
            kind if kind.is_file() => Content::Bytes(fs::read(path)?),
            _ => Content::None,
        };
        self.nodes[place(ino)].content = content;
        Ok(ino)
    }

    fn add_directory(
        &mut self,
        path: &Path,
        ino: u64,
        parent: u64,
        known: &mut HashMap<(u64, u64), u64>,
    ) -> io::Result<Content> {
        let mut entries = vec![(".".into(), ino), ("..".into(), parent)];
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let child = self.add(&entry.path(), &entry.metadata()?, ino, known)?;
            entries.push((entry.file_name(), child));
        }
        let places = entries.iter().cloned().collect();
        Ok(Content::Directory { entries, places })
    }

    fn node(&self, ino: INodeNo) -> Option<&Node> {
        self.nodes.get(place(ino.into()))
    }

    fn entries(&self, ino: INodeNo) -> Option<&[(OsString, u64)]> {
        match &self.node(ino)?.content {
            Content::Directory { entries, .. } => Some(entries),
            _ => None,
        }
    }

    fn bytes(&self, ino: INodeNo) -> Option<&[u8]> {
        match &self.node(ino)?.content {
            Content::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    fn child(&self, parent: INodeNo, name: &OsStr) -> Option<&FileAttr> {
        match &self.node(parent)?.content {
            Content::Directory { places, .. } => Some(&self.nodes[place(*places.get(name)?)].attributes),
            _ => None,
        }
    }
}

fn place(ino: u64) -> usize {
    usize::try_from(ino).unwrap_or(usize::MAX).wrapping_sub(1)
}

fn attributes(ino: u64, metadata: &Metadata) -> FileAttr {
    let directory = metadata.is_dir();
    FileAttr {
        ino: INodeNo(ino),
        size: metadata.size(),
        blocks: metadata.size().div_ceil(512),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: file_type(metadata.file_type()),
        perm: (metadata.mode() & 0o7777) as u16,
        nlink: metadata.nlink().try_into().unwrap_or(u32::MAX),
        uid: metadata.uid(),
        gid: metadata.gid(),
        rdev: metadata.rdev().try_into().unwrap_or(0),
        blksize: if directory { DIRECTORY_BLOCK_BYTES } else { 4096 },
        flags: 0,
    }
}

fn file_type(kind: fs::FileType) -> FileType {
    match kind {
        kind if kind.is_dir() => FileType::Directory,
        kind if kind.is_symlink() => FileType::Symlink,
        kind if kind.is_fifo() => FileType::NamedPipe,
        kind if kind.is_char_device() => FileType::CharDevice,
        kind if kind.is_block_device() => FileType::BlockDevice,
        kind if kind.is_socket() => FileType::Socket,
        _ => FileType::RegularFile,
    }
}

impl Filesystem for Memory {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let offered = config.capabilities();
        for wish in WISHES.into_iter().filter(|wish| offered.contains(*wish)) {
            config.add_capabilities(wish).map_err(|_| io::Error::other("the kernel offers what it refuses"))?;
        }
        let _ = config.set_max_write(REQUEST_BYTES_MAX);
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.child(parent, name) {
            Some(found) => reply.entry(&FOREVER, found, GENERATION),
            None => {
                let nothing = FileAttr { ino: INodeNo(0), ..self.nodes[0].attributes };
                reply.entry(&FOREVER, &nothing, GENERATION);
            }
        }
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.node(ino) {
            Some(node) => reply.attr(&FOREVER, &node.attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        match self.bytes(ino) {
            Some(target) => reply.data(target),
            None => reply.error(Errno::EINVAL),
        }
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
        let Some(bytes) = self.bytes(ino) else { return reply.error(Errno::EINVAL) };
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let end = start.saturating_add(size as usize).min(bytes.len());
        reply.data(&bytes[start..end]);
    }

    fn readdir(&self, _request: &Request, ino: INodeNo, _handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let Some(entries) = self.entries(ino) else { return reply.error(Errno::ENOTDIR) };
        for (at, (name, child)) in entries.iter().enumerate().skip(place(offset + 1)) {
            let kind = self.nodes[place(*child)].attributes.kind;
            if reply.add(INodeNo(*child), at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let Some(entries) = self.entries(ino) else { return reply.error(Errno::ENOTDIR) };
        for (at, (name, child)) in entries.iter().enumerate().skip(place(offset + 1)) {
            let attributes = &self.nodes[place(*child)].attributes;
            if reply.add(INodeNo(*child), at as u64 + 1, name, &FOREVER, attributes, GENERATION) {
                break;
            }
        }
        reply.ok();
    }

    // Asked once, and never again.

    fn open(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn flush(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn access(&self, _request: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(&self, _request: &Request, _ino: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _request: &Request, _ino: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }
}
