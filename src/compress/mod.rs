//! Compressed bytes → bytes: gzip, zstd, xz, told by their content.
//!
//! Invariants: what is given out has passed the format's own checksums where it has them; data
//! that ends too early is an error, never a short success; bytes behind the end that are no more
//! of the same format are an error too, as they are to Go's `compress/gzip` and so to containerd
//! and umoci (zeros, with which tapes are filled up, are none). Memory is bounded whatever a
//! header asks for: [`ZSTD_WINDOW_LOG_MAX`], [`XZ_MEMORY_MAX`].
//!
//! What it never does: look at what it decompresses, bound how much that is.

mod codec;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io::{self, BufRead, BufReader, Cursor, Read};

use codec::{Codec, Step};

/// The largest window of a zstd frame, as a power of two: 128 MiB, the most that zstd's own tools
/// take without being told to (RFC 8878, 3.1.1.1.2, asks for 8 MiB at least).
pub const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// The most memory that decoding xz may take, bytes; `xz -9` needs 65 MiB.
pub const XZ_MEMORY_MAX: u64 = 256 << 20;

/// Compressed bytes read at a time.
const INPUT: usize = 256 << 10;

/// How many of the first bytes tell the format: enough to see a tar's magic too.
const START: u64 = 512;

/// What a stream was found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Not compressed, as far as the first bytes tell.
    Plain,
    /// RFC 1952, of any number of members.
    Gzip,
    /// RFC 8878, of any number of frames, skippable ones among them.
    Zstd,
    /// The .xz file format, of any number of streams.
    Xz,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "uncompressed",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
        })
    }
}

/// The compression that `start`, the first bytes of a file, betrays: its name and what undoes it.
#[must_use]
pub fn betrayed(start: &[u8]) -> Option<(&'static str, &'static str)> {
    const MAGICS: [(&[u8], &str, &str); 11] = [
        (&[0x1f, 0x8b], "gzip", "gzip -d"),
        (&[0x28, 0xb5, 0x2f, 0xfd], "zstd", "zstd -d"),
        (&[0xfd, b'7', b'z', b'X', b'Z', 0], "xz", "xz -d"),
        (b"BZh", "bzip2", "bzip2 -d"),
        (&[0x04, 0x22, 0x4d, 0x18], "lz4", "lz4 -d"),
        (b"LZIP", "lzip", "lzip -d"),
        (&[0x5d, 0, 0], "lzma", "xz --format=lzma -d"),
        (&[0x1f, 0x9d], "compress", "uncompress"),
        (&[0x89, b'L', b'Z', b'O', 0], "lzop", "lzop -d"),
        (b"PK\x03\x04", "zip", "unzip"),
        (&[b'7', b'z', 0xbc, 0xaf, 0x27, 0x1c], "7z", "7z x"),
    ];
    // A zstd file may begin with skippable frames, 0x184d2a5? (RFC 8878, 3.1.2).
    if let [low, 0x2a, 0x4d, 0x18, ..] = start
        && low & 0xf0 == 0x50
    {
        return Some(("zstd", "zstd -d"));
    }
    MAGICS
        .into_iter()
        .find(|(magic, ..)| start.starts_with(magic))
        .map(|(_, name, cmd)| (name, cmd))
}

/// The format of what begins with `start`.
fn format(start: &[u8]) -> io::Result<Format> {
    Ok(match betrayed(start) {
        None => Format::Plain,
        Some(("gzip", _)) => Format::Gzip,
        Some(("zstd", _)) => Format::Zstd,
        Some(("xz", _)) => Format::Xz,
        // A tar whose first name looks like a magic.
        Some(_) if start.get(257..262) == Some(b"ustar") => Format::Plain,
        Some((name, command)) => {
            let why = format!(
                "compressed with {name}, which is not read: decompress it first (`{command}`), or compress it with gzip, zstd or xz"
            );
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
    })
}

/// A stream, decompressed. The larger the buffers it is read into the better: gzip keeps up to
/// 32 KiB of what it gave out by copying them at the end of each read.
///
/// After an error each further read is one.
pub struct Decoder<R: Read> {
    input: BufReader<io::Chain<Cursor<Vec<u8>>, R>>,
    format: Format,
    /// `None`: nothing is compressed.
    codec: Option<Box<dyn Codec>>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In the middle of a member, frame or stream.
    Within,
    /// Behind the end of one, where the data may end.
    Between,
    /// Among the zeros behind the end of all.
    Padding,
    /// All is given out.
    Ended,
    Failed,
}

/// Looks at the first bytes of `input` and decompresses it accordingly.
///
/// # Errors
/// Those of `input`; [`io::ErrorKind::Unsupported`] for a compression that is known and not read,
/// with the command that undoes it.
pub fn decoder<R: Read>(mut input: R) -> io::Result<Decoder<R>> {
    let mut start = Vec::new();
    input.by_ref().take(START).read_to_end(&mut start)?;
    let format = format(&start)?;
    let codec = codec::new(format)?;
    Ok(Decoder {
        input: BufReader::with_capacity(INPUT, Cursor::new(start).chain(input)),
        format,
        codec,
        state: State::Within,
    })
}

impl<R: Read> Decoder<R> {
    /// What the stream was found to be.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// The input: read to its end where all was given out, so that who hashes it has its digest.
    #[must_use]
    pub fn into_inner(self) -> R {
        self.input.into_inner().into_inner().1
    }

    fn damaged(&mut self, why: &str) -> io::Error {
        self.state = State::Failed;
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{} data: {why}", self.format),
        )
    }

    fn truncated(&mut self) -> io::Error {
        self.state = State::Failed;
        io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!(
                "{} data: truncated, it ends in the middle of the compressed data",
                self.format
            ),
        )
    }

    /// Goes on behind a member or frame, of which `next` are the next bytes; true where all has
    /// ended.
    fn between(&mut self) -> io::Result<bool> {
        let next = self.input.fill_buf()?;
        let Some(&first) = next.first() else {
            return Ok(true);
        };
        if first == 0 && self.format == Format::Gzip {
            self.state = State::Padding;
        } else {
            if let Some(codec) = &mut self.codec {
                codec.again();
            }
            self.state = State::Within;
        }
        Ok(false)
    }

    /// Passes over zeros; true where all has ended.
    fn padding(&mut self) -> io::Result<bool> {
        let next = self.input.fill_buf()?;
        let len = next.len();
        if next.iter().any(|&b| b != 0) {
            return Err(self.damaged("zeros follow its end, and other bytes behind them"));
        }
        self.input.consume(len);
        Ok(len == 0)
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        if self.codec.is_none() {
            return self.input.read(out);
        }
        loop {
            match self.state {
                State::Within => {}
                State::Between => {
                    if self.between()? {
                        self.state = State::Ended;
                    }
                    continue;
                }
                State::Padding => {
                    if self.padding()? {
                        self.state = State::Ended;
                    }
                    continue;
                }
                State::Ended => return Ok(0),
                State::Failed => {
                    return Err(self.damaged("it could not be read to its end"));
                }
            }
            let data = self.input.fill_buf()?;
            let last = data.is_empty();
            let Some(codec) = &mut self.codec else {
                return Ok(0);
            };
            let step = match codec.step(data, out, last) {
                Ok(step) => step,
                Err(why) => return Err(self.damaged(&why)),
            };
            let Step { used, made, ended } = step;
            self.input.consume(used);
            if ended {
                self.state = State::Between;
            }
            if made > 0 {
                return Ok(made);
            }
            if last && !ended {
                return Err(self.truncated());
            }
            if used == 0 && !ended {
                return Err(self.damaged("it leads nowhere"));
            }
        }
    }
}
