//! Threads that get chunks ready before they are wanted: each is a file of its own, and the kernel cannot know which is
//! next.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, OnceLock, PoisonError},
    thread::{self, JoinHandle},
};

use super::{
    chunks::lock,
    loader::{Loader, StoredChunk},
};

/// The threads, which start when there is something to load. They end with it.
pub(super) struct Ahead {
    shared: Arc<Shared>,
    loader: Arc<Loader>,
    threads: OnceLock<Vec<JoinHandle<()>>>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
}

#[derive(Default)]
struct Queue {
    chunks: VecDeque<StoredChunk>,
    ended: bool,
}

/// While some wait for the disk, the others decode.
const THREADS: usize = 6;
/// What is over this was asked for so long ago that it came to pass, or never will.
const QUEUE_MAX: usize = 48;

impl Ahead {
    pub(super) fn new(loader: Arc<Loader>) -> Self {
        Self { shared: Arc::default(), loader, threads: OnceLock::new() }
    }

    /// A thread that cannot be had is one that loads nothing.
    fn start(&self) -> Vec<JoinHandle<()>> {
        let start = |_| {
            let (shared, loader) = (self.shared.clone(), self.loader.clone());
            thread::Builder::new().name("pfs-ahead".into()).spawn(move || shared.work(&loader)).ok()
        };
        (0..THREADS).filter_map(start).collect()
    }

    /// Has these chunks loaded, in this order, sooner or later or never.
    pub(super) fn load(&self, chunks: impl Iterator<Item = StoredChunk>) {
        self.threads.get_or_init(|| self.start());
        let mut queue = lock(&self.shared.queue);
        queue.chunks.extend(chunks);
        let surplus = queue.chunks.len().saturating_sub(QUEUE_MAX);
        queue.chunks.drain(..surplus);
        drop(queue);
        self.shared.filled.notify_all();
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        lock(&self.shared.queue).ended = true;
        self.shared.filled.notify_all();
        for thread in self.threads.take().into_iter().flatten() {
            // One that panicked has said so on standard error already.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn work(&self, loader: &Loader) {
        while let Some(chunk) = self.next() {
            loader.prepare(chunk);
        }
    }

    /// `None` at the end.
    fn next(&self) -> Option<StoredChunk> {
        let mut queue = lock(&self.queue);
        loop {
            if queue.ended {
                return None;
            }
            if let Some(chunk) = queue.chunks.pop_front() {
                return Some(chunk);
            }
            queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
