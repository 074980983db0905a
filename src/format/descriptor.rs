//! A descriptor as it stands in a manifest or an index: OCI image specification 1.1, "Content Descriptors".

use std::{borrow::Cow, fmt};

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, Visitor},
};

use super::{index::DescriptorDigest, keys::each_key};
use crate::name::{Digest, DigestError, MediaKind};

/// What is read of a descriptor.
pub(super) struct RawDescriptor<'a> {
    media_type: Cow<'a, str>,
    digest: Cow<'a, str>,
    size: u64,
    has_urls: bool,
    data: Option<Vec<u8>>,
}

/// `media_type` is what puzzlefs 0.1 wrote.
const KEYS: [&str; 8] = ["mediaType", "media_type", "digest", "size", "urls", "data", "annotations", "platform"];

impl RawDescriptor<'_> {
    pub(super) fn kind(&self) -> MediaKind {
        MediaKind::of(&self.media_type)
    }

    pub(super) fn into_media_type(self) -> String {
        self.media_type.into_owned()
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Whether the blob may be missing: it can be had elsewhere, or its bytes stand in the descriptor.
    pub(super) fn is_elsewhere(&self) -> bool {
        self.data.is_some() || self.has_urls
    }

    /// The bytes of the blob, where they stand in the descriptor. What is no base64 is given as it stands there.
    pub(super) fn take_data(&mut self) -> Option<Vec<u8>> {
        self.data.take()
    }

    pub(super) fn digest(&self) -> Result<DescriptorDigest, DigestError> {
        match Digest::from_oci(&self.digest) {
            Ok(digest) => Ok(DescriptorDigest::Sha256(digest)),
            Err(DigestError::OtherAlgorithm(text)) => Ok(DescriptorDigest::Other(text)),
            Err(source) => Err(source),
        }
    }
}

impl<'de> Deserialize<'de> for RawDescriptor<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(DescriptorVisitor)
    }
}

struct DescriptorVisitor;

impl<'de> Visitor<'de> for DescriptorVisitor {
    type Value = RawDescriptor<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a descriptor")
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Self::Value, A::Error> {
        let (mut media_type, mut digest, mut raw) = (None, None, None);
        let (mut size, mut urls) = (0, None);
        each_key(fields, &KEYS, |at, fields| {
            match at {
                0 | 1 if media_type.is_some() => return Err(A::Error::duplicate_field(KEYS[at])),
                0 | 1 => media_type = Some(fields.next_value::<Text<'de>>()?.0),
                2 => digest = Some(fields.next_value::<Text<'de>>()?.0),
                3 => size = fields.next_value()?,
                4 => urls = fields.next_value::<Option<Vec<IgnoredAny>>>()?,
                5 => raw = fields.next_value::<Option<Text<'de>>>()?,
                // Read by whoever wants them; here they must not stand under another spelling.
                _ => drop(fields.next_value::<IgnoredAny>()?),
            }
            Ok(())
        })?;
        Ok(RawDescriptor {
            media_type: media_type.unwrap_or_default(),
            digest: digest.ok_or_else(|| A::Error::missing_field("digest"))?,
            size,
            has_urls: urls.is_some_and(|urls| !urls.is_empty()),
            data: raw.map(|raw: Text<'de>| decoded(&raw.0)),
        })
    }
}

#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

fn decoded(text: &str) -> Vec<u8> {
    let lenient = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let compact: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    GeneralPurpose::new(&alphabet::STANDARD, lenient).decode(&compact).unwrap_or_else(|_| text.into())
}
