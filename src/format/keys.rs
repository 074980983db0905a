//! The keys of JSON objects, for readers that must not take less for needed than another reader would.
//!
//! Go's decoder takes `"Layers"` for `"layers"`, and of two keys that it takes for one the last. So a key that differs from a
//! specified one in case only makes it unknown what a document says, and is an error.

use std::{borrow::Cow, fmt};

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

/// Calls `take` with the place of each of these keys that the object has; it must take the value. Fails where one stands
/// there twice, or another one differs from one of them in case only.
pub(super) fn each_key<'de, A: MapAccess<'de>, const N: usize>(
    mut fields: A,
    keys: &[&str; N],
    mut take: impl FnMut(usize, &mut A) -> Result<(), A::Error>,
) -> Result<(), A::Error> {
    let mut seen = [false; N];
    while let Some(Key(name)) = fields.next_key()? {
        match keys.iter().position(|key| *key == name) {
            Some(at) if std::mem::replace(&mut seen[at], true) => {
                return Err(A::Error::custom(format_args!("duplicate field `{name}`")));
            }
            Some(at) => take(at, &mut fields)?,
            None => {
                if let Some(key) = near_miss(&name, keys) {
                    return Err(A::Error::custom(near_miss_problem(&name, key)));
                }
                fields.next_value::<IgnoredAny>()?;
            }
        }
    }
    Ok(())
}

/// A key, not copied where it stands in the text as it is.
struct Key<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(KeyVisitor)
    }
}

struct KeyVisitor;

impl<'de> Visitor<'de> for KeyVisitor {
    type Value = Key<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a key")
    }

    fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
        Ok(Key(name.into()))
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(Key(Cow::Owned(name.into())))
    }
}

/// The one of these keys that another one differs from in case only, so that Go's decoder takes it for that key.
fn near_miss<'k>(name: &str, keys: &[&'k str]) -> Option<&'k str> {
    // The two letters outside ASCII that fold to letters in it.
    let fold = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    };
    let differs = |key: &str| key != name && name.chars().map(fold).eq(key.chars().map(fold));
    keys.iter().find(|key| differs(key)).copied()
}

fn near_miss_problem(name: &str, key: &str) -> String {
    format!("the key {name:?} differs from {key:?} only in case; some programs read it, so what is needed is unknown")
}
