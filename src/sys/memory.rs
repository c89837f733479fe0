//! Tables that grow to megabytes, in large pages: one page fault for 2 MiB instead of 512 of them.
#![allow(unsafe_code)]

/// The length of a large page; where another is larger, there are none.
const LARGE: usize = 2 << 20;
/// What an allocator may put before a piece of memory. The kernel gives pieces of whole large
/// pages a place where such pages can begin.
const HEAD: usize = 64;
/// The smallest page.
const PAGE: usize = 4096;

/// `len` zeros, none of which takes memory before it is written to, but in large pages.
#[must_use]
pub fn zeros(len: usize) -> Vec<u8> {
    let mut zeros = vec![0; roomy(len).unwrap_or(len)];
    advise(&zeros);
    zeros.truncate(len);
    zeros
}

/// Makes room for one more in `table`, as [`Vec::reserve`] does.
pub fn reserve<T>(table: &mut Vec<T>) {
    if table.len() < table.capacity() {
        return;
    }
    let want = table.capacity().saturating_mul(2);
    let room = want
        .checked_mul(size_of::<T>())
        .and_then(roomy)
        .map_or(0, |bytes| bytes / size_of::<T>().max(1));
    if room > table.len() {
        table.reserve_exact(room - table.len());
        advise(table);
    } else {
        table.reserve(1);
    }
}

/// The length of a piece for `len` bytes that fills large pages with what is before it; `None`
/// where small ones do.
fn roomy(len: usize) -> Option<usize> {
    let pages = len.checked_add(HEAD)?.checked_next_multiple_of(LARGE)?;
    (len >= LARGE).then_some(pages - HEAD)
}

/// Asks for large pages for the memory of `table`. Only a hint: without them it is slower.
fn advise<T>(table: &Vec<T>) {
    let len = table.capacity().saturating_mul(size_of::<T>());
    if len < LARGE - HEAD {
        return;
    }
    let start = table.as_ptr().map_addr(|at| at - at % PAGE);
    let before = table.as_ptr().addr() - start.addr();
    // SAFETY: how memory is divided into pages changes nothing of what it holds, so that the rest
    // of the first page, which is of somebody else, is as it was.
    unsafe {
        libc::madvise(
            start.cast_mut().cast(),
            (before + len).next_multiple_of(PAGE),
            libc::MADV_HUGEPAGE,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_grows_as_any_other() {
        let mut table = Vec::new();
        for n in 0..1_000_000_u64 {
            reserve(&mut table);
            assert!(table.len() < table.capacity());
            table.push(n);
        }
        assert!(table.iter().copied().eq(0..1_000_000));
        assert!(table.capacity() < 2_500_000);
    }

    #[test]
    fn zeros_are_zeros_of_that_length() {
        for len in [0, 1, LARGE - 1, LARGE, 3 * LARGE + 5] {
            let zeros = zeros(len);
            assert_eq!(zeros.len(), len);
            assert!(zeros.iter().all(|&b| b == 0));
        }
    }

    #[test]
    fn pieces_fill_large_pages() {
        assert_eq!(roomy(LARGE - 1), None);
        assert_eq!(roomy(LARGE), Some(2 * LARGE - HEAD));
        assert_eq!(roomy(2 * LARGE - HEAD), Some(2 * LARGE - HEAD));
        assert_eq!(roomy(2 * LARGE - HEAD + 1), Some(3 * LARGE - HEAD));
        assert_eq!(roomy(usize::MAX), None);
    }
}
