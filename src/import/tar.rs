//! One tar that is a whole image: what `docker export` or `tar -c` of a root writes, compressed or
//! not.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use super::budget::Budget;
use super::error::ImportError;
use super::image::{found, lock, publish};
use super::layer::{Context, wrong};
use super::pipe::{Of, Pipe};
use super::{Event, Imported, Options, Watch};
use crate::index::Flattening;
use crate::index::tree::Tree;
use crate::store::{NewImage, Source, Store};

/// The bytes of a tar, and how many they are, where that is known.
pub struct Stream {
    /// The bytes as they come, compressed or not.
    pub input: Box<dyn Read + Send>,
    /// How many.
    pub len: Option<u64>,
}

/// Takes the tar that `stream` gives, which people call `from` (`-`: standard input), into the
/// store as an image of one layer. Its digest is that of the uncompressed tar.
///
/// # Errors
/// [`ImportError`] in one line. Nothing is left in the store then.
pub fn tar(
    store: &Store,
    stream: Stream,
    from: &str,
    options: &Options,
    watch: Arc<dyn Watch + Send + Sync>,
) -> Result<Imported, ImportError> {
    let called = match from {
        "-" => "standard input",
        from => from,
    };
    store.prepare()?;
    let context = Context {
        store,
        from: called,
        budget: Budget::new(options.max_bytes),
        watch: watch.clone(),
        stop: Arc::new(AtomicBool::new(false)),
    };
    watch.on(Event::Layers(1));
    watch.on(Event::Begun(0, stream.len));
    let of = Of {
        name: called.to_owned(),
        position: 0,
        // A file that grows meanwhile is not cut off; it is another one then.
        len: None,
    };
    let writer = store.begin_unknown_blob()?;
    let pipe = Pipe::open(
        Box::new(move || Ok(stream.input)),
        of,
        watch.clone(),
        context.stop.clone(),
    )
    .map_err(|e| wrong(called, format!("a thread cannot be started: {e}")))?;
    let taken = context.take(pipe, writer, called)?;
    let mut cost = taken.cost;
    let mut flattening = Flattening::new();
    flattening.add(taken.scan, Path::new(called))?;
    let flat = flattening.finish()?;
    if let Some((kind, prefix)) = other_archive(&flat.tree) {
        return Err(ImportError::NotARoot(format!(
            "{called}: is {kind}, no root filesystem; import it as {prefix}FILE"
        )));
    }
    let digest = taken.diff_id;
    let start = Instant::now();
    let blob = taken.writer.publish(&digest)?;
    cost.syncing = start.elapsed();
    cost.layers = 1;
    watch.on(Event::Done(0));
    let lock = lock(store, &digest, &*watch)?;
    if let Some(found) = found(store, &digest, &[], Some(&lock))? {
        return Ok(Imported { cost, ..found });
    }
    let new = NewImage {
        digest,
        aliases: Vec::new(),
        source: Source::Import {
            from: from.to_owned(),
        },
        config_json: None,
        config: None,
        layers: vec![&blob],
        flat: &flat,
    };
    publish(store, &new, &lock, &*watch, cost)
}

/// Which archive of images a tar is whose root has these names, and by which prefix it is imported.
fn other_archive(tree: &Tree) -> Option<(&'static str, &'static str)> {
    let root = tree.inodes.first()?.children()?;
    let has = |name: &[u8]| root.iter().any(|(child, _)| child == name);
    if has(b"manifest.json") && !has(b"usr") && !has(b"bin") {
        Some(("a docker archive", "docker-archive:"))
    } else if has(b"oci-layout") && has(b"index.json") {
        Some(("an OCI archive", "oci-archive:"))
    } else {
        None
    }
}
