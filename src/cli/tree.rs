//! `tarnfs tree`

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use tarnfs::inode::Kind;
use tarnfs::lower::{Lower, Resolved, Step};

use super::{Global, image, print};

/// Show an image as a tree
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tarnfs tree -L 2 image.tar
  tarnfs tree image.tar /etc
  tarnfs tree --json image.tar | jq '[.[] | select(.type == \"file\") | .size] | add'")]
pub(crate) struct Args {
    /// Go at most this many directories deep
    #[arg(short = 'L', long, value_name = "DEPTH")]
    level: Option<usize>,
    /// One flat array of objects, each with its depth
    #[arg(long)]
    json: bool,
    /// The image: a tar, a name or digest of the store, or where to import it from
    image: PathBuf,
    /// A directory in the image
    #[arg(default_value = "/")]
    path: OsString,
}

pub(crate) fn run(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let (_, lower) = image::open(global, &args.image)?;
    let given = args.path.as_bytes();
    let place = || format!("{}: {}", args.image.display(), print::escape(given));
    let start = lower.resolve(given, true).with_context(place)?;
    let deepest = args.level.unwrap_or(usize::MAX);
    let shown = if args.json {
        json(&lower, &start, deepest)
    } else {
        text(&lower, &start, given, deepest)
    };
    print::finish(shown.with_context(place))
}

fn json(lower: &Lower, start: &Resolved, deepest: usize) -> anyhow::Result<()> {
    let mut out = print::out();
    let mut array = print::Array::new();
    lower.walk::<anyhow::Error>(start.nid, &mut |w| {
        if w.depth < deepest {
            let mut object = print::object(lower, &print::join(&start.path, w.path), w.nid)?;
            object.insert("depth".into(), (w.depth + 1).into());
            array.push(&mut out, &object)?;
        }
        Ok(step(w.depth, deepest))
    })?;
    Ok(array.end(&mut out)?)
}

/// Whether to go into a directory at `depth`.
fn step(depth: usize, deepest: usize) -> Step {
    if depth + 1 < deepest {
        Step::Into
    } else {
        Step::Over
    }
}

fn text(lower: &Lower, start: &Resolved, given: &[u8], deepest: usize) -> anyhow::Result<()> {
    let mut out = print::out();
    let (mut dirs, mut files) = (0_u64, 0_u64);
    // For each directory on the way: whether it was the last of its own.
    let mut ends: Vec<bool> = Vec::new();
    writeln!(out, "{}", print::escape(given))?;
    lower.walk::<anyhow::Error>(start.nid, &mut |w| {
        if w.depth >= deepest {
            return Ok(Step::Over);
        }
        ends.truncate(w.depth);
        for end in &ends {
            out.write_all(if *end { "    " } else { "│   " }.as_bytes())?;
        }
        ends.push(w.last);
        out.write_all(if w.last { "└── " } else { "├── " }.as_bytes())?;
        write!(out, "{}", print::escape(w.name))?;
        if w.kind == Kind::Symlink {
            write!(out, " -> {}", print::escape(&lower.readlink(w.nid)?))?;
        }
        out.write_all(b"\n")?;
        *if w.kind == Kind::Dir {
            &mut dirs
        } else {
            &mut files
        } += 1;
        Ok(step(w.depth, deepest))
    })?;
    let dirs = plural(dirs, "directory", "directories");
    writeln!(out, "\n{dirs}, {}", plural(files, "file", "files"))?;
    Ok(out.flush()?)
}

fn plural(n: u64, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}
