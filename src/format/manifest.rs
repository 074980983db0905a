//! Manifests and nested indexes: what they refer to.
//!
//! Media types lie, so a manifest and an index are read by one reader that follows whatever lists it finds.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::{DescriptorDigest, FormatError, descriptor::RawDescriptor, keys::each_key};
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
    /// Whether the blob may be missing: the descriptor has `urls`, as foreign layers do, or the bytes themselves as `data`.
    pub is_elsewhere: bool,
    /// The bytes themselves, where they stand in the descriptor; their digest is not checked.
    pub data: Option<Vec<u8>>,
}

impl Link {
    fn of(mut raw: RawDescriptor<'_>) -> Result<Self, DigestError> {
        Ok(Self {
            kind: raw.kind(),
            digest: raw.digest()?,
            size: raw.size(),
            is_elsewhere: raw.is_elsewhere(),
            data: raw.take_data(),
        })
    }
}

#[derive(Default)]
struct RawManifest<'a> {
    manifests: Option<Links>,
    config: Option<RawDescriptor<'a>>,
    layers: Option<Links>,
    blobs: Option<Links>,
    subject: Option<RawDescriptor<'a>>,
}

/// The keys of [`RawManifest`].
const KEYS: [&str; 5] = ["manifests", "config", "layers", "blobs", "subject"];

impl<'de> Deserialize<'de> for RawManifest<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ManifestVisitor)
    }
}

struct ManifestVisitor;

impl<'de> Visitor<'de> for ManifestVisitor {
    type Value = RawManifest<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a manifest or an index")
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Self::Value, A::Error> {
        let mut raw = RawManifest::default();
        each_key(fields, &KEYS, |at, fields| {
            match at {
                0 => raw.manifests = fields.next_value()?,
                1 => raw.config = fields.next_value()?,
                2 => raw.layers = fields.next_value()?,
                3 => raw.blobs = fields.next_value()?,
                _ => raw.subject = fields.next_value()?,
            }
            Ok(())
        })?;
        Ok(raw)
    }
}

/// A list of descriptors, each examined as it comes.
#[derive(Default)]
struct Links {
    kept: Vec<Link>,
    /// The first that has no digest, and its place in the list: to be told when all of the text is known to be JSON.
    problem: Option<(usize, DigestError)>,
}

impl<'de> Deserialize<'de> for Links {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(LinksVisitor)
    }
}

struct LinksVisitor;

impl<'de> Visitor<'de> for LinksVisitor {
    type Value = Links;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of descriptors")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Links, A::Error> {
        let (mut links, mut at) = (Links::default(), 0);
        while let Some(raw) = list.next_element::<RawDescriptor<'de>>()? {
            match Link::of(raw) {
                Ok(link) => links.kept.push(link),
                Err(source) => links.problem = links.problem.or(Some((at, source))),
            }
            at += 1;
        }
        Ok(links)
    }
}

/// Reads a manifest as far as its first rootfs, and keeps that.
#[derive(Default)]
struct FirstRootfs(Option<DescriptorDigest>);

impl<'de> Visitor<'de> for &mut FirstRootfs {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a manifest")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        while let Some(name) = fields.next_key::<Cow<'de, str>>()? {
            match &*name {
                "layers" => fields.next_value_seed(&mut *self)?,
                _ => drop(fields.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }

    /// Ends in the middle of the list where it finds one, for which the parser then has an error.
    fn visit_seq<A: SeqAccess<'de>>(self, mut layers: A) -> Result<(), A::Error> {
        while let Some(layer) = layers.next_element::<RawDescriptor<'de>>()? {
            if layer.kind() == MediaKind::Rootfs {
                self.0 = layer.digest().ok();
                return Ok(());
            }
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for &mut FirstRootfs {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, layers: D) -> Result<(), D::Error> {
        layers.deserialize_seq(self)
    }
}

const WHAT: &str = "the manifest";

impl<'a> RawManifest<'a> {
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
        let raw = RawManifest::parse(bytes)?;
        Ok(Self {
            manifests: links("manifests", raw.manifests)?,
            config: link("config", raw.config)?,
            layers: links("layers", raw.layers)?,
            blobs: links("blobs", raw.blobs)?,
            subject: link("subject", raw.subject)?,
        })
    }

    /// The first rootfs among the layers, for who wants nothing else: what comes after it is not looked at. `None` where none
    /// is found, or the text is no manifest; [`Self::parse`] tells.
    pub fn first_rootfs(bytes: &[u8]) -> Option<DescriptorDigest> {
        let mut first = FirstRootfs::default();
        // Whether it fails is of no interest: it does when it has found one, too.
        let _ = serde_json::Deserializer::from_slice(bytes).deserialize_map(&mut first);
        first.0
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
    Link::of(raw).map(Some).map_err(|source| bad_digest(name, 0, source))
}

fn links(name: &str, list: Option<Links>) -> Result<Vec<Link>, FormatError> {
    match list {
        Some(Links { problem: Some((at, source)), .. }) => Err(bad_digest(name, at, source)),
        Some(Links { kept, .. }) => Ok(kept),
        None => Ok(Vec::new()),
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
            assert_eq!(ManifestDocument::first_rootfs(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn the_first_rootfs_is_that_of_the_whole_manifest_whatever_comes_after_it() {
        let of = |bytes: &[u8]| Digest::of(bytes).to_oci();
        let one = |media: &str, digest: &str| format!(r#"{{"mediaType":"{media}","digest":"{digest}"}}"#);
        let (rootfs, chunk) = (one(crate::name::ROOTFS, &of(b"r")), one(crate::name::CHUNK, &of(b"c")));
        let (again, other) = (one(crate::name::ROOTFS, &of(b"again")), one(crate::name::ROOTFS, "sha512:ab"));
        let lists = ["", &rootfs, &chunk, &other].map(|first| [first, &chunk, &again].map(str::to_owned));
        for list in lists.map(|list| list.into_iter().filter(|one| !one.is_empty()).collect::<Vec<_>>().join(",")) {
            for field in ["layers", "manifests", "blobs", "unknown"] {
                let text = format!(r#"{{"config":{chunk},"{field}":[{list}],"subject":{chunk}}}"#);
                let whole = ManifestDocument::parse(text.as_bytes()).unwrap();
                let expected = whole.rootfs().map(|link| link.digest.clone());
                assert_eq!(ManifestDocument::first_rootfs(text.as_bytes()), expected, "{text}");
            }
        }
        let torn = format!(r#"{{"layers":[{chunk},{rootfs},{{"medi"#);
        assert_eq!(ManifestDocument::first_rootfs(torn.as_bytes()), Some(DescriptorDigest::Sha256(Digest::of(b"r"))));
    }

    #[test]
    fn references_are_found_wherever_they_stand() {
        let digest = Digest::of(b"x");
        let text = format!(r#"{{"deep":[{{"k":"v sha256:{digest}, sha256:12"}}],"again":"sha256:{digest}"}}"#);
        assert_eq!(references_in_text(text.as_bytes()), [digest]);
    }
}
