//! Walks the source tree and numbers its inodes as puzzlefs does.
//!
//! Directories are visited in pre-order, their names sorted as bytes. A visit numbers all entries of the directory, and
//! only then are its subdirectories visited. The walk stays on one filesystem: a directory that another one is mounted on
//! is rendered empty, a file that another one is mounted on is rendered.

use std::{
    collections::HashMap,
    io,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
    rc::Rc,
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, major, minor, openat, readlinkat, statat},
    io::Errno,
};

use super::{
    BuildError,
    cursor::{Cursor, identity, proc_path},
    error::At,
    source::{Attributes, Identity, Node, NodeKind, Place, ROOT, SourceEntry, SourceTree, Span, Text, Texts},
};
use crate::format::{Device, FormatError};

const ROOT_INO: u32 = 1;

/// A tree that is being numbered.
struct Numbering {
    tree: SourceTree,
    attributes: HashMap<Rc<Attributes>, u32>,
    links: HashMap<Identity, u32>,
    next_ino: u32,
    left_out: Option<Identity>,
    found_left_out: Option<PathBuf>,
}

/// What stands under a name of a directory.
struct Found {
    stat: Stat,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    target: Option<Vec<u8>>,
}

/// A tree has more than the 32 bits of a row can count.
struct TooLarge;

/// The tree under `path`, which `cursor` has open, without the directory of this identity; and where that was.
pub(super) fn walk(
    path: &Path,
    left_out: Option<Identity>,
    cursor: &mut Cursor,
) -> Result<(SourceTree, Option<PathBuf>), BuildError> {
    let mut numbering = Numbering::of(path, left_out);
    let tree = &numbering.tree;
    let fd = cursor.enter(tree, ROOT)?;
    let stat = fstat(fd).at("stat", || path.into())?;
    if left_out == Some(identity_of(&stat)) {
        return Err(BuildError::IsStore(path.into()));
    }
    let xattrs = xattrs(fd, b".").at("read the attributes of", || path.into())?;
    let root = Found { stat, xattrs, target: None };
    numbering.push(Place { dir: 0, entry: 0 }, root).map_err(|TooLarge| too_large(path))?;
    let mut pending = vec![ROOT];
    while let Some(dir) = pending.pop() {
        let first = numbering.tree.nodes.len();
        visit(&mut numbering, cursor, dir)?;
        pending.extend((first..numbering.tree.nodes.len()).rev().filter(|at| numbering.is_to_visit(*at)));
    }
    Ok((numbering.tree, numbering.found_left_out))
}

/// Numbers the entries of a directory.
fn visit(numbering: &mut Numbering, cursor: &mut Cursor, dir: usize) -> Result<(), BuildError> {
    let tree = &numbering.tree;
    let path = || tree.path(dir);
    let fd = cursor.enter(tree, dir)?;
    if identity(fd, path)? != tree.identity(dir) {
        return Err(BuildError::changed(path(), "another directory has come in its place"));
    }
    let (texts, names) = names(fd).at("read the directory", path)?;
    let first = tree.entries.len();
    for name in names {
        let name = texts.get(name);
        let found = look(fd, name).at("read", || numbering.tree.path_in(dir, name))?;
        if numbering.left_out == Some(identity_of(&found.stat)) {
            numbering.found_left_out = Some(numbering.tree.path_in(dir, name));
            continue;
        }
        numbering.number(dir, name, found).map_err(|TooLarge| too_large(&numbering.tree.path))?;
    }
    numbering.end_dir(dir, first).map_err(|TooLarge| too_large(&numbering.tree.path))
}

fn too_large(path: &Path) -> BuildError {
    let problem = "it has over 4 GiB of names, or as many entries".into();
    BuildError::Format { path: path.into(), source: FormatError::Tree(problem) }
}

impl Numbering {
    fn of(path: &Path, left_out: Option<Identity>) -> Self {
        let tree = SourceTree {
            path: path.into(),
            nodes: Vec::new(),
            entries: Vec::new(),
            texts: Texts::default(),
            attributes: Vec::new(),
        };
        Self {
            tree,
            attributes: HashMap::new(),
            links: HashMap::new(),
            next_ino: ROOT_INO,
            left_out,
            found_left_out: None,
        }
    }

    /// Every name takes a number, also one that then stands for the number of an earlier name of the same file: the
    /// gaps are puzzlefs' own.
    fn number(&mut self, dir: usize, name: &[u8], found: Found) -> Result<(), TooLarge> {
        let fresh = self.next_ino;
        let ino = match is_linked(&found.stat) {
            true => *self.links.entry(identity_of(&found.stat)).or_insert(fresh),
            false => fresh,
        };
        let place = Place { dir: row(dir)?, entry: row(self.tree.entries.len())? };
        let name = self.tree.texts.add(name).ok_or(TooLarge)?;
        self.tree.entries.push(SourceEntry { name, ino });
        match ino == fresh {
            true => self.push(place, found),
            false => self.count(),
        }
    }

    fn push(&mut self, place: Place, found: Found) -> Result<(), TooLarge> {
        let stat = &found.stat;
        let attributes = Attributes {
            dev: stat.st_dev,
            uid: stat.st_uid,
            gid: stat.st_gid,
            permissions: (stat.st_mode & 0o7777) as u16,
            xattrs: found.xattrs,
        };
        let target = found.target.map(|target| self.tree.texts.add(&target).ok_or(TooLarge)).transpose()?;
        let node = Node {
            host_ino: stat.st_ino,
            ino: self.next_ino,
            attributes: self.share(attributes)?,
            place,
            kind: kind(stat, target),
        };
        self.tree.nodes.push(node);
        self.count()
    }

    fn share(&mut self, attributes: Attributes) -> Result<u32, TooLarge> {
        if let Some(at) = self.attributes.get(&attributes) {
            return Ok(*at);
        }
        let (at, attributes) = (row(self.tree.attributes.len())?, Rc::new(attributes));
        self.tree.attributes.push(attributes.clone());
        self.attributes.insert(attributes, at);
        Ok(at)
    }

    fn count(&mut self) -> Result<(), TooLarge> {
        self.next_ino = self.next_ino.checked_add(1).ok_or(TooLarge)?;
        Ok(())
    }

    /// Gives a directory the entries from `first` on.
    fn end_dir(&mut self, dir: usize, first: usize) -> Result<(), TooLarge> {
        let span = Span { first: row(first)?, count: row(self.tree.entries.len() - first)? };
        self.tree.nodes[dir].kind = NodeKind::Dir(span);
        Ok(())
    }

    fn is_to_visit(&self, node: usize) -> bool {
        let is_dir = matches!(self.tree.nodes[node].kind, NodeKind::Dir(_));
        is_dir && self.tree.identity(node).0 == self.tree.identity(ROOT).0
    }
}

fn row(at: usize) -> Result<u32, TooLarge> {
    at.try_into().map_err(|_| TooLarge)
}

fn kind(stat: &Stat, target: Option<Text>) -> NodeKind {
    let device = Device { major: major(stat.st_rdev), minor: minor(stat.st_rdev) };
    match (FileType::from_raw_mode(stat.st_mode), target) {
        (_, Some(target)) => NodeKind::Symlink(target),
        (FileType::RegularFile, _) => NodeKind::File { size: stat.st_size.unsigned_abs() },
        (FileType::Directory, _) => NodeKind::Dir(Span { first: 0, count: 0 }),
        (FileType::Fifo, _) => NodeKind::Fifo,
        (FileType::Socket, _) => NodeKind::Socket,
        (FileType::CharacterDevice, _) => NodeKind::Char(device),
        (FileType::BlockDevice, _) => NodeKind::Block(device),
        _ => NodeKind::Unknown,
    }
}

/// Whether there may be other names for it. The link count of a directory counts its subdirectories.
fn is_linked(stat: &Stat) -> bool {
    stat.st_nlink > 1 && FileType::from_raw_mode(stat.st_mode) != FileType::Directory
}

fn identity_of(stat: &Stat) -> Identity {
    (stat.st_dev, stat.st_ino)
}

/// The names in a directory, sorted as bytes.
fn names(dir: BorrowedFd<'_>) -> io::Result<(Texts, Vec<Text>)> {
    let readable = openat(dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let (mut texts, mut names) = (Texts::default(), Vec::new());
    for entry in Dir::new(readable)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(texts.add(name).ok_or(Errno::OVERFLOW)?);
        }
    }
    names.sort_unstable_by(|a, b| texts.get(*a).cmp(texts.get(*b)));
    Ok((texts, names))
}

fn look(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Found> {
    let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let target = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => Some(readlinkat(dir, name, Vec::new())?.into_bytes()),
        _ => None,
    };
    Ok(Found { stat, xattrs: xattrs(dir, name)?, target })
}

/// The attributes of what stands under a name, links not followed, in the order of the kernel: another order would be
/// another image. A filesystem without attributes has none, and so has a file that may not be asked.
fn xattrs(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let path = proc_path(dir, name);
    let keys = match xattr::list(&path) {
        Err(cause) if matches!(Errno::from_io_error(&cause), Some(Errno::NOTSUP | Errno::PERM)) => {
            return Ok(Vec::new());
        }
        listed => listed?,
    };
    let pair = |key: std::ffi::OsString| match xattr::get(&path, &key) {
        Ok(value) => value.map(|value| Ok((key.into_encoded_bytes(), value))),
        Err(cause) => Some(Err(cause)),
    };
    keys.filter_map(pair).collect()
}
