//! The `-o` options of mount(8): from the command line, from fstab, from `mount -t fuse.tarnfs`.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, anyhow, bail};
use clap::ValueEnum as _;
use tarnfs::mount::EngineChoice;
use tarnfs::mount::control::Listen;
use tarnfs::sys::mount::MountAttrs;

use super::engine::EngineName;
use super::mount::Verify;
use super::serving::{Awake, PassThrough, Switch};

/// What a list of options asks for. The last word on a thing counts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) attrs: MountAttrs,
    pub(crate) super_flags: Vec<&'static str>,
    pub(crate) remount: bool,
    pub(crate) engine: Option<EngineChoice>,
    pub(crate) allow_other: Option<bool>,
    pub(crate) source: Option<OsString>,
    pub(crate) subtype: Option<String>,
    pub(crate) max_read: Option<u32>,
    pub(crate) read_ahead: Option<u32>,
    pub(crate) passthrough: Option<PassThrough>,
    pub(crate) upper_passthrough: Option<Switch>,
    pub(crate) noopen: bool,
    pub(crate) keep_awake: Option<Awake>,
    pub(crate) verify: Option<Verify>,
    pub(crate) record: Option<PathBuf>,
    pub(crate) prefetch: Option<PathBuf>,
    pub(crate) prefetch_max: Option<u64>,
    pub(crate) control: Option<PathBuf>,
    pub(crate) metrics: Option<Listen>,
    pub(crate) upper: Option<PathBuf>,
    pub(crate) work: Option<PathBuf>,
    /// A private tmpfs as upper: its size in bytes, if one was given.
    pub(crate) tmpfs: Option<Option<u64>>,
    /// The most that the upper may hold: bytes, and inodes.
    pub(crate) size: Option<u64>,
    pub(crate) inodes: Option<u64>,
    /// No fsync: a crash of the machine may lose what the upper holds.
    pub(crate) volatile: bool,
    /// An option that only the kernel's list of a living mount has: mount(8) repeats it for a
    /// remount.
    kernel_only: Option<String>,
    pub(crate) store: Option<PathBuf>,
    pub(crate) log: Option<String>,
    pub(crate) log_file: Option<PathBuf>,
}

impl Options {
    /// Parses the lists of all `-o`. `sloppy` (mount(8)'s `-s`) passes over unknown options.
    pub(crate) fn parse(lists: &[OsString], sloppy: bool) -> anyhow::Result<Self> {
        let mut options = Self::default();
        for list in lists {
            for item in split(list.as_bytes()) {
                if !options.take(&item)? && !sloppy {
                    bail!(
                        "unknown mount option {:?} (see `tarnfs mount --help`)",
                        OsStr::from_bytes(&item)
                    );
                }
            }
        }
        match &options.kernel_only {
            Some(name) if !options.remount && !sloppy => {
                bail!("mount option {name}= is the kernel's to set")
            }
            _ => Ok(options),
        }
    }

    /// Takes one option; false when there is none of that name.
    fn take(&mut self, item: &[u8]) -> anyhow::Result<bool> {
        let (key, value) = match item.iter().position(|&c| c == b'=') {
            Some(at) => {
                let (key, rest) = item.split_at(at);
                (key, rest.get(1..))
            }
            None => (item, None),
        };
        let Ok(key) = std::str::from_utf8(key) else {
            return Ok(false);
        };
        match value {
            None => Ok(self.take_word(key) || key == "tmpfs" && self.take_tmpfs(None)),
            Some(value) => self.take_value(key, value),
        }
    }

    fn take_word(&mut self, word: &str) -> bool {
        let attrs = &mut self.attrs;
        match word {
            "ro" => attrs.set(MountAttrs::RDONLY),
            "rw" => attrs.clear(MountAttrs::RDONLY),
            "nosuid" => attrs.set(MountAttrs::NOSUID),
            "suid" => attrs.clear(MountAttrs::NOSUID),
            "nodev" => attrs.set(MountAttrs::NODEV),
            "dev" => attrs.clear(MountAttrs::NODEV),
            "noexec" => attrs.set(MountAttrs::NOEXEC),
            "exec" => attrs.clear(MountAttrs::NOEXEC),
            "nodiratime" => attrs.set(MountAttrs::NODIRATIME),
            "diratime" => attrs.clear(MountAttrs::NODIRATIME),
            "nosymfollow" => attrs.set(MountAttrs::NOSYMFOLLOW),
            "symfollow" => attrs.clear(MountAttrs::NOSYMFOLLOW),
            "noatime" => attrs.set_atime(MountAttrs::NOATIME),
            "strictatime" => attrs.set_atime(MountAttrs::STRICTATIME),
            "relatime" | "atime" | "norelatime" | "nostrictatime" => {
                attrs.set_atime(MountAttrs::RELATIME);
            }
            "sync" => self.super_flag("sync", true),
            "async" => self.super_flag("sync", false),
            "dirsync" => self.super_flag("dirsync", true),
            "lazytime" => self.super_flag("lazytime", true),
            "nolazytime" => self.super_flag("lazytime", false),
            "volatile" => self.volatile = true,
            "noopen" => self.noopen = true,
            "remount" => self.remount = true,
            "allow_other" => self.allow_other = Some(true),
            "noallow_other" => self.allow_other = Some(false),
            // mount(8) says them expanded as well (noexec, nosuid, nodev).
            "user" | "users" | "nouser" | "owner" | "group" => {}
            // For mount(8), fstab's readers and systemd; and what is always so here.
            "defaults"
            | "auto"
            | "noauto"
            | "nofail"
            | "_netdev"
            | "silent"
            | "loud"
            | "default_permissions" => {}
            word => return word.starts_with("x-") || word.starts_with("X-"),
        }
        true
    }

    fn take_value(&mut self, key: &str, value: &[u8]) -> anyhow::Result<bool> {
        let path = || {
            if value.is_empty() {
                bail!("mount option {key}= names nothing");
            }
            Ok(PathBuf::from(OsString::from_vec(value.to_vec())))
        };
        let text = || {
            std::str::from_utf8(value)
                .map(str::to_owned)
                .with_context(|| format!("mount option {key}= is not UTF-8"))
        };
        match key {
            "upperdir" | "upper" => self.upper = Some(path()?),
            "workdir" | "work" => self.work = Some(path()?),
            "store" => self.store = Some(path()?),
            "log" => self.log = Some(text()?),
            "engine" => {
                let name = text()?;
                let parsed = clap::ValueEnum::from_str(&name, false);
                let Ok(EngineName(engine)) = parsed else {
                    bail!("mount option engine={name}: there are fuse, kernel and auto");
                };
                self.engine = Some(engine);
            }
            "log_file" => self.log_file = Some(path()?),
            "fsname" => self.source = Some(path()?.into_os_string()),
            "subtype" => self.subtype = Some(text()?),
            "max_read" => self.max_read = Some(parsed(key, &text()?)?),
            "readahead" => self.read_ahead = Some(parsed(key, &text()?)?),
            "passthrough" => self.passthrough = Some(parsed(key, &text()?)?),
            "upper_passthrough" => self.upper_passthrough = Some(parsed(key, &text()?)?),
            "verify" => {
                let said = text()?;
                let verify = Verify::from_str(&said, false);
                self.verify = Some(
                    verify.map_err(|_| anyhow!("mount option {key}={said}: never or on-mount"))?,
                );
            }
            "keep_awake" => self.keep_awake = Some(parsed(key, &text()?)?),
            "control" => self.control = Some(path()?),
            "metrics" => self.metrics = Some(parsed(key, &text()?)?),
            "record" => self.record = Some(path()?),
            "prefetch" => self.prefetch = Some(path()?),
            "prefetch_max" => self.prefetch_max = Some(parse_size(&text()?)?),
            "size" => self.size = Some(parse_size(&text()?)?),
            "inodes" => self.inodes = Some(parse_count(&text()?)?),
            "tmpfs" => return Ok(self.take_tmpfs(Some(parse_size(&text()?)?))),
            "user" | "comment" => {}
            "user_id" | "group_id" | "blksize" => self.kernel_only = Some(key.to_owned()),
            key => return Ok(key.starts_with("x-") || key.starts_with("X-")),
        }
        Ok(true)
    }

    fn take_tmpfs(&mut self, size: Option<u64>) -> bool {
        self.tmpfs = Some(size);
        true
    }

    fn super_flag(&mut self, flag: &'static str, on: bool) {
        self.super_flags.retain(|f| *f != flag);
        if on {
            self.super_flags.push(flag);
        }
    }
}

/// Splits at commas; `\,` and `\\` stand for themselves, as in overlayfs' options. Empty items
/// (`a,,b`) are nothing.
fn split(list: &[u8]) -> Vec<Vec<u8>> {
    let mut items = Vec::new();
    let mut item = Vec::new();
    let mut bytes = list.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => item.push(
                bytes
                    .next_if(|next| matches!(next, b',' | b'\\'))
                    .unwrap_or(b'\\'),
            ),
            b',' => items.push(std::mem::take(&mut item)),
            other => item.push(other),
        }
    }
    items.push(item);
    items.retain(|item| !item.is_empty());
    items
}

/// The value of an option that says by itself what is wrong with it.
fn parsed<T>(key: &str, said: &str) -> anyhow::Result<T>
where
    T: FromStr<Err: Display>,
{
    said.parse()
        .map_err(|why| anyhow!("mount option {key}={said}: {why}"))
}

/// A number of bytes, with k, m, g or t for powers of 1024.
pub(crate) fn parse_size(text: &str) -> anyhow::Result<u64> {
    let (digits, shift) = match text.char_indices().next_back() {
        Some((at, unit @ ('k' | 'K' | 'm' | 'M' | 'g' | 'G' | 't' | 'T'))) => {
            let shift = match unit.to_ascii_lowercase() {
                'k' => 10,
                'm' => 20,
                'g' => 30,
                _ => 40,
            };
            (text.get(..at).unwrap_or_default(), shift)
        }
        _ => (text, 0),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift))
        .filter(|&n| n > 0)
        .with_context(|| format!("{text:?} is not a size (such as 512M or 2G)"))
}

/// A number of inodes.
pub(crate) fn parse_count(text: &str) -> anyhow::Result<u64> {
    let count = text.parse::<u64>().ok().filter(|&n| n > 0);
    count.with_context(|| format!("{text:?} is not a number of inodes (1 or more)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(list: &str) -> anyhow::Result<Options> {
        Options::parse(&[list.into()], false)
    }

    #[test]
    fn what_fstab_says() {
        let o = parse("defaults,ro,nosuid,nodev,noatime,_netdev,nofail,x-systemd.automount,X-mount.mkdir=0755,upperdir=/u,workdir=/w,fsname=img,user=alice").unwrap();
        assert!(o.attrs.has(MountAttrs::RDONLY) && o.attrs.has(MountAttrs::NOSUID));
        assert!(o.attrs.has(MountAttrs::NOATIME) && !o.attrs.has(MountAttrs::NOEXEC));
        assert_eq!(o.upper, Some("/u".into()));
        assert_eq!(o.work, Some("/w".into()));
        assert_eq!(o.source, Some("img".into()));
    }

    #[test]
    fn the_last_word_counts() {
        let o = parse("ro,rw,nosuid,suid,sync,async,noatime,relatime").unwrap();
        assert!(!o.attrs.has(MountAttrs::RDONLY) && !o.attrs.has(MountAttrs::NOSUID));
        assert!(!o.attrs.has(MountAttrs::NOATIME));
        assert!(o.super_flags.is_empty());
        let lists = ["ro".into(), "rw,remount".into()];
        let o = Options::parse(&lists, false).unwrap();
        assert!(o.remount && !o.attrs.has(MountAttrs::RDONLY));
    }

    #[test]
    fn commas_and_odd_bytes_in_paths() {
        let o = parse("upperdir=/a\\,b\\\\c=d,,rw,").unwrap();
        assert_eq!(o.upper, Some("/a,b\\c=d".into()));
        let odd = OsString::from_vec(b"upperdir=/\xff\\x".to_vec());
        let o = Options::parse(&[odd], false).unwrap();
        assert_eq!(o.upper.unwrap().as_os_str().as_bytes(), b"/\xff\\x");
    }

    #[test]
    fn unknown_options_are_named() {
        for (bad, named) in [("rw,bogus", "bogus"), ("lowerdir=/x", "lowerdir=/x")] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
        assert!(parse("user_id=0").is_err());
        assert!(parse("rw,user_id=0,group_id=0,allow_other,remount").is_ok());
        assert!(parse("upperdir=").is_err());
        assert!(parse("max_read=many").is_err());
        assert!(parse("readahead=-1").is_err());
        assert!(parse("passthrough=some").is_err());
        assert!(parse("upper_passthrough=maybe").is_err());
        assert!(parse("keep_awake=maybe").is_err());
        assert!(parse("record=").is_err());
        assert!(parse("control=").is_err());
        assert!(parse("metrics=0.0.0.0:9100").is_err());
        assert!(parse("prefetch_max=0").is_err());
        assert!(parse("engine=steam").is_err());
        assert!(
            Options::parse(&["bogus,ro".into()], true)
                .unwrap()
                .attrs
                .has(MountAttrs::RDONLY)
        );
    }

    #[test]
    fn sizes() {
        assert_eq!(parse("tmpfs").unwrap().tmpfs, Some(None));
        assert_eq!(parse("tmpfs=512M").unwrap().tmpfs, Some(Some(512 << 20)));
        let quota = parse("size=1g,inodes=500").unwrap();
        assert_eq!((quota.size, quota.inodes), (Some(1 << 30), Some(500)));
        for bad in ["size=", "size=0", "inodes=0", "inodes=1k", "inodes=-1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_size("7").unwrap(), 7);
        assert_eq!(parse_size("1t").unwrap(), 1 << 40);
        for bad in ["", "M", "-1", "0", "1.5G", "99999999999999T", "50%", "1é"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
