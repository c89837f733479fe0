//! Writing tars: what every tar that this crate makes has in common.
//!
//! [`header`] has the blocks before an entry's data, [`sparse`] where a file has data, [`sink`] the
//! way out in large pieces, [`output`] a file that is there whole or not at all.
//!
//! It never decides what is in a tar: that is [`crate::flatten`]'s and [`crate::diff`]'s business.

mod acl;
pub(crate) mod header;
pub(crate) mod output;
pub(crate) mod sink;
pub(crate) mod sparse;

pub use output::{OutputError, Target};

/// The longest path that readers take (`PATH_MAX` without its NUL), bytes.
pub(crate) const PATH_LEN_MAX: usize = 4095;

/// Of an entry whose path is longer than [`PATH_LEN_MAX`].
pub(crate) const TOO_DEEP: &str = "its path is longer than Linux allows (4095 bytes)";
/// Of an entry whose headers do not fit ([`header::TooLong`]).
pub(crate) const TOO_LONG: &str =
    "its extended attributes take more than the 16 MiB that readers take";
/// Of what no tar can hold.
pub(crate) const NO_SOCKETS: &str = "is a socket, which a tar cannot hold";

/// A boundary for the data of files: a power of two, 512 bytes to 1 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Align(u64);

impl Align {
    /// As every tar has it: 512.
    pub const BLOCK: Self = Self(header::BLOCK);

    /// Multiples of `bytes`, where that can be asked for.
    #[must_use]
    pub fn new(bytes: u64) -> Option<Self> {
        let good = bytes.is_power_of_two() && (header::BLOCK..=1 << 20).contains(&bytes);
        good.then_some(Self(bytes))
    }

    /// The boundary in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0
    }
}
