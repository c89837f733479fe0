//! `tarnfs demo`

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::BufWriter;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::Global;
use tarnfs::actor::probe::{self, State};
use tarnfs::store::Store;

/// Show it all on an image of this very system
///
/// Packs a few thousand files of the running system into a tar, runs a program in it, shows what
/// the program changed and how long everything took beside unpacking the same tar, and cleans up.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  tarnfs demo")]
pub(crate) struct Args {}

/// Enough to see a difference, little enough not to wait for.
const MAX_FILES: usize = 12_000;
const MAX_BYTES: u64 = 96 << 20;
const PROGRAMS: [&str; 5] = ["sh", "ls", "cat", "rm", "mkdir"];
/// A file of the image that the program deletes.
const VICTIM: &str = "etc/demo/delete-me";

/// What the program in the image does.
const SCRIPT: &str = "cd /etc/demo && cat hello && echo changed >> hello && rm delete-me \
    && mkdir /new && echo 'written inside' > /new/file && ls /etc/demo /new";

pub(crate) fn run(_global: &Global, _args: Args) -> anyhow::Result<ExitCode> {
    let dir = tempfile::Builder::new()
        .prefix("tarnfs-demo-")
        .tempdir_in(std::env::temp_dir().canonicalize()?)
        .context("making a temporary directory")?;
    let at = dir.path();
    let (findings, can_mount) = probe::all(&at.join("store"));
    if !can_mount {
        for finding in findings
            .iter()
            .filter(|finding| finding.state == State::Missing)
        {
            eprintln!(
                "tarnfs: {}: {} → {}",
                finding.name, finding.found, finding.follows
            );
        }
        bail!("nothing can be mounted here (see tarnfs doctor)");
    }
    let tar = at.join("image.tar");
    let (packed, packing) = timed(|| pack(&tar))?;
    println!(
        "An image of this system: {} files, {} MB, one tar",
        packed.files,
        packed.bytes >> 20
    );
    println!("  (packed in {})\n", seconds(packing));

    let ((), unpacking) = timed(|| unpack(&tar, &at.join("unpacked")))?;
    let store = at.join("store");
    let (_, indexing) = timed(|| Ok(Store::open(&store).tar_image(&tar, &mut |_| {})?))?;
    let upper = at.join("upper");
    println!("$ tarnfs run image.tar -- sh -c '…'");
    let (status, running) = timed(|| program(&store, &tar, &upper))?;
    if !status.success() {
        bail!("the program in the image failed ({status}); tarnfs doctor may tell why");
    }
    println!("\nWhat it changed lies in the upper directory, and nothing else does:");
    for change in changes(&upper, Path::new("/"))? {
        println!("  {change}");
    }
    println!(
        "\n  unpack the tar (tar -x)        {:>9}",
        seconds(unpacking)
    );
    println!(
        "  index it instead, once         {:>9}   {}",
        seconds(indexing),
        times(unpacking, indexing)
    );
    println!("  mount, run, unmount            {:>9}", seconds(running));
    println!(
        "  ready to run, first time       {:>9}   (index, mount, and the whole run)",
        seconds(indexing + running)
    );
    println!("  ready to run, from then on     {:>9}", seconds(running));
    println!("\nAll with the tar in the page cache. Cleaned up: nothing is left.");
    dir.close().context("cleaning up")?;
    Ok(ExitCode::SUCCESS)
}

fn timed<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, Duration)> {
    let start = Instant::now();
    let value = work()?;
    Ok((value, start.elapsed()))
}

fn seconds(time: Duration) -> String {
    format!("{:.3} s", time.as_secs_f64())
}

fn times(long: Duration, short: Duration) -> String {
    let ratio = long.as_secs_f64() / short.as_secs_f64().max(1e-6);
    if ratio >= 1.0 {
        format!("({ratio:.0} x faster)")
    } else {
        format!("({:.1} x slower)", 1.0 / ratio)
    }
}

/// What went into the image.
struct Packed {
    files: usize,
    bytes: u64,
}

type Tar = tar::Builder<BufWriter<File>>;

fn pack(path: &Path) -> anyhow::Result<Packed> {
    let mut out = tar::Builder::new(BufWriter::new(
        File::create(path).context("making the tar")?,
    ));
    out.follow_symlinks(false);
    let mut packed = Packed { files: 0, bytes: 0 };
    for name in [
        "proc", "dev", "sys", "tmp", "etc", "etc/demo", "root", "usr",
    ] {
        directory(&mut out, name)?;
    }
    // A merged /usr: the same links, and the files behind them.
    for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
        let host = Path::new("/").join(name);
        if host.is_symlink() {
            out.append_path_with_name(&host, name)?;
        }
    }
    text(&mut out, "etc/demo/hello", "hello from inside the image\n")?;
    text(&mut out, VICTIM, "delete me\n")?;
    text(&mut out, "etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")?;
    // The actor's own are bound over these: there already, they need not be made in the upper.
    text(&mut out, "etc/resolv.conf", "")?;
    text(&mut out, "etc/hosts", "")?;
    let mut done = BTreeSet::new();
    for name in PROGRAMS {
        let program = tarnfs::actor::userns::find_program(name)
            .with_context(|| format!("this system has no {name}"))?;
        copy(&mut out, &program, &mut done, &mut packed)?;
        for library in libraries(&program)? {
            copy(&mut out, &library, &mut done, &mut packed)?;
        }
        // At /bin as well, whatever PATH says here.
        if name == "sh" && !Path::new("/bin").is_symlink() {
            copy(&mut out, Path::new("/bin/sh"), &mut done, &mut packed)?;
        }
    }
    for tree in ["/usr/share", "/usr/lib", "/usr/include", "/etc"] {
        walk(&mut out, Path::new(tree), &mut done, &mut packed)?;
    }
    out.into_inner().context("finishing the tar")?;
    packed.bytes = fs::metadata(path)?.len();
    Ok(packed)
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header
}

fn directory(out: &mut Tar, name: &str) -> anyhow::Result<()> {
    let mut header = header(tar::EntryType::Directory, 0o755, 0);
    Ok(out.append_data(&mut header, name, std::io::empty())?)
}

fn text(out: &mut Tar, name: &str, text: &str) -> anyhow::Result<()> {
    let mut header = header(tar::EntryType::Regular, 0o644, u64::try_from(text.len())?);
    Ok(out.append_data(&mut header, name, text.as_bytes())?)
}

/// A program or library with its content, under its directory's real name.
fn copy(
    out: &mut Tar,
    path: &Path,
    done: &mut BTreeSet<PathBuf>,
    packed: &mut Packed,
) -> anyhow::Result<()> {
    let name = path.file_name().context("a program without a name")?;
    let parent = path.parent().unwrap_or(Path::new("/")).canonicalize()?;
    let path = parent.join(name);
    if !done.insert(path.clone()) {
        return Ok(());
    }
    let mut file = File::open(&path).with_context(|| path.display().to_string())?;
    let mut header = header(tar::EntryType::Regular, 0o755, file.metadata()?.len());
    out.append_data(&mut header, path.strip_prefix("/")?, &mut file)?;
    packed.files += 1;
    Ok(())
}

/// The shared libraries of a program, as its dynamic linker finds them.
pub(crate) fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).env("LC_ALL", "C").output();
    let output = output.context("running ldd to find the libraries of a program")?;
    // "libc.so.6 => /lib/… (0x…)" and "/lib64/ld-linux… (0x…)"; a static program has none.
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let path = |line: &str| {
        line.split_whitespace()
            .find(|w| w.starts_with('/'))
            .map(PathBuf::from)
    };
    Ok(text
        .lines()
        .filter_map(path)
        .filter(|path| path.is_file())
        .collect())
}

/// What this user can read of a tree, until there is enough.
fn walk(
    out: &mut Tar,
    dir: &Path,
    done: &mut BTreeSet<PathBuf>,
    packed: &mut Packed,
) -> anyhow::Result<()> {
    // What cannot be read is left out: this is a demonstration, not a backup.
    let Ok(entries) = fs::read_dir(dir) else {
        return Ok(());
    };
    let mut paths: Vec<PathBuf> = entries.filter_map(Result::ok).map(|e| e.path()).collect();
    paths.sort();
    for path in paths {
        if packed.files >= MAX_FILES || packed.bytes >= MAX_BYTES {
            return Ok(());
        }
        let Ok(metadata) = path.symlink_metadata() else {
            continue;
        };
        if metadata.is_dir() {
            walk(out, &path, done, packed)?;
        } else if metadata.is_file()
            && File::open(&path).is_ok()
            && !ours(&path)
            && done.insert(path.clone())
        {
            if metadata.len() < MAX_BYTES / 8 {
                out.append_path_with_name(&path, path.strip_prefix("/")?)?;
                packed.files += 1;
                packed.bytes += metadata.len();
            }
        } else if metadata.is_symlink() && done.insert(path.clone()) {
            out.append_path_with_name(&path, path.strip_prefix("/")?)?;
        }
    }
    Ok(())
}

/// Files that the image has a version of its own of, or that are nobody else's business.
fn ours(path: &Path) -> bool {
    path.starts_with("/etc/demo")
        || [
            "/etc/passwd",
            "/etc/shadow",
            "/etc/gshadow",
            "/etc/resolv.conf",
            "/etc/hosts",
        ]
        .iter()
        .any(|file| path == Path::new(file))
        || path.starts_with("/etc/ssl/private")
        || path.starts_with("/etc/ssh")
}

fn unpack(tar: &Path, into: &Path) -> anyhow::Result<()> {
    fs::create_dir(into)?;
    let status = Command::new("tar")
        .arg("-xf")
        .arg(tar)
        .arg("-C")
        .arg(into)
        .arg("--no-same-owner")
        .stderr(Stdio::null())
        .status()
        .context("running tar -x")?;
    if !status.success() {
        bail!("tar -x: {status}");
    }
    Ok(())
}

fn program(store: &Path, tar: &Path, upper: &Path) -> anyhow::Result<std::process::ExitStatus> {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("run")
        .arg("--store")
        .arg(store)
        .arg("--upper")
        .arg(upper);
    command
        .arg(tar)
        .args(["--", "sh", "-c", SCRIPT])
        .stdin(Stdio::null());
    command.status().context("tarnfs run")
}

/// What an upper says was changed, in words.
fn changes(upper: &Path, shown: &Path) -> anyhow::Result<Vec<String>> {
    let mut entries = fs::read_dir(upper)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    let mut all = Vec::new();
    for entry in entries {
        let name = shown.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            let inside = changes(&entry.path(), &name)?;
            if inside.is_empty() {
                all.push(format!("directory      {}", name.display()));
            }
            all.extend(inside);
        } else if kind.is_char_device() {
            all.push(format!("deleted        {}", name.display()));
        } else {
            let size = entry.metadata()?.len();
            all.push(format!("written        {} ({size} bytes)", name.display()));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upper_in_words() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/f"), "xyz").unwrap();
        assert_eq!(
            changes(dir.path(), Path::new("/")).unwrap(),
            ["directory      /a/b", "written        /a/f (3 bytes)"]
        );
    }

    #[test]
    fn the_image_holds_what_the_program_needs() {
        assert!(SCRIPT.contains(VICTIM.rsplit('/').next().unwrap()));
        let libraries = libraries(Path::new("/bin/sh")).unwrap();
        assert!(libraries.iter().all(|path| path.is_absolute()));
    }
}
