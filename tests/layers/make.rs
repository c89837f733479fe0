//! Layers made by shell scripts and packed by GNU tar.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;

use tarnfs::tar::{EntryKind, Reader};

use crate::common::{Sandbox, ok};

/// How a directory becomes a layer.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pack {
    /// All that is in it.
    All,
    /// Its directories are only implied by what is in them.
    Files,
    /// All, but these, which other entries are hard links to.
    Without(&'static [&'static str]),
}

pub(crate) const BASE: &str = r#"
    mkdir -p usr/lib/sub usr/bin etc/conf.d var/cache/deep/er dev opt/app srv
    ln -s usr/lib lib
    echo library > usr/lib/a.so; echo other > usr/lib/b.so; echo sub > usr/lib/sub/c
    echo hosts > etc/hosts; ln etc/hosts etc/hosts2; ln etc/hosts srv/hosts3
    echo passwd > etc/passwd; echo 1 > etc/conf.d/1; echo 2 > etc/conf.d/2
    head -c 70000 /dev/zero | tr '\0' x > usr/bin/tool; chown 12:34 usr/bin/tool; chmod 4755 usr/bin/tool
    truncate -s 1000000 var/hole; printf data | dd of=var/hole bs=1 seek=500000 conv=notrunc status=none
    echo x > var/cache/x; echo y > var/cache/deep/y; echo z > var/cache/deep/er/z
    mknod dev/null c 1 3; mkfifo dev/pipe; mknod dev/disk b 8 1
    echo app > opt/app/run; ln -s run opt/app/link; ln -s nowhere opt/dangling
    : > etc/empty; chmod 0000 etc/empty
    echo one > srv/one; ln srv/one srv/two; ln -s one srv/link; ln srv/link srv/link2
    setfattr -n user.colour -v red etc/passwd; setfattr -n user.dir -v 1 etc/conf.d
    chown 5:6 etc/conf.d; chmod 1777 var/cache; chmod 2750 srv
"#;

/// Whiteouts, opaque directories, changed files.
pub(crate) const UPDATE: &str = r#"
    mkdir -p etc/conf.d var/cache/deep usr/lib srv new/tree
    : > etc/.wh.passwd; : > etc/.wh.nothing
    echo new > etc/hosts2
    : > var/cache/.wh..wh..opq; echo fresh > var/cache/deep/fresh
    : > usr/lib/.wh.sub; mkdir usr/lib/sub; echo again > usr/lib/sub/d
    : > srv/.wh.two; : > .wh.opt; mkdir opt; echo only > opt/only
    echo 3 > etc/conf.d/3; setfattr -n user.dir2 -v 2 etc/conf.d; chmod 700 etc/conf.d
    echo deep > new/tree/file; ln new/tree/file new/tree/name
"#;

/// Files in directories that lower layers have, also behind a link.
pub(crate) const IMPLIED: &str = r#"
    mkdir -p lib/more etc var/cache/deep/er
    echo through > lib/through.so; echo b2 > lib/b.so; echo more > lib/more/x
    echo motd > etc/motd; echo z2 > var/cache/deep/er/z2; : > lib/.wh.a.so
"#;

/// New names of files that lower layers have: `etc/hosts` and `srv/one` are not packed.
pub(crate) const LINKS: &str = r#"
    mkdir -p etc srv other
    echo hosts > etc/hosts; ln etc/hosts other/hosts4; ln etc/hosts srv/hosts3
    echo one > srv/one; ln srv/one srv/three; echo self > other/a; ln other/a other/b
"#;

/// Files for directories, and the other way around.
pub(crate) const TYPES: &str = r#"
    mkdir -p etc/hosts usr/lib srv; echo in > etc/hosts/in
    echo file > var; ln -s etc opt; echo null > srv/link
    mkdir dev; mkfifo dev/null; ln -s a.so usr/lib/sub
"#;

/// What is left goes too, some of it twice.
pub(crate) const LEFT: &str = r#"
    mkdir -p etc/conf.d srv; : > etc/.wh..wh..opq; : > etc/conf.d/.wh.1; echo 9 > etc/conf.d/9
    : > srv/.wh.hosts3; : > srv/.wh.link; : > .wh.dev
"#;

/// The tars of `scripts`, each run in a directory of its own, where all times are then set.
pub(crate) fn layers(sandbox: &Sandbox, scripts: &[(&str, Pack)]) -> Vec<PathBuf> {
    let mut tars = Vec::new();
    for (n, (script, pack)) in scripts.iter().enumerate() {
        let dir = sandbox.fresh(format!("layer{n}"));
        let tar = sandbox.at(format!("layer{n}.tar"));
        let flags = "--format=pax --pax-option=delete=atime,delete=ctime --numeric-owner \
                     --xattrs --xattrs-include='*' --sparse --sort=name";
        let packed = match pack {
            Pack::Files => {
                format!(
                    "find . ! -type d | LC_ALL=C sort | tar {flags} --no-recursion -T - -cf {tar:?}"
                )
            }
            _ => format!("tar {flags} -cf {tar:?} ."),
        };
        let without = match pack {
            Pack::Without(names) => format!("tar --delete -f {tar:?} {}", names.join(" ")),
            _ => String::new(),
        };
        let script = format!(
            "umask 022; cd {dir:?}\n{script}\n\
             find . -depth -exec touch -h -d '2001-02-03 04:05:0{n}.123456789' {{}} +\n\
             {packed}\n{without}"
        );
        ok("sh", ["-euc", &script]);
        tars.push(tar);
    }
    tars
}

/// The directories that an entry tells of which no later layer hides.
pub(crate) fn told(layers: &[PathBuf]) -> BTreeSet<Vec<u8>> {
    let mut told: BTreeSet<Vec<u8>> = BTreeSet::new();
    for path in layers {
        let tar = File::open(path).unwrap();
        let mut reader = Reader::new(&tar, path).unwrap();
        let mut new = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            let slash = entry.path.iter().rposition(|&b| b == b'/');
            let (dir, name) = entry.path.split_at(slash.map_or(0, |slash| slash + 1));
            match name.strip_prefix(b".wh.") {
                Some(b".wh..opq") => told.retain(|path| !path.starts_with(dir)),
                Some(name) => {
                    let hidden = [dir, name].concat();
                    let below = [&hidden[..], b"/"].concat();
                    told.retain(|path| *path != hidden && !path.starts_with(&below));
                }
                None if entry.kind == EntryKind::Dir => new.push(entry.path),
                None => {}
            }
        }
        told.extend(new);
    }
    told
}
