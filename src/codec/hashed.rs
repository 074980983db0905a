//! Bytes that have been hashed.

use sha2::{Digest as _, Sha256};

use super::VerityHasher;
use crate::name::Digest;

/// Bytes and their digest: whoever gets them need not hash them again, and cannot be given another digest for them.
#[derive(Clone, Copy)]
pub struct Hashed<'b> {
    bytes: &'b [u8],
    digest: Digest,
}

/// As much as sha-256 takes in at a time.
const BLOCK_BYTES: usize = 64;

impl<'b> Hashed<'b> {
    /// Hashes the bytes.
    pub fn new(bytes: &'b [u8]) -> Self {
        Self { bytes, digest: Digest::of(bytes) }
    }

    /// Hashes the bytes, and finds the fs-verity digest of a file of them. That takes less time than one after the other: a
    /// step of a hash waits for the one before, and meanwhile the processor does a step of the other.
    pub fn with_verity(bytes: &'b [u8]) -> (Self, [u8; 32]) {
        let (mut whole, mut verity) = (Sha256::new(), VerityHasher::default());
        for block in bytes.chunks(BLOCK_BYTES) {
            whole.update(block);
            verity.update(block);
        }
        (Self { bytes, digest: Digest::of_hashed(whole) }, verity.finish())
    }

    /// The bytes.
    pub fn bytes(&self) -> &'b [u8] {
        self.bytes
    }

    /// Their digest.
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

#[cfg(test)]
mod tests {
    use super::{super::verity_digest, *};

    #[test]
    fn both_digests_are_those_that_are_made_alone() {
        let bytes: Vec<u8> = (0..40_000u32).flat_map(u32::to_le_bytes).collect();
        for len in [0, 1, 63, 64, 65, 4095, 4096, 4097, 8192, 100_000, bytes.len()] {
            let (hashed, verity) = Hashed::with_verity(&bytes[..len]);
            assert_eq!((hashed.digest(), hashed.bytes()), (Digest::of(&bytes[..len]), &bytes[..len]), "{len} bytes");
            assert_eq!(verity, verity_digest(&bytes[..len]), "{len} bytes");
        }
    }
}
