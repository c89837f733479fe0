//! The same binary as mount(8)'s helper: `mount -t fuse.tarnfs IMAGE DIR -o OPTS`, and fstab.
//!
//! mount(8) runs `/sbin/mount.fuse.tarnfs IMAGE DIR [-sfnv] [-N NS] [-o OPTS] [-t TYPE]` if there
//! is one (a link to this binary), else package fuse3's `/sbin/mount.fuse`, which runs
//! `tarnfs IMAGE DIR -o OPTS`. Both come here.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

use super::{Global, LogFormat, logging, mount, report};

/// mount(8), "EXIT STATUS": mount failure.
const MOUNT_FAILURE: u8 = 32;

/// What mount(8) passes to a helper.
#[derive(Debug, Parser)]
#[command(
    name = "mount.fuse.tarnfs",
    version,
    about = "Mount an image, called by mount(8)"
)]
struct Helper {
    /// The image, as fstab's first field says it
    image: PathBuf,
    /// The mount point
    dir: PathBuf,
    /// Pass over unknown options
    #[arg(short = 's')]
    sloppy: bool,
    /// Check, but do not mount
    #[arg(short = 'f')]
    fake: bool,
    /// No /etc/mtab (nobody writes it any more)
    #[arg(short = 'n')]
    _no_mtab: bool,
    /// Verbose
    #[arg(short = 'v')]
    _verbose: bool,
    /// A mount namespace; mount(8) has entered it already
    #[arg(short = 'N')]
    _namespace: Option<OsString>,
    /// Mount options
    #[arg(short = 'o', allow_hyphen_values = true)]
    options: Vec<OsString>,
    /// The type
    #[arg(short = 't')]
    _fs_type: Option<OsString>,
}

/// The arguments, if this process was called as a helper.
pub(super) fn invocation<'a>(
    commands: &clap::Command,
    argv: &'a [OsString],
) -> Option<&'a [OsString]> {
    let name = Path::new(argv.first()?).file_name()?;
    if name == "mount.fuse.tarnfs" || name == "mount.tarnfs" {
        return Some(argv);
    }
    // As mount.fuse runs it: no command, but an image, a directory and -o.
    let image = argv.get(1)?;
    let is_command = image.to_str().is_some_and(|word| {
        word.starts_with('-')
            || word == "help"
            || commands.get_subcommands().any(|c| c.get_name() == word)
    });
    (!is_command && argv.get(3)? == "-o").then_some(argv)
}

/// Mounts as mount(8) wants it.
pub(super) fn main(argv: &[OsString]) -> ExitCode {
    let helper = Helper::parse_from(argv);
    let global = Global {
        store: std::env::var_os("TARNFS_STORE").map(PathBuf::from),
        log: "warn".to_owned(),
        log_format: LogFormat::Text,
        log_file: None,
    };
    let args = mount::Args::for_helper(helper.image, helper.dir, helper.options, helper.sloppy);
    let result = if helper.fake {
        logging::init(&global).and_then(|()| mount::check(&global, args))
    } else {
        mount::run(&global, args)
    };
    match result {
        Ok(code) if code == ExitCode::SUCCESS => code,
        Ok(_) => ExitCode::from(MOUNT_FAILURE),
        Err(error) => {
            report(error);
            ExitCode::from(MOUNT_FAILURE)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::super::Cli;
    use super::*;

    fn argv(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn who_called() {
        let commands = Cli::command();
        let is = |line: &str| invocation(&commands, &argv(line)).is_some();
        assert!(is("/sbin/mount.fuse.tarnfs a.tar /mnt -o rw"));
        assert!(is("mount.fuse.tarnfs"));
        assert!(is("tarnfs /a.tar /mnt -o rw,dev,suid"));
        assert!(!is("tarnfs mount a.tar -o rw /mnt"));
        assert!(!is("tarnfs mount /mnt -o rw"));
        assert!(!is("tarnfs --store x -o rw"));
        assert!(!is("tarnfs a.tar /mnt"));
        assert!(!is("tarnfs"));
    }

    #[test]
    fn what_mount_passes() {
        let line = "mount.fuse.tarnfs /a.tar /mnt -s -n -o rw,upperdir=/u -t fuse.tarnfs";
        let helper = Helper::try_parse_from(argv(line)).unwrap();
        assert!(helper.sloppy && !helper.fake);
        assert_eq!(helper.options, ["rw,upperdir=/u"]);
        Helper::command().debug_assert();
    }
}
