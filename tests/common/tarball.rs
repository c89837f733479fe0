//! Tars made byte by byte, also such as no packer would write.

/// The bytes of a tar in the making.
#[derive(Clone, Default)]
pub(crate) struct Tarball {
    pub(crate) bytes: Vec<u8>,
}

/// A ustar header: what a test wants to be wrong, it changes.
#[derive(Clone)]
pub(crate) struct Header(pub(crate) [u8; 512]);

impl Header {
    pub(crate) fn new(name: &[u8], kind: u8, size: u64) -> Self {
        let mut header = Self([0; 512]);
        header.put(0, name);
        header.put(100, b"0000644\0");
        header.put(108, b"0000000\0");
        header.put(116, b"0000000\0");
        header.put(124, format!("{size:011o}\0").as_bytes());
        header.put(136, b"14000000000\0");
        header.put(156, &[kind]);
        header.put(257, b"ustar\x0000");
        header
    }

    pub(crate) fn put(&mut self, at: usize, bytes: &[u8]) -> &mut Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub(crate) fn link(&mut self, target: &[u8]) -> &mut Self {
        self.put(157, target)
    }

    /// With the right checksum (POSIX.1-2017 pax, "ustar Interchange Format": chksum).
    pub(crate) fn summed(&self) -> [u8; 512] {
        let mut block = self.0;
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

impl Tarball {
    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    pub(crate) fn header(self, header: &Header) -> Self {
        self.raw(&header.summed())
    }

    /// `bytes` and zeros up to a whole block.
    pub(crate) fn body(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, name: &[u8], content: &[u8]) -> Self {
        self.header(&Header::new(name, b'0', content.len() as u64))
            .body(content)
    }

    pub(crate) fn dir(self, name: &[u8]) -> Self {
        self.header(&Header::new(name, b'5', 0))
    }

    pub(crate) fn hard_link(self, name: &[u8], target: &[u8]) -> Self {
        self.header(Header::new(name, b'1', 0).link(target))
    }

    /// A pax extended header with these bytes as its records.
    pub(crate) fn pax(self, records: &[u8]) -> Self {
        self.header(&Header::new(b"pax", b'x', records.len() as u64))
            .body(records)
    }

    /// A GNU long name ('L') or long link target ('K').
    pub(crate) fn gnu_long(self, kind: u8, value: &[u8]) -> Self {
        let mut value = value.to_vec();
        value.push(0);
        self.header(&Header::new(b"././@LongLink", kind, value.len() as u64))
            .body(&value)
    }

    /// With the end marker.
    pub(crate) fn end(self) -> Vec<u8> {
        self.raw(&[0; 1024]).bytes
    }
}

/// A pax record with the right length.
pub(crate) fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    let mut bytes = format!("{len} {key}=").into_bytes();
    bytes.extend_from_slice(value);
    bytes.push(b'\n');
    bytes
}
