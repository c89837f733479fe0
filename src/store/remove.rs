//! Removing images and layers: never what is used, never half.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use super::blob;
use super::hold::{self, Free};
use super::image::own_digest;
use super::images::layers_of;
use super::layout::{allocated, entry_allocated};
use super::links::unlink_lost;
use super::record::ImageJson;
use super::{Store, StoreError, lock, publish, roots};
use crate::digest::Digest;

/// Why something stays.
pub(super) type Why = String;

/// Which layers the images need. Read anew each time that it is asked, as far as it changed.
#[derive(Debug, Default)]
pub(super) struct Needed {
    known: BTreeMap<Digest, Vec<Digest>>,
}

impl Needed {
    /// Whether an image needs the layer, as things are now.
    pub(super) fn by(&mut self, store: &Store, layer: &Digest) -> Result<Option<Why>, StoreError> {
        let own = store.own_digests()?;
        self.known.retain(|digest, _| own.contains(digest));
        for digest in own {
            if self.known.contains_key(&digest) {
                continue;
            }
            let entry = store.layout.image(&digest);
            match ImageJson::read(&entry) {
                Some(record) => {
                    self.known.insert(digest, layers_of(Some(&record)));
                }
                // It is being removed, or nobody can tell what it needs.
                None if !entry.exists() => {}
                None => {
                    return Ok(Some(format!(
                        "image {digest} cannot be read, so that nobody knows what it needs"
                    )));
                }
            }
        }
        let user = self.known.iter().find(|(_, layers)| layers.contains(layer));
        Ok(user.map(|(image, _)| format!("image {image} needs it")))
    }
}

/// What came of removing something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Gone {
    /// It is gone; so many bytes are free.
    Yes(u64),
    /// It stays.
    No(Why),
}

impl Store {
    /// Removes the image that `text` means, a name or a digest: by a name that is not its last one,
    /// only the name. The layers that no other image needs go with it.
    ///
    /// # Errors
    /// [`StoreError::NoImage`]; [`StoreError::InUse`]; those of writing to the store.
    pub fn remove(&self, text: &str) -> Result<Removed, StoreError> {
        let name = text.parse::<super::ImageName>().ok();
        if let Some(name) = name
            && let Some(digest) = self.named(&name)
        {
            let others = self
                .names()?
                .iter()
                .any(|(n, of)| *of == digest && *n != name);
            if others {
                self.untag(&name)?;
                return Ok(Removed::default());
            }
            let removed = match own_digest(&self.layout, &digest) {
                Some(own) => self.remove_image(&own)?,
                // Who removed it before was ended in the middle.
                None => {
                    self.prepare()?;
                    Removed::default()
                }
            };
            // Last, so that who is ended in the middle can be called once more.
            self.untag_lost(&name, &digest)?;
            return Ok(removed);
        }
        let own = self.find(text)?;
        let removed = self.remove_image(&own)?;
        self.drop_names(&own)?;
        Ok(removed)
    }

    /// Removes the image `own` and what only it needs, but its names.
    fn remove_image(&self, own: &Digest) -> Result<Removed, StoreError> {
        self.prepare()?;
        let record = ImageJson::read(&self.layout.image(own));
        let bytes = match self.drop_entry(own)? {
            Gone::Yes(bytes) => bytes,
            Gone::No(by) => {
                return Err(StoreError::InUse {
                    what: own.to_string(),
                    by,
                });
            }
        };
        let mut removed = Removed {
            image: Some(*own),
            layers: Vec::new(),
            bytes,
        };
        let mut needed = Needed::default();
        for layer in layers_of(record.as_ref()) {
            if let Gone::Yes(bytes) = self.drop_layer(&layer, &mut needed)? {
                removed.layers.push(layer);
                removed.bytes += bytes;
            }
        }
        Ok(removed)
    }

    /// Takes a layer away whose bytes are not those of its digest, so that a whole one can come in
    /// its place. Mounts that read it go on with what they have open. False where there was none.
    ///
    /// # Errors
    /// Those of reading and writing the store.
    pub fn discard_layer(&self, layer: &Digest) -> Result<bool, StoreError> {
        blob::discard(&self.layout, layer)
    }

    pub(super) fn roots(&self) -> Result<Vec<roots::Root>, StoreError> {
        roots::alive(&self.layout)
    }

    /// Removes the entry of an image, and all links to it but its names, if nobody uses it.
    pub(super) fn drop_entry(&self, own: &Digest) -> Result<Gone, StoreError> {
        let entry = self.layout.image(own);
        let bytes = entry_allocated(&entry);
        let _alone = match hold::entry_alone(&entry) {
            Free::Yes(alone) => alone,
            Free::Gone => return Ok(Gone::Yes(0)),
            Free::No(why) => return Ok(Gone::No(why)),
        };
        // Who has added a root had the image open, and may have ended since: now nobody can.
        if let Some(root) = self.roots()?.iter().find(|root| root.image == *own) {
            return Ok(Gone::No(root.why()));
        }
        self.withdraw(&entry)?;
        self.drop_links(own)?;
        Ok(Gone::Yes(bytes))
    }

    /// Takes what is published at `path` away.
    pub(super) fn withdraw(&self, path: &std::path::Path) -> Result<(), StoreError> {
        let temp = lock::removed(self.dir());
        publish::withdraw(path, &temp).map_err(|e| StoreError::write(self.dir(), path, e))
    }

    /// Removes the aliases of an image that is gone, and the memory of its sources.
    fn drop_links(&self, own: &Digest) -> Result<(), StoreError> {
        for (link, of) in self.aliases()?.into_iter().chain(self.sources()?) {
            if of == *own {
                unlink_lost(&self.layout, &link, own)?;
            }
        }
        Ok(())
    }

    /// Removes the names of an image that is gone.
    pub(super) fn drop_names(&self, own: &Digest) -> Result<(), StoreError> {
        for (name, of) in self.names()? {
            if of == *own {
                self.untag_lost(&name, own)?;
            }
        }
        Ok(())
    }

    /// Removes a layer, if no image needs it and nobody has it open.
    pub(super) fn drop_layer(
        &self,
        layer: &Digest,
        needed: &mut Needed,
    ) -> Result<Gone, StoreError> {
        if let Some(why) = needed.by(self, layer)? {
            return Ok(Gone::No(why));
        }
        let path = self.layout.blob(layer);
        let bytes = allocated(&path).unwrap_or(0);
        let _alone = match blob::alone(&self.layout, layer) {
            Free::Yes(alone) => alone,
            Free::Gone => return Ok(Gone::Yes(0)),
            Free::No(why) => return Ok(Gone::No(why)),
        };
        // Who has held it may have published an image with it since: once more, now that nobody can.
        if let Some(why) = needed.by(self, layer)? {
            return Ok(Gone::No(why));
        }
        match fs::remove_file(&path) {
            Ok(()) => Ok(Gone::Yes(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Gone::Yes(0)),
            Err(e) => Err(StoreError::write(self.dir(), &path, e)),
        }
    }
}

/// What [`Store::remove`] has removed; the default: a name only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// The image.
    pub image: Option<Digest>,
    /// Layers that no other image needed.
    pub layers: Vec<Digest>,
    /// Bytes that are free now.
    pub bytes: u64,
}
