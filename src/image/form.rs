//! The same image written down in another way: compression of its layers, names of its media types, annotations.
//!
//! What the image holds does not change: its config, and so its id, stay byte for byte. Layers of the base are left as
//! they are, unless all are asked for, so that a registry which has them needs no second copy.

use crate::assemble::put;
use crate::base::manifest;
use crate::error::StepError;
use keelway_model::oci::{Descriptor, media};
use keelway_model::plan::ImageOutput;
use keelway_store::{Compression, Store};
use std::collections::BTreeMap;

/// How an image is written down.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Form {
    /// Of the layers that the build made; `None` leaves them as they are.
    pub compression: Option<Compression>,
    /// Of the base's layers, too.
    pub force: bool,
    /// Docker's media types instead of OCI's.
    pub docker: bool,
    /// Annotations of the manifest.
    pub annotations: BTreeMap<String, String>,
}

/// The manifest of `image` in this form, in the store with all that it names.
pub fn in_form(store: &Store, image: &ImageOutput, form: &Form) -> Result<Descriptor, StepError> {
    if *form == Form::default() {
        return Ok(image.manifest.clone());
    }
    if form.docker && !form.annotations.is_empty() {
        return Err(StepError::Refused(
            "docker's media types have no annotations: leave oci-mediatypes=false or the annotations out"
                .into(),
        ));
    }
    let mut document = manifest(store, &image.manifest)?;
    if document.layers.len() != image.chain.snapshots.len() {
        return Err(StepError::Inputs { op: "export", why: "layers and chain do not agree" });
    }
    for (at, (layer, snapshot)) in document.layers.iter_mut().zip(&image.chain.snapshots).enumerate() {
        let mut is = Compression::of_media_type(&layer.media_type)?;
        if let Some(wanted) = form.compression.filter(|c| *c != is && (form.force || at >= image.base_layers))
        {
            *layer = store.layer_of(snapshot, wanted)?.descriptor;
            is = wanted;
        }
        layer.media_type = if form.docker { is.docker_media_type() } else { is.media_type() }.to_owned();
    }
    let (config, kind) = match form.docker {
        true => (media::DOCKER_CONFIG, media::DOCKER_MANIFEST),
        false => (media::CONFIG, media::MANIFEST),
    };
    config.clone_into(&mut document.config.media_type);
    document.media_type = Some(kind.to_owned());
    document.annotations.extend(form.annotations.clone());
    put(store, kind, &document)
}
