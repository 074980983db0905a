//! The kernel's door to an image. The only room that names `fuser`; it calls `tree` and replies.

mod adapter;
mod answers;
mod errno;
mod push;
mod session;

pub use adapter::Image;
pub use session::{AccessList, HelperOptions, Session};
