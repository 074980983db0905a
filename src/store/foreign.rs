//! Traces of other programs that write to a layout.

use std::path::PathBuf;

use hashbrown::HashSet;

use super::{IndexNote, Store, StoreError, error::At};
use crate::format::{DescriptorDigest, IndexDocument};

/// Traces of other writers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ForeignTraces {
    /// Files in the layout that are neither of the layout nor ours: temporary files of other tools, most likely. With the
    /// newest of their times, in seconds since 1970.
    pub files: Vec<(PathBuf, i64)>,
    /// When the index was last written, if pfs has not seen its present text before.
    pub unknown_index_seconds: Option<i64>,
    /// How many entries of the index that pfs saw last are gone, though no pfs command took them out.
    pub lost_entries: u64,
    /// The kind of network or user-space filesystem that the store lies on, if it does.
    pub remote_filesystem: Option<&'static str>,
    /// Whether layouts beside this one may use its blobs that were not looked at.
    pub unseen_siblings: bool,
}

impl ForeignTraces {
    /// Adds the traces in another layout that uses the same blobs.
    pub fn extend(&mut self, other: Self) {
        self.files.extend(other.files);
        self.unknown_index_seconds = self.unknown_index_seconds.max(other.unknown_index_seconds);
        self.lost_entries += other.lost_entries;
        self.remote_filesystem = self.remote_filesystem.or(other.remote_filesystem);
        self.unseen_siblings |= other.unseen_siblings;
    }
}

/// What belongs to a layout or to us.
const KNOWN: &[&str] = &["oci-layout", "index.json", "blobs", super::layout::STATE];

/// From `linux/magic.h` and the filesystems' own headers.
const REMOTE: &[(u64, &str)] = &[
    (0x6969, "nfs"),
    (0xff53_4d42, "cifs"),
    (0xfe53_4d42, "smb2"),
    (0x517b, "smb"),
    (0x0102_1997, "9p"),
    (0x00c3_6400, "ceph"),
    (0x6573_5546, "fuse"),
    (0x5346_414f, "afs"),
    (0x0bd0_0bd0, "lustre"),
    (0x0161_1970, "gfs2"),
    (0x7461_636f, "ocfs2"),
];

impl Store {
    /// Looks for traces. Writes nothing.
    pub fn foreign_traces(&self) -> Result<ForeignTraces, StoreError> {
        let (remote_filesystem, unseen_siblings) = (self.remote_filesystem()?, self.has_unseen_siblings());
        let mut traces = ForeignTraces { remote_filesystem, unseen_siblings, ..ForeignTraces::default() };
        for name in self.root.names()? {
            let name = String::from_utf8_lossy(&name).into_owned();
            if KNOWN.contains(&name.as_str()) {
                continue;
            }
            if let Some(stat) = self.root.stat(&name)? {
                traces.files.push((self.root.join(&name), stat.stx_mtime.tv_sec.max(stat.stx_ctime.tv_sec)));
            }
        }
        let index = self.index()?;
        let mut notes = self.index_notes()?;
        let last = notes.next();
        let is_known = |note: &IndexNote| note.digest() == index.digest();
        if last.as_ref().is_some_and(|last| !is_known(last)) && !notes.any(|note| is_known(&note)) {
            let stat = self.root.stat("index.json")?;
            traces.unknown_index_seconds = stat.map(|stat| stat.stx_mtime.tv_sec.max(stat.stx_ctime.tv_sec));
        }
        let last = last.filter(|last| !is_known(last));
        if let Some(last) = last.and_then(|last| IndexDocument::parse(last.bytes()).ok()) {
            let entries = index.document().entries().iter();
            let kept: HashSet<&DescriptorDigest> = entries.map(|entry| &entry.descriptor.digest).collect();
            let gone = last.entries().iter().filter(|entry| !kept.contains(&entry.descriptor.digest));
            traces.lost_entries = gone.count() as u64;
        }
        Ok(traces)
    }

    pub(super) fn remote_filesystem(&self) -> Result<Option<&'static str>, StoreError> {
        let stat = rustix::fs::fstatfs(&self.blobs).at("read the filesystem of", self.blobs.path())?;
        let kind = (stat.f_type as u64) & 0xffff_ffff;
        Ok(REMOTE.iter().find(|(magic, _)| *magic == kind).map(|(_, name)| *name))
    }
}
