//! Writes a Cap'n Proto message piece by piece, without holding it in memory: a rootfs of a million inodes has over 100 MB.
//!
//! Objects lie exactly where the builder of the `capnp` crate puts them with a first segment of 1024 words and segments that
//! grow heuristically, as puzzlefs 0.2.0 uses it, because where they lie decides the digest of the blob. The message is gone
//! through twice: once to lay it out, which gives the lengths of the segments, and with them where each begins, and once to
//! write.
//!
//! Facts: the Cap'n Proto encoding specification, "Pointers", "Lists" and "Inter-Segment Pointers"; `private/arena.rs`,
//! `private/layout.rs` and `message.rs` of `capnp` 0.27.

/// Takes in a message, in pieces that come in any order.
pub trait MessageSink {
    /// Takes `bytes`, which stand at byte `at` of the message. What is never written is zero.
    fn write_at(&mut self, at: u64, bytes: &[u8]);
}

impl MessageSink for Vec<u8> {
    /// The vector has the length of the message from the start.
    fn write_at(&mut self, at: u64, bytes: &[u8]) {
        let at = at as usize;
        self[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// A word of a message.
#[derive(Clone, Copy)]
pub(super) struct Place {
    segment: u32,
    word: u32,
}

impl Place {
    /// The first word of every message: the pointer to its root.
    pub(super) const ROOT: Self = Self { segment: 0, word: 0 };

    pub(super) fn plus(self, words: usize) -> Self {
        Self { word: self.word + words as u32, ..self }
    }
}

/// The sections of a struct, in words.
#[derive(Clone, Copy)]
pub(super) struct StructSize {
    pub(super) data: u16,
    pub(super) pointers: u16,
}

impl StructSize {
    pub(super) const fn words(self) -> usize {
        self.data as usize + self.pointers as usize
    }

    pub(super) fn bits(self) -> u32 {
        u32::from(self.data) | u32::from(self.pointers) << 16
    }
}

/// An object that has its place, and the pointer that leads to it.
pub(super) struct Object {
    pub(super) place: Place,
    pub(super) pointer: u64,
}

/// A list, or a text, that no message can hold.
#[derive(Debug)]
pub(super) struct TooLong(pub(super) usize);

/// How long a list may be, in elements and in words.
const LIST_MAX: usize = (1 << 29) - 1;
const FIRST_SEGMENT_WORDS: u32 = 1024;
const SEGMENT_WORDS_MAX: u32 = (1 << 29) - 1;
const WORD_BYTES: usize = 8;
const STRUCT: u32 = 0;
const LIST: u32 = 1;
const FAR: u32 = 2;
const BYTES: u32 = 2;
const COMPOSITE: u32 = 7;

struct Segment {
    used: u32,
    capacity: u32,
}

/// The lengths of the segments of a message, in words.
pub(super) struct Layout(Vec<u32>);

impl Layout {
    /// The segment table in front of the segments.
    fn table(&self) -> Vec<u8> {
        let count = self.0.len() as u32 - 1;
        let mut table: Vec<u8> = std::iter::once(&count).chain(&self.0).flat_map(|word| word.to_le_bytes()).collect();
        table.resize(table.len().next_multiple_of(WORD_BYTES), 0);
        table
    }

    /// Where each segment begins, in bytes, and at last where the message ends.
    fn starts(&self) -> Vec<u64> {
        let first = self.table().len() as u64;
        let ends = self.0.iter().scan(first, |end, words| {
            *end += u64::from(*words) * WORD_BYTES as u64;
            Some(*end)
        });
        std::iter::once(first).chain(ends).collect()
    }

    /// The length of the message in bytes.
    pub(super) fn message_bytes(&self) -> u64 {
        self.starts().last().copied().unwrap_or_default()
    }
}

/// A message that is being laid out or written.
pub(super) struct MessageWriter<'s> {
    segments: Vec<Segment>,
    next_words: u32,
    output: Option<(Vec<u64>, &'s mut dyn MessageSink)>,
}

impl<'s> MessageWriter<'s> {
    /// Only finds out where everything will lie.
    pub(super) fn laying_out() -> Self {
        let mut writer = Self { segments: Vec::new(), next_words: FIRST_SEGMENT_WORDS, output: None };
        writer.add_segment(1);
        writer.segments[0].used = 1;
        writer
    }

    /// Writes what was laid out before.
    pub(super) fn writing(layout: &Layout, sink: &'s mut dyn MessageSink) -> Self {
        sink.write_at(0, &layout.table());
        Self { output: Some((layout.starts(), sink)), ..Self::laying_out() }
    }

    pub(super) fn layout(&self) -> Layout {
        Layout(self.segments.iter().map(|segment| segment.used).collect())
    }

    /// A struct that the pointer at `from` leads to.
    pub(super) fn add_struct(&mut self, from: Place, size: StructSize) -> Object {
        self.add(from, size.words() as u32, STRUCT, size.bits())
    }

    /// A list of structs; the place is that of the first.
    pub(super) fn add_structs(&mut self, from: Place, count: usize, size: StructSize) -> Result<Object, TooLong> {
        let words = count.checked_mul(size.words()).filter(|words| *words <= LIST_MAX).ok_or(TooLong(count))? as u32;
        let list = self.add(from, words + 1, LIST, COMPOSITE | words << 3);
        let tag = u64::from((count as u32) << 2 | STRUCT) | u64::from(size.bits()) << 32;
        self.put(list.place, &[tag]);
        Ok(Object { place: list.place.plus(1), ..list })
    }

    /// A text of bytes, written at once; gives the pointer to it.
    pub(super) fn add_bytes(&mut self, from: Place, bytes: &[u8]) -> Result<u64, TooLong> {
        let len = Some(bytes.len()).filter(|len| *len <= LIST_MAX).ok_or(TooLong(bytes.len()))?;
        let text = self.add(from, len.div_ceil(WORD_BYTES) as u32, LIST, BYTES | (len as u32) << 3);
        self.put_bytes(text.place, bytes);
        Ok(text.pointer)
    }

    /// Sets words from `at` on.
    pub(super) fn put(&mut self, at: Place, words: &[u64]) {
        const WORDS_MAX: usize = 8;
        let mut bytes = [0; WORDS_MAX * WORD_BYTES];
        for (to, word) in bytes.chunks_exact_mut(WORD_BYTES).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        self.put_bytes(at, &bytes[..words.len() * WORD_BYTES]);
    }

    fn put_bytes(&mut self, at: Place, bytes: &[u8]) {
        let Some((starts, sink)) = &mut self.output else { return };
        let start = starts[at.segment as usize] + u64::from(at.word) * WORD_BYTES as u64;
        // With the rest of the last word, so that a sink that gathers pieces sees no gap behind a text.
        let rest = bytes.len().next_multiple_of(WORD_BYTES) - bytes.len();
        for (start, bytes) in [(start, bytes), (start + bytes.len() as u64, &[0; WORD_BYTES][..rest])] {
            if !bytes.is_empty() {
                sink.write_at(start, bytes);
            }
        }
    }

    /// Finds a place for an object: in the segment of the pointer to it, else, behind a landing pad, in the first that has
    /// room for both.
    fn add(&mut self, from: Place, words: u32, kind: u32, upper: u32) -> Object {
        let pointer = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        if let Some(place) = self.take(from.segment, words) {
            let distance = place.word.wrapping_sub(from.word).wrapping_sub(1);
            return Object { place, pointer: pointer(distance << 2 | kind, upper) };
        }
        let pad = (0..).find_map(|segment| {
            if segment as usize == self.segments.len() {
                self.add_segment(words + 1);
            }
            self.take(segment, words + 1)
        });
        let pad = pad.expect("a segment that was made for an object has room for it");
        self.put(pad, &[pointer(kind, upper)]);
        Object { place: pad.plus(1), pointer: pointer(pad.word << 3 | FAR, pad.segment) }
    }

    fn take(&mut self, segment: u32, words: u32) -> Option<Place> {
        let to = &mut self.segments[segment as usize];
        let word = to.used;
        to.used = word.checked_add(words).filter(|used| *used <= to.capacity)?;
        Some(Place { segment, word })
    }

    fn add_segment(&mut self, words_min: u32) {
        let capacity = words_min.max(self.next_words);
        if capacity < SEGMENT_WORDS_MAX - self.next_words {
            self.next_words += capacity;
        } else {
            self.next_words = SEGMENT_WORDS_MAX;
        }
        self.segments.push(Segment { used: 0, capacity });
    }
}
