//! tarnfs: a copy-on-write filesystem that serves files lazily straight out of indexed,
//! uncompressed tars. docs/ARCHITECTURE.md holds the map.

pub mod digest;
pub mod inode;
pub mod metrics;
pub mod name;

pub mod sys;

pub mod actor;
pub mod actors;
pub mod compress;
pub mod diff;
pub mod erofs;
pub mod export;
pub mod flatten;
pub mod fuse;
pub mod import;
pub mod index;
pub mod lower;
pub mod mount;
pub mod overlay;
pub mod pack;
pub mod prefetch;
pub mod source;
pub mod stack;
pub mod store;
pub mod tar;
pub mod upper;
