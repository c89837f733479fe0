//! How names, modes, times and JSON are printed.

use std::fmt::Write as _;
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Map, Value, json};
use tarnfs::inode::{Attr, Kind, Time};
use tarnfs::lower::{Lower, Nid};

/// Standard output in big pieces.
pub(crate) fn out() -> BufWriter<io::StdoutLock<'static>> {
    BufWriter::with_capacity(1 << 16, io::stdout().lock())
}

/// Does `work` for each of `paths`; an error is printed and the others still get their turn. A
/// reader that closed the pipe has seen enough: the command ends quietly.
pub(crate) fn for_each(
    image: &Path,
    paths: &[std::ffi::OsString],
    work: &mut dyn FnMut(&[u8]) -> anyhow::Result<()>,
) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for path in paths {
        if let Err(error) = work(path.as_bytes()) {
            if is_broken_pipe(&error) {
                return ExitCode::SUCCESS;
            }
            eprintln!(
                "tarnfs: {}: {}{}",
                image.display(),
                escape(path.as_bytes()),
                causes(&error)
            );
            code = ExitCode::FAILURE;
        }
    }
    code
}

/// An error and its causes as the end of a line, each said once: a library error's own words may
/// hold its cause already.
pub(crate) fn causes(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let words = cause.to_string();
        if !line.contains(&words) {
            line.push_str(": ");
            line.push_str(words.trim_end());
        }
    }
    // Whatever a name holds: one line, and nothing that a terminal would obey.
    let clean = |c: char| match c {
        '\n' => " ".to_owned(),
        c if c.is_control() => c.escape_default().to_string(),
        c => c.to_string(),
    };
    line.chars().map(clean).collect()
}

/// The end of a command: a closed pipe is none of its errors.
pub(crate) fn finish(result: anyhow::Result<()>) -> anyhow::Result<ExitCode> {
    match result {
        Err(error) if !is_broken_pipe(&error) => Err(error),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Whether the reader of our output has gone.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// The name as one line of text, as `ls -b` prints it, but with spaces as they are: control
/// characters, backslashes and bytes that are not UTF-8 are escaped.
pub(crate) fn escape(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '\t' => text.push_str("\\t"),
                '\r' => text.push_str("\\r"),
                c if c.is_control() => {
                    for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                        octal(&mut text, byte);
                    }
                }
                c => text.push(c),
            }
        }
        for &byte in chunk.invalid() {
            octal(&mut text, byte);
        }
    }
    text
}

fn octal(text: &mut String, byte: u8) {
    // Writing to a String cannot fail.
    write!(text, "\\{byte:03o}").ok();
}

/// Puts bytes under `key`: as they are where they are UTF-8; else escaped as [`escape`] does, and
/// the exact bytes under `key_base64`.
pub(crate) fn put_bytes(object: &mut Map<String, Value>, key: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            object.insert(key.to_owned(), text.into());
        }
        Err(_) => {
            object.insert(key.to_owned(), escape(bytes).into());
            object.insert(format!("{key}_base64"), base64(bytes).into());
        }
    }
}

/// RFC 4648, section 4, with padding.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |i: usize| u32::from(group.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let digit = usize::try_from(bits >> (18 - 6 * i) & 63).unwrap_or(0);
            let digit = DIGITS.get(digit).copied().unwrap_or(b'=');
            text.push(if i <= group.len() {
                char::from(digit)
            } else {
                '='
            });
        }
    }
    text
}

/// `drwxr-xr-x`, as ls(1) prints it.
pub(crate) fn mode(attr: &Attr) -> String {
    let mut text = String::with_capacity(10);
    text.push(match attr.kind {
        Kind::File => '-',
        Kind::Dir => 'd',
        Kind::Symlink => 'l',
        Kind::Char => 'c',
        Kind::Block => 'b',
        Kind::Fifo => 'p',
        Kind::Socket => 's',
    });
    for (shift, special, set, unset) in [
        (6, 0o4000, 's', 'S'),
        (3, 0o2000, 's', 'S'),
        (0, 0o1000, 't', 'T'),
    ] {
        let bits = attr.perm >> shift;
        text.push(if bits & 4 == 0 { '-' } else { 'r' });
        text.push(if bits & 2 == 0 { '-' } else { 'w' });
        text.push(match (attr.perm & special != 0, bits & 1 != 0) {
            (false, false) => '-',
            (false, true) => 'x',
            (true, true) => set,
            (true, false) => unset,
        });
    }
    text
}

/// The type in words, as JSON and stat(1) have it.
pub(crate) fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Dir => "directory",
        Kind::Symlink => "symlink",
        Kind::Char => "character device",
        Kind::Block => "block device",
        Kind::Fifo => "fifo",
        Kind::Socket => "socket",
    }
}

/// (year, month, day, hour, minute, second) in UTC.
fn civil(sec: i64) -> (i64, i64, i64, i64, i64, i64) {
    let (days, rest) = (sec.div_euclid(86_400), sec.rem_euclid(86_400));
    // Days from 0000-03-01, in eras of 400 years of 146,097 days: years that begin in March have
    // the leap day at their end.
    let days = days.saturating_add(719_468);
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    (year, month, day, rest / 3600, rest / 60 % 60, rest % 60)
}

/// `2024-02-29 23:59`, UTC.
pub(crate) fn minute(time: Time) -> String {
    let (y, mo, d, h, mi, _) = civil(time.sec);
    format!("{y:04}-{mo:02}-{d:02} {h:02}:{mi:02}")
}

/// RFC 3339 with nanoseconds, UTC.
pub(crate) fn instant(time: Time) -> String {
    let (y, mo, d, h, mi, s) = civil(time.sec);
    format!(
        "{y:04}-{mo:02}-{d:02}T{h:02}:{mi:02}:{s:02}.{:09}Z",
        time.nsec
    )
}

/// What JSON says of an inode at `path`; a symbolic link with its target.
pub(crate) fn object(lower: &Lower, path: &[u8], nid: Nid) -> anyhow::Result<Map<String, Value>> {
    let attr = lower.attr(nid)?;
    let mut object = Map::new();
    put_bytes(&mut object, "path", path);
    object.insert("type".into(), kind(attr.kind).into());
    object.insert("mode".into(), format!("{:04o}", attr.perm).into());
    object.insert("nlink".into(), attr.nlink.into());
    object.insert("uid".into(), attr.uid.into());
    object.insert("gid".into(), attr.gid.into());
    object.insert("size".into(), attr.size.into());
    object.insert("blocks".into(), attr.blocks.into());
    object.insert("mtime".into(), instant(attr.mtime).into());
    object.insert("inode".into(), nid.0.into());
    match attr.kind {
        Kind::Symlink => put_bytes(&mut object, "target", &lower.readlink(nid)?),
        Kind::Char | Kind::Block => {
            let (major, minor) = (libc::major(attr.rdev), libc::minor(attr.rdev));
            object.insert("device".into(), json!({ "major": major, "minor": minor }));
        }
        _ => {}
    }
    Ok(object)
}

/// A JSON array that is written piece by piece, one element a line.
#[derive(Debug)]
pub(crate) struct Array {
    any: bool,
}

impl Array {
    /// An array that has not begun.
    pub(crate) fn new() -> Self {
        Self { any: false }
    }

    /// Writes one element.
    pub(crate) fn push(
        &mut self,
        out: &mut dyn Write,
        value: &Map<String, Value>,
    ) -> io::Result<()> {
        out.write_all(if self.any { b",\n" } else { b"[\n" })?;
        self.any = true;
        serde_json::to_writer(&mut *out, value)?;
        Ok(())
    }

    /// Writes the end.
    pub(crate) fn end(self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(if self.any { b"\n]\n" } else { b"[]\n" })?;
        out.flush()
    }
}

/// A path of the image below `base` (`/` is the root).
pub(crate) fn join(base: &[u8], below: &[u8]) -> Vec<u8> {
    let mut path = base.to_vec();
    if !path.ends_with(b"/") {
        path.push(b'/');
    }
    path.extend_from_slice(below);
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_one_line() {
        assert_eq!(escape(b"plain name"), "plain name");
        assert_eq!(escape("gr\u{fc}n".as_bytes()), "gr\u{fc}n");
        assert_eq!(
            escape(b"a\\b\n\t\r\x01\x7f\xff\xfe"),
            "a\\\\b\\n\\t\\r\\001\\177\\377\\376"
        );
        assert_eq!(
            escape("\u{9b}x".as_bytes()),
            "\\302\\233x",
            "C1 controls too"
        );
    }

    #[test]
    fn base64_is_rfc_4648() {
        for (bytes, text) in [
            (&b""[..], ""),
            (b"f", "Zg=="),
            (b"fo", "Zm8="),
            (b"foo", "Zm9v"),
            (b"foobar", "Zm9vYmFy"),
            (b"\xff\xfe", "//4="),
        ] {
            assert_eq!(base64(bytes), text);
        }
    }

    #[test]
    fn times_are_utc() {
        let at = |sec| instant(Time { sec, nsec: 5 });
        assert_eq!(at(0), "1970-01-01T00:00:00.000000005Z");
        assert_eq!(at(-1), "1969-12-31T23:59:59.000000005Z");
        assert_eq!(at(1_709_251_199), "2024-02-29T23:59:59.000000005Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000000005Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00.000000005Z");
        assert!(at(i64::MAX / 2).ends_with('Z'));
    }

    #[test]
    fn bytes_that_are_not_utf8_are_kept() {
        let mut object = Map::new();
        put_bytes(&mut object, "name", b"a\xff");
        assert_eq!(
            Value::Object(object),
            json!({"name": "a\\377", "name_base64": "Yf8="})
        );
    }
}
