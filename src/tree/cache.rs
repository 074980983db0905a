//! What is kept of chunks for the next read: open descriptors, decoded bytes. Both are bounded, and what came or was used the
//! longest time ago goes first: what was prepared for a reader has to outlive what he has read before.

use std::{
    collections::BTreeMap,
    hash::Hash,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use hashbrown::{HashMap, HashSet};

use super::loader::StoredChunk;

/// The decoded bytes of a chunk.
pub(super) type Decoded = Arc<Vec<u8>>;

/// A map to values whose weights add up to no more than a capacity.
pub(super) struct Bounded<K, V> {
    capacity: usize,
    weight: usize,
    /// How often something came or was used.
    clock: u64,
    held: HashMap<K, Held<V>>,
    /// The keys by when they came or were used.
    order: BTreeMap<u64, K>,
}

struct Held<V> {
    value: V,
    weight: usize,
    last_use: u64,
}

impl<K: Copy + Eq + Hash, V: Clone> Bounded<K, V> {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, weight: 0, clock: 0, held: HashMap::new(), order: BTreeMap::new() }
    }

    pub(super) fn get(&mut self, key: &K) -> Option<V> {
        let held = self.held.get_mut(key)?;
        self.order.remove(&held.last_use);
        self.clock += 1;
        held.last_use = self.clock;
        self.order.insert(self.clock, *key);
        Some(held.value.clone())
    }

    /// Keeps the value, unless it alone is over the capacity or there is one already.
    pub(super) fn insert(&mut self, key: K, value: V, weight: usize) {
        if weight > self.capacity || self.held.contains_key(&key) {
            return;
        }
        while self.weight + weight > self.capacity
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.weight -= self.held.remove(&oldest).map_or(0, |held| held.weight);
        }
        self.weight += weight;
        self.clock += 1;
        self.held.insert(key, Held { value, weight, last_use: self.clock });
        self.order.insert(self.clock, key);
    }
}

/// Decoded chunks, bounded by their bytes. However many readers want a chunk that is not there, one of them loads it
/// and the others wait for it.
pub(super) struct DecodedChunks {
    state: Mutex<State>,
    landed: Condvar,
}

struct State {
    decoded: Bounded<StoredChunk, Decoded>,
    in_flight: HashSet<StoredChunk>,
}

/// The right to load a chunk. When it goes, by whatever way, the next waiting reader may try.
struct Flight<'a> {
    chunks: &'a DecodedChunks,
    chunk: StoredChunk,
}

impl DecodedChunks {
    pub(super) fn new(capacity_bytes: usize) -> Self {
        let state = State { decoded: Bounded::new(capacity_bytes), in_flight: HashSet::new() };
        Self { state: Mutex::new(state), landed: Condvar::new() }
    }

    /// The decoded bytes of a chunk, if they are there.
    pub(super) fn get(&self, chunk: &StoredChunk) -> Option<Decoded> {
        self.lock().decoded.get(chunk)
    }

    /// Whether a chunk is there or on its way.
    pub(super) fn has_or_expects(&self, chunk: &StoredChunk) -> bool {
        let state = self.lock();
        state.decoded.held.contains_key(chunk) || state.in_flight.contains(chunk)
    }

    /// The decoded bytes of a chunk, from the cache or from `load`. A failure is not remembered.
    pub(super) fn get_or_load<E>(
        &self,
        chunk: StoredChunk,
        load: impl FnOnce() -> Result<Decoded, E>,
    ) -> Result<Decoded, E> {
        let flight = match self.get_or_depart(chunk) {
            Ok(bytes) => return Ok(bytes),
            Err(flight) => flight,
        };
        let bytes = load()?;
        self.lock().decoded.insert(chunk, bytes.clone(), bytes.len());
        drop(flight);
        Ok(bytes)
    }

    fn get_or_depart(&self, chunk: StoredChunk) -> Result<Decoded, Flight<'_>> {
        let mut state = self.lock();
        loop {
            if let Some(bytes) = state.decoded.get(&chunk) {
                return Ok(bytes);
            }
            if state.in_flight.insert(chunk) {
                return Err(Flight { chunks: self, chunk });
            }
            state = self.landed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.chunks.lock().in_flight.remove(&self.chunk);
        self.chunks.landed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Barrier,
            atomic::{AtomicUsize, Ordering},
        },
        thread,
    };

    use super::*;
    use crate::name::{ChunkId, Digest};

    fn chunk(number: u8) -> StoredChunk {
        StoredChunk { chunk: ChunkId(Digest::of(&[number])), compressed: false }
    }

    #[test]
    fn the_weight_never_exceeds_the_capacity_and_what_is_used_stays() {
        let mut cache = Bounded::new(100);
        for number in 0..50 {
            cache.insert(chunk(number), number, 30);
            assert!(cache.weight <= 100);
            assert_eq!(cache.held.values().map(|held| held.weight).sum::<usize>(), cache.weight);
            assert_eq!(cache.get(&chunk(0)), Some(0), "used in every round");
        }
        cache.insert(chunk(99), 99, 101);
        assert_eq!(cache.get(&chunk(99)), None, "over the capacity on its own");
    }

    #[test]
    fn what_was_prepared_is_there_when_its_turn_comes() {
        let mut cache = Bounded::new(6);
        (0..2).for_each(|number| cache.insert(chunk(number), number, 1));
        for number in 2..50 {
            cache.insert(chunk(number), number, 1);
            assert_eq!(cache.get(&chunk(number - 2)), Some(number - 2), "prepared two steps ahead");
            assert_eq!((cache.order.len(), cache.held.len()), (cache.held.len(), cache.weight));
        }
    }

    #[test]
    fn readers_of_one_chunk_load_it_once() {
        let (cache, loads, start) = (DecodedChunks::new(1000), AtomicUsize::new(0), Barrier::new(8));
        let read = || {
            start.wait();
            cache.get_or_load(chunk(1), || -> Result<_, ()> {
                loads.fetch_add(1, Ordering::SeqCst);
                thread::yield_now();
                Ok(Arc::new(b"bytes".to_vec()))
            })
        };
        thread::scope(|scope| {
            let readers: Vec<_> = (0..8).map(|_| scope.spawn(read)).collect();
            readers.into_iter().for_each(|reader| assert_eq!(**reader.join().unwrap().unwrap(), *b"bytes"));
        });
        assert_eq!(loads.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_load_that_fails_or_panics_leaves_the_way_free() {
        let cache = DecodedChunks::new(1000);
        assert_eq!(cache.get_or_load(chunk(1), || Err("broken")), Err("broken"));
        let panicked = thread::scope(|scope| {
            scope.spawn(|| cache.get_or_load(chunk(1), || -> Result<_, ()> { panic!("a test") })).join().is_err()
        });
        assert!(panicked);
        assert_eq!(**cache.get_or_load(chunk(1), || Ok::<_, ()>(Arc::new(b"x".to_vec()))).unwrap(), *b"x");
    }
}
