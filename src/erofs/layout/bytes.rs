//! Numbers in bytes: little-endian, at an offset, never outside the slice.

/// `N` bytes at `at`.
#[must_use]
pub fn get_array<const N: usize>(b: &[u8], at: usize) -> Option<[u8; N]> {
    b.get(at..)?.first_chunk().copied()
}

/// The byte at `at`.
#[must_use]
pub fn get_u8(b: &[u8], at: usize) -> Option<u8> {
    b.get(at).copied()
}

/// The u16 at `at`.
#[must_use]
pub fn get_u16(b: &[u8], at: usize) -> Option<u16> {
    get_array(b, at).map(u16::from_le_bytes)
}

/// The u32 at `at`.
#[must_use]
pub fn get_u32(b: &[u8], at: usize) -> Option<u32> {
    get_array(b, at).map(u32::from_le_bytes)
}

/// The u64 at `at`.
#[must_use]
pub fn get_u64(b: &[u8], at: usize) -> Option<u64> {
    get_array(b, at).map(u64::from_le_bytes)
}

/// The i64 at `at`.
#[must_use]
pub fn get_i64(b: &[u8], at: usize) -> Option<i64> {
    get_array(b, at).map(i64::from_le_bytes)
}

/// Writes `bytes` at `at`. Outside `b` nothing is written: offsets are constants of this file,
/// and its tests encode every structure.
pub(in crate::erofs) fn put(b: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(to) = b.get_mut(at..).and_then(|b| b.get_mut(..bytes.len())) {
        to.copy_from_slice(bytes);
    }
}

pub(super) fn put_u16(b: &mut [u8], at: usize, n: u16) {
    put(b, at, &n.to_le_bytes());
}

pub(super) fn put_u32(b: &mut [u8], at: usize, n: u32) {
    put(b, at, &n.to_le_bytes());
}

pub(super) fn put_u64(b: &mut [u8], at: usize, n: u64) {
    put(b, at, &n.to_le_bytes());
}
