//! `.pfs/keep/`: roots that a person has declared. One file each, named after what it keeps.

use serde::{Deserialize, Serialize};

use super::{SharedGuard, Store, StoreError, disk::Dir, error::At};
use crate::name::Digest;

/// A declared root: kept whatever happens to its tags, until it is unpinned or its time is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// What is kept: a manifest, an index, or a rootfs of manifest version 2.
    pub digest: Digest,
    /// Its media type, as its index entry had it.
    pub media_type: String,
    /// The tag that was named when it was pinned.
    pub tag: Option<String>,
    /// When the pin was made.
    pub since: jiff::Timestamp,
    /// When the pin ends by itself.
    pub until: Option<jiff::Timestamp>,
    /// Why, in a person's words.
    pub reason: Option<String>,
}

const KEEP: &str = "keep";

impl Store {
    /// Declares a root. A second pin of the same digest takes the place of the first.
    pub fn pin(&self, _held: &SharedGuard<'_>, pin: &Pin) -> Result<(), StoreError> {
        let keep = self.state()?.make_sub(KEEP)?;
        let json = serde_json::to_vec_pretty(pin).expect("a pin has only texts and times");
        keep.write_durably(&self.temp()?, &pin.digest.to_string(), &json)
    }

    /// Takes a declaration back. `false` if there was none.
    pub fn unpin(&self, digest: &Digest) -> Result<bool, StoreError> {
        let Some(keep) = self.existing_state_sub(KEEP)? else { return Ok(false) };
        let name = digest.to_string();
        match keep.unlink(&name) {
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(false),
            removed => removed.at("remove", keep.join(&name)).map(|()| true),
        }
    }

    /// All pins, those whose time is over too. One that cannot be read is an error: what it keeps is unknown.
    pub fn pins(&self) -> Result<Vec<Pin>, StoreError> {
        let Some(keep) = self.existing_state_sub(KEEP)? else { return Ok(Vec::new()) };
        let names = keep.names()?.into_iter().filter_map(|name| String::from_utf8(name).ok());
        names.filter(|name| name.parse::<Digest>().is_ok()).map(|name| read_pin(&keep, &name)).collect()
    }
}

impl Store {
    /// The pins that can be read, and what the others are named after.
    pub fn readable_pins(&self) -> Result<(Vec<Pin>, Vec<Digest>), StoreError> {
        let Some(keep) = self.existing_state_sub(KEEP)? else { return Ok((Vec::new(), Vec::new())) };
        let (mut pins, mut unreadable) = (Vec::new(), Vec::new());
        for name in keep.names()?.into_iter().filter_map(|name| String::from_utf8(name).ok()) {
            let Ok(digest) = name.parse() else { continue };
            match read_pin(&keep, &name) {
                Ok(pin) => pins.push(pin),
                Err(_) => unreadable.push(digest),
            }
        }
        Ok((pins, unreadable))
    }
}

fn read_pin(keep: &Dir, name: &str) -> Result<Pin, StoreError> {
    let problem = |problem: String| StoreError::Pin { path: keep.join(name), problem };
    let pin: Pin = serde_json::from_slice(&keep.read_small(name)?).map_err(|cause| problem(cause.to_string()))?;
    match pin.digest.to_string() == name {
        true => Ok(pin),
        false => Err(problem(format!("it names {}", pin.digest))),
    }
}

impl Pin {
    /// Whether its time is over.
    pub fn is_over(&self, now_seconds: i64) -> bool {
        self.until.is_some_and(|until| until.as_second() <= now_seconds)
    }
}
