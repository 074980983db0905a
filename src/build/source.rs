//! What stands in the tree that is built from: its inodes, with the places they were found at.
//!
//! A tree may have millions of them, so each is a row of 40 bytes and each name one of 12; the texts lie behind each other,
//! and what many inodes have in common is kept once.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    rc::Rc,
};

use crate::format::Device;

/// The inodes of a source tree in the order of their numbers; the root is the first.
pub(super) struct SourceTree {
    pub(super) path: PathBuf,
    pub(super) nodes: Vec<Node>,
    pub(super) entries: Vec<SourceEntry>,
    pub(super) texts: Texts,
    pub(super) attributes: Vec<Rc<Attributes>>,
}

/// An inode, except for the bytes of a file.
pub(super) struct Node {
    /// Its number on the host.
    pub(super) host_ino: u64,
    pub(super) ino: u32,
    /// Which of [`SourceTree::attributes`].
    pub(super) attributes: u32,
    pub(super) place: Place,
    pub(super) kind: NodeKind,
}

/// What many inodes have in common.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct Attributes {
    /// The device on the host.
    pub(super) dev: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) permissions: u16,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Where an inode was found first: the index of its directory in [`SourceTree::nodes`], and of its name in
/// [`SourceTree::entries`].
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) dir: u32,
    pub(super) entry: u32,
}

/// Device and inode number on the host: which file it is.
pub(super) type Identity = (u64, u64);

#[derive(Clone, Copy)]
pub(super) enum NodeKind {
    Unknown,
    Fifo,
    Socket,
    Char(Device),
    Block(Device),
    Symlink(Text),
    Dir(Span),
    File { size: u64 },
}

/// The entries of one directory among [`SourceTree::entries`].
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub(super) first: u32,
    pub(super) count: u32,
}

/// A name in a directory, and the number that it stands for.
pub(super) struct SourceEntry {
    pub(super) name: Text,
    pub(super) ino: u32,
}

/// Many short texts behind each other.
#[derive(Default)]
pub(super) struct Texts(Vec<u8>);

/// One of them; 64 KiB at most.
#[derive(Clone, Copy)]
pub(super) struct Text {
    start: u32,
    len: u16,
}

impl Texts {
    /// Adds a text; `None` if there is no room for it.
    pub(super) fn add(&mut self, text: &[u8]) -> Option<Text> {
        let added = Text { start: self.0.len().try_into().ok()?, len: text.len().try_into().ok()? };
        self.0.extend_from_slice(text);
        Some(added)
    }

    pub(super) fn get(&self, text: Text) -> &[u8] {
        &self.0[text.start as usize..][..text.len.into()]
    }
}

impl SourceTree {
    pub(super) fn attributes(&self, node: &Node) -> &Attributes {
        &self.attributes[node.attributes as usize]
    }

    /// Which file on the host a node is.
    pub(super) fn identity(&self, node: usize) -> Identity {
        let node = &self.nodes[node];
        (self.attributes(node).dev, node.host_ino)
    }

    pub(super) fn entries(&self, span: Span) -> &[SourceEntry] {
        &self.entries[span.first as usize..][..span.count as usize]
    }

    /// The directory that a node was found in.
    pub(super) fn dir(&self, node: usize) -> usize {
        self.nodes[node].place.dir as usize
    }

    /// The name of a node in the directory that it was found in; for the root a dot.
    pub(super) fn name(&self, node: usize) -> &[u8] {
        match node {
            ROOT => b".",
            _ => self.texts.get(self.entries[self.nodes[node].place.entry as usize].name),
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
        std::iter::successors(below_root(node), move |at| below_root(self.dir(*at)))
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
