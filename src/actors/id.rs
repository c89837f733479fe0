//! What an actor is called.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Error;

/// The longest id: a name of a directory, with room for what is put before and behind it.
const LEN_MAX: usize = 128;

/// A checked id: 1 to 128 letters, digits, `.`, `_` and `-`, of which the first is a letter or a
/// digit. So it is a safe file name, and never `.` or `..`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id(String);

impl Id {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Id {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let begins = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if begins && text.len() <= LEN_MAX && text.chars().all(good) {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::BadId(text.to_owned()))
    }
}

impl TryFrom<String> for Id {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_safe_names() {
        for good in ["a", "7", "agent-1.x_y", &"a".repeat(128)] {
            assert_eq!(good.parse::<Id>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            ".",
            "..",
            ".a",
            "-a",
            "_a",
            "a/b",
            "../a",
            "a b",
            "a\n",
            "ä",
            "a\0",
            &"a".repeat(129),
        ] {
            let error = bad.parse::<Id>().unwrap_err().to_string();
            assert!(!error.contains('\n'), "{error}");
        }
        assert!(serde_json::from_str::<Id>("\"a/b\"").is_err());
    }
}
