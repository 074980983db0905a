//! What is asked to be deleted, and why it cannot be.

use std::collections::{HashMap, HashSet};

use super::Conflict;
use crate::{
    format::{DescriptorDigest, IndexDocument},
    gc::{GcError, Hold},
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
    /// How long what falls free waits in quarantine, from where `undo` brings it back.
    pub hold: Hold,
}

/// Why nothing, or not all, was deleted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeleteError {
    /// There is no such image, or the name stands for several.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// It is an image inside an index: it goes with the index.
    #[error("{selector} is inside the index {}, and goes with it", indexes.join(", "))]
    Inside {
        /// As it was asked for.
        selector: Selector,
        /// The tags of the indexes.
        indexes: Vec<String>,
    },
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
    /// The digest as it is written, where it is of another algorithm; `digest` is then that of this text, to compare by.
    pub foreign_digest: Option<String>,
    /// The places in the index of the entries that go.
    pub places: Vec<usize>,
    /// The tags that go.
    pub tags: Vec<Tag>,
}

/// The places of an index by tag and by digest, so that finding many takes one pass.
pub(super) struct Picks<'i> {
    index: &'i IndexDocument,
    by_tag: HashMap<&'i Tag, Vec<usize>>,
    by_digest: HashMap<Digest, Vec<usize>>,
}

impl<'i> Picks<'i> {
    pub(super) fn of(index: &'i IndexDocument) -> Self {
        let mut by_tag: HashMap<&Tag, Vec<usize>> = HashMap::new();
        let mut by_digest: HashMap<Digest, Vec<usize>> = HashMap::new();
        for (place, entry) in index.entries().iter().enumerate() {
            if let Some(tag) = &entry.tag {
                by_tag.entry(tag).or_default().push(place);
            }
            if let DescriptorDigest::Sha256(digest) = &entry.descriptor.digest {
                by_digest.entry(*digest).or_default().push(place);
            }
        }
        Self { index, by_tag, by_digest }
    }

    /// Whether a selector stands for this digest and nothing else; one that is a digest stands for entries without a name.
    pub(super) fn is_only(&self, selector: &Selector, digest: &Digest) -> bool {
        let is_it = |place: &usize| self.index.entries()[*place].descriptor.digest == DescriptorDigest::Sha256(*digest);
        let places = match selector {
            Selector::Tag(tag) => self.by_tag.get(tag),
            Selector::Digest(_) => self.by_digest.get(digest),
        };
        let is_nameless = |place: &usize| !self.index.entries()[*place].named;
        let is_decided = |place: &usize| is_it(place) && (matches!(selector, Selector::Tag(_)) || is_nameless(place));
        places.is_some_and(|places| places.iter().all(is_decided))
    }

    /// What a selector picks, as [`pick`] does, without a pass over the index for the usual cases.
    fn pick(&self, selector: &Selector) -> Result<(Digest, Vec<usize>), ImageError> {
        let places = match selector {
            Selector::Tag(tag) => self.by_tag.get(tag),
            Selector::Digest(prefix) => prefix.parse().ok().and_then(|digest: Digest| self.by_digest.get(&digest)),
        };
        let digest_at = |place: usize| match self.index.entries()[place].descriptor.digest {
            DescriptorDigest::Sha256(digest) => Some(digest),
            DescriptorDigest::Other(_) => None,
        };
        if let Some(places) = places
            && let Some(digest) = digest_at(places[0])
            && places.iter().all(|place| digest_at(*place) == Some(digest))
        {
            return Ok((digest, places.clone()));
        }
        pick(self.index, selector).map(|picked| (picked.digest, picked.places))
    }
}

/// Finds what the selectors pick. A tag on several manifests is a target for each of them, if `all` allows it. Of a digest
/// and one of its tags, the digest is the target, since it stands for all the tags.
pub(super) fn resolve(
    index: &IndexDocument,
    selectors: &[Selector],
    options: &DeleteOptions,
) -> Result<Vec<Target>, DeleteError> {
    let picks = Picks::of(index);
    let mut found = Vec::new();
    for selector in selectors {
        found.extend(targets_of(&picks, selector, options)?);
    }
    // The larger ones first: what is covered by one of those before is no target of its own.
    let mut order: Vec<usize> = (0..found.len()).collect();
    order.sort_by_key(|at| std::cmp::Reverse(found[*at].places.len()));
    let (mut taken, mut stays) = (HashSet::new(), vec![false; found.len()]);
    for at in order {
        let is_new = found[at].places.iter().any(|place| !taken.contains(place));
        taken.extend(found[at].places.iter().copied());
        stays[at] = is_new;
    }
    let mut stays = stays.into_iter();
    found.retain(|_| stays.next().unwrap_or(false));
    Ok(found)
}

fn targets_of(picks: &Picks<'_>, selector: &Selector, options: &DeleteOptions) -> Result<Vec<Target>, DeleteError> {
    let index = picks.index;
    match picks.pick(selector) {
        Ok((digest, places)) => Ok(vec![target(index, selector, digest, places)]),
        Err(ImageError::Ambiguous { found, .. }) if options.all && matches!(selector, Selector::Tag(_)) => {
            let one = |digest: Digest| {
                let own = picks.by_digest.get(&digest).cloned().unwrap_or_default();
                let named = |place: &usize| matches!((&index.entries()[*place].tag, selector), (Some(tag), Selector::Tag(wanted)) if tag == wanted);
                target(index, selector, digest, own.into_iter().filter(named).collect())
            };
            Ok(found.into_iter().map(one).collect())
        }
        Err(ImageError::Algorithm(text)) if options.keep_blobs => {
            let is_it =
                |place: &usize| index.entries()[*place].descriptor.digest == DescriptorDigest::Other(text.clone());
            let places = match selector {
                Selector::Tag(tag) => picks.by_tag.get(tag).cloned().unwrap_or_default(),
                Selector::Digest(_) => Vec::new(),
            };
            let places = places.into_iter().filter(is_it).collect();
            let target = target(index, selector, Digest::of(text.as_bytes()), places);
            Ok(vec![Target { foreign_digest: Some(text), ..target }])
        }
        Err(error) => Err(error.into()),
    }
}

fn target(index: &IndexDocument, selector: &Selector, digest: Digest, places: Vec<usize>) -> Target {
    let tags = places.iter().filter_map(|place| index.entries()[*place].tag.clone()).collect();
    Target { selector: selector.clone(), digest, foreign_digest: None, places, tags }
}
