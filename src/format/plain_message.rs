//! A Cap'n Proto message as its usual writers lay it out, read with no more than slices.
//!
//! It reads less than the `capnp` crate does: structs have exactly the sizes of `schema/metadata.capnp`, lists of structs are
//! that, nothing stands behind the message, and all that is looked at together has no more words than the message. Whatever is
//! otherwise is `None`, which means: ask the `capnp` crate. So what is read here, that crate reads too, and finds the same.
//!
//! Facts: the Cap'n Proto encoding specification, "Pointers", "Lists" and "Inter-Segment Pointers"; `private/layout.rs` of
//! `capnp` 0.27.

use std::cell::Cell;

use super::{message::message_length, message_writer::StructSize};

type Words<'a> = &'a [[u8; 8]];

/// The segments of a message.
pub(super) struct PlainMessage<'a> {
    segments: Vec<Words<'a>>,
    words_left: Cell<usize>,
}

/// A word of a message, which may be one past the end of its segment.
#[derive(Clone, Copy)]
pub(super) struct Word<'a> {
    segment: Words<'a>,
    at: usize,
}

/// The structs of a list, or one struct.
pub(super) struct Rows<'a> {
    words: Words<'a>,
    segment: Words<'a>,
    start: usize,
    size: StructSize,
}

/// A struct.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    fields: Words<'a>,
    segment: Words<'a>,
    start: usize,
}

const KIND: u64 = 3;
const STRUCT: u64 = 0;
const LIST: u64 = 1;
const FAR: u64 = 2;
const DOUBLE: u64 = 4;
const BYTES: u32 = 2;
const COMPOSITE: u32 = 7;

impl<'a> PlainMessage<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Option<Self> {
        if message_length(bytes)? != bytes.len() as u64 {
            return None;
        }
        let (words, _) = bytes.as_chunks::<8>();
        let half = |at: usize| bytes[at * 4..].first_chunk().map(|half| u32::from_le_bytes(*half) as usize);
        let count = half(0)? + 1;
        let mut rest = words.get(count / 2 + 1..)?;
        let words_left = Cell::new(rest.len());
        let mut segments = Vec::with_capacity(count);
        for at in 1..=count {
            let (segment, behind) = rest.split_at_checked(half(at)?)?;
            segments.push(segment);
            rest = behind;
        }
        Some(Self { segments, words_left })
    }

    /// The struct that the message is.
    pub(super) fn root(&self, size: StructSize) -> Option<Row<'a>> {
        self.struct_at(Word { segment: self.segments.first()?, at: 0 }, size)
    }

    /// The struct that a pointer leads to.
    #[inline]
    pub(super) fn struct_at(&self, pointer: Word<'a>, size: StructSize) -> Option<Row<'a>> {
        let (start, tag) = self.target(pointer)?;
        if tag & KIND != STRUCT || (tag >> 32) as u32 != size.bits() {
            return None;
        }
        Some(Row { fields: self.take(start, size.words())?, segment: start.segment, start: start.at })
    }

    /// The structs of the list that a pointer leads to.
    #[inline]
    pub(super) fn structs_at(&self, pointer: Word<'a>, size: StructSize) -> Option<Rows<'a>> {
        if pointer.value()? == 0 {
            return Some(Rows::NONE);
        }
        let (list, tag) = self.target(pointer)?;
        let upper = (tag >> 32) as u32;
        if tag & KIND != LIST || upper & 7 != COMPOSITE {
            return None;
        }
        let (tag, words) = self.take(list, (upper >> 3) as usize + 1)?.split_first()?;
        let tag = u64::from_le_bytes(*tag);
        let count = (tag as u32 >> 2) as usize;
        let is_plain = tag & KIND == STRUCT && (tag >> 32) as u32 == size.bits() && count * size.words() == words.len();
        is_plain.then_some(Rows { words, segment: list.segment, start: list.at + 1, size })
    }

    /// The bytes that a pointer leads to.
    #[inline]
    pub(super) fn bytes_at(&self, pointer: Word<'a>) -> Option<&'a [u8]> {
        if pointer.value()? == 0 {
            return Some(&[]);
        }
        let (start, tag) = self.target(pointer)?;
        let upper = (tag >> 32) as u32;
        if tag & KIND != LIST || upper & 7 != BYTES {
            return None;
        }
        let len = (upper >> 3) as usize;
        self.take(start, len.div_ceil(8))?.as_flattened().get(..len)
    }

    /// Where a pointer leads, and what is said to be there.
    #[inline]
    fn target(&self, pointer: Word<'a>) -> Option<(Word<'a>, u64)> {
        let value = pointer.value()?;
        match value & KIND {
            FAR => self.far_target(value),
            _ => Some((pointer.distant(value)?, value)),
        }
    }

    #[cold]
    fn far_target(&self, far: u64) -> Option<(Word<'a>, u64)> {
        let pad = self.landing(far)?;
        let is_double = far & DOUBLE != 0;
        self.take(pad, 1 + usize::from(is_double))?;
        let value = pad.value()?;
        match (is_double, value & KIND == FAR) {
            (false, false) => Some((pad.distant(value)?, value)),
            (true, true) if value & DOUBLE == 0 => Some((self.landing(value)?, pad.plus(1).value()?)),
            _ => None,
        }
    }

    fn landing(&self, far: u64) -> Option<Word<'a>> {
        let segment = self.segments.get((far >> 32) as usize)?;
        Some(Word { segment, at: (far as u32 >> 3) as usize })
    }

    /// Words that are looked at: there, and not more than there are in all.
    #[inline]
    fn take(&self, start: Word<'a>, words: usize) -> Option<Words<'a>> {
        self.words_left.set(self.words_left.get().checked_sub(words)?);
        start.segment.get(start.at..)?.get(..words)
    }
}

impl<'a> Word<'a> {
    #[inline]
    fn value(self) -> Option<u64> {
        self.segment.get(self.at).map(|word| u64::from_le_bytes(*word))
    }

    fn plus(self, words: usize) -> Self {
        Self { at: self.at + words, ..self }
    }

    /// Where a pointer that stands here leads.
    #[inline]
    fn distant(self, pointer: u64) -> Option<Self> {
        let distance = (pointer as u32 as i32 >> 2) as isize;
        Some(Self { at: (self.at + 1).checked_add_signed(distance)?, ..self })
    }
}

impl<'a> Rows<'a> {
    /// A list of nothing.
    pub(super) const NONE: Self =
        Self { words: &[], segment: &[], start: 0, size: StructSize { data: 1, pointers: 0 } };

    pub(super) fn len(&self) -> usize {
        self.words.len() / self.size.words()
    }

    #[inline]
    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = Row<'a>> + use<'a> {
        let (segment, start, words) = (self.segment, self.start, self.size.words());
        let rows = self.words.chunks_exact(words).enumerate();
        rows.map(move |(nth, fields)| Row { fields, segment, start: start + nth * words })
    }
}

impl<'a> Row<'a> {
    /// A word of its data.
    #[inline]
    pub(super) fn data(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.fields[at])
    }

    /// The pointer that is this word of it.
    #[inline]
    pub(super) fn pointer(&self, at: usize) -> Word<'a> {
        Word { segment: self.segment, at: self.start + at }
    }
}
