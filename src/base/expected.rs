//! The announced digest of an upload: from `user.imgfs.expect`, a digest file, or a manifest. The
//! upload is published only if it has this digest.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A digest that a file must have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Expected {
    /// In lower-case hex, as is the next one.
    Sha256(String),
    Sha1(String),
}

impl Expected {
    /// Reads `sha256:HEX`, `sha1:HEX`, or hex of either length.
    ///
    /// # Errors
    ///
    /// `Invalid`.
    pub fn parse(text: &str) -> Result<Expected> {
        let text = text.trim();
        let (kind, hex) = text.split_once(':').unwrap_or(("", text));
        let hex = hex.to_ascii_lowercase();
        if hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            match (kind, hex.len()) {
                ("sha256" | "", 64) => return Ok(Expected::Sha256(hex)),
                ("sha1" | "", 40) => return Ok(Expected::Sha1(hex)),
                _ => {}
            }
        }
        Err(Error::Invalid {
            what: format!("{text:?}"),
            why: "what is expected is sha256:HEX or sha1:HEX".into(),
        })
    }

    /// # Errors
    ///
    /// `Mismatch`.
    pub fn check(&self, what: &str, sha256: &str, sha1: &str) -> Result<()> {
        let (wanted, found) = match self {
            Expected::Sha256(wanted) => (wanted, sha256),
            Expected::Sha1(wanted) => (wanted, sha1),
        };
        if wanted == found {
            return Ok(());
        }
        let found =
            if let Expected::Sha256(_) = self { format!("sha256:{found}") } else { format!("sha1:{found}") };
        Err(Error::Mismatch { what: what.into(), wanted: self.to_string(), found })
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expected::Sha256(hex) => write!(f, "sha256:{hex}"),
            Expected::Sha1(hex) => write!(f, "sha1:{hex}"),
        }
    }
}

impl TryFrom<String> for Expected {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Expected, String> {
        Expected::parse(&text).map_err(|e| e.to_string())
    }
}

impl From<Expected> for String {
    fn from(expected: Expected) -> String {
        expected.to_string()
    }
}
