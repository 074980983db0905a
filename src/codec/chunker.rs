//! Cuts one stream into chunks whose boundaries depend on content: FastCDC 2020 at 16 KiB, 64 KiB and 256 KiB, the
//! sizes of puzzlefs.
//!
//! The stream is pushed in pieces of any size; where the pieces end has no influence on where the chunks do, because a
//! cut is sought only with the longest possible chunk in sight, or with the whole rest of the stream.

use fastcdc::v2020::FastCDC;

const CHUNK_BYTES_MIN: usize = 16 << 10;
const CHUNK_BYTES_AVERAGE: usize = 64 << 10;
/// The longest chunk that a [`Chunker`] cuts, in bytes.
pub const CHUNK_BYTES_MAX: usize = 256 << 10;

/// A stream on its way to chunks. Holds less than a chunk and what was pushed last.
#[derive(Default)]
pub struct Chunker {
    buffer: Vec<u8>,
    cut: usize,
}

impl Chunker {
    /// Appends to the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.cut);
        self.cut = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next chunk, once enough has been pushed to know where it ends.
    pub fn next_chunk(&mut self) -> Option<Vec<u8>> {
        (self.buffer.len() - self.cut >= CHUNK_BYTES_MAX).then(|| self.cut_one())
    }

    /// The next chunk of a stream that has come to its end; `None` when all is cut.
    pub fn next_of_rest(&mut self) -> Option<Vec<u8>> {
        (self.cut < self.buffer.len()).then(|| self.cut_one())
    }

    fn cut_one(&mut self) -> Vec<u8> {
        let rest = &self.buffer[self.cut..];
        let (_, len) = FastCDC::new(rest, CHUNK_BYTES_MIN, CHUNK_BYTES_AVERAGE, CHUNK_BYTES_MAX).cut(0, rest.len());
        let chunk = rest[..len].to_vec();
        self.cut += len;
        chunk
    }
}

#[cfg(test)]
mod tests {
    use fastcdc::v2020::StreamCDC;
    use proptest::prelude::*;

    use super::*;

    fn chunks(stream: &[u8], piece_bytes: usize) -> Vec<Vec<u8>> {
        let mut chunker = Chunker::default();
        let mut chunks = Vec::new();
        for piece in stream.chunks(piece_bytes) {
            chunker.push(piece);
            chunks.extend(std::iter::from_fn(|| chunker.next_chunk()));
        }
        chunks.extend(std::iter::from_fn(|| chunker.next_of_rest()));
        chunks
    }

    fn reference(stream: &[u8]) -> Vec<Vec<u8>> {
        let cdc = StreamCDC::new(stream, CHUNK_BYTES_MIN, CHUNK_BYTES_AVERAGE, CHUNK_BYTES_MAX);
        cdc.map(|chunk| chunk.unwrap().data).collect()
    }

    /// Runs of noise and of one byte, so that cuts by content and cuts at the maximum both occur.
    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let run = (any::<u64>(), any::<bool>(), 0usize..300_000);
        prop::collection::vec(run, 0..8).prop_map(|runs| {
            let mut stream = Vec::new();
            for (mut seed, noise, len) in runs {
                stream.extend((0..len).map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(u64::from(noise) << 32 | 1);
                    if noise { (seed >> 56) as u8 } else { 0 }
                }));
            }
            stream
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn chunks_are_those_of_the_whole_stream(stream in stream(), piece_bytes in 1usize..500_000) {
            let piece_bytes = piece_bytes.max(stream.len() / 1000);
            let chunks = chunks(&stream, piece_bytes.max(1));
            prop_assert_eq!(chunks.concat(), stream.clone());
            prop_assert!(chunks.iter().all(|chunk| (1..=CHUNK_BYTES_MAX).contains(&chunk.len())));
            prop_assert!(chunks == reference(&stream));
        }
    }
}
