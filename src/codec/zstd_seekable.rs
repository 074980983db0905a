//! How the bytes of a chunk are stored: as they are, or as seekable zstd.
//!
//! Facts: contrib/seekable_format/zstd_seekable_compression_format.md in the zstd repository, version 0.1.0. The entries
//! are written without checksums, as later versions of puzzlefs do: the digest of the blob covers every byte.

use std::{borrow::Cow, io, num::NonZeroU32};

use zstd::bulk::Compressor;

use super::seek_table;

/// How a build stores chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// As they are.
    Plain,
    /// As independent zstd frames with a table of them at the end; plain, if that is not shorter.
    ZstdSeekable {
        /// The zstd level.
        level: i32,
        /// How many decoded bytes a frame holds: what a reader of one byte has to decode.
        frame_bytes: NonZeroU32,
    },
}

impl Encoding {
    /// The zstd level of puzzlefs.
    pub const LEVEL_DEFAULT: i32 = 3;
    /// 128 KiB, which most chunks fit into; puzzlefs has 4 KiB. Smaller frames are read more slowly and take more room; larger ones
    /// give little more, and who wants a page has to decode all of one. `docs/performance.md` has the figures.
    pub const FRAME_BYTES_DEFAULT: NonZeroU32 = NonZeroU32::new(128 << 10).expect("not zero");

    /// Compressed with the default level and frame size.
    pub fn zstd() -> Self {
        Self::ZstdSeekable { level: Self::LEVEL_DEFAULT, frame_bytes: Self::FRAME_BYTES_DEFAULT }
    }

    /// Whether chunks of such a build may be compressed.
    pub fn compresses(&self) -> bool {
        matches!(self, Self::ZstdSeekable { .. })
    }
}

/// The stored form of a chunk.
pub struct Encoded<'a> {
    /// The bytes of the blob.
    pub bytes: Cow<'a, [u8]>,
    /// Whether they are seekable zstd.
    pub compressed: bool,
}

/// Encodes one chunk after the other, keeping the compressor's tables between them.
pub struct Encoder(Option<FrameWriter>);

struct FrameWriter {
    compressor: Compressor<'static>,
    frame_bytes: usize,
}

impl Encoder {
    /// An encoder for `encoding`. Fails when there is no memory for the tables.
    pub fn new(encoding: Encoding) -> io::Result<Self> {
        Ok(Self(match encoding {
            Encoding::Plain => None,
            Encoding::ZstdSeekable { level, frame_bytes } => {
                let frame_bytes = frame_bytes.get() as usize;
                Some(FrameWriter { compressor: Compressor::new(level)?, frame_bytes })
            }
        }))
    }

    /// The stored form of `decoded`: plain where compressing does not make it shorter.
    pub fn encode<'a>(&mut self, decoded: &'a [u8]) -> io::Result<Encoded<'a>> {
        if let Some(writer) = &mut self.0 {
            let stored = writer.write(decoded)?;
            if stored.len() < decoded.len() {
                return Ok(Encoded { bytes: stored.into(), compressed: true });
            }
        }
        Ok(Encoded { bytes: decoded.into(), compressed: false })
    }
}

impl FrameWriter {
    fn write(&mut self, decoded: &[u8]) -> io::Result<Vec<u8>> {
        let mut stored = Vec::with_capacity(decoded.len() / 2);
        let mut entries = Vec::new();
        for part in decoded.chunks(self.frame_bytes) {
            let frame = self.compressor.compress(part)?;
            entries.push((frame.len() as u32, part.len() as u32));
            stored.extend(frame);
        }
        seek_table::append(&mut stored, &entries);
        Ok(stored)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::decode_all, *};

    fn encode(decoded: &[u8], frame_bytes: u32) -> Encoded<'_> {
        let frame_bytes = NonZeroU32::new(frame_bytes).unwrap();
        Encoder::new(Encoding::ZstdSeekable { level: 3, frame_bytes }).unwrap().encode(decoded).unwrap()
    }

    #[test]
    fn a_chunk_that_does_not_shrink_is_stored_plain() {
        let noise: Vec<u8> = (0u32..2000).flat_map(|i| crate::codec::verity_digest(&i.to_le_bytes())).collect();
        for decoded in [&b""[..], b"x", &noise] {
            let encoded = encode(decoded, 4096);
            assert!(!encoded.compressed && *encoded.bytes == *decoded, "{} bytes", decoded.len());
        }
    }

    proptest! {
        #[test]
        fn what_was_compressed_decodes_to_itself(
            words in prop::collection::vec("[ab]{1,9}", 200..2000),
            frame_bytes in 512u32..100_000,
        ) {
            let decoded = words.concat().into_bytes();
            let encoded = encode(&decoded, frame_bytes);
            prop_assert!(encoded.compressed && encoded.bytes.len() < decoded.len());
            prop_assert_eq!(decode_all(&encoded.bytes, decoded.len() as u64).unwrap(), decoded);
        }
    }
}
