//! Layouts that use the blobs of this store and that only other tools know: looked for beside it, and in the mount table.
//!
//! `skopeo copy --dest-shared-blob-dir` writes a layout that has no blobs of its own, and a link or a bind mount in a layout may
//! lead here. None of them tells the owner of the blobs.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use super::{
    IndexSnapshot, Store, StoreError,
    disk::Dir,
    index::{INDEX, SettledState, now_nanoseconds, patiently, read_index, state_of},
    mount_table,
};
use crate::{
    format::{DescriptorDigest, IndexDocument},
    name::Digest,
};

/// What has been seen of the neighbours.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    /// What the indexes of those that had been left alone name of ours, by layout.
    entries: Mutex<HashMap<PathBuf, (SettledState, Option<IndexSnapshot>)>>,
    /// If one of them did not answer: those that had answered by then.
    answered: Mutex<Option<Vec<PathBuf>>>,
}

/// How long a directory beside the store has to answer: it may be a mount whose server is gone.
const ANSWER: Duration = Duration::from_secs(2);

/// So many entries of the parent directory are looked at.
const SIBLINGS_MAX: usize = 4096;

impl Store {
    /// Layouts whose blobs are the files that are ours: beside this one, or where the mount table says that our blobs are
    /// mounted. What cannot be looked into is passed over.
    pub(super) fn neighbours(&self) -> Vec<PathBuf> {
        let mut layouts: Vec<PathBuf> =
            self.siblings().into_iter().filter(|layout| self.has_our_blobs(layout)).collect();
        for place in self.mounted_blobs() {
            layouts.extend(place.ancestors().skip(1).take(2).filter(|layout| is_layout(layout)).map(Path::to_path_buf));
        }
        layouts
    }

    /// The indexes of layouts that have another blob directory, or none, as far as they name blobs that are here and not there:
    /// those beside this one, and those that a person has named. Fails if the index of one without blobs, or of a named one,
    /// cannot be read.
    ///
    /// Collectors ask before each batch, under the exclusive lock, so an index that has been left alone is looked at once.
    pub fn indexes_naming_our_blobs(&self) -> Result<Vec<(PathBuf, IndexSnapshot)>, StoreError> {
        let named: BTreeSet<PathBuf> =
            self.named_layouts()?.iter().filter_map(|layout| layout.canonicalize().ok()).collect();
        let layouts: BTreeSet<PathBuf> = self.siblings().into_iter().chain(named.iter().cloned()).collect();
        let others = layouts.into_iter().filter(|layout| layout != self.path() && is_layout(layout));
        let mut found = Vec::new();
        for layout in others.filter(|layout| !self.has_our_blobs(layout)) {
            match self.remembered_entries(&layout) {
                Ok(Some(index)) => found.push((layout, index)),
                Ok(None) => {}
                Err(error) if named.contains(&layout) || has_no_blobs(&layout) => return Err(error),
                // A store of its own, and for its owner to mend.
                Err(_) => {}
            }
        }
        Ok(found)
    }

    /// What [`Store::entries_of_ours`] gives, from memory where the index had been left alone.
    fn remembered_entries(&self, layout: &Path) -> Result<Option<IndexSnapshot>, StoreError> {
        let directory = Dir::open(layout)?;
        let before = directory.stat(INDEX)?.map(|stat| state_of(&stat, now_nanoseconds()));
        let mut memory = lock(&self.neighbours.entries);
        match (memory.get(layout), before) {
            (Some((known, entries)), Some((state, _))) if *known == state => return Ok(entries.clone()),
            _ => {}
        }
        // Some tools write the index in place; one that is torn and was left alone stays so.
        let entries = match before {
            Some((_, true)) => self.entries_of_ours(&directory)?,
            _ => patiently(|| self.entries_of_ours(&directory))?,
        };
        if let Some((state, true)) = before {
            memory.insert(layout.into(), (state, entries.clone()));
        }
        Ok(entries)
    }

    /// Whether there are more directories beside this layout than are looked at, or one that does not answer.
    pub(super) fn has_unseen_siblings(&self) -> bool {
        let parent = self.path().parent().and_then(|parent| fs::read_dir(parent).ok());
        let is_silent = lock(&self.neighbours.answered).is_some();
        is_silent || parent.is_some_and(|entries| entries.take(SIBLINGS_MAX + 1).count() > SIBLINGS_MAX)
    }

    /// The layouts beside this one. They are looked at by a thread of its own, which is left behind if one does not answer.
    fn siblings(&self) -> Vec<PathBuf> {
        let mut answered = lock(&self.neighbours.answered);
        if let Some(layouts) = &*answered {
            return layouts.clone();
        }
        let (own, (found, looked_at)) = (self.path().to_path_buf(), mpsc::channel());
        let look = move || {
            let parent = own.parent().and_then(|parent| fs::read_dir(parent).ok());
            for entry in parent.into_iter().flatten().take(SIBLINGS_MAX).filter_map(Result::ok) {
                let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
                let layout = Some(entry.path()).filter(|path| !is_file && *path != own && is_layout(path));
                if found.send(layout).is_err() {
                    return;
                }
            }
        };
        let mut layouts = Vec::new();
        if thread::Builder::new().name("pfs-siblings".into()).spawn(look).is_err() {
            *answered = Some(layouts.clone());
            return layouts;
        }
        loop {
            match looked_at.recv_timeout(ANSWER) {
                Ok(layout) => layouts.extend(layout),
                Err(RecvTimeoutError::Disconnected) => return layouts,
                Err(RecvTimeoutError::Timeout) => {
                    *answered = Some(layouts.clone());
                    return layouts;
                }
            }
        }
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

    /// The index of another layout without the entries whose blobs are not here, or there as well; `None` if that leaves none.
    fn entries_of_ours(&self, layout: &Dir) -> Result<Option<IndexSnapshot>, StoreError> {
        let text = read_index(layout, INDEX)?;
        let unreadable = |source| StoreError::Index { path: layout.join(INDEX), source };
        let document = IndexDocument::parse(&text).map_err(unreadable)?;
        let theirs = layout.join("blobs/sha256");
        let is_ours = |digest: &DescriptorDigest| match digest {
            DescriptorDigest::Sha256(digest) => {
                !theirs.join(digest.to_string()).exists() && self.open_blob(digest).is_ok()
            }
            DescriptorDigest::Other(_) => false,
        };
        let entries = document.entries().iter().enumerate();
        let others: Vec<usize> =
            entries.filter(|(_, entry)| !is_ours(&entry.descriptor.digest)).map(|(place, _)| place).collect();
        let has_some = others.len() < document.entries().len();
        Ok(has_some.then(|| IndexSnapshot::new(document.without(&others), Digest::of(&text))))
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
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
