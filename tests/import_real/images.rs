//! Images as people make them: a Debian root, changed in a container by buildah and in a bundle by
//! umoci, with layers of GNU tar's on top, and then one small layer after the other.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use serde_json::json;
use tarnfs::digest::Digest;

use crate::common::tarball::Tarball;
use crate::common::{Sandbox, has, ok, skip, small_image};
use crate::layout;
use crate::make::{self, Pack};

/// A layout with images `few`, `some` and `many`, of 6, 30 and 128 layers. Each has the layers of
/// the one before.
pub(crate) const TAGS: [&str; 3] = ["few", "some", "many"];
pub(crate) const FEW: usize = 6;
const SOME: usize = 30;
const MANY: usize = 128;

pub(crate) fn layers(tag: &str) -> usize {
    match tag {
        "few" => FEW,
        "some" => SOME,
        _ => MANY,
    }
}

/// The image's own configuration; `few` has it.
const CONFIG: &[&str] = &[
    "--config.env=FROM=the image",
    "--config.env=PATH=/usr/bin:/bin",
    "--config.user=70000:70001",
    "--config.workingdir=/srv/work dir",
    "--config.entrypoint=/bin/sh",
    "--config.entrypoint=-c",
    "--config.cmd=echo \"$FROM,$(id -u):$(id -g),$(pwd)\"",
];
/// What its entry point prints.
pub(crate) const SAYS: &str = "the image,70000:70001,/srv/work dir\n";

/// What an upgrade and an administrator leave, run in the root of a container. Overlayfs, by which
/// buildah tells the layer, makes an opaque directory of one that was made anew.
const CONTAINER: &str = r#"
    cp -p usr/bin/env usr/bin/env.new; printf more >> usr/bin/env.new; mv usr/bin/env.new usr/bin/env
    echo upgraded >> var/lib/dpkg/status; rm -r etc/apt
    rm -r odd/many; mkdir odd/many; echo 1 > odd/many/name-00001; echo x > odd/many/x
    mv etc/alternatives usr/lib/alternatives; ln -s ../usr/lib/alternatives etc/alternatives
    rm odd/types/dangling; mkdir odd/types/dangling; echo in > odd/types/dangling/in
    rm odd/links/b; echo more >> odd/links/deep/a; ln odd/links/big odd/big
    chmod 4711 odd/modes/none; chown 1:2 odd/modes/sticky; chmod 0711 odd/names; rm -r odd/times
    mkdir -p 'srv/work dir' srv/new; setcap cap_net_raw+ep usr/bin/id
    setfattr -n user.new -v value srv/new; setfattr -x user.note odd/xattrs/file
    mknod srv/new/char c 5 1; mknod srv/new/block b 7 1; mkfifo srv/new/fifo
    head -c 200000 /dev/urandom > srv/new/random
"#;

/// The same in a bundle, whose changes umoci finds by its manifest of the tree (mtree(8)).
const BUNDLE: &str = r#"
    rm -r odd/acls/inherits; echo file > odd/acls/inherits; setfacl -m u:71000:rw odd/acls/inherits
    rm srv/new/fifo; mkdir -p srv/new/fifo/deep; echo deep > srv/new/fifo/deep/er
    setfacl -d -m u:71001:r srv/new/fifo; setfattr -n trusted.new -v 0x0001ff srv/new/fifo
    rm -r usr/lib/alternatives/../../share/doc; echo again > odd/sizes/4096; rm odd/sizes/4097
    echo group > srv/new/one; ln srv/new/one srv/new/two; ln srv/new/one srv/three
    install -m 2755 -o 12 -g 34 /bin/true srv/new/setgid
    n=$(printf 'n%.0s' $(seq 255)); mkdir -p srv/$n/$n; echo long > srv/$n/$n/$n
    ln -s $n/$n srv/short; chown -h 5:6 srv/short
    truncate -s 3M srv/sparse; printf data | dd of=srv/sparse bs=1 seek=1500000 conv=notrunc status=none
"#;

/// Hard links to what lower layers have: `odd/links/a`, a symbolic link and `srv/three` are not in
/// the tar.
const LINKS: &str = r#"
    mkdir -p odd/links usr/share; echo a > odd/links/a; ln odd/links/a usr/share/a
    ln -s target odd/links/symlink; ln odd/links/symlink usr/share/symlink
    mkdir srv; echo three > srv/three; ln srv/three srv/three4; ln srv/three srv/three5
    mkdir -p odd/types; : > odd/types/.wh.loop; : > odd/.wh.owners; mkdir odd/owners
    echo new > odd/owners/new
"#;
const NOT_PACKED: &[&str] = &["./odd/links/a", "./odd/links/symlink", "./srv/three"];

/// Files whose directories no entry tells of, behind symbolic links, sparse.
const IMPLIED: &str = r#"
    mkdir -p etc/alternatives bin srv/new srv/implied/deep
    echo through > etc/alternatives/through; echo program > bin/program; : > bin/.wh.yes
    echo in > srv/implied/deep/in; ln bin/program srv/implied/program
    truncate -s 2M srv/holes; for n in 0 1 2 3 4 5 6; do
        printf piece | dd of=srv/holes bs=1 seek=$((n * 250001)) conv=notrunc status=none
    done
"#;

/// The images; `None`, loudly, where they cannot be made.
pub(crate) struct Images {
    sandbox: Sandbox,
}

impl Images {
    /// One for all tests that run at a time; it goes with the last of them.
    pub(crate) fn get() -> Option<Arc<Self>> {
        static SHARED: Mutex<Weak<Images>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(images) = shared.upgrade() {
            return Some(images);
        }
        let images = Arc::new(Self::make()?);
        *shared = Arc::downgrade(&images);
        Some(images)
    }

    fn make() -> Option<Self> {
        let programs = [
            "umoci", "skopeo", "buildah", "setfacl", "setfattr", "setcap",
        ];
        if !rustix::process::geteuid().is_root() {
            skip("needs root (device nodes, owners)");
            return None;
        }
        if !programs.iter().all(|program| has(program)) {
            return None;
        }
        let images = Self {
            sandbox: Sandbox::new(),
        };
        let root = images.root()?;
        images.umoci("init", &["--layout", images.layout().to_str().unwrap()]);
        images.umoci("new", &["--image", &images.image("few")]);
        images.add(&root, "few", "few");
        images.umoci(
            "config",
            &[&["--image", &images.image("few")], CONFIG].concat(),
        );
        images.in_a_container();
        images.in_a_bundle();
        let scripts = [
            (LINKS, Pack::Without(NOT_PACKED)),
            (IMPLIED, Pack::Files),
            ("mkdir srv; echo last > srv/last", Pack::All),
        ];
        for tar in make::layers(&images.sandbox, &scripts) {
            images.add(&tar, "few", "few");
        }
        let mut tag = "few";
        for n in FEW..MANY {
            let next = if n < SOME { "some" } else { "many" };
            let tar = images.sandbox.at("small.tar");
            fs::write(&tar, small(n)).unwrap();
            images.add(&tar, tag, next);
            tag = next;
        }
        Some(images)
    }

    pub(crate) fn layout(&self) -> PathBuf {
        self.sandbox.at("layout")
    }

    /// An image of the layout, as umoci calls it.
    pub(crate) fn image(&self, tag: &str) -> String {
        format!("{}:{tag}", self.layout().display())
    }

    /// What umoci unpacks.
    pub(crate) fn unpack(&self, tag: &str) -> PathBuf {
        let bundle = self.sandbox.at(format!("bundle-{tag}"));
        self.umoci(
            "unpack",
            &["--image", &self.image(tag), bundle.to_str().unwrap()],
        );
        bundle.join("rootfs")
    }

    fn umoci(&self, command: &str, args: &[&str]) {
        ok("umoci", [&[command][..], args].concat());
    }

    fn add(&self, tar: &Path, tag: &str, to: &str) {
        let (image, tar) = (self.image(tag), tar.to_str().unwrap());
        let args = ["raw", "add-layer", "--image", &image, "--tag", to, tar];
        ok("umoci", args);
    }

    /// The tar of the root, without what the images do without: two large holes, and what takes
    /// most of the time. `TARNFS_TEST_FULL=1` takes the image of tests/images/make-real-image.sh.
    fn root(&self) -> Option<PathBuf> {
        let tree = self.sandbox.dir("root");
        let (from, without): (PathBuf, &[&str]) = if std::env::var_os("TARNFS_TEST_FULL").is_some()
        {
            let recipe = "tests/images/make-real-image.sh";
            let dir = ok(&format!("{}/{recipe}", env!("CARGO_MANIFEST_DIR")), [""; 0]);
            (Path::new(dir.trim_end()).join("real.pax.tar"), &[])
        } else {
            let without: &[&str] = &[
                "--exclude=./usr/lib/git-core",
                "--exclude=./usr/bin/git*",
                "--exclude=./usr/bin/scalar",
                "--exclude=*/python3*",
                "--exclude=*/*perl*",
                "--exclude=*/gconv",
                "--exclude=*/libmvec*",
            ];
            (small_image()?.join("small.pax.tar"), without)
        };
        // Sparse files of GNU tar's: buildah cannot write such a layer again as it was.
        let xattrs = [
            "--xattrs",
            "--xattrs-include=*",
            "--acls",
            "--numeric-owner",
        ];
        let (from, to) = (from.to_str().unwrap(), tree.to_str().unwrap());
        let rest = ["--exclude=./odd/sparse", "-xpf", from, "-C", to];
        ok("tar", [&xattrs[..], without, &rest].concat());
        let tar = self.sandbox.at("root.tar");
        crate::common::pack(
            &tree,
            &tar,
            &[&xattrs[..], &["--format=pax", "--sort=name"]].concat(),
        );
        fs::remove_dir_all(tree).unwrap();
        Some(tar)
    }

    fn in_a_container(&self) {
        // buildah gives an image the name of its directory, and allows no capital letters in it.
        let script = format!(
            r#"export TMPDIR={dir:?}; cd "$TMPDIR"
            b() {{ buildah --root "$TMPDIR/containers" --runroot "$TMPDIR/run" --storage-driver overlay "$@"; }}
            trap 'b umount c; b rm c' EXIT
            b from --quiet --name c oci:layout:few
            : > stamp
            (cd "$(b mount c)"
            {CONTAINER}
            {OLD})
            b commit --quiet c oci:layout:few"#,
            dir = self.sandbox.path(),
        );
        ok("bash", ["-euc", &script]);
        self.remove("containers");
        self.remove("run");
    }

    fn in_a_bundle(&self) {
        let root = self.unpack("few");
        let bundle = root.parent().unwrap();
        let stamp = self.sandbox.at("stamp");
        let script = format!(
            "cd {root:?}; TMPDIR={:?}; : > {stamp:?}\n{BUNDLE}\n{OLD}",
            self.sandbox.path()
        );
        ok("bash", ["-euc", &script]);
        let bundle = bundle.to_str().unwrap();
        self.umoci("repack", &["--image", &self.image("few"), bundle]);
        fs::remove_dir_all(bundle).unwrap();
    }

    /// Removes a directory of the sandbox, with what is still mounted there.
    fn remove(&self, name: &str) {
        let dir = self.sandbox.at(name);
        crate::common::user::detach_below(&dir);
        fs::remove_dir_all(dir).unwrap();
    }

    /// All images once more, uncompressed: what skopeo does only where it changes the manifest for
    /// another reason.
    pub(crate) fn plain(&self) -> PathBuf {
        let (from, to) = (self.layout(), self.sandbox.at("plain"));
        let blobs = to.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        fs::copy(from.join("oci-layout"), to.join("oci-layout")).unwrap();
        let manifests = TAGS.map(|tag| {
            let (mut of, mut manifest) = layout::manifest(&from, tag);
            let config = layout::blob(&from, &manifest["config"]["digest"]);
            fs::copy(&config, blobs.join(config.file_name().unwrap())).unwrap();
            let config = layout::read_json(&config);
            let layers = manifest["layers"].as_array_mut().unwrap();
            for (layer, id) in layers
                .iter_mut()
                .zip(config["rootfs"]["diff_ids"].as_array().unwrap())
            {
                let blob = layout::blob(&to, id);
                let stored = layout::blob(&from, &layer["digest"]);
                if layer["digest"] == *id {
                    fs::copy(stored, &blob).unwrap();
                } else if !blob.exists() {
                    let script = "gzip -dc <\"$1\" >\"$2\"";
                    let (stored, blob) = (stored.to_str().unwrap(), blob.to_str().unwrap());
                    ok("sh", ["-euc", script, "sh", stored, blob]);
                }
                layer["digest"] = id.clone();
                layer["size"] = fs::metadata(blob).unwrap().len().into();
                layer["mediaType"] = "application/vnd.oci.image.layer.v1.tar".into();
            }
            let bytes = manifest.to_string();
            let digest = Digest::of(bytes.as_bytes());
            fs::write(blobs.join(digest.hex()), &bytes).unwrap();
            of["digest"] = digest.to_string().into();
            of["size"] = bytes.len().into();
            of
        });
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        fs::write(to.join("index.json"), index.to_string()).unwrap();
        to
    }

    /// The image as `docker save` writes it.
    pub(crate) fn docker_archive(&self, tag: &str) -> PathBuf {
        let archive = self.sandbox.at(format!("{tag}.docker.tar"));
        let from = format!("oci:{}", self.image(tag));
        let to = format!("docker-archive:{}:{tag}:latest", archive.display());
        ok("skopeo", ["copy", "--quiet", &from, &to]);
        archive
    }

    /// All images once more, with other compression.
    pub(crate) fn recompressed(&self, name: &str, args: &[&str]) -> PathBuf {
        let layout = self.sandbox.at(name);
        for tag in TAGS {
            let from = format!("oci:{}", self.image(tag));
            let to = format!("oci:{}:{tag}", layout.display());
            let rest = [from.as_str(), to.as_str()];
            ok("skopeo", [&["copy", "--quiet"][..], args, &rest].concat());
        }
        layout
    }
}

/// What a script has changed is from another day, so that it can be told from what umoci makes now.
const OLD: &str = r#"find . -xdev -newer "$TMPDIR/stamp" -depth \
    -exec touch -h -d '2002-03-04 05:06:07.123456789' {} +"#;

/// Layer `n`: new and changed files, links to those of the layer before, whiteouts.
fn small(n: usize) -> Vec<u8> {
    let name = |n: usize| format!("srv/n/{n}").into_bytes();
    let mut tar = Tarball::default()
        .dir(b"srv/n/")
        .file(&name(n), &vec![b'n'; n * 37 % 9000])
        .file(b"srv/changes", n.to_string().as_bytes());
    if n > FEW {
        let link = format!("srv/links/{n}");
        tar = tar.hard_link(link.as_bytes(), &name(n - 1));
    }
    if n > FEW + 3 {
        tar = tar.file(format!("srv/n/.wh.{}", n - 3).as_bytes(), b"");
    }
    if n.is_multiple_of(10) {
        tar = tar.file(b"srv/links/.wh..wh..opq", b"");
    }
    tar.end()
}
