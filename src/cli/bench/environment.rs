//! Where and with what it was measured.

use std::path::Path;
use std::process::Command;

use serde::Serialize;
use tarnfs::inode::Time;
use tarnfs::sys::mount::mounts;

use super::child;
use crate::cli::print;

/// The machine, its load, its programs.
#[derive(Debug, Clone, Serialize, Default)]
pub(super) struct Environment {
    /// UTC.
    pub(super) began: String,
    pub(super) kernel: String,
    pub(super) cpu: String,
    pub(super) cpus: usize,
    pub(super) virtual_machine: bool,
    pub(super) memory_mib: u64,
    /// Load averages before and after.
    pub(super) load_before: String,
    pub(super) load_after: String,
    /// Filesystem and mount options of the scratch directory, and of the tar.
    pub(super) scratch_filesystem: String,
    pub(super) image_filesystem: String,
    pub(super) tarnfs: String,
    pub(super) fuse_overlayfs: Option<String>,
    pub(super) tar: Option<String>,
    /// What makes the figures less than they look.
    pub(super) warnings: Vec<String>,
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn field(text: &str, key: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn load() -> String {
    let words = read("/proc/loadavg");
    words
        .split_whitespace()
        .take(3)
        .collect::<Vec<_>>()
        .join(" ")
}

/// The type and options of the filesystem that holds a path.
fn filesystem(path: &Path) -> String {
    let mounts = mounts().unwrap_or_default();
    // The last one of the longest path is on top.
    let found = mounts
        .iter()
        .filter(|mount| path.starts_with(&mount.path))
        .max_by_key(|mount| mount.path.as_os_str().len());
    found.map_or_else(
        || "unknown".to_owned(),
        |mount| {
            format!(
                "{} ({},{})",
                mount.fs_type, mount.options, mount.super_options
            )
        },
    )
}

/// The first line that `program --version` prints, without its name's repetition.
fn version(program: &str) -> Option<String> {
    let text = child::output(Command::new(program).arg("--version")).ok()?;
    // fuse-overlayfs tells of fusermount first.
    let own = text.lines().find(|line| line.contains(program));
    let line = own.or(text.lines().next())?.trim();
    (!line.is_empty()).then(|| line.to_owned())
}

impl Environment {
    pub(super) fn new(scratch: &Path, tar: &Path) -> Self {
        let uname = rustix::system::uname();
        let word = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
        let cpuinfo = read("/proc/cpuinfo");
        let since = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        let now = Time {
            sec: i64::try_from(since.as_secs()).unwrap_or_default(),
            nsec: 0,
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
        let kib: u64 = memory
            .split_whitespace()
            .next()
            .and_then(|n| n.parse().ok())
            .unwrap_or_default();
        let mut warnings = Vec::new();
        if cfg!(debug_assertions) {
            warnings.push("tarnfs is a debug build: its figures mean nothing".to_owned());
        }
        let (scratch, image) = (filesystem(scratch), filesystem(tar));
        if scratch != image {
            warnings.push(
                "the tar lies on another filesystem than the scratch directory: what reads the \
                 tar and what reads the tree read from different places"
                    .to_owned(),
            );
        }
        Self {
            began: print::minute(now),
            kernel: format!(
                "{} {} {}",
                word(uname.sysname()),
                word(uname.release()),
                word(uname.machine())
            ),
            cpu: field(&cpuinfo, "model name").unwrap_or_else(|| "unknown".to_owned()),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            virtual_machine: field(&cpuinfo, "flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            memory_mib: kib >> 10,
            load_before: load(),
            load_after: String::new(),
            scratch_filesystem: scratch,
            image_filesystem: image,
            tarnfs: env!("CARGO_PKG_VERSION").to_owned(),
            fuse_overlayfs: version("fuse-overlayfs"),
            tar: version("tar"),
            warnings,
        }
    }

    /// The load at the end; more than the benchmark itself makes is worth a word.
    pub(super) fn ended(&mut self) {
        self.load_after = load();
        let first = |text: &str| text.split(' ').next()?.parse::<f64>().ok();
        if first(&self.load_before).is_some_and(|load| load > 0.5) {
            self.warnings.push(format!(
                "the machine was busy before it began (load {}): ratios suffer, absolute times more",
                self.load_before
            ));
        }
    }

    /// All of it, for people: label and value.
    pub(super) fn lines(&self) -> Vec<(&'static str, String)> {
        let none = || "not installed".to_owned();
        let guest = if self.virtual_machine {
            ", virtual machine"
        } else {
            ""
        };
        vec![
            ("began", format!("{} UTC", self.began)),
            ("kernel", self.kernel.clone()),
            ("CPU", format!("{} × {}{guest}", self.cpus, self.cpu)),
            ("memory", format!("{} MiB", self.memory_mib)),
            (
                "load",
                format!("{} before, {} after", self.load_before, self.load_after),
            ),
            ("scratch on", self.scratch_filesystem.clone()),
            ("tar on", self.image_filesystem.clone()),
            ("tarnfs", self.tarnfs.clone()),
            (
                "fuse-overlayfs",
                self.fuse_overlayfs.clone().unwrap_or_else(none),
            ),
            ("tar(1)", self.tar.clone().unwrap_or_else(none)),
        ]
    }
}
