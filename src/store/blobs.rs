//! Blobs: files whose names are the digests of their bytes.

use std::{
    fs::File,
    io::{self, Read},
    ops::RangeInclusive,
    os::unix::fs::FileExt,
    thread,
};

use hashbrown::HashSet;
use rustix::fs::{FileType, Statx};
use sha2::Digest as _;

use super::{
    FileStamp, Store, StoreError,
    disk::{Dir, describe},
    error::At,
    pages::BlobBytes,
};
use crate::{
    format::{MentionScanner, digests_at_words, message_length},
    name::Digest,
};

/// What the filesystem says of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobStat {
    /// Length in bytes.
    pub size: u64,
    /// How many names the file has; more than one means that removing this name frees nothing yet.
    pub links: u32,
    /// Device and inode number: which file it is.
    pub identity: (u64, u64),
    /// The newest of modification, change and birth time, in seconds since 1970 by the filesystem's clock. Copies and
    /// renames keep the modification time, so it alone would lie.
    pub newest_seconds: i64,
    /// When its bytes came to be here, in nanoseconds since 1970: the later of modification and birth, or of modification
    /// and change where the filesystem has no birth time. Links and renames do not move it.
    pub written_nanoseconds: i64,
    /// When its attributes or its names last changed, in nanoseconds since 1970: the change time.
    pub changed_nanoseconds: i64,
    /// When its content was made, in seconds since 1970: the older of modification and birth, of those that are known.
    /// Neither links nor reads move it.
    pub made_seconds: i64,
}

/// How a blob came to be in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It was there already, with the right bytes.
    Reused,
    /// It was not there.
    Written,
    /// A file of that name with other bytes, left by somebody's crash, gave way to it.
    Replaced,
}

/// A blob that is, or at publication will be, visible under its own digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub digest: Digest,
    /// Length in bytes.
    pub size: u64,
    /// How it came to be there.
    pub put: Put,
}

impl BlobStat {
    pub(super) fn of(stat: &Statx) -> Self {
        Self {
            size: stat.stx_size,
            links: stat.stx_nlink,
            identity: (rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor), stat.stx_ino),
            newest_seconds: stat.stx_mtime.tv_sec.max(stat.stx_ctime.tv_sec).max(stat.stx_btime.tv_sec),
            changed_nanoseconds: nanoseconds(&stat.stx_ctime),
            made_seconds: match (stat.stx_mtime.tv_sec, stat.stx_btime.tv_sec) {
                (modified, born) if modified > 0 && born > 0 => modified.min(born),
                (modified, born) => modified.max(born),
            },
            written_nanoseconds: match stat.stx_mask & rustix::fs::StatxFlags::BTIME.bits() {
                0 => nanoseconds(&stat.stx_mtime).max(nanoseconds(&stat.stx_ctime)),
                _ => nanoseconds(&stat.stx_mtime).max(nanoseconds(&stat.stx_btime)),
            },
        }
    }

    /// Whether both describe one file of one length, whatever its times and names.
    pub fn is_same_file(&self, other: &Self) -> bool {
        self.identity == other.identity && self.size == other.size
    }

    /// The bytes that the filesystem gives back when this name goes.
    pub fn freed_bytes(&self) -> u64 {
        if self.links <= 1 { self.size } else { 0 }
    }
}

/// A time in nanoseconds since 1970; one that 64 bits do not hold is the last that they do.
pub(super) fn nanoseconds(time: &rustix::fs::StatxTimestamp) -> i64 {
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(i64::from(time.tv_nsec))
}

impl Store {
    /// Opens a blob for reading: in `blobs/`, else among the pins of mounts, else in quarantine. Its bytes are not checked.
    pub fn open_blob(&self, digest: &Digest) -> Result<File, StoreError> {
        let name = digest.to_string();
        match self.blobs.open_file(&name) {
            Err(error) if error.is_not_found() => self.open_aside(&name)?.ok_or(StoreError::Missing(*digest)),
            opened => opened,
        }
    }

    /// Reads a whole blob of at most `limit` bytes and checks its digest.
    pub fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, StoreError> {
        self.read_blob_stamped(digest, limit).map(|(bytes, _)| bytes)
    }

    /// The same, with the stamp of the file from before it was read; none if it lay elsewhere than in `blobs/`.
    pub fn read_blob_stamped(&self, digest: &Digest, limit: u64) -> Result<(Vec<u8>, Option<FileStamp>), StoreError> {
        let (bytes, stamp) = self.read_unchecked(digest, limit, read_limited)?;
        expect_digest(digest, Digest::of(&bytes), bytes.len() as u64)?;
        Ok((bytes, stamp))
    }

    /// Reads a whole blob of at most `limit` bytes, and has `make` make something of it while another thread checks its
    /// digest. Where that is wrong, what was made is thrown away, whatever it is: `make` must be fit for hostile bytes.
    pub fn read_blob_into<T>(
        &self,
        digest: &Digest,
        limit: u64,
        make: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, StoreError> {
        let (bytes, _) = self.read_unchecked(digest, limit, BlobBytes::read)?;
        let bytes: &[u8] = &bytes;
        let (made, actual) = match bytes.len() < HASHED_ASIDE_BYTES_MIN {
            true => (make(bytes), Digest::of(bytes)),
            false => thread::scope(|scope| {
                let hashing = thread::Builder::new().spawn_scoped(scope, || Digest::of(bytes));
                let made = make(bytes);
                let actual = hashing.ok().and_then(|hashing| hashing.join().ok());
                (made, actual.unwrap_or_else(|| Digest::of(bytes)))
            }),
        };
        expect_digest(digest, actual, bytes.len() as u64)?;
        Ok(made)
    }

    /// The same where the first bytes may be all that is needed: `make` gets no more than some of them, and gives `None` if
    /// they are too few for it. Then `None` is given, and of the digest nothing is said. The blob is never in memory as a whole.
    pub fn read_blob_start_into<T>(
        &self,
        digest: &Digest,
        limit: u64,
        make: impl FnOnce(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, StoreError> {
        let (file, path) = (self.open_blob(digest)?, self.blobs.join(&digest.to_string()));
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::WillNeed);
        let mut start = vec![0; HASH_BUFFER_BYTES];
        let len = file.read_at(&mut start, 0).at("read blob", &path)?;
        start.truncate(len);
        let hash = || hash_behind(&file, &start, limit);
        let (made, hashed) = match len < HASHED_ASIDE_BYTES_MIN {
            true => (make(&start), hash()),
            false => thread::scope(|scope| {
                let hashing = thread::Builder::new().spawn_scoped(scope, hash);
                let made = make(&start);
                let hashed = hashing.ok().and_then(|hashing| hashing.join().ok());
                (made, hashed.unwrap_or_else(hash))
            }),
        };
        let Some(made) = made else { return Ok(None) };
        let Some((actual, len)) = hashed.at("read blob", path)? else {
            return Err(StoreError::Damaged { digest: *digest, problem: over(limit) });
        };
        expect_digest(digest, actual, len)?;
        Ok(Some(made))
    }

    fn read_unchecked<B>(
        &self,
        digest: &Digest,
        limit: u64,
        read: impl FnOnce(&File, u64) -> io::Result<Option<B>>,
    ) -> Result<(B, Option<FileStamp>), StoreError> {
        let name = digest.to_string();
        let (file, stamp) = match self.blobs.open_file(&name) {
            Err(error) if error.is_not_found() => (self.open_blob(digest)?, None),
            opened => {
                let file = opened?;
                let stamp = FileStamp::of(&stat_file(&file).at("read the attributes of", self.blobs.join(&name))?);
                (file, Some(stamp))
            }
        };
        let bytes = read(&file, limit).at("read blob", self.blobs.join(&name))?;
        Ok((bytes.ok_or_else(|| StoreError::Damaged { digest: *digest, problem: over(limit) })?, stamp))
    }

    /// The blobs of this store, in place or in quarantine, that are mentioned in a blob of unknown meaning: its text has
    /// their names, or it is a Cap'n Proto message with the bytes of their digests. It is read as a stream.
    pub fn blobs_mentioned_in(&self, digest: &Digest) -> Result<Vec<Digest>, StoreError> {
        let (start, len) = self.blob_start(digest)?;
        let is_message = message_length(&start) == Some(len);
        let file = self.open_blob(digest)?;
        let (mut scanner, mut words, mut in_message) = (MentionScanner::default(), Vec::new(), HashSet::new());
        for_each_part(&file, 0..=u64::MAX, &mut vec![0; HASH_BUFFER_BYTES], &mut |part| {
            scanner.feed(part);
            if is_message {
                words.extend_from_slice(part);
                in_message.extend(digests_at_words(&words).filter(|digest| self.is_stored(digest)));
                // What may begin a digest that the next part ends.
                let whole = words.len() / 8 * 8;
                words.drain(..whole.saturating_sub(24));
            }
        })
        .at("read blob", self.blobs.join(&digest.to_string()))?;
        let named = scanner.finish().into_iter().filter(|digest| self.open_blob(digest).is_ok());
        let set_aside = match is_message {
            true => self.quarantined_in_message(&file)?,
            false => Vec::new(),
        };
        in_message.extend(named.chain(set_aside));
        in_message.remove(digest);
        let mut mentioned: Vec<Digest> = in_message.into_iter().collect();
        mentioned.sort_unstable();
        Ok(mentioned)
    }

    fn is_stored(&self, digest: &Digest) -> bool {
        self.blobs.stat(&digest.to_string()).is_ok_and(|stat| stat.is_some())
    }

    /// The blobs in quarantine whose digests are among the words of a message.
    fn quarantined_in_message(&self, file: &File) -> Result<Vec<Digest>, StoreError> {
        let quarantined: HashSet<Digest> = self.quarantined()?.into_iter().map(|blob| blob.digest).collect();
        if quarantined.is_empty() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        let mut words = Vec::new();
        for_each_part(file, 0..=u64::MAX, &mut vec![0; HASH_BUFFER_BYTES], &mut |part| {
            words.extend_from_slice(part);
            found.extend(digests_at_words(&words).filter(|digest| quarantined.contains(digest)));
            let whole = words.len() / 8 * 8;
            words.drain(..whole.saturating_sub(24));
        })
        .at("read", self.blobs.path())?;
        Ok(found)
    }

    /// Whether a blob begins like a JSON object or list, white space aside.
    pub fn begins_like_json(&self, digest: &Digest) -> Result<bool, StoreError> {
        let (start, _) = self.blob_start(digest)?;
        let first = start.iter().find(|byte| !byte.is_ascii_whitespace());
        Ok(matches!(first, Some(b'{' | b'[')))
    }

    /// The first bytes of a blob, at most 2 KiB, and its length.
    pub fn blob_start(&self, digest: &Digest) -> Result<(Vec<u8>, u64), StoreError> {
        let file = self.open_blob(digest)?;
        let path = self.blobs.join(&digest.to_string());
        let mut start = Vec::new();
        (&file).take(START_BYTES).read_to_end(&mut start).at("read blob", &path)?;
        Ok((start, file.metadata().at("read the attributes of", path)?.len()))
    }

    /// Hashes a whole blob without keeping it. `Ok(None)` means that its bytes are right, `Some` is its real digest.
    pub fn hash_blob(&self, digest: &Digest) -> Result<Option<Digest>, StoreError> {
        self.hash_blob_through(digest, &mut vec![0; HASH_BUFFER_BYTES])
    }

    /// The same, reading through a buffer of the caller's, which must not be empty: making one for each of many blobs takes
    /// as long as a small blob.
    pub fn hash_blob_through(&self, digest: &Digest, buffer: &mut [u8]) -> Result<Option<Digest>, StoreError> {
        let file = self.open_blob(digest)?;
        let actual = hash_through(&file, buffer).at("read blob", self.blobs.join(&digest.to_string()))?;
        Ok((actual != *digest).then_some(actual))
    }

    /// What the filesystem says of a blob in `blobs/`; `None` if it is not there.
    pub fn stat_blob(&self, digest: &Digest) -> Result<Option<BlobStat>, StoreError> {
        let name = digest.to_string();
        let Some(stat) = self.blobs.stat(&name)? else { return Ok(None) };
        match FileType::from_raw_mode(stat.stx_mode.into()) {
            FileType::RegularFile => Ok(Some(BlobStat::of(&stat))),
            other => Err(StoreError::NotAFile { path: self.blobs.join(&name), what: describe(other) }),
        }
    }

    fn open_aside(&self, name: &str) -> Result<Option<File>, StoreError> {
        for aside in ["pins", "quarantine"] {
            let Some(parent) = self.existing_state_sub(aside)? else { continue };
            for place in parent.names()? {
                let Ok(place) = String::from_utf8(place) else { continue };
                let Some(dir) = parent.sub_if_any(&place)? else { continue };
                match dir.open_file(name) {
                    Ok(file) => return Ok(Some(file)),
                    Err(error) if error.is_not_found() => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(None)
    }
}

const START_BYTES: u64 = 2048;
/// Fewer bytes are hashed in less time than a thread takes to start: 64 KiB take 40 microseconds.
const HASHED_ASIDE_BYTES_MIN: usize = 64 << 10;

fn over(limit: u64) -> String {
    format!("it has over {limit} bytes")
}

fn expect_digest(digest: &Digest, actual: Digest, len: u64) -> Result<(), StoreError> {
    match actual == *digest {
        true => Ok(()),
        false => {
            let problem = format!("its {len} bytes have the digest {}", actual.short());
            Err(StoreError::Damaged { digest: *digest, problem })
        }
    }
}

pub(super) fn stat_file(file: &File) -> rustix::io::Result<Statx> {
    rustix::fs::statx(file, "", rustix::fs::AtFlags::EMPTY_PATH, rustix::fs::StatxFlags::BASIC_STATS)
}

/// The file's bytes, or `None` if it has more than `limit`. What a file claims as its length is not believed.
pub(super) fn read_limited(file: &File, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let claimed = file.metadata()?.len();
    if claimed > limit {
        return Ok(None);
    }
    // The whole file is asked for at once: reading it, the kernel asks for 128 KiB at a time, and waits for each.
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::WillNeed);
    let mut bytes = Vec::with_capacity(usize::try_from(claimed + 1).map_err(io::Error::other)?);
    // All of it in one call, where `read_to_end` begins with 8 KiB. What is missing then, or why, is found by what follows.
    let _ = rustix::io::read(file, rustix::buffer::spare_capacity(&mut bytes));
    file.take((limit + 1).saturating_sub(bytes.len() as u64)).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}

const HASH_BUFFER_BYTES: usize = 128 << 10;

pub(super) fn hash(file: &File) -> io::Result<Digest> {
    hash_through(file, &mut vec![0; HASH_BUFFER_BYTES])
}

fn hash_through(file: &File, buffer: &mut [u8]) -> io::Result<Digest> {
    let mut hasher = sha2::Sha256::new();
    for_each_part(file, 0..=u64::MAX, buffer, &mut |part| hasher.update(part))?;
    Ok(Digest::of_hashed(hasher))
}

/// The same, with each part shown to `see`.
pub(super) fn hash_seen(file: &File, see: &mut dyn FnMut(&[u8])) -> io::Result<Digest> {
    let (mut hasher, mut buffer) = (sha2::Sha256::new(), vec![0; HASH_BUFFER_BYTES]);
    for_each_part(file, 0..=u64::MAX, &mut buffer, &mut |part| {
        hasher.update(part);
        see(part);
    })?;
    Ok(Digest::of_hashed(hasher))
}

/// The digest and the length of a file whose first bytes are these, or `None` if it has more than `limit`.
fn hash_behind(file: &File, start: &[u8], limit: u64) -> io::Result<Option<(Digest, u64)>> {
    let (mut hasher, mut buffer) = (sha2::Sha256::new_with_prefix(start), vec![0; HASH_BUFFER_BYTES]);
    let end = for_each_part(file, start.len() as u64..=limit, &mut buffer, &mut |part| hasher.update(part))?;
    Ok((end <= limit).then(|| (Digest::of_hashed(hasher), end)))
}

/// Reads a file from one place on, a buffer at a time, until it ends or goes past the other; returns where that is.
fn for_each_part(
    file: &File,
    range: RangeInclusive<u64>,
    buffer: &mut [u8],
    see: &mut dyn FnMut(&[u8]),
) -> io::Result<u64> {
    let (mut at, limit) = range.into_inner();
    while at <= limit {
        match file.read_at(buffer, at)? {
            0 => break,
            n => {
                see(&buffer[..n]);
                at += n as u64;
            }
        }
    }
    Ok(at)
}

/// Whether the file of that name in `dir` holds exactly these bytes; `None` if there is no such file.
pub(super) fn holds(dir: &Dir, name: &str, bytes: &[u8]) -> Result<Option<bool>, StoreError> {
    let file = match dir.open_file(name) {
        Ok(file) => file,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(StoreError::NotAFile { what: "a symbolic link", .. }) => return Ok(Some(false)),
        Err(error) => return Err(error),
    };
    same(&file, bytes).map(Some).at("read", dir.join(name))
}

fn same(file: &File, bytes: &[u8]) -> io::Result<bool> {
    if file.metadata()?.len() != bytes.len() as u64 {
        return Ok(false);
    }
    let mut buffer = vec![0; bytes.len().min(256 << 10)];
    let mut offset = 0;
    while offset < bytes.len() {
        let part = &bytes[offset..bytes.len().min(offset + buffer.len())];
        let read = file.read_at(&mut buffer[..part.len()], offset as u64)?;
        if read == 0 || buffer[..read] != part[..read] {
            return Ok(false);
        }
        offset += read;
    }
    Ok(true)
}
