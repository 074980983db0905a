//! A store manager for puzzlefs images.
//!
//! `ARCHITECTURE.md` has the map; the layers, from the ground up:
//! [`name`], [`format`] and [`codec`], [`store`], [`graph`] and [`tree`], [`gc`] and [`fuse`], then one room an act.

pub mod build;
pub mod codec;
pub mod format;
pub mod graph;
pub mod name;
pub mod tree;
pub mod store;
