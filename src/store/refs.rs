//! References: names of images in this store.

use crate::error::StoreError;
use crate::open::Store;
use keelway_model::ImageRef;
use keelway_model::oci::Descriptor;

impl Store {
    /// Points `name` at a manifest. This is the publish point of an image: everything written to the store
    /// before is synced first, then the reference is.
    pub fn set_reference(&self, name: &ImageRef, target: &Descriptor) -> Result<(), StoreError> {
        todo!()
    }
    /// What `name` points at; `None` also when its manifest is gone.
    pub fn reference(&self, name: &ImageRef) -> Result<Option<Descriptor>, StoreError> {
        todo!()
    }
    /// All references, sorted by name.
    pub fn references(&self) -> Result<Vec<(ImageRef, Descriptor)>, StoreError> {
        todo!()
    }
    /// Removes a name; one that is not there is fine.
    pub fn remove_reference(&self, name: &ImageRef) -> Result<(), StoreError> {
        todo!()
    }
}
