//! Sizes, as people read and write them.

use std::{fmt, str::FromStr};

/// A number of bytes. Prints in binary units (`1.9 GiB`); parses what `bytesize` parses (`5GiB`, `100 MB`, `4096`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct ByteCount(pub u64);

impl fmt::Display for ByteCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&bytesize::ByteSize(self.0).display().iec().to_string())
    }
}

impl FromStr for ByteCount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<bytesize::ByteSize>().map(|size| Self(size.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written_in_binary_units() {
        assert_eq!(ByteCount(1536).to_string(), "1.5 KiB");
        assert_eq!("5GiB".parse(), Ok(ByteCount(5 << 30)));
        assert!("5 parsecs".parse::<ByteCount>().is_err());
    }
}
