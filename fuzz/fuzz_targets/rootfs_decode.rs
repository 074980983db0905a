//! A rootfs message of either version: its chunks found, decoded, every value of it looked at, written, read again, and
//! opened as a tree.
//!
//! Input: four bytes, the length of the message in little-endian order; the message; the one metadata blob that every
//! reference of a version 2 message leads to.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pfs::{
    format::{Kind, Layer, Limits, Rootfs, chunks_named_plainly},
    tree::View,
};

const LIMITS: Limits = Limits { message_bytes: 1 << 20 };

fuzz_target!(|input: &[u8]| {
    let Some((len, rest)) = input.split_first_chunk::<4>() else { return };
    let (message, metadata) = rest.split_at(rest.len().min(u32::from_le_bytes(*len) as usize));
    let plain = chunks_named_plainly(message, &LIMITS);
    let short = Rootfs::decode(message, &LIMITS, &mut |_| Ok(metadata.to_vec()));
    let Ok(rootfs) = Rootfs::decode_any_layout(message, &LIMITS, &mut |_| Ok(metadata.to_vec())) else {
        return assert!(plain.is_none() && short.is_err(), "what the library refuses is found by nobody");
    };
    let short = short.expect("what the library decodes is decoded");
    assert!(short.layers() == rootfs.layers() && short.verity() == rootfs.verity());
    let chunks = rootfs.chunks();
    if let Some(mut plain) = plain {
        plain.sort_unstable();
        plain.dedup();
        assert_eq!(plain, chunks);
    }
    for layer in rootfs.layers() {
        assert!(layer.chunks().iter().all(|chunk| chunks.binary_search(chunk).is_ok()));
        look_at_inodes(&rootfs, layer);
    }
    let written = rootfs.encode().expect("what was decoded can be written");
    let again = Rootfs::decode(&written, &Limits::default(), &mut |_| unreachable!("version 3 has no metadata blobs"));
    let again = again.expect("what was written can be decoded");
    // A stretch of no bytes is a reference, but no stretch: it counts, and is not written again.
    assert!(again.chunks().iter().all(|chunk| chunks.binary_search(chunk).is_ok()));
    assert_eq!(again.encode().expect("it was written before"), written);
    if let Ok(view) = View::new(again) {
        assert!(view.walk().count() as u64 >= view.inodes());
        assert!(view.visible_chunks().iter().all(|chunk| chunks.binary_search(chunk).is_ok()));
    }
});

fn look_at_inodes(rootfs: &Rootfs, layer: &Layer) {
    for inode in layer.inodes() {
        assert_eq!(layer.inode(inode.ino()).map(|found| found.ino()), Some(inode.ino()));
        assert!(inode.permissions() <= 0o7777);
        assert!(inode.xattrs().all(|(key, _)| !key.is_empty()));
        match inode.kind() {
            Kind::Dir(dir) => assert!(dir.entries().all(|entry| rootfs.inode(entry.ino).is_some())),
            Kind::File(map) => {
                let ends = map.pieces().map(|piece| piece.file_offset + piece.len);
                assert_eq!(ends.last().unwrap_or(0), map.size());
                assert!(
                    map.pieces_from(map.size() / 2)
                        .all(|piece| layer.chunks()[piece.slot as usize] == piece.blob.chunk)
                );
            }
            _ => {}
        }
    }
}
