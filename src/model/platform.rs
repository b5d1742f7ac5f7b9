//! Operating system, architecture and variant, as OCI names them.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// `linux/amd64`, `linux/arm64`, `linux/arm/v7`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, .. (Go's names).
    pub architecture: String,
    /// `v7`, where the architecture has variants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// A text that is not `os/arch[/variant]`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a platform: write it as os/arch or os/arch/variant, for example linux/amd64")]
pub struct PlatformParseError(String);

impl Platform {
    /// The platform this binary was compiled for.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "aarch64" => ("arm64", None),
            "arm" => ("arm", Some("v7".to_owned())),
            other => (other, None),
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant }
    }
    /// Whether an image of platform `have` runs where `self` is wanted. `arm64` and `arm64/v8` are one.
    pub fn accepts(&self, have: &Platform) -> bool {
        fn norm(p: &Platform) -> (&str, &str, &str) {
            let v = p.variant.as_deref().unwrap_or("");
            let v = if p.architecture == "arm64" && v == "v8" { "" } else { v };
            (&p.os, &p.architecture, v)
        }
        norm(self) == norm(have)
    }
}

impl FromStr for Platform {
    type Err = PlatformParseError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let ok = |p: &str| {
            !p.is_empty()
                && p.len() <= 32
                && p.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        };
        let parts: Vec<&str> = s.split('/').collect();
        let bad = || PlatformParseError(s.chars().take(100).collect());
        if !(2..=3).contains(&parts.len()) || !parts.iter().all(|p| ok(p)) {
            return Err(bad());
        }
        Ok(Self {
            os: parts[0].into(),
            architecture: parts[1].into(),
            variant: parts.get(2).map(|v| (*v).to_owned()),
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if let Some(v) = &self.variant {
            write!(f, "/{v}")?;
        }
        Ok(())
    }
}
