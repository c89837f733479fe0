//! The door to the system: raw system calls, ioctls and everything `unsafe`.
//!
//! Nothing here decides anything about files: each function is one system call (or the two that
//! belong together) made safe. The rest of the crate denies `unsafe_code`.

pub mod asker;
pub mod bdi;
pub mod clock;
#[cfg(test)]
pub(crate) mod faults;
pub mod fs;
pub mod fuse;
pub mod handle;
pub mod idle;
pub mod lease;
pub mod loopdev;
pub mod map;
pub mod memory;
pub mod mount;
pub mod namespace;
pub mod outside;
pub mod process;
pub mod regular;
pub mod resident;
pub mod rights;
pub mod signal;
pub mod verity;
