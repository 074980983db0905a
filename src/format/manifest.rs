//! Manifests and nested indexes: what they refer to.
//!
//! Media types lie, so a manifest and an index are read by one reader that follows whatever lists it finds.

use serde::Deserialize;

use super::{DescriptorDigest, FormatError, index::RawDescriptor};
use crate::name::{Digest, MediaKind};

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

#[derive(Deserialize)]
struct RawManifest<'a> {
    #[serde(borrow, default)]
    manifests: Option<Vec<RawDescriptor<'a>>>,
    #[serde(borrow, default)]
    config: Option<RawDescriptor<'a>>,
    #[serde(borrow, default)]
    layers: Option<Vec<RawDescriptor<'a>>>,
    #[serde(borrow, default)]
    blobs: Option<Vec<RawDescriptor<'a>>>,
    #[serde(borrow, default)]
    subject: Option<RawDescriptor<'a>>,
}

impl ManifestDocument {
    /// Reads a manifest or an index. A JSON object that has none of the lists of either is an error: it would look like an
    /// image that needs nothing.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        const WHAT: &str = "the manifest";
        // A text that is known to be UTF-8 as a whole is not examined again for each string. What is not may still be JSON as
        // far as it is looked at.
        let parsed = std::str::from_utf8(bytes).map_or_else(|_| serde_json::from_slice(bytes), serde_json::from_str);
        let raw: RawManifest<'_> = parsed.map_err(|source| FormatError::Json { what: WHAT, source })?;
        if raw.manifests.is_none() && raw.layers.is_none() && raw.blobs.is_none() && raw.config.is_none() {
            let problem = "it has neither manifests nor config, layers or blobs".into();
            return Err(FormatError::Document { what: WHAT, problem });
        }
        Ok(Self {
            manifests: links("manifests", raw.manifests)?,
            config: link("config", raw.config)?,
            layers: links("layers", raw.layers)?,
            blobs: links("blobs", raw.blobs)?,
            subject: link("subject", raw.subject)?,
        })
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

fn link(list: &str, raw: Option<RawDescriptor<'_>>) -> Result<Option<Link>, FormatError> {
    Ok(links(list, raw.map(|raw| vec![raw]))?.pop())
}

fn links(list: &str, raws: Option<Vec<RawDescriptor<'_>>>) -> Result<Vec<Link>, FormatError> {
    let raws = raws.unwrap_or_default().into_iter().enumerate();
    raws.map(|(at, raw)| {
        let digest = raw.digest(|| format!("{list}[{at}] of the manifest"))?;
        Ok(Link { kind: raw.kind(), digest, size: raw.size() })
    })
    .collect()
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
        }
    }

    #[test]
    fn references_are_found_wherever_they_stand() {
        let digest = Digest::of(b"x");
        let text = format!(r#"{{"deep":[{{"k":"v sha256:{digest}, sha256:12"}}],"again":"sha256:{digest}"}}"#);
        assert_eq!(references_in_text(text.as_bytes()), [digest]);
    }
}
