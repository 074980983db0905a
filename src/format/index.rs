//! `index.json`, read strictly and edited without loss.
//!
//! Other tools write fields, entries, an order and a white space of their own, and all of that survives an edit byte
//! for byte: an edit cuts out or puts in the text of whole entries and leaves the rest of the text as it is.

use std::{collections::BTreeMap, fmt, ops::Range};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{FormatError, descriptor::RawDescriptor, keys::each_key};
use crate::name::{Digest, MediaKind, Tag};

/// The annotation that holds the tag of an index entry: OCI image specification 1.1, "Pre-Defined Annotation Keys".
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Where containerd keeps the full name of an image that it exports.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// What an index or manifest says of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// The media type as it stands there, empty if there is none.
    pub media_type: String,
    /// The digest.
    pub digest: DescriptorDigest,
    /// The size in bytes as it stands there. puzzlefs 0.2.0 writes the decoded size for compressed chunks.
    pub size: u64,
}

/// A digest of a descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DescriptorDigest {
    /// Of the algorithm that stores are made of.
    Sha256(Digest),
    /// Well-formed, of another algorithm.
    Other(String),
}

/// What an image in a multi-platform index is for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Platform {
    /// `amd64`, `arm64`, or `unknown` for attestations.
    #[serde(default)]
    pub architecture: String,
    /// `linux`, or `unknown` for attestations.
    #[serde(default)]
    pub os: String,
    /// `v7` of an `arm`, where that is told.
    #[serde(default)]
    pub variant: Option<String>,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

/// One entry of an index.
#[derive(Debug, Clone)]
pub struct IndexEntry {
    /// What it points at.
    pub descriptor: Descriptor,
    /// Its name; `None` for an entry without one, which is a root all the same.
    pub tag: Option<Tag>,
    /// Whether somebody has given it a name: a tag, one that is no tag of ours, or one of containerd's.
    pub named: bool,
    /// What it is for, where it says so.
    pub platform: Option<Platform>,
    span: Range<usize>,
}

/// An `index.json` as it was read.
#[derive(Debug, Clone)]
pub struct IndexDocument {
    text: String,
    list: Range<usize>,
    entries: Vec<IndexEntry>,
}

struct RawIndex<'a> {
    manifests: &'a RawValue,
}

impl<'de> Deserialize<'de> for RawIndex<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(IndexVisitor)
    }
}

struct IndexVisitor;

impl<'de> Visitor<'de> for IndexVisitor {
    type Value = RawIndex<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an index")
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Self::Value, A::Error> {
        let mut manifests = None;
        each_key(fields, &["manifests"], |_, fields| {
            manifests = Some(fields.next_value()?);
            Ok(())
        })?;
        let manifests = manifests.ok_or_else(|| A::Error::missing_field("manifests"))?;
        Ok(RawIndex { manifests })
    }
}

#[derive(Deserialize)]
struct RawNames {
    #[serde(default)]
    annotations: Option<BTreeMap<String, serde_json::Value>>,
    #[serde(default)]
    platform: Option<Platform>,
}

impl Descriptor {
    /// What its media type says.
    pub fn kind(&self) -> MediaKind {
        MediaKind::of(&self.media_type)
    }
}

const WHAT: &str = "index.json";

impl IndexDocument {
    /// The index of a layout without images.
    pub fn empty() -> Self {
        Self::parse(br#"{"manifests":[],"schemaVersion":2}"#).expect("the constant is an index")
    }

    /// Reads an index. `"manifests": null`, which `umoci rm` leaves behind, is an index without entries; anything torn,
    /// or without the list, or with an entry that is not a descriptor, is an error.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let document = |problem: String| FormatError::Document { what: WHAT, problem };
        let json = |source| FormatError::Json { what: WHAT, source };
        let text = std::str::from_utf8(bytes).map_err(|cause| document(format!("it is not UTF-8: {cause}")))?;
        let raw: RawIndex<'_> = serde_json::from_str(text).map_err(json)?;
        let list = span_in(text, raw.manifests.get());
        let raws: Option<Vec<&RawValue>> = serde_json::from_str(raw.manifests.get()).map_err(json)?;
        let entries = raws.unwrap_or_default().into_iter().enumerate();
        let entries = entries.map(|(at, raw)| entry(at, span_in(text, raw.get()), raw)).collect::<Result<_, _>>()?;
        Ok(Self { text: text.into(), list, entries })
    }

    /// The entries in order.
    pub fn entries(&self) -> &[IndexEntry] {
        &self.entries
    }

    /// The JSON text of the entry at a place, as it stands there.
    pub fn entry_text(&self, place: usize) -> &str {
        &self.text[self.entries[place].span.clone()]
    }

    /// The text, as it was read or edited.
    pub fn bytes(&self) -> &[u8] {
        self.text.as_bytes()
    }

    /// This index without the entries at these places. All other bytes stay as they are.
    pub fn without(&self, places: &[usize]) -> Self {
        self.rebuilt(&self.all_but(places), None)
    }

    /// This index without the entries at `replaced`, and with `entry`, the JSON text of a descriptor, as the last one.
    pub fn with(&self, entry: &str, replaced: &[usize]) -> Self {
        self.rebuilt(&self.all_but(replaced), Some(entry))
    }

    fn all_but(&self, places: &[usize]) -> Vec<usize> {
        let mut stays = vec![true; self.entries.len()];
        places.iter().for_each(|place| stays[*place] = false);
        (0..self.entries.len()).filter(|at| stays[*at]).collect()
    }

    fn rebuilt(&self, kept: &[usize], added: Option<&str>) -> Self {
        let text = &self.text;
        let mut list = String::new();
        for (nth, &at) in kept.iter().enumerate() {
            if nth > 0 {
                list += &text[self.entries[at - 1].span.end..self.entries[at].span.start];
            }
            list += &text[self.entries[at].span.clone()];
        }
        if let Some(added) = added {
            if !kept.is_empty() {
                list += self.separator();
            }
            list += added;
        }
        let (open, close) = match (self.entries.first(), self.entries.last()) {
            (Some(first), Some(last)) if !list.is_empty() => {
                (&text[self.list.start..first.span.start], &text[last.span.end..self.list.end])
            }
            _ => ("[", "]"),
        };
        let edited = [&text[..self.list.start], open, &list, close, &text[self.list.end..]].concat();
        Self::parse(edited.as_bytes()).expect("an index with whole entries put in or cut out is an index")
    }

    fn separator(&self) -> &str {
        match &self.entries[..] {
            [first, second, ..] => &self.text[first.span.end..second.span.start],
            _ => ",",
        }
    }
}

fn span_in(text: &str, part: &str) -> Range<usize> {
    let start = part.as_ptr().addr() - text.as_ptr().addr();
    start..start + part.len()
}

fn entry(at: usize, span: Range<usize>, raw: &RawValue) -> Result<IndexEntry, FormatError> {
    let json =
        |source: serde_json::Error| FormatError::Document { what: WHAT, problem: format!("entry {at}: {source}") };
    let bad_digest = |source| FormatError::Digest { place: format!("entry {at} of index.json"), source };
    let descriptor: RawDescriptor<'_> = serde_json::from_str(raw.get()).map_err(json)?;
    let names: RawNames = serde_json::from_str(raw.get()).map_err(json)?;
    let annotations = names.annotations.unwrap_or_default();
    let name = annotations.get(REF_NAME).and_then(serde_json::Value::as_str);
    Ok(IndexEntry {
        descriptor: Descriptor {
            digest: descriptor.digest().map_err(bad_digest)?,
            size: descriptor.size(),
            media_type: descriptor.into_media_type(),
        },
        tag: name.and_then(|name| name.parse().ok()),
        named: [REF_NAME, CONTAINERD_NAME].iter().any(|key| annotations.contains_key(*key)),
        platform: names.platform,
        span,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn entry_text(tag: &str) -> String {
        format!(r#"{{ "digest":"sha256:{HEX}", "x-unknown": [1, 2], "size":3,"annotations":{{"{REF_NAME}":"{tag}"}}}}"#)
    }

    fn index(tags: &[&str]) -> String {
        let entries: Vec<_> = tags.iter().map(|tag| entry_text(tag)).collect();
        format!(
            "{{\"schemaVersion\":2,\n \"mine\": {{}},\"manifests\": [\n  {}\n ]  , \"z\":0}}\n",
            entries.join(",\n  ")
        )
    }

    fn tags(index: &IndexDocument) -> Vec<&str> {
        index.entries().iter().map(|entry| entry.tag.as_ref().unwrap().as_str()).collect()
    }

    #[test]
    fn an_edit_changes_nothing_but_the_entry() {
        let all = index(&["a", "b", "c"]);
        let document = IndexDocument::parse(all.as_bytes()).unwrap();
        for (place, left) in [["b", "c"], ["a", "c"], ["a", "b"]].iter().enumerate() {
            assert_eq!(document.without(&[place]).bytes(), index(left).as_bytes(), "without {place}");
        }
        let two = IndexDocument::parse(index(&["a", "b"]).as_bytes()).unwrap();
        assert_eq!(two.with(&entry_text("c"), &[]).bytes(), all.as_bytes());
    }

    #[test]
    fn the_last_entry_can_go_and_come_back() {
        let document = IndexDocument::parse(index(&["a"]).as_bytes()).unwrap();
        let none = document.without(&[0]);
        assert!(none.entries().is_empty());
        assert_eq!(tags(&none.with(&entry_text("b"), &[])), ["b"]);
    }

    #[test]
    fn null_is_an_index_without_entries() {
        let document = IndexDocument::parse(br#"{"schemaVersion":2,"manifests":null}"#).unwrap();
        assert!(document.entries().is_empty());
        assert_eq!(tags(&document.with(&entry_text("a"), &[])), ["a"]);
    }

    #[test]
    fn every_prefix_of_an_index_is_refused() {
        let all = index(&["a", "b"]);
        let json = all.trim_end();
        for end in 0..json.len() {
            assert!(IndexDocument::parse(&json.as_bytes()[..end]).is_err(), "{end} bytes");
        }
    }

    #[test]
    fn indexes_without_a_sound_list_are_refused() {
        let path = r#"{"manifests":[{"digest":"sha256:../../etc/passwd"}]}"#;
        let twice = r#"{"manifests":[],"manifests":[]}"#;
        for bad in ["", "{}", "[]", "null", r#"{"manifests":{}}"#, r#"{"manifests":[3]}"#, path, twice] {
            assert!(IndexDocument::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
