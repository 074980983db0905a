//! What `build` makes of directories.

mod built;

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    os::unix::net::UnixListener,
    path::Path,
};

use built::{
    Memory, can, has, is_root, list_host, list_image, make_golden_trees, noise, options, rendered, text, try_render,
};
use pfs::{
    build::{BuildError, BuildOptions, ChunkSink, build, render},
    codec::{Encoding, Hashed, verity_digest},
    format::{Kind, ManifestDocument},
    name::{CHUNK_ZSTD, Digest, MediaKind},
    store::{Store, StoreError, Stored},
};

/// Some of everything that needs no privileges.
fn make_tree(root: &Path) {
    for dir in ["a/deep/er", "empty-dir", "z"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::write(root.join("a/noise"), noise(1, 300_000)).unwrap();
    fs::write(root.join("a/deep/er/text"), text(700_000)).unwrap();
    fs::write(root.join("empty"), "").unwrap();
    fs::hard_link(root.join("a/noise"), root.join("z/same")).unwrap();
    symlink("../nowhere", root.join("z/link")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, root.join("fifo"), 0o600.into()).unwrap();
    drop(UnixListener::bind(root.join("socket")).unwrap());
    fs::set_permissions(root.join("z"), fs::Permissions::from_mode(0o1705)).unwrap();
    (0..100).for_each(|i| fs::write(root.join(format!("z/{i}")), text(i * 31)).unwrap());
}

/// Everything that the index reaches is there, every blob is what its name says, and nothing is left of the build.
fn assert_sound(store: &Store) {
    let index = store.index().unwrap();
    let mut needed = Vec::new();
    for entry in index.document().entries() {
        let pfs::format::DescriptorDigest::Sha256(digest) = entry.descriptor.digest else { panic!("{entry:?}") };
        let manifest = store.read_blob(&digest, 1 << 20).unwrap();
        assert_eq!(manifest.len() as u64, entry.descriptor.size);
        needed.extend(pfs::format::references_in_text(&manifest));
    }
    needed.iter().for_each(|digest| assert!(store.stat_blob(digest).unwrap().is_some(), "{digest} is missing"));
    for blob in fs::read_dir(store.path().join("blobs/sha256")).unwrap() {
        let blob = blob.unwrap();
        let digest = Digest::of(&fs::read(blob.path()).unwrap());
        assert_eq!(blob.file_name().to_str().unwrap(), digest.to_string());
    }
    let staged = fs::read_dir(store.path().join(".pfs/tmp")).unwrap().count();
    assert_eq!(staged, 0, "staging directories");
}

#[test]
fn plain_build_of_the_golden_tree_is_upstreams() {
    if !can(is_root() && has("python3"), "root, for device nodes, and python3") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    make_golden_trees(dir.path());
    let (_, base) = rendered(&dir.path().join("base"), Encoding::Plain);
    let upstream = "5c7d89694f22c203be076dc26d1f2378689f167671d02f6d56843f10b5931202";
    assert_eq!(Digest::of(&base.manifest).to_string(), upstream);
}

#[test]
fn an_image_decodes_to_the_tree_it_was_built_from() {
    let dir = tempfile::tempdir().unwrap();
    make_tree(dir.path());
    let zstd = |level, bytes| Encoding::ZstdSeekable { level, frame_bytes: std::num::NonZeroU32::new(bytes).unwrap() };
    for encoding in
        [Encoding::Plain, Encoding::zstd(), zstd(3, 4096), zstd(3, 1 << 30), zstd(-7, 4096), zstd(1, 128 << 10)]
    {
        let (memory, image) = rendered(dir.path(), encoding);
        assert_eq!(list_image(&memory.rootfs(&image), &memory), list_host(dir.path()), "{encoding:?}");
        assert_eq!(image.stats.inodes, memory.rootfs(&image).layers()[0].inodes().count() as u64);
        assert_eq!(image.stats.decoded_bytes, memory_of_files(dir.path()));
    }
}

/// The bytes of all files of [`make_tree`], the hard link counted once.
fn memory_of_files(root: &Path) -> u64 {
    let files = walkdir::WalkDir::new(root).into_iter().map(|entry| entry.unwrap().metadata().unwrap());
    files.filter(|metadata| metadata.is_file()).map(|metadata| metadata.len()).sum::<u64>() - 300_000
}

#[test]
fn a_chunk_that_does_not_shrink_is_stored_plain_and_its_verity_is_over_the_stored_bytes() {
    let dir = tempfile::tempdir().unwrap();
    make_tree(dir.path());
    let (memory, image) = rendered(dir.path(), Encoding::zstd());
    let rootfs = memory.rootfs(&image);
    let inodes = rootfs.layers()[0].inodes();
    let maps = inodes.filter_map(|inode| if let Kind::File(map) = inode.kind() { Some(map) } else { None });
    let compressed: Vec<bool> = maps.flat_map(|map| map.pieces()).map(|piece| piece.blob.compressed).collect();
    assert!(compressed.contains(&true) && compressed.contains(&false));
    for (chunk, verity) in rootfs.verity() {
        assert_eq!(*verity, verity_digest(&memory.get(*chunk)));
    }
}

#[test]
fn a_manifest_gives_stored_sizes_and_one_media_type() {
    let dir = tempfile::tempdir().unwrap();
    make_tree(dir.path());
    let (memory, image) = rendered(dir.path(), Encoding::zstd());
    let manifest = ManifestDocument::parse(&image.manifest).unwrap();
    for layer in &manifest.layers {
        let pfs::format::DescriptorDigest::Sha256(digest) = layer.digest else { panic!("{layer:?}") };
        assert_eq!(layer.size, memory.get(digest).len() as u64);
    }
    let chunks = manifest.layers.iter().filter(|layer| layer.kind == MediaKind::Chunk).count();
    assert_eq!(chunks as u64, image.stats.chunks);
    assert_eq!(String::from_utf8(image.manifest).unwrap().matches(CHUNK_ZSTD).count(), chunks);
}

#[test]
fn equal_trees_have_equal_images_however_many_threads_there_are() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let names: Vec<u32> = (0..300).collect();
    let write = |root: &Path, name: &u32| fs::write(root.join(name.to_string()), noise(name.to_owned().into(), 9000));
    names.iter().for_each(|name| write(one.path(), name).unwrap());
    names.iter().rev().for_each(|name| write(two.path(), name).unwrap());
    let manifest = |root: &Path, threads| {
        let options =
            BuildOptions { threads: std::num::NonZeroUsize::new(threads).unwrap(), ..options(Encoding::zstd()) };
        render(root, &Memory::default(), &options, &mut |_| {}).unwrap().manifest
    };
    let first = manifest(one.path(), 1);
    assert_eq!(first, manifest(two.path(), 1));
    assert_eq!(first, manifest(two.path(), 7));
}

#[test]
fn an_empty_tree_is_an_image_of_its_root() {
    let dir = tempfile::tempdir().unwrap();
    let (memory, image) = rendered(dir.path(), Encoding::Plain);
    assert_eq!((image.stats.inodes, image.stats.chunks), (1, 0));
    assert_eq!(list_image(&memory.rootfs(&image), &memory), list_host(dir.path()));
}

#[test]
fn hard_links_share_the_number_of_the_first_name_and_leave_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), "bytes").unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, dir.path().join("b"), 0o600.into()).unwrap();
    fs::hard_link(dir.path().join("a"), dir.path().join("c")).unwrap();
    fs::hard_link(dir.path().join("b"), dir.path().join("d")).unwrap();
    fs::write(dir.path().join("e"), "").unwrap();
    let (memory, image) = rendered(dir.path(), Encoding::Plain);
    let rootfs = memory.rootfs(&image);
    let Some(Kind::Dir(root)) = rootfs.inode(1).map(|inode| inode.kind()) else { panic!("no root") };
    let entries: Vec<_> = root.entries().map(|entry| (entry.name, entry.ino)).collect();
    assert_eq!(entries, [(&b"a"[..], 2), (b"b", 3), (b"c", 2), (b"d", 3), (b"e", 6)]);
    assert_eq!(image.stats.inodes, 4);
}

#[test]
fn an_unreadable_file_stops_the_build_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(dir.path().join("sub/secret"), "bytes").unwrap();
    for (path, action) in [("sub/secret", "open"), ("sub", "read the directory")] {
        fs::set_permissions(dir.path().join(path), fs::Permissions::from_mode(0o300)).unwrap();
        let error = without_privileges(|| try_render(dir.path(), Encoding::Plain).1.unwrap_err());
        let expected = format!("cannot {action} {}: Permission denied", dir.path().join(path).display());
        assert!(error.to_string().starts_with(&expected), "{error}");
    }
}

/// Runs `act` on a thread whose capabilities are gone: root may read everything, and tests run as root, too.
fn without_privileges<T: Send>(act: impl FnOnce() -> T + Send) -> T {
    let dropped = || {
        let mut sets = rustix::thread::capabilities(None).unwrap();
        sets.effective = rustix::thread::CapabilitySet::empty();
        rustix::thread::set_capabilities(None, sets).unwrap();
        act()
    };
    std::thread::scope(|scope| scope.spawn(dropped).join().unwrap())
}

#[test]
fn a_source_that_is_no_directory_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    for name in ["file", "absent"] {
        let error = try_render(&dir.path().join(name), Encoding::Plain).1.unwrap_err().to_string();
        assert!(error.contains(&format!("{name}: No")), "{error}");
    }
}

/// Builds a tree of `a` and `b`, doing `change` to the directory after `a` was read for the most part and before `b` is.
fn build_with_a_change(change: impl Fn(&Path)) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(dir.path().join("a"), noise(1, 1 << 20)).unwrap();
    fs::write(dir.path().join("sub/b"), noise(2, 1000)).unwrap();
    let mut changed = false;
    let result = render(dir.path(), &Memory::default(), &options(Encoding::Plain), &mut |_| {
        if !std::mem::replace(&mut changed, true) {
            change(&dir.path().join("sub"));
        }
    });
    assert!(changed);
    result.map(|_| ()).map_err(|error| match error {
        BuildError::Changed { path, what } if path == dir.path().join("sub/b") => what,
        BuildError::Source { path, source, .. } => {
            format!("{}: {source}", path.strip_prefix(dir.path()).unwrap().display())
        }
        other => panic!("{other}"),
    })
}

#[test]
fn a_tree_that_changes_during_the_build_makes_no_image() {
    let changed = |change: &dyn Fn(&Path)| build_with_a_change(change).unwrap_err();
    assert_eq!(changed(&|sub| fs::write(sub.join("b"), noise(2, 1001)).unwrap()), "it became longer");
    assert_eq!(changed(&|sub| fs::write(sub.join("b"), noise(2, 999)).unwrap()), "it became shorter");
    assert_eq!(changed(&|sub| fs::write(sub.join("b"), "").unwrap()), "it became shorter");
    let replaced = |sub: &Path| {
        fs::write(sub.join("new"), noise(2, 1000)).unwrap();
        fs::rename(sub.join("new"), sub.join("b")).unwrap();
    };
    assert_eq!(changed(&replaced), "another file has come in its place");
    assert_eq!(
        changed(&|sub| fs::remove_file(sub.join("b")).unwrap()),
        "sub/b: No such file or directory (os error 2)"
    );
}

#[test]
fn links_and_fifos_that_come_in_the_place_of_what_was_walked_are_not_followed_or_waited_for() {
    let linked_file = |sub: &Path| {
        fs::rename(sub.join("b"), sub.join("moved")).unwrap();
        symlink("moved", sub.join("b")).unwrap();
    };
    assert!(build_with_a_change(linked_file).unwrap_err().contains("sub/b: Too many levels of symbolic links"));
    let linked_dir = |sub: &Path| {
        fs::rename(sub, sub.with_file_name("moved")).unwrap();
        symlink("moved", sub).unwrap();
    };
    assert!(build_with_a_change(linked_dir).unwrap_err().contains("sub: Not a directory"));
    let fifo = |sub: &Path| {
        fs::remove_file(sub.join("b")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, sub.join("b"), 0o600.into()).unwrap();
    };
    assert_eq!(build_with_a_change(fifo).unwrap_err(), "another file has come in its place");
    build_with_a_change(|_| {}).unwrap();
}

struct Full;

impl ChunkSink for Full {
    fn put(&self, _: Hashed<'_>) -> Result<Stored, StoreError> {
        let source = std::io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error());
        Err(StoreError::Io { action: "write", path: "blob".into(), source })
    }
}

#[test]
fn a_build_ends_at_the_first_chunk_that_cannot_be_stored() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), noise(1, 4 << 20)).unwrap();
    let mut done = 0;
    let error = render(dir.path(), &Full, &options(Encoding::Plain), &mut |at| done = at.done_bytes).unwrap_err();
    assert!(error.to_string().contains("No space left on device"), "{error}");
    assert!(done > 0);
}

#[test]
fn other_filesystems_are_left_out_and_their_directories_are_empty() {
    if !can(is_root(), "root, to mount") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    ["tree/mount", "other"].iter().for_each(|name| fs::create_dir_all(dir.path().join(name)).unwrap());
    fs::write(dir.path().join("tree/file"), "covered").unwrap();
    let other = Mounted::tmpfs(&dir.path().join("other"));
    fs::write(dir.path().join("other/file"), "from elsewhere").unwrap();
    let over_dir = Mounted::bind(&dir.path().join("other"), &dir.path().join("tree/mount"));
    let over_file = Mounted::bind(&dir.path().join("other/file"), &dir.path().join("tree/file"));
    let (memory, image) = rendered(&dir.path().join("tree"), Encoding::Plain);
    let mut expected = list_host(&dir.path().join("tree"));
    expected.remove(&b"/mount/file"[..]).unwrap();
    assert_eq!(list_image(&memory.rootfs(&image), &memory), expected);
    drop((over_file, over_dir, other));
}

struct Mounted(std::path::PathBuf);

impl Mounted {
    fn tmpfs(at: &Path) -> Self {
        rustix::mount::mount("none", at, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
        Self(at.into())
    }

    fn bind(from: &Path, at: &Path) -> Self {
        rustix::mount::mount_bind(from, at).unwrap();
        Self(at.into())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn attributes_of_files_directories_and_links_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let set = |path: &Path, key: &str| xattr::set(path, key, key.as_bytes()).is_ok();
    fs::write(dir.path().join("file"), "").unwrap();
    symlink("file", dir.path().join("link")).unwrap();
    let sets = set(dir.path(), "user.root") && set(&dir.path().join("file"), "user.file");
    if !can(is_root() && sets && set(&dir.path().join("link"), "trusted.link"), "root and a filesystem with attributes")
    {
        return;
    }
    let (memory, image) = rendered(dir.path(), Encoding::Plain);
    let rootfs = memory.rootfs(&image);
    let keys: Vec<_> = (1..=3).flat_map(|ino| rootfs.inode(ino).unwrap().xattrs()).collect();
    let expected = ["user.root", "user.file", "trusted.link"].map(|key| (key.as_bytes(), key.as_bytes()));
    assert_eq!(keys, expected);
}

#[test]
fn a_build_is_published_under_its_tag_and_replaces_the_image_before() {
    let (tree, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make_tree(tree.path());
    let store = Store::open_or_create(store.path()).unwrap();
    let tag = "v1".parse().unwrap();
    let build = || build(tree.path(), &store, &tag, &options(Encoding::Plain), &mut |_| {}).unwrap();
    let first = build();
    let entry = |digest: Digest, size| {
        format!(
            r#"{{"annotations":{{"org.opencontainers.image.ref.name":"v1"}},"digest":"sha256:{digest}","mediaType":"application/vnd.oci.image.manifest.v1+json","platform":{{"architecture":"amd64","os":"linux"}},"size":{size}}}"#
        )
    };
    let size = store.stat_blob(&first.manifest.into()).unwrap().unwrap().size;
    let index = String::from_utf8(store.index().unwrap().document().bytes().to_vec()).unwrap();
    if cfg!(target_arch = "x86_64") {
        assert_eq!(index, format!(r#"{{"manifests":[{}],"schemaVersion":2}}"#, entry(first.manifest.into(), size)));
    }
    let again = build();
    assert_eq!((again.manifest, again.replaced, again.stats.new_chunks), (first.manifest, None, 0));
    fs::write(tree.path().join("empty"), "no more").unwrap();
    assert_eq!(build().replaced, Some(first.manifest));
    assert_eq!(store.index().unwrap().document().entries().len(), 1);
    assert_sound(&store);
}

#[test]
fn a_rootfs_blob_of_wrong_bytes_gives_way_and_a_right_one_stays() {
    let (tree, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    make_tree(tree.path());
    let store = Store::open_or_create(store.path()).unwrap();
    let build =
        |tag: &str| build(tree.path(), &store, &tag.parse().unwrap(), &options(Encoding::Plain), &mut |_| {}).unwrap();
    let rootfs = store.path().join("blobs/sha256").join(build("v1").rootfs.0.to_string());
    let inode = || fs::metadata(&rootfs).unwrap().ino();
    let first = inode();
    build("v2");
    assert_eq!(inode(), first, "it was right, and stayed");
    let mut bytes = fs::read(&rootfs).unwrap();
    bytes[1000] ^= 1;
    fs::write(&rootfs, bytes).unwrap();
    build("v3");
    assert_ne!(inode(), first, "it was wrong, and gave way");
    assert_sound(&store);
}

#[test]
fn a_build_that_fails_leaves_the_store_as_it_was() {
    let (tree, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(tree.path().join("a"), noise(1, 1 << 20)).unwrap();
    let store = Store::open_or_create(store.path()).unwrap();
    let grow = |_| fs::write(tree.path().join("a"), noise(1, 1 << 21)).unwrap();
    let failed = build(tree.path(), &store, &"v1".parse().unwrap(), &options(Encoding::Plain), &mut { grow });
    assert!(matches!(failed, Err(BuildError::Changed { .. })));
    assert_eq!(fs::read_dir(store.path().join("blobs/sha256")).unwrap().count(), 0);
    assert!(store.index().unwrap().document().entries().is_empty());
    assert_sound(&store);
    assert_eq!(fs::metadata(tree.path().join("a")).unwrap().size(), 1 << 21);
}
