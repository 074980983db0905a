//! `.pfs/tmp/.<name>.<pid>.<number>.partial`: a file of ours that is written and has not got its place yet.
//!
//! Its owner holds its flock, so that no collector takes it for garbage, and needs no store lock while it waits for the disk.
//! The race: between the making of the file and its lock a collector would find it unlocked. So it is made under the shared
//! lock, and collectors look under the exclusive one.

use std::{
    fs::{File, TryLockError},
    io::Write,
    path::PathBuf,
};

use rustix::fs::{Gid, Mode, Statx, Uid};

use super::{SharedGuard, Store, StoreError, disk::Dir, error::At};

/// A file that is being written. Dropped before it has its place, it goes.
#[derive(Debug)]
pub(super) struct Partial {
    file: File,
    aside: Aside,
}

/// A name in the directory for partial files.
#[derive(Debug)]
pub(super) struct Aside {
    temp: Dir,
    name: String,
    /// What has the name may go: nobody but us has written it.
    is_ours: bool,
}

impl Store {
    /// Begins a file, which nobody takes for garbage as long as the value lives, also when the lock is let go.
    pub(super) fn begin_partial(&self, _held: &SharedGuard<'_>, name: &str) -> Result<Partial, StoreError> {
        self.partial_under_lock(name)
    }

    /// The same, for those who hold the store lock in whatever way.
    pub(super) fn partial_under_lock(&self, name: &str) -> Result<Partial, StoreError> {
        let temp = self.temp()?;
        let (name, file) = temp.create_partial(name)?;
        let aside = Aside { temp, name, is_ours: true };
        // Whoever looks whether the file is locked has it locked for that moment.
        file.lock().at("lock", aside.path())?;
        Ok(Partial { file, aside })
    }
}

/// Whether somebody is writing this file; not if it is none, or has gone.
pub(super) fn is_being_written(temp: &Dir, name: &str) -> Result<bool, StoreError> {
    match temp.open_file(name) {
        Ok(file) => match file.try_lock_shared() {
            Err(TryLockError::Error(source)) => Err(StoreError::Io { action: "lock", path: temp.join(name), source }),
            tried => Ok(tried.is_err()),
        },
        Err(error) if error.is_not_found() => Ok(false),
        Err(StoreError::NotAFile { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

impl Partial {
    /// Gives it the mode of another file and, where that is allowed, its owner.
    pub(super) fn copy_mode(&self, from: &Statx) -> Result<(), StoreError> {
        let mode = Mode::from_raw_mode(u32::from(from.stx_mode) & 0o777);
        rustix::fs::fchmod(&self.file, mode).at("set the mode of", self.aside.path())?;
        // Only root may give files away; for others the file is theirs already or becomes theirs, as with every tool.
        let _ = rustix::fs::fchown(&self.file, Some(Uid::from_raw(from.stx_uid)), Some(Gid::from_raw(from.stx_gid)));
        Ok(())
    }

    /// Writes all of it and makes it durable, but for the name that it will have.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.fill(bytes)?;
        self.file.sync_all().at("write", self.aside.path())
    }

    /// Writes all of it, and does not wait for the disk.
    pub(super) fn fill(&self, bytes: &[u8]) -> Result<(), StoreError> {
        (&self.file).write_all(bytes).at("write", self.aside.path())
    }

    /// Its name in the directory for partial files.
    pub(super) fn name(&self) -> &str {
        &self.aside.name
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Gives it its place, replacing what is there.
    pub(super) fn put(mut self, to: &Dir, name: &str) -> Result<(), StoreError> {
        self.aside.temp.rename_over(&self.aside.name, to, name).at("replace", to.join(name))?;
        self.aside.is_ours = false;
        Ok(())
    }

    /// Swaps it with a file, which then lies aside and stays there unless it is removed. Gives itself back where the
    /// filesystem cannot do that.
    pub(super) fn exchange(self, with: &Dir, name: &str) -> Result<Result<Aside, Self>, StoreError> {
        let Self { file, mut aside } = self;
        aside.is_ours = false;
        if aside.exchange(with, name)? {
            return Ok(Ok(aside));
        }
        aside.is_ours = true;
        Ok(Err(Self { file, aside }))
    }
}

impl Aside {
    fn path(&self) -> PathBuf {
        self.temp.join(&self.name)
    }

    /// Swaps what has this name with a file. `false` where the filesystem cannot do that.
    pub(super) fn exchange(&self, with: &Dir, name: &str) -> Result<bool, StoreError> {
        self.temp.exchange(&self.name, with, name).at("replace", with.join(name))
    }

    /// The directory and the name in it.
    pub(super) fn place(&self) -> (&Dir, &str) {
        (&self.temp, &self.name)
    }

    /// Removes what has this name.
    pub(super) fn remove(self) -> Result<(), StoreError> {
        self.temp.unlink(&self.name).at("remove", self.path())
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if self.is_ours {
            // What cannot be removed now is garbage for the next collection.
            let _ = self.temp.unlink(&self.name);
        }
    }
}
