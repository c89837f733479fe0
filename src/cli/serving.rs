//! How the FUSE server is to serve: `--passthrough`, `--upper-passthrough`, `--noopen`,
//! `--keep-awake`.

use std::str::FromStr;

use tarnfs::mount::{KeepAwake, Settings};

use super::mount_options::parse_size;

/// Which files of the image the kernel is to read by itself: `off`, `all`, or those of a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PassThrough(pub(crate) Option<u64>);

impl FromStr for PassThrough {
    type Err = String;

    fn from_str(said: &str) -> Result<Self, String> {
        match said {
            "off" => Ok(Self(None)),
            "all" => Ok(Self(Some(0))),
            size => match parse_size(size) {
                Ok(size) => Ok(Self(Some(size))),
                Err(_) => Err(format!("{size:?} is no size, nor \"all\" or \"off\"")),
            },
        }
    }
}

/// Whether something is to be done: `on` or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Switch(pub(crate) bool);

impl FromStr for Switch {
    type Err = String;

    fn from_str(said: &str) -> Result<Self, String> {
        match said {
            "on" => Ok(Self(true)),
            "off" => Ok(Self(false)),
            _ => Err(format!("{said:?} is neither \"on\" nor \"off\"")),
        }
    }
}

/// When idle CPUs are to be kept from halting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Awake(KeepAwake);

impl FromStr for Awake {
    type Err = String;

    fn from_str(said: &str) -> Result<Self, String> {
        match said {
            "auto" => Ok(Self(KeepAwake::Auto)),
            "always" => Ok(Self(KeepAwake::Always)),
            "never" => Ok(Self(KeepAwake::Never)),
            _ => Err(format!(
                "{said:?} is none of \"auto\", \"always\" and \"never\""
            )),
        }
    }
}

/// The options, from the command line or from `-o`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct ServingArgs {
    /// Let the kernel by itself read files of the image of at least SIZE bytes (or `all`), and read
    /// and write those of the upper; `off`: none [default: 64K]
    #[arg(long, value_name = "SIZE")]
    pub(crate) passthrough: Option<PassThrough>,
    /// Whether --passthrough goes for files of the upper: with `off` all that is written comes to
    /// the server as requests [default: on]
    #[arg(long, value_name = "on|off")]
    pub(crate) upper_passthrough: Option<Switch>,
    /// Open files without asking the server, and read and write all by requests: for many small
    /// files that are mostly read
    #[arg(long)]
    pub(crate) noopen: bool,
    /// When to keep idle CPUs from halting while programs ask for one thing after another, as
    /// root: `always`, `never`, or `auto` in a virtual machine of up to 4 CPUs that halts them
    /// through its hypervisor [default: auto]
    #[arg(long, value_name = "WHEN")]
    pub(crate) keep_awake: Option<Awake>,
}

impl ServingArgs {
    pub(crate) fn settings(self) -> Settings {
        let default = Settings::default();
        Settings {
            passthrough: self.passthrough.map_or(default.passthrough, |said| said.0),
            upper_passthrough: self
                .upper_passthrough
                .map_or(default.upper_passthrough, |said| said.0),
            noopen: self.noopen,
            keep_awake: self.keep_awake.map_or(default.keep_awake, |said| said.0),
        }
    }

    /// What was asked for, if anything was.
    pub(crate) fn for_server(self) -> Option<&'static str> {
        match self {
            Self {
                passthrough: Some(_),
                ..
            } => Some("--passthrough"),
            Self {
                upper_passthrough: Some(_),
                ..
            } => Some("--upper-passthrough"),
            Self { noopen: true, .. } => Some("--noopen"),
            Self {
                keep_awake: Some(_),
                ..
            } => Some("--keep-awake"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_awake() {
        let from = |said: &str| said.parse::<Awake>().map(|awake| awake.0);
        assert_eq!(from("auto"), Ok(KeepAwake::Auto));
        assert_eq!(from("always"), Ok(KeepAwake::Always));
        assert_eq!(from("never"), Ok(KeepAwake::Never));
        assert!(from("").is_err() && from("yes").is_err());
    }

    #[test]
    fn on_or_off() {
        let from = |said: &str| said.parse::<Switch>().map(|switch| switch.0);
        assert_eq!((from("on"), from("off")), (Ok(true), Ok(false)));
        assert!(from("").is_err() && from("yes").is_err());
        let off = ServingArgs {
            upper_passthrough: Some(Switch(false)),
            ..ServingArgs::default()
        };
        assert!(!off.settings().upper_passthrough);
        assert_eq!(off.settings().passthrough, Settings::default().passthrough);
        assert!(off.for_server().is_some());
    }

    #[test]
    fn which_files() {
        let from = |said: &str| said.parse::<PassThrough>().map(|p| p.0);
        assert_eq!(from("off"), Ok(None));
        assert_eq!(from("all"), Ok(Some(0)));
        assert_eq!(from("1M"), Ok(Some(1 << 20)));
        assert!(from("").is_err() && from("some").is_err() && from("-1").is_err());
        assert_eq!(ServingArgs::default().settings(), Settings::default());
    }
}
