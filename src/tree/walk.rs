//! All paths of a tree, one after the other.

use super::view::{Node, ROOT_INO, View};

/// One path and what is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The absolute path as bytes, `/` for the root.
    pub path: Vec<u8>,
    /// What is there.
    pub node: Node,
}

/// The iterator over all paths: a directory before what is in it, siblings sorted by name. Its depth costs no stack.
pub struct Walk<'a> {
    view: &'a View,
    path: Vec<u8>,
    open: Vec<Open>,
    begun: bool,
}

/// A directory that the walk is in.
struct Open {
    ino: u64,
    next: usize,
    /// The length of its path, without a slash at the end.
    path_len: usize,
}

impl<'a> Walk<'a> {
    pub(super) fn new(view: &'a View) -> Self {
        Self { view, path: Vec::new(), open: Vec::new(), begun: false }
    }

    fn begin(&mut self) -> Option<Step> {
        self.begun = true;
        self.open.push(Open { ino: ROOT_INO, next: 0, path_len: 0 });
        Some(Step { path: b"/".to_vec(), node: self.view.node(ROOT_INO)? })
    }
}

impl Iterator for Walk<'_> {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if !self.begun {
            return self.begin();
        }
        loop {
            let top = self.open.last_mut()?;
            self.path.truncate(top.path_len);
            let listing = self.view.listing(top.ino)?;
            if top.next == listing.len() {
                self.open.pop();
                continue;
            }
            let entry = listing.entry(top.next);
            top.next += 1;
            let Some(node) = self.view.child(entry) else { continue };
            self.path.push(b'/');
            self.path.extend_from_slice(entry.name);
            if self.view.parent(node.ino).is_some() {
                self.open.push(Open { ino: node.ino, next: 0, path_len: self.path.len() });
            }
            return Some(Step { path: self.path.clone(), node });
        }
    }
}
