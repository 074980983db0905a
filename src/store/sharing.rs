//! A blob directory that several layouts use: which layouts these are, and where the blobs really lie.
//!
//! LXC's template makes such directories: `OCI/blobs/sha256` of each container is a symbolic link to one cache. No layout
//! tells of the others, so every layout that pfs opens for a change is noted beside the blobs, and where blobs are reached
//! through a link or a bind mount a person has to say where the other layouts are: layouts that only other tools have
//! made cannot be found otherwise.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock},
};

use super::{Store, StoreError, disk::Dir, error::At, mount_table};
use crate::name::Digest;

/// The layouts that a person has named as users of the same blob directory.
#[derive(Debug, Default)]
pub(super) struct Declared(RwLock<Option<BTreeSet<PathBuf>>>);

const LAYOUTS: &str = "layouts";
/// More than the longest path.
const NOTE_BYTES_MAX: u64 = 64 << 10;
/// One path or glob pattern a line; `#` begins a comment.
const ROOTS_FILE: &str = "roots";

impl Store {
    /// Names layouts that use the same blob directory, in addition to those that are noted. An empty list says that there are
    /// no others.
    pub fn declare_layouts(&self, layouts: impl IntoIterator<Item = PathBuf>) {
        let mut declared = self.declared.0.write().unwrap_or_else(PoisonError::into_inner);
        declared.get_or_insert_default().extend(layouts);
    }

    /// Whether all layouts that use the blob directory can be known: nobody else's link leads to it as far as one can see, or
    /// a person has said where the others are.
    pub fn sharing_is_known(&self) -> Result<bool, StoreError> {
        let declared = self.declared.0.read().unwrap_or_else(PoisonError::into_inner).is_some();
        Ok(self.shared_blobs().is_none() || declared || !self.configured_roots()?.is_empty())
    }

    /// Every other layout that is known to use this blob directory: noted, named, or found by the patterns in
    /// `.pfs/roots`. One that has gone, or uses another directory by now, is left out; one that cannot be read is an error.
    pub fn other_layouts(&self) -> Result<Vec<Store>, StoreError> {
        let mut named = self.named_layouts()?;
        named.extend(self.neighbours());
        let mut others: Vec<Store> = Vec::new();
        for layout in named {
            self.add_layout(&layout, &mut others)?;
        }
        for (note, layout) in self.noted_layouts()? {
            let added = self.add_layout(&layout, &mut others);
            added.map_err(|error| StoreError::NotedLayout { note, layout, problem: error.to_string() })?;
        }
        Ok(others)
    }

    /// The layouts that a person has named, here or in `.pfs/roots`.
    pub(super) fn named_layouts(&self) -> Result<BTreeSet<PathBuf>, StoreError> {
        let mut named = self.configured_roots()?;
        named.extend(self.declared.0.read().unwrap_or_else(PoisonError::into_inner).iter().flatten().cloned());
        Ok(named)
    }

    /// Opens another layout, if it is there and uses this blob directory.
    fn add_layout(&self, layout: &Path, others: &mut Vec<Store>) -> Result<(), StoreError> {
        let Some(path) = present(layout)? else { return Ok(()) };
        let is_known = path == self.path() || others.iter().any(|other| other.path() == path);
        if !is_known && self.is_used_by(&path)? {
            others.push(Store::open(&path)?);
        }
        Ok(())
    }

    /// Notes this layout among those that use its blob directory. Done by whatever changes the store.
    pub fn note_layout(&self) -> Result<(), StoreError> {
        use std::os::unix::ffi::OsStrExt;
        let layouts = self.state()?.make_sub(LAYOUTS)?;
        let path = self.path().as_os_str().as_bytes();
        let name = Digest::of(path).short();
        match layouts.stat(&name)? {
            Some(_) => Ok(()),
            None => layouts.write_durably(&self.temp()?, &name, path),
        }
    }

    /// Who manages this directory and collects it itself, if it shows: zot keeps its uploads and databases beside the blobs.
    pub fn manager(&self) -> Option<&'static str> {
        let own = self.path().join(".uploads").is_dir();
        let database = |dir: &&Path| ["cache.db", "meta.db", "s3_cache.db"].iter().any(|name| dir.join(name).is_file());
        (own || self.path().ancestors().skip(1).take(3).any(|dir| database(&dir))).then_some("zot")
    }

    /// The notes, each with the layout that it names. A note that is no file is none of ours.
    fn noted_layouts(&self) -> Result<Vec<(PathBuf, PathBuf)>, StoreError> {
        use std::os::unix::ffi::OsStringExt;
        let Some(layouts) = self.existing_state_sub(LAYOUTS)? else { return Ok(Vec::new()) };
        let names = layouts.names()?.into_iter().filter_map(|name| String::from_utf8(name).ok());
        let mut notes = Vec::new();
        for name in names.filter(|name| !name.starts_with('.')) {
            match layouts.read_at_most(&name, NOTE_BYTES_MAX) {
                Ok(layout) => notes.push((layouts.join(&name), std::ffi::OsString::from_vec(layout).into())),
                Err(StoreError::NotAFile { .. }) => {}
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(notes)
    }

    fn configured_roots(&self) -> Result<BTreeSet<PathBuf>, StoreError> {
        let Some(state) = self.existing_state()? else { return Ok(BTreeSet::new()) };
        let text = match state.read_small(ROOTS_FILE) {
            Err(error) if error.is_not_found() => return Ok(BTreeSet::new()),
            text => String::from_utf8_lossy(&text?).into_owned(),
        };
        let patterns = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let mut paths = BTreeSet::new();
        for pattern in patterns {
            paths.extend(expand(pattern, &state.join(ROOTS_FILE))?);
        }
        Ok(paths)
    }

    /// Whether a layout's blobs are the files that are ours.
    fn is_used_by(&self, layout: &Path) -> Result<bool, StoreError> {
        let blobs = layout.join("blobs/sha256");
        let theirs = match fs::metadata(&blobs) {
            Err(cause) if is_gone(&cause) => return Ok(false),
            theirs => theirs.at("read the attributes of", &blobs)?,
        };
        self.blobs.is_directory_of(&theirs)
    }
}

/// The canonical path of a layout that may have gone.
fn present(layout: &Path) -> Result<Option<PathBuf>, StoreError> {
    match layout.canonicalize() {
        Err(cause) if is_gone(&cause) => Ok(None),
        path => path.at("look at the layout", layout).map(Some),
    }
}

/// Whether nothing can have that path: there is no such name, or a part of it is no directory, or cannot be a name at all. A layout
/// that cannot be there uses no blobs.
fn is_gone(cause: &io::Error) -> bool {
    use io::ErrorKind::{InvalidFilename, InvalidInput, NotADirectory, NotFound};
    let is_loop = cause.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error());
    is_loop || matches!(cause.kind(), InvalidFilename | InvalidInput | NotADirectory | NotFound)
}

/// The paths that a glob pattern stands for now.
fn expand(pattern: &str, place: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let wrong = |problem: String| StoreError::Roots { path: place.into(), problem };
    let paths = glob::glob(pattern).map_err(|cause| wrong(format!("{pattern}: {cause}")))?;
    paths.map(|path| path.map_err(|cause| wrong(cause.to_string()))).collect()
}

/// Where a directory that is a mount point really lies: the path of the same directory through another mount of its
/// filesystem. A rename cannot leave a bind mount, so what is condemned could not go beside it otherwise.
pub(super) fn behind_bind_mount(dir: &Dir) -> Option<Dir> {
    let id = dir.mount_id()?;
    let lines = mount_table::read("self")?;
    let own = lines.iter().find(|line| line.id == id)?;
    let others = lines.iter().filter(|line| line.id != id && line.device == own.device);
    let paths = others.filter_map(|line| Some(line.mountpoint.join(own.root.strip_prefix(&line.root).ok()?)));
    let own = dir.own_stat().ok()?;
    paths
        .into_iter()
        .filter_map(|path| Dir::open(&path).ok())
        .find(|behind| behind.own_stat().is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (own.st_dev, own.st_ino)))
}
