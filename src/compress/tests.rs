use std::io::{ErrorKind, Write as _};
use std::process::{Command, Stdio};

use super::*;
use crate::digest::{Digest, Hashed};

/// What is compressed here: long enough for several reads, and not all alike.
fn plain() -> Vec<u8> {
    let mut state = 1_u32;
    (0..300_000_u32)
        .map(|n| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if n % 3 == 0 {
                state.to_be_bytes()[0]
            } else {
                b'x'
            }
        })
        .collect()
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    to.write_all(plain).unwrap();
    to.finish().unwrap()
}

fn zstd(plain: &[u8]) -> Vec<u8> {
    let mut to = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    to.include_checksum(true).unwrap();
    to.write_all(plain).unwrap();
    to.finish().unwrap()
}

fn xz(plain: &[u8]) -> Vec<u8> {
    let mut to = liblzma::write::XzEncoder::new(Vec::new(), 0);
    to.write_all(plain).unwrap();
    to.finish().unwrap()
}

type Encode = fn(&[u8]) -> Vec<u8>;

const ALL: [(Format, Encode); 3] = [(Format::Gzip, gzip), (Format::Zstd, zstd), (Format::Xz, xz)];

/// Gives three bytes at a time.
struct Slowly<'a>(&'a [u8]);

impl Read for Slowly<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let len = out.len().min(3);
        self.0.read(&mut out[..len])
    }
}

fn decode(data: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    decoder(data)?.read_to_end(&mut out)?;
    Ok(out)
}

#[track_caller]
fn refused(data: &[u8], kind: ErrorKind, what: &str) {
    let mut decoder = match decoder(data) {
        Ok(decoder) => decoder,
        Err(error) => {
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(what), "{error}");
            return;
        }
    };
    let error = decoder.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(what), "{error}");
    let again = decoder.read(&mut [0; 10]);
    assert!(again.is_err(), "read on after an error");
}

#[test]
fn each_format_is_told_by_its_content() {
    let want = plain();
    for (format, encode) in ALL {
        let data = encode(&want);
        let mut whole = decoder(Hashed::new(&*data)).unwrap();
        assert_eq!(whole.format(), format);
        let mut got = Vec::new();
        whole.read_to_end(&mut got).unwrap();
        assert!(got == want, "{format}");
        let stored = whole.into_inner().finish();
        assert_eq!(stored, (Digest::of(&data), data.len() as u64), "{format}");

        let mut slow = decoder(Slowly(&data)).unwrap();
        let mut got = Vec::new();
        let mut piece = [0; 777];
        loop {
            match slow.read(&mut piece).unwrap() {
                0 => break,
                n => got.extend_from_slice(&piece[..n]),
            }
        }
        assert!(got == want, "{format} slowly");
        assert_eq!(decode(&encode(b"")).unwrap(), b"", "{format} of nothing");
    }
    for text in [&b""[..], b"x", b"\x1f", b"\x28\xb5\x2f", &want] {
        let mut decoder = decoder(text).unwrap();
        assert_eq!(decoder.format(), Format::Plain);
        let mut got = Vec::new();
        decoder.read_to_end(&mut got).unwrap();
        assert!(got == text);
    }
}

#[test]
fn members_frames_and_streams_are_read_to_the_last() {
    for (format, encode) in ALL {
        let data = [
            encode(b"one "),
            encode(b""),
            encode(b"two "),
            encode(b"three"),
        ]
        .concat();
        assert_eq!(decode(&data).unwrap(), b"one two three", "{format}");
        let mut slow = Vec::new();
        let mut slowly = decoder(Slowly(&data)).unwrap();
        slowly.read_to_end(&mut slow).unwrap();
        assert_eq!(slow, b"one two three", "{format}");
    }
    let skip = |nibble: u8| [&[0x50 | nibble, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
    let data = [skip(0), zstd(b"one "), skip(15), zstd(b"two"), skip(7)].concat();
    assert_eq!(decode(&data).unwrap(), b"one two");
    assert_eq!(decode(&skip(1)).unwrap(), b"");
    // Members with extra fields, names and comments (eStargz has its offsets in one).
    let mut fancy = flate2::GzBuilder::new()
        .extra(vec![7; 300])
        .filename("name")
        .comment("comment")
        .write(Vec::new(), flate2::Compression::best());
    fancy.write_all(b"fancy").unwrap();
    let fancy = fancy.finish().unwrap();
    assert_eq!(decode(&[&*fancy, &gzip(b"!")].concat()).unwrap(), b"fancy!");
}

#[test]
fn what_ends_too_early_is_an_error_wherever_it_ends() {
    let want = b"some bytes that are worth it, and some more of them, of them, of them";
    for (format, encode) in ALL {
        let one = encode(want);
        let two = [one.clone(), encode(want)].concat();
        for len in 6..one.len() {
            refused(&one[..len], ErrorKind::UnexpectedEof, "truncated");
        }
        for len in one.len() + 1..two.len() {
            // xz's padding is of four zeros each, and its magic has none.
            refused(&two[..len], ErrorKind::UnexpectedEof, "truncated");
        }
        assert_eq!(decode(&one).unwrap(), want, "{format}");
    }
    refused(
        &[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2],
        ErrorKind::UnexpectedEof,
        "truncated",
    );
}

#[test]
fn damage_is_found_by_the_formats_own_checksums() {
    let want: Vec<u8> = plain().into_iter().step_by(1000).collect();
    for (format, encode) in ALL {
        let data = encode(&want);
        for at in 0..data.len() {
            let mut bad = data.clone();
            bad[at] ^= 0x10;
            // A gzip header's time and the like are under no checksum; a changed magic is another
            // format.
            match decode(&bad) {
                Ok(got) => assert!(got == want || got == bad, "{format} at {at}"),
                Err(error) => assert!(
                    matches!(
                        error.kind(),
                        ErrorKind::InvalidData | ErrorKind::UnexpectedEof | ErrorKind::Unsupported
                    ),
                    "{format} at {at}: {error}"
                ),
            }
        }
    }
}

#[test]
fn what_follows_the_end_is_an_error() {
    for (format, encode) in ALL {
        let data = encode(b"x");
        for tail in [&b"garbage"[..], b"x", b"\x1f\x8c garbage and more of it"] {
            let data = [&data, tail].concat();
            let error = decode(&data).unwrap_err();
            assert!(!error.to_string().contains('\n'), "{format}: {error}");
        }
    }
    let follow = "other bytes follow its end";
    refused(
        &[gzip(b"x"), vec![b'g'; 99]].concat(),
        ErrorKind::InvalidData,
        follow,
    );
    refused(
        &[zstd(b"x"), vec![b'g'; 99]].concat(),
        ErrorKind::InvalidData,
        follow,
    );
    // liblzma does not tell it from damage.
    refused(
        &[xz(b"x"), vec![b'g'; 99]].concat(),
        ErrorKind::InvalidData,
        "damaged",
    );
    // Zeros that fill up a tape's record are no data.
    for zeros in [1, 511, 600_000] {
        let data = [gzip(b"x"), vec![0; zeros]].concat();
        assert_eq!(decode(&data).unwrap(), b"x");
        let data = [data, vec![b'y']].concat();
        refused(&data, ErrorKind::InvalidData, "other bytes behind them");
    }
    let data = [xz(b"x"), vec![0; 8], xz(b"y")].concat();
    assert_eq!(decode(&data).unwrap(), b"xy");
}

#[test]
fn compressions_that_are_not_read_name_their_command() {
    for (start, command) in [
        (&b"BZh91AY&SY"[..], "`bzip2 -d`"),
        (b"\x04\x22\x4d\x18xx", "`lz4 -d`"),
        (b"LZIP\x01", "`lzip -d`"),
        (b"\x5d\0\0\x80\0", "`xz --format=lzma -d`"),
        (b"\x1f\x9d\x90", "`uncompress`"),
        (b"PK\x03\x04", "`unzip`"),
    ] {
        refused(start, ErrorKind::Unsupported, command);
    }
    // A tar whose first file is called so is none of them.
    let mut tar = vec![0; 1024];
    tar[..5].copy_from_slice(b"BZh.c");
    tar[257..262].copy_from_slice(b"ustar");
    assert_eq!(decode(&tar).unwrap(), tar);
}

#[test]
fn memory_is_bounded_whatever_a_header_asks_for() {
    // A frame header with a window descriptor of 2^28 and 2^41 (RFC 8878, 3.1.1.1.2).
    for exponent in [18_u8, 31] {
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0, exponent << 3, 1, 0, 0, 0, 0];
        refused(&frame, ErrorKind::InvalidData, "more than 128 MiB");
    }
    // The encoder's own memory for such a dictionary is large: only its header is changed.
    let mut data = xz(b"x");
    // Block header: size, flags, filter id, size of properties, dictionary (xz 1.2.1, 3.1 and
    // 5.3.1); its CRC-32 stands at its end.
    let block = 12..12 + 4 * (usize::from(data[12]) + 1);
    assert_eq!(data[block.start + 2..block.start + 4], [0x21, 1]);
    data[block.start + 4] = 40;
    let mut crc = flate2::Crc::new();
    crc.update(&data[block.start..block.end - 4]);
    data[block.end - 4..block.end].copy_from_slice(&crc.sum().to_le_bytes());
    refused(&data, ErrorKind::InvalidData, "more than 256 MiB");
}

#[test]
fn the_inputs_own_errors_pass_through() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::new(ErrorKind::TimedOut, "the wire is cut"))
        }
    }
    for (format, encode) in ALL {
        let data = encode(&plain());
        let input = (&data[..data.len() / 2]).chain(Broken);
        let mut decoder = decoder(input).unwrap();
        let error = decoder.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{format}");
        assert_eq!(error.to_string(), "the wire is cut");
    }
    assert_eq!(decoder(Broken).err().unwrap().kind(), ErrorKind::TimedOut);
}

/// What `program args` makes of `plain`; `None`, loudly, where there is none.
fn by(program: &str, args: &[&str], plain: &[u8]) -> Option<Vec<u8>> {
    let mut child = match Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
    {
        Ok(child) => child,
        Err(error) => {
            assert!(
                std::env::var("CI").as_deref() != Ok("true"),
                "{program}: {error}"
            );
            eprintln!("SKIPPED: {program}: {error}");
            return None;
        }
    };
    let mut stdin = child.stdin.take().unwrap();
    let plain = plain.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(&plain).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    Some(output.stdout)
}

#[test]
fn what_the_usual_programs_wrote_is_read() {
    let want = plain().repeat(2);
    for (program, args) in [
        ("gzip", &["-c"][..]),
        ("gzip", &["-9c"]),
        ("pigz", &["-c"]),
        ("zstd", &["-c", "-"]),
        ("zstd", &["--long=27", "-3", "-c", "-"]),
        ("pzstd", &["-c", "-p", "2", "-"]),
        ("xz", &["-c"]),
        ("xz", &["-6", "--check=sha256", "-c"]),
        ("xz", &["-0", "-T2", "--block-size=100000", "-c"]),
        ("xz", &["--x86", "--lzma2", "-c"]),
    ] {
        if let Some(data) = by(program, args, &want) {
            assert!(
                data.len() < want.len() && decode(&data).unwrap() == want,
                "{program} {args:?}"
            );
        }
    }
}
