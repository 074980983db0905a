//! `index.json` on disk: reading what others rewrite at any moment, and replacing it without losing their work.

use std::{
    io::Read,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use super::{Store, StoreError, blobs::nanoseconds, disk::Dir, error::At};
use crate::{
    format::{FormatError, IndexDocument},
    name::Digest,
};

/// What `index.json` held at one moment.
#[derive(Debug, Clone)]
pub struct IndexSnapshot {
    document: IndexDocument,
    digest: Digest,
    read_nanoseconds: i64,
    modified_nanoseconds: Option<i64>,
    stamp: Option<IndexStamp>,
}

/// The state of the file of an index that had been left alone for a while when it was read: a file in the same state has the
/// same text. Hashing 30 MB takes 20 ms, which is long under the exclusive lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IndexStamp {
    inode: u64,
    size: u64,
    modified: i64,
}

impl IndexStamp {
    pub(super) fn of(stat: &rustix::fs::Statx) -> Self {
        Self { inode: stat.stx_ino, size: stat.stx_size, modified: nanoseconds(&stat.stx_mtime) }
    }
}

/// A file that was written less than this before it was read may be written again without another modification time: the
/// clock of filesystems advances in steps of up to 10 ms, and on some by the second.
const SETTLED_NANOSECONDS: i64 = 2_000_000_000;

fn is_settled(stat: &rustix::fs::Statx, read_nanoseconds: i64) -> bool {
    let changed = nanoseconds(&stat.stx_mtime).max(nanoseconds(&stat.stx_ctime));
    (SETTLED_NANOSECONDS..).contains(&read_nanoseconds.saturating_sub(changed))
}

pub(super) fn now_nanoseconds() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

/// The state of an index file that had been left alone for a while, and its change time.
pub(super) type SettledState = (IndexStamp, i64);

/// The state of an index file, and whether it had been left alone for a while at this time, in nanoseconds since 1970.
pub(super) fn state_of(stat: &rustix::fs::Statx, now_nanoseconds: i64) -> (SettledState, bool) {
    ((IndexStamp::of(stat), nanoseconds(&stat.stx_ctime)), is_settled(stat, now_nanoseconds))
}

/// The digest of an index that had been left alone for a while when it was hashed.
#[derive(Debug, Default)]
pub(super) struct HashedIndex(Mutex<Option<(SettledState, Digest)>>);

impl IndexSnapshot {
    /// An index that lies elsewhere, or a part of it.
    pub(super) fn new(document: IndexDocument, digest: Digest) -> Self {
        Self { document, digest, read_nanoseconds: i64::MIN, modified_nanoseconds: None, stamp: None }
    }

    /// When its file was written, in nanoseconds since 1970, if it is a file of its own.
    pub(super) fn modified_nanoseconds(&self) -> Option<i64> {
        self.modified_nanoseconds
    }

    /// The index.
    pub fn document(&self) -> &IndexDocument {
        &self.document
    }

    /// The state of its file, if that tells its text.
    pub(super) fn stamp(&self) -> Option<IndexStamp> {
        self.stamp
    }

    /// When it was read, in nanoseconds since 1970: what it names had been written by then.
    pub fn read_nanoseconds(&self) -> i64 {
        self.read_nanoseconds
    }

    /// The digest of its text: two snapshots with the same digest are the same index.
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

pub(super) const INDEX: &str = "index.json";
/// Some tools rewrite the index in place; a torn one is usually whole a moment later.
pub(super) const TRIES: u32 = 6;
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// An index lists images, not chunks: a thousand images have about half a megabyte.
const INDEX_BYTES_MAX: u64 = 256 << 20;

/// Retries for a sixth of a second: another program may be writing the file in place.
pub(super) fn patiently<T, E>(mut attempt: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let mut pause = FIRST_PAUSE;
    for _ in 1..TRIES {
        if let Ok(done) = attempt() {
            return Ok(done);
        }
        thread::sleep(pause);
        pause *= 2;
    }
    attempt()
}

impl Store {
    /// Reads the index. A torn one is read again for a moment before it is an error.
    pub fn index(&self) -> Result<IndexSnapshot, StoreError> {
        patiently(|| self.index_once())
    }

    /// The digest of the index's text as it is now, whole or torn: to tell whether it is still the one that was read.
    /// Collectors ask before each batch, so a file that has been left alone is hashed once.
    pub fn index_digest(&self) -> Result<Digest, StoreError> {
        let before = self.root.stat(INDEX)?.map(|stat| state_of(&stat, now_nanoseconds()));
        let mut hashed = self.hashed_index.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (*hashed, before) {
            (Some((known, digest)), Some((state, _))) if known == state => Ok(digest),
            _ => {
                let digest = Digest::of(&read_index(&self.root, INDEX)?);
                *hashed = before.filter(|(_, is_settled)| *is_settled).map(|(state, _)| (state, digest));
                Ok(digest)
            }
        }
    }

    fn index_once(&self) -> Result<IndexSnapshot, StoreError> {
        let read_nanoseconds = now_nanoseconds();
        let before = self.root.stat(INDEX)?;
        let bytes = read_index(&self.root, INDEX)?;
        let stamp = before.filter(|stat| is_settled(stat, read_nanoseconds)).map(|stat| IndexStamp::of(&stat));
        let document =
            IndexDocument::parse(&bytes).map_err(|source| StoreError::Index { path: self.index_path(), source })?;
        let modified_nanoseconds = before.map(|stat| nanoseconds(&stat.stx_mtime));
        Ok(IndexSnapshot { document, digest: Digest::of(&bytes), read_nanoseconds, modified_nanoseconds, stamp })
    }

    /// Takes entries out of the index: those at the places that `choose` finds in it. `choose` is called several times: to
    /// prepare the new index, once more under the exclusive lock, when nobody can begin to mount what is being untagged, and
    /// again for every index that other programs have written meanwhile. The caller must not hold the store lock.
    pub fn remove_entries<E: From<StoreError>>(
        &self,
        choose: impl FnMut(&IndexSnapshot) -> Result<Vec<usize>, E>,
    ) -> Result<(), E> {
        self.publish(choose, |before, places| before.without(places))
    }

    /// Puts the JSON text of an entry into the index, as the last one, in place of those that `replace` finds in it, which
    /// may be called several times. The blobs that the entry needs are durable before it is seen. The caller must not hold
    /// the store lock, so a lease has to keep those blobs.
    pub fn add_entry<E: From<StoreError>>(
        &self,
        entry: &str,
        replace: impl FnMut(&IndexDocument) -> Result<Vec<usize>, E>,
    ) -> Result<(), E> {
        self.blobs.sync()?;
        self.put_entry(entry, replace)
    }

    /// The same, where the blobs that the entry needs are known to be durable.
    pub(super) fn put_entry<E: From<StoreError>>(
        &self,
        entry: &str,
        mut replace: impl FnMut(&IndexDocument) -> Result<Vec<usize>, E>,
    ) -> Result<(), E> {
        self.publish(|before| replace(before.document()), |before, places| before.with(entry, places))
    }

    /// Publishes an edit, in turn with the other publishers. `choose` finds the places of the entries that go, and is called
    /// again under the exclusive lock: if they are others then, the edit begins again. `edit` makes the new index.
    fn publish<E: From<StoreError>>(
        &self,
        mut choose: impl FnMut(&IndexSnapshot) -> Result<Vec<usize>, E>,
        edit: impl Fn(&IndexDocument, &[usize]) -> IndexDocument,
    ) -> Result<(), E> {
        let publisher = self.lock_publisher()?;
        let mut pause = FIRST_PAUSE;
        for _ in 0..TRIES {
            // Also what the try before has left aside, because two other programs came between.
            self.restore_lost_entries(&publisher)?;
            let before = self.index()?;
            let places = choose(&before)?;
            let staged = self.stage_index(&before, &edit(before.document(), &places))?;
            let held = self.lock_exclusive()?;
            let swapped = choose(&before).and_then(|now| Ok(now == places && self.swap_index(&held, staged)?));
            drop(held);
            self.settle_swap()?;
            if swapped? {
                return Ok(());
            }
            thread::sleep(pause);
            pause *= 2;
        }
        Err(StoreError::IndexBusy { path: self.index_path() }.into())
    }
}

/// The text of an index, wherever it lies.
pub(super) fn read_index(dir: &Dir, name: &str) -> Result<Vec<u8>, StoreError> {
    let path = dir.join(name);
    let file = dir.open_file(name)?;
    let claimed = file.metadata().at("read the attributes of", &path)?.len().min(INDEX_BYTES_MAX);
    let mut bytes = Vec::with_capacity(usize::try_from(claimed).map_or(0, |len| len + 1));
    (&file).take(INDEX_BYTES_MAX + 1).read_to_end(&mut bytes).at("read", &path)?;
    if bytes.len() as u64 > INDEX_BYTES_MAX {
        let source = FormatError::TooLarge { what: INDEX, bytes: bytes.len() as u64, limit: INDEX_BYTES_MAX };
        return Err(StoreError::Index { path, source });
    }
    Ok(bytes)
}
