//! References: names of images in this store.

use crate::error::StoreError;
use crate::open::Store;
use crate::record;
use keelway_disk::Sync;
use keelway_model::oci::Descriptor;
use keelway_model::{Digest, ImageRef};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What a file of `refs` holds.
#[derive(Serialize, Deserialize)]
pub(crate) struct Reference {
    pub(crate) name: ImageRef,
    pub(crate) target: Descriptor,
    #[serde(default)]
    origin: Origin,
}

/// Where a name has its meaning from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// Given on this machine: no registry knows better.
    #[default]
    Local,
    /// A registry said so when it was pulled; it may say something else by now.
    Registry,
}

impl Store {
    pub(crate) fn reference_file(name: &ImageRef) -> String {
        Digest::of(name.to_string().as_bytes()).hex()
    }
    fn refs(&self) -> PathBuf {
        self.inner.root.join("refs")
    }

    /// Points `name` at a manifest, on this machine's own word. This is the publish point of an image: everything written
    /// to the store before is synced first, then the reference is.
    pub fn set_reference(&self, name: &ImageRef, target: &Descriptor) -> Result<(), StoreError> {
        self.set_reference_from(name, target, Origin::Local)
    }

    /// [`Store::set_reference`] with where the meaning is from.
    pub fn set_reference_from(
        &self,
        name: &ImageRef,
        target: &Descriptor,
        origin: Origin,
    ) -> Result<(), StoreError> {
        if !self.has_blob(&target.digest) {
            return Err(StoreError::Missing { what: "manifest", name: target.digest.to_string() });
        }
        let reference = Reference { name: name.clone(), target: target.clone(), origin };
        let bytes = record::encode(&reference).map_err(|e| StoreError::io("write", self.refs())(e.into()))?;
        self.sync()?;
        // Not while a collector takes names away: it could take this one for the old one.
        self.holds()
            .pass(|_| self.publish(&self.refs(), &Self::reference_file(name), &bytes, Sync::Yes))
            .map_err(|e| StoreError::io("write in", self.refs())(std::io::Error::other(e)))?
    }

    /// What `name` points at; `None` also when its manifest is gone.
    pub fn reference(&self, name: &ImageRef) -> Result<Option<Descriptor>, StoreError> {
        Ok(self.reference_with_origin(name)?.map(|(target, _)| target))
    }

    /// [`Store::reference`] with where that is from.
    pub fn reference_with_origin(&self, name: &ImageRef) -> Result<Option<(Descriptor, Origin)>, StoreError> {
        let path = self.refs().join(Self::reference_file(name));
        if !path.try_exists().map_err(StoreError::io("read", &path))? {
            return Ok(None);
        }
        match record::read::<Reference>(&path) {
            Some(r) => Ok(self.has_blob(&r.target.digest).then_some((r.target, r.origin))),
            // Removed meanwhile, or not whole. References are synced, so the latter is worth an error.
            None if !path.exists() => Ok(None),
            None => Err(StoreError::Damaged { path, why: "it is not a reference".into() }),
        }
    }

    /// All references whose manifest is here, sorted by name.
    pub fn references(&self) -> Result<Vec<(ImageRef, Descriptor)>, StoreError> {
        let dir = self.refs();
        let mut out = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(StoreError::io("list", &dir))? {
            let path = entry.map_err(StoreError::io("list", &dir))?.path();
            if let Some(r) = record::read::<Reference>(&path)
                && self.blob_is_there(&r.target.digest)
            {
                out.push((r.name, r.target));
            }
        }
        out.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(out)
    }

    /// Files of references that [`Store::references`] leaves out: unreadable, or of a manifest that is gone; with the name
    /// where it can be told.
    pub fn broken_references(&self) -> Result<Vec<(PathBuf, Option<ImageRef>)>, StoreError> {
        let dir = self.refs();
        let mut out = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(StoreError::io("list", &dir))? {
            let path = entry.map_err(StoreError::io("list", &dir))?.path();
            let found = record::read::<Reference>(&path);
            // What was removed meanwhile is not broken.
            if !found.as_ref().is_some_and(|r| self.blob_is_there(&r.target.digest)) && path.exists() {
                out.push((path, found.map(|r| r.name)));
            }
        }
        out.sort();
        Ok(out)
    }
}
