//! The same sandbox as an OCI runtime bundle, so that any OCI runtime can run it (runc, gVisor, Kata).

use crate::spec::Spec;
use serde_json::{Value, json};
use std::path::Path;

/// `config.json` of a bundle whose root file system is mounted or unpacked at `rootfs`.
/// [OCI runtime specification 1.0](https://github.com/opencontainers/runtime-spec/blob/main/config.md).
pub fn oci_config(spec: &Spec, rootfs: &Path) -> Value {
    json!({"ociVersion": "1.0.2", "process": {"args": spec.argv}, "root": {"path": rootfs}})
}
