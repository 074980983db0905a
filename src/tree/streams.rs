//! Which reads go along the stream of all files.
//!
//! A builder cuts the contents of all files into chunks as one stream, so the chunks of a layer in order of first use are
//! in the order in which a walk over the tree, or a read of one long file, wants them.

use std::{
    ops::{Range, RangeInclusive},
    sync::Mutex,
};

use super::chunks::lock;
use crate::name::ChunkId;

/// Where the last few readers are.
#[derive(Default)]
pub(super) struct Streams {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    heads: [Head; HEADS],
    /// What is read next if the directory that was listed last is read: a layer, as in [`Head`], and a slot.
    listed: Option<(usize, u32)>,
    /// How often a directory was listed and read, less how often one was only listed.
    trust: u32,
}

#[derive(Default, Clone, Copy)]
struct Head {
    /// Which layer, by the address of its table of chunks, which stays where it is as long as the image is open.
    layer: usize,
    /// The chunk that was read last.
    at: u32,
    /// The chunk that it began with.
    start: u32,
    /// The first that nobody was told to prepare.
    unprepared: u32,
    /// How often it stayed at a chunk or went on to the next.
    steps: u32,
    /// Whether it reads what has been read before.
    reads_again: bool,
    /// Whether it began with a listing. Its first read may come anywhere in what is prepared: the rest is in the page cache.
    is_listed: bool,
}

/// What to prepare for a reader.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Due {
    /// The slots of the chunks.
    pub(super) slots: Range<u32>,
    /// Whether also those that were loaded before: it is such that it reads.
    pub(super) again: bool,
}

/// More than this many readers at a time only lose what reading ahead would give.
const HEADS: usize = 8;
/// Who reads here and there in a long file comes near where he was by chance now and then, but not twice in a row. What is
/// prepared in vain costs more than a stream that is seen one read later.
const STEPS_MIN: u32 = 2;
/// How far ahead to prepare at most, in chunks of 64 KiB on average. Who has come a little way is prepared for a little way: a walk
/// that takes directories in another order than the stream goes forward by a few chunks, again and again, to come to what it has seen.
pub(super) const AHEAD_MAX: u32 = 24;
/// So often must a directory have been listed and read before the next that is listed is prepared.
const TRUST_MIN: u32 = 2;
/// After this many, five that are only listed are enough to end it.
const TRUST_MAX: u32 = 6;

impl Streams {
    /// Notes that one read goes from the chunk in the slot `first` of a layer to the one in `last`, and whether the first was
    /// loaded before and is not in memory any more. `None` if no reader has come along to it; else which chunks to prepare.
    pub(super) fn touch(&self, layer: &[ChunkId], first: u32, last: u32, again: bool) -> Option<Due> {
        let (layer, len) = (layer.as_ptr().addr(), u32::try_from(layer.len()).unwrap_or(u32::MAX));
        let mut state = lock(&self.state);
        let State { heads, listed, trust } = &mut *state;
        if *listed == Some((layer, first)) {
            *listed = None;
            *trust = (*trust + 1).min(TRUST_MAX);
        }
        let near = |head: &Head| head.layer == layer && (head.at..=head.reach()).contains(&first);
        let Some(which) = heads.iter().position(near) else {
            heads.rotate_right(1);
            let unprepared = last.saturating_add(1);
            heads[0] =
                Head { layer, at: last, start: first, unprepared, steps: 0, reads_again: again, is_listed: false };
            return None;
        };
        heads[..=which].rotate_right(1);
        let head = &mut heads[0];
        head.at = last;
        head.steps = head.steps.saturating_add(1);
        head.reads_again |= again;
        (head.steps >= STEPS_MIN).then(|| head.due(len))
    }

    /// Notes that a directory is listed whose files have the chunks in these slots of a layer, and whether the first of them has
    /// not been loaded yet. Returns whether they are to be prepared: directories that are listed are read, and nobody comes along
    /// to this one anyway.
    pub(super) fn list(&self, layer: &[ChunkId], slots: &RangeInclusive<u32>, is_new: bool) -> bool {
        let layer = layer.as_ptr().addr();
        let (first, unprepared) = (*slots.start(), slots.end().saturating_add(1));
        let mut state = lock(&self.state);
        if state.listed.take().is_some() {
            state.trust = state.trust.saturating_sub(1);
        }
        // What was loaded before may be read without a request.
        state.listed = is_new.then_some((layer, first));
        let is_ahead = |head: &Head| head.layer == layer && (head.at..=head.unprepared).contains(&first);
        let is_due = state.trust >= TRUST_MIN && !state.heads.iter().any(is_ahead);
        if is_due {
            state.heads.rotate_right(1);
            state.heads[0] = Head {
                layer,
                at: first,
                start: first,
                unprepared,
                steps: STEPS_MIN,
                reads_again: false,
                is_listed: true,
            };
        }
        is_due
    }
}

impl Head {
    /// The last chunk that the next read may begin in.
    fn reach(&self) -> u32 {
        let next = self.at.saturating_add(1);
        if self.is_listed { next.max(self.unprepared.saturating_sub(1)) } else { next }
    }

    fn due(&mut self, len: u32) -> Due {
        let next = self.unprepared.max(self.at.saturating_add(1));
        let ahead = self.at.saturating_sub(self.start).saturating_mul(2).clamp(1, AHEAD_MAX);
        // More are asked for when a third has been read.
        if next - self.at <= ahead * 2 / 3 + 1 {
            self.unprepared = self.at.saturating_add(ahead + 1).min(len).max(next);
        }
        Due { slots: next..self.unprepared.max(next), again: self.reads_again }
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
                let due = streams.touch(&layer, slot, slot, false).map(|due| due.slots);
                assert_eq!(due.is_none(), slot == 0 && again < STEPS_MIN);
                prepared.extend(due.into_iter().flatten());
            }
            assert!(slot == 0 || prepared.contains(&slot), "{slot} was prepared before it came");
        }
        assert_eq!(prepared, (1..50).collect::<Vec<_>>());
    }

    #[test]
    fn a_read_across_chunks_is_one_step_and_reading_ahead_begins_behind_it() {
        let (streams, layer) = (Streams::default(), layer(1000));
        let touch = |first, last| streams.touch(&layer, first, last, false).map(|due| due.slots);
        assert_eq!(touch(10, 12), None);
        assert_eq!(touch(12, 14), None);
        assert_eq!(touch(15, 17), Some(18..18 + 14), "twice as far as it has come");
        assert_eq!(touch(18, 22), Some(32..22 + AHEAD_MAX + 1));
        assert_eq!(touch(22, 30), Some(47..30 + AHEAD_MAX + 1));
    }

    #[test]
    fn who_reads_what_was_read_before_is_prepared_for_all_the_same() {
        let (streams, layer) = (Streams::default(), layer(1000));
        let again = |slot, again| streams.touch(&layer, slot, slot, again).map(|due| due.again);
        assert_eq!([again(5, false), again(6, false), again(7, false)], [None, None, Some(false)]);
        assert_eq!([again(8, true), again(9, false)], [Some(true), Some(true)], "it goes on like that");
    }

    #[test]
    fn who_reads_what_he_lists_has_it_prepared_and_who_only_lists_has_not() {
        let (streams, layer) = (Streams::default(), layer(10_000));
        let list = |first: u32| streams.list(&layer, &(first..=first + 9), true);
        let touch = |slot| streams.touch(&layer, slot, slot, false).map(|due| due.slots);
        for directory in 0..10 {
            assert!(!list(directory * 100), "nobody reads");
        }
        for directory in [50, 40] {
            assert!(!list(directory * 100));
            assert_eq!(touch(directory * 100), None);
        }
        assert!(list(3000));
        assert_eq!(touch(3004), Some(3010..3013), "it comes anywhere in what is prepared");
        assert!(!list(2000), "nobody came to the first of 3000");
        for directory in 60..70 {
            list(directory * 100);
            touch(directory * 100);
        }
        assert!(streams.list(&layer, &(9990..=u32::MAX), true));
        assert!(touch(9990).is_some_and(|slots| slots.is_empty()), "there are no more");
        let prepared = (0..10).filter(|directory| list(directory * 100)).count();
        assert_eq!(prepared, (TRUST_MAX - TRUST_MIN + 1) as usize, "who lists only is found out");
    }

    #[test]
    fn a_listing_of_what_was_loaded_before_says_nothing_about_its_reader() {
        let (streams, layer) = (Streams::default(), layer(1000));
        for slot in [100, 200] {
            streams.list(&layer, &(slot..=slot), true);
            streams.touch(&layer, slot, slot, false);
        }
        for first in (300..900).step_by(20) {
            assert!(streams.list(&layer, &(first..=first + 10), false));
            assert!(
                !streams.list(&layer, &(first + 11..=first + 15), false),
                "it is next for whoever comes to {first}"
            );
        }
    }

    #[test]
    fn readers_here_and_there_do_not_disturb_a_stream_and_are_none() {
        let (streams, layer) = (Streams::default(), layer(1000));
        let touch = |slot| streams.touch(&layer, slot, slot, false).map(|due| due.slots);
        assert_eq!(touch(499), None);
        assert_eq!(touch(500), None, "near by chance");
        for at in 0..7 {
            assert_eq!(touch(at * 37), None);
        }
        assert_eq!(touch(501), Some(502..506));
        assert_eq!(touch(999), None, "far away");
        assert_eq!(touch(999), None, "near by chance");
        assert_eq!(touch(999), Some(1000..1000), "the last one has none after it");
    }
}
