//! Compressed bytes → bytes: gzip, zstd, xz, told by their content.
