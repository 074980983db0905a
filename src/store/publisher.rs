//! One publisher of the index at a time.
//!
//! Publishers take `.pfs/publish.lock` before they read the index, and keep it until their edit is published, so that each
//! edit starts from the index that the one before has left. Only publishers wait for it: it may be held while the disk
//! writes, which the store lock may not. Order: publish lock first, store lock second.

use std::{
    fs::File,
    thread,
    time::{Duration, Instant},
};

use super::{Store, StoreError, index::INDEX, lock::Held};

/// This process is the one publisher of this layout's index.
#[derive(Debug)]
pub(super) struct PublisherGuard<'s> {
    _held: Held<'s>,
}

/// How long a publisher waits while the index does not change. While it changes the queue moves, and nobody gives up.
const PATIENCE: Duration = Duration::from_secs(30);
const ONE_LOOK: Duration = Duration::from_millis(500);

impl Store {
    /// Becomes the publisher, waiting in turn. Fails with [`StoreError::Locked`] if the index has not changed for 30 s.
    /// Must not be called with the store lock held.
    pub(super) fn lock_publisher(&self) -> Result<PublisherGuard<'_>, StoreError> {
        let name = self.own_name("publish.lock");
        let (mut seen, mut since) = (self.index_stamp()?, Instant::now());
        loop {
            match self.lock(&name, ONE_LOOK, File::try_lock) {
                Ok(_held) => return Ok(PublisherGuard { _held }),
                Err(error @ StoreError::Locked { .. }) => {
                    let now = self.index_stamp()?;
                    if now != seen {
                        (seen, since) = (now, Instant::now());
                    } else if since.elapsed() > PATIENCE {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
            thread::yield_now();
        }
    }

    /// What changes whenever somebody writes the index: inode number and modification time.
    fn index_stamp(&self) -> Result<Option<(u64, i64, u32)>, StoreError> {
        Ok(self.root.stat(INDEX)?.map(|stat| (stat.stx_ino, stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec)))
    }
}
