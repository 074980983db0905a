//! From a name to the one manifest that it stands for, also where that is inside an index.

use super::{ImageError, WantedPlatform};
use crate::{
    format::{DescriptorDigest, FormatError, IndexDocument, IndexEntry},
    graph::{BlobSource, pick},
    name::{Digest, MediaKind, Selector},
};

/// The image that a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its manifest; or its rootfs, where it has no manifest.
    pub digest: Digest,
    /// What that is said to be.
    pub kind: MediaKind,
    /// The places in `index.json` of the entries that it is, or that are indexes with it inside.
    pub places: Vec<usize>,
    /// Whether it is inside an index.
    pub is_inside: bool,
}

/// Indexes inside indexes inside indexes.
const DEPTH_MAX: usize = 8;
/// As for a manifest: an index of a thousand images has less than a megabyte.
const INDEX_BYTES_MAX: u64 = 256 << 20;

/// Finds the image of a selector. Of an index, the image for the wanted platform is taken. A digest may also be that of an
/// image inside an index.
pub fn find<S: BlobSource + ?Sized>(
    source: &S,
    index: &IndexDocument,
    selector: &Selector,
    wanted: &WantedPlatform,
) -> Result<Found, ImageError> {
    let found = match (pick(index, selector), selector) {
        (Err(ImageError::NotFound { .. }), Selector::Digest(prefix)) => find_inside(source, index, selector, prefix)?,
        (picked, _) => {
            let picked = picked?;
            Found { digest: picked.digest, kind: picked.kind, places: picked.places, is_inside: false }
        }
    };
    let (digest, kind) = image_for(source, found.digest, found.kind, wanted, 0)?;
    Ok(Found { digest, kind, is_inside: found.is_inside || digest != found.digest, ..found })
}

/// Looks for an image with this digest in the indexes that entries stand for. Indexes that cannot be read are passed over.
fn find_inside<S: BlobSource + ?Sized>(
    source: &S,
    index: &IndexDocument,
    selector: &Selector,
    prefix: &str,
) -> Result<Found, ImageError> {
    let mut found: Vec<Found> = Vec::new();
    for (place, entry) in index.entries().iter().enumerate().filter(|(_, entry)| may_be_index(entry.descriptor.kind()))
    {
        let DescriptorDigest::Sha256(digest) = entry.descriptor.digest else { continue };
        let mut open = vec![(digest, 0)];
        while let Some((digest, depth)) = open.pop() {
            let Ok(Some(children)) = children(source, &digest) else { continue };
            for (child, kind) in children.entries().iter().filter_map(with_digest) {
                if child.to_string().starts_with(prefix) {
                    match found.iter_mut().find(|found| found.digest == child) {
                        Some(known) => known.places.push(place),
                        None => found.push(Found { digest: child, kind, places: vec![place], is_inside: true }),
                    }
                } else if may_be_index(kind) && depth < DEPTH_MAX {
                    open.push((child, depth + 1));
                }
            }
        }
    }
    match found.len() {
        0 => Err(ImageError::NotFound { selector: selector.clone(), near: Vec::new() }),
        1 => {
            let mut found = found.swap_remove(0);
            found.places.dedup();
            Ok(found)
        }
        _ => {
            let found = found.into_iter().map(|found| found.digest).collect();
            Err(ImageError::Ambiguous { selector: selector.clone(), found })
        }
    }
}

fn with_digest(entry: &IndexEntry) -> Option<(Digest, MediaKind)> {
    match entry.descriptor.digest {
        DescriptorDigest::Sha256(digest) => Some((digest, entry.descriptor.kind())),
        DescriptorDigest::Other(_) => None,
    }
}

fn may_be_index(kind: MediaKind) -> bool {
    matches!(kind, MediaKind::Index | MediaKind::Unknown)
}

/// The image for a platform: the document itself unless it is an index.
fn image_for<S: BlobSource + ?Sized>(
    source: &S,
    digest: Digest,
    kind: MediaKind,
    wanted: &WantedPlatform,
    depth: usize,
) -> Result<(Digest, MediaKind), ImageError> {
    if !may_be_index(kind) {
        return Ok((digest, kind));
    }
    let Some(children) = children(source, &digest)? else { return Ok((digest, kind)) };
    let (child, kind) = choose(&children, &digest, wanted)?;
    match depth < DEPTH_MAX {
        true => image_for(source, child, kind, wanted, depth + 1),
        false => Err(ImageError::NotPuzzlefs { digest, what: "an index of indexes that has no end" }),
    }
}

/// What is in an index; `None` if the document is none.
fn children<S: BlobSource + ?Sized>(source: &S, digest: &Digest) -> Result<Option<IndexDocument>, ImageError> {
    let Some(text) = source.read_json(digest, INDEX_BYTES_MAX)? else { return Ok(None) };
    match IndexDocument::parse(&text) {
        Ok(children) => Ok(Some(children)),
        // A manifest has no list of manifests.
        Err(FormatError::Json { .. }) => Ok(None),
        Err(source) => Err(ImageError::Manifest { digest: *digest, source }),
    }
}

/// The first image for the wanted platform. The only one that is no attestation will do where nobody asked for a platform
/// and it names none.
fn choose(
    children: &IndexDocument,
    index: &Digest,
    wanted: &WantedPlatform,
) -> Result<(Digest, MediaKind), ImageError> {
    let images: Vec<&IndexEntry> = children.entries().iter().filter(|entry| !is_attestation(entry)).collect();
    let fits = |entry: &&&IndexEntry| entry.platform.as_ref().is_some_and(|platform| wanted.fits(platform));
    let only = || match images[..] {
        [only] if only.platform.is_none() => Some(only),
        _ => None,
    };
    let chosen = images.iter().find(fits).copied().or_else(only);
    chosen.and_then(with_digest).ok_or_else(|| ImageError::NoPlatform {
        index: *index,
        wanted: wanted.to_string(),
        found: images
            .iter()
            .map(|entry| entry.platform.as_ref().map_or_else(|| "?".into(), ToString::to_string))
            .collect(),
    })
}

/// buildkit describes an image by a manifest of no platform beside it.
fn is_attestation(entry: &IndexEntry) -> bool {
    entry.platform.as_ref().is_some_and(|platform| platform.os == "unknown" && platform.architecture == "unknown")
}
