//! Media types, as far as they say what a blob may refer to.

/// What a media type says about a blob. `Unknown` is kept and searched for references, never skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MediaKind {
    /// An OCI image index or a Docker manifest list.
    Index,
    /// An OCI image manifest, a Docker schema 2 manifest, or an OCI artifact manifest.
    Manifest,
    /// A puzzlefs rootfs, of any version, also of one to come: its reader refuses what it does not know.
    Rootfs,
    /// A puzzlefs metadata blob of manifest version 2: one vector of inodes.
    Inodes,
    /// A chunk of puzzlefs file data.
    Chunk,
    /// A blob that refers to nothing: configs, tar layers, the empty descriptor.
    Leaf,
    /// Anything else.
    Unknown,
}

/// Of an OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Of an OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Of a puzzlefs rootfs blob.
pub const ROOTFS: &str = "application/vnd.puzzlefs.image.rootfs.v1";
/// Of a version 2 metadata blob.
pub const INODES: &str = "application/vnd.puzzlefs.image.inodes.v1";
/// Of a chunk from a plain build.
pub const CHUNK: &str = "application/vnd.puzzlefs.image.filedata.v1";
/// Of a chunk from a compressed build, also of one that is stored plain there.
pub const CHUNK_ZSTD: &str = "application/vnd.puzzlefs.image.filedata.v1+zstd";

const LEAF_PREFIXES: &[&str] = &[
    "application/vnd.oci.image.layer.",
    "application/vnd.oci.image.config.",
    "application/vnd.oci.empty.",
    "application/vnd.docker.image.rootfs.",
    "application/vnd.docker.container.image.",
];

impl MediaKind {
    /// The kind that the media type `text` stands for.
    pub fn of(text: &str) -> Self {
        match text {
            OCI_INDEX | "application/vnd.docker.distribution.manifest.list.v2+json" => Self::Index,
            OCI_MANIFEST
            | "application/vnd.docker.distribution.manifest.v2+json"
            | "application/vnd.oci.artifact.manifest.v1+json" => Self::Manifest,
            _ if text.starts_with("application/vnd.puzzlefs.image.rootfs.") => Self::Rootfs,
            _ if names(text, "application/vnd.puzzlefs.image.inodes.v1") => Self::Inodes,
            _ if names(text, "application/vnd.puzzlefs.image.filedata.v1") => Self::Chunk,
            _ if names(text, "application/vnd.puzzlefs.image.layer.puzzlefs.v1") => Self::Chunk,
            _ if LEAF_PREFIXES.iter().any(|prefix| text.starts_with(prefix)) => Self::Leaf,
            _ => Self::Unknown,
        }
    }
}

/// Whether `text` is `name`, or `name` with a `+suffix` that tells its compression.
fn names(text: &str, name: &str) -> bool {
    text.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('+'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn puzzlefs_types_are_known_with_and_without_compression() {
        assert_eq!(MediaKind::of(ROOTFS), MediaKind::Rootfs);
        assert_eq!(MediaKind::of(CHUNK), MediaKind::Chunk);
        assert_eq!(MediaKind::of(CHUNK_ZSTD), MediaKind::Chunk);
        assert_eq!(MediaKind::of("application/vnd.puzzlefs.image.layer.puzzlefs.v1"), MediaKind::Chunk);
        assert_eq!(MediaKind::of("application/vnd.puzzlefs.image.rootfs.v2"), MediaKind::Rootfs);
    }

    #[test]
    fn what_is_not_known_is_unknown_and_not_a_leaf() {
        for text in ["", "application/json", "application/vnd.in-toto+json", "text/plain"] {
            assert_eq!(MediaKind::of(text), MediaKind::Unknown, "{text}");
        }
        assert_eq!(MediaKind::of("application/vnd.oci.image.layer.v1.tar+gzip"), MediaKind::Leaf);
    }
}
