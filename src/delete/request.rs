//! What is asked to be deleted, and why it cannot be.

use super::Conflict;
use crate::{
    format::IndexDocument,
    gc::GcError,
    graph::{ImageError, pick},
    name::{Digest, Selector, Tag},
};

/// How a deletion is meant.
#[derive(Debug, Clone, Copy, Default)]
pub struct DeleteOptions {
    /// Override soft conflicts.
    pub force: bool,
    /// A tag that stands on several manifests goes from all of them.
    pub all: bool,
    /// Untag only; a later collection frees.
    pub keep_blobs: bool,
    /// Base images without a name that only a deleted one was built on stay.
    pub no_prune: bool,
}

/// Why nothing, or not all, was deleted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeleteError {
    /// There is no such image, or the name stands for several.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Something speaks against it.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// What is needed is not known, or the store cannot be changed. Nothing has been done.
    #[error(transparent)]
    Gc(#[from] GcError),
    /// The names are gone, but nothing could be freed.
    #[error("the tag is gone, but its content is still there: {0}")]
    UntaggedOnly(#[source] GcError),
    /// Somebody changed what the names stand for while they were being deleted.
    #[error("another program changed these tags just now; nothing was deleted")]
    Changed,
}

/// One manifest that loses names.
#[derive(Debug, Clone)]
pub struct Target {
    /// As it was asked for.
    pub selector: Selector,
    /// What it stands for.
    pub digest: Digest,
    /// The places in the index of the entries that go.
    pub places: Vec<usize>,
    /// The tags that go.
    pub tags: Vec<Tag>,
}

/// Finds what the selectors pick. A tag on several manifests is a target for each of them, if `all` allows it. Of a digest
/// and one of its tags, the digest is the target, since it stands for all the tags.
pub(super) fn resolve(
    index: &IndexDocument,
    selectors: &[Selector],
    options: &DeleteOptions,
) -> Result<Vec<Target>, DeleteError> {
    let mut targets: Vec<Target> = Vec::new();
    for selector in selectors {
        for target in targets_of(index, selector, options)? {
            if !targets.iter().any(|known| covers(known, &target)) {
                targets.retain(|known| !covers(&target, known));
                targets.push(target);
            }
        }
    }
    Ok(targets)
}

fn covers(one: &Target, other: &Target) -> bool {
    other.places.iter().all(|place| one.places.contains(place))
}

fn targets_of(index: &IndexDocument, selector: &Selector, options: &DeleteOptions) -> Result<Vec<Target>, DeleteError> {
    match pick(index, selector) {
        Ok(picked) => Ok(vec![target(index, selector, picked.digest, |place| picked.places.contains(&place))]),
        Err(ImageError::Ambiguous { found, .. }) if options.all && matches!(selector, Selector::Tag(_)) => {
            let one = |digest: Digest| {
                let tag = Selector::Digest(digest.to_string());
                let own: Vec<usize> = pick(index, &tag).map(|picked| picked.places).unwrap_or_default();
                let named = |place: &usize| matches!((&index.entries()[*place].tag, selector), (Some(tag), Selector::Tag(wanted)) if tag == wanted);
                let places: Vec<usize> = own.into_iter().filter(named).collect();
                target(index, selector, digest, |place| places.contains(&place))
            };
            Ok(found.into_iter().map(one).collect())
        }
        Err(error) => Err(error.into()),
    }
}

fn target(index: &IndexDocument, selector: &Selector, digest: Digest, goes: impl Fn(usize) -> bool) -> Target {
    let places: Vec<usize> = (0..index.entries().len()).filter(|place| goes(*place)).collect();
    let tags = places.iter().filter_map(|place| index.entries()[*place].tag.clone()).collect();
    Target { selector: selector.clone(), digest, places, tags }
}
