//! How people name an image: `STORE:TAG`, `STORE@sha256:PREFIX`, or a bare tag where the store is known.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

/// A tag: the value of the annotation `org.opencontainers.image.ref.name`. Any text without control characters that
/// is not empty, because other tools write full image names there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(String);

/// Why a text is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// A tag that is empty or holds control characters.
    #[error("{0:?} is not a tag: a tag is not empty and has no control characters")]
    Tag(String),
    /// A digest or digest prefix that is not 6 to 64 lower-case hexadecimal digits.
    #[error("{0:?} is not a digest prefix: write 6 to 64 lower-case hexadecimal digits after sha256:")]
    DigestPrefix(String),
    /// A reference without a store, where no store is known.
    #[error("{0:?} names no store: write STORE:TAG, or give the store with -s STORE or PFS_STORE")]
    NoStore(String),
}

impl Tag {
    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() || text.chars().any(char::is_control) {
            return Err(ReferenceError::Tag(text.into()));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What picks an image inside its store.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Selector {
    /// By tag.
    Tag(Tag),
    /// By the first digits of the manifest's digest, 6 to 64 of them, lower case.
    Digest(String),
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => write!(f, "{tag}"),
            Self::Digest(prefix) => write!(f, "sha256:{prefix}"),
        }
    }
}

/// A store and what to pick in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRef {
    /// The layout directory.
    pub store: PathBuf,
    /// The image in it.
    pub selector: Selector,
}

impl ImageRef {
    /// Parses `STORE:TAG` (split at the last colon) or `STORE@sha256:PREFIX`. With `store` given, the whole text is
    /// a tag, or `@sha256:PREFIX` / `sha256:PREFIX`; a text that starts with that store and a colon or `@` is taken
    /// apart all the same.
    pub fn parse(text: &str, store: Option<&Path>) -> Result<Self, ReferenceError> {
        if let Some(store) = store {
            let own = store.to_str().and_then(|store| text.strip_prefix(store));
            if !own.is_some_and(|rest| rest.starts_with([':', '@'])) {
                return Ok(Self { store: store.into(), selector: selector(text.strip_prefix('@').unwrap_or(text))? });
            }
        }
        let no_store = || ReferenceError::NoStore(text.into());
        let (store, picked) = match text.rsplit_once("@sha256:") {
            Some((store, prefix)) => (store, Selector::Digest(digest_prefix(prefix)?)),
            None => {
                let (store, tag) = text.rsplit_once(':').ok_or_else(no_store)?;
                (store, Selector::Tag(tag.parse()?))
            }
        };
        if store.is_empty() {
            return Err(no_store());
        }
        Ok(Self { store: store.into(), selector: picked })
    }
}

fn selector(text: &str) -> Result<Selector, ReferenceError> {
    match text.strip_prefix("sha256:") {
        Some(prefix) => Ok(Selector::Digest(digest_prefix(prefix)?)),
        None => Ok(Selector::Tag(text.parse()?)),
    }
}

fn digest_prefix(text: &str) -> Result<String, ReferenceError> {
    let hex = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if !hex || !(6..=64).contains(&text.len()) {
        return Err(ReferenceError::DigestPrefix(text.into()));
    }
    Ok(text.into())
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if matches!(self.selector, Selector::Tag(_)) { ':' } else { '@' };
        write!(f, "{}{mark}{}", self.store.display(), self.selector)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(store: &str, tag: &str) -> ImageRef {
        ImageRef { store: store.into(), selector: Selector::Tag(tag.parse().unwrap()) }
    }

    #[test]
    fn references_split_at_the_last_colon() {
        assert_eq!(ImageRef::parse("/srv/oci:app", None), Ok(tag("/srv/oci", "app")));
        assert_eq!(ImageRef::parse("/srv/a:b/oci:app", None), Ok(tag("/srv/a:b/oci", "app")));
        assert_eq!(
            ImageRef::parse("/srv/oci@sha256:abcdef", None).unwrap().selector,
            Selector::Digest("abcdef".into())
        );
    }

    #[test]
    fn a_known_store_leaves_the_text_to_the_tag() {
        let store = Some(Path::new("/srv/oci"));
        assert_eq!(ImageRef::parse("app:v1", store), Ok(tag("/srv/oci", "app:v1")));
        assert_eq!(ImageRef::parse("/srv/oci:app", store), Ok(tag("/srv/oci", "app")));
        assert_eq!(ImageRef::parse("sha256:012345", store).unwrap().selector, Selector::Digest("012345".into()));
    }

    #[test]
    fn what_names_nothing_is_refused() {
        for bad in ["app", ":app", "/srv/oci:", "/srv/oci@sha256:xyz", "/srv/oci@sha256:ab", "/srv/oci:a\nb"] {
            assert!(ImageRef::parse(bad, None).is_err(), "{bad:?}");
        }
    }
}
