//! Putting an index back from the log where `index.json` is torn or empty, as a power cut leaves one that its writer never
//! made durable.

use std::path::PathBuf;

use super::{
    IndexNote, Store, StoreError,
    damaged::{DAMAGED, is_open_for_writing},
    error::At,
    index::INDEX,
};
use crate::name::Digest;

impl Store {
    /// Puts a text from the log in the place of an index that cannot be read and still has this digest. The unreadable text
    /// stays in `.pfs/damaged/`; its new place is returned. Fails with [`StoreError::IndexBusy`] if a process has it open
    /// for writing, or it has changed.
    pub fn restore_index(&self, note: &IndexNote, unreadable: &Digest) -> Result<PathBuf, StoreError> {
        let _publisher = self.lock_publisher()?;
        let busy = || StoreError::IndexBusy { path: self.index_path() };
        let shared = self.lock_shared()?;
        let mut text = self.begin_partial(&shared, INDEX)?;
        drop(shared);
        let stat = self.root.stat(INDEX)?.ok_or_else(busy)?;
        if is_open_for_writing(super::BlobStat::of(&stat).identity) {
            return Err(busy());
        }
        text.copy_mode(&stat)?;
        text.write(note.bytes())?;
        let damaged = self.state()?.make_sub(DAMAGED)?;
        let name = format!("{INDEX}-{}", unreadable.short());
        let held = self.lock_exclusive()?;
        if self.index_digest()? != *unreadable {
            return Err(busy());
        }
        match damaged.stat(&name)? {
            Some(_) => {}
            None => self.root.link_to(INDEX, &damaged, &name).at("set aside", self.index_path())?,
        }
        text.put(&self.root, INDEX)?;
        drop(held);
        self.root.sync()?;
        Ok(damaged.join(&name))
    }
}
