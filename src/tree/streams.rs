//! Which reads go along the stream of all files.
//!
//! A builder cuts the contents of all files into chunks as one stream, so the chunks of a layer in order of first use are
//! in the order in which a walk over the tree, or a read of one long file, wants them.

use std::{ops::Range, sync::Mutex};

use super::chunks::lock;
use crate::name::ChunkId;

/// Where the last few readers are.
#[derive(Default)]
pub(super) struct Streams {
    heads: Mutex<[Head; HEADS]>,
}

#[derive(Default, Clone, Copy)]
struct Head {
    /// Which layer, by the address of its table of chunks, which stays where it is as long as the image is open.
    layer: usize,
    /// The chunk that was read last.
    at: u32,
    /// The first that nobody was told to prepare.
    unprepared: u32,
}

/// More than this many readers at a time only lose what reading ahead would give.
const HEADS: usize = 8;
/// How far ahead to prepare, in chunks of 64 KiB on average; and how few may be left before more are asked for.
const AHEAD_MAX: u32 = 24;
const AHEAD_MIN: u32 = 16;

impl Streams {
    /// Notes that the chunk in `slot` of a layer is read. `None` if no reader was near; else which chunks to prepare.
    pub(super) fn touch(&self, layer: &[ChunkId], slot: u32) -> Option<Range<u32>> {
        let (layer, len) = (layer.as_ptr().addr(), u32::try_from(layer.len()).unwrap_or(u32::MAX));
        let mut heads = lock(&self.heads);
        let near = |head: &Head| head.layer == layer && (head.at == slot || head.at.checked_add(1) == Some(slot));
        let Some(which) = heads.iter().position(near) else {
            heads.rotate_right(1);
            heads[0] = Head { layer, at: slot, unprepared: slot + 1 };
            return None;
        };
        heads[..=which].rotate_right(1);
        let head = &mut heads[0];
        head.at = slot;
        let first = head.unprepared.max(slot + 1);
        if first - slot > AHEAD_MIN {
            return Some(0..0);
        }
        head.unprepared = slot.saturating_add(AHEAD_MAX + 1).min(len).max(first);
        Some(first..head.unprepared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Digest;

    fn layer(len: usize) -> Vec<ChunkId> {
        (0..len).map(|at| ChunkId(Digest::of(&at.to_le_bytes()))).collect()
    }

    #[test]
    fn a_reader_along_the_stream_has_every_chunk_prepared_once_and_none_past_the_end() {
        let (streams, layer) = (Streams::default(), layer(50));
        let mut prepared = Vec::new();
        for slot in 0..50 {
            for again in 0..3 {
                let due = streams.touch(&layer, slot);
                assert_eq!(due.is_none(), slot == 0 && again == 0);
                prepared.extend(due.into_iter().flatten());
            }
            assert!(slot == 0 || prepared.contains(&slot), "{slot} was prepared before it came");
        }
        assert_eq!(prepared, (1..50).collect::<Vec<_>>());
    }

    #[test]
    fn readers_here_and_there_do_not_disturb_a_stream_and_are_none() {
        let (streams, layer) = (Streams::default(), layer(1000));
        assert_eq!(streams.touch(&layer, 500), None);
        for at in 0..7 {
            assert_eq!(streams.touch(&layer, at * 37), None);
        }
        assert_eq!(streams.touch(&layer, 501), Some(502..502 + AHEAD_MAX));
        assert_eq!(streams.touch(&layer, 999), None, "far away");
        assert_eq!(streams.touch(&layer, 999), Some(1000..1000), "the last one has none after it");
    }
}
