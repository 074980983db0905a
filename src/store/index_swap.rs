//! How a new index takes the place of the old one: written aside and durable first, then exchanged, then compared.
//!
//! Whoever holds the store lock exclusively keeps mounts and builds waiting, and how long a disk takes to make something
//! durable is not known. So that is done before the lock is taken and after it is released; what is done under it waits for
//! no disk: reading, comparing, two renames and an unlink. Publishers of pfs take turns (`publisher`).
//!
//! The race: other programs write `index.json` whenever they like. What the exchange has brought out is compared with what
//! was edited, and if it is something else, it is put back. A process that is killed between the two leaves the other
//! program's index aside. The name of such a file tells which text it was made for, so a file with another text is
//! recognised: until the next publisher has restored its entries, collectors count them as roots.

use hashbrown::HashSet;

use super::{
    ExclusiveGuard, IndexSnapshot, Store, StoreError,
    disk::Dir,
    error::At,
    index::{INDEX, IndexStamp, read_index},
    partial::{Aside, Partial, is_being_written},
    publisher::PublisherGuard,
};
use crate::{
    format::{DescriptorDigest, IndexDocument},
    name::{Digest, Tag},
};

/// A new index that nobody sees yet, and the note of it for the log. Both are durable but for their names.
#[derive(Debug)]
pub(super) struct StagedIndex {
    before: Digest,
    before_stamp: Option<IndexStamp>,
    after: Digest,
    text: Partial,
    note: Partial,
}

/// An index of another program that an interrupted edit of pfs has left aside.
#[derive(Debug)]
pub struct LostIndex {
    name: String,
    /// Its text, parsed.
    pub document: IndexDocument,
    digest: Digest,
}

impl LostIndex {
    /// Its name in `.pfs/tmp/`.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Store {
    /// Prepares the change from one index to another, and notes the one before in the log.
    pub(super) fn stage_index(&self, before: &IndexSnapshot, after: &IndexDocument) -> Result<StagedIndex, StoreError> {
        self.log_index(before)?;
        let after_digest = Digest::of(after.bytes());
        let shared = self.lock_shared()?;
        let mut text = self.begin_partial(&shared, &format!("{}{after_digest}", self.lost_prefix()))?;
        let mut note = self.begin_partial(&shared, "note")?;
        drop(shared);
        // Other users' tools read it.
        if let Some(old) = self.root.stat(INDEX)? {
            text.copy_mode(&old)?;
        }
        text.write(after.bytes())?;
        note.write(after.bytes())?;
        Ok(StagedIndex { before: before.digest(), before_stamp: before.stamp(), after: after_digest, text, note })
    }

    /// One try to replace exactly the index that was edited. `false` if the index was not, or did not stay, that one. The
    /// caller is the publisher, and calls [`Store::settle_swap`] when it has released the store lock.
    pub(super) fn swap_index(&self, _held: &ExclusiveGuard<'_>, staged: StagedIndex) -> Result<bool, StoreError> {
        if !has_text(&self.root, INDEX, &staged.before, staged.before_stamp)? {
            return Ok(false);
        }
        match staged.text.exchange(&self.root, INDEX)? {
            Err(text) => {
                if !self.replace_index(text, &staged.before)? {
                    return Ok(false);
                }
            }
            Ok(old) => {
                if !self.is_undisturbed(old, &staged.before, staged.before_stamp, &staged.after)? {
                    return Ok(false);
                }
            }
        }
        self.put_note(staged.note, &staged.after)?;
        Ok(true)
    }

    /// Whether what was swapped out is the index that was edited. If it is another program's, it is back in its place.
    fn is_undisturbed(
        &self,
        old: Aside,
        before: &Digest,
        stamp: Option<IndexStamp>,
        after: &Digest,
    ) -> Result<bool, StoreError> {
        let (temp, name) = old.place();
        let swapped_out = has_text(temp, name, before, stamp);
        if matches!(swapped_out, Ok(true)) {
            old.remove()?;
            return Ok(true);
        }
        let is_back = self.swap_back(&old, after)?;
        // What cannot be read may be somebody's index: it is back in its place, and nothing was done. What yet another index
        // has replaced stays aside, and the next publisher looks for entries that only it has.
        swapped_out?;
        if is_back {
            old.remove()?;
        }
        Ok(false)
    }

    /// Puts somebody else's index back. If yet another one has replaced ours meanwhile, that one is the newest and stays:
    /// `false`.
    fn swap_back(&self, old: &Aside, ours: &Digest) -> Result<bool, StoreError> {
        old.exchange(&self.root, INDEX)?;
        let (temp, name) = old.place();
        if Digest::of(&read_index(temp, name)?) == *ours {
            return Ok(true);
        }
        old.exchange(&self.root, INDEX)?;
        Ok(false)
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

/// Whether a file has the text of this digest: by the state of the file, where that tells, else by its bytes.
fn has_text(dir: &Dir, name: &str, digest: &Digest, stamp: Option<IndexStamp>) -> Result<bool, StoreError> {
    let now = dir.stat(name)?.map(|stat| IndexStamp::of(&stat));
    match stamp.is_some() && stamp == now {
        true => Ok(true),
        false => Ok(Digest::of(&read_index(dir, name)?) == *digest),
    }
}

/// Indexes that were left aside.
impl Store {
    /// Indexes of other programs that edits of pfs had swapped out when they were killed. Neither what pfs itself had staged
    /// nor what the log knows is one. Writes nothing.
    pub fn lost_indexes(&self) -> Result<Vec<LostIndex>, StoreError> {
        let Some(temp) = self.existing_state_sub("tmp")? else { return Ok(Vec::new()) };
        let prefix = format!(".{}", self.lost_prefix());
        let names = temp.names()?.into_iter().filter_map(|name| String::from_utf8(name).ok());
        let mut lost = Vec::new();
        for name in names.filter(|name| name.starts_with(&prefix)) {
            lost.extend(self.lost_index(&temp, name)?);
        }
        if lost.is_empty() {
            return Ok(lost);
        }
        let mut known: HashSet<Digest> = self.index_notes()?.map(|note| note.digest()).collect();
        known.insert(self.index_digest()?);
        lost.retain(|lost| !known.contains(&lost.digest));
        Ok(lost)
    }

    fn lost_index(&self, temp: &Dir, name: String) -> Result<Option<LostIndex>, StoreError> {
        if is_being_written(temp, &name)? {
            return Ok(None);
        }
        let bytes = match read_index(temp, &name) {
            Err(error) if error.is_not_found() => return Ok(None),
            Err(StoreError::NotAFile { .. }) => return Ok(None),
            read => read?,
        };
        let digest = Digest::of(&bytes);
        let was_staged = name.contains(&digest.to_string());
        let document = IndexDocument::parse(&bytes).ok().filter(|_| !was_staged);
        Ok(document.map(|document| LostIndex { name, document, digest }))
    }

    /// Whether something in the staging directory is an index that has been left aside.
    pub(super) fn is_lost_index(&self, name: &str) -> Result<bool, StoreError> {
        Ok(self.lost_indexes()?.iter().any(|lost| lost.name == name))
    }

    /// Adds to the index what only lost indexes have: entries that no logged index had and whose tag is free. Then their
    /// texts are logged, and their files go.
    pub(super) fn restore_lost_entries(&self, _publisher: &PublisherGuard<'_>) -> Result<(), StoreError> {
        let lost = self.lost_indexes()?;
        if lost.is_empty() {
            return Ok(());
        }
        let known: HashSet<_> = self.index_history()?.iter().flat_map(entries_of).collect();
        for lost in lost {
            let before = self.index()?;
            let after = with_unknown_entries(before.document(), &lost.document, &known);
            let staged = self.stage_index(&before, &after)?;
            let held = self.lock_exclusive()?;
            let is_done = self.swap_index(&held, staged);
            drop(held);
            self.settle_swap()?;
            if is_done? {
                let temp = self.temp()?;
                temp.unlink(&lost.name).at("remove", temp.join(&lost.name))?;
            }
        }
        Ok(())
    }

    /// The same, for those who do not publish anything themselves: collectors.
    pub fn restore_lost_indexes(&self) -> Result<(), StoreError> {
        match self.lost_indexes()?.is_empty() {
            true => Ok(()),
            false => self.restore_lost_entries(&self.lock_publisher()?),
        }
    }

    /// How the names of staged indexes of this layout begin.
    fn lost_prefix(&self) -> String {
        format!("{}-", self.own_name(INDEX))
    }
}

fn entries_of(index: &IndexDocument) -> Vec<(Option<Tag>, DescriptorDigest)> {
    index.entries().iter().map(|entry| (entry.tag.clone(), entry.descriptor.digest.clone())).collect()
}

/// An index with the entries of another one that no logged index had and whose tag is free.
fn with_unknown_entries(
    index: &IndexDocument,
    lost: &IndexDocument,
    known: &HashSet<(Option<Tag>, DescriptorDigest)>,
) -> IndexDocument {
    let present: HashSet<_> = entries_of(index).into_iter().collect();
    let tags: HashSet<Tag> = index.entries().iter().filter_map(|entry| entry.tag.clone()).collect();
    let mut edited = index.clone();
    for (place, entry) in lost.entries().iter().enumerate() {
        let key = (entry.tag.clone(), entry.descriptor.digest.clone());
        let is_free = entry.tag.as_ref().is_none_or(|tag| !tags.contains(tag));
        if is_free && !known.contains(&key) && !present.contains(&key) {
            edited = edited.with(lost.entry_text(place), &[]);
        }
    }
    edited
}
