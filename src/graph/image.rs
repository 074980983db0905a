//! Finding one image: from what a person writes to a decoded rootfs.

use super::{
    BlobSource,
    source::{RootfsProblem, read_rootfs_into},
};
use crate::{
    format::{DescriptorDigest, FormatError, IndexDocument, IndexEntry, ManifestDocument, Rootfs},
    name::{Digest, ManifestId, MediaKind, RootfsId, Selector},
    store::StoreError,
};

/// Why an image could not be found or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// No entry has that tag or digest. `near` are the tags that look most like it.
    #[error("there is no {selector} in this store")]
    NotFound {
        /// What was asked for.
        selector: Selector,
        /// Tags that are spelled alike, the nearest first.
        near: Vec<String>,
    },
    /// Several manifests fit.
    #[error("{selector} stands for {} different manifests: {}", found.len(), list(found))]
    Ambiguous {
        /// What was asked for.
        selector: Selector,
        /// The manifests.
        found: Vec<Digest>,
    },
    /// It is an image, but not one of puzzlefs, or an index of several.
    #[error("{digest} is {what}, not a puzzlefs image")]
    NotPuzzlefs {
        /// The manifest.
        digest: Digest,
        /// What it is.
        what: &'static str,
    },
    /// An index has no image for the platform.
    #[error("{index} has no image for {wanted}; it has {}", if found.is_empty() { "none".into() } else { found.join(", ") })]
    NoPlatform {
        /// The index.
        index: Digest,
        /// The platform that was asked for, or that this machine is.
        wanted: String,
        /// The platforms of its images.
        found: Vec<String>,
    },
    /// A digest of another algorithm than sha-256.
    #[error("{0} is not a sha256 digest")]
    Algorithm(String),
    /// The manifest cannot be understood.
    #[error("manifest {digest}: {source}")]
    Manifest {
        /// The manifest.
        digest: Digest,
        /// What is wrong with it.
        source: FormatError,
    },
    /// The rootfs cannot be understood.
    #[error("rootfs {digest}: {source}")]
    Rootfs {
        /// The rootfs blob.
        digest: Digest,
        /// What is wrong with it.
        source: FormatError,
    },
    /// A blob cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn list(digests: &[Digest]) -> String {
    digests.iter().map(Digest::to_oci).collect::<Vec<_>>().join(", ")
}

/// An image, decoded; or what was made of its rootfs.
#[derive(Debug)]
pub struct LoadedImage<T = Rootfs> {
    /// Its manifest; the rootfs again, where it has none.
    pub manifest: ManifestId,
    /// Its rootfs blob.
    pub rootfs_id: RootfsId,
    /// Its metadata.
    pub rootfs: T,
    /// The size of the rootfs blob in bytes.
    pub rootfs_bytes: u64,
}

const DOCUMENT_BYTES_MAX: u64 = 256 << 20;
const NEAR_MAX: usize = 3;

/// What a selector picks in an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picked {
    /// The one manifest, index or rootfs that it stands for.
    pub digest: Digest,
    /// What that is said to be.
    pub kind: MediaKind,
    /// The places of the entries: all with that tag, or all with that digest. At least one.
    pub places: Vec<usize>,
}

/// Finds the one thing that a selector stands for, or says why there is none.
pub fn pick(index: &IndexDocument, selector: &Selector) -> Result<Picked, ImageError> {
    let entries = index.entries().iter().enumerate();
    let picked: Vec<_> = entries.filter(|(_, entry)| matches_selector(entry, selector)).collect();
    let mut digests = Vec::new();
    for (_, entry) in &picked {
        match &entry.descriptor.digest {
            DescriptorDigest::Sha256(digest) => digests.push(*digest),
            DescriptorDigest::Other(text) => return Err(ImageError::Algorithm(text.clone())),
        }
    }
    digests.sort_unstable();
    digests.dedup();
    match digests[..] {
        [] => Err(ImageError::NotFound { selector: selector.clone(), near: near(index, selector) }),
        [digest] => Ok(Picked {
            digest,
            kind: picked[0].1.descriptor.kind(),
            places: picked.into_iter().map(|(place, _)| place).collect(),
        }),
        _ => Err(ImageError::Ambiguous { selector: selector.clone(), found: digests }),
    }
}

fn matches_selector(entry: &IndexEntry, selector: &Selector) -> bool {
    match (selector, &entry.descriptor.digest) {
        (Selector::Tag(tag), _) => entry.tag.as_ref() == Some(tag),
        (Selector::Digest(prefix), DescriptorDigest::Sha256(digest)) => digest.to_string().starts_with(prefix),
        (Selector::Digest(_), DescriptorDigest::Other(_)) => false,
    }
}

/// The tags most like the one asked for, by Jaro-Winkler similarity.
fn near(index: &IndexDocument, selector: &Selector) -> Vec<String> {
    let Selector::Tag(wanted) = selector else { return Vec::new() };
    let tags = index.entries().iter().filter_map(|entry| entry.tag.as_ref());
    let mut scored: Vec<_> =
        tags.map(|tag| (strsim::jaro_winkler(wanted.as_str(), tag.as_str()), tag.to_string())).collect();
    scored.retain(|(score, _)| *score > 0.6);
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    scored.dedup_by(|a, b| a.1 == b.1);
    scored.into_iter().take(NEAR_MAX).map(|(_, tag)| tag).collect()
}

/// Reads and decodes an image, given the digest and kind of its index entry.
pub fn load_image<S: BlobSource + ?Sized>(
    source: &S,
    digest: &Digest,
    kind: MediaKind,
) -> Result<LoadedImage, ImageError> {
    load_image_into(source, digest, kind, |rootfs| rootfs)
}

/// The same, for `make` to make something of the rootfs. Where a digest turns out to be wrong, that is thrown away.
pub fn load_image_into<S: BlobSource + ?Sized, T>(
    source: &S,
    digest: &Digest,
    kind: MediaKind,
    make: impl FnOnce(Rootfs) -> T,
) -> Result<LoadedImage<T>, ImageError> {
    if kind == MediaKind::Rootfs {
        return load_rootfs(source, ManifestId(*digest), digest, make);
    }
    let mut make = Some(make);
    let mut load = |id: &Digest| {
        let make = make.take().expect("an image is loaded once");
        load_rootfs(source, ManifestId(*digest), id, make)
    };
    // Manifests begin with the rootfs. It is loaded while the rest, a row for each chunk, is hashed.
    let loaded =
        source.read_start_into(digest, DOCUMENT_BYTES_MAX, |start| match ManifestDocument::first_rootfs(start) {
            Some(DescriptorDigest::Sha256(rootfs)) => Some(load(&rootfs)),
            _ => None,
        })?;
    match loaded {
        Some(loaded) => loaded,
        None => source.read_into(digest, DOCUMENT_BYTES_MAX, |bytes| load(&rootfs_of_manifest(digest, bytes)?))?,
    }
}

fn load_rootfs<S: BlobSource + ?Sized, T>(
    source: &S,
    manifest: ManifestId,
    id: &Digest,
    make: impl FnOnce(Rootfs) -> T,
) -> Result<LoadedImage<T>, ImageError> {
    let (rootfs, rootfs_bytes) = read_rootfs_into(source, id, make).map_err(|problem| match problem {
        RootfsProblem::Store(error) => ImageError::Store(error),
        RootfsProblem::Format(source) => ImageError::Rootfs { digest: *id, source },
    })?;
    Ok(LoadedImage { manifest, rootfs_id: RootfsId(*id), rootfs, rootfs_bytes })
}

fn rootfs_of_manifest(digest: &Digest, bytes: &[u8]) -> Result<Digest, ImageError> {
    let not = |what| ImageError::NotPuzzlefs { digest: *digest, what };
    match ManifestDocument::first_rootfs(bytes) {
        Some(DescriptorDigest::Sha256(rootfs)) => Ok(rootfs),
        Some(DescriptorDigest::Other(text)) => Err(ImageError::Algorithm(text)),
        None => match ManifestDocument::parse(bytes) {
            Ok(document) if document.is_index() => Err(not("an index of several images")),
            Ok(_) => Err(not("an image of another kind")),
            Err(source) => Err(ImageError::Manifest { digest: *digest, source }),
        },
    }
}
