//! The OCI texts of an image, byte for byte as puzzlefs writes them: canonical JSON, so that equal trees have equal
//! manifests.

use std::collections::BTreeMap;

use canon_json::CanonJsonSerialize as _;
use serde::Serialize;

use super::pool::StoredChunk;
use crate::{
    format::REF_NAME,
    image::architecture,
    name::{CHUNK, CHUNK_ZSTD, Digest, OCI_MANIFEST, ROOTFS, Tag},
};

/// The config of every puzzlefs image: the empty descriptor of the OCI image specification 1.1.
pub(super) const EMPTY_CONFIG: &[u8] = b"{}";
const EMPTY_CONFIG_BASE64: &str = "e30=";
const EMPTY_CONFIG_TYPE: &str = "application/vnd.oci.empty.v1+json";
const VERITY_ROOT_HASH: &str = "io.puzzlefsoci.puzzlefs.puzzlefs_verity_root_hash";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest<'c> {
    config: Descriptor,
    layers: Layers<'c>,
    schema_version: u32,
}

/// The rootfs and the chunks. Descriptors are made when they are written: a large image has hundreds of thousands.
struct Layers<'c> {
    rootfs: &'c RootfsBlob,
    chunks: &'c [StoredChunk],
    compresses: bool,
}

impl Serialize for Layers<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let media_type = if self.compresses { CHUNK_ZSTD } else { CHUNK };
        let chunk = |chunk: &StoredChunk| Descriptor::new(media_type, &chunk.id.0, chunk.stored_bytes);
        serializer.collect_seq(std::iter::once(self.rootfs.descriptor()).chain(self.chunks.iter().map(chunk)))
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'static str, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'static str>,
    digest: String,
    media_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<Platform>,
    size: u64,
}

#[derive(Serialize)]
struct Platform {
    architecture: &'static str,
    os: &'static str,
}

impl Descriptor {
    fn new(media_type: &'static str, digest: &Digest, size: u64) -> Self {
        Self { annotations: BTreeMap::new(), data: None, digest: digest.to_oci(), media_type, platform: None, size }
    }
}

/// The rootfs blob of an image.
pub(super) struct RootfsBlob {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) verity: [u8; 32],
}

impl RootfsBlob {
    fn descriptor(&self) -> Descriptor {
        let mut descriptor = Descriptor::new(ROOTFS, &self.digest, self.size);
        let verity = Digest::from_bytes(&self.verity).expect("it has 32 bytes");
        descriptor.annotations.insert(VERITY_ROOT_HASH, verity.to_string());
        descriptor
    }
}

/// The manifest: the rootfs, then the chunks of the stream in order, each as often as it occurs.
pub(super) fn manifest(rootfs: &RootfsBlob, chunks: &[StoredChunk], compresses: bool) -> Vec<u8> {
    let mut config = Descriptor::new(EMPTY_CONFIG_TYPE, &Digest::of(EMPTY_CONFIG), EMPTY_CONFIG.len() as u64);
    config.data = Some(EMPTY_CONFIG_BASE64);
    to_json(&Manifest { config, layers: Layers { rootfs, chunks, compresses }, schema_version: 2 })
}

/// The index entry that gives the name `tag` to the manifest `digest` of `size` bytes.
pub(super) fn index_entry(tag: &Tag, digest: &Digest, size: u64) -> String {
    let mut entry = Descriptor::new(OCI_MANIFEST, digest, size);
    entry.annotations.insert(REF_NAME, tag.to_string());
    entry.platform = Some(Platform { architecture: architecture(), os: "linux" });
    String::from_utf8(to_json(&entry)).expect("JSON is UTF-8")
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    value.to_canon_json_vec().expect("the value has string keys and no floats, and a vector takes all writes")
}
