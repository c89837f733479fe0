//! A request that waits for something that does not answer.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen, Request,
    SessionACL,
};
use tarnfs::metrics::{Value, table as t};

use super::common::can_mount;
use super::{Bench, count, number};

const FILE: INodeNo = INodeNo(2);

/// Where reads wait while it is shut.
#[derive(Default)]
struct Gate {
    shut: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn set(&self, shut: bool) {
        *self.shut.lock().unwrap() = shut;
        self.opened.notify_all();
    }

    fn pass(&self) {
        let shut = self.shut.lock().unwrap();
        drop(self.opened.wait_while(shut, |shut| *shut).unwrap());
    }
}

/// A filesystem of one file, `image.tar`, whose reads wait at a gate.
struct Disk {
    file: File,
    gate: Arc<Gate>,
}

impl Disk {
    fn attr(&self, ino: INodeNo) -> FileAttr {
        let of = self.file.metadata().unwrap();
        let (kind, perm) = match ino {
            FILE => (FileType::RegularFile, 0o444),
            _ => (FileType::Directory, 0o555),
        };
        FileAttr {
            ino,
            size: of.len(),
            blocks: of.blocks(),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Disk {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == "image.tar" {
            reply.entry(&Duration::ZERO, &self.attr(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }
    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::ZERO, &self.attr(ino));
    }
    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Each read comes here.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
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
        self.gate.pass();
        let mut bytes = vec![0; size as usize];
        let n = self.file.read_at(&mut bytes, offset).unwrap();
        reply.data(&bytes[..n]);
    }
}

/// Opens it also where a test fails.
struct Opens(Arc<Gate>);

impl Drop for Opens {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

#[test]
fn a_stalled_request_is_the_oldest() {
    if !can_mount() {
        return;
    }
    let bench = Bench::new();
    let gate = Arc::new(Gate::default());
    let disk = Disk {
        file: File::open(bench.at("image.tar")).unwrap(),
        gate: Arc::clone(&gate),
    };
    let mut config = Config::default();
    config.mount_options = vec![MountOption::RO, MountOption::FSName("gate".to_owned())];
    config.acl = SessionACL::All;
    config.n_threads = Some(2);
    let at = bench.sandbox.dir("disk");
    let session = fuser::spawn_mount(disk, &at, &config).unwrap();
    let socket = bench.socket();
    let mount = bench.sandbox.mount(
        "mnt",
        &at.join("image.tar"),
        &["--control", socket.to_str().unwrap(), "--passthrough=off"],
    );
    let opens = Opens(Arc::clone(&gate));
    assert_eq!(bench.stats().samples(&t::OLDEST).next(), None);
    gate.set(true);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| fs::read(mount.at("dir/1")).unwrap());
        let stalled = loop {
            let stats = bench.stats();
            let is_old = stats
                .samples(&t::OLDEST)
                .any(|oldest| oldest.label("op") == Some("read") && number(oldest) > 1.0);
            if is_old {
                break stats;
            }
            std::thread::yield_now();
        };
        assert!(count(&stalled, &t::IN_FLIGHT, &[]) >= 1.0);
        assert_eq!(count(&stalled, &t::SLOW, &[]), 0.0, "it is not over");
        let shown = bench
            .sandbox
            .tarnfs_ok(["stats", mount.path().to_str().unwrap()]);
        assert!(shown.contains("the oldest: read, for "), "{shown}");
        // The others are answered meanwhile.
        fs::symlink_metadata(mount.at("dir/2")).unwrap();
        drop(opens);
        assert_eq!(reader.join().unwrap().len(), super::SMALL);
    });
    let over = bench.settled();
    assert_eq!(over.samples(&t::OLDEST).next(), None);
    assert!(count(&over, &t::SLOW, &[]) >= 1.0);
    let took = over
        .samples(&t::REQUEST_SECONDS)
        .find(|sample| sample.label("op") == Some("read"))
        .unwrap();
    let Value::Histogram(took) = &took.value else {
        panic!("{took:?}");
    };
    assert!(took.seconds() > 1.0);
    mount.unmount();
    session.umount_and_join().unwrap();
}
