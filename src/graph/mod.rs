//! What refers to what: from the entries of an index over manifests and rootfs blobs down to the chunks.
//!
//! [`walk`] is complete or it fails: nothing that it cannot read is passed over, because what it does not find is what
//! a collector frees. The one thing that may be missing is a child of an index or a subject, which OCI allows.

mod closure;
mod dangling;
mod image;
mod references;
mod source;
mod walk;

pub use closure::{Closure, RefCounts};
pub use dangling::dangling;
pub use image::{ImageError, LoadedImage, Picked, load_image, load_image_into, pick};
pub use references::{Blobs, Form, Reference, References, Role, Shape};
pub use source::{Afresh, BlobSource, DocumentProblem};
pub use walk::{ImageGraph, Node, NodeKind, Root, RootOrigin, WalkError, WalkProblem, walk, walk_with};
