//! An opened image: names, attributes, directories.
//!
//! Opening walks the merged tree once, from the root, and refuses what is not a tree; so everything that asks later may
//! trust that parents are unique and that walks end. What the walk finds out beyond the decoded image is little, and is
//! kept in a few flat arrays: one record a directory, the order of those directories that are not stored in order, the
//! link counts above 1.

use std::{collections::HashSet, sync::Arc};

use super::{
    error::TreeError,
    layers::{self, Entries, Row},
    numbers::Numbers,
    walk::Walk,
};
use crate::{
    format::{Device, DirEntry, Directory, FileMap, Inode, Kind, Rootfs},
    name::ChunkId,
};

/// The inode number of the root directory, in every image.
pub const ROOT_INO: u64 = 1;

/// A decoded image, opened as a tree.
pub struct View {
    rootfs: Arc<Rootfs>,
    directories: Vec<DirRecord>,
    rows: Vec<Row>,
    links: Vec<(u64, u32)>,
    visible: Numbers,
    has_xattrs: bool,
    total_bytes: u64,
}

/// What an inode is, for `stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// Of a type that the builder of the image could not name.
    Unknown,
    /// A named pipe.
    Fifo,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A directory.
    Directory,
    /// A regular file.
    Regular,
    /// A symbolic link.
    Symlink,
    /// A socket.
    Socket,
}

/// The attributes of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// Its number.
    pub ino: u64,
    /// What it is.
    pub kind: FileKind,
    /// The low 12 mode bits.
    pub permissions: u16,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// How many names it has in the merged tree; for a directory 2 and one for each directory in it.
    pub nlink: u32,
    /// In bytes: the contents of a file, the target of a symbolic link, 0 for everything else.
    pub size: u64,
    /// The device number, of a device.
    pub device: Option<Device>,
}

#[derive(Debug)]
struct DirRecord {
    ino: u64,
    parent: u64,
    subdirectories: u32,
    order: Order,
}

/// Where the sorted entries of a directory are.
#[derive(Debug, Clone, Copy)]
enum Order {
    AsStored,
    Rows { start: u32, end: u32 },
}

/// The sorted entries of one directory.
#[derive(Clone, Copy)]
pub(super) struct Listing<'a> {
    view: &'a View,
    ino: u64,
    /// The directory in the topmost layer; of use where the order is as stored.
    top: Directory<'a>,
    order: Order,
}

impl View {
    /// Opens an image; fails if its directories do not form a tree.
    pub fn new(rootfs: impl Into<Arc<Rootfs>>) -> Result<Self, TreeError> {
        let rootfs = rootfs.into();
        let survey = Survey::of(&rootfs)?;
        Ok(survey.into_view(rootfs))
    }

    /// The decoded image.
    pub fn rootfs(&self) -> &Arc<Rootfs> {
        &self.rootfs
    }

    /// The inode of that number, if a path of the merged tree leads to it.
    pub fn node(&self, ino: u64) -> Option<Node> {
        self.inode(ino).map(|inode| self.describe(inode))
    }

    /// What `name` stands for in the directory `parent`.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Option<Node> {
        let listing = self.listing(parent)?;
        let at = listing.find(name)?;
        self.child(listing.entry(at))
    }

    /// The directory that holds the directory `ino`; the root's is the root.
    pub fn parent(&self, ino: u64) -> Option<u64> {
        self.directory(ino).map(|record| record.parent)
    }

    /// The entries of a directory from the one at `offset` on, sorted by name as bytes. `None` if `ino` is no directory.
    pub fn read_dir(&self, ino: u64, offset: usize) -> Option<impl Iterator<Item = (&[u8], Node)>> {
        let listing = self.listing(ino)?;
        Some((offset..listing.len()).filter_map(move |at| {
            let entry = listing.entry(at);
            Some((entry.name, self.child(entry)?))
        }))
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, ino: u64) -> Option<&[u8]> {
        match self.inode(ino)?.kind() {
            Kind::Symlink(target) => Some(target),
            _ => None,
        }
    }

    /// The extended attributes of an inode, key and value. `None` if there is no such inode.
    pub fn xattrs(&self, ino: u64) -> Option<impl Iterator<Item = (&[u8], &[u8])>> {
        Some(self.inode(ino)?.xattrs())
    }

    /// Where the bytes of a regular file are.
    pub fn file_map(&self, ino: u64) -> Option<FileMap<'_>> {
        match self.inode(ino)?.kind() {
            Kind::File(map) => Some(map),
            _ => None,
        }
    }

    /// Whether any visible inode has extended attributes.
    pub fn has_xattrs(&self) -> bool {
        self.has_xattrs
    }

    /// How many inodes are visible.
    pub fn inodes(&self) -> u64 {
        self.visible.len()
    }

    /// The sum of the sizes of all visible files, in bytes; a file with several names counts once.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// The chunks that some path of the merged tree needs, sorted, once each.
    pub fn visible_chunks(&self) -> Vec<ChunkId> {
        let maps = self.visible.iter().filter_map(|ino| self.file_map(ino));
        let mut chunks: Vec<_> = maps.flat_map(FileMap::pieces).map(|piece| piece.blob.chunk).collect();
        chunks.sort_unstable();
        chunks.dedup();
        chunks
    }

    /// Every path of the merged tree, a directory before what is in it, siblings sorted by name.
    pub fn walk(&self) -> Walk<'_> {
        Walk::new(self)
    }

    pub(super) fn listing(&self, ino: u64) -> Option<Listing<'_>> {
        let record = self.directory(ino)?;
        let Kind::Dir(top) = self.rootfs.inode(ino)?.kind() else { return None };
        Some(Listing { view: self, ino, top, order: record.order })
    }

    pub(super) fn child(&self, entry: DirEntry<'_>) -> Option<Node> {
        layers::resolve(&self.rootfs, entry.ino).map(|inode| self.describe(inode))
    }

    fn inode(&self, ino: u64) -> Option<Inode<'_>> {
        if self.visible.contains(ino) { layers::resolve(&self.rootfs, ino) } else { None }
    }

    fn directory(&self, ino: u64) -> Option<&DirRecord> {
        let at = self.directories.binary_search_by_key(&ino, |record| record.ino).ok()?;
        Some(&self.directories[at])
    }

    fn describe(&self, inode: Inode<'_>) -> Node {
        let kind = inode.kind();
        Node {
            ino: inode.ino(),
            kind: file_kind(kind),
            permissions: inode.permissions(),
            uid: inode.uid(),
            gid: inode.gid(),
            nlink: self.nlink(inode.ino(), kind),
            size: size(kind),
            device: device(kind),
        }
    }

    fn nlink(&self, ino: u64, kind: Kind<'_>) -> u32 {
        if let Kind::Dir(_) = kind {
            return self.directory(ino).map_or(2, |record| record.subdirectories.saturating_add(2));
        }
        match self.links.binary_search_by_key(&ino, |(ino, _)| *ino) {
            Ok(at) => self.links[at].1,
            Err(_) => 1,
        }
    }
}

impl<'a> Listing<'a> {
    pub(super) fn len(&self) -> usize {
        match self.order {
            Order::AsStored => self.top.len(),
            Order::Rows { start, end } => (end - start) as usize,
        }
    }

    pub(super) fn entry(&self, at: usize) -> DirEntry<'a> {
        match self.order {
            Order::AsStored => self.top.entry(at),
            Order::Rows { start, .. } => {
                let row = self.view.rows[start as usize + at];
                let directory = layers::directory(&self.view.rootfs, row.layer, self.ino);
                directory.expect("rows are made from directories").entry(row.place as usize)
            }
        }
    }

    fn find(&self, name: &[u8]) -> Option<usize> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.entry(middle).name.cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return Some(middle),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }
}

fn file_kind(kind: Kind<'_>) -> FileKind {
    match kind {
        Kind::Unknown | Kind::Whiteout => FileKind::Unknown,
        Kind::Fifo => FileKind::Fifo,
        Kind::Char(_) => FileKind::Char,
        Kind::Block(_) => FileKind::Block,
        Kind::Dir(_) => FileKind::Directory,
        Kind::File(_) => FileKind::Regular,
        Kind::Symlink(_) => FileKind::Symlink,
        Kind::Socket => FileKind::Socket,
    }
}

fn size(kind: Kind<'_>) -> u64 {
    match kind {
        Kind::File(map) => map.size(),
        Kind::Symlink(target) => target.len() as u64,
        _ => 0,
    }
}

fn device(kind: Kind<'_>) -> Option<Device> {
    match kind {
        Kind::Char(device) | Kind::Block(device) => Some(device),
        _ => None,
    }
}

/// What the walk at the opening collects.
#[derive(Default)]
struct Survey {
    directories: Vec<DirRecord>,
    rows: Vec<Row>,
    /// The inode of every name that is not a directory's.
    names: Vec<u64>,
}

impl Survey {
    fn of(rootfs: &Rootfs) -> Result<Self, TreeError> {
        if !matches!(rootfs.inode(ROOT_INO).map(|root| root.kind()), Some(Kind::Dir(_))) {
            return Err(TreeError::NoRoot);
        }
        let mut survey = Self::default();
        let mut seen = HashSet::from([ROOT_INO]);
        // The root is its own parent, as `..` has it.
        let mut waiting = vec![(ROOT_INO, ROOT_INO)];
        while let Some((ino, parent)) = waiting.pop() {
            let record = survey.visit(rootfs, ino, parent, &mut |subdirectory| {
                let fresh = seen.insert(subdirectory);
                if fresh {
                    waiting.push((subdirectory, ino));
                }
                fresh
            });
            match record {
                Ok(record) => survey.directories.push(record),
                Err(twice) => {
                    waiting.push((ino, parent));
                    return Err(survey.two_parents(&waiting, twice, ino));
                }
            }
            if u32::try_from(survey.rows.len()).is_err() || u32::try_from(survey.names.len()).is_err() {
                return Err(TreeError::TooManyEntries);
            }
        }
        Ok(survey)
    }

    /// Takes the entries of one directory in. `Err` is a subdirectory that was seen before.
    fn visit(
        &mut self,
        rootfs: &Rootfs,
        ino: u64,
        parent: u64,
        enter: &mut dyn FnMut(u64) -> bool,
    ) -> Result<DirRecord, u64> {
        let mut subdirectories = 0u32;
        let mut take = |entry: DirEntry<'_>, names: &mut Vec<u64>| match layers::resolve(rootfs, entry.ino)
            .map(|inode| inode.kind())
        {
            Some(Kind::Dir(_)) if !enter(entry.ino) => Err(entry.ino),
            Some(Kind::Dir(_)) => {
                subdirectories += 1;
                Ok(())
            }
            _ => {
                names.push(entry.ino);
                Ok(())
            }
        };
        let order = match layers::merge(rootfs, ino) {
            Entries::AsStored => {
                let Some(Kind::Dir(directory)) = rootfs.inode(ino).map(|inode| inode.kind()) else { return Err(ino) };
                directory.entries().try_for_each(|entry| take(entry, &mut self.names))?;
                Order::AsStored
            }
            Entries::Rows(rows) => {
                for row in &rows {
                    let directory = layers::directory(rootfs, row.layer, ino).expect("rows are made from directories");
                    take(directory.entry(row.place as usize), &mut self.names)?;
                }
                self.keep(rows)
            }
        };
        Ok(DirRecord { ino, parent, subdirectories, order })
    }

    fn keep(&mut self, rows: Vec<Row>) -> Order {
        let index = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        let start = index(self.rows.len());
        self.rows.extend(rows);
        Order::Rows { start, end: index(self.rows.len()) }
    }

    fn two_parents(&self, waiting: &[(u64, u64)], ino: u64, second: u64) -> TreeError {
        let visited = self.directories.iter().map(|record| (record.ino, record.parent));
        let known = visited.chain(waiting.iter().copied()).find(|(known, _)| *known == ino);
        let first = known.map_or(0, |(_, parent)| if ino == ROOT_INO { 0 } else { parent });
        TreeError::TwoParents { ino, first, second }
    }

    fn into_view(mut self, rootfs: Arc<Rootfs>) -> View {
        self.directories.sort_unstable_by_key(|record| record.ino);
        self.directories.shrink_to_fit();
        self.rows.shrink_to_fit();
        self.names.sort();
        let links = repeated(&self.names);
        self.names.extend(self.directories.iter().map(|record| record.ino));
        self.names.sort();
        let visible = Numbers::from_sorted(self.names.into_iter());
        let inodes = || visible.iter().filter_map(|ino| layers::resolve(&rootfs, ino));
        let has_xattrs = inodes().any(|inode| inode.xattrs().next().is_some());
        let sizes = inodes().filter(|inode| matches!(inode.kind(), Kind::File(_))).map(|inode| size(inode.kind()));
        let total_bytes = sizes.fold(0, u64::saturating_add);
        View { directories: self.directories, rows: self.rows, links, visible, has_xattrs, total_bytes, rootfs }
    }
}

/// The numbers that stand in the sorted list more than once, with how often they do.
fn repeated(sorted: &[u64]) -> Vec<(u64, u32)> {
    let runs = sorted.chunk_by(|one, next| one == next).filter(|run| run.len() > 1);
    runs.map(|run| (run[0], u32::try_from(run.len()).unwrap_or(u32::MAX))).collect()
}
