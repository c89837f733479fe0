//! Where an endpoint for Prometheus listens.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where an endpoint for Prometheus listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Listen {
    /// At a unix socket, which only the server's user and root may open.
    Unix(PathBuf),
    /// At a port of the loopback interface; port 0: any that is free, which the log tells.
    Tcp(SocketAddr),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(said: &str) -> Result<Self, String> {
        if let Some(path) = said.strip_prefix("unix:") {
            if path.is_empty() {
                return Err("unix: names nothing".to_owned());
            }
            return Ok(Self::Unix(path.into()));
        }
        let address: SocketAddr = said
            .parse()
            .map_err(|_| format!("{said:?} is none of unix:PATH, 127.0.0.1:PORT and [::1]:PORT"))?;
        if !address.ip().is_loopback() {
            return Err(format!(
                "{said}: other machines could reach it; 127.0.0.1:PORT and [::1]:PORT cannot be"
            ));
        }
        Ok(Self::Tcp(address))
    }
}

impl TryFrom<String> for Listen {
    type Error = String;

    fn try_from(said: String) -> Result<Self, String> {
        said.parse()
    }
}

impl From<Listen> for String {
    fn from(listen: Listen) -> Self {
        listen.to_string()
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_to_listen() {
        for good in ["unix:/run/x", "127.0.0.1:9100", "127.3.2.1:1", "[::1]:0"] {
            assert_eq!(good.parse::<Listen>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "unix:",
            "9100",
            ":9100",
            "localhost:9100",
            "0.0.0.0:9100",
            "[::]:9100",
            "10.0.0.1:9100",
            "127.0.0.1",
            "127.0.0.1:99999",
            "/run/x",
            "[::ffff:127.0.0.1]:1",
        ] {
            let error = bad.parse::<Listen>().unwrap_err();
            assert!(!error.contains('\n'), "{bad}: {error}");
        }
    }
}
