//! The collector: gathers facts, plans, and applies the plan while looking again at what it stands on.
//!
//! Invariant: a blob leaves `blobs/` only if a complete walk from every root did not come to it, and leaves quarantine
//! only if a second one, no older than the last change of the index and the leases, did not either.
//! `docs/deletion.md` has the protocol and its residual risks.

mod apply;
mod facts;
mod hold;
mod plan;
mod report;

pub use apply::{apply, collect};
pub use facts::{Facts, GcError, Marks, Roots, Scope, check_collectable};
pub use hold::{Evidence, Hold};
pub use plan::{GcPlan, Holder, KeepReason, PlannedBlob, Policy, Verdict, plan};
pub use report::{GcReport, GcSummary, HeldBytes};
