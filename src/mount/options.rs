//! What one may say after `-o`.

use std::str::FromStr;

use super::MountError;
use crate::tree::Verify;

/// How an image is to be mounted. Always read-only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOptions {
    /// Lets other users in. Root's mounts do by default, as every filesystem of root's does.
    pub allow_other: Option<bool>,
    /// Lets the kernel check permission bits and owners; on whenever others are let in.
    pub default_permissions: bool,
    /// Honours set-id bits; for root.
    pub suid: bool,
    /// Honours device nodes; for root.
    pub dev: bool,
    /// Lets programs be run.
    pub exec: bool,
    /// When chunks are verified.
    pub verify: Verify,
    /// How many threads answer requests.
    pub threads: usize,
    /// Readahead in KiB, if it is to be raised from the kernel's 128; for root.
    pub read_ahead_kb: Option<u32>,
}

/// Measured on two cores: a third worker takes time from the process that reads.
const THREADS: usize = 2;
const THREADS_MAX: usize = 64;

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            allow_other: None,
            default_permissions: false,
            suid: false,
            dev: false,
            exec: true,
            verify: Verify::First,
            threads: THREADS,
            read_ahead_kb: None,
        }
    }
}

impl MountOptions {
    /// Takes in a comma-separated list. Later words win. What mount(8) and fstab add for themselves is passed over.
    pub fn apply(&mut self, list: &str) -> Result<(), MountError> {
        list.split(',').filter(|word| !word.is_empty()).try_for_each(|word| self.apply_word(word))
    }

    fn apply_word(&mut self, word: &str) -> Result<(), MountError> {
        let unknown = || MountError::Option(word.into());
        match word.split_once('=') {
            Some(("verify", when)) => self.verify = when.parse().map_err(|()| unknown())?,
            Some(("threads", count)) => self.threads = threads(count).ok_or_else(unknown)?,
            Some(("read_ahead_kb", kb)) => self.read_ahead_kb = Some(kb.parse().map_err(|_| unknown())?),
            Some(_) if is_for_mount(word) => {}
            Some(_) => return Err(unknown()),
            None => self.apply_flag(word)?,
        }
        Ok(())
    }

    fn apply_flag(&mut self, word: &str) -> Result<(), MountError> {
        match word {
            "allow_other" => self.allow_other = Some(true),
            "noallow_other" => self.allow_other = Some(false),
            "default_permissions" => self.default_permissions = true,
            "suid" => self.suid = true,
            "nosuid" => self.suid = false,
            "dev" => self.dev = true,
            "nodev" => self.dev = false,
            "exec" => self.exec = true,
            "noexec" => self.exec = false,
            _ if is_for_mount(word) => {}
            _ => return Err(MountError::Option(word.into())),
        }
        Ok(())
    }

    /// Whether others are let in, for root or for an ordinary user.
    pub(super) fn lets_others_in(&self, root: bool) -> bool {
        self.allow_other.unwrap_or(root)
    }

    /// Whether the kernel checks permissions, for root or for an ordinary user.
    pub(super) fn checks_permissions(&self, root: bool) -> bool {
        self.default_permissions || self.lets_others_in(root)
    }
}

fn threads(count: &str) -> Option<usize> {
    count.parse().ok().filter(|count| (1..=THREADS_MAX).contains(count))
}

/// Words that fstab, mount(8) and systemd use among themselves, and those that say what is so anyhow. `rw` is among
/// them because mount(8) says it whenever nobody says `ro`.
fn is_for_mount(word: &str) -> bool {
    const WORDS: &[&str] = &[
        "ro",
        "rw",
        "defaults",
        "auto",
        "noauto",
        "user",
        "nouser",
        "users",
        "owner",
        "group",
        "nofail",
        "_netdev",
        "atime",
        "noatime",
        "relatime",
        "norelatime",
        "nodiratime",
        "async",
        "sync",
    ];
    WORDS.contains(&word) || word.starts_with("x-") || word.starts_with("comment=")
}

impl FromStr for Verify {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "first" => Ok(Self::First),
            "always" => Ok(Self::Always),
            "off" => Ok(Self::Off),
            _ => Err(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fstab_says_is_understood() {
        let mut options = MountOptions::default();
        options.apply("rw,nofail,x-systemd.automount,suid,dev,allow_other,verify=always,threads=4").unwrap();
        assert!(options.suid && options.dev && options.lets_others_in(false) && options.checks_permissions(false));
        assert_eq!((options.verify, options.threads), (Verify::Always, 4));
    }

    #[test]
    fn words_without_meaning_are_refused() {
        for bad in ["alow_other", "verify=sometimes", "threads=0", "threads=x", "uid=5"] {
            assert!(MountOptions::default().apply(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn others_are_let_in_by_root_alone_unless_somebody_says_so() {
        let mut options = MountOptions::default();
        assert!(options.lets_others_in(true) && !options.lets_others_in(false));
        options.apply("noallow_other").unwrap();
        assert!(!options.lets_others_in(true));
    }
}
