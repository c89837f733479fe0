//! Numbers as tar headers and pax records write them.

use crate::inode::Time;

/// Why bytes are no number, as the end of a sentence ("the header's size …").
pub(super) type Why = &'static str;

/// A numeric field of a header: octal digits (POSIX pax, "ustar Interchange Format"), or GNU's
/// base-256 (the first byte's top bit set, big endian two's complement behind it).
///
/// A blank field is 0, as every reader takes it.
#[inline]
pub(super) fn field(bytes: &[u8]) -> Result<i64, Why> {
    match usual(bytes) {
        Some(value) => Ok(value),
        None => unusual(bytes),
    }
}

#[cold]
fn unusual(bytes: &[u8]) -> Result<i64, Why> {
    match bytes.first() {
        Some(first) if first & 0x80 != 0 => base256(bytes),
        _ => octal(bytes),
    }
}

/// [`field`], which cannot be negative.
#[inline]
pub(super) fn unsigned(bytes: &[u8]) -> Result<u64, Why> {
    u64::try_from(field(bytes)?).map_err(|_| "is negative")
}

/// [`field`] of 8 or 12 bytes in the form that all packers of today write: octal digits and a NUL
/// or a blank, or both; `None`: in another. All digits are looked at together. In place where it is
/// called, the length is known to the compiler.
#[inline]
pub(super) fn usual(bytes: &[u8]) -> Option<i64> {
    if let Ok(bytes) = <[u8; 8]>::try_from(bytes) {
        return usual_8(u64::from_be_bytes(bytes));
    }
    let (high, low) = bytes.split_first_chunk::<4>()?;
    let low = <[u8; 8]>::try_from(low).ok()?;
    let high = digits(ZEROS << 32 | u64::from(u32::from_be_bytes(*high)))?;
    // A blank among the digits ends the number.
    Some(high << 21 | usual_8(u64::from_be_bytes(low)).filter(|_| !matches!(low, [.., 0, b' ']))?)
}

/// Eight digits 0.
const ZEROS: u64 = u64::from_ne_bytes([b'0'; 8]);

#[inline]
fn usual_8(field: u64) -> Option<i64> {
    match field & 0xffff {
        // As checksums are written: a NUL and a blank.
        0x0020 => digits(ZEROS << 48 | field >> 16),
        _ => match field & 0xff {
            0 | 0x20 => digits(ZEROS << 56 | field >> 8),
            _ => None,
        },
    }
}

/// The number that eight octal digits make, the first in the highest byte.
fn digits(text: u64) -> Option<i64> {
    let bits = text ^ ZEROS;
    if bits & 0xf8f8_f8f8_f8f8_f8f8 != 0 {
        return None;
    }
    let pairs = bits >> 5 & 0x0038_0038_0038_0038 | bits & 0x0007_0007_0007_0007;
    let fours = pairs >> 10 & 0x0000_0fc0_0000_0fc0 | pairs & 0x0000_003f_0000_003f;
    i64::try_from(fours >> 20 & 0x00ff_f000 | fours & 0x0fff).ok()
}

fn octal(bytes: &[u8]) -> Result<i64, Why> {
    let mut bytes = bytes;
    while let [b' ', rest @ ..] = bytes {
        bytes = rest;
    }
    let mut value = 0_i64;
    while let [digit @ b'0'..=b'7', rest @ ..] = bytes {
        // The top three bits and the sign are free: eight times as much fits.
        if value >> 60 != 0 {
            return Err("is too large");
        }
        value = value << 3 | i64::from(digit - b'0');
        bytes = rest;
    }
    match bytes.first() {
        None | Some(b' ' | 0) => Ok(value),
        Some(_) => Err("is not an octal number"),
    }
}

fn base256(bytes: &[u8]) -> Result<i64, Why> {
    let mut bytes = bytes.iter().copied();
    // The top bit is the mark, the next one the sign (GNU tar's from_header()).
    let first = bytes.next().unwrap_or(0x80);
    let negative = first & 0x40 != 0;
    let mut value = i64::from(first & 0x3f) - if negative { 0x40 } else { 0 };
    for byte in bytes {
        value = value
            .checked_mul(256)
            .and_then(|v| v.checked_add(i64::from(byte)))
            .ok_or(if negative {
                "is far below zero"
            } else {
                "is too large"
            })?;
    }
    Ok(value)
}

/// A decimal number of a pax record.
pub(super) fn decimal(bytes: &[u8]) -> Result<u64, Why> {
    if bytes.is_empty() {
        return Err("is empty");
    }
    if let (Some(value), []) = short(bytes) {
        return Ok(value);
    }
    bytes.iter().try_fold(0_u64, |value, &digit| match digit {
        b'0'..=b'9' => value
            .checked_mul(10)
            .and_then(|v| v.checked_add(u64::from(digit - b'0')))
            .filter(|&v| i64::try_from(v).is_ok())
            .ok_or("is too large"),
        b'-' => Err("is negative"),
        _ => Err("is not a decimal number"),
    })
}

/// The number that the decimal digits before anything else make, where 64 bits are sure to hold it,
/// and what is behind them.
fn short(bytes: &[u8]) -> (Option<u64>, &[u8]) {
    let mut rest = bytes;
    let mut value = 0;
    while let [digit @ b'0'..=b'9', behind @ ..] = rest {
        if bytes.len() - rest.len() == 18 {
            return (None, rest);
        }
        value = value * 10 + u64::from(digit - b'0');
        rest = behind;
    }
    ((rest.len() < bytes.len()).then_some(value), rest)
}

/// A pax time: decimal seconds with a fraction, perhaps negative (POSIX pax, "mtime").
/// Digits beyond the nanosecond are cut off.
pub(super) fn time(bytes: &[u8]) -> Result<Time, Why> {
    // As packers write it.
    if let (Some(sec), [b'.', fraction @ ..]) = short(bytes)
        && let (9, (Some(nsec), [])) = (fraction.len(), short(fraction))
        && let (Ok(sec), Ok(nsec)) = (i64::try_from(sec), u32::try_from(nsec))
    {
        return Ok(Time { sec, nsec });
    }
    let (negative, bytes) = match bytes {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, bytes),
    };
    let mut parts = bytes.splitn(2, |&b| b == b'.');
    let whole = parts.next().unwrap_or_default();
    let fraction = parts.next();
    let mut sec = match (whole, fraction) {
        ([], Some([_, ..])) => 0,
        _ => i64::try_from(decimal(whole)?).map_err(|_| "is too large")?,
    };
    let mut nsec = 0_u32;
    let mut scale = 100_000_000;
    for &digit in fraction.unwrap_or_default() {
        if !digit.is_ascii_digit() {
            return Err("is not a decimal number");
        }
        nsec += u32::from(digit - b'0') * scale;
        scale /= 10;
    }
    if negative {
        sec = -sec;
        if nsec > 0 {
            sec -= 1;
            nsec = 1_000_000_000 - nsec;
        }
    }
    Ok(Time { sec, nsec })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_fields() {
        assert_eq!(field(b"0000644\0"), Ok(0o644));
        assert_eq!(field(b"   644 \0"), Ok(0o644));
        assert_eq!(field(b"77777777777"), Ok(0o77_777_777_777));
        assert_eq!(field(b"\0\0\0\0"), Ok(0));
        assert_eq!(field(b"    "), Ok(0));
        assert_eq!(field(b"644\0junk"), Ok(0o644));
        for bad in [&b"8"[..], b"64x", b"-1", b"0x1", b"+7"] {
            assert!(field(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_usual_form_is_what_the_slow_way_reads() {
        for text in [
            "0000644\0",
            "7777777\0",
            "7777777 ",
            "017543\0 ",
            "01754 \0 ",
            "012345 \0",
            "00000001750\0",
            "77777777777\0",
            "77777777777 ",
            "0000000175\0 ",
            "12345670123\0",
            "1234 670123\0",
            "8000000\0",
            "0000008\0",
            "00000000\x008",
            "1234567a",
            "12345678",
            "0000644x",
            "\0\0\0\0\0\0\0\0",
            "        ",
        ] {
            let bytes = text.as_bytes();
            if let Some(value) = usual(bytes) {
                assert_eq!(Ok(value), octal(bytes), "{text:?}");
            }
        }
        assert_eq!(usual(b"0000644\0"), Some(0o644));
        assert_eq!(usual(b"017543\0 "), Some(0o17543));
        assert_eq!(usual(b"12345670123\0"), Some(0o12_345_670_123));
        assert_eq!(usual(b"77777777777 "), Some(0o77_777_777_777));
        assert_eq!(usual(b"0000000175\0 "), None);
    }

    #[test]
    fn base_256_fields() {
        assert_eq!(field(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]), Ok(256));
        assert_eq!(field(&[0xff; 12]), Ok(-1));
        assert_eq!(unsigned(&[0xff; 12]), Err("is negative"));
        let mut max = [0xff; 12];
        max[..5].copy_from_slice(&[0x80, 0, 0, 0, 0x7f]);
        assert_eq!(field(&max), Ok(i64::MAX));
        max[3] = 1;
        assert_eq!(field(&max), Err("is too large"));
        let mut min = [0; 12];
        min[..5].copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 0x80]);
        assert_eq!(field(&min), Ok(i64::MIN));
        min[0] = 0xc0;
        assert_eq!(field(&min), Err("is far below zero"));
    }

    #[test]
    fn decimals() {
        assert_eq!(decimal(b"9223372036854775807"), Ok(i64::MAX.unsigned_abs()));
        assert_eq!(decimal(b"999999999999999999"), Ok(999_999_999_999_999_999));
        assert_eq!(decimal(b"0000000000000000000000000000000000000012"), Ok(12));
        for bad in [
            &b""[..],
            b"-1",
            b"1 ",
            b"9223372036854775808",
            b"99999999999999999999999",
            b"1e3",
        ] {
            assert!(decimal(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times() {
        let t = |sec, nsec| Ok(Time { sec, nsec });
        assert_eq!(time(b"0"), t(0, 0));
        assert_eq!(time(b"1795305196.051874334"), t(1_795_305_196, 51_874_334));
        assert_eq!(time(b"12.5"), t(12, 500_000_000));
        assert_eq!(time(b"12.0000000019"), t(12, 1));
        assert_eq!(time(b"-1.25"), t(-2, 750_000_000));
        assert_eq!(time(b"-3"), t(-3, 0));
        assert_eq!(time(b".5"), t(0, 500_000_000));
        assert_eq!(time(b"7."), t(7, 0));
        for bad in [
            &b""[..],
            b".",
            b"-",
            b"1.x",
            b"1.2.3",
            b"1.2345678x0",
            b"1.+23456789",
            b"1x.123456789",
            b"--1",
            b"99999999999999999999",
        ] {
            assert!(time(bad).is_err(), "{bad:?}");
        }
    }
}
