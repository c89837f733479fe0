//! The reference registry (`docker-registry`) on loopback, filled by `skopeo`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::json;
use tarnfs::digest::Digest;
use tempfile::TempDir;

use super::{has, ok};

/// user `user`, password `secret`.
const HTPASSWD: &str = "user:$2y$05$TMvX6YNnvWyPxwGYPVyABOZ4fAPRhWFHLJgnh2/.DUCDt3Bl0nSyW\n";
const AUTH: &str = "dXNlcjpzZWNyZXQ=";
/// The same, as `skopeo --dest-creds` takes it.
pub(crate) const CREDENTIALS: &str = "user:secret";

/// A registry of one test alone.
pub(crate) struct Server {
    dir: TempDir,
    address: String,
    child: Child,
}

impl Server {
    /// None, loudly, where it cannot be.
    pub(crate) fn start(password: bool) -> Option<Self> {
        if !has("docker-registry") || !has("skopeo") {
            return None;
        }
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let root = dir.path();
        let auth = if password {
            fs::write(root.join("htpasswd"), HTPASSWD).unwrap();
            json!({"htpasswd": {"realm": "test", "path": root.join("htpasswd")}})
        } else {
            json!({})
        };
        let config = json!({
            "version": 0.1,
            "log": {"level": "info"},
            "storage": {"filesystem": {"rootdirectory": root.join("data")}},
            "http": {"addr": "127.0.0.1:0"},
            "auth": auth,
        });
        // JSON is YAML.
        fs::write(root.join("config.yml"), config.to_string()).unwrap();
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(root.join("config.yml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let address = loop {
            let mut line = String::new();
            if log.read_line(&mut line).unwrap() == 0 {
                panic!("the registry ended: {:?}", child.wait());
            }
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest.split(['"', ' ', ',']).next().unwrap().to_owned();
            }
        };
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Some(Self {
            dir,
            address,
            child,
        })
    }

    /// Its directory, which is gone with it.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// What `tag` of its one repository is called.
    pub(crate) fn image(&self, tag: &str) -> String {
        format!("{}/a/b:{tag}", self.address)
    }

    /// A file with its credentials, as `podman login` writes it.
    pub(crate) fn auth_file(&self) -> PathBuf {
        let file = self.path().join("auth.json");
        let auths = json!({"auths": {self.address.as_str(): {"auth": AUTH}}});
        fs::write(&file, auths.to_string()).unwrap();
        file
    }

    /// Copies the image of an OCI layout, which may have `:TAG` behind it, to [`Self::image`].
    pub(crate) fn skopeo(&self, args: &[&str], layout: &Path, tag: &str) {
        let mut command = vec!["copy", "--quiet", "--dest-tls-verify=false"];
        command.extend(args);
        let from = format!("oci:{}", layout.display());
        let to = format!("docker://{}", self.image(tag));
        command.extend([from.as_str(), to.as_str()]);
        ok("skopeo", command);
    }

    /// Loses the bytes of a blob: who asks for them gets an error from then on.
    pub(crate) fn lose(&self, blob: &Digest) {
        let hex = blob.hex();
        let dir = self.path().join("data/docker/registry/v2/blobs/sha256");
        fs::remove_file(dir.join(&hex[..2]).join(hex).join("data")).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}
