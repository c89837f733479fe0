//! The part of the OCI runtime specification (1.0.2) that tarnfs writes and follows, and the
//! defaults for an actor.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::caps;

/// The version of the specification that [`Spec`] follows.
pub const VERSION: &str = "1.0.2";

/// config.json of a bundle (config.md of the specification).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    /// Version of the specification.
    pub oci_version: String,
    /// The program.
    pub process: Process,
    /// Its root filesystem.
    pub root: Root,
    /// Its host name.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub hostname: Option<String>,
    /// What is mounted on top of the root filesystem, in this order.
    pub mounts: Vec<Mount>,
    /// What only Linux has.
    pub linux: Linux,
}

/// `process` of config.json.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Whether the runtime makes a terminal for it.
    pub terminal: bool,
    /// Who it is.
    pub user: User,
    /// The program and its arguments.
    pub args: Vec<String>,
    /// Its environment, `NAME=value`.
    pub env: Vec<String>,
    /// Its working directory, absolute.
    pub cwd: String,
    /// What it may do.
    pub capabilities: Capabilities,
    /// Set-user-ID and file capabilities have no effect.
    pub no_new_privileges: bool,
}

/// `process.user` of config.json.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// User number.
    pub uid: u32,
    /// Group number.
    pub gid: u32,
    /// Supplementary groups.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub additional_gids: Vec<u32>,
}

/// `process.capabilities` of config.json: sets of capability names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Capabilities {
    /// The most that can ever be gained.
    pub bounding: Vec<String>,
    /// In effect.
    pub effective: Vec<String>,
    /// May be put in effect.
    pub permitted: Vec<String>,
    /// Kept for executables that inherit.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inheritable: Vec<String>,
    /// Kept through exec without being root.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ambient: Vec<String>,
}

impl Capabilities {
    /// [`caps::DEFAULT`] for root; nothing inheritable or ambient, so another user has none.
    #[must_use]
    pub fn container_default() -> Self {
        let names: Vec<String> = caps::DEFAULT.iter().map(ToString::to_string).collect();
        Self {
            bounding: names.clone(),
            effective: names.clone(),
            permitted: names,
            inheritable: Vec::new(),
            ambient: Vec::new(),
        }
    }
}

/// `root` of config.json.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Where it is, relative to the bundle.
    pub path: String,
    /// Whether it is read only.
    pub readonly: bool,
}

/// One of `mounts` of config.json.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where, inside the root filesystem; absolute.
    pub destination: PathBuf,
    /// Filesystem type, or `bind`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The device, or the path to bind.
    pub source: PathBuf,
    /// Mount options.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub options: Vec<String>,
}

impl Mount {
    fn new(destination: &str, kind: &str, source: &str, options: &[&str]) -> Self {
        Self {
            destination: destination.into(),
            kind: kind.to_owned(),
            source: source.into(),
            options: options.iter().map(ToString::to_string).collect(),
        }
    }

    /// A bind mount of `source`, with what is mounted below it.
    #[must_use]
    pub fn bind(source: PathBuf, destination: PathBuf, read_only: bool) -> Self {
        let access = if read_only { "ro" } else { "rw" };
        Self {
            destination,
            kind: "bind".to_owned(),
            source,
            options: vec!["rbind".to_owned(), "rprivate".to_owned(), access.to_owned()],
        }
    }
}

/// `linux` of config.json.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Linux {
    /// User numbers inside and outside, when there is a user namespace.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub uid_mappings: Vec<IdMapping>,
    /// Group numbers inside and outside.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub gid_mappings: Vec<IdMapping>,
    /// Limits: no device beyond the default ones.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub resources: Option<Resources>,
    /// Which namespaces are new.
    pub namespaces: Vec<Namespace>,
    /// What cannot be read.
    pub masked_paths: Vec<String>,
    /// What cannot be written.
    pub readonly_paths: Vec<String>,
}

/// One range of an ID mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    /// First number inside.
    #[serde(rename = "containerID")]
    pub container_id: u32,
    /// First number outside.
    #[serde(rename = "hostID")]
    pub host_id: u32,
    /// How many.
    pub size: u32,
}

/// `linux.resources` of config.json.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Rules of the device cgroup.
    pub devices: Vec<DeviceRule>,
}

impl Resources {
    /// No device beyond the default ones, which runtimes always allow.
    #[must_use]
    pub fn no_devices() -> Self {
        Self {
            devices: vec![DeviceRule {
                allow: false,
                access: "rwm".to_owned(),
            }],
        }
    }
}

/// A rule of the device cgroup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    /// Whether it allows.
    pub allow: bool,
    /// r, w, m.
    pub access: String,
}

/// One of `linux.namespaces` of config.json.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// Which: pid, network, ipc, uts, mount, user, cgroup.
    #[serde(rename = "type")]
    pub kind: String,
}

/// Whether an actor has the host's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Net {
    /// The host's own.
    #[default]
    Host,
    /// A loopback device and nothing else.
    None,
}

/// What every actor has mounted: what "Default Filesystems" of the specification's config-linux.md
/// demands, and what engines add.
#[must_use]
pub fn default_mounts() -> Vec<Mount> {
    let safe = ["nosuid", "noexec", "nodev"];
    let with = |more: &[&'static str]| -> Vec<&'static str> { [&safe[..], more].concat() };
    vec![
        Mount::new("/proc", "proc", "proc", &safe),
        Mount::new(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        Mount::new(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        Mount::new(
            "/dev/shm",
            "tmpfs",
            "shm",
            &with(&["mode=1777", "size=65536k"]),
        ),
        Mount::new("/dev/mqueue", "mqueue", "mqueue", &safe),
        Mount::new("/sys", "sysfs", "sysfs", &with(&["ro"])),
    ]
}

/// The control groups' filesystem, read only, as runtimes mount it.
#[must_use]
pub fn cgroup_mount() -> Mount {
    let options = ["nosuid", "noexec", "nodev", "relatime", "ro"];
    Mount::new("/sys/fs/cgroup", "cgroup", "cgroup", &options)
}

/// Paths under /proc and /sys that tell of the host, or let it be changed.
#[must_use]
pub fn masked_paths() -> Vec<String> {
    [
        "/proc/acpi",
        "/proc/asound",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/sys/firmware",
        "/sys/devices/virtual/powercap",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Paths under /proc that can be read only.
#[must_use]
pub fn readonly_paths() -> Vec<String> {
    [
        "/proc/bus",
        "/proc/fs",
        "/proc/irq",
        "/proc/sys",
        "/proc/sysrq-trigger",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// The namespaces of an actor.
#[must_use]
pub fn namespaces(net: Net) -> Vec<Namespace> {
    let network: &[&str] = match net {
        Net::Host => &[],
        Net::None => &["network"],
    };
    ["pid", "ipc", "uts", "mount"]
        .iter()
        .chain(network)
        .map(|kind| Namespace {
            kind: (*kind).to_owned(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_specification() {
        let mount = serde_json::to_value(Mount::bind("/a".into(), "/b".into(), true)).unwrap();
        assert_eq!(
            mount,
            serde_json::json!({
                "destination": "/b", "type": "bind", "source": "/a",
                "options": ["rbind", "rprivate", "ro"],
            })
        );
        let user = User {
            uid: 1,
            gid: 2,
            additional_gids: vec![3],
        };
        assert_eq!(
            serde_json::to_value(user).unwrap(),
            serde_json::json!({"uid": 1, "gid": 2, "additionalGids": [3]})
        );
        let map = IdMapping {
            container_id: 0,
            host_id: 1000,
            size: 1,
        };
        assert_eq!(
            serde_json::to_value(map).unwrap(),
            serde_json::json!({"containerID": 0, "hostID": 1000, "size": 1})
        );
    }

    #[test]
    fn parents_are_mounted_before_children() {
        let mounts = default_mounts();
        for (at, mount) in mounts.iter().enumerate() {
            for later in &mounts[at + 1..] {
                assert!(!mount.destination.starts_with(&later.destination));
            }
        }
    }
}
