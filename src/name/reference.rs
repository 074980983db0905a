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

/// What is known of the machine that a reference is read on. This room opens no files.
pub struct Surroundings<'a> {
    /// The store that a bare tag is looked for in.
    pub store: Option<&'a Path>,
    /// Whether a path is a store.
    pub is_store: &'a dyn Fn(&Path) -> bool,
    /// Whether a path is a directory.
    pub is_directory: &'a dyn Fn(&Path) -> bool,
}

impl ImageRef {
    /// Reads a reference to an image: `STORE:TAG`, `STORE@DIGEST`, or `TAG` or `@DIGEST` where a store is known.
    ///
    /// Stores and tags may have colons of their own. Of all ways to split the text, the first whose left part is a store
    /// counts. If there is none, the text names something in the known store, unless it begins like a path (`/`, `./`,
    /// `../`). Without a known store it is split at the last colon.
    pub fn parse(text: &str, around: &Surroundings<'_>) -> Result<Self, ReferenceError> {
        match Self::in_existing_store(text, around)? {
            Some(found) => Ok(found),
            None => Self::split_last(text),
        }
    }

    /// Reads a reference to an image that is about to be made, also in a store that is not there yet: one whose parent is a
    /// directory. `library/app:1.0` makes a tag in the known store unless there is a directory `library`.
    pub fn parse_new(text: &str, around: &Surroundings<'_>) -> Result<Self, ReferenceError> {
        let is_beside = |store: &Path| store.parent().is_some_and(|parent| (around.is_directory)(parent));
        let is_new = text.rsplit_once(':').is_some_and(|(store, _)| store.contains('/') && is_beside(Path::new(store)));
        let known = Surroundings { store: around.store.filter(|_| !is_new), ..*around };
        if let Some(found) = Self::in_existing_store(text, &known)? {
            return Ok(found);
        }
        // A parent with a colon in its name, or the first colon: further colons are the tag's.
        let splits = || splits(text).filter(|split| split.mark == ':');
        let has_colon = |split: &Split<'_>| {
            let parent = Path::new(split.store).parent().and_then(Path::to_str);
            parent.is_some_and(|parent| parent.contains(':') && (around.is_directory)(Path::new(parent)))
        };
        let split = splits().find(has_colon).or_else(|| splits().next());
        split.ok_or_else(|| ReferenceError::NoStore(text.into()))?.image()
    }

    /// The image, if a part of the text is a store, or a store is known and the text does not begin like a path.
    fn in_existing_store(text: &str, around: &Surroundings<'_>) -> Result<Option<Self>, ReferenceError> {
        let is_known = |store: &str| (around.is_store)(Path::new(store)) || around.store == Some(Path::new(store));
        if let Some(split) = splits(text).find(|split| split.image().is_ok() && is_known(split.store)) {
            return split.image().map(Some);
        }
        match around.store {
            Some(store) if !["/", "./", "../"].iter().any(|start| text.starts_with(start)) => {
                let selector = selector(text)?;
                Ok(Some(Self { store: store.into(), selector }))
            }
            _ => Ok(None),
        }
    }

    fn split_last(text: &str) -> Result<Self, ReferenceError> {
        let at = splits(text).filter(|split| split.mark == '@').last();
        let last = at.filter(|split| split.rest.starts_with("sha256:") || split.image().is_ok());
        let last = last.or_else(|| splits(text).filter(|split| split.mark == ':').last());
        last.ok_or_else(|| ReferenceError::NoStore(text.into()))?.image()
    }
}

/// A way to split a reference in two.
struct Split<'t> {
    store: &'t str,
    mark: char,
    rest: &'t str,
}

impl Split<'_> {
    fn image(&self) -> Result<ImageRef, ReferenceError> {
        let selector = match self.mark {
            '@' => Selector::Digest(digest_prefix(self.rest.strip_prefix("sha256:").unwrap_or(self.rest))?),
            _ => Selector::Tag(self.rest.parse()?),
        };
        Ok(ImageRef { store: self.store.into(), selector })
    }
}

/// All ways to split a text, from the left.
fn splits(text: &str) -> impl Iterator<Item = Split<'_>> {
    let marks = text.match_indices([':', '@']).filter(|(at, _)| *at > 0);
    marks.map(|(at, mark)| Split {
        store: &text[..at],
        mark: if mark == "@" { '@' } else { ':' },
        rest: &text[at + 1..],
    })
}

fn selector(text: &str) -> Result<Selector, ReferenceError> {
    let digest = text.strip_prefix("sha256:").or_else(|| Some(text.strip_prefix('@')?.trim_start_matches("sha256:")));
    match digest {
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

/// Whether a text could be the first digits of a digest.
pub fn is_digest_prefix(text: &str) -> bool {
    digest_prefix(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(store: &str, tag: &str) -> ImageRef {
        ImageRef { store: store.into(), selector: Selector::Tag(tag.parse().unwrap()) }
    }

    fn digest(store: &str, prefix: &str) -> ImageRef {
        ImageRef { store: store.into(), selector: Selector::Digest(prefix.into()) }
    }

    /// Reads a text where these are the stores, and these other directories exist.
    fn read(text: &str, known: Option<&str>, stores: &[&str], new: bool) -> Result<ImageRef, ReferenceError> {
        let is_store = |path: &Path| stores.iter().any(|store| Path::new(store) == path);
        let is_directory =
            |path: &Path| ["", "/srv", "/srv/a:b", "library"].iter().any(|there| Path::new(there) == path);
        let around = Surroundings { store: known.map(Path::new), is_store: &is_store, is_directory: &is_directory };
        if new { ImageRef::parse_new(text, &around) } else { ImageRef::parse(text, &around) }
    }

    #[test]
    fn the_part_that_is_a_store_decides() {
        let stores = ["/srv/oci", "/srv/a:b/oci", "st"];
        let read = |text| read(text, None, &stores, false);
        assert_eq!(read("/srv/oci:app"), Ok(tag("/srv/oci", "app")));
        assert_eq!(read("/srv/oci:docker.io/library/app:1.0"), Ok(tag("/srv/oci", "docker.io/library/app:1.0")));
        assert_eq!(read("/srv/a:b/oci:app"), Ok(tag("/srv/a:b/oci", "app")));
        assert_eq!(read("st@sha256:abcdef"), Ok(digest("st", "abcdef")));
        assert_eq!(read("st@abcdef012345"), Ok(digest("st", "abcdef012345")));
        assert_eq!(read("st:app@1"), Ok(tag("st", "app@1")));
        assert_eq!(read("/gone/oci:app"), Ok(tag("/gone/oci", "app")), "which is for others to find out");
    }

    #[test]
    fn a_reference_in_full_wins_over_the_known_store() {
        let stores = ["/srv/oci", "st"];
        for new in [false, true] {
            let read = |text| read(text, Some("/srv/oci"), &stores, new);
            assert_eq!(read("st:app"), Ok(tag("st", "app")));
            assert_eq!(read("app:v1"), Ok(tag("/srv/oci", "app:v1")));
            assert_eq!(read("/srv/oci:app"), Ok(tag("/srv/oci", "app")));
            assert_eq!(read("/srv/new:app"), Ok(tag("/srv/new", "app")));
        }
        let read = |text, new| read(text, Some("/srv/oci"), &stores, new);
        assert_eq!(read("sha256:012345", false), Ok(digest("/srv/oci", "012345")));
        assert_eq!(read("@012345", false), Ok(digest("/srv/oci", "012345")));
        assert_eq!(read("library/app:1.0", false), Ok(tag("/srv/oci", "library/app:1.0")));
        assert_eq!(read("library/app:1.0", true), Ok(tag("library/app", "1.0")), "library is a directory");
        assert_eq!(read("else/app:1.0", true), Ok(tag("/srv/oci", "else/app:1.0")));
    }

    #[test]
    fn a_new_store_is_split_off_at_the_first_colon() {
        let read = |text| read(text, None, &[], true);
        assert_eq!(read("st:library/nginx:1.2"), Ok(tag("st", "library/nginx:1.2")));
        assert_eq!(read("/srv/new:app"), Ok(tag("/srv/new", "app")));
        assert_eq!(read("/srv/a:b/oci:app:1"), Ok(tag("/srv/a:b/oci", "app:1")), "its parent has the colon");
    }

    #[test]
    fn what_names_nothing_is_refused() {
        for bad in ["app", ":app", "/srv/oci:", "/srv/oci@sha256:xyz", "/srv/oci@sha256:ab", "/srv/oci:a\nb"] {
            assert!(read(bad, None, &[], false).is_err(), "{bad:?}");
            assert!(read(bad, None, &["/srv/oci"], false).is_err(), "{bad:?}");
        }
    }
}
