//! Bytes to bytes: chunk boundaries, compression, Merkle digests.
