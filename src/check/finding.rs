//! One thing that a check has found.

use crate::graph::WalkError;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; nothing is lost.
    Notice,
    /// Something that an image needs is missing or wrong.
    Damage,
}

/// Something that a check has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is about, with the way from the tag to it.
    pub subject: String,
    /// What is wrong with it.
    pub problem: String,
}

impl Finding {
    pub(super) fn unreadable(error: &WalkError) -> Self {
        Self { severity: Severity::Damage, subject: error.path.join(" -> "), problem: error.cause.to_string() }
    }
}
