//! `.pfs/index-log/`: the last texts of `index.json` that pfs saw.
//!
//! They tell a blob that was published once (it may go as soon as nothing needs it) from one that no index ever named
//! (it may be somebody's upload that has not reached its index yet). Losing the log only makes the collector more patient.

use std::{
    fs::{File, FileTimes},
    io::Write,
    time::{Duration, UNIX_EPOCH},
};

use hashbrown::{HashMap, HashSet};

use super::{
    IndexSnapshot, Store, StoreError, blobs::nanoseconds, disk::Dir, error::At, index::INDEX, partial::Partial,
};
use crate::{
    format::{DescriptorDigest, IndexDocument, IndexEntry},
    name::{Digest, Tag},
};

/// How many texts are kept.
const KEPT: usize = 32;

/// A text that `index.json` had once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexNote {
    bytes: Vec<u8>,
    digest: Digest,
    written_nanoseconds: i64,
    /// When the index got this text, as far as is known.
    set_nanoseconds: i64,
}

impl IndexNote {
    /// When it was written, in nanoseconds since 1970: what it names had been in the store by then.
    pub fn written_nanoseconds(&self) -> i64 {
        self.written_nanoseconds
    }

    /// The text.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its digest.
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

impl Store {
    /// Notes what the index holds now, unless the newest note says just that. The note's modification time is that of
    /// the index, so that it does not matter for the age of another program's tags when somebody came to note them.
    pub fn log_index(&self, snapshot: &IndexSnapshot) -> Result<(), StoreError> {
        let log = self.log()?;
        let Some(name) = name_of_next(&log, &snapshot.digest())? else { return Ok(()) };
        // Before anything else is made durable: on some filesystems that makes the rename of another program's index durable,
        // and not what is in it.
        self.settle_index()?;
        let temp = self.temp()?;
        let (partial, mut file) = temp.create_partial(&name)?;
        let written = file
            .write_all(snapshot.document().bytes())
            .and_then(|()| date_back(&file, snapshot.modified_nanoseconds()))
            .and_then(|()| file.sync_all())
            .and_then(|()| temp.rename_over(&partial, &log, &name));
        written.inspect_err(|_| drop(temp.unlink(&partial))).at("write", log.join(&name))?;
        log.sync()?;
        forget_old(&log)
    }

    /// Puts a note in its place that was written before, unless the newest says the same. [`Store::settle_notes`] makes it durable.
    pub(super) fn put_note(&self, note: Partial, digest: &Digest) -> Result<(), StoreError> {
        let log = self.log()?;
        match name_of_next(&log, digest)? {
            Some(name) => note.put(&log, &name),
            None => Ok(()),
        }
    }

    /// Makes the notes durable, and forgets the oldest.
    pub(super) fn settle_notes(&self) -> Result<(), StoreError> {
        let log = self.log()?;
        log.sync()?;
        forget_old(&log)
    }

    fn log(&self) -> Result<Dir, StoreError> {
        self.state()?.make_sub(&self.log_name())
    }

    /// Layouts that share their blobs share `.pfs`, but not their history.
    fn log_name(&self) -> String {
        self.own_name("index-log")
    }

    /// The name of a file of ours that each layout has for itself, also where several share their blobs and so `.pfs`.
    pub(super) fn own_name(&self, name: &str) -> String {
        use std::os::unix::ffi::OsStrExt;
        match self.has_own_state() {
            true => name.into(),
            false => format!("{name}-{}", Digest::of(self.path().as_os_str().as_bytes()).short()),
        }
    }

    /// The texts in the log that can still be read, newest first. A torn or foreign note is passed over: the log
    /// never authorises keeping or freeing what the indexes themselves do not.
    pub fn index_notes(&self) -> Result<impl Iterator<Item = IndexNote>, StoreError> {
        let log = self.existing_state_sub(&self.log_name())?;
        let names = log.as_ref().map(note_names).transpose()?.unwrap_or_default();
        let read = move |name: String| {
            let bytes = log.as_ref()?.read_small(&name).ok()?;
            let digest = Digest::of(&bytes);
            let stat = log.as_ref()?.stat(&name).ok()??;
            let set_nanoseconds = nanoseconds(&stat.stx_mtime);
            // Where the filesystem knows no birth, this is zero.
            let written_nanoseconds = nanoseconds(&stat.stx_btime).max(set_nanoseconds);
            let note = IndexNote { bytes, digest, written_nanoseconds, set_nanoseconds };
            name.ends_with(&digest.to_string()).then_some(note)
        };
        Ok(names.into_iter().rev().filter_map(read))
    }

    /// The same, parsed.
    pub fn index_history(&self) -> Result<Vec<IndexDocument>, StoreError> {
        Ok(self.index_notes()?.filter_map(|note| IndexDocument::parse(&note.bytes).ok()).collect())
    }
}

/// When the entries of an index were set.
#[derive(Debug, Default)]
pub struct TagTimes {
    nanoseconds: HashMap<Key, i64>,
}

/// A tag and what it stands for.
type Key = (Option<Tag>, DescriptorDigest);

/// How many bytes of notes are read to tell when tags were set; the newest first.
const TIMES_BYTES_MAX: usize = 64 << 20;

impl TagTimes {
    /// When the tag of an entry was set to what it stands for, in seconds since 1970; `None` if it was there before pfs saw
    /// the index for the first time. Where the log does not reach back to that, the oldest note is taken, so that no tag
    /// seems older than it is known to be.
    pub fn of(&self, entry: &IndexEntry) -> Option<i64> {
        self.nanoseconds_of(entry).map(|nanoseconds| nanoseconds / 1_000_000_000)
    }

    /// The same in nanoseconds.
    pub fn nanoseconds_of(&self, entry: &IndexEntry) -> Option<i64> {
        self.nanoseconds.get(&key(entry)).copied()
    }
}

fn key(entry: &IndexEntry) -> Key {
    (entry.tag.clone(), entry.descriptor.digest.clone())
}

impl Store {
    /// When each entry of the index was set, as the log tells: the time of the first of the texts since which it has been
    /// there without a break. Linear in the bytes of the notes, of which at most 64 MiB are read.
    pub fn tag_times(&self, index: &IndexDocument) -> Result<TagTimes, StoreError> {
        let written = self.root.stat(INDEX)?.map_or(0, |stat| nanoseconds(&stat.stx_mtime));
        let (mut open, mut later, mut bytes) = (index.entries().iter().map(key).collect::<HashSet<_>>(), written, 0);
        let (mut times, mut reaches_back) = (TagTimes::default(), self.log_reaches_back()?);
        for note in self.index_notes()? {
            bytes += note.bytes.len();
            if bytes > TIMES_BYTES_MAX {
                reaches_back = false;
                break;
            }
            let Ok(document) = IndexDocument::parse(&note.bytes) else { continue };
            let present: HashSet<Key> = document.entries().iter().map(key).collect();
            open.retain(|key| {
                let stays = present.contains(key);
                if !stays {
                    times.nanoseconds.insert(key.clone(), later);
                }
                stays
            });
            later = note.set_nanoseconds;
        }
        if !reaches_back {
            times.nanoseconds.extend(open.into_iter().map(|key| (key, later)));
        }
        Ok(times)
    }

    /// Whether the log still has its first note, or none at all.
    fn log_reaches_back(&self) -> Result<bool, StoreError> {
        let Some(log) = self.existing_state_sub(&self.log_name())? else { return Ok(true) };
        Ok(note_names(&log)?.first().is_none_or(|first| number_of(first) == 0))
    }
}

/// Gives a file this modification time, in nanoseconds since 1970, if that is in the past.
fn date_back(file: &File, modified_nanoseconds: Option<i64>) -> std::io::Result<()> {
    let Some(since_1970) = modified_nanoseconds.and_then(|modified| u64::try_from(modified).ok()) else {
        return Ok(());
    };
    let modified = UNIX_EPOCH + Duration::from_nanos(since_1970);
    match modified < file.metadata()?.modified()? {
        true => file.set_times(FileTimes::new().set_modified(modified)),
        false => Ok(()),
    }
}

/// The name that the next note will have; `None` if the newest has that digest.
fn name_of_next(log: &Dir, digest: &Digest) -> Result<Option<String>, StoreError> {
    let names = note_names(log)?;
    if names.last().is_some_and(|newest| newest.ends_with(&digest.to_string())) {
        return Ok(None);
    }
    let number = names.last().map_or(0, |newest| number_of(newest) + 1);
    Ok(Some(format!("{number:010}-{digest}")))
}

fn forget_old(log: &Dir) -> Result<(), StoreError> {
    for old in note_names(log)?.iter().rev().skip(KEPT) {
        match log.unlink(old) {
            // Another process that has seen the same notes was faster.
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => {}
            removed => removed.at("remove", log.join(old))?,
        }
    }
    Ok(())
}

/// Names of the form `<number>-<digest>`, by rising number; others are not ours.
fn note_names(log: &Dir) -> Result<Vec<String>, StoreError> {
    let names = log.names()?.into_iter().filter_map(|name| String::from_utf8(name).ok());
    let ours = names.filter(|name| {
        name.split_once('-').is_some_and(|(number, digest)| {
            number.len() == 10 && number.bytes().all(|b| b.is_ascii_digit()) && digest.parse::<Digest>().is_ok()
        })
    });
    Ok(ours.collect())
}

fn number_of(name: &str) -> u64 {
    name.split('-').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}
