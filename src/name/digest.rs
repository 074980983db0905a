//! Sha-256 digests, the only names that blobs have.

use std::{
    fmt,
    hash::{Hash, Hasher},
    str::FromStr,
};

use sha2::Digest as _;

/// A sha-256 digest: 32 bytes. Prints as 64 lower-case hexadecimal digits, without the `sha256:` of OCI texts.
/// In JSON it has the OCI form.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest([u8; 32]);

impl Hash for Digest {
    /// All of it counts, as words: a hasher takes four of these sooner than 32 bytes and their number.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let (words, _) = self.0.as_chunks::<8>();
        words.iter().for_each(|word| state.write_u64(u64::from_ne_bytes(*word)));
    }
}

/// Why a text is not a sha-256 digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// Not exactly 64 characters of `0-9a-f`.
    #[error("{0:?} is not a sha-256 digest (64 lower-case hexadecimal digits)")]
    Malformed(String),
    /// A well-formed OCI digest of another algorithm.
    #[error("{0:?} is not a sha256 digest: blobs of other algorithms are neither read nor collected")]
    OtherAlgorithm(String),
}

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// The digest of what a hasher was given.
    pub(crate) fn of_hashed(hasher: sha2::Sha256) -> Self {
        Self(hasher.finalize().into())
    }

    /// A digest from its 32 raw bytes, as Cap'n Proto messages hold it; `None` for any other length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The 32 raw bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Parses the OCI form, `sha256:` and 64 lower-case hexadecimal digits.
    pub fn from_oci(text: &str) -> Result<Self, DigestError> {
        if let Some(hex) = text.strip_prefix("sha256:") {
            return hex.parse().map_err(|_| DigestError::Malformed(text.into()));
        }
        match text.split_once(':') {
            Some((algorithm, encoded)) if is_algorithm(algorithm) && is_encoded(encoded) => {
                Err(DigestError::OtherAlgorithm(text.into()))
            }
            _ => Err(DigestError::Malformed(text.into())),
        }
    }

    /// The OCI form, with `sha256:` in front.
    pub fn to_oci(&self) -> String {
        format!("sha256:{self}")
    }

    /// The first 12 hexadecimal digits, for people.
    pub fn short(&self) -> String {
        let mut hex = self.to_string();
        hex.truncate(12);
        hex
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_oci()
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        Self::from_oci(&text)
    }
}

/// The grammar of algorithm names in the OCI image specification, 1.1, "Digests".
fn is_algorithm(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'+' | b'.' | b'_' | b'-'))
}

fn is_encoded(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'=' | b'_' | b'-'))
}

impl FromStr for Digest {
    type Err = DigestError;

    /// Strict: 64 lower-case hexadecimal digits and nothing else, so a digest is always safe as a file name.
    ///
    /// A manifest has thousands of digests, so there is no branch for a digit, and no table either: comparing and
    /// subtracting is done for many digits at a time.
    fn from_str(text: &str) -> Result<Self, DigestError> {
        let malformed = || DigestError::Malformed(text.into());
        let hex: &[u8; 64] = text.as_bytes().try_into().map_err(|_| malformed())?;
        let (mut nibbles, mut is_hex) = ([0; 64], true);
        for (nibble, digit) in nibbles.iter_mut().zip(hex) {
            let (decimal, letter) = (digit.wrapping_sub(b'0'), digit.wrapping_sub(b'a'));
            is_hex &= (decimal < 10) | (letter < 6);
            *nibble = if decimal < 10 { decimal } else { letter.wrapping_add(10) };
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(nibbles.chunks_exact(2)) {
            *byte = pair[0] << 4 | pair[1] & 15;
        }
        if is_hex { Ok(Self(bytes)) } else { Err(malformed()) }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut hex = [0u8; 64];
        for (pair, byte) in hex.chunks_exact_mut(2).zip(self.0) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        f.pad(std::str::from_utf8(&hex).expect("hexadecimal digits are ASCII"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

macro_rules! role {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub Digest);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0.short())
            }
        }

        impl From<$name> for Digest {
            fn from(role: $name) -> Digest {
                role.0
            }
        }
    };
}

role! {
    /// What identifies an image: the digest of its OCI manifest, or, for an image of manifest version 2, which has
    /// none, of its rootfs blob.
    ManifestId
}
role! {
    /// The digest of a rootfs blob, the Cap'n Proto message that describes a tree.
    RootfsId
}
role! {
    /// The digest of the stored bytes of a chunk of file data.
    ChunkId
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_digest_prints_as_it_parses() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse::<Digest>().unwrap(), Digest::of(b""));
        assert_eq!(Digest::from_oci(&format!("sha256:{EMPTY}")).unwrap(), Digest::of(b""));
    }

    #[test]
    fn texts_that_are_not_digests_are_refused() {
        for bad in ["", "e3b0", &EMPTY.to_uppercase(), &format!("{EMPTY}0"), &EMPTY.replace('e', "/")] {
            assert!(bad.parse::<Digest>().is_err(), "{bad:?}");
        }
        for bad in ["sha256:", "sha256:../../etc/passwd", "sha256", EMPTY, ":x", "sha 1:abc", "sha512:../x"] {
            assert!(matches!(Digest::from_oci(bad), Err(DigestError::Malformed(_))), "{bad:?}");
        }
        assert!(matches!(Digest::from_oci("sha512:abc"), Err(DigestError::OtherAlgorithm(_))));
    }
}
