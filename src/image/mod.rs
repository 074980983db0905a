//! An image of a store, by the name that a person writes.

mod find;
mod platform;

pub use self::{
    find::{Found, find},
    platform::{PlatformError, WantedPlatform, architecture},
};
pub use crate::graph::ImageError;
