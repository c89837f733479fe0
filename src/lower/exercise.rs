//! Asks an image everything, for tests and fuzzing: whatever its bytes say, each call must come
//! back, with an answer or an error.

use std::ops::ControlFlow;

use super::{Lower, LowerError, Nid, Seek, Step};
use crate::name::Name;

/// Entries that a walk looks at.
const ENTRIES: usize = 200;

/// Calls every method on everything that is reachable, and on numbers that are not.
pub fn exercise(lower: &Lower) {
    let mut nids = vec![
        lower.root(),
        Nid(0),
        Nid(1),
        Nid(u64::MAX),
        Nid(u64::MAX >> 5),
    ];
    let mut left = ENTRIES;
    let walked = lower.walk::<LowerError>(lower.root(), &mut |w| {
        let name = Name::new(w.name);
        assert!(name.is_ok(), "a listing gives names only");
        if let Ok(name) = name
            && let Ok(found) = lower.lookup(w.dir, &name)
        {
            // A damaged order of blocks can hide a name from the search, never change it.
            assert!(
                found.is_none_or(|nid| nid == w.nid),
                "a lookup gives what the listing gives"
            );
        }
        nids.push(w.nid);
        left -= 1;
        if left == 0 {
            Err(LowerError::WrongKind(0))
        } else {
            Ok(Step::Into)
        }
    });
    drop(walked);
    nids.extend(
        (0..lower.reader.len() / 32 + 2)
            .step_by(5)
            .take(60)
            .map(Nid),
    );
    nids.sort_unstable();
    nids.dedup();
    for &nid in &nids {
        one(lower, nid);
    }
    for &nid in nids.iter().take(20) {
        if let Ok(names) = lower.names(nid) {
            for (dir, name) in names {
                assert!(
                    !matches!(lower.lookup(dir, &name), Ok(Some(found)) if found != nid),
                    "a name that is told leads there"
                );
            }
        }
        drop(lower.paths(nid));
    }
    for path in [&b"/"[..], b"a/b", b"../link/x", b"dir/", b"loop"] {
        drop(lower.resolve(path, true));
    }
    assert!(lower.stats().index_len > 0);
}

fn one(lower: &Lower, nid: Nid) {
    // One bad chunk fails the attributes (they count what is stored), not every read.
    let known = lower.attr(nid).map(|attr| attr.size);
    let size = known.as_ref().map_or(0, |size| *size);
    let known = known.is_ok();
    drop(lower.parent(nid));
    drop(lower.readlink(nid));
    if let Ok(xattrs) = lower.xattrs(nid) {
        for xattr in xattrs.iter().take(4) {
            let again = lower.xattr(nid, &xattr.name);
            assert!(
                matches!(again, Ok(Some(value)) if value == xattr.value),
                "one attribute, one value"
            );
        }
    }
    drop(lower.xattr(nid, b"user.none"));
    let mut buf = [0; 2048];
    for offset in [0, 511, size / 2, size.saturating_sub(1), size, u64::MAX] {
        if let Ok(n) = lower.read(nid, offset, &mut buf) {
            let want = size.saturating_sub(offset).min(2048);
            assert!(!known || n as u64 == want, "short only at the end");
        }
        for what in [Seek::Data, Seek::Hole] {
            if let Ok(Some(at)) = lower.seek(nid, offset, what) {
                assert!(
                    at >= offset && (!known || at <= size),
                    "a seek goes forward, and stays in the file"
                );
            }
        }
        if let Ok(Some(extent)) = lower.extent(nid, offset) {
            assert!(
                extent.len > 0 && (!known || extent.len <= size - offset),
                "a run lies in the file"
            );
        }
    }
    let mut before = 0;
    let listed = lower.readdir(nid, 0, &mut |entry| {
        assert!(
            entry.next > before && entry.next < 1 << 62,
            "positions rise"
        );
        before = entry.next;
        ControlFlow::Continue(())
    });
    drop(listed);
    for from in [1, before, u64::MAX] {
        drop(lower.readdir(nid, from, &mut |_| ControlFlow::Break(())));
    }
}
