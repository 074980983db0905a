//! Manifests and nested indexes: what they refer to.
//!
//! Media types lie, so a manifest and an index are read by one reader that follows whatever lists it finds.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{SeqAccess, Visitor},
};

use super::{DescriptorDigest, FormatError, index::RawDescriptor};
use crate::name::{Digest, DigestError, MediaKind};

/// What a manifest or a nested index refers to. Lists that a document does not have are empty.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ManifestDocument {
    /// Of an index: its manifests.
    pub manifests: Vec<Link>,
    /// Of a manifest.
    pub config: Option<Link>,
    /// Of a manifest. The same digest may stand here several times.
    pub layers: Vec<Link>,
    /// Of an artifact manifest.
    pub blobs: Vec<Link>,
    /// The manifest that this one is about.
    pub subject: Option<Link>,
}

/// A reference to a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// What the media type says.
    pub kind: MediaKind,
    /// The digest.
    pub digest: DescriptorDigest,
    /// The size in bytes, as written there; not to be believed.
    pub size: u64,
}

/// What a mount wants to know of a manifest.
#[derive(Debug, PartialEq, Eq)]
pub struct RootfsOfManifest {
    /// The rootfs, if this is a puzzlefs image: the first layer that is one.
    pub rootfs: Option<DescriptorDigest>,
    /// Whether it is an index rather than a manifest.
    pub is_index: bool,
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "K: Keep, 'de: 'a"))]
struct RawManifest<'a, K> {
    #[serde(default)]
    manifests: Option<Links<K>>,
    #[serde(borrow, default)]
    config: Option<RawDescriptor<'a>>,
    #[serde(default)]
    layers: Option<Links<K>>,
    #[serde(default)]
    blobs: Option<Links<K>>,
    #[serde(borrow, default)]
    subject: Option<RawDescriptor<'a>>,
}

/// What is kept of a list of links, of which a manifest may have a hundred thousand.
trait Keep: Default {
    fn keep(&mut self, link: Link);
}

impl Keep for Vec<Link> {
    fn keep(&mut self, link: Link) {
        self.push(link);
    }
}

/// The first rootfs, and whether there is anything at all.
#[derive(Default)]
struct FirstRootfs {
    rootfs: Option<DescriptorDigest>,
    has_links: bool,
}

impl Keep for FirstRootfs {
    fn keep(&mut self, link: Link) {
        self.has_links = true;
        if self.rootfs.is_none() && link.kind == MediaKind::Rootfs {
            self.rootfs = Some(link.digest);
        }
    }
}

/// A list of descriptors, each examined as it comes.
struct Links<K> {
    kept: K,
    /// The first that has no digest, and its place in the list: to be told when all of the text is known to be JSON.
    problem: Option<(usize, DigestError)>,
}

impl<'de, K: Keep> Deserialize<'de> for Links<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(LinksVisitor(PhantomData))
    }
}

struct LinksVisitor<K>(PhantomData<K>);

impl<'de, K: Keep> Visitor<'de> for LinksVisitor<K> {
    type Value = Links<K>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of descriptors")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Links<K>, A::Error> {
        let (mut links, mut at) = (Links { kept: K::default(), problem: None }, 0);
        while let Some(raw) = list.next_element::<RawDescriptor<'de>>()? {
            match raw.digest() {
                Ok(digest) => links.kept.keep(Link { kind: raw.kind(), digest, size: raw.size() }),
                Err(source) => links.problem = links.problem.or(Some((at, source))),
            }
            at += 1;
        }
        Ok(links)
    }
}

const WHAT: &str = "the manifest";

impl<'a, K: Keep> RawManifest<'a, K> {
    fn parse(bytes: &'a [u8]) -> Result<Self, FormatError> {
        // A text that is known to be UTF-8 as a whole is not examined again for each string. What is not may still be JSON as
        // far as it is looked at.
        let parsed = std::str::from_utf8(bytes).map_or_else(|_| serde_json::from_slice(bytes), serde_json::from_str);
        let raw: Self = parsed.map_err(|source| FormatError::Json { what: WHAT, source })?;
        if raw.manifests.is_none() && raw.layers.is_none() && raw.blobs.is_none() && raw.config.is_none() {
            let problem = "it has neither manifests nor config, layers or blobs".into();
            return Err(FormatError::Document { what: WHAT, problem });
        }
        Ok(raw)
    }
}

impl ManifestDocument {
    /// Reads a manifest or an index. A JSON object that has none of the lists of either is an error: it would look like an
    /// image that needs nothing.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let raw = RawManifest::<Vec<Link>>::parse(bytes)?;
        Ok(Self {
            manifests: links("manifests", raw.manifests)?,
            config: link("config", raw.config)?,
            layers: links("layers", raw.layers)?,
            blobs: links("blobs", raw.blobs)?,
            subject: link("subject", raw.subject)?,
        })
    }

    /// The same, where nothing but the rootfs is of interest: it refuses what [`Self::parse`] refuses, and keeps no list.
    pub fn parse_for_rootfs(bytes: &[u8]) -> Result<RootfsOfManifest, FormatError> {
        let raw = RawManifest::<FirstRootfs>::parse(bytes)?;
        links("manifests", raw.manifests)?;
        let config = link("config", raw.config)?;
        let layers = links("layers", raw.layers)?;
        let blobs = links("blobs", raw.blobs)?;
        link("subject", raw.subject)?;
        let is_index = config.is_none() && !layers.has_links && !blobs.has_links;
        Ok(RootfsOfManifest { rootfs: layers.rootfs, is_index })
    }

    /// Whether it is an index rather than a manifest.
    pub fn is_index(&self) -> bool {
        self.config.is_none() && self.layers.is_empty() && self.blobs.is_empty()
    }

    /// The rootfs, if this is a puzzlefs image: the first layer that is one.
    pub fn rootfs(&self) -> Option<&Link> {
        self.layers.iter().find(|layer| layer.kind == MediaKind::Rootfs)
    }
}

fn link(name: &str, raw: Option<RawDescriptor<'_>>) -> Result<Option<Link>, FormatError> {
    let Some(raw) = raw else { return Ok(None) };
    let digest = raw.digest().map_err(|source| bad_digest(name, 0, source))?;
    Ok(Some(Link { kind: raw.kind(), digest, size: raw.size() }))
}

fn links<K: Keep>(name: &str, list: Option<Links<K>>) -> Result<K, FormatError> {
    match list {
        Some(Links { problem: Some((at, source)), .. }) => Err(bad_digest(name, at, source)),
        Some(Links { kept, .. }) => Ok(kept),
        None => Ok(K::default()),
    }
}

fn bad_digest(name: &str, at: usize, source: DigestError) -> FormatError {
    FormatError::Digest { place: format!("{name}[{at}] of the manifest"), source }
}

/// Every sha-256 digest in OCI form that stands anywhere in a text of unknown meaning, sorted, once each.
pub fn references_in_text(bytes: &[u8]) -> Vec<Digest> {
    const MARK: &[u8] = b"sha256:";
    let mut found: Vec<Digest> = bytes
        .windows(MARK.len() + 64)
        .filter(|window| window.starts_with(MARK))
        .filter_map(|window| std::str::from_utf8(&window[MARK.len()..]).ok()?.parse().ok())
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_that_would_need_nothing_are_refused() {
        for bad in ["{}", "[]", r#"{"schemaVersion":2}"#, r#"{"layers":null}"#, "e30=", ""] {
            assert!(ManifestDocument::parse(bad.as_bytes()).is_err(), "{bad}");
            assert!(ManifestDocument::parse_for_rootfs(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn whoever_wants_the_rootfs_alone_is_told_the_same() {
        let digest = Digest::of(b"x").to_oci();
        let one = |media: &str, digest: &str| format!(r#"{{"mediaType":"{media}","digest":"{digest}"}}"#);
        let (rootfs, chunk) = (one(crate::name::ROOTFS, &digest), one(crate::name::CHUNK, &digest));
        let (wrong, other) = (one("", "sha256:12"), one(crate::name::ROOTFS, "sha512:ab"));
        let lists = [&rootfs, &chunk, &wrong, &other].map(|one| format!("[{chunk},{one}]"));
        let texts = lists.iter().flat_map(|list| {
            let fields = ["manifests", "layers", "blobs", "unknown"];
            fields.map(|field| format!(r#"{{"{field}":{list},"config":{chunk}}}"#)).into_iter().chain([
                format!(r#"{{"manifests":{list}}}"#),
                format!(r#"{{"layers":{list},"subject":{wrong}}}"#),
                format!(r#"{{"layers":{list}, torn"#),
            ])
        });
        for text in texts {
            let all = ManifestDocument::parse(text.as_bytes());
            let alone = ManifestDocument::parse_for_rootfs(text.as_bytes());
            let expected = all.map(|document| RootfsOfManifest {
                rootfs: document.rootfs().map(|link| link.digest.clone()),
                is_index: document.is_index(),
            });
            assert_eq!(alone.map_err(|error| error.to_string()), expected.map_err(|error| error.to_string()), "{text}");
        }
    }

    #[test]
    fn references_are_found_wherever_they_stand() {
        let digest = Digest::of(b"x");
        let text = format!(r#"{{"deep":[{{"k":"v sha256:{digest}, sha256:12"}}],"again":"sha256:{digest}"}}"#);
        assert_eq!(references_in_text(text.as_bytes()), [digest]);
    }
}
