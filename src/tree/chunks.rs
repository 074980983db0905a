//! The bytes of files, out of chunks, verified.
//!
//! Wrong data is never returned: by default the stored bytes of each chunk are hashed when it is first read, and the
//! bytes that are handed out then are the very bytes that were hashed. What is wrong with a chunk is an error of that
//! read alone; the next read tries again, and the observer hears of each damaged chunk once.

use std::{
    fs::File,
    io,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use hashbrown::HashSet;

use super::{
    ahead::Ahead,
    cache::Decoded,
    loader::{Loader, Pattern, StoredChunk},
    streams::{AHEAD_MAX, Streams},
};
use crate::{
    format::{FileMap, Piece},
    name::{ChunkId, Digest},
};

/// Where the stored bytes of chunks come from.
pub trait ChunkSource: Send + Sync {
    /// Opens the stored bytes of a chunk for reading. They need not be what the digest says.
    fn open(&self, chunk: &ChunkId) -> io::Result<File>;
}

/// When the stored bytes of a chunk are compared with its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verify {
    /// When it is first read.
    #[default]
    First,
    /// Whenever it is read from its file. Decoded chunks are served from memory for a while.
    Always,
    /// Never.
    Off,
}

/// What is wrong with a chunk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChunkFault {
    /// It is in none of the places where chunks are.
    #[error("it is missing")]
    Missing,
    /// It cannot be opened or read.
    #[error("it cannot be read: {0}")]
    Io(io::Error),
    /// Its bytes are not those that the digest was taken of.
    #[error("its bytes have the digest {0}")]
    Digest(Digest),
    /// It has fewer bytes than the file needs of it.
    #[error("it has {has} bytes, and the file needs {needs}")]
    Short {
        /// Decoded bytes that there are.
        has: u64,
        /// Decoded bytes that there should be, at least.
        needs: u64,
    },
    /// Its compressed bytes cannot be decoded.
    #[error("it cannot be decoded: {0}")]
    Zstd(&'static str),
    /// It is, or decodes to, more than 64 MiB.
    #[error("it is larger than 64 MiB")]
    TooLarge,
}

/// A read that failed, and through which chunk.
#[derive(Debug, thiserror::Error)]
#[error("chunk {chunk}, named by inode {ino}, is damaged: {fault}")]
pub struct ReadError {
    /// The chunk.
    pub chunk: ChunkId,
    /// The file that was read.
    pub ino: u64,
    /// What is wrong with the chunk.
    pub fault: ChunkFault,
}

/// Hears of each damaged chunk, once.
pub type DamageObserver = Box<dyn Fn(&ReadError) + Send + Sync>;

/// A stretch of a file, as it lies in memory: one chunk's share of it.
pub struct AtHand {
    file_offset: u64,
    chunk: Decoded,
    range: Range<usize>,
}

impl AtHand {
    /// Which bytes of the file.
    pub fn range(&self) -> Range<u64> {
        self.file_offset..self.file_offset + self.range.len() as u64
    }

    /// Some of them, verified. Panics if `part` is not within [`AtHand::range`].
    pub fn bytes_of(&self, part: Range<u64>) -> &[u8] {
        let place = |offset: u64| usize::try_from(offset - self.file_offset).expect("no more than memory holds");
        &self.chunk[self.range.clone()][place(part.start)..place(part.end)]
    }
}

/// Reads files out of chunks. One serves any number of threads.
pub struct ChunkReader {
    loader: Arc<Loader>,
    on_damage: DamageObserver,
    damaged: Mutex<HashSet<ChunkId>>,
    streams: Streams,
    ahead: Option<Ahead>,
}

impl ChunkReader {
    /// A reader over these chunks.
    pub fn new(source: Box<dyn ChunkSource>, verify: Verify, on_damage: DamageObserver) -> Self {
        let loader = Arc::new(Loader::new(source, verify));
        Self { loader, on_damage, damaged: Mutex::default(), streams: Streams::default(), ahead: None }
    }

    /// The same, which also reads, checks and decodes the next chunks of a stream in threads of its own while files are read
    /// in the order in which they were built. Where there can be no threads, it does not.
    pub fn reading_ahead(self) -> Self {
        Self { ahead: Some(Ahead::new(self.loader.clone())), ..self }
    }

    /// Reads bytes of the file `ino`, whose map is `map`, from `offset` on. Fills `out` as far as the file goes and
    /// returns how many bytes that is; `out` holds nothing of meaning after an error.
    pub fn read_at(&self, ino: u64, map: FileMap<'_>, offset: u64, out: &mut [u8]) -> Result<usize, ReadError> {
        let wanted = map.size().saturating_sub(offset).min(out.len() as u64);
        let end = offset + wanted;
        let mut rest = &mut out[..usize::try_from(wanted).expect("no more than the buffer has")];
        let pieces = || map.pieces_from(offset).take_while(|piece| piece.file_offset < end);
        let pattern = self.follow(map, pieces());
        for piece in pieces() {
            let skip = offset.saturating_sub(piece.file_offset);
            let here = (piece.len - skip).min(rest.len() as u64);
            let (part, others) = rest.split_at_mut(usize::try_from(here).expect("no more than the buffer has"));
            let read = self.loader.read(&piece, skip, part, pattern);
            read.map_err(|fault| self.report(ino, &piece, fault))?;
            rest = others;
        }
        Ok(usize::try_from(wanted).expect("no more than the buffer has"))
    }

    /// What is in memory of the chunk that has the byte `offset` of a file; `None` if it is not there. Reads nothing.
    pub fn at_hand(&self, map: FileMap<'_>, offset: u64) -> Option<AtHand> {
        let piece = map.pieces_from(offset).next()?;
        let chunk = self.loader.in_memory(&piece)?;
        let start = usize::try_from(piece.blob.offset).ok()?;
        let end = start.checked_add(usize::try_from(piece.len).ok()?).filter(|end| *end <= chunk.len())?;
        Some(AtHand { file_offset: piece.file_offset, chunk, range: start..end })
    }

    /// Whether the chunk that a file begins in was verified before, and is not in memory any more: then this file, or another that
    /// shares the chunk, was read some time ago.
    pub fn has_lost(&self, map: FileMap<'_>) -> bool {
        map.pieces().next().is_some_and(|piece| self.loader.has_lost(&StoredChunk::of(piece.blob)))
    }

    /// Hears that a directory is listed, with the maps of its first files in the order of the list. Where directories that are
    /// listed are read, too, the first chunks of those files are prepared.
    pub fn note_listing<'a>(&self, files: impl Iterator<Item = FileMap<'a>>) {
        let Some(ahead) = &self.ahead else { return };
        let pieces = files.flat_map(|map| map.pieces().map(move |piece| (map, piece.slot)));
        let mut pieces = pieces.take(LISTED_PIECES_MAX);
        let Some((map, first)) = pieces.next() else { return };
        let layer = map.layer_chunks();
        let reach = first..=first.saturating_add(AHEAD_MAX);
        let near = pieces.take_while(|(map, slot)| std::ptr::eq(map.layer_chunks(), layer) && reach.contains(slot));
        let slots = first..=near.map(|(_, slot)| slot).max().unwrap_or(first);
        let chunk = |slot| StoredChunk::of(map.layer_chunk(slot));
        if self.streams.list(layer, &slots, !self.loader.was_loaded(&chunk(first))) {
            ahead.load(slots.map(chunk).filter(|chunk| !self.loader.has_lost(chunk)));
        }
    }

    /// Finds out whether these pieces, which one read asks for, are on somebody's way along the stream of files.
    fn follow(&self, map: FileMap<'_>, mut pieces: impl Iterator<Item = Piece>) -> Pattern {
        let Some(first) = pieces.next() else { return Pattern::Random };
        let last = pieces.last().map_or(first.slot, |last| last.slot);
        let again = self.loader.has_lost(&StoredChunk::of(first.blob));
        let Some(due) = self.streams.touch(map.layer_chunks(), first.slot, last, again) else { return Pattern::Random };
        if let Some(ahead) = &self.ahead
            && !due.slots.is_empty()
        {
            let next = due.slots.map(|slot| StoredChunk::of(map.layer_chunk(slot)));
            // What was read before is in the kernel's page cache; who comes to it asks for nothing, or shows that it is not.
            ahead.load(next.filter(|chunk| due.again || !self.loader.has_lost(chunk)));
        }
        Pattern::Stream
    }

    fn report(&self, ino: u64, piece: &Piece, fault: ChunkFault) -> ReadError {
        let error = ReadError { chunk: piece.blob.chunk, ino, fault };
        if lock(&self.damaged).insert(error.chunk) {
            (self.on_damage)(&error);
        }
        error
    }
}

/// So many pieces of a directory's files are looked at to find its first chunks. Small files share them.
const LISTED_PIECES_MAX: usize = 256;

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf, sync::atomic::AtomicUsize, sync::atomic::Ordering::SeqCst};

    use super::{
        super::sample::{Sample, image, place},
        *,
    };
    use crate::{format::BlobRef, tree::View};

    /// Chunks in a directory, under the names of their digests; counts how often one is opened.
    struct Directory(PathBuf, Arc<AtomicUsize>);

    impl ChunkSource for Directory {
        fn open(&self, chunk: &ChunkId) -> io::Result<File> {
            self.1.fetch_add(1, SeqCst);
            File::open(self.0.join(chunk.to_string()))
        }
    }

    struct Fixture {
        dir: tempfile::TempDir,
        view: View,
        reader: ChunkReader,
        opened: Arc<AtomicUsize>,
        told: Arc<Mutex<Vec<String>>>,
    }

    const INO: u64 = 2;

    /// One file of these pieces.
    fn fixture(verify: Verify, pieces: &[(BlobRef, u64)]) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let view = View::new(image(vec![Sample::new().dir(1, &[("f", INO)]).file(INO, pieces).layer()])).unwrap();
        let (opened, told) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let source = Box::new(Directory(dir.path().into(), opened.clone()));
        let tell = {
            let told = told.clone();
            move |error: &ReadError| lock(&told).push(error.to_string())
        };
        Fixture { dir, view, reader: ChunkReader::new(source, verify, Box::new(tell)), opened, told }
    }

    impl Fixture {
        /// Puts bytes under the name of a chunk, right or wrong.
        fn store(&self, chunk: ChunkId, bytes: &[u8]) {
            fs::write(self.dir.path().join(chunk.to_string()), bytes).unwrap();
        }

        fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, ReadError> {
            let mut out = vec![0xee; len];
            let read = self.reader.read_at(INO, self.view.file_map(INO).unwrap(), offset, &mut out)?;
            out.truncate(read);
            Ok(out)
        }

        fn fault(&self) -> ChunkFault {
            let error = self.read(0, 1 << 20).unwrap_err();
            assert_eq!(error.ino, INO);
            error.fault
        }
    }

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|at| u8::try_from(at * at % 251).unwrap()).collect()
    }

    /// Frames of 4 KiB and a seek table, with or without checksums, as the two upstream writers make them.
    fn seekable(plain: &[u8], checksums: bool) -> Vec<u8> {
        let (mut stored, mut table, mut frames) = (Vec::new(), Vec::new(), 0u32);
        let number = |number: usize| u32::try_from(number).unwrap().to_le_bytes();
        for part in plain.chunks(4096) {
            let frame = zstd::bulk::compress(part, 3).unwrap();
            table.extend([number(frame.len()), number(part.len())].concat());
            if checksums {
                table.extend([0; 4]);
            }
            stored.extend(frame);
            frames += 1;
        }
        let footer = [&frames.to_le_bytes()[..], &[u8::from(checksums) << 7], &0x8f92_eab1u32.to_le_bytes()].concat();
        let header = [0x184d_2a5eu32.to_le_bytes(), number(table.len() + footer.len())].concat();
        [stored, header, table, footer].concat()
    }

    #[test]
    fn any_stretch_of_a_file_is_read_out_of_plain_and_both_kinds_of_compressed_chunks() {
        let (plain, other, third) = (bytes(200_000), bytes(70_001), bytes(9000));
        let (old, new) = (seekable(&other, true), seekable(&third, false));
        let pieces = [
            (place(&plain, 100, false), 150_000),
            (place(&old, 1, true), 70_000),
            (place(&plain, 0, false), 10),
            (place(&new, 4000, true), 5000),
        ];
        let whole = [&plain[100..150_100], &other[1..], &plain[..10], &third[4000..]].concat();
        for verify in [Verify::First, Verify::Always, Verify::Off] {
            let fixture = fixture(verify, &pieces);
            [&plain, &old, &new].iter().for_each(|stored| fixture.store(place(stored, 0, false).chunk, stored));
            for (offset, len) in [(0, 300_000), (149_990, 100), (70_000, 131_072), (225_000, 50_000), (220_005, 1)] {
                let end = (offset + len).min(whole.len());
                assert_eq!(fixture.read(offset as u64, len).unwrap(), whole[offset..end], "{verify:?} {offset}");
            }
            assert!(fixture.read(whole.len() as u64, 10).unwrap().is_empty());
            assert!(fixture.read(u64::MAX, 10).unwrap().is_empty());
            assert!(lock(&fixture.told).is_empty());
        }
    }

    #[test]
    fn a_missing_chunk_is_told_once_and_found_again_when_it_is_back() {
        let stored = bytes(1000);
        let fixture = fixture(Verify::First, &[(place(&stored, 0, false), 1000)]);
        assert!(matches!(fixture.fault(), ChunkFault::Missing));
        assert!(matches!(fixture.fault(), ChunkFault::Missing));
        let chunk = place(&stored, 0, false).chunk;
        assert_eq!(*lock(&fixture.told), [format!("chunk {chunk}, named by inode 2, is damaged: it is missing")]);
        fixture.store(chunk, &stored);
        assert_eq!(fixture.read(0, 1000).unwrap(), stored);
    }

    #[test]
    fn one_flipped_bit_anywhere_is_found_before_a_byte_is_handed_out() {
        for compressed in [false, true] {
            let plain = bytes(150_000);
            let stored = if compressed { seekable(&plain, true) } else { plain.clone() };
            let fixture = fixture(Verify::First, &[(place(&stored, 70_000, compressed), 100)]);
            for at in [0, stored.len() / 2, stored.len() - 1] {
                let mut wrong = stored.clone();
                wrong[at] ^= 1;
                fixture.store(place(&stored, 0, false).chunk, &wrong);
                assert!(matches!(fixture.fault(), ChunkFault::Digest(_)), "{compressed} {at}");
            }
        }
    }

    #[test]
    fn a_chunk_with_fewer_bytes_than_the_file_needs_is_damage() {
        let plain = bytes(5000);
        for (stored, compressed) in [(plain.clone(), false), (seekable(&plain, false), true)] {
            for verify in [Verify::First, Verify::Off] {
                let fixture = fixture(verify, &[(place(&stored, 4000, compressed), 1001)]);
                fixture.store(place(&stored, 0, false).chunk, &stored);
                let fault = fixture.fault();
                assert!(matches!(fault, ChunkFault::Short { has: 5000, needs: 5001 }), "{fault:?}");
                assert!(fixture.read(0, 10).is_ok(), "what there is can be read");
            }
        }
        let far = fixture(Verify::First, &[(place(&plain, u64::MAX - 1001, false), 1000)]);
        far.store(place(&plain, 0, false).chunk, &plain);
        assert!(matches!(far.fault(), ChunkFault::Io(_) | ChunkFault::Short { .. }));
    }

    #[test]
    fn what_is_no_zstd_or_too_much_of_it_is_damage_and_costs_no_more_than_the_limit() {
        let nonsense = bytes(1000);
        let fixture_of = |stored: &[u8]| {
            let fixture = fixture(Verify::First, &[(place(stored, 0, true), 10)]);
            fixture.store(place(stored, 0, false).chunk, stored);
            fixture
        };
        assert!(matches!(fixture_of(&nonsense).fault(), ChunkFault::Zstd(_)));
        let bomb = zstd::bulk::compress(&vec![0; 65 << 20], 3).unwrap();
        assert!(bomb.len() < 100_000);
        assert!(matches!(fixture_of(&bomb).fault(), ChunkFault::TooLarge));
    }

    #[test]
    fn first_verifies_once_and_always_whenever_the_file_is_read() {
        for (verify, notices) in [(Verify::First, false), (Verify::Always, true)] {
            let stored = bytes(1000);
            let fixture = fixture(verify, &[(place(&stored, 0, false), 1000)]);
            fixture.store(place(&stored, 0, false).chunk, &stored);
            fixture.read(0, 10).unwrap();
            fixture.store(place(&stored, 0, false).chunk, &[7; 1000]);
            assert_eq!(fixture.read(0, 10).is_err(), notices, "{verify:?}");
        }
    }

    #[test]
    fn chunks_are_opened_once_and_served_from_what_is_kept() {
        let plain = bytes(10_000);
        for (stored, compressed) in [(plain.clone(), false), (seekable(&plain, false), true)] {
            let fixture = fixture(Verify::First, &[(place(&stored, 0, compressed), 10_000)]);
            fixture.store(place(&stored, 0, false).chunk, &stored);
            for offset in 0..100 {
                assert_eq!(fixture.read(offset * 100, 100).unwrap(), plain[offset as usize * 100..][..100]);
            }
            assert_eq!(fixture.opened.load(SeqCst), 1);
        }
    }

    #[test]
    fn all_that_a_chunk_has_of_a_file_is_at_hand_after_a_first_look_and_nothing_else() {
        let (plain, other) = (bytes(10_000), bytes(7777));
        for compressed in [false, true] {
            let stored = |bytes: &[u8]| if compressed { seekable(bytes, true) } else { bytes.to_vec() };
            let pieces =
                [(place(&stored(&plain), 500, compressed), 9000), (place(&stored(&other), 0, compressed), 7777)];
            let fixture = fixture(Verify::First, &pieces);
            [&plain, &other].iter().for_each(|bytes| {
                let stored = stored(bytes);
                fixture.store(place(&stored, 0, compressed).chunk, &stored);
            });
            let map = fixture.view.file_map(INO).unwrap();
            assert!(fixture.reader.at_hand(map, 100).is_none());
            fixture.read(4000, 10).unwrap();
            let stretch = fixture.reader.at_hand(map, 100).unwrap();
            assert_eq!((stretch.range(), stretch.bytes_of(20..8000)), (0..9000, &plain[520..8500]));
            assert!(fixture.reader.at_hand(map, 9000).is_none(), "nobody has read it");
            fixture.read(8999, 2).unwrap();
            let stretch = fixture.reader.at_hand(map, 9000).unwrap();
            assert_eq!((stretch.range(), stretch.bytes_of(9000..16_777)), (9000..16_777, &other[..]));
            assert!(fixture.reader.at_hand(map, 16_777).is_none(), "past the end");
        }
    }

    #[test]
    fn a_page_out_of_the_blue_is_the_same_whether_frames_are_decoded_alone_or_the_table_lies() {
        let plain = bytes(60_000);
        let right = seekable(&plain, true);
        let table_at = right.len() - 9 - 15 * 12;
        let mut lying = right.clone();
        // The second frame claims to decode to more than it does, the third to as much less.
        lying[table_at + 12 + 4] += 1;
        lying[table_at + 24 + 4..][..2].copy_from_slice(&4095u16.to_le_bytes());
        for stored in [right, lying, zstd::bulk::compress(&plain, 3).unwrap()] {
            let offsets = [0, 4095, 4096, 8191, 30_000, 59_990];
            for (offset, verify) in offsets.into_iter().flat_map(|at| [(at, Verify::Off), (at, Verify::First)]) {
                let fixture = fixture(verify, &[(place(&stored, 0, true), 60_000)]);
                fixture.store(place(&stored, 0, true).chunk, &stored);
                let end = (offset + 4100).min(plain.len());
                assert_eq!(fixture.read(offset as u64, 4100).unwrap(), plain[offset..end], "{verify:?} {offset}");
            }
        }
    }

    #[test]
    fn reading_ahead_changes_nothing_of_what_is_read_nor_of_what_is_damaged() {
        let chunks: Vec<Vec<u8>> = (0..60u8).map(|at| vec![at; 3000]).collect();
        let pieces: Vec<_> = chunks.iter().map(|chunk| (place(chunk, 0, false), 3000)).collect();
        let mut fixture = fixture(Verify::First, &pieces);
        fixture.reader = fixture.reader.reading_ahead();
        chunks.iter().for_each(|chunk| fixture.store(place(chunk, 0, false).chunk, chunk));
        fixture.store(pieces[40].0.chunk, b"wrong");
        for at in 0..60 {
            match fixture.read(at * 3000, 3000) {
                Ok(read) => assert_eq!(read, chunks[at as usize]),
                Err(error) => assert_eq!((at, error.chunk), (40, pieces[40].0.chunk)),
            }
        }
        assert_eq!(lock(&fixture.told).len(), 1, "only what was asked for is told");
    }
    #[test]
    fn whoever_reads_what_he_lists_has_the_first_chunks_of_its_files_in_that_layer_prepared() {
        let chunks: Vec<Vec<u8>> = (0..40u8).map(|at| vec![at; 3000]).collect();
        let pieces: Vec<_> = chunks.iter().map(|chunk| (place(chunk, 0, false), 3000)).collect();
        // The upper layer has four chunks, and the places of the last file's are none in it.
        let (first, second, third, other, below) = (2, 3, 4, 5, 6);
        let upper = Sample::new().dir_looking_below(1, &[("a", first), ("b", second), ("c", third)]);
        let upper = upper.file(first, &pieces[..1]).file(second, &pieces[1..2]).file(third, &pieces[2..4]);
        let lower = Sample::new().dir(1, &[("d", other), ("e", below)]);
        let lower = lower.file(other, &pieces[4..8]).file(below, &pieces[8..]);
        let mut fixture = fixture(Verify::First, &[]);
        fixture.view = View::new(image(vec![upper.layer(), lower.layer()])).unwrap();
        fixture.reader = fixture.reader.reading_ahead();
        chunks.iter().for_each(|chunk| fixture.store(place(chunk, 0, false).chunk, chunk));
        let map = |ino| fixture.view.file_map(ino).unwrap();
        for ino in [first, second] {
            fixture.reader.note_listing([map(ino)].into_iter());
            assert!(fixture.reader.at_hand(map(ino), 0).is_none(), "not yet");
            fixture.reader.read_at(ino, map(ino), 0, &mut [0; 3000]).unwrap();
        }
        fixture.reader.note_listing([map(third), map(below)].into_iter());
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while fixture.reader.at_hand(map(third), 0).is_none() || fixture.reader.at_hand(map(third), 3000).is_none() {
            assert!(std::time::Instant::now() < deadline, "nothing has been prepared in 30 s");
            std::thread::yield_now();
        }
        assert!(fixture.reader.at_hand(map(below), 0).is_none(), "that is in another layer");
        fixture.reader.note_listing(std::iter::empty());
    }
}
