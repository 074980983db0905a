//! What lies in `blobs/sha256`.

use std::{path::PathBuf, thread};

use rustix::fs::FileType;

use super::{BlobStat, Store, StoreError, disk::describe};
use crate::name::Digest;

/// The names in the blob directory: all of them, or those that somebody wanted to know of.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    /// The blobs, sorted by digest.
    pub blobs: Vec<(Digest, BlobStat)>,
    /// What is no blob: other programs' temporary files, directories, links. Never touched.
    pub strangers: Vec<Stranger>,
}

/// Something in the blob directory that is not a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stranger {
    /// Where it is.
    pub path: PathBuf,
    /// What it is, as in "a directory".
    pub what: &'static str,
    /// Its length in bytes.
    pub size: u64,
}

impl Inventory {
    /// The facts of one blob.
    pub fn get(&self, digest: &Digest) -> Option<&BlobStat> {
        let at = self.blobs.binary_search_by_key(digest, |(digest, _)| *digest).ok()?;
        Some(&self.blobs[at].1)
    }
}

/// A name in the blob directory.
enum Name {
    Blob(Digest),
    Other(Vec<u8>),
}

/// What became of one name: a blob, something else, or, if it has vanished, nothing.
type Listed = Option<Result<(Digest, BlobStat), Stranger>>;

/// For fewer names, threads cost more than they give.
const NAMES_PER_THREAD_MIN: usize = 2048;
const THREADS_MAX: usize = 8;

impl Store {
    /// Lists the blob directory and takes the facts of each name. A name that vanishes meanwhile is left out.
    ///
    /// Inodes are visited by rising number, because their tables are then read from the disk in one sweep: names, being
    /// digests, have them in random order.
    pub fn inventory(&self) -> Result<Inventory, StoreError> {
        self.inventory_of(|_| true)
    }

    /// The same, without the blobs that are not wanted: listing names costs far less than taking the facts of each.
    pub fn inventory_of(&self, is_wanted: impl Fn(&Digest) -> bool) -> Result<Inventory, StoreError> {
        let mut names = self.blobs.names_with_inodes(|name| {
            let digest = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok());
            digest.map_or_else(|| Name::Other(name.to_vec()), Name::Blob)
        })?;
        names.retain(|(_, name)| match name {
            Name::Blob(digest) => is_wanted(digest),
            Name::Other(_) => true,
        });
        names.sort_unstable_by_key(|(inode, _)| *inode);
        let mut inventory = Inventory::default();
        for listed in self.list_all(&names)? {
            match listed {
                Some(Ok(blob)) => inventory.blobs.push(blob),
                Some(Err(stranger)) => inventory.strangers.push(stranger),
                None => {}
            }
        }
        inventory.blobs.sort_unstable_by_key(|(digest, _)| *digest);
        inventory.strangers.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(inventory)
    }

    fn list_all(&self, names: &[(u64, Name)]) -> Result<Vec<Listed>, StoreError> {
        let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
        let share = names.len().div_ceil(threads).max(NAMES_PER_THREAD_MIN);
        let list = |names: &[(u64, Name)]| -> Result<Vec<Listed>, StoreError> {
            names.iter().map(|(_, name)| self.list(name)).collect()
        };
        thread::scope(|scope| {
            let others: Vec<_> = names.chunks(share).skip(1).map(|names| scope.spawn(|| list(names))).collect();
            let mut listed = list(names.chunks(share).next().unwrap_or_default())?;
            for other in others {
                listed.append(&mut other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
            }
            Ok(listed)
        })
    }

    fn list(&self, name: &Name) -> Result<Listed, StoreError> {
        let (text, digest) = match name {
            Name::Blob(digest) => (digest.to_string(), Some(*digest)),
            Name::Other(name) => match std::str::from_utf8(name) {
                Ok(text) => (text.into(), None),
                Err(_) => {
                    let path = self.blobs.join(&String::from_utf8_lossy(name));
                    return Ok(Some(Err(Stranger { path, what: "a name that is not UTF-8", size: 0 })));
                }
            },
        };
        let Some(stat) = self.blobs.stat(&text)? else { return Ok(None) };
        Ok(Some(match (digest, FileType::from_raw_mode(stat.stx_mode.into())) {
            (Some(digest), FileType::RegularFile) => Ok((digest, BlobStat::of(&stat))),
            (_, kind) => Err(Stranger { path: self.blobs.join(&text), what: describe(kind), size: stat.stx_size }),
        }))
    }

    /// The file system's own idea of now, in seconds since 1970: the change time of a file of ours touched just then.
    pub fn clock_seconds(&self) -> Result<i64, StoreError> {
        let state = self.state()?;
        state.write_durably(&self.temp()?, "clock", b"")?;
        let stat = state.stat("clock")?.ok_or_else(|| StoreError::Io {
            action: "read the attributes of",
            path: state.join("clock"),
            source: std::io::ErrorKind::NotFound.into(),
        })?;
        Ok(stat.stx_ctime.tv_sec)
    }
}
