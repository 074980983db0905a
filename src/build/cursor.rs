//! Opens what stands in the source tree, one name at a time and never through a symbolic link.
//!
//! Race: whoever can write to the tree may put a link in the place of a directory while the build runs. A path that is
//! resolved as a whole would follow it out of the tree; a name opened in an open directory does not.

use std::{
    ffi::OsString,
    fs::File,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::{Path, PathBuf},
};

use rustix::fs::{FileType, Mode, OFlags, fstat, open, openat};

use super::{
    BuildError,
    error::At,
    source::{Identity, ROOT, SourceTree},
};

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The directory that was opened last: files come in the order of their directories, so mostly the next one lies there too.
pub(super) struct Cursor {
    root: OwnedFd,
    current: Option<(usize, OwnedFd)>,
}

impl Cursor {
    /// Opens the source directory. Its own path may lead through links: whoever asked for the build chose it.
    pub(super) fn open(path: &Path) -> Result<Self, BuildError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open(path, flags, Mode::empty()).at("open the directory", || path.into())?;
        Ok(Self { root, current: None })
    }

    /// Opens a directory of the tree, as an `O_PATH` descriptor.
    pub(super) fn enter(&mut self, tree: &SourceTree, node: usize) -> Result<BorrowedFd<'_>, BuildError> {
        let current = self.current.take().filter(|(at, _)| *at == node || tree.ancestors(node).any(|up| up == *at));
        let from = current.as_ref().map_or(ROOT, |(at, _)| *at);
        let mut down: Vec<usize> = tree.ancestors(node).take_while(|at| *at != from).collect();
        let mut fd = current.map(|(_, fd)| fd);
        while let Some(at) = down.pop() {
            let parent = fd.as_ref().map_or(self.root.as_fd(), |fd| fd.as_fd());
            let opened = openat(parent, tree.name(at), DIRECTORY, Mode::empty());
            fd = Some(opened.at("open the directory", || tree.path(at))?);
        }
        self.current = fd.map(|fd| (node, fd));
        Ok(self.current.as_ref().map_or(self.root.as_fd(), |(_, fd)| fd.as_fd()))
    }

    /// Opens a regular file of the tree for reading, and makes sure that it is the one that the walk saw.
    pub(super) fn open_file(&mut self, tree: &SourceTree, node: usize) -> Result<File, BuildError> {
        let path = || tree.path(node);
        let dir = self.enter(tree, tree.dir(node))?;
        // Should a fifo or a terminal have come in its place, this neither waits for it nor makes it ours.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = openat(dir, tree.name(node), flags, Mode::empty()).at("open", path)?;
        let stat = fstat(&file).at("stat", path)?;
        // Inode numbers are used again: a fifo made after the file was removed may have the number of the file.
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        match is_file && (stat.st_dev, stat.st_ino) == tree.identity(node) {
            true => Ok(file.into()),
            false => Err(BuildError::changed(path(), "another file has come in its place")),
        }
    }
}

/// Which directory an open one is.
pub(super) fn identity(fd: BorrowedFd<'_>, path: impl FnOnce() -> PathBuf) -> Result<Identity, BuildError> {
    let stat = fstat(fd).at("stat", path)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// A path for system calls that take none but paths: `name` in an open directory, wherever that has been moved to.
pub(super) fn proc_path(dir: BorrowedFd<'_>, name: &[u8]) -> PathBuf {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    OsString::from_vec(path).into()
}
