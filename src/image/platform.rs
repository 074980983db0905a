//! Which of the images of an index is wanted.

use std::{fmt, str::FromStr};

use crate::format::Platform;

/// A platform that is asked for: `linux/amd64`, `linux/arm/v7`, or `arm64`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedPlatform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// What Go, and with it OCI, calls the architecture that this program was built for.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "loongarch64" => "loong64",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "powerpc64" => "ppc64",
        other => other,
    }
}

/// Not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a platform, as linux/amd64, linux/arm/v7 or arm64 are")]
pub struct PlatformError(String);

impl WantedPlatform {
    /// The one of this machine, in Go's names, as image indexes have them.
    pub fn here() -> Self {
        Self { os: std::env::consts::OS.into(), architecture: architecture().into(), variant: None }
    }

    /// Whether an image for this platform will do. Without a variant in the question, any will.
    pub fn fits(&self, platform: &Platform) -> bool {
        let is_variant = self.variant.is_none() || self.variant == platform.variant;
        self.os == platform.os && self.architecture == platform.architecture && is_variant
    }
}

impl FromStr for WantedPlatform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [architecture] => ("linux", architecture, None),
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => return Err(PlatformError(text.into())),
        };
        if parts.iter().any(|part| part.is_empty() || part.chars().any(|c| !c.is_ascii_alphanumeric())) {
            return Err(PlatformError(text.into()));
        }
        let variant = variant.map(Into::into);
        Ok(Self { os: os.into(), architecture: architecture.into(), variant })
    }
}

impl fmt::Display for WantedPlatform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(os: &str, architecture: &str, variant: Option<&str>) -> Platform {
        Platform { os: os.into(), architecture: architecture.into(), variant: variant.map(Into::into) }
    }

    #[test]
    fn platforms_fit_what_they_name() {
        let arm: WantedPlatform = "linux/arm".parse().unwrap();
        let v7: WantedPlatform = "linux/arm/v7".parse().unwrap();
        assert!(arm.fits(&platform("linux", "arm", Some("v6"))) && arm.fits(&platform("linux", "arm", None)));
        assert!(v7.fits(&platform("linux", "arm", Some("v7"))) && !v7.fits(&platform("linux", "arm", Some("v6"))));
        assert!(!arm.fits(&platform("linux", "arm64", None)) && !arm.fits(&platform("windows", "arm", None)));
        assert_eq!("arm64".parse::<WantedPlatform>().unwrap().to_string(), "linux/arm64");
        for bad in ["", "/", "a/b/c/d", "linux/", "linux/am d64"] {
            assert!(bad.parse::<WantedPlatform>().is_err(), "{bad:?}");
        }
    }
}
