//! The operations that faults and kills are tried on, each written once: how the tree is
//! prepared, and what is done to it.
//!
//! Each is one step for who looks at the tree: all of it has happened or nothing.

use super::fixture::{Fixture, asker, me};
use crate::inode::{SetTime, Time};
use crate::overlay::{Caller, Handle, Ino, Make, Result, SetAttr};

/// One operation.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) setup: fn(&Fixture),
    pub(super) operation: fn(&Fixture) -> Result<()>,
}

const fn case(
    name: &'static str,
    setup: fn(&Fixture),
    operation: fn(&Fixture) -> Result<()>,
) -> Case {
    Case {
        name,
        setup,
        operation,
    }
}

fn nothing(_: &Fixture) {}

fn ino(f: &Fixture, path: &str) -> Result<Ino> {
    Ok(Ino(f.entry(path)?.attr.ino))
}

/// Opens a file, does something by the handle, and closes it.
fn opened(
    f: &Fixture,
    path: &str,
    flags: i32,
    then: impl FnOnce(Handle) -> Result<()>,
) -> Result<()> {
    let handle = f.fs.open(ino(f, path)?, flags)?;
    let done = then(handle);
    f.fs.release(handle);
    done
}

fn copy_up(f: &Fixture, path: &str) -> Result<()> {
    opened(f, path, libc::O_RDWR, |_| Ok(()))
}

fn write(f: &Fixture, path: &str, offset: u64, data: &[u8]) -> Result<()> {
    opened(f, path, libc::O_WRONLY, |handle| {
        f.fs.write(handle, offset, data).map(|_| ())
    })
}

fn make(f: &Fixture, who: Caller, path: &str, what: Make<'_>) -> Result<()> {
    let (dir, last) = f.split(path)?;
    f.fs.make(who, dir, &last, what, 0o750, 0o022).map(|_| ())
}

fn create(f: &Fixture, who: Caller, path: &str) -> Result<()> {
    let (dir, last) = f.split(path)?;
    let (_, handle) = f.fs.create(who, dir, &last, 0o640, 0o022, libc::O_RDWR)?;
    f.fs.release(handle);
    Ok(())
}

fn set(f: &Fixture, path: &str, set: SetAttr) -> Result<()> {
    f.fs.setattr(ino(f, path)?, None, &set).map(|_| ())
}

fn chmod(f: &Fixture, path: &str, perm: u16) -> Result<()> {
    let perm = Some(perm);
    let changes = SetAttr {
        perm,
        ..SetAttr::default()
    };
    set(f, path, changes)
}

fn truncate(f: &Fixture, path: &str, size: u64) -> Result<()> {
    let size = Some(size);
    let changes = SetAttr {
        size,
        ..SetAttr::default()
    };
    set(f, path, changes)
}

fn chown(f: &Fixture, path: &str) -> Result<()> {
    let Caller { uid, gid } = other();
    let changes = SetAttr {
        uid: Some(uid),
        gid: Some(gid),
        ..SetAttr::default()
    };
    set(f, path, changes)
}

fn utimens(f: &Fixture, path: &str) -> Result<()> {
    let time = |sec| Some(SetTime::At(Time { sec, nsec: 7 }));
    let changes = SetAttr {
        atime: time(1_000_000),
        mtime: time(2_000_000),
        ..SetAttr::default()
    };
    set(f, path, changes)
}

fn other() -> Caller {
    // Only root can make files of others; anyone else still goes through work/ for a whiteout.
    if rustix::process::geteuid().is_root() {
        Caller { uid: 7, gid: 8 }
    } else {
        me()
    }
}

/// u::rwx, u:77:rw-, g::r-x, m::rwx, o::--- as the kernel's attribute
/// (include/uapi/linux/posix_acl_xattr.h).
const ACL: &[u8] = b"\x02\0\0\0\
    \x01\0\x07\0\xff\xff\xff\xff\x02\0\x06\0\x4d\0\0\0\x04\0\x05\0\xff\xff\xff\xff\
    \x10\0\x07\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";

fn set_acl(f: &Fixture, path: &str, which: &[u8]) -> Result<()> {
    f.fs.setxattr(asker(), ino(f, path)?, which, ACL, 0)
}

fn default_acl(f: &Fixture) {
    set_acl(f, "a", b"system.posix_acl_default").unwrap();
}

fn emptied(f: &Fixture) {
    f.unlink("a/sub/deep").unwrap();
    f.unlink("a/sub/link2").unwrap();
}

pub(super) const COPY_UPS: &[Case] = &[
    case("deep file", nothing, |f| copy_up(f, "a/sub/deep")),
    case("file with attributes", nothing, |f| copy_up(f, "big")),
    case("sparse file", nothing, |f| copy_up(f, "holes")),
    case("set-user-ID", nothing, |f| copy_up(f, "suid")),
    case("group of links", nothing, |f| copy_up(f, "b/link3")),
    case(
        "group that lost a name",
        |f| f.unlink("link1").unwrap(),
        |f| copy_up(f, "b/link3"),
    ),
    case(
        "group in a moved directory",
        |f| f.rename("a", "moved", 0).unwrap(),
        |f| copy_up(f, "b/link3"),
    ),
];

pub(super) const DATA: &[Case] = &[
    case("write", nothing, |f| write(f, "a/x", 3, b"new")),
    case("write through a link", nothing, |f| {
        write(f, "a/sub/link2", 1, b"new")
    }),
    case("cut", nothing, |f| truncate(f, "big", 5_000)),
    case("cut to nothing", nothing, |f| truncate(f, "a/x", 0)),
    case("cut and drop privileges", nothing, |f| {
        let changes = SetAttr {
            size: Some(5),
            perm: Some(0o755),
            ..SetAttr::default()
        };
        set(f, "suid", changes)
    }),
    case("cut a group of links", nothing, |f| truncate(f, "link1", 3)),
    case("lengthen", nothing, |f| truncate(f, "a/x", 1 << 20)),
    case("cut sparse", nothing, |f| truncate(f, "holes", 1 << 20)),
    case(
        "cut what is written to",
        |f| f.write("big", 0, b"!"),
        |f| truncate(f, "big", 77),
    ),
    case("open with O_TRUNC", nothing, |f| {
        opened(f, "big", libc::O_WRONLY | libc::O_TRUNC, |_| Ok(()))
    }),
    case("allocate", nothing, |f| {
        opened(f, "a/x", libc::O_RDWR, |handle| {
            f.fs.fallocate(handle, 0, 0, 100_000)
        })
    }),
    case("punch a hole", nothing, |f| {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        opened(f, "big", libc::O_RDWR, |handle| {
            f.fs.fallocate(handle, mode, 4096, 8192)
        })
    }),
    case("copy a range of the image", nothing, |f| {
        opened(f, "big", libc::O_RDONLY, |from| {
            opened(f, "a/x", libc::O_RDWR, |to| {
                f.fs.copy_file_range(from, 100, to, 4, 8_000).map(|_| ())
            })
        })
    }),
    case(
        "copy a range of the upper",
        |f| f.write("big", 0, b"!"),
        |f| {
            opened(f, "big", libc::O_RDONLY, |from| {
                opened(f, "a/x", libc::O_RDWR, |to| {
                    f.fs.copy_file_range(from, 0, to, 0, 4096).map(|_| ())
                })
            })
        },
    ),
];

pub(super) const ATTRIBUTES: &[Case] = &[
    case("chmod", nothing, |f| chmod(f, "a/x", 0o700)),
    case("chmod of a directory", nothing, |f| {
        chmod(f, "a/sub", 0o700)
    }),
    case("chmod of a link", nothing, |f| chmod(f, "link1", 0o4711)),
    case("chown", nothing, |f| chown(f, "a/x")),
    case("chown of a directory", nothing, |f| chown(f, "a/sub")),
    case("chown of a symbolic link", nothing, |f| chown(f, "sym")),
    case("utimens", nothing, |f| utimens(f, "big")),
    case("utimens of a symbolic link", nothing, |f| utimens(f, "sym")),
    case(
        "utimens in the upper",
        |f| f.write("a/x", 0, b"!"),
        |f| utimens(f, "a/x"),
    ),
    case("setxattr", nothing, |f| {
        f.fs.setxattr(asker(), ino(f, "a/x")?, b"user.k", b"v", 0)
    }),
    case("removexattr", nothing, |f| {
        f.fs.removexattr(ino(f, "big")?, b"user.note")
    }),
    case("access ACL", nothing, |f| {
        set_acl(f, "a/x", b"system.posix_acl_access")
    }),
    case("access ACL of a group of links", nothing, |f| {
        set_acl(f, "link1", b"system.posix_acl_access")
    }),
    case("default ACL", nothing, |f| {
        set_acl(f, "a/sub", b"system.posix_acl_default")
    }),
    case("default ACL removed", default_acl, |f| {
        f.fs.removexattr(ino(f, "a")?, b"system.posix_acl_default")
    }),
];

pub(super) const NEW: &[Case] = &[
    case("directory", nothing, |f| {
        make(f, me(), "a/sub/new", Make::Dir)
    }),
    case("symbolic link", nothing, |f| {
        make(f, me(), "a/sub/new", Make::Symlink(b"t"))
    }),
    case("directory of another", nothing, |f| {
        make(f, other(), "a/new", Make::Dir)
    }),
    case("FIFO of another", nothing, |f| {
        make(f, other(), "a/new", Make::Fifo)
    }),
    case("symbolic link of another", nothing, |f| {
        make(f, other(), "a/new", Make::Symlink(b"t"))
    }),
    case("file", nothing, |f| create(f, me(), "a/new")),
    case("file of another", nothing, |f| create(f, other(), "a/new")),
    case("file under a default ACL", default_acl, |f| {
        create(f, me(), "a/new")
    }),
    case(
        "another's file under a default ACL",
        |f| {
            default_acl(f);
            f.unlink("a/x").unwrap();
        },
        |f| create(f, other(), "a/x"),
    ),
    case("directory under a default ACL", default_acl, |f| {
        make(f, other(), "a/new", Make::Dir)
    }),
    case(
        "file over a whiteout",
        |f| f.unlink("a/x").unwrap(),
        |f| make(f, me(), "a/x", Make::File),
    ),
    case(
        "directory over a whiteout",
        |f| f.rmdir("empty").unwrap(),
        |f| make(f, me(), "empty", Make::Dir),
    ),
    case(
        "symbolic link over a whiteout",
        |f| f.unlink("a/x").unwrap(),
        |f| make(f, me(), "a/x", Make::Symlink(b"t")),
    ),
];

pub(super) const LINKS: &[Case] = &[
    case("link", nothing, |f| f.link("a/y", "b/new").map(|_| ())),
    case("link of a group", nothing, |f| {
        f.link("link1", "a/new").map(|_| ())
    }),
    case("link of a symbolic link", nothing, |f| {
        f.link("sym", "b/new").map(|_| ())
    }),
    case(
        "link over a whiteout",
        |f| f.unlink("a/x").unwrap(),
        |f| f.link("a/y", "a/x").map(|_| ()),
    ),
    case(
        "link of a group over a whiteout",
        |f| f.unlink("a/x").unwrap(),
        |f| f.link("b/link3", "a/x").map(|_| ()),
    ),
];

pub(super) const REMOVALS: &[Case] = &[
    case("of the image", nothing, |f| f.unlink("a/sub/deep")),
    case("of a group", nothing, |f| f.unlink("link1")),
    case(
        "copied up",
        |f| f.write("a/x", 0, b"!"),
        |f| f.unlink("a/x"),
    ),
    case(
        "of the upper",
        |f| {
            f.create("new", b"");
        },
        |f| f.unlink("new"),
    ),
    case("last name of an open file", nothing, |f| {
        opened(f, "a/x", libc::O_RDWR, |handle| {
            f.unlink("a/x")?;
            f.fs.write(handle, 0, b"unseen").map(|_| ())
        })
    }),
    case("last name of a file open for reading", nothing, |f| {
        let ino = ino(f, "a/x")?;
        opened(f, "a/x", libc::O_RDONLY, |_| {
            f.unlink("a/x")?;
            let writer = f.fs.open(ino, libc::O_RDWR)?;
            let written = f.fs.write(writer, 0, b"unseen");
            f.fs.release(writer);
            written.map(|_| ())
        })
    }),
    case("directory of the image", nothing, |f| f.rmdir("empty")),
    case("directory with whiteouts", emptied, |f| f.rmdir("a/sub")),
    case(
        "moved directory with whiteouts",
        |f| {
            emptied(f);
            f.rename("a/sub", "moved", 0).unwrap();
        },
        |f| f.rmdir("moved"),
    ),
    case(
        "directory of the upper",
        |f| {
            f.mkdir("new");
        },
        |f| f.rmdir("new"),
    ),
];

pub(super) const RENAMES: &[Case] = &[
    case("elsewhere", nothing, |f| f.rename("a/x", "b/x", 0)),
    case("over another", nothing, |f| f.rename("a/x", "a/y", 0)),
    case("of a group over another", nothing, |f| {
        f.rename("link1", "a/x", 0)
    }),
    case(
        "over a whiteout",
        |f| f.unlink("big").unwrap(),
        |f| f.rename("a/x", "big", 0),
    ),
    case("of a new file over one of the image", new_file, |f| {
        f.rename("new", "big", 0)
    }),
    case(
        "of a new file over one copied up",
        |f| {
            new_file(f);
            f.write("big", 0, b"!");
        },
        |f| f.rename("new", "big", 0),
    ),
    case("of a symbolic link", nothing, |f| f.rename("sym", "a/s", 0)),
    case("exchange", nothing, |f| f.rename("a/x", "big", 2)),
    case("exchange with a link", nothing, |f| {
        f.rename("a/x", "link1", 2)
    }),
];

fn new_file(f: &Fixture) {
    f.create("new", b"new content");
}

pub(super) const DIRECTORY_RENAMES: &[Case] = &[
    case("elsewhere", nothing, |f| f.rename("a", "b/moved", 0)),
    case("in its place", nothing, |f| f.rename("a/sub", "a/sub2", 0)),
    case("over an empty one", nothing, |f| f.rename("a", "empty", 0)),
    case(
        "over a whiteout",
        |f| f.unlink("big").unwrap(),
        |f| f.rename("a", "big", 0),
    ),
    case("exchange with a file", nothing, |f| f.rename("a", "big", 2)),
    case("exchange of two of the image", nothing, |f| {
        f.rename("a", "b", 2)
    }),
    case("exchange at two depths", nothing, |f| {
        f.rename("a/sub", "b", 2)
    }),
    case("exchange with a new one", new_dir, |f| {
        f.rename("new", "a", 2)
    }),
    case(
        "over one with whiteouts",
        |f| {
            emptied(f);
            new_dir(f);
        },
        |f| f.rename("new", "a/sub", 0),
    ),
    case(
        "where one was moved from",
        |f| {
            new_dir(f);
            f.rename("b", "moved", 0).unwrap();
        },
        |f| f.rename("new", "b", 0),
    ),
];

fn new_dir(f: &Fixture) {
    f.mkdir("new");
    f.create("new/in", b"1");
}
