//! A store manager for puzzlefs images.
//!
//! `ARCHITECTURE.md` has the map; the layers, from the ground up:
//! [`name`], [`format`] and [`codec`], [`store`], [`graph`] and [`tree`], [`gc`], then one room an act.

pub mod build;
pub mod check;
pub mod codec;
pub mod delete;
pub mod explain;
pub mod format;
pub mod fuse;
pub mod gc;
pub mod graph;
pub mod image;
pub mod mount;
pub mod name;
pub mod observe;
pub mod pin;
pub mod prune;
pub mod store;
pub mod tree;
pub mod undo;
