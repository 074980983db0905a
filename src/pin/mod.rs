//! Pins: declaring an image a root, whatever becomes of its tags, and taking that back.
//!
//! The race: a pin of an image that a collector frees just now would keep nothing. So the image is picked and pinned
//! under the shared lock, under which no blob leaves, and only if everything that it needs is still known.

use crate::{
    format::IndexDocument,
    graph::{ImageError, Root, WalkError, pick, walk},
    name::Selector,
    store::{Pin, Store, StoreError},
};

/// Why an image could not be pinned or unpinned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PinError {
    /// There is no such image, or the name stands for several.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// What it needs is not fully known: such a pin would keep the collector from working, and might keep nothing.
    #[error("cannot be pinned, because it cannot be read: {0}")]
    Unreadable(#[source] WalkError),
    /// It is not pinned.
    #[error("{0} is not pinned")]
    NotPinned(Selector),
    /// The store could not be read or changed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How long to pin, and why.
#[derive(Debug, Clone, Default)]
pub struct PinTerms {
    /// When the pin ends by itself.
    pub until: Option<jiff::Timestamp>,
    /// Why, in a person's words.
    pub reason: Option<String>,
}

/// Pins an image. A second pin of the same image takes the place of the first.
pub fn pin(store: &Store, selector: &Selector, terms: PinTerms, now: jiff::Timestamp) -> Result<Pin, PinError> {
    let held = store.lock_shared()?;
    let index = store.index()?;
    let picked = pick(index.document(), selector)?;
    let entry = &index.document().entries()[picked.places[0]];
    let root = Root::of_index(index.document()).swap_remove(picked.places[0]);
    walk(store, vec![root]).map_err(PinError::Unreadable)?;
    let pin = Pin {
        digest: picked.digest,
        media_type: entry.descriptor.media_type.clone(),
        tag: entry.tag.as_ref().map(ToString::to_string),
        since: now,
        until: terms.until,
        reason: terms.reason,
    };
    store.pin(&held, &pin)?;
    Ok(pin)
}

/// Takes a pin back, and gives it. What only it kept falls to the next collection. A pin that cannot be read is named by the
/// digest that it is of; only that much of it is known.
pub fn unpin(store: &Store, selector: &Selector) -> Result<Pin, PinError> {
    let (mut pins, unreadable) = store.readable_pins()?;
    pins.extend(unreadable.into_iter().map(|digest| Pin {
        digest,
        media_type: String::new(),
        tag: None,
        since: jiff::Timestamp::UNIX_EPOCH,
        until: None,
        reason: None,
    }));
    let pin = pinned_as(store.index()?.document(), pins, selector)?;
    store.unpin(&pin.digest)?;
    Ok(pin)
}

/// The pin that a selector means. A tag means the image that it stands for now, if that is pinned, else the one that it
/// stood for when it was pinned: its entry may be gone.
fn pinned_as(index: &IndexDocument, pins: Vec<Pin>, selector: &Selector) -> Result<Pin, PinError> {
    let now = pick(index, selector).ok().map(|picked| picked.digest);
    if let Some(pin) = pins.iter().find(|pin| Some(pin.digest) == now) {
        return Ok(pin.clone());
    }
    let mut meant: Vec<Pin> = pins.into_iter().filter(|pin| is_meant(pin, selector)).collect();
    match (meant.pop(), meant.is_empty()) {
        (Some(pin), true) => Ok(pin),
        (None, _) => Err(PinError::NotPinned(selector.clone())),
        (Some(pin), false) => {
            let found = meant.iter().chain([&pin]).map(|pin| pin.digest).collect();
            Err(ImageError::Ambiguous { selector: selector.clone(), found }.into())
        }
    }
}

fn is_meant(pin: &Pin, selector: &Selector) -> bool {
    match selector {
        Selector::Tag(tag) => pin.tag.as_deref() == Some(tag.as_str()),
        Selector::Digest(prefix) => pin.digest.to_string().starts_with(prefix),
    }
}
