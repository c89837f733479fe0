//! A bundle around an actor's mount: one that is made for it, or one whose config.json somebody
//! else has written, who runs it as it is.

use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat};
use serde_json::Value;

use super::{Bundle, Config, DIRS, RECORD, Record, found_in, read_record};
use crate::actor::inroot::{self, Make};
use crate::actor::{ActorError, mounts};

const CONFIG: &str = "config.json";
const ROOTFS: &str = "rootfs";
/// A config.json has some ten thousand bytes.
const CONFIG_MAX: u64 = 16 << 20;

/// Makes `dir/rootfs`, to mount on: `dir` is to become a bundle, is one already, or holds a
/// config.json of the caller's.
///
/// # Errors
/// [`ActorError::Refused`]: `dir` or its rootfs is a symbolic link, or it holds something else; the
/// system's.
pub fn make_rootfs(dir: &Path, record: &Record) -> Result<(), ActorError> {
    refuse_link(dir)?;
    refuse_link(&dir.join(ROOTFS))?;
    if !is_others(dir) {
        Bundle::prepare(dir, record.clone())?;
        return Ok(());
    }
    let rootfs = dir.join(ROOTFS);
    match fs::create_dir(&rootfs) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            Err(ActorError::path("cannot make", rootfs)(e))
        }
        _ => Ok(()),
    }
}

/// Refuses what [`make_rootfs`] would refuse, and a config.json that [`equip`] could not complete;
/// makes nothing.
///
/// # Errors
/// As [`make_rootfs`].
pub fn check_rootfs(dir: &Path, record: &Record) -> Result<(), ActorError> {
    refuse_link(dir)?;
    refuse_link(&dir.join(ROOTFS))?;
    if is_others(dir) {
        read(&dir.join(CONFIG))?;
        return check_dir(&dir.join(ROOTFS));
    }
    check_dir(dir)?;
    if dir.exists() {
        found_in(dir, record)?;
    }
    DIRS.iter().try_for_each(|name| check_dir(&dir.join(name)))
}

/// Refuses a path where there is no directory and none can be made.
///
/// # Errors
/// [`ActorError::Refused`]: it is something else, or lies in something else; the system's.
pub fn check_dir(path: &Path) -> Result<(), ActorError> {
    for above in path.ancestors() {
        match fs::metadata(above) {
            Ok(found) if !found.is_dir() => {
                let shown = above.display();
                return Err(ActorError::Refused(format!("{shown}: not a directory")));
            }
            Ok(_) if above == path => return Ok(()),
            Ok(_) => {
                let how = Access::WRITE_OK | Access::EXEC_OK;
                return accessat(CWD, above, how, AtFlags::EACCESS)
                    .map_err(|e| ActorError::path("cannot make", path)(e.into()));
            }
            // A link that leads nowhere is no place to make anything.
            Err(e) if e.kind() == io::ErrorKind::NotFound && !above.is_symlink() => {}
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => {}
            Err(e) => return Err(ActorError::path("cannot make", path)(e)),
        }
    }
    Ok(())
}

/// Refuses a symbolic link where a directory is to be mounted on or written to.
///
/// # Errors
/// [`ActorError::Refused`].
pub fn refuse_link(path: &Path) -> Result<(), ActorError> {
    match path.symlink_metadata() {
        Ok(found) if found.is_symlink() => Err(ActorError::Refused(format!(
            "{}: is a symbolic link; give the directory itself",
            path.display()
        ))),
        _ => Ok(()),
    }
}

/// Whether the config.json in `dir` is somebody else's.
fn is_others(dir: &Path) -> bool {
    dir.join(CONFIG).exists() && !dir.join(RECORD).exists()
}

/// Completes the bundle in `dir` once its root filesystem is mounted: writes config.json by
/// `config` where there is none, lets it name the rootfs, and makes in there what its mounts are
/// to be mounted on, since a runtime that is to follow the image's symbolic links is no place for
/// trust. A path of the image that leads elsewhere is made within the root.
///
/// # Errors
/// [`ActorError`]: the config.json is none; the system's.
pub fn equip(dir: &Path, config: &Config) -> Result<(), ActorError> {
    let path = dir.join(CONFIG);
    let failed = |what| ActorError::path(what, path.clone());
    if !path.exists()
        && let Some(record) = read_record(dir)?
    {
        let dir = dir.to_owned();
        Bundle { dir, record }.configure(config)?;
    }
    let mut spec = read(&path)?;
    if name_rootfs(&mut spec) {
        let mut text = serde_json::to_vec_pretty(&spec)
            .map_err(|e| failed("cannot write")(io::Error::other(e)))?;
        text.push(b'\n');
        replace(dir, &path, &text).map_err(failed("cannot write"))?;
    }
    make_points(&dir.join(ROOTFS), &spec)
}

fn read(path: &Path) -> Result<Value, ActorError> {
    let failed = || ActorError::path("cannot read", path);
    let bad = |why: String| ActorError::Refused(format!("{}: {why}", path.display()));
    if fs::metadata(path).map_err(failed())?.len() > CONFIG_MAX {
        return Err(bad("too long for a bundle's config.json".to_owned()));
    }
    let text = fs::read(path).map_err(failed())?;
    let spec: Value = serde_json::from_slice(&text)
        .map_err(|e| bad(format!("no config.json of a bundle: {e}")))?;
    match spec.is_object() {
        true => Ok(spec),
        false => Err(bad("no config.json of a bundle".to_owned())),
    }
}

/// Lets `root.path` be the rootfs; whether it was not.
fn name_rootfs(spec: &mut Value) -> bool {
    let Some(spec) = spec.as_object_mut() else {
        return false;
    };
    let root = spec
        .entry("root")
        .or_insert_with(|| Value::Object(serde_json::Map::new()));
    match root.get("path").and_then(Value::as_str) {
        Some(ROOTFS) => false,
        _ => {
            if !root.is_object() {
                *root = Value::Object(serde_json::Map::new());
            }
            if let Some(root) = root.as_object_mut() {
                root.insert("path".to_owned(), ROOTFS.into());
            }
            true
        }
    }
}

fn replace(dir: &Path, path: &Path, text: &[u8]) -> io::Result<()> {
    let mut temp = tempfile::NamedTempFile::new_in(dir)?;
    temp.write_all(text)?;
    if let Ok(old) = fs::metadata(path) {
        temp.as_file().set_permissions(old.permissions())?;
    }
    temp.persist(path).map_err(|e| e.error)?;
    Ok(())
}

/// Makes what is mounted on, in order: a later mount may lie in an earlier one, which hides what is
/// made below it, and is made by the runtime.
fn make_points(rootfs: &PathBuf, spec: &Value) -> Result<(), ActorError> {
    let Some(list) = spec.get("mounts").and_then(Value::as_array) else {
        return Ok(());
    };
    let read_only = spec.pointer("/root/readonly") == Some(&Value::Bool(true));
    let root = mounts::open_root(rootfs).map_err(ActorError::path("cannot open", rootfs))?;
    let mut covered: Vec<PathBuf> = Vec::new();
    for mount in list {
        let Some(at) = mount.get("destination").and_then(Value::as_str) else {
            continue;
        };
        let at = Path::new("/").join(at);
        if covered
            .iter()
            .any(|above| at.starts_with(above) && at != *above)
        {
            continue;
        }
        let made = inroot::ensure(root.as_fd(), &at, kind_of(mount));
        match made {
            Ok(_) => {}
            // The runtime will say so, if it minds.
            Err(e) if read_only => tracing::debug!("{}: {e}", at.display()),
            Err(e) => {
                return Err(ActorError::path("cannot make in the root filesystem", at)(
                    e,
                ));
            }
        }
        covered.push(at);
    }
    Ok(())
}

/// Of a file that is bound a file; else a directory.
fn kind_of(mount: &Value) -> Make {
    let source = mount.get("source").and_then(Value::as_str);
    let options = mount.get("options").and_then(Value::as_array);
    let binds = mount.get("type").and_then(Value::as_str) == Some("bind")
        || options.is_some_and(|all| {
            all.iter()
                .any(|o| matches!(o.as_str(), Some("bind" | "rbind")))
        });
    match source {
        Some(source) if binds && fs::metadata(source).is_ok_and(|found| !found.is_dir()) => {
            Make::File
        }
        _ => Make::Dir,
    }
}

/// Takes away what [`make_rootfs`] and [`equip`] have made in `dir`; a config.json of the caller's
/// stays, and so does what anybody has put there. Nothing is mounted on the rootfs any more.
///
/// # Errors
/// The system's.
pub fn forget(dir: &Path) -> Result<(), ActorError> {
    if dir.join(RECORD).exists() {
        return super::remove(dir, false);
    }
    let rootfs = dir.join(ROOTFS);
    match fs::remove_dir(&rootfs) {
        Err(e)
            if !matches!(
                e.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::DirectoryNotEmpty
                    | io::ErrorKind::NotADirectory
            ) =>
        {
            Err(ActorError::path("cannot remove", rootfs)(e))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn bundle(config: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("rootfs")).unwrap();
        fs::write(dir.path().join("config.json"), config).unwrap();
        dir
    }

    fn points(dir: &Path) -> Result<(), ActorError> {
        let spec = read(&dir.join("config.json")).unwrap();
        make_points(&dir.join("rootfs"), &spec)
    }

    #[test]
    fn points_are_made_within_the_root() {
        let outside = tempfile::tempdir().unwrap();
        let dir = bundle(
            r#"{"mounts": [{"destination": "/proc", "type": "proc"},
                {"destination": "/etc/resolv.conf", "type": "bind", "source": "/etc/passwd"},
                {"destination": "/run/x/y", "type": "tmpfs"},
                {"destination": "/proc/sys", "type": "bind"}]}"#,
        );
        let root = dir.path().join("rootfs");
        symlink(outside.path(), root.join("run")).unwrap();
        // What the link means within the root.
        fs::create_dir_all(root.join(outside.path().strip_prefix("/").unwrap())).unwrap();
        points(dir.path()).unwrap();
        assert!(root.join("proc").is_dir() && !root.join("proc/sys").exists());
        assert!(root.join("etc/resolv.conf").is_file());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        let inside = root.join(outside.path().strip_prefix("/").unwrap());
        assert!(inside.join("x/y").is_dir());
    }

    #[test]
    fn a_link_that_leads_nowhere_is_not_made() {
        let dir = bundle(r#"{"mounts": [{"destination": "/run/lock"}]}"#);
        symlink("/nowhere/at/all", dir.path().join("rootfs/run")).unwrap();
        assert!(points(dir.path()).is_err());
    }

    #[test]
    fn the_callers_config_keeps_what_it_says() {
        let dir = bundle(r#"{"x": 1, "root": {"path": "/elsewhere", "readonly": true}}"#);
        let mut spec = read(&dir.path().join("config.json")).unwrap();
        assert!(name_rootfs(&mut spec) && !name_rootfs(&mut spec));
        assert_eq!(
            spec,
            serde_json::json!({"x": 1, "root": {"path": "rootfs", "readonly": true}})
        );
        let mut spec = serde_json::json!({"root": 7});
        assert!(name_rootfs(&mut spec));
        forget(dir.path()).unwrap();
        assert!(dir.path().join("config.json").exists());
        assert!(!dir.path().join("rootfs").exists());
    }

    #[test]
    fn what_is_no_config_is_told() {
        for bad in ["", "[]", "7", "{"] {
            let dir = bundle(bad);
            let error = read(&dir.path().join("config.json"))
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("config.json") && !error.contains('\n'),
                "{error}"
            );
        }
    }
}
