//! One image from its tag to the end of its mount.
//!
//! The lease is taken before the tag is resolved and under the store's shared lock, so there is no moment in which a
//! collector could find the image unused; it is held until the kernel has let go of the mount.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
    low_level::emulate_default_handler,
};

use super::{
    MountError, MountOptions, attach,
    detach::{WhenBusy, detach},
    preflight,
};
use crate::{
    format::Rootfs,
    fuse::{Image, Session},
    graph::{self, ImageError, LoadedImage},
    image::{self, WantedPlatform},
    name::{ChunkId, Digest, ImageRef, ManifestId, RootfsId},
    store::{Lease, LeaseKind, LeaseRecord, Store, StoreError},
    tree::{ChunkReader, ChunkSource, DamageObserver, TreeError, View},
};

/// What is to be mounted where.
#[derive(Debug, Clone)]
pub struct MountRequest {
    /// The image.
    pub image: ImageRef,
    /// Which one of an index.
    pub platform: WantedPlatform,
    /// The directory.
    pub mountpoint: PathBuf,
    /// How.
    pub options: MountOptions,
}

/// An image in the mount table. Nothing answers for it before [`Mounted::serve`].
pub struct Mounted {
    session: Session,
    held: HeldLease,
    mountpoint: PathBuf,
    pins: Pins,
}

/// The blobs that get a second name, so that the mount survives when a foreign tool unlinks the first.
#[derive(Clone)]
struct Pins {
    store: Arc<Store>,
    manifest: ManifestId,
    rootfs_id: RootfsId,
    rootfs: Arc<Rootfs>,
}

/// The highest "nice" value. It holds for the calling thread alone, on Linux.
const LEAST_URGENT: i32 = 19;

impl Pins {
    /// Makes them, in a thread of its own: it may take a second, and a mount works without.
    fn make(self) -> Option<thread::JoinHandle<()>> {
        // Without the thread, or where a link is refused, the mount is only less safe from other tools.
        let make = move || {
            // Whoever reads from the new mount goes first; where there is time to spare, this takes as long as ever.
            let _ = rustix::process::nice(LEAST_URGENT);
            self.link(&self.store);
        };
        thread::Builder::new().name("pfs-pins".into()).spawn(make).ok()
    }

    fn link(&self, store: &Store) {
        let own = [self.manifest.0, self.rootfs_id.0];
        let metadata = self.rootfs.metadata_blobs().iter().copied();
        let chunks = self.rootfs.chunks().into_iter().map(Digest::from);
        let blobs: Vec<Digest> = own.into_iter().chain(metadata).chain(chunks).collect();
        let _ = store.link_pins(&self.manifest.0, &blobs);
    }
}

/// A lease whose file goes when it does; the store that it is in.
struct HeldLease {
    place: Arc<Mutex<Place>>,
    record: LeaseRecord,
    manifest: Option<Digest>,
    /// The manifest and the rootfs, kept open: that shows other programs, and other users' pfs, what is mounted even where
    /// somebody has removed the lease.
    documents: Vec<File>,
}

/// Where the lease is: in the store as it was opened, or as it was opened again when somebody had put another in its place.
struct Place {
    store: Arc<Store>,
    lease: Option<Lease>,
}

impl Drop for HeldLease {
    fn drop(&mut self) {
        let mut place = lock(&self.place);
        let Some(lease) = place.lease.take() else { return };
        // Pins or a lease file that stay are dead from now on, and any collector removes them.
        if let Some(manifest) = self.manifest {
            let _ = place.store.remove_pins_of_ending(&manifest, &lease);
        }
        let _ = place.store.release(lease);
    }
}

fn lock(place: &Mutex<Place>) -> MutexGuard<'_, Place> {
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How often a mount looks whether its lease is still there.
const LEASE_PERIOD: Duration = Duration::from_secs(1);

/// Makes the lease and the pins anew while the mount is served, where somebody has removed them: `rsync --delete` of an older
/// copy of the store, `rm -r .pfs`.
struct LeaseKeeper {
    place: Arc<Mutex<Place>>,
    record: LeaseRecord,
    pins: Pins,
}

impl LeaseKeeper {
    /// Until the other end of the channel is dropped.
    fn start(self, ended: Receiver<()>) -> Option<thread::JoinHandle<()>> {
        let keep = move || {
            while ended.recv_timeout(LEASE_PERIOD) == Err(RecvTimeoutError::Timeout) {
                // Where it cannot be made now, as in a store that is being put back, it can be in a second.
                let _ = self.restore();
            }
        };
        // Without the thread, the mount is only less safe from such programs.
        thread::Builder::new().name("pfs-lease".into()).spawn(keep).ok()
    }

    fn restore(&self) -> Result<(), StoreError> {
        let mut place = lock(&self.place);
        // Opened anew, because a directory that is held open may have been removed.
        let store = Arc::new(Store::open(place.store.path())?);
        if place.lease.as_ref().is_none_or(|lease| lease.is_in_place(&store)) {
            return Ok(());
        }
        let lease = store.take_lease(&store.lock_shared()?, &self.record)?;
        place.lease = Some(lease);
        place.store = store.clone();
        drop(place);
        self.pins.link(&store);
        Ok(())
    }
}

/// The chunks of a store, wherever in it they are.
struct StoreChunks(Arc<Store>);

impl ChunkSource for StoreChunks {
    fn open(&self, chunk: &ChunkId) -> io::Result<File> {
        self.0.open_blob(&chunk.0).map_err(|error| match error.is_not_found() {
            true => io::Error::new(io::ErrorKind::NotFound, error),
            false => io::Error::other(error),
        })
    }
}

/// Mounts an image. `now` goes into the lease; `on_damage` hears of each damaged chunk once.
pub fn mount(request: &MountRequest, now: jiff::Timestamp, on_damage: DamageObserver) -> Result<Mounted, MountError> {
    let mountpoint = preflight::mountpoint(&request.mountpoint)?;
    preflight::fuse(rustix::process::geteuid().is_root())?;
    let store = Arc::new(Store::open(&request.image.store)?);
    let source = ImageRef { store: store.path().into(), selector: request.image.selector.clone() }.to_string();
    let (mut held, image) = lease_and_load_settled(&store, request, &mountpoint, now)?;
    let (manifest, rootfs_id) = (image.manifest, image.rootfs_id);
    held.documents = [manifest.0, rootfs_id.0].iter().filter_map(|blob| store.open_blob(blob).ok()).collect();
    let view = image.rootfs.map_err(|cause| MountError::Tree { image: source.clone(), source: cause })?;
    let pins = Pins { store: store.clone(), manifest, rootfs_id, rootfs: view.rootfs().clone() };
    let chunks = ChunkReader::new(Box::new(StoreChunks(store)), request.options.verify, on_damage);
    let image = Image::new(Arc::new(view), Arc::new(chunks.reading_ahead()));
    let session = attach::attach(image, &mountpoint, &source, &request.options)?;
    let mounted = Mounted { session, held, mountpoint, pins };
    mounted.prepare(&request.options)?;
    Ok(mounted)
}

/// skopeo writes manifests in place, so one that is damaged is looked at again for a third of a second. The lock is not held
/// in the pauses.
fn lease_and_load_settled(
    store: &Arc<Store>,
    request: &MountRequest,
    mountpoint: &Path,
    now: jiff::Timestamp,
) -> Result<(HeldLease, LoadedImage<Result<View, TreeError>>), MountError> {
    let mut pause = FIRST_PAUSE;
    for _ in 1..LOADS {
        match lease_and_load(store, request, mountpoint, now) {
            Err(MountError::Image(ImageError::Store(StoreError::Damaged { .. }) | ImageError::Manifest { .. })) => {
                thread::sleep(pause);
            }
            loaded => return loaded,
        }
        pause *= 2;
    }
    lease_and_load(store, request, mountpoint, now)
}

const LOADS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(5);

fn lease_and_load(
    store: &Arc<Store>,
    request: &MountRequest,
    mountpoint: &Path,
    now: jiff::Timestamp,
) -> Result<(HeldLease, LoadedImage<Result<View, TreeError>>), MountError> {
    let guard = store.lock_shared()?;
    let mut record = LeaseRecord::of_this_process(LeaseKind::Mount, now);
    record.mountpoint = Some(mountpoint.into());
    let lease = Some(store.take_lease(&guard, &record)?);
    let place = Arc::new(Mutex::new(Place { store: store.clone(), lease }));
    let mut held = HeldLease { place, record: record.clone(), manifest: None, documents: Vec::new() };
    let index = store.index()?;
    // So that a later collector knows these blobs for published ones. Not being able to note it only makes it patient.
    let _ = store.log_index(&index);
    let found = image::find(&**store, index.document(), &request.image.selector, &request.platform)?;
    let image = graph::load_image_into(&**store, &found.digest, found.kind, View::new)?;
    record.tag =
        found.places.iter().find_map(|at| index.document().entries()[*at].tag.as_ref()).map(ToString::to_string);
    record.manifest = Some(image.manifest.0);
    record.rootfs = Some(image.rootfs_id.0);
    if let Some(lease) = &lock(&held.place).lease {
        lease.update(&guard, &record)?;
    }
    // Not sooner: to remove pins it would want the lock that is held here.
    held.manifest = record.manifest;
    held.record = record;
    Ok((held, image))
}

impl Mounted {
    /// Where it is mounted, absolute.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    fn prepare(&self, options: &MountOptions) -> Result<(), MountError> {
        match options.read_ahead_kb {
            Some(kb) => attach::raise_read_ahead(&self.mountpoint, kb),
            None => Ok(()),
        }
    }

    /// Answers the kernel until the image is unmounted, by whomever. Calls `on_ready` once the mount answers; if it or the
    /// first look at the mount fails, unmounts. SIGTERM, SIGINT and SIGHUP unmount; where files are open, the mount goes out
    /// of sight and ends with the last of them, and a second signal ends the process at once.
    pub fn serve(self, on_ready: impl FnOnce() -> Result<(), MountError>) -> Result<(), MountError> {
        let Self { session, held, mountpoint, pins } = self;
        let (ending, ended) = mpsc::channel();
        let keeper = LeaseKeeper { place: held.place.clone(), record: held.record.clone(), pins: pins.clone() };
        let signals = unmount_on_signals(&mountpoint)?;
        let serving = thread::Builder::new().name("pfs-serve".into()).spawn(move || session.run());
        let serving = serving.map_err(MountError::system("start a thread"))?;
        let ready = fs::metadata(&mountpoint).map_err(MountError::system("look at the mount")).and_then(|_| on_ready());
        let keeping = keeper.start(ended);
        let pinning = match ready {
            Ok(()) => pins.make(),
            Err(_) => {
                detach(&mountpoint, WhenBusy::Detach)?;
                None
            }
        };
        let served = serving.join().map_err(|_| io::Error::other("a thread panicked")).flatten();
        signals.close();
        drop(ending);
        let _ = pinning.map(thread::JoinHandle::join);
        let _ = keeping.map(thread::JoinHandle::join);
        drop(held);
        ready.and(served.map_err(MountError::system("serve the mount")))
    }
}

fn unmount_on_signals(mountpoint: &Path) -> Result<signal_hook::iterator::Handle, MountError> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(MountError::system("handle signals"))?;
    let handle = signals.handle();
    let mountpoint = mountpoint.to_owned();
    let unmount = move || {
        let mut detached = false;
        for signal in &mut signals {
            // A mount that is gone already has ended the session, and with it this process, in a moment.
            if detached
                || detach(&mountpoint, WhenBusy::Refuse).is_err() && detach(&mountpoint, WhenBusy::Detach).is_err()
            {
                let _ = emulate_default_handler(signal);
            }
            detached = true;
        }
    };
    thread::Builder::new().name("pfs-signals".into()).spawn(unmount).map_err(MountError::system("start a thread"))?;
    Ok(handle)
}
