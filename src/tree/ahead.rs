//! Threads that get chunks ready before they are wanted: each is a file of its own, and the kernel cannot know which is
//! next.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use super::{
    chunks::lock,
    loader::{Loader, StoredChunk},
};

/// The threads. They end with it.
pub(super) struct Ahead {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
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
    /// Starts the threads.
    pub(super) fn start(loader: Arc<Loader>) -> io::Result<Self> {
        let mut ahead = Self { shared: Arc::default(), threads: Vec::new() };
        for _ in 0..THREADS {
            let (shared, loader) = (ahead.shared.clone(), loader.clone());
            let work = move || shared.work(&loader);
            ahead.threads.push(thread::Builder::new().name("pfs-ahead".into()).spawn(work)?);
        }
        Ok(ahead)
    }

    /// Has these chunks loaded, in this order, sooner or later or never.
    pub(super) fn load(&self, chunks: impl Iterator<Item = StoredChunk>) {
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
        for thread in self.threads.drain(..) {
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
