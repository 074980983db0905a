//! What lies in `blobs/sha256`.

use std::{path::PathBuf, thread};

use rustix::fs::FileType;

use super::{BlobStat, Store, StoreError, blobs::nanoseconds, disk::describe};
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

    /// The place of a blob that has this inode number.
    fn place(&self, digest: &Digest, inode: u64) -> Option<usize> {
        let at = self.blobs.binary_search_by_key(digest, |(digest, _)| *digest).ok()?;
        (self.blobs[at].1.identity.1 == inode).then_some(at)
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
        self.inventory_since(Inventory::default(), is_wanted, |_| false)
    }

    /// The same, with what an earlier inventory says of blobs that are there under the same inode number, and of which `may_be_old`
    /// allows it. All names are listed anew, and the facts of all else are taken anew.
    pub fn inventory_since(
        &self,
        mut earlier: Inventory,
        is_wanted: impl Fn(&Digest) -> bool,
        may_be_old: impl Fn(&Digest) -> bool,
    ) -> Result<Inventory, StoreError> {
        let mut names = self.blob_names()?;
        let mut is_good = vec![false; earlier.blobs.len()];
        names.retain(|(inode, name)| match name {
            Name::Blob(digest) if may_be_old(digest) => match earlier.place(digest, *inode) {
                Some(at) => {
                    is_good[at] = true;
                    false
                }
                None => is_wanted(digest),
            },
            Name::Blob(digest) => is_wanted(digest),
            Name::Other(_) => true,
        });
        let mut good = is_good.into_iter();
        earlier.blobs.retain(|_| good.next() == Some(true));
        earlier.strangers.clear();
        self.add_all(&mut names, &mut earlier)?;
        Ok(earlier)
    }

    fn blob_names(&self) -> Result<Vec<(u64, Name)>, StoreError> {
        self.blobs.names_with_inodes(|name| {
            let digest = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok());
            digest.map_or_else(|| Name::Other(name.to_vec()), Name::Blob)
        })
    }

    /// Takes the facts of these names, and adds them.
    fn add_all(&self, names: &mut [(u64, Name)], inventory: &mut Inventory) -> Result<(), StoreError> {
        names.sort_unstable_by_key(|(inode, _)| *inode);
        for listed in self.list_all(names)? {
            match listed {
                Some(Ok(blob)) => inventory.blobs.push(blob),
                Some(Err(stranger)) => inventory.strangers.push(stranger),
                None => {}
            }
        }
        inventory.blobs.sort_unstable_by_key(|(digest, _)| *digest);
        inventory.strangers.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(())
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

    /// When a name in the blob directory, or the directory itself, last changed, in nanoseconds since 1970.
    pub fn blobs_changed_nanoseconds(&self) -> Result<i64, StoreError> {
        let stat = self.blobs.stat(".")?.ok_or_else(|| StoreError::NotAStore {
            path: self.path().into(),
            why: "its blob directory is gone".into(),
        })?;
        Ok(nanoseconds(&stat.stx_mtime).max(nanoseconds(&stat.stx_ctime)))
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_may_be_old_is_taken_over_only_where_the_same_file_is_still_there() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(dir.path()).unwrap();
        let path = |digest: &Digest| store.blobs.join(&digest.to_string());
        let [same, fresh, gone, replaced, new] = [b"1", b"2", b"3", b"4", b"5"].map(|bytes| Digest::of(bytes));
        for digest in [same, fresh, gone, replaced] {
            fs::write(path(&digest), "").unwrap();
        }
        fs::create_dir(store.blobs.join("directory")).unwrap();
        let earlier = store.inventory().unwrap();
        for digest in [same, fresh, new] {
            fs::write(path(&digest), "longer").unwrap();
        }
        fs::remove_file(path(&gone)).unwrap();
        fs::write(store.blobs.join("other"), "longer").unwrap();
        fs::rename(store.blobs.join("other"), path(&replaced)).unwrap();
        let since = |is_wanted: fn(&Digest) -> bool| {
            store.inventory_since(earlier.clone(), is_wanted, |digest| *digest != fresh).unwrap()
        };
        let sizes = |inventory: &Inventory| {
            [same, fresh, gone, replaced, new].map(|digest| inventory.get(&digest).map(|stat| stat.size))
        };
        let all = since(|_| true);
        assert_eq!(sizes(&all), [Some(0), Some(6), None, Some(6), Some(6)]);
        assert!(all.blobs.is_sorted_by_key(|(digest, _)| *digest));
        assert_eq!(all.strangers.len(), 1);
        assert_eq!(sizes(&since(|_| false)), [Some(0), None, None, None, None], "what is known costs nothing");
    }
}
