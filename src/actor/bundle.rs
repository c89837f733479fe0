//! OCI bundles: a directory with config.json and `rootfs`, which runc, crun, runsc and whatever
//! else follows the OCI runtime specification run as it is.
//!
//! ```text
//! DIR/config.json          for the runtime
//! DIR/rootfs               the mount point
//! DIR/upper, DIR/work      what is written, unless an upper was given
//! DIR/files                copies of the host's resolv.conf and hosts
//! DIR/tarnfs-bundle.json   what is ours in DIR: written first, removed last
//! ```
//! Removing *never* touches a directory without that last file, nor an upper that was given.

mod rootfs;

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::image::{Program, SHELLS};
use super::spec::{self, Capabilities, IdMapping, Mount, Namespace, Net, Process, Spec};
use super::{ActorError, inroot, mounts, run, users};
use crate::mount::{How, MountError, find_mount, remove_private, unmount};
use crate::upper::overlayfs_has;

pub use rootfs::{check_dir, check_rootfs, equip, forget, make_rootfs, refuse_link};

const RECORD: &str = "tarnfs-bundle.json";
/// What is made in it before anything is mounted.
const DIRS: [&str; 2] = ["rootfs", "files"];

/// What a bundle's directory holds of ours (`tarnfs-bundle.json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The image.
    pub image: PathBuf,
    /// Nothing can be written.
    pub read_only: bool,
    /// The upper that was given; `None` is the bundle's own.
    pub upper: Option<PathBuf>,
    /// The work directory that goes with `upper`.
    pub work: Option<PathBuf>,
    /// DIR itself was made for the bundle.
    pub made_dir: bool,
}

/// A bundle's directory.
#[derive(Debug, Clone)]
pub struct Bundle {
    dir: PathBuf,
    record: Record,
}

/// What config.json is to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The program.
    pub program: Program,
    /// The runtime makes a terminal for it.
    pub terminal: bool,
    /// Its host name; `None` is `tarnfs`.
    pub hostname: Option<String>,
    /// Its network.
    pub net: Net,
    /// Set-user-ID and file capabilities have no effect.
    pub no_new_privs: bool,
    /// The runtime will run as this user and group, who are not root.
    pub rootless: Option<(u32, u32)>,
}

impl Bundle {
    /// Makes the directories of a bundle in `dir`, or finds them there: then the image and the
    /// upper must be the same as before.
    ///
    /// # Errors
    /// [`ActorError::Refused`] when `dir` holds something else; the system's.
    pub fn prepare(dir: &Path, mut record: Record) -> Result<Self, ActorError> {
        let failed = |path: &Path| ActorError::path("cannot make", path.to_owned());
        record.made_dir = !dir.exists();
        fs::create_dir_all(dir).map_err(failed(dir))?;
        let dir = dir.canonicalize().map_err(failed(dir))?;
        if let Some(old) = found_in(&dir, &record)? {
            record.made_dir = old.made_dir;
        }
        let path = dir.join(RECORD);
        let text =
            serde_json::to_vec_pretty(&record).map_err(|e| failed(&path)(io::Error::other(e)))?;
        fs::write(&path, text).map_err(failed(&path))?;
        for name in DIRS {
            let path = dir.join(name);
            fs::create_dir_all(&path).map_err(failed(&path))?;
        }
        Ok(Self { dir, record })
    }

    /// The record that makes the directory a bundle: gone when the bundle is.
    #[must_use]
    pub fn record_path(&self) -> PathBuf {
        self.dir.join(RECORD)
    }

    /// Where the root filesystem is to be mounted.
    #[must_use]
    pub fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    /// Upper and work directory; `None` for a read-only bundle.
    #[must_use]
    pub fn writes(&self) -> Option<(PathBuf, PathBuf)> {
        if self.record.read_only {
            return None;
        }
        let own = |name: &str| self.dir.join(name);
        Some((
            self.record.upper.clone().unwrap_or_else(|| own("upper")),
            self.record.work.clone().unwrap_or_else(|| own("work")),
        ))
    }

    /// Whether the root filesystem is mounted.
    ///
    /// # Errors
    /// The system's.
    pub fn is_mounted(&self) -> Result<bool, ActorError> {
        let rootfs = self.rootfs();
        Ok(find_mount(&rootfs)
            .map_err(ActorError::path("cannot look for a mount at", &rootfs))?
            .is_some())
    }

    /// Writes config.json, once the root filesystem is mounted: users and shells are looked up
    /// in it.
    ///
    /// # Errors
    /// [`ActorError::Refused`] for an unknown user, no shell, bytes that JSON cannot hold; the
    /// system's.
    pub fn configure(&self, config: &Config) -> Result<Spec, ActorError> {
        let rootfs = self.rootfs();
        let root = mounts::open_root(&rootfs).map_err(ActorError::path("cannot open", &rootfs))?;
        let spec = self.spec(config, &root)?;
        let path = self.dir.join("config.json");
        let failed = || ActorError::path("cannot write", &path);
        let mut text =
            serde_json::to_vec_pretty(&spec).map_err(|e| failed()(io::Error::other(e)))?;
        text.push(b'\n');
        fs::write(&path, text).map_err(failed())?;
        Ok(spec)
    }

    fn spec(&self, config: &Config, root: &OwnedFd) -> Result<Spec, ActorError> {
        let program = &config.program;
        let who = users::resolve(root.as_fd(), &program.user)?;
        let mut args = strings(&program.args)?;
        if args.is_empty() {
            let shell = SHELLS
                .iter()
                .find(|shell| inroot::is_executable(root.as_fd(), Path::new(shell)));
            args.push((*shell.ok_or_else(no_shell)?).to_owned());
        }
        let mut env = strings(&program.env)?;
        if program.add_home {
            env.push(format!("HOME={}", string(&who.home)?));
        }
        let hostname = config
            .hostname
            .clone()
            .unwrap_or_else(|| "tarnfs".to_owned());
        let mut mounts = spec::default_mounts();
        let mut namespaces = spec::namespaces(config.net);
        let (mut uid_mappings, mut gid_mappings) = (Vec::new(), Vec::new());
        if let Some((uid, gid)) = config.rootless {
            namespaces.push(Namespace {
                kind: "user".to_owned(),
            });
            let single = |host_id| {
                vec![IdMapping {
                    container_id: 0,
                    host_id,
                    size: 1,
                }]
            };
            (uid_mappings, gid_mappings) = (single(uid), single(gid));
            rootless_mounts(&mut mounts);
        } else {
            mounts.push(spec::cgroup_mount());
        }
        for (copy, place) in
            run::network_files(&self.dir.join("files"), config.net, Some(&hostname))?
        {
            // A runtime makes what it binds over; nothing can be made in a read-only root.
            if self.record.read_only && inroot::open(root.as_fd(), &place, OFlags::PATH).is_err() {
                continue;
            }
            mounts.push(Mount::bind(copy, place, false));
        }
        Ok(Spec {
            oci_version: spec::VERSION.to_owned(),
            process: Process {
                terminal: config.terminal,
                user: who.user,
                args,
                env,
                cwd: string(&program.cwd)?,
                capabilities: Capabilities::container_default(),
                no_new_privileges: config.no_new_privs,
            },
            root: spec::Root {
                path: "rootfs".to_owned(),
                readonly: self.record.read_only,
            },
            hostname: Some(hostname),
            mounts,
            linux: spec::Linux {
                uid_mappings,
                gid_mappings,
                resources: config.rootless.is_none().then(spec::Resources::no_devices),
                namespaces,
                masked_paths: spec::masked_paths(),
                readonly_paths: spec::readonly_paths(),
            },
        })
    }
}

/// As `runc spec --rootless`: no group tty in a namespace of one number, and the host's /sys.
fn rootless_mounts(mounts: &mut [Mount]) {
    for mount in mounts {
        mount.options.retain(|option| option != "gid=5");
        if mount.kind == "sysfs" {
            "bind".clone_into(&mut mount.kind);
            mount.source = "/sys".into();
            mount.options.insert(0, "rbind".to_owned());
        }
    }
}

fn no_shell() -> ActorError {
    ActorError::Refused("the image has neither /bin/bash nor /bin/sh; give a command".into())
}

fn string(bytes: &[u8]) -> Result<String, ActorError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| {
        let shown = String::from_utf8_lossy(bytes).into_owned();
        ActorError::Refused(format!(
            "{shown:?} is not UTF-8, and config.json cannot hold it"
        ))
    })
}

fn strings(list: &[Vec<u8>]) -> Result<Vec<String>, ActorError> {
    list.iter().map(|bytes| string(bytes)).collect()
}

/// The record of the bundle in `dir`, a directory that is to be that of `record`; `None` where there
/// is nothing yet.
fn found_in(dir: &Path, record: &Record) -> Result<Option<Record>, ActorError> {
    if let Some(old) = read_record(dir)? {
        return match (&old.image, &old.upper) == (&record.image, &record.upper) {
            true => Ok(Some(old)),
            false => Err(ActorError::Refused(format!(
                "{} is a bundle of {} with another image or upper; remove it first (tarnfs bundle \
                 --remove)",
                dir.display(),
                old.image.display()
            ))),
        };
    }
    let mut entries = fs::read_dir(dir).map_err(ActorError::path("cannot read", dir))?;
    match entries.next() {
        None => Ok(None),
        Some(_) => Err(ActorError::Refused(format!(
            "{} is not empty, and no bundle of tarnfs",
            dir.display()
        ))),
    }
}

fn read_record(dir: &Path) -> Result<Option<Record>, ActorError> {
    let path = dir.join(RECORD);
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|e| ActorError::path("cannot read", &path)(io::Error::other(e))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ActorError::path("cannot read", &path)(error)),
    }
}

/// Unmounts the bundle in `dir` and removes what is tarnfs' in it. A directory that does not
/// exist is no error.
///
/// # Errors
/// [`ActorError::Refused`] when `dir` is no bundle of tarnfs; [`ActorError::Mount`] when a
/// container still uses it; the system's.
pub fn remove(dir: &Path, keep_upper: bool) -> Result<(), ActorError> {
    let dir = match dir.canonicalize() {
        Ok(dir) => dir,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(ActorError::path("cannot find", dir)(error)),
    };
    let Some(record) = read_record(&dir)? else {
        return Err(ActorError::Refused(format!(
            "{} is no bundle of tarnfs",
            dir.display()
        )));
    };
    let how = How {
        lazy: false,
        force: false,
        wait: Duration::from_secs(60),
    };
    unmount(&dir.join("rootfs"), how).map_err(|e| ActorError::Mount(Box::new(e)))?;
    // A container may have the mount in a namespace of its own, where the kernel serves it.
    if overlayfs_has(&dir.join("work")).unwrap_or(false) {
        return Err(ActorError::Mount(Box::new(MountError::StillUsed(
            dir.join("rootfs"),
        ))));
    }
    let keep_upper = keep_upper && dir.join("upper").exists();
    let mut doomed = vec!["config.json", "files"];
    if !keep_upper {
        doomed.extend(["upper", "work"]);
    }
    // Not `remove`: whatever lies under a mount point is not ours.
    match fs::remove_dir(dir.join("rootfs")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(ActorError::path("cannot remove", dir.join("rootfs"))(error));
        }
        _ => {}
    }
    for name in doomed {
        let path = dir.join(name);
        let result = if path.is_dir() {
            remove_private(&path)
        } else {
            fs::remove_file(&path)
        };
        match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(ActorError::path("cannot remove", path)(error));
            }
            _ => {}
        }
    }
    if keep_upper {
        return Ok(());
    }
    let path = dir.join(RECORD);
    fs::remove_file(&path).map_err(ActorError::path("cannot remove", &path))?;
    if record.made_dir {
        // The runtime, or its user, may have left something there.
        match fs::remove_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => {
                return Err(ActorError::path("cannot remove", &dir)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actor::image::{Asked, ImageConfig};

    fn record() -> Record {
        Record {
            image: "/i.tar".into(),
            read_only: false,
            upper: None,
            work: None,
            made_dir: false,
        }
    }

    #[test]
    fn a_directory_of_others_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), "mine").unwrap();
        assert!(Bundle::prepare(dir.path(), record()).is_err());
        assert!(remove(dir.path(), false).is_err());
        assert_eq!(fs::read(dir.path().join("config.json")).unwrap(), b"mine");
    }

    #[test]
    fn prepared_twice_and_removed_twice() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("b");
        let bundle = Bundle::prepare(&at, record()).unwrap();
        Bundle::prepare(&at, record()).unwrap();
        let other = Record {
            image: "/other.tar".into(),
            ..record()
        };
        assert!(Bundle::prepare(&at, other).is_err());
        assert_eq!(
            bundle.writes(),
            Some((bundle.dir.join("upper"), bundle.dir.join("work")))
        );
        remove(&at, false).unwrap();
        assert!(!at.exists());
        remove(&at, false).unwrap();
    }

    #[test]
    fn the_specification_of_a_small_root() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("b");
        let bundle = Bundle::prepare(&at, record()).unwrap();
        fs::create_dir_all(at.join("rootfs/etc")).unwrap();
        fs::write(at.join("rootfs/etc/passwd"), "app:x:7:8::/srv:/bin/sh\n").unwrap();
        let asked = Asked {
            user: Some("app".into()),
            ..Asked::default()
        };
        let mut config = Config {
            program: Program::new(&ImageConfig::default(), &asked).unwrap(),
            terminal: false,
            hostname: None,
            net: Net::Host,
            no_new_privs: false,
            rootless: None,
        };
        assert!(bundle.configure(&config).is_err(), "no shell, no command");
        config.program.args = vec![b"/bin/x".to_vec()];
        let spec = bundle.configure(&config).unwrap();
        assert_eq!((spec.process.user.uid, spec.process.user.gid), (7, 8));
        assert!(spec.process.env.contains(&"HOME=/srv".to_owned()));
        assert!(!spec.linux.namespaces.iter().any(|n| n.kind == "network"));
        let written: Spec =
            serde_json::from_slice(&fs::read(at.join("config.json")).unwrap()).unwrap();
        assert_eq!(written, spec);
        config.program.args = vec![b"\xff".to_vec()];
        assert!(bundle.configure(&config).is_err());
    }
}
