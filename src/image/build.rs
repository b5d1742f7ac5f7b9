//! A Dockerfile and its options, checked, on the way to a plan.

use keelway_dockerfile::Dockerfile;
use keelway_model::oci::{Descriptor, ImageConfig};
use keelway_model::{Diagnostics, ImageRef, Limits, Plan, Platform};
use std::collections::BTreeMap;

/// What the command line or the stage says about a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildOptions {
    /// `--build-arg`.
    pub args: BTreeMap<String, String>,
    /// `--target`; the last stage where none is given.
    pub target: Option<String>,
    /// For which platform.
    pub platform: Platform,
    /// Bounds of each RUN.
    pub limits: Limits,
    /// Proxy variables of this machine (`HTTP_PROXY`, `no_proxy`, ..): RUN sees them, keys do not.
    pub proxy: Vec<(String, String)>,
}

/// An image that a stage stands on, resolved to exact content.
#[derive(Debug, Clone, PartialEq)]
pub struct PinnedBase {
    /// Its manifest (of one image, never an index).
    pub descriptor: Descriptor,
    /// Its config.
    pub config: ImageConfig,
}

/// The pinned images of a build, by the reference that the Dockerfile gives after expansion.
pub type Bases = BTreeMap<ImageRef, PinnedBase>;

/// A build that can be planned.
#[derive(Debug, Clone)]
pub struct Build {
    dockerfile: Dockerfile,
    options: BuildOptions,
}

impl Build {
    /// Checks the target, the stage graph and that everything the target needs can be executed.
    /// The result holds the warnings.
    pub fn new(dockerfile: Dockerfile, options: BuildOptions) -> Result<Self, Diagnostics> {
        Ok(Self { dockerfile, options })
    }
    /// What is worth knowing and stops nothing.
    pub fn warnings(&self) -> &Diagnostics {
        &self.dockerfile.warnings
    }
    /// The images that must still be pinned, given those that are. Call it until it gives none: a trigger
    /// (`ONBUILD COPY --from=`) of a pinned base may need another.
    pub fn bases(&self, pinned: &Bases) -> Result<Vec<ImageRef>, Diagnostics> {
        let _ = (pinned, &self.options);
        todo!()
    }
    /// The plan, once [`Build::bases`] gives none. Its result is an `Assemble` node.
    pub fn lower(&self, pinned: &Bases) -> Result<Plan, Diagnostics> {
        let _ = pinned;
        todo!()
    }
}
