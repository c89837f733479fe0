//! pax extended headers (POSIX.1 pax, "pax Extended Header"): records of `length key=value\n`,
//! whose values may be any bytes.

use super::error::{Problem, printable};
use super::number;
use super::sparse::PaxSparse;
use super::xattr;
use crate::inode::{Time, Xattr};

/// A text that may not have been given; its memory is used again.
#[derive(Debug, Default)]
pub(super) struct Text {
    given: bool,
    bytes: Vec<u8>,
}

impl Text {
    pub(super) fn get(&self) -> Option<&[u8]> {
        self.given.then_some(&*self.bytes)
    }

    pub(super) fn set(&mut self, bytes: &[u8]) {
        self.given = true;
        self.bytes.clear();
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn clear(&mut self) {
        self.given = false;
    }
}

/// What the extended headers before an entry say; what they are silent of is in the entry's
/// own header.
#[derive(Debug, Default)]
pub(super) struct Overrides {
    pub(super) path: Text,
    pub(super) linkpath: Text,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Time>,
    pub(super) devmajor: Option<u64>,
    pub(super) devminor: Option<u64>,
    /// In the order of the tar; a name may come twice.
    pub(super) xattrs: Vec<Xattr>,
    pub(super) acl_access: Option<Vec<u8>>,
    pub(super) acl_default: Option<Vec<u8>>,
    pub(super) sparse: Option<Box<PaxSparse>>,
}

/// Which extended header a record stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// `x`: for the next entry.
    Entry,
    /// `g`: for all entries that follow.
    Global,
}

impl Overrides {
    /// As the global headers, `globals`, have it; they carry owner, time and device only.
    pub(super) fn reset(&mut self, globals: &Self) {
        self.path.clear();
        self.linkpath.clear();
        self.size = None;
        (self.uid, self.gid, self.mtime) = (globals.uid, globals.gid, globals.mtime);
        (self.devmajor, self.devminor) = (globals.devmajor, globals.devminor);
        self.xattrs.clear();
        (self.acl_access, self.acl_default, self.sparse) = (None, None, None);
    }

    /// Applies all records of an extended header's `body`. Of a key that comes twice, the later
    /// value holds.
    pub(super) fn apply(&mut self, mut body: &[u8], scope: Scope) -> Result<(), Problem> {
        while !body.is_empty() {
            let (key, value, rest) = record(body)?;
            body = rest;
            self.record(key, value, scope)
                .map_err(|what| Problem::PaxValue {
                    key: printable(key),
                    what,
                })?;
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8], scope: Scope) -> Result<(), &'static str> {
        // An empty value takes back what a header before said (POSIX); an extended attribute or a
        // sparse map with an empty value is just that.
        let number = || {
            if value.is_empty() {
                Ok(None)
            } else {
                number::decimal(value).map(Some)
            }
        };
        let text = |to: &mut Text| {
            if value.is_empty() {
                to.clear();
            } else {
                to.set(value);
            }
        };
        match key {
            // What nearly all headers have, and what says nothing that an image holds.
            b"atime" | b"ctime" | b"uname" | b"gname" => {}
            b"uid" => self.uid = number()?,
            b"gid" => self.gid = number()?,
            b"mtime" if value.is_empty() => self.mtime = None,
            b"mtime" => self.mtime = Some(number::time(value)?),
            b"SCHILY.devmajor" => self.devmajor = number()?,
            b"SCHILY.devminor" => self.devminor = number()?,
            b"path" | b"linkpath" | b"size" | b"RHT.security.selinux" if scope == Scope::Global => {
                return Err("stands in a global header, where it would mean every entry");
            }
            b"path" => text(&mut self.path),
            b"linkpath" => text(&mut self.linkpath),
            b"size" => self.size = number()?,
            b"RHT.security.selinux" => {
                // The kernel's value is a C string with its NUL, the record's is without
                // (libselinux setfilecon(3), which GNU tar calls).
                let mut value = value.to_vec();
                if value.last() != Some(&0) {
                    value.push(0);
                }
                self.xattrs.push(Xattr {
                    name: b"security.selinux".to_vec(),
                    value,
                });
            }
            _ => return self.prefixed(key, value, scope),
        }
        Ok(())
    }

    fn prefixed(&mut self, key: &[u8], value: &[u8], scope: Scope) -> Result<(), &'static str> {
        let strip = |prefix: &[u8]| key.strip_prefix(prefix);
        let local = match scope {
            Scope::Entry => Ok(()),
            Scope::Global => Err("stands in a global header, where it would mean every entry"),
        };
        if let Some(name) = strip(b"SCHILY.xattr.") {
            local?;
            self.xattrs.push(Xattr {
                name: xattr::unescape(name),
                value: value.to_vec(),
            });
        } else if let Some(name) = strip(b"LIBARCHIVE.xattr.") {
            local?;
            let value = xattr::base64(value).ok_or("is not base64")?;
            self.xattrs.push(Xattr {
                name: xattr::unescape(name),
                value,
            });
        } else if let Some(which) = strip(b"SCHILY.acl.") {
            local?;
            match which {
                b"access" => self.acl_access = Some(value.to_vec()),
                b"default" => self.acl_default = Some(value.to_vec()),
                _ => return Err("is an ACL of a kind that Linux files do not have"),
            }
        } else if let Some(key) = strip(b"GNU.sparse.") {
            local?;
            self.sparse.get_or_insert_default().record(key, value)?;
        } else if strip(b"GNU.volume.").is_some() {
            return Err("belongs to a tar of several volumes; join them first");
        } else if key == b"SCHILY.realsize" {
            return Err("belongs to star's own sparse files, which are not served");
        }
        // Everything else says nothing that an image holds: comment,
        // charset, hdrcharset (names are bytes here), SCHILY.dev, .ino, .nlink, .fflags,
        // LIBARCHIVE.creationtime, vendors' own.
        Ok(())
    }
}

/// A record's key and value, and what is behind it.
type Split<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// Splits the first record off `body`.
fn record(body: &[u8]) -> Result<Split<'_>, Problem> {
    let bad = Problem::Pax;
    let (len, blank) = match body {
        // Nearly all are of 10 to 99 bytes.
        [tens @ b'1'..=b'9', ones @ b'0'..=b'9', b' ', ..] => {
            (usize::from(tens - b'0') * 10 + usize::from(ones - b'0'), 2)
        }
        _ => record_len(body)?,
    };
    let (this, rest) = body
        .split_at_checked(len)
        .ok_or_else(|| bad("a record is said to be longer than its header"))?;
    let this = this
        .get(blank + 1..)
        .ok_or_else(|| bad("a record is said to be shorter than its length"))?;
    let Some((b'\n', this)) = this.split_last() else {
        return Err(bad("a record does not end where its length says"));
    };
    let equals = this
        .iter()
        .position(|&b| b == b'=')
        .ok_or_else(|| bad("a record has no key and value"))?;
    let (key, value) = this.split_at_checked(equals).unwrap_or_default();
    if key.is_empty() {
        return Err(bad("a record has an empty key"));
    }
    Ok((key, value.get(1..).unwrap_or_default(), rest))
}

/// The length of the first record, and where the blank behind it is.
fn record_len(body: &[u8]) -> Result<(usize, usize), Problem> {
    let bad = Problem::Pax;
    let blank = body
        .iter()
        .take(20)
        .position(|&b| b == b' ')
        .ok_or_else(|| bad("a record does not begin with its length"))?;
    let digits = body.get(..blank).unwrap_or_default();
    let len = number::decimal(digits)
        .ok()
        .and_then(|len| usize::try_from(len).ok())
        .ok_or_else(|| bad("a record's length is no number"))?;
    Ok((len, blank))
}

#[cfg(test)]
mod tests {
    use super::super::testing::record as r;
    use super::*;

    fn apply(body: &[u8], scope: Scope) -> Result<Overrides, Problem> {
        let mut overrides = Overrides::default();
        overrides.apply(body, scope)?;
        Ok(overrides)
    }

    #[test]
    fn values_are_any_bytes() {
        let body = [
            r("SCHILY.xattr.user.b", b"\n\0=12 x=y\n"),
            r("path", b"a\nb=c"),
        ]
        .concat();
        let got = apply(&body, Scope::Entry).unwrap();
        assert_eq!(got.xattrs[0].value, b"\n\0=12 x=y\n");
        assert_eq!(got.path.get().unwrap(), b"a\nb=c");
    }

    #[test]
    fn the_later_record_holds_and_an_empty_one_takes_back() {
        let body = [
            r("uid", b"1"),
            r("uid", b"2"),
            r("gid", b"3"),
            r("gid", b""),
        ]
        .concat();
        let got = apply(&body, Scope::Entry).unwrap();
        assert_eq!((got.uid, got.gid), (Some(2), None));
    }

    #[test]
    fn lying_lengths() {
        for bad in [
            &b"9 path=ab\n"[..],
            b"12 path=ab\n",
            b"3 path=ab\n",
            b"2 path=ab\n",
            b"0 path=ab\n",
            b" path=ab\n",
            b"path=ab\n",
            b"-5 path=ab\n",
            b"99999999999999999999999 path=ab\n",
            b"18446744073709551615 a=\n",
            b"10 path=ab\nx",
            b"10 pathxab\n",
            b"6 =ab\n",
            b"10 path=abX",
            b"\0\0\0\0",
            b"3 \n",
        ] {
            assert!(apply(bad, Scope::Entry).is_err(), "{bad:?}");
        }
        assert_eq!(
            apply(b"10 path=a\n", Scope::Entry)
                .unwrap()
                .path
                .get()
                .unwrap(),
            b"a"
        );
    }

    #[test]
    fn globals_carry_owner_and_time_only() {
        let body = [r("uid", b"7"), r("comment", b"x"), r("mtime", b"1.5")].concat();
        assert_eq!(apply(&body, Scope::Global).unwrap().uid, Some(7));
        for key in [
            "path",
            "linkpath",
            "size",
            "SCHILY.xattr.user.a",
            "GNU.sparse.size",
        ] {
            assert!(apply(&r(key, b"1"), Scope::Global).is_err(), "{key}");
        }
    }

    #[test]
    fn what_is_not_served_is_named() {
        for key in [
            "SCHILY.acl.ace",
            "GNU.volume.filename",
            "SCHILY.realsize",
            "GNU.sparse.x",
        ] {
            assert!(apply(&r(key, b"1"), Scope::Entry).is_err(), "{key}");
        }
    }
}
