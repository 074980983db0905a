//! How the library tells what it is doing, without printing anything.

/// Something that happens during long work.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A stretch of work begins, as in "reading the index".
    Phase(&'a str),
    /// So many of so many are done; 0 for a total that is not known.
    Progress {
        /// How many are done.
        done: u64,
        /// Of how many.
        total: u64,
    },
    /// Something that a person should know, and that stops nothing.
    Notice(String),
}

/// Listens to long work.
pub trait Observer: Sync {
    /// Takes one event. It must not block for long: the work waits for it.
    fn event(&self, event: Event<'_>);
}

/// Listens to nothing.
#[derive(Debug, Clone, Copy)]
pub struct Silent;

impl Observer for Silent {
    fn event(&self, _event: Event<'_>) {}
}
