//! What the layers of an image say when they are laid on one another. The one place that knows about shadowing.
//!
//! An inode number means what the topmost layer that has it says. An entry that leads to a whiteout is no entry. Of two
//! entries with one name the first counts. Only a directory that asks to look below takes entries of lower layers in.

use crate::format::{DirEntry, Directory, Inode, Kind, Rootfs};

/// The inode of that number, or `None` if no layer has it or the topmost that does deletes it.
pub(super) fn resolve(rootfs: &Rootfs, ino: u64) -> Option<Inode<'_>> {
    rootfs.inode(ino).filter(|inode| !matches!(inode.kind(), Kind::Whiteout))
}

/// Where an entry stands: in which layer, and at which place of the directory's list there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    /// Counted from 0, the topmost layer.
    pub(super) layer: u32,
    /// Counted from 0, in the order of the message.
    pub(super) place: u32,
}

/// The entries of one merged directory, sorted by name, each name once, none deleted.
pub(super) enum Entries {
    /// They are exactly those of the topmost layer that has the directory, in their stored order.
    AsStored,
    /// These.
    Rows(Vec<Row>),
}

impl Entries {
    /// The entries, of the directory `ino` that was merged.
    pub(super) fn iter<'a>(&'a self, rootfs: &'a Rootfs, ino: u64) -> Box<dyn Iterator<Item = DirEntry<'a>> + 'a> {
        match (self, rootfs.inode(ino).map(|inode| inode.kind())) {
            (Self::AsStored, Some(Kind::Dir(directory))) => Box::new(directory.entries()),
            (Self::AsStored, _) => Box::new(std::iter::empty()),
            (Self::Rows(rows), _) => Box::new(rows.iter().filter_map(move |row| entry(rootfs, ino, *row))),
        }
    }
}

/// Merges the directory `ino`, which has to resolve to one.
pub(super) fn merge(rootfs: &Rootfs, ino: u64) -> Entries {
    let Some(Kind::Dir(top)) = rootfs.inode(ino).map(|inode| inode.kind()) else { return Entries::Rows(Vec::new()) };
    if !top.look_below() && is_plain(rootfs, top) {
        return Entries::AsStored;
    }
    let mut rows: Vec<(Row, DirEntry<'_>)> = chain(rootfs, ino).flat_map(rows_of).collect();
    rows.sort_by(|(_, one), (_, other)| one.name.cmp(other.name));
    rows.dedup_by(|(_, later), (_, first)| later.name == first.name);
    rows.retain(|(_, entry)| resolve(rootfs, entry.ino).is_some());
    Entries::Rows(rows.into_iter().map(|(row, _)| row).collect())
}

/// The entry that stands there in the directory `ino`.
pub(super) fn entry(rootfs: &Rootfs, ino: u64, row: Row) -> Option<DirEntry<'_>> {
    match rootfs.layers().get(row.layer as usize)?.inode(ino)?.kind() {
        Kind::Dir(directory) => Some(directory.entry(row.place as usize)),
        _ => None,
    }
}

fn is_plain(rootfs: &Rootfs, directory: Directory<'_>) -> bool {
    directory.entries().is_sorted_by(|one, next| one.name < next.name)
        && (!rootfs.has_whiteouts() || directory.entries().all(|entry| resolve(rootfs, entry.ino).is_some()))
}

/// The directory in each layer that has a say, topmost first. A layer in which the number is no directory ends it.
fn chain(rootfs: &Rootfs, ino: u64) -> impl Iterator<Item = (u32, Directory<'_>)> {
    let mut open = true;
    let layers = rootfs.layers().iter().zip(0u32..);
    layers.filter_map(move |(layer, depth)| Some((depth, layer.inode(ino)?.kind()))).map_while(move |(depth, kind)| {
        match kind {
            Kind::Dir(directory) if open => {
                open = directory.look_below();
                Some((depth, directory))
            }
            _ => None,
        }
    })
}

fn rows_of((layer, directory): (u32, Directory<'_>)) -> impl Iterator<Item = (Row, DirEntry<'_>)> {
    directory.entries().zip(0u32..).map(move |(entry, place)| (Row { layer, place }, entry))
}
