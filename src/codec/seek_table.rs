//! The table at the end of a seekable zstd blob: where its frames are, stored and decoded.
//!
//! A blob is untrusted. The table is accepted only if it accounts for every stored byte in front of it, and nothing is
//! allocated from a number in it before that number is known to fit. Checksums in 12-byte entries are not verified: whoever
//! reads a blob checks its digest, which covers more.

use std::ops::Range;

use zstd::bulk::Decompressor;

/// "Skippable_Magic_Number" and "Seekable_Magic_Number" of the format, and the sizes around the entries.
const SKIPPABLE_MAGIC: u32 = 0x184D_2A5E;
const SEEKABLE_MAGIC: u32 = 0x8F92_EAB1;
const HEADER_BYTES: usize = 8;
const FOOTER_BYTES: usize = 9;
const CHECKSUM_FLAG: u8 = 0x80;
/// Bits of the descriptor that a decoder must refuse when set; the lowest two are to be ignored.
const RESERVED_BITS: u8 = 0x7C;

/// Why bytes are not a seekable zstd blob.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeekTableError {
    /// Too short, or the magic number at the end or the header of the table is another.
    #[error("the blob has no zstd seek table at its end")]
    Missing,
    /// A bit is set whose meaning this program does not know.
    #[error("the zstd seek table has the descriptor {0:#04x}, which has reserved bits set")]
    Descriptor(u8),
    /// The number of frames does not fit into the blob, or not to the size of the table.
    #[error("the zstd seek table claims {frames} frames in a blob of {stored} bytes")]
    FrameCount {
        /// As the footer has it.
        frames: u32,
        /// The size of the blob.
        stored: usize,
    },
    /// The frames do not fill the blob up to the table.
    #[error("the zstd frames have {frames} bytes by the seek table, but {stored} bytes precede it")]
    FrameSizes {
        /// Their sum by the table.
        frames: u64,
        /// What there is.
        stored: usize,
    },
    /// More decoded bytes than the caller takes.
    #[error("the blob decodes to {decoded} bytes, over the limit of {limit}")]
    TooLarge {
        /// By the table.
        decoded: u64,
        /// The limit of the caller.
        limit: u64,
    },
    /// A frame that is not zstd, or decodes to another size than the table says.
    #[error("the zstd frame at byte {at} of the blob: {problem}")]
    Frame {
        /// Where it begins in the blob.
        at: usize,
        /// What is wrong.
        problem: String,
    },
}

/// Where the frames of a blob are.
#[derive(Debug, Clone)]
pub struct SeekTable {
    frames: Vec<Frame>,
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its bytes in the blob.
    pub stored: Range<usize>,
    /// What they decode to, in the decoded chunk.
    pub decoded: Range<u64>,
}

impl Frame {
    /// How many bytes it decodes to: up to 4 GiB by an untrusted table.
    pub fn decoded_len(&self) -> u64 {
        self.decoded.end - self.decoded.start
    }
}

impl SeekTable {
    /// Reads the table at the end of a whole blob.
    pub fn parse(stored: &[u8]) -> Result<Self, SeekTableError> {
        let (frames_len, entry_bytes, entries) = split_table(stored)?;
        let sizes = entries.chunks_exact(entry_bytes).map(|entry| (u32_at(entry, 0), u32_at(entry, 4)));
        let sum: u64 = sizes.clone().map(|(stored, _)| u64::from(stored)).sum();
        if sum != frames_len as u64 {
            return Err(SeekTableError::FrameSizes { frames: sum, stored: frames_len });
        }
        let (mut at, mut decoded_at) = (0, 0);
        let frames = sizes.map(|(stored, decoded)| {
            let (start, decoded_start) = (at, decoded_at);
            (at, decoded_at) = (at + stored as usize, decoded_at + u64::from(decoded));
            Frame { stored: start..at, decoded: decoded_start..decoded_at }
        });
        Ok(Self { frames: frames.collect() })
    }

    /// How many bytes the blob decodes to, by this table.
    pub fn decoded_len(&self) -> u64 {
        self.frames.last().map_or(0, |last| last.decoded.end)
    }

    /// The frames that hold bytes of `range` of the decoded chunk, in order; found by bisection.
    pub fn overlapping(&self, range: Range<u64>) -> &[Frame] {
        let first = self.frames.partition_point(|frame| frame.decoded.end <= range.start);
        let end = self.frames.partition_point(|frame| frame.decoded.start < range.end);
        &self.frames[first.min(end)..end]
    }
}

/// Decodes one frame of a blob into `decoded`, which must have exactly the size that the table gives.
pub fn decode_frame(stored: &[u8], frame: &Frame, decoded: &mut [u8]) -> Result<(), SeekTableError> {
    let problem = |problem: String| SeekTableError::Frame { at: frame.stored.start, problem };
    let bytes = stored.get(frame.stored.clone()).ok_or_else(|| problem("the blob ends before it".into()))?;
    let mut decompressor = Decompressor::new().map_err(|cause| problem(cause.to_string()))?;
    let written = decompressor.decompress_to_buffer(bytes, decoded).map_err(|cause| problem(cause.to_string()))?;
    match written == decoded.len() {
        true => Ok(()),
        false => Err(problem(format!("it decodes to {written} bytes, not {}", decoded.len()))),
    }
}

/// Decodes a whole blob, if it decodes to at most `limit` bytes.
pub fn decode_all(stored: &[u8], limit: u64) -> Result<Vec<u8>, SeekTableError> {
    let table = SeekTable::parse(stored)?;
    let too_large = SeekTableError::TooLarge { decoded: table.decoded_len(), limit };
    let len = usize::try_from(table.decoded_len()).ok().filter(|len| *len as u64 <= limit).ok_or(too_large)?;
    let mut decoded = vec![0; len];
    for frame in &table.frames {
        decode_frame(stored, frame, &mut decoded[frame.decoded.start as usize..frame.decoded.end as usize])?;
    }
    Ok(decoded)
}

/// The number of bytes before the table, the size of an entry, and the entries.
fn split_table(stored: &[u8]) -> Result<(usize, usize, &[u8]), SeekTableError> {
    let footer = stored.len().checked_sub(FOOTER_BYTES).ok_or(SeekTableError::Missing)?;
    let (frames, descriptor) = (u32_at(stored, footer), stored[footer + 4]);
    if u32_at(stored, footer + 5) != SEEKABLE_MAGIC {
        return Err(SeekTableError::Missing);
    }
    if descriptor & RESERVED_BITS != 0 {
        return Err(SeekTableError::Descriptor(descriptor));
    }
    let entry_bytes = if descriptor & CHECKSUM_FLAG != 0 { 12 } else { 8 };
    let count = || SeekTableError::FrameCount { frames, stored: stored.len() };
    let entries_len = (frames as usize).checked_mul(entry_bytes).ok_or_else(count)?;
    let entries = footer.checked_sub(entries_len).ok_or_else(count)?;
    let header = entries.checked_sub(HEADER_BYTES).ok_or_else(count)?;
    if u32_at(stored, header) != SKIPPABLE_MAGIC {
        return Err(SeekTableError::Missing);
    }
    if u32_at(stored, header + 4) as usize != entries_len + FOOTER_BYTES {
        return Err(count());
    }
    Ok((header, entry_bytes, &stored[entries..footer]))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("the range has four bytes"))
}

/// Appends the table for frames of these stored and decoded sizes.
pub(super) fn append(stored: &mut Vec<u8>, entries: &[(u32, u32)]) {
    let table_len = entries.len() * 8 + FOOTER_BYTES;
    stored.extend(SKIPPABLE_MAGIC.to_le_bytes());
    stored.extend((table_len as u32).to_le_bytes());
    for (frame, decoded) in entries {
        stored.extend(frame.to_le_bytes());
        stored.extend(decoded.to_le_bytes());
    }
    stored.extend((entries.len() as u32).to_le_bytes());
    stored.push(0);
    stored.extend(SEEKABLE_MAGIC.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn blob(frames: &[(u32, u32)]) -> Vec<u8> {
        let mut stored = vec![0; frames.iter().map(|(stored, _)| *stored as usize).sum()];
        append(&mut stored, frames);
        stored
    }

    /// `blob` with one byte of the footer changed, counted from the end.
    fn with_byte(mut blob: Vec<u8>, from_end: usize, value: u8) -> Vec<u8> {
        let at = blob.len() - from_end;
        blob[at] = value;
        blob
    }

    #[test]
    fn a_footer_that_claims_two_gib_of_frames_is_refused() {
        let claims = with_byte(blob(&[(10, 100)]), 6, 0x10);
        assert_eq!(
            SeekTable::parse(&claims).unwrap_err(),
            SeekTableError::FrameCount { frames: 0x1000_0001, stored: 35 }
        );
        let all = with_byte(with_byte(claims, 6, 0xff), 9, 0xff);
        assert!(matches!(SeekTable::parse(&all), Err(SeekTableError::FrameCount { .. })));
    }

    #[test]
    fn reserved_bits_are_refused_and_unused_bits_ignored() {
        for bit in [0x04, 0x08, 0x10, 0x20, 0x40] {
            let parsed = SeekTable::parse(&with_byte(blob(&[(10, 100)]), 5, bit));
            assert_eq!(parsed.unwrap_err(), SeekTableError::Descriptor(bit));
        }
        assert!(SeekTable::parse(&with_byte(blob(&[(10, 100)]), 5, 0x03)).is_ok());
    }

    #[test]
    fn a_table_that_does_not_account_for_every_byte_is_refused() {
        let mut longer = vec![0];
        longer.extend(blob(&[(10, 100)]));
        assert_eq!(SeekTable::parse(&longer).unwrap_err(), SeekTableError::FrameSizes { frames: 10, stored: 11 });
        let mut huge = vec![0; 10];
        append(&mut huge, &[(u32::MAX, 1), (u32::MAX, 1), (12, 1)]);
        assert!(matches!(SeekTable::parse(&huge), Err(SeekTableError::FrameSizes { .. })));
    }

    #[test]
    fn every_tail_and_every_prefix_of_a_blob_is_refused() {
        let whole = blob(&[(10, 100), (3, 7)]);
        for cut in 1..whole.len() {
            assert!(SeekTable::parse(&whole[cut..]).is_err(), "without the first {cut}");
            assert!(SeekTable::parse(&whole[..cut]).is_err(), "only the first {cut}");
        }
    }

    #[test]
    fn a_blob_over_the_limit_is_refused_before_it_is_decoded() {
        let claims = blob(&[(10, u32::MAX), (10, u32::MAX)]);
        let decoded = 2 * u64::from(u32::MAX);
        let refused = SeekTableError::TooLarge { decoded, limit: 1 << 20 };
        assert_eq!(decode_all(&claims, 1 << 20).unwrap_err(), refused);
    }

    #[test]
    fn a_frame_of_another_size_than_the_table_says_is_refused() {
        let frame = zstd::bulk::compress(b"nine and more", 3).unwrap();
        for (claimed, sound) in [(13, true), (12, false), (14, false)] {
            let mut stored = frame.clone();
            append(&mut stored, &[(frame.len() as u32, claimed)]);
            assert_eq!(decode_all(&stored, 100).is_ok(), sound, "{claimed} bytes claimed");
        }
    }

    #[test]
    fn entries_with_checksums_are_read() {
        let mut stored = blob(&[(10, 100)]);
        stored.truncate(10);
        stored.extend(SKIPPABLE_MAGIC.to_le_bytes());
        stored.extend([21, 0, 0, 0, 10, 0, 0, 0, 100, 0, 0, 0, 1, 2, 3, 4, 1, 0, 0, 0, 0x80]);
        stored.extend(SEEKABLE_MAGIC.to_le_bytes());
        let table = SeekTable::parse(&stored).unwrap();
        assert_eq!(table.overlapping(99..100), [Frame { stored: 0..10, decoded: 0..100 }]);
    }

    proptest! {
        #[test]
        fn overlapping_frames_are_those_that_hold_bytes_of_the_range(
            frames in prop::collection::vec((1u32..50, 0u32..50), 0..40),
            start in 0u64..1000,
            len in 0u64..1000,
        ) {
            let table = SeekTable::parse(&blob(&frames)).unwrap();
            let holds = |frame: &&Frame| frame.decoded.start < start + len && start < frame.decoded.end && len > 0;
            let expected: Vec<_> = table.frames.iter().filter(holds).filter(|f| f.decoded_len() > 0).collect();
            let found = table.overlapping(start..start + len).iter().filter(|f| f.decoded_len() > 0);
            prop_assert_eq!(found.filter(|_| len > 0).collect::<Vec<_>>(), expected);
            prop_assert_eq!(table.decoded_len(), frames.iter().map(|(_, decoded)| u64::from(*decoded)).sum::<u64>());
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_all(&bytes, 1 << 20);
        }
    }
}
