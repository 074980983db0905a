//! What stands in the tree that is built from: its inodes, with the places they were found at.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use crate::format::Device;

/// The inodes of a source tree in the order of their numbers; the root is the first.
pub(super) struct SourceTree {
    pub(super) path: PathBuf,
    pub(super) nodes: Vec<Node>,
}

/// An inode, except for the bytes of a file.
pub(super) struct Node {
    pub(super) ino: u64,
    pub(super) identity: Identity,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) permissions: u16,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) place: Place,
    pub(super) kind: NodeKind,
}

/// Where an inode was found first: the index of its directory in [`SourceTree::nodes`], and of its name there.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) dir: usize,
    pub(super) entry: usize,
}

/// Device and inode number on the host: which file it is.
pub(super) type Identity = (u64, u64);

pub(super) enum NodeKind {
    Unknown,
    Fifo,
    Socket,
    Char(Device),
    Block(Device),
    Symlink(Vec<u8>),
    Dir(Vec<SourceEntry>),
    File { size: u64 },
}

/// A name in a directory, and the number that it stands for.
pub(super) struct SourceEntry {
    pub(super) name: Box<[u8]>,
    pub(super) ino: u64,
}

impl SourceTree {
    /// The name of a node in the directory that it was found in; for the root a dot.
    pub(super) fn name(&self, node: usize) -> &[u8] {
        let place = self.nodes[node].place;
        match &self.nodes[place.dir].kind {
            NodeKind::Dir(entries) if node != ROOT => &entries[place.entry].name,
            _ => b".",
        }
    }

    /// The path of a node, for people.
    pub(super) fn path(&self, node: usize) -> PathBuf {
        let mut names: Vec<_> = self.ancestors(node).map(|at| OsStr::from_bytes(self.name(at))).collect();
        names.reverse();
        names.into_iter().fold(self.path.clone(), |path, name| path.join(name))
    }

    /// The path of something in the directory `node`, for people.
    pub(super) fn path_in(&self, node: usize, name: &[u8]) -> PathBuf {
        self.path(node).join(Path::new(OsStr::from_bytes(name)))
    }

    /// A node, its directory, the directory of that, up to but without the root.
    pub(super) fn ancestors(&self, node: usize) -> impl Iterator<Item = usize> {
        let below_root = |at: usize| Some(at).filter(|at| *at != ROOT);
        std::iter::successors(below_root(node), move |at| below_root(self.nodes[*at].place.dir))
    }

    /// The regular files that have bytes, in the order of their numbers, with their sizes: the stream.
    pub(super) fn files(&self) -> impl Iterator<Item = (usize, u64)> {
        self.nodes.iter().enumerate().filter_map(|(at, node)| match node.kind {
            NodeKind::File { size } if size > 0 => Some((at, size)),
            _ => None,
        })
    }
}

/// The index of the root in [`SourceTree::nodes`].
pub(super) const ROOT: usize = 0;
