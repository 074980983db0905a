//! An opened image: names, attributes, directories.
//!
//! Opening walks the merged tree once, from the root, and refuses what is not a tree; so everything that asks later may
//! trust that parents are unique and that walks end. What the walk finds out beyond the decoded image is little, and is
//! kept in a few flat arrays: one record a directory, the order of those directories that are not stored in order, the
//! link counts above 1.

use std::sync::Arc;

use super::{
    error::TreeError,
    layers,
    survey::{DirRecord, Findings, Order, survey},
    walk::Walk,
};
use crate::{
    format::{Device, DirEntry, Directory, FileMap, Inode, Kind, Rootfs},
    name::ChunkId,
};

/// The inode number of the root directory, in every image.
pub const ROOT_INO: u64 = 1;

/// A decoded image, opened as a tree.
pub struct View {
    rootfs: Arc<Rootfs>,
    found: Findings,
}

/// What an inode is, for `stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// Of a type that the builder of the image could not name.
    Unknown,
    /// A named pipe.
    Fifo,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A directory.
    Directory,
    /// A regular file.
    Regular,
    /// A symbolic link.
    Symlink,
    /// A socket.
    Socket,
}

/// The attributes of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// Its number.
    pub ino: u64,
    /// What it is.
    pub kind: FileKind,
    /// The low 12 mode bits.
    pub permissions: u16,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// How many names it has in the merged tree; for a directory 2 and one for each directory in it.
    pub nlink: u32,
    /// In bytes: the contents of a file, the target of a symbolic link, 0 for everything else.
    pub size: u64,
    /// The device number, of a device.
    pub device: Option<Device>,
}

/// The sorted entries of one directory.
#[derive(Clone, Copy)]
pub(super) struct Listing<'a> {
    view: &'a View,
    ino: u64,
    /// The directory in the topmost layer; of use where the order is as stored.
    top: Directory<'a>,
    order: Order,
}

impl View {
    /// Opens an image; fails if its directories do not form a tree.
    pub fn new(rootfs: impl Into<Arc<Rootfs>>) -> Result<Self, TreeError> {
        let rootfs = rootfs.into();
        let found = survey(&rootfs)?;
        Ok(Self { found, rootfs })
    }

    /// The decoded image.
    pub fn rootfs(&self) -> &Arc<Rootfs> {
        &self.rootfs
    }

    /// The inode of that number, if a path of the merged tree leads to it.
    pub fn node(&self, ino: u64) -> Option<Node> {
        self.inode(ino).map(|inode| self.describe(inode))
    }

    /// What `name` stands for in the directory `parent`.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Option<Node> {
        let listing = self.listing(parent)?;
        let at = listing.find(name)?;
        self.child(listing.entry(at))
    }

    /// The directory that holds the directory `ino`; the root's is the root.
    pub fn parent(&self, ino: u64) -> Option<u64> {
        self.directory(ino).map(|record| record.parent)
    }

    /// The entries of a directory from the one at `offset` on, sorted by name as bytes. `None` if `ino` is no directory.
    pub fn read_dir(&self, ino: u64, offset: usize) -> Option<impl Iterator<Item = (&[u8], Node)>> {
        let listing = self.listing(ino)?;
        Some((offset..listing.len()).filter_map(move |at| {
            let entry = listing.entry(at);
            Some((entry.name, self.child(entry)?))
        }))
    }

    /// The maps of the regular files among the first `entries` entries of a directory; none if `ino` is no directory.
    pub fn file_maps(&self, ino: u64, entries: usize) -> impl Iterator<Item = FileMap<'_>> {
        let inos = self
            .listing(ino)
            .into_iter()
            .flat_map(move |listing| (0..listing.len().min(entries)).map(move |at| listing.entry(at).ino));
        inos.filter_map(|ino| self.file_map(ino))
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, ino: u64) -> Option<&[u8]> {
        match self.inode(ino)?.kind() {
            Kind::Symlink(target) => Some(target),
            _ => None,
        }
    }

    /// The extended attributes of an inode, key and value. `None` if there is no such inode.
    pub fn xattrs(&self, ino: u64) -> Option<impl Iterator<Item = (&[u8], &[u8])>> {
        Some(self.inode(ino)?.xattrs())
    }

    /// Where the bytes of a regular file are.
    pub fn file_map(&self, ino: u64) -> Option<FileMap<'_>> {
        match self.inode(ino)?.kind() {
            Kind::File(map) => Some(map),
            _ => None,
        }
    }

    /// Whether any visible inode has extended attributes.
    pub fn has_xattrs(&self) -> bool {
        self.found.has_xattrs
    }

    /// How many inodes are visible.
    pub fn inodes(&self) -> u64 {
        self.found.visible.len()
    }

    /// The sum of the sizes of all visible files, in bytes; a file with several names counts once.
    pub fn total_bytes(&self) -> u64 {
        self.found.total_bytes
    }

    /// The chunks that some path of the merged tree needs, sorted, once each.
    pub fn visible_chunks(&self) -> Vec<ChunkId> {
        let maps = self.found.visible.iter().filter_map(|ino| self.file_map(ino));
        let mut chunks: Vec<_> = maps.flat_map(FileMap::pieces).map(|piece| piece.blob.chunk).collect();
        chunks.sort_unstable();
        chunks.dedup();
        chunks
    }

    /// Every path of the merged tree, a directory before what is in it, siblings sorted by name.
    pub fn walk(&self) -> Walk<'_> {
        Walk::new(self)
    }

    pub(super) fn listing(&self, ino: u64) -> Option<Listing<'_>> {
        let record = self.directory(ino)?;
        let Kind::Dir(top) = self.rootfs.inode(ino)?.kind() else { return None };
        Some(Listing { view: self, ino, top, order: record.order })
    }

    pub(super) fn child(&self, entry: DirEntry<'_>) -> Option<Node> {
        layers::resolve(&self.rootfs, entry.ino).map(|inode| self.describe(inode))
    }

    fn inode(&self, ino: u64) -> Option<Inode<'_>> {
        if self.found.visible.contains(ino) { layers::resolve(&self.rootfs, ino) } else { None }
    }

    fn directory(&self, ino: u64) -> Option<&DirRecord> {
        let at = self.found.directories.binary_search_by_key(&ino, |record| record.ino).ok()?;
        Some(&self.found.directories[at])
    }

    fn describe(&self, inode: Inode<'_>) -> Node {
        let kind = inode.kind();
        Node {
            ino: inode.ino(),
            kind: file_kind(kind),
            permissions: inode.permissions(),
            uid: inode.uid(),
            gid: inode.gid(),
            nlink: self.nlink(inode.ino(), kind),
            size: size(kind),
            device: device(kind),
        }
    }

    fn nlink(&self, ino: u64, kind: Kind<'_>) -> u32 {
        if let Kind::Dir(_) = kind {
            return self.directory(ino).map_or(2, |record| record.subdirectories.saturating_add(2));
        }
        match self.found.links.binary_search_by_key(&ino, |(ino, _)| *ino) {
            Ok(at) => self.found.links[at].1,
            Err(_) => 1,
        }
    }
}

impl<'a> Listing<'a> {
    pub(super) fn len(&self) -> usize {
        match self.order {
            Order::AsStored => self.top.len(),
            Order::Rows { start, end } => (end - start) as usize,
        }
    }

    pub(super) fn entry(&self, at: usize) -> DirEntry<'a> {
        match self.order {
            Order::AsStored => self.top.entry(at),
            Order::Rows { start, .. } => {
                let row = self.view.found.rows[start as usize + at];
                layers::entry(&self.view.rootfs, self.ino, row).expect("rows are made from directories")
            }
        }
    }

    fn find(&self, name: &[u8]) -> Option<usize> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.entry(middle).name.cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return Some(middle),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }
}

fn file_kind(kind: Kind<'_>) -> FileKind {
    match kind {
        Kind::Unknown | Kind::Whiteout => FileKind::Unknown,
        Kind::Fifo => FileKind::Fifo,
        Kind::Char(_) => FileKind::Char,
        Kind::Block(_) => FileKind::Block,
        Kind::Dir(_) => FileKind::Directory,
        Kind::File(_) => FileKind::Regular,
        Kind::Symlink(_) => FileKind::Symlink,
        Kind::Socket => FileKind::Socket,
    }
}

fn size(kind: Kind<'_>) -> u64 {
    match kind {
        Kind::File(map) => map.size(),
        Kind::Symlink(target) => target.len() as u64,
        _ => 0,
    }
}

fn device(kind: Kind<'_>) -> Option<Device> {
    match kind {
        Kind::Char(device) | Kind::Block(device) => Some(device),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::sample::{Sample, image, place},
        *,
    };

    fn view(layers: Vec<crate::format::Layer>) -> View {
        View::new(image(layers)).unwrap()
    }

    fn paths(view: &View) -> Vec<String> {
        view.walk().map(|step| format!("{} {}", String::from_utf8_lossy(&step.path), step.node.ino)).collect()
    }

    #[test]
    fn the_topmost_layer_that_has_an_inode_says_what_it_is() {
        let top = Sample::new().dir(1, &[("d", 2), ("f", 3)]).dir(2, &[("new", 4)]).empty_file(4).layer();
        let old = Sample::new().dir(1, &[("gone", 9)]).empty_file(2).empty_file(3).empty_file(9).layer();
        let view = view(vec![top, old]);
        assert_eq!(paths(&view), ["/ 1", "/d 2", "/d/new 4", "/f 3"]);
        assert_eq!(view.node(2).unwrap().kind, FileKind::Directory);
        assert_eq!(view.node(9), None, "hidden by the root of the top layer");
        assert_eq!(view.inodes(), 4);
    }

    #[test]
    fn a_whiteout_is_no_entry_and_the_rest_is_listed() {
        let top = Sample::new().dir(1, &[("gone", 2), ("a", 3)]).whiteout(2).layer();
        let view = view(vec![top, Sample::new().dir(1, &[]).empty_file(2).empty_file(3).layer()]);
        assert_eq!(paths(&view), ["/ 1", "/a 3"]);
        assert_eq!(view.lookup(1, b"gone"), None);
        assert_eq!(view.node(2), None);
    }

    #[test]
    fn of_two_entries_with_one_name_the_first_counts_also_if_it_is_a_whiteout() {
        let top =
            Sample::new().dir(1, &[("x", 3), ("x", 2), ("y", 4), ("y", 2)]).empty_file(2).empty_file(3).whiteout(4);
        assert_eq!(paths(&view(vec![top.layer()])), ["/ 1", "/x 3"]);
    }

    #[test]
    fn looking_below_goes_on_as_long_as_directories_ask_for_it() {
        let layers = |middle: Sample| {
            let top = Sample::new().dir_looking_below(1, &[("a", 2), ("gone", 9)]).empty_file(2).whiteout(9).layer();
            let bottom = Sample::new().dir(1, &[("c", 5)]).empty_file(3).empty_file(4).empty_file(5).layer();
            vec![top, middle.layer(), bottom]
        };
        let open = view(layers(Sample::new().dir_looking_below(1, &[("a", 3), ("b", 4), ("gone", 3)])));
        assert_eq!(paths(&open), ["/ 1", "/a 2", "/b 4", "/c 5"]);
        let closed = view(layers(Sample::new().dir(1, &[("b", 4)])));
        assert_eq!(paths(&closed), ["/ 1", "/a 2", "/b 4"]);
        let passed = view(layers(Sample::new().empty_file(7)));
        assert_eq!(paths(&passed), ["/ 1", "/a 2", "/c 5"], "a layer without the directory has no say");
        let ended = view(layers(Sample::new().whiteout(1)));
        assert_eq!(paths(&ended), ["/ 1", "/a 2"]);
    }

    #[test]
    fn links_are_names_and_directories_count_their_subdirectories() {
        let layer = Sample::new()
            .dir(1, &[("a", 2), ("b", 2), ("d", 3), ("e", 4)])
            .empty_file(2)
            .dir(3, &[("c", 2), ("single", 5)])
            .dir(4, &[])
            .empty_file(5);
        let view = view(vec![layer.layer()]);
        let nlink = |ino| view.node(ino).unwrap().nlink;
        assert_eq!([nlink(1), nlink(2), nlink(3), nlink(4), nlink(5)], [4, 3, 2, 2, 1]);
        assert_eq!([view.parent(1), view.parent(3), view.parent(2)], [Some(1), Some(1), None]);
    }

    #[test]
    fn what_is_not_a_tree_is_refused_by_the_number_of_the_directory() {
        let refusal = |layer: Sample| View::new(image(vec![layer.layer()])).err().unwrap();
        let own = Sample::new().dir(1, &[("d", 5)]).dir(5, &[("d", 5)]);
        assert_eq!(refusal(own), TreeError::TwoParents { ino: 5, first: 1, second: 5 });
        let cycle = Sample::new().dir(1, &[("a", 2)]).dir(2, &[("b", 3)]).dir(3, &[("a", 2)]);
        assert_eq!(refusal(cycle), TreeError::TwoParents { ino: 2, first: 1, second: 3 });
        let twice = Sample::new().dir(1, &[("a", 2), ("b", 2)]).dir(2, &[]);
        assert_eq!(refusal(twice), TreeError::TwoParents { ino: 2, first: 1, second: 1 });
        assert_eq!(refusal(Sample::new().dir(1, &[("a", 1)])), TreeError::RootBelow { parent: 1 });
        assert_eq!(refusal(Sample::new().empty_file(1)), TreeError::NoRoot);
        assert!(refusal(Sample::new().dir(1, &[("d", 5)]).dir(5, &[("d", 5)])).to_string().contains("inode 5"));
    }

    #[test]
    fn a_cycle_that_no_path_leads_to_does_not_matter() {
        let view = view(vec![Sample::new().dir(1, &[]).dir(2, &[("b", 3)]).dir(3, &[("a", 2)]).layer()]);
        assert_eq!(paths(&view), ["/ 1"]);
        assert_eq!((view.node(2), view.parent(2), view.lookup(2, b"b")), (None, None, None));
    }

    #[test]
    fn a_tree_as_deep_as_can_be_costs_no_stack() {
        const DEPTH: u64 = 20_000;
        let layer = (1..DEPTH).fold(Sample::new(), |layer, ino| layer.dir(ino, &[("d", ino + 1)])).dir(DEPTH, &[]);
        let view = view(vec![layer.layer()]);
        assert_eq!(view.walk().last().unwrap().node.ino, DEPTH);
    }

    #[test]
    fn a_directory_is_listed_in_order_from_any_offset_and_every_name_is_found() {
        for stored in [["a", "b", "c", "d"], ["d", "b", "c", "a"]] {
            let entries: Vec<_> = stored.iter().zip(2..).map(|(name, ino)| (*name, ino)).collect();
            let layer = (2..6).fold(Sample::new().dir(1, &entries), Sample::empty_file);
            let view = view(vec![layer.layer()]);
            for offset in 0..6 {
                let names: Vec<_> = view.read_dir(1, offset).unwrap().map(|(name, _)| name).collect();
                assert_eq!(names, [&b"a"[..], b"b", b"c", b"d"][offset.min(4)..]);
            }
            for (name, ino) in entries {
                assert_eq!(view.lookup(1, name.as_bytes()).unwrap().ino, ino);
            }
            assert!([&b""[..], b"aa", b"e"].iter().all(|name| view.lookup(1, name).is_none()));
        }
    }

    #[test]
    fn only_chunks_of_visible_files_are_visible() {
        let piece = |stored: &[u8]| [(place(stored, 0, false), stored.len() as u64)];
        let top = Sample::new().dir(1, &[("f", 2), ("g", 3)]).file(2, &piece(b"new")).layer();
        let old =
            Sample::new().dir(1, &[("f", 2)]).file(2, &piece(b"old")).file(3, &piece(b"new")).file(4, &piece(b"x"));
        let view = view(vec![top, old.layer()]);
        assert_eq!(view.visible_chunks(), [place(b"new", 0, false).chunk]);
        assert_eq!(view.total_bytes(), 6);
    }
}
