//! Makes a store of many images for measuring: real manifests and rootfs blobs over chunks of a few bytes.
//!
//! `make-synthetic-store DIR [IMAGES [CHUNKS [BLOBS]]]`: by default 2,000 images of 5,000 chunks each, 300,000 blobs in
//! all. The same numbers make the same store. Image `n` needs a window of the chunks that begins `n` strides in, as a
//! series of versions does: most chunks are shared with its neighbours, a few are its own.

use std::{
    error::Error,
    fs,
    path::Path,
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use pfs::{
    format::{BlobRef, DirEntry, FormatError, InodeDraft, KindDraft, LayerBuilder, Rootfs},
    name::{CHUNK, ChunkId, Digest, OCI_MANIFEST, ROOTFS},
};

type Failure = Box<dyn Error + Send + Sync>;

/// The shape of the store.
struct Shape {
    images: usize,
    chunks: usize,
    blobs: usize,
}

const CHUNKS_PER_FILE: usize = 8;

fn main() -> ExitCode {
    match make() {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            eprintln!("make-synthetic-store: {cause}");
            ExitCode::FAILURE
        }
    }
}

fn make() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let store = arguments.next().ok_or("which directory?")?;
    let mut number = |default| arguments.next().map_or(Ok(default), |text| text.parse::<usize>());
    let shape = Shape { images: number(2000)?, chunks: number(5000)?, blobs: number(300_000)? };
    shape.write(Path::new(&store))
}

impl Shape {
    /// How many chunks there are: what is left beside a manifest and a rootfs for each image, and one config.
    fn pool(&self) -> usize {
        self.blobs.saturating_sub(2 * self.images + 1).max(self.chunks)
    }

    /// The chunks of an image, by number.
    fn window(&self, image: usize) -> impl Iterator<Item = usize> {
        let pool = self.pool();
        let first = (pool - self.chunks) * image / (self.images - 1).max(1);
        first..first + self.chunks
    }

    fn write(&self, store: &Path) -> Result<(), Failure> {
        let blobs = store.join("blobs/sha256");
        fs::create_dir_all(&blobs)?;
        let put = |bytes: &[u8]| -> Result<Digest, Failure> {
            let digest = Digest::of(bytes);
            fs::write(blobs.join(digest.to_string()), bytes)?;
            Ok(digest)
        };
        put(b"{}")?;
        let ids = in_parallel(self.pool(), |chunk| put(chunk_bytes(chunk).as_bytes()))?;
        let entries = in_parallel(self.images, |image| {
            let chunks: Vec<_> = self.window(image).map(|chunk| (ids[chunk], chunk_bytes(chunk).len())).collect();
            let rootfs = rootfs(image, &chunks)?;
            let manifest = manifest(&put(&rootfs)?, rootfs.len(), &chunks);
            Ok(entry(image, &put(manifest.as_bytes())?, manifest.len()))
        })?;
        fs::write(store.join("index.json"), format!(r#"{{"manifests":[{}],"schemaVersion":2}}"#, entries.join(",")))?;
        fs::write(store.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(())
    }
}

/// The results of `make` for each number below `count`, in order.
fn in_parallel<T: Send>(count: usize, make: impl Fn(usize) -> Result<T, Failure> + Sync) -> Result<Vec<T>, Failure> {
    let next = AtomicUsize::new(0);
    let made = Mutex::new(Vec::with_capacity(count));
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= count {
                return;
            }
            let result = make(at);
            made.lock().expect("no thread panics with the lock").push((at, result));
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let mut made = made.into_inner().expect("no thread panics with the lock");
    made.sort_unstable_by_key(|(at, _)| *at);
    made.into_iter().map(|(_, result)| result).collect()
}

fn chunk_bytes(chunk: usize) -> String {
    format!("chunk {chunk}\n")
}

/// A directory of files of a few chunks each, with the verity table that every builder writes.
fn rootfs(image: usize, chunks: &[(Digest, usize)]) -> Result<Vec<u8>, FormatError> {
    let files: Vec<_> = chunks.chunks(CHUNKS_PER_FILE).collect();
    let names: Vec<_> = (0..files.len()).map(|file| format!("file-{file:05}")).collect();
    let mut layer = LayerBuilder::new(0);
    let entries = names.iter().enumerate();
    let mut entries = entries.map(|(at, name)| Ok(DirEntry { ino: at as u64 + 2, name: name.as_bytes() }));
    layer
        .push(inode(1, 0o755, &mut std::iter::empty()), KindDraft::Dir { entries: &mut entries, look_below: false })?;
    for (ino, file) in (2..).zip(&files) {
        let place = |chunk: Digest| BlobRef { chunk: ChunkId(chunk), offset: 0, compressed: false };
        let mut pieces = file.iter().map(|(chunk, size)| Ok((place(*chunk), *size as u64)));
        layer.push(inode(ino, 0o644, &mut std::iter::empty()), KindDraft::File(&mut pieces))?;
    }
    // Images of one content would be one image.
    let own = format!("image {image}");
    layer.push(inode(files.len() as u64 + 2, 0o777, &mut std::iter::empty()), KindDraft::Symlink(own.as_bytes()))?;
    let verity = chunks.iter().map(|(chunk, _)| (ChunkId(*chunk), *chunk.as_bytes())).collect();
    Rootfs::new(vec![layer.finish()?], verity).encode()
}

fn inode<'a>(
    ino: u64,
    permissions: u16,
    xattrs: &'a mut dyn ExactSizeIterator<Item = Result<pfs::format::XattrDraft<'a>, FormatError>>,
) -> InodeDraft<'a> {
    InodeDraft { ino, uid: 0, gid: 0, permissions, xattrs }
}

fn manifest(rootfs: &Digest, rootfs_bytes: usize, chunks: &[(Digest, usize)]) -> String {
    let layer = |kind: &str, digest: &Digest, size: usize| {
        format!(r#"{{"digest":"{}","mediaType":"{kind}","size":{size}}}"#, digest.to_oci())
    };
    let config = layer("application/vnd.oci.empty.v1+json", &Digest::of(b"{}"), 2);
    let mut layers = vec![layer(ROOTFS, rootfs, rootfs_bytes)];
    layers.extend(chunks.iter().map(|(chunk, size)| layer(CHUNK, chunk, *size)));
    format!(r#"{{"config":{config},"layers":[{}],"schemaVersion":2}}"#, layers.join(","))
}

fn entry(image: usize, manifest: &Digest, size: usize) -> String {
    format!(
        r#"{{"annotations":{{"org.opencontainers.image.ref.name":"v{image:05}"}},"digest":"{}","mediaType":"{OCI_MANIFEST}","platform":{{"architecture":"amd64","os":"linux"}},"size":{size}}}"#,
        manifest.to_oci()
    )
}
