//! The one complete walk over the merged tree, when an image is opened.

use hashbrown::{HashMap, hash_map::Entry};

use super::{
    error::TreeError,
    layers::{self, Entries, Row},
    numbers::Numbers,
    view::ROOT_INO,
};
use crate::format::{Kind, Rootfs};

/// What the walk has found out. Small, for it is kept as long as the image is open.
pub(super) struct Findings {
    /// All directories, by rising number.
    pub(super) directories: Vec<DirRecord>,
    /// The order of those directories that are not stored in order.
    pub(super) rows: Vec<Row>,
    /// Link counts above 1 of what is no directory, by rising number.
    pub(super) links: Vec<(u64, u32)>,
    /// Every inode that a path leads to.
    pub(super) visible: Numbers,
    /// Whether any of them has extended attributes.
    pub(super) has_xattrs: bool,
    /// The sum of the sizes of all files, in bytes; a file with several names counts once.
    pub(super) total_bytes: u64,
}

/// A directory of the merged tree.
#[derive(Debug)]
pub(super) struct DirRecord {
    pub(super) ino: u64,
    pub(super) parent: u64,
    pub(super) subdirectories: u32,
    pub(super) order: Order,
}

/// Where the sorted entries of a directory are.
#[derive(Debug, Clone, Copy)]
pub(super) enum Order {
    /// As the topmost layer that has it stores them.
    AsStored,
    /// In this range of [`Findings::rows`].
    Rows { start: u32, end: u32 },
}

/// The walk under way. It keeps a list of what is to be visited, not a stack, so that depth costs nothing.
struct Survey<'a> {
    rootfs: &'a Rootfs,
    parents: HashMap<u64, u64>,
    waiting: Vec<u64>,
    directories: Vec<DirRecord>,
    rows: Vec<Row>,
    /// The inode of every name. Images are numbered in the order in which this walk comes by, so these mostly rise.
    names: Vec<u64>,
    has_xattrs: bool,
    /// Of every name, so a file with several counts several times.
    bytes: u128,
}

/// Walks the tree; fails if it is none.
pub(super) fn survey(rootfs: &Rootfs) -> Result<Findings, TreeError> {
    let root = rootfs.inode(ROOT_INO).filter(|root| matches!(root.kind(), Kind::Dir(_))).ok_or(TreeError::NoRoot)?;
    let mut survey = Survey {
        rootfs,
        // The root is its own parent, as `..` has it.
        parents: HashMap::from([(ROOT_INO, ROOT_INO)]),
        waiting: vec![ROOT_INO],
        directories: Vec::new(),
        rows: Vec::new(),
        names: vec![ROOT_INO],
        has_xattrs: root.xattrs().len() > 0,
        bytes: 0,
    };
    while let Some(ino) = survey.waiting.pop() {
        survey.visit(ino)?;
    }
    Ok(survey.finish())
}

impl Survey<'_> {
    fn visit(&mut self, ino: u64) -> Result<(), TreeError> {
        let (mut subdirectories, waiting) = (0u32, self.waiting.len());
        let entries = layers::merge(self.rootfs, ino);
        for entry in entries.iter(self.rootfs, ino) {
            self.names.push(entry.ino);
            let Some(inode) = layers::resolve(self.rootfs, entry.ino) else { continue };
            self.has_xattrs |= inode.xattrs().len() > 0;
            match inode.kind() {
                Kind::Dir(_) => {
                    self.enter(entry.ino, ino)?;
                    subdirectories = subdirectories.saturating_add(1);
                }
                Kind::File(map) => self.bytes += u128::from(map.size()),
                _ => {}
            }
        }
        // The first is to be visited first.
        self.waiting[waiting..].reverse();
        let order = self.keep(entries)?;
        self.directories.push(DirRecord { ino, parent: self.parents[&ino], subdirectories, order });
        Ok(())
    }

    fn enter(&mut self, ino: u64, parent: u64) -> Result<(), TreeError> {
        match self.parents.entry(ino) {
            Entry::Occupied(_) if ino == ROOT_INO => Err(TreeError::RootBelow { parent }),
            Entry::Occupied(first) => Err(TreeError::TwoParents { ino, first: *first.get(), second: parent }),
            Entry::Vacant(vacant) => {
                vacant.insert(parent);
                self.waiting.push(ino);
                Ok(())
            }
        }
    }

    fn keep(&mut self, entries: Entries) -> Result<Order, TreeError> {
        let Entries::Rows(rows) = entries else { return Ok(Order::AsStored) };
        let index = |len: usize| u32::try_from(len).map_err(|_| TreeError::TooManyEntries);
        let start = index(self.rows.len())?;
        self.rows.extend(rows);
        Ok(Order::Rows { start, end: index(self.rows.len())? })
    }

    fn finish(mut self) -> Findings {
        self.directories.sort_unstable_by_key(|record| record.ino);
        self.directories.shrink_to_fit();
        self.rows.shrink_to_fit();
        self.names.sort();
        let links = repeated(&self.names);
        let counted_again = links.iter().map(|(ino, names)| {
            let size = match self.rootfs.inode(*ino).map(|inode| inode.kind()) {
                Some(Kind::File(map)) => map.size(),
                _ => 0,
            };
            u128::from(*names - 1) * u128::from(size)
        });
        let bytes = self.bytes - counted_again.sum::<u128>();
        Findings {
            links,
            visible: Numbers::from_sorted(self.names.into_iter()),
            directories: self.directories,
            rows: self.rows,
            has_xattrs: self.has_xattrs,
            total_bytes: u64::try_from(bytes).unwrap_or(u64::MAX),
        }
    }
}

/// The numbers that stand in the sorted list more than once, with how often they do.
fn repeated(sorted: &[u64]) -> Vec<(u64, u32)> {
    let runs = sorted.chunk_by(|one, next| one == next).filter(|run| run.len() > 1);
    runs.map(|run| (run[0], u32::try_from(run.len()).unwrap_or(u32::MAX))).collect()
}
