//! Who is compared: the table, and how each one is mounted and taken off.
//!
//! tarnfs and fuse-overlayfs are started as programs, as their users do. The kernel's own
//! filesystems are mounted by system calls from this process, without a program's start: where
//! that makes a difference (mount, unmount) it is to their advantage.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::fs::{CWD, FileType, Mode, makedev};
use tarnfs::lower::BlobFile;
use tarnfs::sys::mount::{
    MountAttrs, Param, attach, create_detached, detached_tmpfs, mounts, unmount,
};

use super::slot::Slot;
use super::{apart, child};

/// This very program.
pub(super) const SELF: &str = "/proc/self/exe";

/// How long a server may take to end after its mount has gone.
const LEAVING: Duration = Duration::from_secs(60);

/// Somebody who can serve an image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Contender {
    pub(super) name: &'static str,
    pub(super) what: &'static str,
    pub(super) how: How,
}

/// By what a contender serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// `tarnfs mount` with these arguments; each of the words must stand in its help.
    Tarnfs {
        args: &'static [&'static str],
        needs: &'static [&'static str],
    },
    /// Kernel overlayfs on the extracted tree.
    Overlayfs,
    /// The same, and the extraction is part of it.
    Untar,
    /// Kernel EROFS on our index and the tar, under kernel overlayfs.
    Erofs,
    /// fuse-overlayfs on the extracted tree.
    FuseOverlayfs,
}

/// What ratios are taken to.
pub(super) const BASELINE: &str = "overlayfs";

/// The one that takes part always.
pub(super) const OURS: &str = "tarnfs";

/// All of them, in the order that they are shown in.
pub(super) const ALL: [Contender; 8] = [
    Contender {
        name: OURS,
        what: "tarnfs mount: a FUSE server",
        how: How::Tarnfs {
            args: &[],
            needs: &[],
        },
    },
    Contender {
        name: "tarnfs-replies",
        what: "the FUSE server without passthrough: every read is its reply",
        how: How::Tarnfs {
            args: &["-o", "passthrough=off"],
            needs: &["passthrough"],
        },
    },
    Contender {
        name: "tarnfs-noopen",
        what: "the FUSE server that the kernel does not tell of opens",
        how: How::Tarnfs {
            args: &["-o", "noopen"],
            needs: &["noopen"],
        },
    },
    Contender {
        name: "tarnfs-kernel",
        what: "tarnfs mount --engine kernel: EROFS and overlayfs, no server",
        how: How::Tarnfs {
            args: &["--engine", "kernel"],
            needs: &["--engine"],
        },
    },
    Contender {
        name: BASELINE,
        what: "kernel overlayfs on the tree, extracted beforehand",
        how: How::Overlayfs,
    },
    Contender {
        name: "untar",
        what: "tar -x, then kernel overlayfs on the tree: the first start",
        how: How::Untar,
    },
    Contender {
        name: "erofs",
        what: "kernel EROFS on the index and the tar, kernel overlayfs on it, by system calls",
        how: How::Erofs,
    },
    Contender {
        name: "fuse-overlayfs",
        what: "fuse-overlayfs on the tree, extracted beforehand",
        how: How::FuseOverlayfs,
    },
];

/// The one called so.
pub(super) fn named(name: &str) -> Option<&'static Contender> {
    ALL.iter().find(|contender| contender.name == name)
}

/// What a mount is made from.
#[derive(Debug, Clone)]
pub(super) struct Sources {
    pub(super) tar: PathBuf,
    /// tarnfs' store.
    pub(super) store: PathBuf,
    /// The extracted tree.
    pub(super) tree: PathBuf,
    /// The index and what it lies over, for the kernel.
    pub(super) index: PathBuf,
    pub(super) blobs: Vec<PathBuf>,
}

impl Sources {
    /// `tarnfs` with this store.
    pub(super) fn tarnfs(&self, command: &str) -> Command {
        let mut tarnfs = Command::new(SELF);
        tarnfs.arg(command).arg("--store").arg(&self.store);
        tarnfs
    }

    /// Extracts the tar, as root does who wants all of it.
    pub(super) fn extract(&self) -> anyhow::Result<()> {
        std::fs::create_dir(&self.tree)?;
        child::run(
            Command::new("tar")
                .args(["--numeric-owner", "--same-owner", "--xattrs"])
                .args(["--xattrs-include=*", "-xpf"])
                .arg(&self.tar)
                .arg("-C")
                .arg(&self.tree),
        )
    }

    /// What makes an index beside the store.
    pub(super) fn index_command(&self) -> Command {
        let mut command = self.tarnfs("index");
        command.arg("-o").arg(&self.index).arg(&self.tar);
        command
    }

    /// Makes the index for the kernel, beside the store.
    pub(super) fn write_index(&mut self) -> anyhow::Result<()> {
        child::run(&mut self.index_command())?;
        let mut side = self.index.clone().into_os_string();
        side.push(".side");
        let side = PathBuf::from(side);
        self.blobs = vec![self.tar.clone()];
        if side.exists() {
            self.blobs.push(side);
        }
        Ok(())
    }

    /// The index that the store has.
    pub(super) fn take_index(&mut self, index: PathBuf, blobs: Vec<BlobFile>) {
        self.index = index;
        self.blobs = blobs.into_iter().map(|blob| blob.path).collect();
    }
}

impl Slot {
    /// Mounts an image here. The mount must go before the slot does.
    pub(super) fn mount(&self, contender: &Contender, sources: &Sources) -> anyhow::Result<Mount> {
        // What a failure leaves is taken off by the guard.
        let mut mount = Mount {
            root: self.at("mnt"),
            how: contender.how,
            points: Vec::new(),
            over: false,
        };
        let (upper, work) = (self.at("upper"), self.at("work"));
        match contender.how {
            How::Tarnfs { args, .. } => {
                let mut command = sources.tarnfs("mount");
                command.args(args).arg("--upper").arg(upper);
                command.arg("--work").arg(work);
                child::run(command.arg(&sources.tar).arg(&mount.root))?;
                mount.points.push(mount.root.clone());
            }
            How::Overlayfs | How::Untar => mount.overlay(&sources.tree, &upper, &work)?,
            How::Erofs => {
                let at = self.at("erofs");
                let mut params = vec![Param::String("source", sources.index.clone().into())];
                params.extend(
                    sources
                        .blobs
                        .iter()
                        .map(|blob| Param::String("device", blob.clone().into())),
                );
                let mut attrs = MountAttrs::default();
                attrs.set(MountAttrs::RDONLY);
                let erofs = create_detached("erofs", &params, attrs, || Ok(()))
                    .context("mounting EROFS")?;
                attach(erofs.as_fd(), &at)?;
                mount.points.push(at.clone());
                mount.overlay(&at, &upper, &work)?;
            }
            How::FuseOverlayfs => {
                let mut options = OsString::from("lowerdir=");
                for (key, path) in [
                    ("", &sources.tree),
                    (",upperdir=", &upper),
                    (",workdir=", &work),
                ] {
                    options.push(key);
                    options.push(path);
                }
                let mut command = Command::new("fuse-overlayfs");
                child::run(command.arg("-o").arg(options).arg(&mount.root))?;
                mount.points.push(mount.root.clone());
            }
        }
        Ok(mount)
    }
}

/// A mount; taken off when dropped.
#[derive(Debug)]
pub(super) struct Mount {
    root: PathBuf,
    how: How,
    /// What is mounted, in that order.
    points: Vec<PathBuf>,
    over: bool,
}

impl Mount {
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// A path of the image.
    pub(super) fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    fn overlay(&mut self, lower: &Path, upper: &Path, work: &Path) -> anyhow::Result<()> {
        let params = [
            Param::String("source", "overlay".into()),
            Param::String("lowerdir", lower.into()),
            Param::String("upperdir", upper.into()),
            Param::String("workdir", work.into()),
        ];
        let overlay = create_detached("overlay", &params, MountAttrs::default(), || Ok(()))
            .context("mounting overlayfs")?;
        attach(overlay.as_fd(), &self.root)?;
        self.points.push(self.root.clone());
        Ok(())
    }

    /// /proc and a /dev with the usual few nodes in the mount, as a container has them.
    pub(super) fn with_system(&mut self) -> anyhow::Result<()> {
        for name in ["proc", "dev"] {
            let at = self.root.join(name);
            if !at.is_dir() {
                std::fs::create_dir(&at).with_context(|| format!("making /{name}"))?;
            }
            if name == "proc" {
                rustix::mount::mount_bind("/proc", &at).context("binding /proc")?;
            } else {
                let tmpfs = detached_tmpfs(Some(1 << 20), None).context("a tmpfs for /dev")?;
                attach(tmpfs.as_fd(), &at)?;
                device_nodes(&at)?;
            }
            self.points.push(at);
        }
        Ok(())
    }

    /// Takes it off, as its user would: what is timed.
    pub(super) fn take_off(&mut self) -> anyhow::Result<()> {
        while let Some(point) = self.points.pop() {
            let is_root = point == self.root;
            let done = match self.how {
                How::Tarnfs { .. } if is_root => {
                    child::run(Command::new(SELF).arg("umount").arg(&point))
                }
                _ => unmount(&point, false).with_context(|| format!("umount {}", point.display())),
            };
            if done.is_err() {
                self.points.push(point);
                return done;
            }
        }
        Ok(())
    }

    /// Waits until nobody serves it any more.
    pub(super) fn finish(mut self) -> anyhow::Result<()> {
        self.take_off()?;
        self.over = true;
        wait_for_servers(&self.root)
    }

    /// The processes that serve it.
    pub(super) fn servers(&self) -> Vec<u32> {
        servers(&self.root)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        for point in self.points.iter().rev() {
            if let Err(error) = unmount(point, true) {
                tracing::warn!("{}: not unmounted: {error}", point.display());
            }
        }
        if let Err(error) = wait_for_servers(&self.root) {
            tracing::warn!("{error:#}");
        }
    }
}

/// What nearly every program wants of /dev.
fn device_nodes(dev: &Path) -> anyhow::Result<()> {
    for (name, minor) in [
        ("null", 3),
        ("zero", 5),
        ("full", 7),
        ("random", 8),
        ("urandom", 9),
    ] {
        let mode = Mode::from_raw_mode(0o666);
        let number = makedev(1, minor);
        rustix::fs::mknodat(CWD, dev.join(name), FileType::CharacterDevice, mode, number)
            .with_context(|| format!("making /dev/{name}"))?;
    }
    Ok(())
}

/// Takes off whatever is mounted below a directory: nothing may be removed through a mount.
pub(super) fn take_off_below(dir: &Path) {
    let Ok(mounts) = mounts() else {
        return;
    };
    for mount in mounts.iter().rev().filter(|m| m.path.starts_with(dir)) {
        if let Err(error) = unmount(&mount.path, true) {
            tracing::warn!("{}: not unmounted: {error}", mount.path.display());
        }
    }
}

/// Processes that have a mount point's path among their arguments. A mount point of the benchmark
/// has a name that nobody else has.
fn servers(root: &Path) -> Vec<u32> {
    let wanted = root.as_os_str().as_encoded_bytes();
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| *pid != std::process::id())
        .filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|&c| c == 0).any(|arg| arg == wanted)
        })
        .collect()
}

fn wait_for_servers(root: &Path) -> anyhow::Result<()> {
    let start = Instant::now();
    while !servers(root).is_empty() {
        if start.elapsed() > LEAVING {
            bail!("{}: its server does not end", root.display());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    apart::reap();
    Ok(())
}
