//! One header block: its fields, its checksum, its dialect.

use super::error::{Problem, Stored};
use super::number;
use super::source::Block;

/// Which header layout a block has, by its magic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// No magic: names of 100 bytes, no device numbers.
    V7,
    /// `ustar`: POSIX, with a name prefix.
    Ustar,
    /// `ustar` and two blanks: GNU, whose place of the prefix holds other things.
    Gnu,
}

/// A header block whose checksum is right.
pub(super) struct Header<'a>(&'a Block);

impl<'a> Header<'a> {
    /// Checks the checksum: the sum of all bytes with the field itself as blanks, unsigned as
    /// POSIX says or signed as some old tars made it.
    pub(super) fn new(block: &'a Block) -> Result<Self, Problem> {
        let header = Self(block);
        let field = header.bytes(148, 8);
        let own = field.iter().map(|&b| u32::from(b)).sum::<u32>();
        let unsigned = block_sum(block) - own + 8 * u32::from(b' ');
        if number::usual(field) == Some(unsigned.into()) {
            return Ok(header);
        }
        header.other_sum(unsigned)
    }

    /// Of a header without the `unsigned` sum in the usual form.
    #[cold]
    fn other_sum(self, unsigned: u32) -> Result<Self, Problem> {
        let field = self.bytes(148, 8);
        let high = |bytes: &[u8]| {
            bytes
                .iter()
                .map(|&b| u32::from(b >= 0x80) * 256)
                .sum::<u32>()
        };
        // A checksum field without a single digit is no checksum, though numbers may be blank.
        let stored = match number::unsigned(field) {
            Ok(n) if field.iter().any(u8::is_ascii_digit) => Stored::Number(n),
            _ => Stored::NotANumber,
        };
        let signed = || i64::from(unsigned) - i64::from(high(self.0)) + i64::from(high(field));
        match stored {
            Stored::Number(n) if n == u64::from(unsigned) => Ok(self),
            Stored::Number(n) if i64::try_from(n) == Ok(signed()) => Ok(self),
            _ => Err(Problem::Checksum {
                stored,
                computed: unsigned,
            }),
        }
    }

    /// The block again, copied.
    pub(super) fn copy_to(self, block: &mut Block) -> Header<'_> {
        *block = *self.0;
        Header(block)
    }

    /// `len` bytes at `from`. All callers give ranges within the block.
    #[inline]
    pub(super) fn bytes(&self, from: usize, len: usize) -> &'a [u8] {
        self.0.get(from..from + len).unwrap_or_default()
    }

    fn text(&self, from: usize, len: usize) -> &'a [u8] {
        let bytes = self.bytes(from, len);
        bytes.get(..text_len(bytes)).unwrap_or_default()
    }

    pub(super) fn dialect(&self) -> Dialect {
        match self.bytes(257, 8) {
            [b'u', b's', b't', b'a', b'r', b' ', b' ', 0] => Dialect::Gnu,
            [b'u', b's', b't', b'a', b'r', ..] => Dialect::Ustar,
            _ => Dialect::V7,
        }
    }

    /// The type flag; a NUL is an old way to say `0`.
    pub(super) fn typeflag(&self) -> u8 {
        match self.bytes(156, 1) {
            [0] => b'0',
            [flag] => *flag,
            _ => 0,
        }
    }

    /// Appends the name, with ustar's prefix before it.
    pub(super) fn put_name(&self, out: &mut Vec<u8>) {
        if self.dialect() == Dialect::Ustar {
            let prefix = self.text(345, 155);
            if !prefix.is_empty() {
                out.extend_from_slice(prefix);
                out.push(b'/');
            }
        }
        out.extend_from_slice(self.text(0, 100));
    }

    pub(super) fn linkname(&self) -> &'a [u8] {
        self.text(157, 100)
    }

    pub(super) fn mode(&self) -> Result<u64, Problem> {
        unsigned("mode", self.bytes(100, 8))
    }

    pub(super) fn uid(&self) -> Result<u64, Problem> {
        unsigned("user id", self.bytes(108, 8))
    }

    pub(super) fn gid(&self) -> Result<u64, Problem> {
        unsigned("group id", self.bytes(116, 8))
    }

    pub(super) fn size(&self) -> Result<u64, Problem> {
        unsigned("size", self.bytes(124, 12))
    }

    pub(super) fn mtime(&self) -> Result<i64, Problem> {
        number::field(self.bytes(136, 12)).map_err(|what| Problem::Field {
            field: "modification time",
            what,
        })
    }

    /// Major and minor device number; v7 headers have none.
    pub(super) fn device(&self) -> Result<(u64, u64), Problem> {
        match self.dialect() {
            Dialect::V7 => Ok((0, 0)),
            Dialect::Ustar | Dialect::Gnu => Ok((
                unsigned("device major number", self.bytes(329, 8))?,
                unsigned("device minor number", self.bytes(337, 8))?,
            )),
        }
    }
}

/// The sum of the block's bytes, eight at a time: each of four lanes takes 128 bytes, at most
/// 32,640 of the 65,535 that it holds.
fn block_sum(block: &Block) -> u32 {
    const EVEN: u64 = 0x00ff_00ff_00ff_00ff;
    let (words, _) = block.as_chunks::<8>();
    let lanes = words.iter().fold(0, |lanes, word| {
        let word = u64::from_le_bytes(*word);
        lanes + (word & EVEN) + (word >> 8 & EVEN)
    });
    [0, 16, 32, 48].iter().fold(0, |sum, shift| {
        sum + u32::try_from(lanes >> shift & 0xffff).unwrap_or(0)
    })
}

/// How many bytes are before the first NUL; eight at a time.
fn text_len(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    let (words, rest) = bytes.as_chunks::<8>();
    let mut len = 0;
    for word in words {
        let word = u64::from_le_bytes(*word);
        // The lowest bit that is set is of the first NUL; those above it may be false.
        let zeros = word.wrapping_sub(ONES) & !word & ONES << 7;
        if zeros != 0 {
            return len + zeros.trailing_zeros() as usize / 8;
        }
        len += 8;
    }
    len + rest.iter().take_while(|&&b| b != 0).count()
}

#[inline]
pub(super) fn unsigned(field: &'static str, bytes: &[u8]) -> Result<u64, Problem> {
    number::unsigned(bytes).map_err(|what| Problem::Field { field, what })
}
