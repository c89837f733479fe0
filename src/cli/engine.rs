//! `--engine`, of the commands that mount.

use clap::ValueEnum;
use clap::builder::PossibleValue;
use tarnfs::mount::EngineChoice;

/// An [`EngineChoice`] by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EngineName(pub(crate) EngineChoice);

impl EngineName {
    pub(crate) fn name(self) -> &'static str {
        match self.0 {
            EngineChoice::Fuse => "fuse",
            EngineChoice::Kernel => "kernel",
            EngineChoice::Auto => "auto",
        }
    }
}

impl ValueEnum for EngineName {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self(EngineChoice::Fuse),
            Self(EngineChoice::Kernel),
            Self(EngineChoice::Auto),
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()).help(match self.0 {
            EngineChoice::Fuse => "a FUSE server, for everybody",
            EngineChoice::Kernel => "the kernel itself, with EROFS and overlayfs; root, Linux 6.12",
            EngineChoice::Auto => "the kernel where it can, else a server",
        }))
    }
}
