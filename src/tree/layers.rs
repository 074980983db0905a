//! What the layers of an image say when they are laid on one another. The one place that knows about shadowing.
//!
//! An inode number means what the topmost layer that has it says. An entry that leads to a whiteout is no entry. Of two
//! entries with one name the first counts. Only a directory that asks to look below takes entries of lower layers in.

use crate::format::{DirEntry, Directory, Inode, Kind, Rootfs};

/// The inode of that number, or `None` if no layer has it or the topmost that does deletes it.
pub fn resolve(rootfs: &Rootfs, ino: u64) -> Option<Inode<'_>> {
    rootfs.inode(ino).filter(|inode| !matches!(inode.kind(), Kind::Whiteout))
}

/// Where an entry stands: in which layer, and at which place of the directory's list there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Counted from 0, the topmost layer.
    pub layer: u32,
    /// Counted from 0, in the order of the message.
    pub place: u32,
}

/// The entries of one merged directory, sorted by name, each name once, none deleted.
pub enum Entries {
    /// They are exactly those of the topmost layer that has the directory, in their stored order.
    AsStored,
    /// These.
    Rows(Vec<Row>),
}

/// Merges the directory `ino`, which has to resolve to one.
pub fn merge(rootfs: &Rootfs, ino: u64) -> Entries {
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

/// The directory `ino` in the layer at `depth`.
pub fn directory(rootfs: &Rootfs, depth: u32, ino: u64) -> Option<Directory<'_>> {
    match rootfs.layers().get(depth as usize)?.inode(ino)?.kind() {
        Kind::Dir(directory) => Some(directory),
        _ => None,
    }
}

fn is_plain(rootfs: &Rootfs, directory: Directory<'_>) -> bool {
    directory.entries().is_sorted_by(|one, next| one.name < next.name)
        && directory.entries().all(|entry| resolve(rootfs, entry.ino).is_some())
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
