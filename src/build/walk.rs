//! Walks the source tree and numbers its inodes as puzzlefs does.
//!
//! Directories are visited in pre-order, their names sorted as bytes. A visit numbers all entries of the directory, and
//! only then are its subdirectories visited. The walk stays on one filesystem: a directory that another one is mounted on
//! is rendered empty, a file that another one is mounted on is rendered.

use std::{collections::HashMap, io, os::fd::BorrowedFd, path::Path};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, major, minor, openat, readlinkat, statat},
    io::Errno,
};

use super::{
    BuildError,
    cursor::{Cursor, identity, proc_path},
    error::At,
    source::{Identity, Node, NodeKind, Place, ROOT, SourceEntry, SourceTree},
};
use crate::format::Device;

const ROOT_INO: u64 = 1;

struct Walk<'c> {
    tree: SourceTree,
    cursor: &'c mut Cursor,
    links: HashMap<Identity, u64>,
    next_ino: u64,
}

/// What stands under a name of a directory.
struct Found {
    stat: Stat,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    target: Option<Vec<u8>>,
}

/// The tree under `path`, which `cursor` has open.
pub(super) fn walk(path: &Path, cursor: &mut Cursor) -> Result<SourceTree, BuildError> {
    let tree = SourceTree { path: path.into(), nodes: Vec::new() };
    let mut walk = Walk { tree, cursor, links: HashMap::new(), next_ino: ROOT_INO };
    walk.add_root()?;
    let mut pending = vec![ROOT];
    while let Some(dir) = pending.pop() {
        let first = walk.tree.nodes.len();
        walk.visit(dir)?;
        pending.extend((first..walk.tree.nodes.len()).rev().filter(|at| walk.is_to_visit(*at)));
    }
    Ok(walk.tree)
}

impl Walk<'_> {
    fn add_root(&mut self) -> Result<(), BuildError> {
        let fd = self.cursor.enter(&self.tree, ROOT)?;
        let path = || self.tree.path.clone();
        let stat = fstat(fd).at("stat", path)?;
        let xattrs = xattrs(fd, b".").at("read the attributes of", path)?;
        let found = Found { stat, xattrs, target: None };
        self.push(Place { dir: ROOT, entry: 0 }, found);
        Ok(())
    }

    /// Numbers the entries of a directory.
    fn visit(&mut self, dir: usize) -> Result<(), BuildError> {
        let path = || self.tree.path(dir);
        let fd = self.cursor.enter(&self.tree, dir)?;
        if identity(fd, path)? != self.tree.nodes[dir].identity {
            return Err(BuildError::changed(path(), "another directory has come in its place"));
        }
        let mut names = names(fd).at("read the directory", path)?;
        names.sort_unstable();
        let look = |name: &Vec<u8>| look(fd, name).at("read", || self.tree.path_in(dir, name));
        let found: Vec<Found> = names.iter().map(look).collect::<Result<_, _>>()?;
        for (name, found) in names.into_iter().zip(found) {
            self.number(dir, name, found);
        }
        Ok(())
    }

    /// Every name takes a number, also one that then stands for the number of an earlier name of the same file: the
    /// gaps are puzzlefs' own.
    fn number(&mut self, dir: usize, name: Vec<u8>, found: Found) {
        let fresh = self.next_ino;
        let ino = match is_linked(&found.stat) {
            true => *self.links.entry(identity_of(&found.stat)).or_insert(fresh),
            false => fresh,
        };
        let NodeKind::Dir(entries) = &mut self.tree.nodes[dir].kind else {
            unreachable!("only directories are visited");
        };
        entries.push(SourceEntry { name: name.into(), ino });
        let place = Place { dir, entry: entries.len() - 1 };
        match ino == fresh {
            true => self.push(place, found),
            false => self.next_ino += 1,
        }
    }

    fn push(&mut self, place: Place, found: Found) {
        let stat = &found.stat;
        self.tree.nodes.push(Node {
            ino: self.next_ino,
            identity: identity_of(stat),
            uid: stat.st_uid,
            gid: stat.st_gid,
            permissions: (stat.st_mode & 0o7777) as u16,
            xattrs: found.xattrs,
            place,
            kind: kind(stat, found.target),
        });
        self.next_ino += 1;
    }

    fn is_to_visit(&self, node: usize) -> bool {
        let (root, node) = (&self.tree.nodes[ROOT], &self.tree.nodes[node]);
        matches!(node.kind, NodeKind::Dir(_)) && node.identity.0 == root.identity.0
    }
}

fn kind(stat: &Stat, target: Option<Vec<u8>>) -> NodeKind {
    let device = Device { major: major(stat.st_rdev), minor: minor(stat.st_rdev) };
    match (FileType::from_raw_mode(stat.st_mode), target) {
        (_, Some(target)) => NodeKind::Symlink(target),
        (FileType::RegularFile, _) => NodeKind::File { size: stat.st_size.unsigned_abs() },
        (FileType::Directory, _) => NodeKind::Dir(Vec::new()),
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

fn names(dir: BorrowedFd<'_>) -> io::Result<Vec<Vec<u8>>> {
    let readable = openat(dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let names = Dir::new(readable)?.map(|entry| Ok(entry?.file_name().to_bytes().to_vec()));
    names.filter(|name| !matches!(name.as_deref(), Ok(b"." | b".."))).collect()
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
