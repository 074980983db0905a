//! Bytes to bytes: chunk boundaries, compression, Merkle digests.

/// Decodes a whole chunk of at most `limit` bytes.
pub fn decode_all(_stored: &[u8], limit: u64) -> Result<Vec<u8>, String> {
    Err(format!("compressed metadata of up to {limit} bytes"))
}
