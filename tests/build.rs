//! What `build` makes of directories.

use std::{collections::HashMap, num::NonZeroUsize, path::Path, sync::Mutex};

use pfs::{
    build::{BuildOptions, ChunkSink, Rendered, render},
    codec::Encoding,
    name::Digest,
    store::{Put, StoreError, Stored},
};

#[derive(Default)]
struct Memory(Mutex<HashMap<Digest, Vec<u8>>>);

impl ChunkSink for Memory {
    fn put(&self, bytes: &[u8]) -> Result<Stored, StoreError> {
        let digest = Digest::of(bytes);
        let old = self.0.lock().unwrap().insert(digest, bytes.to_vec());
        let put = if old.is_some() { Put::Reused } else { Put::Written };
        Ok(Stored { digest, size: bytes.len() as u64, put })
    }
}

fn build(source: &Path, encoding: Encoding) -> (Memory, Rendered) {
    let memory = Memory::default();
    let options = BuildOptions { encoding, threads: NonZeroUsize::new(2).unwrap() };
    let rendered = render(source, &memory, &options, &mut |_| {}).unwrap();
    (memory, rendered)
}

#[test]
fn plain_build_of_the_golden_tree_is_upstreams() {
    let (memory, rendered) = build(Path::new("/tmp/b/tree/base"), Encoding::Plain);
    std::fs::write("/tmp/b/rootfs.mine", &memory.0.lock().unwrap()[&rendered.rootfs.0]).unwrap();
    std::fs::write("/tmp/b/manifest.mine", &rendered.manifest).unwrap();
    assert_eq!(
        Digest::of(&rendered.manifest).to_string(),
        "5c7d89694f22c203be076dc26d1f2378689f167671d02f6d56843f10b5931202"
    );
}
