//! A file mapped read-only into memory.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Deref;

/// The bytes of a whole file, mapped read-only.
///
/// Meant for files that are published once and never changed in place (an index): a file that is
/// truncated under the mapping ends the process with SIGBUS, so blobs are never mapped.
#[derive(Debug)]
pub struct Map(memmap2::Mmap);

impl Map {
    /// Maps `file`, all of it.
    ///
    /// # Errors
    /// What mmap(2) says; an empty file cannot be mapped.
    pub fn of(file: &File) -> io::Result<Self> {
        // SAFETY: the mapping is read-only and private to this value. The caller maps only files
        // that are never written after their publication, so the bytes do not change under `&[u8]`.
        let map = unsafe { memmap2::Mmap::map(file) }?;
        Ok(Self(map))
    }

    /// Takes its pages out of this process; they stay in the kernel's page cache, and come back as
    /// they are looked at.
    ///
    /// # Errors
    /// madvise(2)'s.
    pub fn let_go(&self) -> io::Result<()> {
        // SAFETY: nobody has written to the mapping, and the file holds what it held: the same
        // bytes are there when the next one looks.
        unsafe { self.0.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) }
    }
}

impl Deref for Map {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_let_go_of_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        let map = Map::of(&File::open(&path).unwrap()).unwrap();
        let held = || {
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let name = path.to_str().unwrap();
            let mut lines = maps.lines().skip_while(|line| !line.ends_with(name));
            let rss = lines.find_map(|line| line.strip_prefix("Rss:"));
            rss.unwrap().trim().to_owned()
        };
        assert!(map.iter().all(|&byte| byte == 7));
        assert_eq!(held(), "1024 kB");
        map.let_go().unwrap();
        assert_eq!(held(), "0 kB");
        assert!(map.iter().all(|&byte| byte == 7));
    }
}
