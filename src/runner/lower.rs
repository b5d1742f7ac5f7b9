//! `Op::Build`: a Dockerfile of the source, its bases pinned, lowered to a sub-plan.

use crate::contexts;
use crate::settings::Settings;
use crate::subtree::Subtree;
use keelway_dockerfile::{Ignore, Rule, ignore_file_candidates};
use keelway_engine::Failure;
use keelway_image::{Asked, Bases, Build, BuildOptions, Look, PinnedBase};
use keelway_model::oci::{Descriptor, ImageConfig, Manifest};
use keelway_model::plan::BuildOp;
use keelway_model::{
    Diagnostic, Diagnostics, ExitCode, ImageRef, Op, Plan, SourceText, Span, Tree, TreeError, TreePath,
};
use keelway_pipeline::{Definition, Kind};
use keelway_store::Store;
use std::io::Read;
use std::sync::Arc;

/// The longest Dockerfile and the longest ignore file, in bytes.
const MAX_TEXT: u64 = 1 << 20;
/// The longest manifest and the longest config, in bytes.
const MAX_DOCUMENT: u64 = 4 << 20;
/// How many warnings are said as lines.
const MAX_LINES: usize = 10;
/// How often pinned bases may ask for further ones (by triggers), before we call it endless.
const MAX_ROUNDS: usize = 16;

/// A build whose Dockerfile was read and checked.
pub struct Opened {
    /// The context, before its ignore patterns.
    pub context: Arc<dyn Tree>,
    /// The ignore patterns.
    pub ignore: Ignore,
    /// The checked build.
    pub build: Build,
    /// What is worth knowing of it, with the findings of lint rules. The file may want those to be errors.
    pub found: Diagnostics,
}

impl Opened {
    /// The same, if it may be built.
    pub fn sound(self) -> Result<Self, OpenError> {
        if self.found.has_errors() { Err(OpenError::Definition(self.found)) } else { Ok(self) }
    }

    /// What lint rules find besides, now that bases are pinned.
    fn found_late(&self, pinned: &Bases) -> Diagnostics {
        let mut late = self.build.lint(pinned, &self.ignore, Look::Build);
        late.items.retain(|d| d.is_lint() && !self.found.items.contains(d));
        late
    }
}

/// Why a build cannot be opened.
pub enum OpenError {
    /// The Dockerfile is not valid.
    Definition(Diagnostics),
    /// Something else.
    Failed(Failure),
}

impl From<OpenError> for Failure {
    fn from(e: OpenError) -> Self {
        match e {
            OpenError::Definition(d) => Failure::new(d.exit(), d.to_string()),
            OpenError::Failed(f) => f,
        }
    }
}

fn usage(message: String) -> OpenError {
    OpenError::Failed(Failure::new(ExitCode::Usage, message))
}

/// Reads a text file of a tree; `Ok(None)` when it is not there.
fn read_text(tree: &dyn Tree, path: &TreePath, what: &str) -> Result<Option<String>, OpenError> {
    let mut bytes = Vec::new();
    match tree.open(path).map(|file| file.take(MAX_TEXT + 1).read_to_end(&mut bytes)) {
        Err(TreeError::NotFound { .. }) => return Ok(None),
        Err(e) => return Err(usage(format!("{what}: {e}"))),
        Ok(Err(e)) => {
            return Err(OpenError::Failed(Failure::outside(format!("{what}: cannot read {path}: {e}"))));
        }
        Ok(Ok(_)) => {}
    }
    if bytes.len() as u64 > MAX_TEXT {
        return Err(usage(format!("{what}: {path} is longer than 1 MiB; is it the right file?")));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(usage(format!("{what}: {path} is not UTF-8 text"))),
    }
}

/// A path of the file, inside the tree. It is clamped, as Docker clamps paths to the context.
fn inside(path: &str, what: &str) -> Result<TreePath, OpenError> {
    TreePath::clamped(path.as_bytes()).ok_or_else(|| usage(format!("{what} {path:?} holds a NUL byte")))
}

/// Reads and checks the Dockerfile of a build; blocking.
pub fn open(
    source: &Arc<dyn Tree>,
    op: &BuildOp,
    settings: &Settings,
    look: Look,
) -> Result<Opened, OpenError> {
    let at = inside(&op.context, "the build context")?;
    let context: Arc<dyn Tree> = if at.is_root() {
        Arc::clone(source)
    } else {
        Arc::new(Subtree::new(Arc::clone(source), at).map_err(|e| usage(format!("build context: {e}")))?)
    };
    let file = inside(&op.file, "the Dockerfile's path")?;
    let name = if matches!(op.context.as_str(), "." | "" | "./") {
        op.file.clone()
    } else {
        format!("{}/{}", op.context.trim_end_matches('/'), op.file)
    };
    let Some(text) = read_text(&*context, &file, "Dockerfile")? else {
        return Err(usage(format!(
            "{name} does not exist in the source; name the Dockerfile with `file:` (or -f)"
        )));
    };
    open_text(context, SourceText::new(name, text), op, settings, look)
}

/// The same for a Dockerfile that is not in the context.
pub fn open_text(
    context: Arc<dyn Tree>,
    dockerfile: SourceText,
    op: &BuildOp,
    settings: &Settings,
    look: Look,
) -> Result<Opened, OpenError> {
    let options = BuildOptions {
        args: op.args.clone(),
        target: op.target.clone(),
        platform: op.platform.clone(),
        limits: op.limits.clone(),
        proxy: settings.proxy_env.clone(),
        network: op.network,
        allow: settings.allow.clone(),
        contexts: contexts::named(&settings.contexts),
        labels: op.labels.clone(),
        anew: op.anew.clone(),
    };
    let parsed = match keelway_dockerfile::parse_all(&dockerfile) {
        (parsed, found) if found.has_errors() => {
            return Err(OpenError::Definition(keelway_image::refused(&parsed, found, &options)));
        }
        (parsed, _) => parsed,
    };
    let ignore = ignore_file(&*context, &ignore_file_candidates(&op.file))?;
    let build = Build::new(parsed, options).map_err(OpenError::Definition)?;
    let mut found = build.warnings().clone();
    found.merge(build.lint(&Bases::new(), &ignore, look));
    Ok(Opened { context, ignore, build, found })
}

/// Everything that is worth knowing of a Dockerfile, and whether what it copies is in its context; blocking.
pub fn examine(opened: &Opened) -> Diagnostics {
    let missing = opened.build.missing_sources(&*opened.context, &opened.ignore);
    let mut found = opened.found.clone();
    // That it is left out is why it is missing.
    let is_missing = |d: &Diagnostic| missing.items.iter().any(|m| m.span == d.span);
    found.items.retain(|d| d.code != Rule::CopyIgnoredFile.name() || !is_missing(d));
    found.merge(missing);
    found
}

/// Warnings as lines with place, source and what to do: the first ones, and how many there are besides.
pub fn lines(found: &Diagnostics) -> Vec<String> {
    let line = |d: &Diagnostic| {
        let (place, source) = match found.source_of(d) {
            // What concerns the whole file has no line.
            Some(s) if d.span != Span::default() => {
                let (line, _) = s.line_col(d.span.start);
                let text = s.text.lines().nth(line - 1).unwrap_or_default().trim();
                let text: String = text.chars().take(80).collect();
                (format!("{}:{line}", d.file), format!("{text}: "))
            }
            _ => (d.file.clone(), String::new()),
        };
        let hints = d.hints.iter().map(|h| format!("; {h}")).collect::<String>();
        format!("{place}: {source}{} ({}){hints}", d.message, d.code)
    };
    let mut lines: Vec<String> = found.items.iter().take(MAX_LINES).map(line).collect();
    if found.items.len() > MAX_LINES {
        lines.push(format!("{} more like these; `keelway lint` shows them", found.items.len() - MAX_LINES));
    }
    lines
}

/// The first of these ignore files that is there.
pub(crate) fn ignore_file(context: &dyn Tree, candidates: &[String]) -> Result<Ignore, OpenError> {
    for candidate in candidates {
        if let Some(text) = read_text(context, &inside(candidate, "the ignore file")?, "ignore file")? {
            return Ignore::parse(text.as_bytes()).map_err(|e| usage(format!("{candidate}: {e}")));
        }
    }
    Ok(Ignore::default())
}

/// Every problem of the Dockerfiles that a plan's builds name; blocking.
pub fn check(
    definition: &Definition,
    plan: &Plan,
    source: &Arc<dyn Tree>,
    settings: &Settings,
) -> Result<Diagnostics, Failure> {
    checked(definition, plan, source, settings, Look::Build)
}

/// The same, and whether what they copy is in their contexts.
pub fn check_all(
    definition: &Definition,
    plan: &Plan,
    source: &Arc<dyn Tree>,
    settings: &Settings,
) -> Result<Diagnostics, Failure> {
    checked(definition, plan, source, settings, Look::File)
}

fn checked(
    definition: &Definition,
    plan: &Plan,
    source: &Arc<dyn Tree>,
    settings: &Settings,
    look: Look,
) -> Result<Diagnostics, Failure> {
    let mut all = Diagnostics::default();
    for node in plan.nodes.iter().filter(|n| n.skip.is_none()) {
        let Op::Build(op) = &node.op else { continue };
        match open(source, op, settings, look) {
            Ok(opened) if look == Look::File => all.merge(examine(&opened)),
            Ok(opened) => all.merge(opened.found),
            Err(OpenError::Definition(mut d)) => {
                // The name of a target stands in the pipeline file, and there it is to be mended.
                let wanted = definition.stage(&node.name).and_then(|s| match &s.kind {
                    Kind::Build(build) => build.target_span,
                    _ => None,
                });
                for item in d.items.iter_mut().filter(|i| i.code == "D0202") {
                    if let Some(span) = wanted {
                        item.file.clone_from(&definition.source.name);
                        item.span = span;
                    }
                }
                d.sources.push(definition.source.clone());
                all.merge(d);
            }
            Err(OpenError::Failed(f)) => {
                return Err(Failure::new(f.exit, format!("stage {}: {}", node.name, f.message)));
            }
        }
    }
    // Two stages that build the same file say the same things.
    let mut seen = Vec::new();
    all.items.retain(|d| {
        let new = !seen.contains(d);
        if new {
            seen.push(d.clone());
        }
        new
    });
    Ok(all)
}

/// Pins every base, as `pin` says, and lowers the build. Beside the plan there is what lint rules find now that the bases are
/// known.
pub(crate) async fn lower<F: Future<Output = Result<PinnedBase, Failure>>>(
    opened: &Opened,
    pull: bool,
    pin: impl Fn(ImageRef) -> F,
) -> Result<(Plan, Diagnostics), Failure> {
    let definition = |d: Diagnostics| Failure::new(d.exit(), d.to_string());
    let mut pinned = Bases::new();
    for _ in 0..MAX_ROUNDS {
        let missing = opened.build.bases(&pinned).map_err(definition)?;
        if missing.is_empty() {
            let plan = opened.build.lower(&pinned).map_err(definition)?;
            let late = if pinned.is_empty() { Diagnostics::default() } else { opened.found_late(&pinned) };
            return if late.has_errors() { Err(definition(late)) } else { Ok((plan, late)) };
        }
        for name in missing {
            let place = opened.build.place_of(&name);
            let base = pin(name.clone()).await.map_err(|e| unknown_image(&e, &name, place, pull))?;
            pinned.insert(name, base);
        }
    }
    Err(Failure::new(ExitCode::Usage, "the ONBUILD triggers of the base images ask for ever more images"))
}

/// Why an image could not be had, with where it is asked for and what else may bring it here.
pub(crate) fn unknown_image(e: &Failure, name: &ImageRef, place: Option<Asked>, pull: bool) -> Failure {
    if e.exit != ExitCode::Outside {
        return e.clone();
    }
    let at = place.as_ref().map(|p| format!("{}: {}: ", p.place, p.text)).unwrap_or_default();
    let near = place.and_then(|p| p.near);
    let meant = near.map(|n| format!("; did you mean the stage {n:?}?")).unwrap_or_default();
    if pull {
        let what = "what this machine's store has was not looked at, because of --pull";
        return Failure::new(e.exit, format!("{at}{}{meant}; {what}", e.message));
    }
    Failure::new(
        e.exit,
        format!(
            "{at}{}{meant}; {name} is not in this machine's store either: `keelway image load DIR {name}` takes it \
             from an OCI layout, `keelway image pull {name}` from its registry",
            e.message
        ),
    )
}

/// Manifest and config of an image of the store; blocking, small.
pub(crate) fn config_of(store: &Store, manifest: &Descriptor) -> Result<(Manifest, ImageConfig), Failure> {
    let damaged = |e: &dyn std::fmt::Display| {
        Failure::outside(format!(
            "image {} in the store cannot be read: {e}; run the build again with an empty store",
            manifest.digest
        ))
    };
    let bytes = store.read_blob(&manifest.digest, MAX_DOCUMENT).map_err(|e| damaged(&e))?;
    let document: Manifest = serde_json::from_slice(&bytes).map_err(|e| damaged(&e))?;
    let bytes = store.read_blob(&document.config.digest, MAX_DOCUMENT).map_err(|e| damaged(&e))?;
    let config: ImageConfig = serde_json::from_slice(&bytes).map_err(|e| damaged(&e))?;
    Ok((document, config))
}
