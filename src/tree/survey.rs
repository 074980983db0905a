//! The one complete walk over the merged tree, when an image is opened.

use std::collections::{HashMap, hash_map::Entry};

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
    /// The inode of every name that is not a directory's.
    names: Vec<u64>,
}

/// Walks the tree; fails if it is none.
pub(super) fn survey(rootfs: &Rootfs) -> Result<Findings, TreeError> {
    if !matches!(rootfs.inode(ROOT_INO).map(|root| root.kind()), Some(Kind::Dir(_))) {
        return Err(TreeError::NoRoot);
    }
    let mut survey = Survey {
        rootfs,
        // The root is its own parent, as `..` has it.
        parents: HashMap::from([(ROOT_INO, ROOT_INO)]),
        waiting: vec![ROOT_INO],
        directories: Vec::new(),
        rows: Vec::new(),
        names: Vec::new(),
    };
    while let Some(ino) = survey.waiting.pop() {
        survey.visit(ino)?;
    }
    Ok(survey.finish())
}

impl Survey<'_> {
    fn visit(&mut self, ino: u64) -> Result<(), TreeError> {
        let mut subdirectories = 0u32;
        let entries = layers::merge(self.rootfs, ino);
        for entry in entries.iter(self.rootfs, ino) {
            match layers::resolve(self.rootfs, entry.ino).map(|inode| inode.kind()) {
                Some(Kind::Dir(_)) => {
                    self.enter(entry.ino, ino)?;
                    subdirectories = subdirectories.saturating_add(1);
                }
                _ => self.names.push(entry.ino),
            }
        }
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
        // Images are numbered in the order of a walk, so there are long runs, which this sort makes use of.
        self.names.sort();
        let links = repeated(&self.names);
        self.names.extend(self.directories.iter().map(|record| record.ino));
        self.names.sort();
        let visible = Numbers::from_sorted(self.names.into_iter());
        Findings { directories: self.directories, rows: self.rows, links, visible }
    }
}

/// The numbers that stand in the sorted list more than once, with how often they do.
fn repeated(sorted: &[u64]) -> Vec<(u64, u32)> {
    let runs = sorted.chunk_by(|one, next| one == next).filter(|run| run.len() > 1);
    runs.map(|run| (run[0], u32::try_from(run.len()).unwrap_or(u32::MAX))).collect()
}
