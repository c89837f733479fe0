//! `tarnfs stat`

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Map, Value, json};
use tarnfs::inode::Kind;
use tarnfs::lower::{Extent, Lower, Nid, Place};

use super::{Global, image, print};

/// Show the attributes of a file of an image
///
/// With its extended attributes, all its names, and where its bytes are. A symbolic link is shown
/// itself, unless -L says otherwise.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tarnfs stat image.tar /bin/su
  tarnfs stat -L image.tar /bin/sh
  tarnfs stat --json image.tar /bin/ping | jq .xattrs")]
pub(crate) struct Args {
    /// Follow symbolic links, inside the image
    #[arg(short = 'L', long)]
    dereference: bool,
    /// One array of objects
    #[arg(long)]
    json: bool,
    /// The image: a tar, a name or digest of the store, or where to import it from
    image: PathBuf,
    /// Paths in the image
    #[arg(required = true)]
    paths: Vec<OsString>,
}

/// Runs of a file that the text shows; JSON shows all.
const RUNS_SHOWN: usize = 16;

pub(crate) fn run(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let (_, lower) = image::open(global, &args.image)?;
    let mut out = print::out();
    let mut array = print::Array::new();
    let code = print::for_each(&args.image, &args.paths, &mut |path| {
        let found = lower.resolve(path, args.dereference)?;
        if args.json {
            array.push(&mut out, &object(&lower, &found.path, found.nid)?)?;
        } else {
            text(&lower, &found.path, found.nid, &mut out)?;
        }
        Ok(out.flush()?)
    });
    if args.json {
        print::finish(array.end(&mut out).map_err(Into::into))?;
    }
    Ok(code)
}

/// Where the bytes of a regular file are, at most `most` runs; and whether there are more.
fn runs(lower: &Lower, nid: Nid, most: usize) -> anyhow::Result<(Vec<Extent>, bool)> {
    let mut runs = Vec::new();
    let mut offset = 0;
    while let Some(run) = lower.extent(nid, offset)? {
        if runs.len() == most {
            return Ok((runs, true));
        }
        offset = run.offset + run.len;
        runs.push(run);
    }
    Ok((runs, false))
}

/// The file and the byte in it.
fn place(lower: &Lower, place: Place) -> Option<(PathBuf, u64)> {
    match place {
        Place::Hole => None,
        Place::Image(at) => Some((lower.index_path().to_owned(), at)),
        Place::Device { index, offset } => {
            let blob = lower.blobs().nth(usize::from(index));
            Some((blob.map(|b| b.path.clone()).unwrap_or_default(), offset))
        }
    }
}

fn bytes_of(path: &Path) -> &[u8] {
    std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str())
}

fn object(lower: &Lower, path: &[u8], nid: Nid) -> anyhow::Result<Map<String, Value>> {
    let mut object = print::object(lower, path, nid)?;
    let mut xattrs = Vec::new();
    for xattr in lower.xattrs(nid)? {
        let mut one = Map::new();
        print::put_bytes(&mut one, "name", &xattr.name);
        print::put_bytes(&mut one, "value", &xattr.value);
        xattrs.push(Value::Object(one));
    }
    object.insert("xattrs".into(), xattrs.into());
    let mut names = Vec::new();
    for name in lower.paths(nid)? {
        let mut one = Map::new();
        print::put_bytes(&mut one, "path", &name);
        names.push(Value::Object(one));
    }
    object.insert("names".into(), names.into());
    if lower.attr(nid)?.kind == Kind::File {
        let mut extents = Vec::new();
        for run in runs(lower, nid, usize::MAX)?.0 {
            let mut one = Map::new();
            one.insert("offset".into(), run.offset.into());
            one.insert("len".into(), run.len.into());
            match place(lower, run.place) {
                None => {
                    one.insert("hole".into(), true.into());
                }
                Some((file, at)) => {
                    print::put_bytes(&mut one, "file", bytes_of(&file));
                    one.insert("file_offset".into(), json!(at));
                }
            }
            extents.push(Value::Object(one));
        }
        object.insert("extents".into(), extents.into());
    }
    Ok(object)
}

fn text(lower: &Lower, path: &[u8], nid: Nid, out: &mut dyn Write) -> anyhow::Result<()> {
    let attr = lower.attr(nid)?;
    write!(out, "  File: {}", print::escape(path))?;
    if attr.kind == Kind::Symlink {
        write!(out, " -> {}", print::escape(&lower.readlink(nid)?))?;
    }
    let kind = match attr.kind {
        Kind::File if attr.size == 0 => "regular empty file",
        Kind::File => "regular file",
        Kind::Symlink => "symbolic link",
        kind => print::kind(kind),
    };
    writeln!(
        out,
        "\n  Size: {:<10} Blocks: {:<10} IO Block: {:<6} {kind}",
        attr.size, attr.blocks, attr.blksize
    )?;
    write!(out, " Inode: {:<10} Links: {}", nid.0, attr.nlink)?;
    if matches!(attr.kind, Kind::Char | Kind::Block) {
        write!(
            out,
            "  Device type: {},{}",
            libc::major(attr.rdev),
            libc::minor(attr.rdev)
        )?;
    }
    writeln!(
        out,
        "\nAccess: ({:04o}/{})  Uid: {}  Gid: {}",
        attr.perm,
        print::mode(&attr),
        attr.uid,
        attr.gid
    )?;
    writeln!(out, "Modify: {}", print::instant(attr.mtime))?;
    for xattr in lower.xattrs(nid)? {
        let (name, value) = (print::escape(&xattr.name), print::escape(&xattr.value));
        writeln!(out, " Xattr: {name}=\"{value}\"")?;
    }
    if attr.kind != Kind::Dir && attr.nlink > 1 {
        for name in lower.paths(nid)? {
            writeln!(out, "  Name: {}", print::escape(&name))?;
        }
    }
    if attr.kind == Kind::File {
        let (runs, more) = runs(lower, nid, RUNS_SHOWN)?;
        for run in runs {
            write!(out, " Bytes: {} at {}: ", run.len, run.offset)?;
            match place(lower, run.place) {
                None => writeln!(out, "hole")?,
                Some((file, at)) => {
                    writeln!(out, "{}, byte {at}", print::escape(bytes_of(&file)))?;
                }
            }
        }
        if more {
            writeln!(out, " Bytes: … (--json shows all)")?;
        }
    }
    Ok(())
}
