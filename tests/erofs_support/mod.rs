//! A file tree built by hand over a real blob, and the kernel's view of its index.

pub(crate) mod builder;
pub(crate) mod compare;
pub(crate) mod kernel;
pub(crate) mod random;
