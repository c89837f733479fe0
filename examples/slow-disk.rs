//! `slow-disk FILE DIR MICROSECONDS`: shows FILE, read only, in DIR as it would be on a disk that
//! takes so long for each read, and answers sixteen at a time (`benches/prefetch.sh`).
//!
//! ```sh
//! cargo run --example slow-disk -- image.tar /mnt 1000    # until it is unmounted
//! ```

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen, Request,
    SessionACL,
};

const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);
const NAME: INodeNo = INodeNo(2);

struct SlowDisk {
    file: File,
    path: PathBuf,
    time: Duration,
}

impl SlowDisk {
    fn attr(&self, ino: INodeNo) -> Option<FileAttr> {
        let of = self.file.metadata().ok()?;
        let mtime = UNIX_EPOCH.checked_add(Duration::new(
            of.mtime().try_into().ok()?,
            of.mtime_nsec().try_into().ok()?,
        ))?;
        let (kind, perm) = match ino {
            NAME => (FileType::RegularFile, 0o444),
            _ => (FileType::Directory, 0o555),
        };
        Some(FileAttr {
            ino,
            size: of.len(),
            blocks: of.blocks(),
            atime: mtime,
            mtime,
            ctime: mtime,
            crtime: mtime,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

impl Filesystem for SlowDisk {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attr(NAME) {
            Some(attr) if self.path.file_name() == Some(name) => {
                reply.entry(&FOREVER, &attr, Generation(0));
            }
            _ => reply.error(Errno::ENOENT),
        }
    }
    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino) {
            Some(attr) => reply.attr(&FOREVER, &attr),
            None => reply.error(Errno::EIO),
        }
    }
    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }
    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        std::thread::sleep(self.time);
        let mut bytes = vec![0; size as usize];
        match self.file.read_at(&mut bytes, offset) {
            Ok(n) => reply.data(bytes.get(..n).unwrap_or_default()),
            Err(_) => reply.error(Errno::EIO),
        }
    }
}

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let [file, dir, time] = args.as_slice() else {
        eprintln!("usage: slow-disk FILE DIR MICROSECONDS");
        return ExitCode::from(2);
    };
    let micros = std::str::from_utf8(time.as_bytes()).map(str::parse);
    let Ok(Ok(micros)) = micros else {
        eprintln!("slow-disk: {} is no number", time.display());
        return ExitCode::from(2);
    };
    match serve(
        Path::new(file),
        Path::new(dir),
        Duration::from_micros(micros),
    ) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("slow-disk: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(path: &Path, dir: &Path, time: Duration) -> std::io::Result<()> {
    let mut config = Config::default();
    config.mount_options = vec![MountOption::RO, MountOption::FSName("slow-disk".to_owned())];
    config.acl = SessionACL::All;
    config.n_threads = Some(16);
    let disk = SlowDisk {
        file: File::open(path)?,
        path: path.to_owned(),
        time,
    };
    fuser::mount(disk, dir, &config)
}
