//! Layouts that use the blobs of this store and that only other tools know: looked for beside it, and in the mount table.
//!
//! `skopeo copy --dest-shared-blob-dir` writes a layout that has no blobs of its own, and a link or a bind mount in a layout may
//! lead here. None of them tells the owner of the blobs.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
};

use super::{
    IndexSnapshot, Store, StoreError,
    disk::Dir,
    index::{FIRST_PAUSE, INDEX, TRIES, read_index},
    mount_table,
};
use crate::{
    format::{DescriptorDigest, IndexDocument},
    name::Digest,
};

/// So many entries of the parent directory are looked at.
const SIBLINGS_MAX: usize = 4096;

impl Store {
    /// Layouts whose blobs are the files that are ours: beside this one, or where the mount table says that our blobs are
    /// mounted. What cannot be looked into is passed over.
    pub(super) fn neighbours(&self) -> Vec<PathBuf> {
        let mut layouts: Vec<PathBuf> = self.siblings().filter(|layout| self.has_our_blobs(layout)).collect();
        for place in self.mounted_blobs() {
            layouts.extend(place.ancestors().skip(1).take(2).filter(|layout| is_layout(layout)).map(Path::to_path_buf));
        }
        layouts
    }

    /// The indexes of layouts that have a blob directory of their own, or none, as far as they name blobs that are here and not
    /// there: those beside this one, and those that a person has named. Fails if the index of one without blobs of its own, or
    /// of a named one, cannot be read.
    pub fn indexes_without_blobs(&self) -> Result<Vec<(PathBuf, IndexSnapshot)>, StoreError> {
        let named = self.named_layouts()?.into_iter().filter(|layout| is_layout(layout) && layout != self.path());
        let mut layouts: Vec<(PathBuf, bool)> = named.map(|layout| (layout, true)).collect();
        layouts.extend(self.siblings().map(|layout| (layout, false)));
        layouts.retain(|(layout, _)| !self.has_our_blobs(layout));
        let mut found: Vec<(PathBuf, IndexSnapshot)> = Vec::new();
        for (layout, is_named) in layouts {
            if found.iter().any(|(known, _)| *known == layout) {
                continue;
            }
            match self.entries_of_ours(&layout) {
                Ok(Some(index)) => found.push((layout, index)),
                Ok(None) => {}
                Err(error) if is_named || has_no_blobs(&layout) => return Err(error),
                // A store of its own, whose owner will see to it.
                Err(_) => {}
            }
        }
        Ok(found)
    }

    /// Whether there are more directories beside this layout than are looked at.
    pub(super) fn has_unseen_siblings(&self) -> bool {
        let parent = self.path().parent().and_then(|parent| fs::read_dir(parent).ok());
        parent.is_some_and(|entries| entries.take(SIBLINGS_MAX + 1).count() > SIBLINGS_MAX)
    }

    fn siblings(&self) -> impl Iterator<Item = PathBuf> {
        let parent = self.path().parent().and_then(|parent| fs::read_dir(parent).ok());
        let entries = parent.into_iter().flatten().take(SIBLINGS_MAX).filter_map(Result::ok);
        let paths =
            entries.filter(|entry| entry.file_type().is_ok_and(|kind| !kind.is_file())).map(|entry| entry.path());
        paths.filter(|path| path != self.path() && is_layout(path))
    }

    fn has_our_blobs(&self, layout: &Path) -> bool {
        fs::metadata(layout.join("blobs/sha256")).is_ok_and(|meta| self.blobs.is_directory_of(&meta).unwrap_or(false))
    }

    /// Where our blob directory, or the one above it, is mounted elsewhere.
    fn mounted_blobs(&self) -> Vec<PathBuf> {
        let own: Vec<(u64, u64)> =
            [self.blobs.path(), &self.path().join("blobs")].into_iter().filter_map(identity).collect();
        let Some(device) = own.first().map(|(device, _)| device_text(*device)) else { return Vec::new() };
        let lines = mount_table::read("self").unwrap_or_default().into_iter();
        let places = lines.filter(|line| line.device == device).map(|line| line.mountpoint);
        places.filter(|place| identity(place).is_some_and(|found| own.contains(&found))).collect()
    }

    /// The index of another layout without the entries whose blobs are not here, or there as well. One that is torn is read
    /// again for a moment, since some tools write it in place.
    fn entries_of_ours(&self, layout: &Path) -> Result<Option<IndexSnapshot>, StoreError> {
        let directory = Dir::open(layout)?;
        let read = || {
            let text = read_index(&directory, INDEX)?;
            match IndexDocument::parse(&text) {
                Ok(document) => Ok((document, Digest::of(&text))),
                Err(source) => Err(StoreError::Index { path: layout.join(INDEX), source }),
            }
        };
        let mut pause = FIRST_PAUSE;
        let mut tried = read();
        for _ in 1..TRIES {
            if tried.is_ok() {
                break;
            }
            thread::sleep(pause);
            pause *= 2;
            tried = read();
        }
        let (document, digest) = tried?;
        let is_ours = |digest: &DescriptorDigest| match digest {
            DescriptorDigest::Sha256(digest) => {
                let there = layout.join("blobs/sha256").join(digest.to_string()).exists();
                !there && self.open_blob(digest).is_ok()
            }
            DescriptorDigest::Other(_) => false,
        };
        let entries = document.entries().iter().enumerate();
        let others: Vec<usize> =
            entries.filter(|(_, entry)| !is_ours(&entry.descriptor.digest)).map(|(place, _)| place).collect();
        let has_some = others.len() < document.entries().len();
        Ok(has_some.then(|| IndexSnapshot::new(document.without(&others), digest)))
    }
}

/// Cheap, and nothing that could wait for anybody: whether the two files of a layout are there.
fn is_layout(path: &Path) -> bool {
    ["index.json", "oci-layout"].iter().all(|name| fs::metadata(path.join(name)).is_ok_and(|meta| meta.is_file()))
}

fn has_no_blobs(layout: &Path) -> bool {
    match fs::read_dir(layout.join("blobs/sha256")) {
        Ok(mut entries) => entries.next().is_none(),
        Err(cause) => cause.kind() == std::io::ErrorKind::NotFound,
    }
}

/// Device and inode number of what a path leads to.
fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// A device number as the mount table writes it.
pub(super) fn device_text(device: u64) -> String {
    format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device))
}
