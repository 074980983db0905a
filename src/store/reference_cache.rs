//! `.pfs/cache/references`: what documents refer to, so that the next walk need not read them again.
//!
//! Only facts that cannot change are kept: what the document of *this digest* names. What can change is whether the file
//! under that digest still holds the document. A walk that reads everything refuses to go on when it does not, so a walk that
//! remembers must notice too: each fact carries the stamps of the files that it was read from, and holds only as long as
//! all of them are untouched (device, inode, size, modification and change time). A document that is missing, replaced,
//! truncated or written to is read again and then found wanting. What no stamp shows, bytes that rot under an intact inode, is
//! for `check`, which never remembers; a collector that remembers keeps then what the sound document names.
//!
//! Losing or damaging the file costs time and nothing else: a wrong checksum makes it empty.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `pfsrefs` and the version of the format, 3 |
//! | 32 | sha-256 of the rest |
//! | 4 + 32 n | the table: how many digests, and each; a digest is named by its place from here on |
//! | 4 + ... | how many documents, and each: its place; how many files it was read from, and of each the place of its digest and its stamp (48 bytes); its shape (1 byte); how many links, and of each its code (1 byte) and place; how many bytes the list of blobs has, and the list |
//!
//! Fixed numbers are little-endian; places and counts in documents are LEB128. A list of blobs is the differences of rising places.

use std::{
    io::{self, Read},
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use hashbrown::HashMap;
use rustix::fs::{Mode, Statx};

use super::{CollectorGuard, Store, StoreError, disk::Dir, error::At};
use crate::name::Digest;

/// Which state of which file something was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStamp {
    identity: (u64, u64),
    size: u64,
    modified: (i64, u32),
    changed: (i64, u32),
}

/// What a document refers to. What shapes and codes mean is for `graph` to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// What the document is.
    pub shape: u8,
    /// What it refers to and must be looked into.
    pub links: Links,
    /// The blobs that it needs as they are, as rising numbers; [`Store::remembered_digests`] has their digests.
    pub blobs: Vec<u32>,
}

/// What a document refers to and must be looked into: a code for what it is, and the digest.
pub type Links = Vec<(u8, Digest)>;

/// What this process knows: the file, and what has been read since.
#[derive(Debug, Default)]
pub(super) struct Memory {
    digests: Vec<Digest>,
    numbers: HashMap<Digest, u32>,
    documents: HashMap<u32, Arc<Entry>>,
    /// The file is there and cannot be used.
    is_file_useless: bool,
    /// Attributes of files mean nothing here.
    is_off: bool,
}

#[derive(Debug)]
struct Entry {
    files: Vec<(u32, FileStamp)>,
    shape: u8,
    links: Vec<(u8, u32)>,
    blobs: Vec<u8>,
    /// The file has it.
    is_saved: bool,
    /// This process has needed it.
    is_used: AtomicBool,
}

const CACHE: &str = "cache";
const FILE: &str = "references";
const MAGIC: &[u8; 8] = b"pfsrefs\x03";
const HEADER_BYTES: usize = 8 + 32;
/// A store of 2,000 images of 5,000 chunks, most of them shared, has 30 MB.
const FILE_BYTES_MAX: u64 = 1 << 30;
/// Writing the file takes longer than reading a few documents of it that nobody needs: a sixteenth may be such.
const USELESS_SHARE: usize = 16;

/// A file that was written to in the same tick of the kernel's clock, before and after it was read, has the same times both
/// times. Ticks last at most 10 ms; file systems that keep whole seconds have a tick of up to two.
const TICK_NANOSECONDS: i128 = 50_000_000;
const COARSE_TICK_NANOSECONDS: i128 = 2_000_000_000;

impl FileStamp {
    pub(super) fn of(stat: &Statx) -> Self {
        Self {
            identity: (rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor), stat.stx_ino),
            size: stat.stx_size,
            modified: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
            changed: (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec),
        }
    }

    /// Whether a change from `now` on would show in the times.
    fn is_settled(&self, now: SystemTime) -> bool {
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i128);
        let changed = i128::from(self.changed.0) * 1_000_000_000 + i128::from(self.changed.1);
        let tick = if self.changed.1 == 0 { COARSE_TICK_NANOSECONDS } else { TICK_NANOSECONDS };
        changed + tick <= now
    }

    fn write(&self, to: &mut Vec<u8>) {
        for number in [self.identity.0, self.identity.1, self.size] {
            to.extend(number.to_le_bytes());
        }
        for (seconds, nanoseconds) in [self.modified, self.changed] {
            to.extend(seconds.to_le_bytes());
            to.extend(nanoseconds.to_le_bytes());
        }
    }
}

impl Store {
    /// What a document refers to, if it was read before and the files that it was read from are untouched since.
    pub fn recall(&self, document: &Digest) -> Option<Remembered> {
        let (entry, links) = self.untouched_entry(document)?;
        let blobs = unpack(&entry.blobs)?;
        entry.is_used.store(true, Ordering::Relaxed);
        Some(Remembered { shape: entry.shape, links, blobs })
    }

    /// The links alone, under the same condition.
    pub fn recall_links(&self, document: &Digest) -> Option<Links> {
        self.untouched_entry(document).map(|(_, links)| links)
    }

    fn untouched_entry(&self, document: &Digest) -> Option<(Arc<Entry>, Links)> {
        let (entry, files, links) = {
            let memory = self.memory().read().ok()?;
            let entry = memory.documents.get(memory.numbers.get(document)?)?.clone();
            let digest = |number: u32| memory.digests.get(number as usize).copied();
            let files = entry.files.iter().map(|(number, stamp)| Some((digest(*number)?, *stamp)));
            let files = files.collect::<Option<Vec<_>>>()?;
            let links = entry.links.iter().map(|(code, number)| Some((*code, digest(*number)?)));
            let links = links.collect::<Option<Vec<_>>>()?;
            (entry, files, links)
        };
        let untouched = |(digest, stamp): &(Digest, FileStamp)| {
            let stat = self.blobs.stat(&digest.to_string());
            stat.is_ok_and(|stat| stat.is_some_and(|stat| FileStamp::of(&stat) == *stamp))
        };
        (!files.is_empty() && files.iter().all(untouched)).then_some((entry, links))
    }

    /// The digests that numbers of [`Remembered::blobs`] stand for; fewer if one of them stands for none.
    pub fn remembered_digests(&self, numbers: &[u32]) -> Vec<Digest> {
        let Ok(memory) = self.memory().read() else { return Vec::new() };
        numbers.iter().map_while(|number| memory.digests.get(*number as usize).copied()).collect()
    }

    /// Keeps what a document refers to, as read from files that had these stamps when they were opened. A file that was
    /// written to a moment ago is not to be relied on, so what it says is not kept.
    pub fn remember(
        &self,
        document: &Digest,
        files: &[(Digest, FileStamp)],
        shape: u8,
        links: &[(u8, Digest)],
        blobs: &[Digest],
    ) {
        let now = SystemTime::now();
        if !files.iter().all(|(_, stamp)| stamp.is_settled(now)) {
            return;
        }
        let names = files.iter().map(|(digest, _)| digest).chain(links.iter().map(|(_, digest)| digest));
        let digests: Vec<_> = std::iter::once(document).chain(names).chain(blobs).copied().collect();
        let Some(mut numbers) = self.numbers_of(&digests) else { return };
        let blobs = rising(numbers.split_off(digests.len() - blobs.len()));
        let (file_numbers, link_numbers) = numbers[1..].split_at(files.len());
        let entry = Entry {
            files: file_numbers.iter().zip(files).map(|(number, (_, stamp))| (*number, *stamp)).collect(),
            shape,
            links: links.iter().zip(link_numbers).map(|((code, _), number)| (*code, *number)).collect(),
            blobs: pack(&blobs),
            is_saved: false,
            is_used: AtomicBool::new(true),
        };
        if let Ok(mut memory) = self.memory().write() {
            memory.documents.insert(numbers[0], Arc::new(entry));
        }
    }

    /// The numbers of these digests, in their order; none if nothing is to be remembered. Most have one already, and looking
    /// those up disturbs no other thread.
    fn numbers_of(&self, digests: &[Digest]) -> Option<Vec<u32>> {
        let mut numbers: Vec<u32> = {
            let memory = self.memory().read().ok().filter(|memory| !memory.is_off)?;
            digests.iter().map(|digest| memory.numbers.get(digest).copied().unwrap_or(UNNAMED)).collect()
        };
        if numbers.contains(&UNNAMED) {
            let mut memory = self.memory().write().ok()?;
            for (number, digest) in numbers.iter_mut().zip(digests).filter(|(number, _)| **number == UNNAMED) {
                *number = memory.number(digest);
            }
        }
        Some(numbers)
    }

    /// Writes down what this process has needed, if it has learned anything, and forgets what it has not needed. Not being able to is no harm, so it is no
    /// error. Needs no sync: a torn file has a wrong checksum.
    pub fn save_references(&self, _held: &CollectorGuard<'_>) {
        let Some(bytes) = self.memory().read().ok().and_then(|memory| memory.changed_file()) else { return };
        let _ = self.replace_cache(&bytes);
    }

    fn replace_cache(&self, bytes: &[u8]) -> Result<(), StoreError> {
        let cache = self.state()?.make_sub(CACHE)?;
        // A directory that others may write holds nothing that can be relied on.
        if rustix::fs::fchmod(&cache, Mode::from_raw_mode(0o755)).is_err() {
            return Ok(());
        }
        // What a collector that was killed has left, and what other versions kept here.
        for name in cache.names()?.into_iter().filter_map(|name| String::from_utf8(name).ok()) {
            if name != FILE {
                let _ = cache.unlink(&name);
            }
        }
        let partial = format!(".{FILE}.partial");
        let mut file = cache.create_file(&partial)?;
        let written = std::io::Write::write_all(&mut file, bytes);
        if let Err(source) = written.and_then(|()| Ok(rustix::fs::fchmod(&file, Mode::from_raw_mode(0o644))?)) {
            let _ = cache.unlink(&partial);
            return Err(StoreError::Io { action: "write", path: cache.join(&partial), source });
        }
        cache.rename_over(&partial, &cache, FILE).at("rename", cache.join(&partial))
    }

    fn memory(&self) -> &RwLock<Memory> {
        self.memory.get_or_init(|| RwLock::new(self.load_memory()))
    }

    fn load_memory(&self) -> Memory {
        // There, attributes are answered from caches of the client, and times by another machine's clock.
        if !matches!(self.remote_filesystem(), Ok(None)) {
            return Memory { is_off: true, ..Memory::default() };
        }
        let Ok(Some(cache)) = self.existing_state_sub(CACHE) else { return Memory::default() };
        if !is_ours_alone(&cache.own_stat().ok()) {
            return Memory::useless();
        }
        match read_file(&cache) {
            Err(error) if error.is_not_found() => Memory::default(),
            Ok(bytes) => Memory::parse(&bytes).unwrap_or_else(Memory::useless),
            Err(_) => Memory::useless(),
        }
    }
}

/// Whether nobody but this user and root can have written it. What others say of documents could make a collector free what is needed.
fn is_ours_alone(stat: &Option<rustix::fs::Stat>) -> bool {
    let me = rustix::process::geteuid().as_raw();
    stat.as_ref().is_some_and(|stat| (stat.st_uid == 0 || stat.st_uid == me) && stat.st_mode & 0o022 == 0)
}

fn read_file(cache: &Dir) -> Result<Vec<u8>, StoreError> {
    let file = cache.open_file(FILE)?;
    if !is_ours_alone(&rustix::fs::fstat(&file).ok()) {
        return Err(io::Error::from(io::ErrorKind::PermissionDenied)).at("trust", cache.join(FILE));
    }
    let mut bytes = Vec::with_capacity(file.metadata().map_or(0, |data| data.len().min(FILE_BYTES_MAX) as usize));
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).at("read", cache.join(FILE))?;
    Ok(bytes)
}

impl Memory {
    fn useless() -> Self {
        Self { is_file_useless: true, ..Self::default() }
    }

    fn number(&mut self, digest: &Digest) -> u32 {
        *self.numbers.entry(*digest).or_insert_with(|| {
            self.digests.push(*digest);
            u32::try_from(self.digests.len() - 1).expect("a store has fewer than 2^32 blobs")
        })
    }

    /// The whole file, if it is not what is on disk.
    fn changed_file(&self) -> Option<Vec<u8>> {
        let is_used = |entry: &Entry| entry.is_used.load(Ordering::Relaxed);
        let learned = self.documents.values().any(|entry| is_used(entry) && !entry.is_saved);
        let useless = self.documents.values().filter(|entry| !is_used(entry)).count();
        let is_worth_it = learned || self.is_file_useless || useless * USELESS_SHARE > self.documents.len();
        if !is_worth_it || self.is_off {
            return None;
        }
        let mut documents: Vec<_> = self.documents.iter().filter(|(_, entry)| is_used(entry)).collect();
        documents.sort_unstable_by_key(|(document, _)| **document);
        Writer::of(self, &documents)?.file(self, &documents)
    }

    /// What a file holds; `None` if it is not one of ours, of another version, torn or damaged.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (header, body) = bytes.split_at_checked(HEADER_BYTES)?;
        if header[..8] != MAGIC[..] || header[8..] != Digest::of(body).as_bytes()[..] {
            return None;
        }
        let mut reader = Reader(body);
        let mut memory = Self::default();
        let count = reader.u32()? as usize;
        let table = reader.bytes(count.checked_mul(32)?)?;
        memory.digests = table.chunks_exact(32).map(Digest::from_bytes).collect::<Option<_>>()?;
        memory.numbers = memory.digests.iter().copied().zip(0..).collect();
        for _ in 0..reader.u32()? {
            let (document, entry) = reader.entry()?;
            memory.documents.insert(document, Arc::new(entry));
        }
        Some(memory)
    }
}

/// The places that numbers have in the file: those of digests that nothing names any more are left out.
struct Writer(Vec<u32>);

const UNNAMED: u32 = u32::MAX;

impl Writer {
    fn of(memory: &Memory, documents: &[(&u32, &Arc<Entry>)]) -> Option<Self> {
        let mut places = vec![UNNAMED; memory.digests.len()];
        let mut name = |number: u32| places.get_mut(number as usize).map(|place| *place = 0);
        for (document, entry) in documents {
            name(**document)?;
            entry.files.iter().try_for_each(|(number, _)| name(*number))?;
            entry.links.iter().try_for_each(|(_, number)| name(*number))?;
            unpack(&entry.blobs)?.into_iter().try_for_each(&mut name)?;
        }
        (0..).zip(places.iter_mut().filter(|place| **place != UNNAMED)).for_each(|(at, place)| *place = at);
        Some(Self(places))
    }

    fn file(&self, memory: &Memory, documents: &[(&u32, &Arc<Entry>)]) -> Option<Vec<u8>> {
        let mut file = MAGIC.to_vec();
        file.resize(HEADER_BYTES, 0);
        let named: Vec<_> = self.0.iter().zip(&memory.digests).filter(|(place, _)| **place != UNNAMED).collect();
        file.extend(u32::try_from(named.len()).ok()?.to_le_bytes());
        named.iter().for_each(|(_, digest)| file.extend(digest.as_bytes()));
        file.extend(u32::try_from(documents.len()).ok()?.to_le_bytes());
        for (document, entry) in documents {
            self.entry(**document, entry, &mut file)?;
        }
        let checksum = Digest::of(&file[HEADER_BYTES..]);
        file[8..HEADER_BYTES].copy_from_slice(checksum.as_bytes());
        Some(file)
    }

    fn entry(&self, document: u32, entry: &Entry, to: &mut Vec<u8>) -> Option<()> {
        let place = |number: u32| self.0.get(number as usize).copied();
        put(to, place(document)?);
        put(to, u32::try_from(entry.files.len()).ok()?);
        for (number, stamp) in &entry.files {
            put(to, place(*number)?);
            stamp.write(to);
        }
        to.push(entry.shape);
        put(to, u32::try_from(entry.links.len()).ok()?);
        for (code, number) in &entry.links {
            to.push(*code);
            put(to, place(*number)?);
        }
        // Places rise with numbers.
        let blobs = unpack(&entry.blobs)?.into_iter().map(place).collect::<Option<Vec<_>>>()?;
        let blobs = pack(&blobs);
        put(to, u32::try_from(blobs.len()).ok()?);
        to.extend(blobs);
        Some(())
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    fn packed(&mut self) -> Option<u32> {
        let mut value = 0u32;
        for shift in (0..32).step_by(7) {
            let [byte] = self.array()?;
            value |= u32::from(byte & 0x7f).checked_shl(shift)?;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn stamp(&mut self) -> Option<FileStamp> {
        Some(FileStamp {
            identity: (self.u64()?, self.u64()?),
            size: self.u64()?,
            modified: (self.i64()?, self.u32()?),
            changed: (self.i64()?, self.u32()?),
        })
    }

    fn entry(&mut self) -> Option<(u32, Entry)> {
        let document = self.packed()?;
        let files = (0..self.packed()?).map(|_| Some((self.packed()?, self.stamp()?))).collect::<Option<_>>()?;
        let [shape] = self.array()?;
        let links =
            (0..self.packed()?).map(|_| Some((self.array::<1>()?[0], self.packed()?))).collect::<Option<_>>()?;
        let len = self.packed()? as usize;
        let blobs = self.bytes(len)?.to_vec();
        Some((document, Entry { files, shape, links, blobs, is_saved: true, is_used: AtomicBool::new(false) }))
    }
}

fn put(to: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

/// The same numbers in order, once each. Those of one document lie close enough together for a bit each: setting the bits and
/// looking through them takes less time than sorting.
fn rising(mut numbers: Vec<u32>) -> Vec<u32> {
    let words = numbers.iter().max().map_or(0, |last| *last as usize / 64 + 1);
    if words > numbers.len() * WORDS_PER_NUMBER_MAX {
        numbers.sort_unstable();
        numbers.dedup();
        return numbers;
    }
    let mut bits = vec![0u64; words];
    numbers.iter().for_each(|number| bits[*number as usize / 64] |= 1 << (number % 64));
    numbers.clear();
    for (first, mut word) in (0..).step_by(64).zip(bits) {
        while word != 0 {
            numbers.push(first + word.trailing_zeros());
            word &= word - 1;
        }
    }
    numbers
}

/// Sorting takes as long for each number as looking through some twenty words.
const WORDS_PER_NUMBER_MAX: usize = 16;

fn pack(rising: &[u32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(rising.len() + 8);
    let mut last = 0;
    for number in rising {
        put(&mut bytes, number - last);
        last = *number;
    }
    bytes.shrink_to_fit();
    bytes
}

fn unpack(bytes: &[u8]) -> Option<Vec<u32>> {
    let mut reader = Reader(bytes);
    let mut numbers = Vec::with_capacity(bytes.len());
    let mut last = 0u32;
    while !reader.0.is_empty() {
        last = last.checked_add(reader.packed()?)?;
        numbers.push(last);
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_unpack_as_they_were_packed() {
        for list in [vec![], vec![0], vec![0, 1, 127, 128, 300, 1 << 20, u32::MAX - 1, u32::MAX]] {
            assert_eq!(unpack(&pack(&list)), Some(list));
        }
        assert_eq!(unpack(&[0x80]), None, "torn");
        assert_eq!(unpack(&pack(&[u32::MAX]).repeat(2)), None, "too large");
    }

    #[test]
    fn rising_numbers_are_those_that_were_given() {
        for numbers in
            [vec![], vec![0], vec![64, 63, 1, 64, 0, 128], vec![u32::MAX, 5, u32::MAX], (0..200).rev().collect()]
        {
            let mut sorted = numbers.clone();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(rising(numbers), sorted);
        }
    }

    #[test]
    fn a_file_that_is_cut_or_changed_anywhere_is_no_file() {
        let mut memory = Memory::default();
        let stamp = FileStamp { identity: (1, 2), size: 3, modified: (4, 5), changed: (-6, 7) };
        let (one, two) = (memory.number(&Digest::of(b"1")), memory.number(&Digest::of(b"2")));
        let entry = Entry {
            files: vec![(one, stamp)],
            shape: 1,
            links: vec![(9, two)],
            blobs: pack(&[one, two]),
            is_saved: false,
            is_used: AtomicBool::new(true),
        };
        memory.documents.insert(two, Arc::new(entry));
        let file = memory.changed_file().unwrap();
        let read = Memory::parse(&file).unwrap();
        assert_eq!(read.documents[&two].files, [(one, stamp)]);
        assert_eq!(read.changed_file().map(|file| file.len()), Some(HEADER_BYTES + 8), "what is not used is forgotten");
        for at in 0..file.len() {
            let mut changed = file.clone();
            changed[at] ^= 0x10;
            assert!(Memory::parse(&changed).is_none(), "byte {at}");
            assert!(Memory::parse(&file[..at]).is_none(), "cut at {at}");
        }
    }
}
