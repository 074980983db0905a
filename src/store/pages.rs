//! Memory for a large blob that is read once and let go.
//!
//! The kernel fills fresh memory page by page, at the first touch of each: for a blob of megabytes that takes longer than
//! copying its bytes. Asked for huge pages, it fills 2 MiB at a time. Where it has none, nothing else is different.

use std::{fs::File, io, ops::Deref, os::unix::fs::FileExt};

use memmap2::{Advice, MmapMut};

use super::blobs::read_limited;

/// The bytes of a blob.
pub(super) enum BlobBytes {
    Heap(Vec<u8>),
    /// The map, and how much of it the blob takes up.
    Pages(MmapMut, usize),
}

const HUGE_PAGE_BYTES: usize = 2 << 20;
/// A smaller blob fits into few pages.
const PAGES_BYTES_MIN: u64 = 1 << 20;

impl BlobBytes {
    /// The file's bytes, or `None` if it has more than `limit`.
    pub(super) fn read(file: &File, limit: u64) -> io::Result<Option<Self>> {
        let claimed = file.metadata()?.len();
        if (PAGES_BYTES_MIN..=limit).contains(&claimed)
            && let Some(pages) = Self::read_paged(file, usize::try_from(claimed).map_err(io::Error::other)?)
        {
            return Ok(Some(pages));
        }
        Ok(read_limited(file, limit)?.map(Self::Heap))
    }

    /// `None` where the file has not as many bytes as it claims, and where there is no such memory.
    fn read_paged(file: &File, len: usize) -> Option<Self> {
        let mut map = MmapMut::map_anon(len.next_multiple_of(HUGE_PAGE_BYTES)).ok()?;
        // A kernel without huge pages refuses, and the pages are of the usual size.
        let _ = map.advise(Advice::HugePage);
        file.read_exact_at(&mut map[..len], 0).ok()?;
        (file.read_at(&mut [0], len as u64).ok()? == 0).then_some(Self::Pages(map, len))
    }
}

impl Deref for BlobBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Heap(bytes) => bytes,
            Self::Pages(map, len) => &map[..*len],
        }
    }
}
