//! `tarnfs inspect`

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use indicatif::HumanBytes;
use serde_json::{Map, Value, json};
use tarnfs::digest::Digest;
use tarnfs::inode::{Attr, Kind};
use tarnfs::lower::{Lower, Nid, Step};
use tarnfs::store::{Image, ImageJson, ImageName, Source};

use super::progress::Bar;
use super::{Global, image, print};

/// Show what an image holds
///
/// Counts, sizes, hard links, extended attributes, set-user-ID files, the largest directories (by
/// what is directly in them), and the digests of tar and index. Hashing reads the whole tar once;
/// the digest is remembered for as long as the tar stays as it is.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tarnfs inspect image.tar
  tarnfs inspect --no-digest --top 20 image.tar
  tarnfs inspect --json image.tar | jq -r .blob.sha256")]
pub(crate) struct Args {
    /// Do not hash the tar and the index
    #[arg(long)]
    no_digest: bool,
    /// How many of the largest directories to show
    #[arg(long, value_name = "N", default_value_t = 5)]
    top: usize,
    /// One object
    #[arg(long)]
    json: bool,
    /// The image: a tar, a name or digest of the store, or where to import it from
    image: PathBuf,
}

/// What a walk finds.
#[derive(Debug, Default)]
struct Found {
    kinds: BTreeMap<&'static str, u64>,
    names: u64,
    apparent: u64,
    stored: u64,
    /// Names seen of each non-directory with more than one link.
    linked: HashMap<Nid, u64>,
    with_xattrs: u64,
    xattrs: u64,
    setuid: Vec<Vec<u8>>,
    setgid: Vec<Vec<u8>>,
    /// (entries, bytes of files, path) of each directory.
    dirs: HashMap<Nid, (u64, u64, Vec<u8>)>,
}

impl Found {
    fn inode(&mut self, lower: &Lower, path: &[u8], nid: Nid, attr: &Attr) -> anyhow::Result<()> {
        *self.kinds.entry(print::kind(attr.kind)).or_default() += 1;
        let xattrs = lower.xattrs(nid)?.len() as u64;
        self.with_xattrs += u64::from(xattrs > 0);
        self.xattrs += xattrs;
        if attr.kind == Kind::File {
            self.apparent = self.apparent.saturating_add(attr.size);
            self.stored = self
                .stored
                .saturating_add(attr.blocks.saturating_mul(512).min(attr.size));
            if attr.perm & 0o4000 != 0 {
                self.setuid.push(path.to_vec());
            }
            if attr.perm & 0o2000 != 0 {
                self.setgid.push(path.to_vec());
            }
        }
        Ok(())
    }

    fn of(lower: &Lower) -> anyhow::Result<Self> {
        let mut found = Self::default();
        let root = lower.root();
        found.inode(lower, b"/", root, &lower.attr(root)?)?;
        found.dirs.insert(root, (0, 0, b"/".to_vec()));
        lower.walk::<anyhow::Error>(root, &mut |w| {
            let path = print::join(b"/", w.path);
            let attr = lower.attr(w.nid)?;
            found.names += 1;
            if let Some(dir) = found.dirs.get_mut(&w.dir) {
                dir.0 += 1;
                if attr.kind == Kind::File {
                    dir.1 = dir.1.saturating_add(attr.size);
                }
            }
            if attr.kind == Kind::Dir {
                found.dirs.insert(w.nid, (0, 0, path.clone()));
            } else if attr.nlink > 1 {
                let names = found.linked.entry(w.nid).or_default();
                *names += 1;
                if *names > 1 {
                    return Ok(Step::Into);
                }
            }
            found.inode(lower, &path, w.nid, &attr)?;
            Ok(Step::Into)
        })?;
        Ok(found)
    }

    /// The `n` largest directories by what `size` says, the larger first, equal ones by path.
    fn largest(&self, n: usize, size: fn(&(u64, u64, Vec<u8>)) -> u64) -> Vec<(u64, &[u8])> {
        let mut dirs: Vec<_> = self
            .dirs
            .values()
            .map(|d| (size(d), d.2.as_slice()))
            .collect();
        dirs.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
        dirs.truncate(n);
        dirs
    }
}

/// The names of an image of the store, sorted.
fn tags(global: &Global, image: &Image) -> anyhow::Result<Vec<ImageName>> {
    let mut names = image::store(global)?.names()?;
    names.retain(|(_, of)| Some(*of) == image.record().digest);
    Ok(names.into_iter().map(|(name, _)| name).collect())
}

struct Digests {
    image: Digest,
    index: Digest,
}

fn digests(image: &Image) -> anyhow::Result<Digests> {
    let mut bar = Bar::new("hashing");
    image.check_index(&mut |p| bar.on(p))?;
    let index = image.record().index.digest;
    let image = image.digest(&mut |p| bar.on(p))?;
    Ok(Digests { image, index })
}

pub(crate) fn run(global: &Global, args: Args) -> anyhow::Result<ExitCode> {
    let (image, lower) = image::open(global, &args.image)?;
    let tags = tags(global, &image)?;
    let found = Found::of(&lower).with_context(|| args.image.display().to_string())?;
    let digests = if args.no_digest {
        None
    } else {
        Some(digests(&image)?)
    };
    let mut out = print::out();
    let shown = if args.json {
        let object = object(&args, (&image, &*tags), &lower, &found, digests.as_ref());
        writeln!(out, "{}", serde_json::to_string_pretty(&object)?).map_err(Into::into)
    } else {
        let about = (&image, &*tags);
        text(&args, about, &lower, &found, digests.as_ref(), &mut out)
    };
    print::finish(shown.and_then(|()| Ok(out.flush()?)))
}

fn object(
    args: &Args,
    (image, tags): (&Image, &[ImageName]),
    lower: &Lower,
    found: &Found,
    digests: Option<&Digests>,
) -> Map<String, Value> {
    let paths = |list: &[Vec<u8>]| -> Value {
        let of = |path: &Vec<u8>| {
            let mut one = Map::new();
            print::put_bytes(&mut one, "path", path);
            Value::Object(one)
        };
        list.iter().map(of).collect()
    };
    let dirs = |list: Vec<(u64, &[u8])>, key: &str| -> Value {
        let of = |(n, path): (u64, &[u8])| {
            let mut one = Map::new();
            print::put_bytes(&mut one, "path", path);
            one.insert(key.to_owned(), n.into());
            Value::Object(one)
        };
        list.into_iter().map(of).collect()
    };
    let stats = lower.stats();
    let record = image.record();
    let mut blob = Map::new();
    if let (Some(tar), Source::Tar { identity, .. }) = (image.tar_path(), &record.source) {
        print::put_bytes(&mut blob, "path", tar.as_os_str().as_bytes());
        blob.insert("bytes".into(), identity.size.into());
        blob.insert("sha256".into(), digests.map(|d| d.image.hex()).into());
    }
    let mut index = Map::new();
    print::put_bytes(
        &mut index,
        "path",
        image.index_path().as_os_str().as_bytes(),
    );
    index.insert("bytes".into(), stats.index_len.into());
    index.insert("sha256".into(), digests.map(|d| d.index.hex()).into());
    let mut object = Map::new();
    if let Some(from) = record.source.told() {
        object.insert("digest".into(), json!(record.digest));
        let tags: Vec<_> = tags.iter().map(ImageName::as_str).collect();
        object.insert("tags".into(), json!(tags));
        object.insert("aliases".into(), json!(record.aliases));
        object.insert("from".into(), json!(from));
        object.insert("created".into(), record.created.into());
        object.insert("config".into(), json!(record.config));
        object.insert("layers".into(), json!(record.layers));
    } else {
        object.insert("blob".into(), blob.into());
    }
    object.insert("index".into(), index.into());
    object.insert("blobs".into(), lower.blobs().len().into());
    object.insert("names".into(), found.names.into());
    object.insert("types".into(), json!(found.kinds));
    object.insert(
        "bytes".into(),
        json!({ "apparent": found.apparent, "stored": found.stored }),
    );
    object.insert(
        "hard_links".into(),
        json!({ "groups": found.linked.len(), "names": found.linked.values().sum::<u64>() }),
    );
    object.insert(
        "xattrs".into(),
        json!({ "inodes": found.with_xattrs, "total": found.xattrs }),
    );
    object.insert("setuid".into(), paths(&found.setuid));
    object.insert("setgid".into(), paths(&found.setgid));
    object.insert(
        "largest_directories".into(),
        json!({
            "by_entries": dirs(found.largest(args.top, |d| d.0), "entries"),
            "by_bytes": dirs(found.largest(args.top, |d| d.1), "bytes"),
        }),
    );
    object
}

/// What is told of an image whose layers are in the store.
fn imported(record: &ImageJson, tags: &[ImageName], out: &mut dyn Write) -> std::io::Result<()> {
    for (i, tag) in tags.iter().enumerate() {
        let title = if i == 0 { "tags" } else { "" };
        writeln!(out, "{title:<11} {tag}")?;
    }
    let texts = record.digest.iter().chain(&record.aliases);
    for (i, digest) in texts.enumerate() {
        let title = if i == 0 { "image" } else { "" };
        writeln!(out, "{title:<11} {digest}")?;
    }
    if let Some(from) = record.source.told() {
        writeln!(out, "from        {}", print::escape(from.as_bytes()))?;
    }
    for (i, layer) in record.layers.iter().enumerate() {
        let title = if i == 0 { "layers" } else { "" };
        writeln!(
            out,
            "{title:<11} {}  {}",
            layer.diff_id,
            HumanBytes(layer.len)
        )?;
    }
    Ok(())
}

fn text(
    args: &Args,
    (image, tags): (&Image, &[ImageName]),
    lower: &Lower,
    found: &Found,
    digests: Option<&Digests>,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let path = |path: &std::path::Path| print::escape(path.as_os_str().as_bytes());
    let record = image.record();
    match (image.tar_path(), &record.source) {
        (Some(tar), Source::Tar { identity, .. }) => {
            writeln!(out, "tar         {}", path(tar))?;
            writeln!(out, "            {}", HumanBytes(identity.size))?;
            if let Some(digests) = digests {
                writeln!(out, "            {}", digests.image)?;
            }
        }
        _ => imported(record, tags, out)?,
    }
    writeln!(out, "index       {}", path(&image.index_path()))?;
    writeln!(out, "            {}", HumanBytes(lower.stats().index_len))?;
    if let Some(digests) = digests {
        writeln!(out, "            {}", digests.index)?;
    }
    writeln!(out, "names       {}", found.names)?;
    for (kind, count) in &found.kinds {
        writeln!(out, "            {count} {kind}")?;
    }
    let (apparent, stored) = (HumanBytes(found.apparent), HumanBytes(found.stored));
    writeln!(out, "files       {apparent} apparent, {stored} stored")?;
    let names: u64 = found.linked.values().sum();
    writeln!(
        out,
        "hard links  {} groups with {names} names",
        found.linked.len()
    )?;
    writeln!(
        out,
        "xattrs      {} on {} inodes",
        found.xattrs, found.with_xattrs
    )?;
    for (title, list) in [
        ("set-user-ID", &found.setuid),
        ("set-group-ID", &found.setgid),
    ] {
        writeln!(out, "{title:<11} {}", list.len())?;
        for path in list {
            writeln!(out, "            {}", print::escape(path))?;
        }
    }
    writeln!(out, "largest directories by entries")?;
    for (entries, path) in found.largest(args.top, |d| d.0) {
        writeln!(out, "{entries:>11} {}", print::escape(path))?;
    }
    writeln!(out, "largest directories by bytes of the files in them")?;
    for (bytes, path) in found.largest(args.top, |d| d.1) {
        writeln!(
            out,
            "{:>11} {}",
            HumanBytes(bytes).to_string(),
            print::escape(path)
        )?;
    }
    Ok(())
}
