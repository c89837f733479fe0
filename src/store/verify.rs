//! Whether everything in the store is what it was: layers and configurations by their digests,
//! indexes by making them once more.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::blob::{self, Blob};
use super::hold::Hold;
use super::image::blob_file;
use super::images::layers_of;
use super::layout::{CONFIG, INDEX, SIDE};
use super::links::is_gone;
use super::lock::Lock;
use super::rebuild::flatten;
use super::record::{BlobPlace, ImageJson, config_of};
use super::{OnProgress, Store, StoreError, build, hash};
use crate::digest::Digest;

/// Something that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checked {
    /// A layer.
    Layer(Digest),
    /// The index of an image, and its side blob.
    Index(Digest),
    /// The record or the configuration of an image.
    Record(Digest),
    /// A layer that an image needs.
    Needs(Digest, Digest),
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// What was looked at.
    pub checked: Checked,
    /// What is wrong with it; `None`: nothing.
    pub problem: Option<String>,
}

impl Store {
    /// Checks `images`, or everything there is. Whoever writes meanwhile is not disturbed; what
    /// goes meanwhile is passed over.
    ///
    /// # Errors
    /// [`StoreError`] where something cannot be looked at at all; damage is a [`Verdict`].
    pub fn verify(
        &self,
        images: Option<&[Digest]>,
        progress: OnProgress<'_>,
    ) -> Result<Vec<Verdict>, StoreError> {
        let own = match images {
            Some(images) => images.to_vec(),
            None => self.own_digests()?,
        };
        let mut layers = BTreeSet::new();
        for digest in &own {
            layers.extend(layers_of(
                ImageJson::read(&self.layout.image(digest)).as_ref(),
            ));
        }
        if images.is_none() {
            let all = blob::all(&self.layout)?;
            layers.extend(all.into_iter().map(|(layer, _)| layer));
        }
        let mut verdicts = Vec::new();
        let mut bad = BTreeSet::new();
        for layer in layers {
            let Some(blob) = Blob::find(&self.layout, &layer)? else {
                bad.insert(layer);
                continue;
            };
            let io = StoreError::io(blob.path());
            // A layer that cannot be read to its end is damaged, too.
            let problem = match hash::file(blob.file(), progress) {
                Ok(has) if has == layer => None,
                Ok(has) => Some(format!("is damaged: its digest is {has}")),
                Err(e) if e.raw_os_error() == Some(libc::EIO) => {
                    Some(format!("is damaged: it cannot be read: {e}"))
                }
                Err(e) => return Err(io(e)),
            };
            if problem.is_some() {
                bad.insert(layer);
            }
            let checked = Checked::Layer(layer);
            verdicts.push(Verdict { checked, problem });
        }
        for digest in own {
            self.verify_image(digest, &bad, &mut verdicts)?;
        }
        Ok(verdicts)
    }

    fn verify_image(
        &self,
        own: Digest,
        bad: &BTreeSet<Digest>,
        verdicts: &mut Vec<Verdict>,
    ) -> Result<(), StoreError> {
        let entry = self.layout.image(&own);
        let mut say = |checked: Checked, problem: Option<String>| {
            verdicts.push(Verdict { checked, problem });
        };
        // Nothing of it goes while it is looked at.
        let _hold = Hold::take(&entry).map_err(StoreError::io(&entry))?;
        let Some(record) = ImageJson::read(&entry) else {
            if !is_gone(&entry).map_err(StoreError::io(&entry))? {
                let what = "its image.json is missing, damaged or of another version";
                say(Checked::Record(own), Some(what.to_owned()));
            }
            return Ok(());
        };
        let mut whole = true;
        for layer in &record.layers {
            let problem = blob_file(self.layout.blob(&layer.diff_id), layer.len)
                .err()
                .map(|bad| bad.what());
            if let Some(problem) = problem {
                whole = false;
                say(Checked::Needs(own, layer.diff_id), Some(problem));
            }
            whole &= !bad.contains(&layer.diff_id);
        }
        say(Checked::Record(own), record_problem(&entry, &own, &record));
        let index = entry.join(INDEX);
        let has = File::open(&index).and_then(|file| hash::file(&file, &mut |_| ()));
        let problem = match has {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Some("is missing".to_owned()),
            Err(e) => Some(format!("cannot be read: {e}")),
            Ok(has) if has != record.index.digest => Some(record.index.damage(&has)),
            // Of damaged layers nobody can make it anew, and another version makes another one.
            Ok(_) if !whole || record.tarnfs != env!("CARGO_PKG_VERSION") => None,
            Ok(_) => self.rebuilt_problem(&own, &entry, &record)?,
        };
        say(Checked::Index(own), problem);
        Ok(())
    }

    /// What differs in the index and the side blob when they are made once more.
    fn rebuilt_problem(
        &self,
        own: &Digest,
        entry: &Path,
        record: &ImageJson,
    ) -> Result<Option<String>, StoreError> {
        let blobs = self.blobs_of(own, record.layers.iter().map(|l| l.diff_id))?;
        let layers: Vec<&Blob> = blobs.iter().collect();
        let flat = match flatten(&layers) {
            Ok(flat) => flat,
            Err(error) => return Ok(Some(format!("cannot be made once more: {error}"))),
        };
        let lock = Lock::fresh(self.dir(), "verify")?;
        let temp = lock.fresh_dir()?;
        let (index, side) = (temp.join(INDEX), temp.join(SIDE));
        build::layers(self.dir(), &flat, &layers, &index, &side)?;
        let of = |path: &Path| match File::open(path) {
            Ok(file) => hash::file(&file, &mut |_| ()).map(Some),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        };
        let failed = StoreError::io(&temp);
        let made = of(&index).map_err(&failed)?;
        Ok(if made != Some(record.index.digest) {
            Some("is not what its layers give".to_owned())
        } else if of(&side).map_err(&failed)? != of(&entry.join(SIDE)).map_err(&failed)? {
            Some("has a damaged side blob".to_owned())
        } else {
            None
        })
    }
}

/// What is wrong with what stands beside the index.
fn record_problem(entry: &Path, own: &Digest, record: &ImageJson) -> Option<String> {
    if record.digest != Some(*own) {
        return Some("its image.json is another image's".to_owned());
    }
    let known: BTreeSet<Digest> = record.layers.iter().map(|l| l.diff_id).collect();
    let strange = |place: &BlobPlace| match place {
        BlobPlace::Layer(layer) => !known.contains(layer),
        BlobPlace::Side => false,
        BlobPlace::Tar => true,
    };
    if record.blobs.iter().any(|blob| strange(&blob.place)) {
        return Some("its image.json names files that are not its own".to_owned());
    }
    match fs::read(entry.join(CONFIG)) {
        Ok(config) if Digest::of(&config) == *own => (config_of(&config) != record.config)
            .then(|| "its image.json has another configuration than its config.json".to_owned()),
        Ok(config) => Some(format!(
            "its config.json is damaged: its digest is {}",
            Digest::of(&config)
        )),
        // A bare tar has none; its digest is that of its one layer.
        Err(e) if e.kind() == io::ErrorKind::NotFound => match record.layers.as_slice() {
            [layer] if layer.diff_id == *own => None,
            _ => Some("its config.json is missing".to_owned()),
        },
        Err(e) => Some(format!("its config.json cannot be read: {e}")),
    }
}
