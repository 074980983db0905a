//! A run of chunk descriptors in a manifest, read without a JSON parser: nearly all of a manifest is one, and its elements differ
//! in nothing but a digest and a size.
//!
//! A run is a number of elements of exactly the form `,{"digest":"sha256:...","mediaType":"...","size":...}`, as canonical JSON
//! has it. Whoever cuts all but the first out of a text has one that is JSON if and only if the whole is, and in which the first
//! stands where they all do: each is an element with the comma before it. What is not of that form ends the run.

use std::ops::Range;

use crate::name::{CHUNK, CHUNK_ZSTD, Digest};

/// Some chunk descriptors, one after the other.
pub(super) struct ChunkRun {
    /// Where the first of them stands, with its comma.
    pub(super) first: Range<usize>,
    /// Where the last of them ends.
    pub(super) end: usize,
    /// Digests and sizes of all but the first.
    pub(super) others: Vec<(Digest, u64)>,
}

const BEFORE_DIGEST: &[u8] = b",{\"digest\":\"sha256:";
const DIGEST_LEN: usize = 64;
const BEFORE_TYPE: &[u8] = b"\",\"mediaType\":\"";
const BEFORE_SIZE: &[u8] = b"\",\"size\":";
/// Of any number of so many digits: it fits into 64 bits.
const SIZE_DIGITS_MAX: usize = 18;
/// About what a descriptor has, and no more.
const DESCRIPTOR_BYTES: usize = 160;

impl ChunkRun {
    /// The first run of two or more in a text that begins like a manifest.
    pub(super) fn find(text: &[u8]) -> Option<Self> {
        const BEGIN_BYTES_MAX: usize = 4096;
        let begin = &text[..text.len().min(BEGIN_BYTES_MAX)];
        let at = |at: &usize| element(&text[*at..]).is_some();
        let start = begin.windows(BEFORE_DIGEST.len()).enumerate().filter(|(_, window)| *window == BEFORE_DIGEST);
        let start = start.map(|(at, _)| at).find(at)?;
        let first = start..start + element(&text[start..])?.2;
        let mut others = Vec::with_capacity(text.len() / DESCRIPTOR_BYTES);
        let mut end = first.end;
        while let Some((digest, size, len)) = element(&text[end..]) {
            others.push((digest, size));
            end += len;
        }
        (!others.is_empty()).then_some(Self { first, end, others })
    }
}

/// The digest, the size and the length of the descriptor that a text begins with.
#[inline]
fn element(text: &[u8]) -> Option<(Digest, u64, usize)> {
    let rest = text.strip_prefix(BEFORE_DIGEST)?;
    let (hex, rest) = rest.split_at_checked(DIGEST_LEN)?;
    let digest = std::str::from_utf8(hex).ok()?.parse().ok()?;
    let rest = rest.strip_prefix(BEFORE_TYPE)?;
    let rest =
        [CHUNK_ZSTD, CHUNK].iter().find_map(|kind| rest.strip_prefix(kind.as_bytes())?.strip_prefix(BEFORE_SIZE))?;
    let digits = rest.iter().take(SIZE_DIGITS_MAX + 1).take_while(|byte| byte.is_ascii_digit()).count();
    let (number, rest) = rest.split_at(digits);
    let is_number = (1..=SIZE_DIGITS_MAX).contains(&digits) && (digits == 1 || number[0] != b'0');
    let size = number.iter().fold(0, |size, digit| size * 10 + u64::from(digit - b'0'));
    let rest = rest.strip_prefix(b"}").filter(|_| is_number)?;
    Some((digest, size, text.len() - rest.len()))
}
