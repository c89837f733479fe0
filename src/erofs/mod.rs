//! EROFS on-disk format: the layout, the writer of an index and the reader of one.

pub mod layout;
pub mod reader;
pub mod writer;
