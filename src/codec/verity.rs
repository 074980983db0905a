//! fs-verity digests: what the kernel would report of a file with these bytes.
//!
//! Facts: Documentation/filesystems/fsverity.rst, "Merkle tree" and "fs-verity descriptor". SHA-256, blocks of 4096 bytes,
//! no salt: the parameters that puzzlefs enables verity with.

use sha2::{Digest as _, Sha256};

const BLOCK_BYTES: usize = 4096;
const HASH_BYTES: usize = 32;
/// The size of `struct fsverity_descriptor` without a signature.
const DESCRIPTOR_BYTES: usize = 256;

/// The fs-verity digest of a file that holds `bytes`.
pub fn verity_digest(bytes: &[u8]) -> [u8; 32] {
    let mut hasher = VerityHasher::default();
    hasher.update(bytes);
    hasher.finish()
}

/// Makes the fs-verity digest of a file that comes in pieces. Holds the hashes of its blocks: 8 bytes for each KiB.
#[derive(Default)]
pub struct VerityHasher {
    bytes: u64,
    hashes: Vec<u8>,
    block: Sha256,
    block_bytes: usize,
}

impl VerityHasher {
    /// Takes the next bytes of the file.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            let part;
            (part, bytes) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.block_bytes));
            self.block.update(part);
            self.block_bytes += part.len();
            if self.block_bytes == BLOCK_BYTES {
                self.end_block();
            }
        }
    }

    /// The digest of the file.
    pub fn finish(self) -> [u8; 32] {
        let mut descriptor = [0; DESCRIPTOR_BYTES];
        descriptor[0] = 1; // version
        descriptor[1] = 1; // FS_VERITY_HASH_ALG_SHA256
        descriptor[2] = BLOCK_BYTES.trailing_zeros() as u8;
        descriptor[8..16].copy_from_slice(&self.bytes.to_le_bytes());
        descriptor[16..16 + HASH_BYTES].copy_from_slice(&self.root_hash());
        Sha256::digest(descriptor).into()
    }

    /// The root of the Merkle tree; by definition all zeros for an empty file.
    fn root_hash(mut self) -> [u8; HASH_BYTES] {
        if self.block_bytes > 0 {
            const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
            self.block.update(&ZEROS[self.block_bytes..]);
            self.end_block();
        }
        match self.hashes.len() {
            0 => [0; HASH_BYTES],
            HASH_BYTES => self.hashes.try_into().expect("it is one hash"),
            _ => {
                let mut above = Self::default();
                above.update(&self.hashes);
                above.root_hash()
            }
        }
    }

    fn end_block(&mut self) {
        self.hashes.extend(self.block.finalize_reset());
        self.block_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Digest;

    /// Printed by `fsverity digest` 1.5 of files that hold the letter p that many times: no block, part of one, exactly
    /// one, one hash over two blocks, a full level of 128 hashes, a second level, and an odd size.
    const KNOWN: &[(usize, &str)] = &[
        (0, "3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95"),
        (1, "7dfb06a2b6212c8ebfd41f6ceda0ce7bf0451fcb58b6605311c6a9cd053d26e1"),
        (4096, "ef14a7454ff37f3c48a9d1ba07a50e501acf184bc3ca76e438f3d03dd3afc3db"),
        (4097, "375df6ab0f75cbf6bb42fff3889009c5be034366031ed438c34b2497c03f8007"),
        (524_288, "9a0d7f13278066e680f1ecd049b5184060f4fdff028e52ceafe2e1ff4fd3b738"),
        (524_289, "655889adf9f8f88581e6bc467c2328c9977124813803209cda134c3026e4a6d8"),
        (1_000_000, "1cb8727c2f837cb411140d2786dda917ff5c9decf43e86597d885993e5552c34"),
    ];

    #[test]
    fn digests_are_those_of_the_fsverity_tool() {
        for (len, hex) in KNOWN {
            let digest = verity_digest(&vec![b'p'; *len]);
            assert_eq!(Digest::from_bytes(&digest), hex.parse().ok(), "{len} bytes");
        }
    }

    #[test]
    fn a_file_in_pieces_has_the_digest_of_the_whole() {
        let bytes: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        for piece_bytes in [1000, 4096, 5000, 300_000] {
            let mut hasher = VerityHasher::default();
            bytes.chunks(piece_bytes).for_each(|piece| hasher.update(piece));
            assert_eq!(hasher.finish(), verity_digest(&bytes), "pieces of {piece_bytes} bytes");
        }
    }
}
