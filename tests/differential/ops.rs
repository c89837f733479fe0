//! The operations, and how they are chosen.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::more::{More, more};

/// Paths that operations choose from: names of the image, and new ones, in its directories.
pub(crate) const DIRS: [&str; 8] = ["", "a", "a/sub", "b", "c", "c/d", "empty", "big"];
pub(crate) const NAMES: [&[u8]; 12] = [
    b"x",
    b"y",
    b"sub",
    b"link",
    b"a",
    b"b",
    b"c",
    b"d",
    b"sym",
    b"fifo",
    b"not\xffutf-8\x01",
    &[b'n'; 255],
];
/// Where new symbolic links lead: never up, so that none leads out of its tree.
pub(crate) const TARGETS: [&str; 6] = ["some/where", "x", "sym", "sub/x", "link", "sub"];

#[derive(Debug, Clone)]
pub(crate) enum Op {
    Create(usize, u32),
    Write(usize, u64, usize),
    Append(usize, usize),
    Truncate(usize, u64),
    OpenTruncate(usize),
    Mkdir(usize, u32),
    Rmdir(usize),
    Unlink(usize),
    Rename(usize, usize, u32),
    Link(usize, usize),
    Symlink(usize, usize),
    /// Opened through symbolic links, made if missing, and written to.
    Follow(usize, usize),
    /// Two descriptors that append in turn.
    AppendTwice(usize, usize),
    Allocate(usize, u32, u64, u64),
    SetAcl(usize, bool, u16),
    RemoveAcl(usize, bool),
    HoldRead(usize),
    ReadHeld,
    TruncateHeld(u64),
    ChmodHeld(u32),
    LinkHeld(usize),
    HoldDir(usize),
    /// Through the held directory: create, make a directory, remove, list.
    InHeldDir(u8),
    /// A directory goes elsewhere, and a new one takes its name.
    Renew(usize, usize),
    Umask(u32),
    /// As this user and group, with no other groups and no privilege.
    As(u32, u32, Box<Op>),
    Fifo(usize),
    Device(usize),
    Chmod(usize, u32),
    Chown(usize, u32, u32),
    Times(usize, i64),
    SetXattr(usize, u8, usize),
    RemoveXattr(usize, u8),
    Punch(usize, u64, u64),
    CopyRange(usize, usize),
    Hold(usize),
    WriteHeld(u64),
    More(More),
    DropHeld,
    DropCaches,
    Remount,
}

pub(crate) fn path(i: usize) -> PathBuf {
    Path::new(DIRS[i / NAMES.len()]).join(OsStr::from_bytes(NAMES[i % NAMES.len()]))
}

fn user() -> impl Strategy<Value = (u32, u32)> {
    prop::sample::select(vec![(1000_u32, 1000_u32), (1000, 70_000), (2000, 1000)])
}

pub(crate) fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        7 => common_op(),
        3 => more().prop_map(Op::More),
        1 => (user(), more().prop_map(Op::More)).prop_map(|((u, g), op)| Op::As(u, g, Box::new(op))),
    ]
}

/// Operations that root and others can be compared by.
pub(crate) fn common_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => plain_op(),
        1 => held_op(),
        1 => (user(), plain_op()).prop_map(|((u, g), op)| Op::As(u, g, Box::new(op))),
    ]
}

pub(crate) fn held_op() -> impl Strategy<Value = Op> {
    let p = || 0..DIRS.len() * NAMES.len();
    prop_oneof![
        3 => p().prop_map(Op::HoldRead),
        3 => Just(Op::ReadHeld),
        1 => (0..20_000_u64).prop_map(Op::TruncateHeld),
        1 => prop::sample::select(vec![0o600, 0o4755]).prop_map(Op::ChmodHeld),
        3 => p().prop_map(Op::LinkHeld),
        6 => p().prop_map(Op::HoldDir),
        6 => (0..5_u8).prop_map(Op::InHeldDir),
        1 => prop::sample::select(vec![0, 0o022, 0o027, 0o077]).prop_map(Op::Umask),
        2 => (1..DIRS.len(), p()).prop_map(|(d, p)| Op::Renew(d, p)),
    ]
}

pub(crate) fn plain_op() -> impl Strategy<Value = Op> {
    let p = || 0..DIRS.len() * NAMES.len();
    let perm = || prop::sample::select(vec![0o644, 0o600, 0o755, 0o4755, 0o2775, 0o1777, 0o444]);
    let id = || prop::sample::select(vec![0_u32, 1000, 70_000]);
    let small = || 0..20_000_u64;
    prop_oneof![
        3 => (p(), perm()).prop_map(|(p, m)| Op::Create(p, m)),
        3 => (p(), small(), 1..9_000_usize).prop_map(|(p, o, n)| Op::Write(p, o, n)),
        2 => (p(), 1..5_000_usize).prop_map(|(p, n)| Op::Append(p, n)),
        1 => (p(), small()).prop_map(|(p, n)| Op::Truncate(p, n)),
        1 => p().prop_map(Op::OpenTruncate),
        3 => (p(), perm()).prop_map(|(p, m)| Op::Mkdir(p, m)),
        2 => p().prop_map(Op::Rmdir),
        4 => p().prop_map(Op::Unlink),
        6 => (p(), p(), prop::sample::select(vec![0, 0, 0, 0, 1, 1, 2, 2, 3, 4, 8])).prop_map(|(a, b, f)| Op::Rename(a, b, f)),
        3 => (p(), p()).prop_map(|(a, b)| Op::Link(a, b)),
        2 => (p(), 0..TARGETS.len()).prop_map(|(p, t)| Op::Symlink(p, t)),
        2 => (p(), 1..5_000_usize).prop_map(|(p, n)| Op::Follow(p, n)),
        1 => (p(), 1..5_000_usize).prop_map(|(p, n)| Op::AppendTwice(p, n)),
        1 => (p(), prop::sample::select(vec![0, 1, 0x10, 0x11]), small(), 1..9_000_u64)
            .prop_map(|(p, m, o, n)| Op::Allocate(p, m, o, n)),
        2 => (p(), any::<bool>(), 0..8_u16).prop_map(|(p, d, m)| Op::SetAcl(p, d, m)),
        1 => (p(), any::<bool>()).prop_map(|(p, d)| Op::RemoveAcl(p, d)),
        1 => p().prop_map(Op::Fifo),
        1 => p().prop_map(Op::Device),
        2 => (p(), perm()).prop_map(|(p, m)| Op::Chmod(p, m)),
        1 => (p(), id(), id()).prop_map(|(p, u, g)| Op::Chown(p, u, g)),
        1 => (p(), -9..1_999_999_999_i64).prop_map(|(p, t)| Op::Times(p, t)),
        2 => (p(), 0..3_u8, 0..900_usize).prop_map(|(p, k, n)| Op::SetXattr(p, k, n)),
        1 => (p(), 0..3_u8).prop_map(|(p, k)| Op::RemoveXattr(p, k)),
        1 => (p(), small(), 1..9_000_u64).prop_map(|(p, o, n)| Op::Punch(p, o, n)),
        1 => (p(), p()).prop_map(|(a, b)| Op::CopyRange(a, b)),
        1 => p().prop_map(Op::Hold),
        1 => small().prop_map(Op::WriteHeld),
        1 => Just(Op::DropHeld),
        1 => Just(Op::DropCaches),
        1 => Just(Op::Remount),
    ]
}
