//! Images from an OCI layout directory. (skeleton)
use keelway_model::oci::Descriptor;
use keelway_model::{ImageRef, Platform};
use keelway_store::Store;
use std::path::Path;

/// Why a layout cannot be imported.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ImportError(String);

/// Takes an image of the layout at `dir` into the store and names it `name`. `select` is the tag in the
/// layout (`org.opencontainers.image.ref.name`) or a digest; without one the layout must hold one image.
pub fn oci_layout(
    store: &Store,
    dir: &Path,
    select: Option<&str>,
    name: &ImageRef,
    platform: &Platform,
) -> Result<Descriptor, ImportError> {
    let _ = (store, dir, select, name, platform);
    todo!()
}
