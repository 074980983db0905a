//! How a new index takes the place of the old one: written aside and durable first, then exchanged, then compared.
//!
//! Those who hold the store lock exclusively keep mounts and builds waiting, and how long a disk takes to make something
//! durable is for the disk to say. So that is done before the lock is taken and after it is let go, and what is done under
//! it waits for no disk: reading, comparing, two renames and an unlink.
//!
//! The race: other programs write `index.json` whenever they like. What the exchange has brought out is compared with what
//! was edited, and if it is something else, it goes back.

use super::{
    IndexSnapshot, SharedGuard, Store, StoreError,
    error::At,
    index::{INDEX, read_index},
    partial::{Aside, Partial},
};
use crate::{format::IndexDocument, name::Digest};

/// A new index that nobody sees yet, and the note of it for the log. Both are durable but for their names.
#[derive(Debug)]
pub(super) struct StagedIndex {
    before: Digest,
    after: Digest,
    text: Partial,
    note: Partial,
}

impl Store {
    /// Prepares the change from one index to another, and notes the one before in the log.
    pub(super) fn stage_index(
        &self,
        held: &SharedGuard<'_>,
        before: &IndexSnapshot,
        after: &IndexDocument,
    ) -> Result<StagedIndex, StoreError> {
        self.log_index(before)?;
        let mut text = self.begin_partial(held, INDEX)?;
        // Other users' tools read it.
        if let Some(old) = self.root.stat(INDEX)? {
            text.copy_mode(&old)?;
        }
        text.write(after.bytes())?;
        let mut note = self.begin_partial(held, "note")?;
        note.write(after.bytes())?;
        Ok(StagedIndex { before: before.digest(), after: Digest::of(after.bytes()), text, note })
    }

    /// One try to replace exactly the index that was edited. `false` if the index was not, or did not stay, that one. The
    /// caller holds the store lock, and calls [`Store::settle_swap`] when it has let it go.
    pub(super) fn swap_index(&self, staged: StagedIndex) -> Result<bool, StoreError> {
        if self.index_digest()? != staged.before {
            return Ok(false);
        }
        match staged.text.exchange(&self.root, INDEX)? {
            Err(text) => text.put(&self.root, INDEX)?,
            Ok(old) => {
                if !self.is_undisturbed(old, &staged.before, &staged.after)? {
                    return Ok(false);
                }
            }
        }
        self.put_note(staged.note, &staged.after)?;
        Ok(true)
    }

    /// Whether what was swapped out is the index that was edited. If it is another program's, it is back in its place.
    fn is_undisturbed(&self, old: Aside, before: &Digest, after: &Digest) -> Result<bool, StoreError> {
        let (temp, name) = old.place();
        let swapped_out = read_index(temp, name).map(|bytes| Digest::of(&bytes));
        let is_undisturbed = swapped_out.as_ref().is_ok_and(|swapped_out| swapped_out == before);
        if !is_undisturbed {
            self.swap_back(&old, after)?;
        }
        // What cannot be read may be somebody's index: it is back in its place, and nothing was done.
        swapped_out?;
        old.remove()?;
        Ok(is_undisturbed)
    }

    /// Puts somebody else's index back. If yet another one has replaced ours meanwhile, that one is the newest and stays.
    fn swap_back(&self, old: &Aside, ours: &Digest) -> Result<(), StoreError> {
        old.exchange(&self.root, INDEX)?;
        let (temp, name) = old.place();
        if Digest::of(&read_index(temp, name)?) != *ours {
            old.exchange(&self.root, INDEX)?;
        }
        Ok(())
    }

    /// Makes durable what a swap has done.
    pub(super) fn settle_swap(&self) -> Result<(), StoreError> {
        self.root.sync()?;
        self.settle_notes()
    }

    /// Makes the index durable as it is, or a newer one, whoever wrote it. What an index does not name may only go when no
    /// failure of the machine can bring back one that does.
    pub fn settle_index(&self) -> Result<(), StoreError> {
        self.root.open_file(INDEX)?.sync_all().at("make durable", self.index_path())?;
        self.root.sync()
    }
}
