//! Manifests and nested indexes: what they refer to.
//!
//! Media types lie, so a manifest and an index are read by one reader that follows whatever lists it finds.

use serde::Deserialize;

use super::{DescriptorDigest, FormatError, chunk_run::ChunkRun, index::RawDescriptor};
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
        match ChunkRun::find(bytes).and_then(|run| Self::parse_around(bytes, run)) {
            Some(document) => Ok(document),
            None => Self::parse_all(bytes),
        }
    }

    /// Parses the text without all but the first descriptor of the run, and puts the others behind that one. `None` where the
    /// run does not stand in `layers`, or the text is not right: an error must name the place in the whole text.
    fn parse_around(bytes: &[u8], run: ChunkRun) -> Option<Self> {
        let closed = |end: usize| Self::parse_all(&[&bytes[..end], b"]}"].concat()).ok();
        // Both texts are whole, so what stands between their ends is an element of a list of the manifest's; only `layers` may
        // have grown by it.
        let (without, with) = (closed(run.first.start)?.layers.len(), closed(run.first.end)?.layers.len());
        let mut document = Self::parse_all(&[&bytes[..run.first.end], &bytes[run.end..]].concat()).ok()?;
        if with != without + 1 || document.layers.len() < with {
            return None;
        }
        let link = |(digest, size)| Link { kind: MediaKind::Chunk, digest: DescriptorDigest::Sha256(digest), size };
        document.layers.splice(with..with, run.others.into_iter().map(link));
        Some(document)
    }

    fn parse_all(bytes: &[u8]) -> Result<Self, FormatError> {
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
    use crate::name::{CHUNK, CHUNK_ZSTD};

    fn chunk(nth: u8, kind: &str) -> String {
        format!(r#"{{"digest":"{}","mediaType":"{kind}","size":{nth}}}"#, Digest::of(&[nth]).to_oci())
    }

    fn chunks(count: u8, kind: &str) -> String {
        (0..count).map(|nth| chunk(nth, kind)).collect::<Vec<_>>().join(",")
    }

    fn assert_same_as_json(text: &[u8]) {
        let (parsed, whole) = (ManifestDocument::parse(text), ManifestDocument::parse_all(text));
        let text = String::from_utf8_lossy(text);
        match (parsed, whole) {
            (Ok(parsed), Ok(whole)) => assert_eq!(parsed, whole, "{text}"),
            (parsed, whole) => {
                assert_eq!(parsed.unwrap_err().to_string(), whole.unwrap_err().to_string(), "{text}")
            }
        }
    }

    /// Manifests with runs of descriptors in one place or another.
    fn manifests() -> Vec<String> {
        let (plain, zstd) = (chunks(4, CHUNK), chunks(3, CHUNK_ZSTD));
        let (rootfs, twice) = (chunk(9, "application/vnd.puzzlefs.image.rootfs.v1"), chunk(0, CHUNK));
        vec![
            format!(r#"{{"config":{rootfs},"layers":[{rootfs},{plain}],"schemaVersion":2}}"#),
            format!(r#"{{"layers":[{plain}, {rootfs},{zstd},{plain}],"blobs":[{zstd}],"subject":{rootfs}}}"#),
            format!(r#"{{"layers":[{twice}],"blobs":[{plain}]}}"#),
            format!(r#"{{"layers":[{rootfs},{twice}],"other":[{rootfs},{plain}]}}"#),
            format!(r#"{{"layers":[{rootfs},{twice}],"other":[[{plain}]]}}"#),
            format!(r#"{{"other":{{"layers":[{plain}]}},"layers":[{plain}]}}"#),
            format!(r#"{{"layers":[{rootfs},{plain}],"layers":[]}}"#),
            format!(r#"{{"layers":[{rootfs}],"text":"[{{",{plain}]}}"#),
            format!(r#"{{"layers":[{rootfs},{plain},],"config":{rootfs}}}"#),
            format!(r#"{{"layers":[{rootfs},{plain}]}} {{"#),
            format!(r#"{{"layers":[{rootfs},{plain}],"text":"ü"}}"#),
            format!(r#"[{plain}]"#),
        ]
    }

    #[test]
    fn a_run_of_chunks_is_read_as_json_is() {
        manifests().iter().for_each(|text| assert_same_as_json(text.as_bytes()));
        let first = ManifestDocument::parse(manifests()[0].as_bytes()).unwrap();
        assert_eq!(first.layers.iter().map(|layer| layer.size).collect::<Vec<_>>(), [9, 0, 1, 2, 3]);
    }

    #[test]
    fn a_run_that_is_cut_or_changed_anywhere_is_read_as_json_is() {
        for text in &manifests()[..5] {
            for at in 0..text.len() {
                assert_same_as_json(&text.as_bytes()[..at]);
                for byte in *b"0a\"\\,]}[{\xff" {
                    let mut changed = text.clone().into_bytes();
                    changed[at] = byte;
                    assert_same_as_json(&changed);
                }
            }
        }
    }

    #[test]
    fn sizes_that_json_does_not_allow_are_no_sizes() {
        for size in
            ["", "00", "01", "1.0", "1e3", "-1", "18446744073709551615", "18446744073709551616", "999999999999999999"]
        {
            let wrong = chunk(0, CHUNK).replace(r#""size":0"#, &format!(r#""size":{size}"#));
            let text = format!(r#"{{"layers":[{},{},{wrong}]}}"#, chunks(3, CHUNK), chunks(3, CHUNK));
            assert_same_as_json(text.as_bytes());
        }
    }

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
