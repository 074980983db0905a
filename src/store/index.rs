//! `index.json` on disk: reading what others rewrite at any moment, and replacing it without losing their work.

use std::{io::Read, thread, time::Duration};

use rustix::fs::Statx;

use super::{ExclusiveGuard, SharedGuard, Store, StoreError, disk::Dir, error::At};
use crate::{
    format::{FormatError, IndexDocument},
    name::Digest,
};

/// What `index.json` held at one moment.
#[derive(Debug, Clone)]
pub struct IndexSnapshot {
    document: IndexDocument,
    digest: Digest,
}

impl IndexSnapshot {
    /// The index.
    pub fn document(&self) -> &IndexDocument {
        &self.document
    }

    /// The digest of its text: two snapshots with the same digest are the same index.
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

/// Proof that the store lock is held, in either way: edits of the index need one.
pub(super) trait Locked {}
impl Locked for SharedGuard<'_> {}
impl Locked for ExclusiveGuard<'_> {}

const INDEX: &str = "index.json";
/// Some tools rewrite the index in place; a torn one is usually whole a moment later.
const TRIES: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// An index lists images, not chunks: a thousand images have about half a megabyte.
const INDEX_BYTES_MAX: u64 = 256 << 20;

impl Store {
    /// Reads the index. A torn one is read again for a third of a second before it is an error.
    pub fn index(&self) -> Result<IndexSnapshot, StoreError> {
        let mut pause = FIRST_PAUSE;
        for _ in 1..TRIES {
            if let Ok(snapshot) = self.index_once() {
                return Ok(snapshot);
            }
            thread::sleep(pause);
            pause *= 2;
        }
        self.index_once()
    }

    /// The digest of the index's text as it is now, whole or torn: to tell whether it is still the one that was read.
    pub fn index_digest(&self) -> Result<Digest, StoreError> {
        let (bytes, _) = read_with_identity(&self.root, INDEX)?;
        Ok(Digest::of(&bytes))
    }

    fn index_once(&self) -> Result<IndexSnapshot, StoreError> {
        let (bytes, _) = read_with_identity(&self.root, INDEX)?;
        self.snapshot(&bytes)
    }

    fn snapshot(&self, bytes: &[u8]) -> Result<IndexSnapshot, StoreError> {
        let document =
            IndexDocument::parse(bytes).map_err(|source| StoreError::Index { path: self.index_path(), source })?;
        Ok(IndexSnapshot { document, digest: Digest::of(bytes) })
    }

    /// Takes entries out of the index: those at the places that `choose` finds in it. `choose` may be called several times, when
    /// other programs write the index meanwhile. The lock is exclusive so that nobody mounts what is just being untagged.
    pub fn remove_entries<E: From<StoreError>>(
        &self,
        held: &ExclusiveGuard<'_>,
        mut choose: impl FnMut(&IndexDocument) -> Result<Vec<usize>, E>,
    ) -> Result<(), E> {
        self.edit_index(held, |index| Ok(Some(index.without(&choose(index)?)))).map(|_| ())
    }

    /// Puts the JSON text of an entry into the index, as the last one, in place of those that `replace` finds in it, which
    /// may be called several times. The blobs that the entry needs are durable before it is seen.
    pub fn add_entry<E: From<StoreError>>(
        &self,
        held: &SharedGuard<'_>,
        entry: &str,
        mut replace: impl FnMut(&IndexDocument) -> Result<Vec<usize>, E>,
    ) -> Result<(), E> {
        self.blobs.sync()?;
        self.edit_index(held, |index| Ok(Some(index.with(entry, &replace(index)?)))).map(|_| ())
    }

    /// Replaces the index by what `edit` makes of it: written aside, made durable, then swapped in. What is swapped out
    /// is compared with what was edited; if another program came between, it is swapped back and the edit begins again
    /// with the new text. `edit` may be called several times; `None` from it means that nothing is to be done.
    pub(super) fn edit_index<E: From<StoreError>>(
        &self,
        _held: &impl Locked,
        mut edit: impl FnMut(&IndexDocument) -> Result<Option<IndexDocument>, E>,
    ) -> Result<(IndexSnapshot, IndexSnapshot), E> {
        let temp = self.temp()?;
        for _ in 0..TRIES {
            let before = self.index()?;
            let Some(document) = edit(before.document())? else { return Ok((before.clone(), before)) };
            self.log_index(&before)?;
            if self.swap_index(&temp, &before, document.bytes())? {
                let after = self.snapshot(document.bytes())?;
                self.log_index(&after)?;
                return Ok((before, after));
            }
        }
        Err(StoreError::IndexBusy { path: self.index_path() }.into())
    }

    /// One try to replace exactly `before` by `bytes`. `false` if the index was not, or did not stay, `before`.
    fn swap_index(&self, temp: &Dir, before: &IndexSnapshot, bytes: &[u8]) -> Result<bool, StoreError> {
        let name = temp.write_partial(INDEX, bytes)?;
        let (now, identity) = read_with_identity(&self.root, INDEX)?;
        if Digest::of(&now) != before.digest {
            temp.unlink(&name).at("remove", temp.join(&name))?;
            return Ok(false);
        }
        copy_mode(temp, &name, &identity)?;
        if !temp.exchange(&name, &self.root, INDEX).at("replace", self.index_path())? {
            temp.rename_over(&name, &self.root, INDEX).at("replace", self.index_path())?;
            self.root.sync()?;
            return Ok(true);
        }
        let swapped_out = read_with_identity(temp, &name);
        let ours = swapped_out.as_ref().is_ok_and(|(swapped_out, _)| Digest::of(swapped_out) == before.digest);
        if !ours {
            self.swap_back(temp, &name, bytes)?;
        }
        self.root.sync()?;
        // What cannot be read may be somebody's index: it is back in its place, and nothing was done.
        swapped_out?;
        temp.unlink(&name).at("remove", temp.join(&name))?;
        Ok(ours)
    }

    /// Puts somebody else's index back. If yet another one has replaced ours meanwhile, that one is the newest and stays.
    fn swap_back(&self, temp: &Dir, name: &str, ours: &[u8]) -> Result<(), StoreError> {
        temp.exchange(name, &self.root, INDEX).at("put back", self.index_path())?;
        if read_with_identity(temp, name)?.0 != ours {
            temp.exchange(name, &self.root, INDEX).at("put back", self.index_path())?;
        }
        Ok(())
    }
}

fn read_with_identity(dir: &Dir, name: &str) -> Result<(Vec<u8>, Statx), StoreError> {
    let path = dir.join(name);
    let file = dir.open_file(name)?;
    let claimed = file.metadata().at("read the attributes of", &path)?.len().min(INDEX_BYTES_MAX);
    let mut bytes = Vec::with_capacity(usize::try_from(claimed).map_or(0, |len| len + 1));
    (&file).take(INDEX_BYTES_MAX + 1).read_to_end(&mut bytes).at("read", &path)?;
    if bytes.len() as u64 > INDEX_BYTES_MAX {
        let source = FormatError::TooLarge { what: INDEX, bytes: bytes.len() as u64, limit: INDEX_BYTES_MAX };
        return Err(StoreError::Index { path, source });
    }
    let stat = rustix::fs::statx(&file, "", rustix::fs::AtFlags::EMPTY_PATH, rustix::fs::StatxFlags::BASIC_STATS)
        .at("read the attributes of", &path)?;
    Ok((bytes, stat))
}

/// The new index keeps mode and, where that is allowed, owner of the old one: other users' tools read it.
fn copy_mode(temp: &Dir, name: &str, from: &Statx) -> Result<(), StoreError> {
    let file = temp.open_file(name)?;
    let path = temp.join(name);
    rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(u32::from(from.stx_mode) & 0o777))
        .at("set the mode of", path)?;
    let (uid, gid) = (rustix::fs::Uid::from_raw(from.stx_uid), rustix::fs::Gid::from_raw(from.stx_gid));
    // Only root may give files away; for others the index is theirs already or becomes theirs, as with every tool.
    let _ = rustix::fs::fchown(&file, Some(uid), Some(gid));
    Ok(())
}
