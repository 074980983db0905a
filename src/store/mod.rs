//! A store on disk: an OCI layout, and the files of ours beside it. The only room that touches a store's disk.
//!
//! What other tools own (`index.json`, `blobs/`) is read with suspicion and edited without loss; what is ours lies in
//! `.pfs/` and nowhere else. `docs/deletion.md` describes the files, `docs/format.md` the layout.
//!
//! Blobs leave through [`Store::condemn`], [`Store::purge`] and [`Store::remove_wrong_content`], each of which demands
//! an [`ExclusiveGuard`]; only `gc` and `check` call them.

mod blobs;
mod build_session;
mod damaged;
mod disk;
mod error;
mod foreign;
mod index;
mod index_log;
mod index_replace;
mod index_restore;
mod index_swap;
mod inventory;
mod keep;
mod layout;
mod lease;
mod lock;
mod mount_pins;
mod mount_table;
mod neighbours;
mod pages;
mod partial;
mod processes;
mod publisher;
mod quarantine;
mod reference_cache;
mod sharing;
mod spool;
mod usage;

pub use blobs::{BlobStat, Put, Stored};
pub use build_session::{BuildSession, Published, StaleStaging};
pub use damaged::{Aside, RightCopy, WrongContent};
pub use error::StoreError;
pub use foreign::ForeignTraces;
pub use index::IndexSnapshot;
pub use index_log::{IndexNote, TagTimes};
pub use index_swap::LostIndex;
pub use inventory::{Inventory, Stranger};
pub use keep::Pin;
pub use layout::Store;
pub use lease::{Forgotten, Lease, LeaseKind, LeaseRecord, LeaseState};
pub use lock::{CollectorGuard, ExclusiveGuard, SharedGuard, Turn};
pub use mount_pins::{PinCount, PinsRemoved, StalePin, StalePins};
pub use processes::{ProcessEvidence, ProcessUse};
pub use quarantine::QuarantinedBlob;
pub use reference_cache::{FileStamp, Links, Remembered};
pub use usage::{Place, Usage, UsedFile};
