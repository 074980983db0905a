//! Names of directory entries.

/// Why bytes cannot be the name of a directory entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No bytes at all.
    #[error("an entry has an empty name")]
    Empty,
    /// Longer than 255 bytes, the limit of Linux filesystems.
    #[error("an entry has a name of {0} bytes, over 255")]
    TooLong(usize),
    /// `.` or `..`.
    #[error("an entry is named {0:?}")]
    Dots(String),
    /// A slash or a NUL byte.
    #[error("the entry name {0:?} has a slash or a NUL byte in it")]
    Separator(String),
}

/// Accepts any bytes that a Linux filesystem would: 1 to 255, no slash, no NUL, not `.` or `..`.
pub fn check_name(name: &[u8]) -> Result<(), NameError> {
    let text = || String::from_utf8_lossy(name).into_owned();
    match name {
        b"" => Err(NameError::Empty),
        b"." | b".." => Err(NameError::Dots(text())),
        _ if name.len() > 255 => Err(NameError::TooLong(name.len())),
        _ if has_separator(name) => Err(NameError::Separator(text())),
        _ => Ok(()),
    }
}

/// Looks at all bytes, without a branch for each: names are short, and there are millions.
fn has_separator(name: &[u8]) -> bool {
    name.iter().fold(false, |found, byte| found | matches!(byte, b'/' | 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_directory_are_refused() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0", &[b'x'; 256]] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        for good in [&b"a"[..], b"...", b"new\nline", b"\xff\xfe", &[b'x'; 255]] {
            assert_eq!(check_name(good), Ok(()), "{good:?}");
        }
    }
}
