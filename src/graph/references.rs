//! What one document refers to, and the form in which that is remembered.

use crate::{
    format::{DescriptorDigest, Link, ManifestDocument, MentionScanner, digests_at_words},
    name::{Digest, MediaKind},
    store::Remembered,
};

/// How a document is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// JSON: a manifest or an index.
    Document,
    /// A Cap'n Proto message, with its metadata blobs where it has some.
    Rootfs,
}

/// What a document is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// An index of manifests.
    Index,
    /// A manifest.
    Manifest,
    /// A rootfs.
    Rootfs,
}

/// Everything that a document refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct References {
    /// What it is.
    pub shape: Shape,
    /// What must be looked into.
    pub links: Vec<Reference>,
    /// What is needed as it is.
    pub blobs: Blobs,
}

/// Something that must be looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reference {
    /// In which list it stands.
    pub role: Role,
    /// What it is said to be.
    pub kind: MediaKind,
    /// Its name.
    pub digest: Digest,
}

/// In which list of a document a reference stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `manifests`: it may be missing, and the document does not need its blob.
    Child,
    /// `layers`.
    Layer,
    /// `config`, or the `blobs` of an artifact.
    Leaf,
    /// `subject`: what the document is about. It may be missing, and the document does not need its blob.
    Subject,
}

/// Blobs that are needed as they are, in no order; one may stand here several times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Blobs {
    /// By name.
    Named(Vec<Digest>),
    /// By a number that the source knows the name of.
    Numbered(Vec<u32>),
}

/// A document of another algorithm than sha-256, in a place where it would have to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OtherAlgorithm(pub(super) String);

const ROLES: [Role; 4] = [Role::Child, Role::Layer, Role::Leaf, Role::Subject];
const KINDS: [MediaKind; 7] = [
    MediaKind::Index,
    MediaKind::Manifest,
    MediaKind::Rootfs,
    MediaKind::Inodes,
    MediaKind::Chunk,
    MediaKind::Leaf,
    MediaKind::Unknown,
];
const SHAPES: [Shape; 3] = [Shape::Index, Shape::Manifest, Shape::Rootfs];

impl References {
    /// What a manifest or an index refers to. Of layers and configs, other algorithms name files that are never collected.
    pub(super) fn of_document(document: &ManifestDocument) -> Result<Self, OtherAlgorithm> {
        let shape = if document.is_index() { Shape::Index } else { Shape::Manifest };
        let mut references = Self { shape, links: Vec::new(), blobs: Blobs::Named(Vec::new()) };
        let children = document.manifests.iter().map(|link| (Role::Child, link));
        for (role, link) in children.chain(document.subject.iter().map(|link| (Role::Subject, link))) {
            references.add_embedded(link)?;
            match &link.digest {
                DescriptorDigest::Sha256(digest) => references.add_link(role, link.kind, *digest),
                DescriptorDigest::Other(text) => return Err(OtherAlgorithm(text.clone())),
            }
        }
        let leaf = |link| (Role::Leaf, link);
        let leaves = document.config.iter().map(leaf).chain(document.layers.iter().map(|link| (Role::Layer, link)));
        for (role, link) in leaves.chain(document.blobs.iter().map(leaf)) {
            references.add_embedded(link)?;
            references.add_leaf(role, link)?;
        }
        Ok(references)
    }

    fn add_leaf(&mut self, role: Role, link: &Link) -> Result<(), OtherAlgorithm> {
        let is_leaf = matches!(link.kind, MediaKind::Chunk | MediaKind::Leaf | MediaKind::Inodes);
        match (&link.digest, &mut self.blobs) {
            (DescriptorDigest::Other(_), _) if is_leaf => {}
            // What it names would have to be known.
            (DescriptorDigest::Other(text), _) => return Err(OtherAlgorithm(text.clone())),
            (DescriptorDigest::Sha256(digest), _) if link.is_elsewhere => {
                self.add_link(Role::Child, link.kind, *digest);
            }
            (DescriptorDigest::Sha256(digest), Blobs::Named(blobs)) if is_leaf => blobs.push(*digest),
            (DescriptorDigest::Sha256(digest), _) => self.add_link(role, link.kind, *digest),
        }
        Ok(())
    }

    fn add_link(&mut self, role: Role, kind: MediaKind, digest: Digest) {
        self.links.push(Reference { role, kind, digest });
    }

    /// What a document refers to that stands in a descriptor as `data`. The blob may be nowhere else, and what it refers to
    /// may be missing; what is here is kept.
    fn add_embedded(&mut self, link: &Link) -> Result<(), OtherAlgorithm> {
        let Some(data) = &link.data else { return Ok(()) };
        match ManifestDocument::parse(data) {
            Ok(document) => {
                let embedded = Self::of_document(&document)?;
                self.links.extend(embedded.links.into_iter().map(|link| Reference { role: Role::Child, ..link }));
            }
            // A rootfs, perhaps: its digests are words of the message.
            Err(_) => digests_at_words(data).for_each(|digest| self.add_link(Role::Child, MediaKind::Unknown, digest)),
        }
        let mut scanner = MentionScanner::default();
        scanner.feed(data);
        for digest in scanner.finish() {
            self.add_link(Role::Child, MediaKind::Unknown, digest);
        }
        Ok(())
    }

    /// The rootfs of a puzzlefs image: the first layer that is one.
    pub fn rootfs(&self) -> Option<Digest> {
        let is_rootfs = |link: &&Reference| link.role == Role::Layer && link.kind == MediaKind::Rootfs;
        self.links.iter().find(is_rootfs).map(|link| link.digest)
    }

    /// What was read earlier, in the form that is asked for now; `None` if it was read in another.
    pub(super) fn of_remembered(remembered: Remembered, form: Form) -> Option<Self> {
        let shape = *SHAPES.get(usize::from(remembered.shape))?;
        let links = remembered.links.into_iter().map(|(code, digest)| Reference::of_code(code, digest));
        let known = Self { shape, links: links.collect::<Option<_>>()?, blobs: Blobs::Numbered(remembered.blobs) };
        ((shape == Shape::Rootfs) == (form == Form::Rootfs)).then_some(known)
    }

    /// Shape and links in the form in which they are remembered.
    pub(super) fn codes(&self) -> (u8, Vec<(u8, Digest)>) {
        (place(&SHAPES, &self.shape), self.links.iter().map(|link| (link.code(), link.digest)).collect())
    }
}

impl Reference {
    fn code(&self) -> u8 {
        place(&ROLES, &self.role) << 4 | place(&KINDS, &self.kind)
    }

    pub(super) fn of_code(code: u8, digest: Digest) -> Option<Self> {
        let (role, kind) = (*ROLES.get(usize::from(code >> 4))?, *KINDS.get(usize::from(code & 15))?);
        Some(Self { role, kind, digest })
    }
}

/// The places are on disk: the lists may grow at the end, with a new version of the file.
fn place<T: PartialEq>(list: &[T], value: &T) -> u8 {
    let at = list.iter().position(|other| other == value).expect("the list has every value");
    u8::try_from(at).expect("the list is short")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_is_remembered_as_it_was() {
        for role in ROLES {
            for kind in KINDS {
                let link = Reference { role, kind, digest: Digest::of(b"x") };
                assert_eq!(Reference::of_code(link.code(), link.digest), Some(link));
            }
        }
        assert_eq!(Reference::of_code(0x4f, Digest::of(b"x")), None);
    }
}
