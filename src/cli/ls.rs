//! `tarnfs ls`

use std::ffi::OsString;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;

use tarnfs::inode::Kind;
use tarnfs::lower::{Lower, Nid, Step};

use super::{Global, image, print};

/// List a directory of an image
///
/// Names come in byte order, hidden ones too. Control characters, backslashes and bytes that are
/// not UTF-8 are escaped as by `ls -b`. Owners are numbers and times are UTC: names and zones of
/// this machine say nothing about an image.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tarnfs ls image.tar
  tarnfs ls -l image.tar /etc /usr/bin
  tarnfs ls -R -0 image.tar / | xargs -0 -n1 echo
  tarnfs ls --json image.tar /etc | jq -r '.[] | select(.type == \"symlink\") | .path'")]
pub(crate) struct Args {
    /// Mode, links, owner, group, size, time and name of each
    #[arg(short, long)]
    long: bool,
    /// List what is below the directories, too, by path
    #[arg(short = 'R', long)]
    recursive: bool,
    /// The directory itself, not what is in it
    #[arg(short, long, conflicts_with = "recursive")]
    directory: bool,
    /// Names as they are, each with a NUL byte behind it
    #[arg(short = '0', long, conflicts_with_all = ["long", "json"])]
    null: bool,
    /// One array of objects
    #[arg(long)]
    json: bool,
    /// The image: a tar, a name or digest of the store, or where to import it from
    image: PathBuf,
    /// Paths in the image
    #[arg(default_value = "/")]
    paths: Vec<OsString>,
}

pub(crate) fn run(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let (_, lower) = image::open(global, &args.image)?;
    let mut lister = Lister {
        lower: &lower,
        args: &args,
        out: print::out(),
        array: print::Array::new(),
        headed: args.paths.len() > 1,
    };
    let code = print::for_each(&args.image, &args.paths, &mut |path| {
        lister.path(path)?;
        Ok(lister.out.flush()?)
    });
    if args.json {
        let Lister { array, mut out, .. } = lister;
        print::finish(array.end(&mut out).map_err(Into::into))?;
    }
    Ok(code)
}

struct Lister<'a, W> {
    lower: &'a Lower,
    args: &'a Args,
    out: W,
    array: print::Array,
    /// Whether each directory gets a heading: there is more than one.
    headed: bool,
}

impl<W: Write> Lister<'_, W> {
    fn path(&mut self, given: &[u8]) -> anyhow::Result<()> {
        // As ls(1): a link in the command line is followed, but not where it is looked at itself.
        let follow = !(self.args.long || self.args.directory);
        let found = self.lower.resolve(given, follow)?;
        let attr = self.lower.attr(found.nid)?;
        if attr.kind != Kind::Dir || self.args.directory {
            return self.entry(&found.path, given, found.nid);
        }
        if self.args.recursive {
            let lower = self.lower;
            return lower.walk::<anyhow::Error>(found.nid, &mut |w| {
                let path = print::join(&found.path, w.path);
                self.entry(&path, w.path, w.nid)?;
                Ok(Step::Into)
            });
        }
        if self.headed && !self.args.json && !self.args.null {
            writeln!(self.out, "{}:", print::escape(given))?;
        }
        let mut result = Ok(());
        let lower = self.lower;
        lower.readdir(found.nid, 0, &mut |entry| {
            let path = print::join(&found.path, entry.name);
            result = self.entry(&path, entry.name, entry.nid);
            if result.is_ok() {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        result
    }

    fn entry(&mut self, path: &[u8], shown: &[u8], nid: Nid) -> anyhow::Result<()> {
        if self.args.json {
            let object = print::object(self.lower, path, nid)?;
            self.array.push(&mut self.out, &object)?;
        } else if self.args.null {
            self.out.write_all(shown)?;
            self.out.write_all(&[0])?;
        } else if self.args.long {
            let attr = self.lower.attr(nid)?;
            let size = match attr.kind {
                Kind::Char | Kind::Block => {
                    format!("{}, {}", libc::major(attr.rdev), libc::minor(attr.rdev))
                }
                _ => attr.size.to_string(),
            };
            write!(
                self.out,
                "{} {:>4} {:>5} {:>5} {size:>10} {} {}",
                print::mode(&attr),
                attr.nlink,
                attr.uid,
                attr.gid,
                print::minute(attr.mtime),
                print::escape(shown),
            )?;
            if attr.kind == Kind::Symlink {
                write!(
                    self.out,
                    " -> {}",
                    print::escape(&self.lower.readlink(nid)?)
                )?;
            }
            self.out.write_all(b"\n")?;
        } else {
            writeln!(self.out, "{}", print::escape(shown))?;
        }
        Ok(())
    }
}
