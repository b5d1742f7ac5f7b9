//! What happens to an image that was built: its names, exports, pushes, and the files that tell of it.

use super::Context;
use crate::args::Format;
use crate::build_args::BuildFlags;
use crate::files;
use crate::outcome::CommandError;
use crate::output_args::{Dest, Exporter, Wanted, outputs};
use keelway_engine::{CancelToken, Failure};
use keelway_image::export::{self, Archive, ExportError};
use keelway_image::in_form;
use keelway_model::ExitCode;
use keelway_model::ImageRef;
use keelway_model::oci::Descriptor;
use keelway_model::plan::ImageOutput;
use keelway_runner::{Settings, Workspace};
use keelway_store::Store;
use std::collections::BTreeMap;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::PathBuf;

/// Bytes that are written at once.
const BUFFER: usize = 1 << 20;

/// What shall be done, known to be possible as far as that can be told before the build.
pub struct Delivery {
    wanted: Vec<Wanted>,
    iidfile: Option<PathBuf>,
    metadata_file: Option<PathBuf>,
}

impl Delivery {
    /// From the flags; a file of an earlier build that this one would write goes now, so that none is left when it fails.
    pub fn new(context: &Context, flags: &BuildFlags, tags: &[ImageRef]) -> Result<Self, CommandError> {
        let wanted = outputs(flags, tags)?;
        if wanted.iter().any(|w| w.dest == Some(Dest::Stdout)) {
            if context.global.format == Format::Json {
                return Err(CommandError::usage(
                    "standard output cannot have both the image and the events of --format json",
                ));
            }
            if io::stdout().is_terminal() {
                return Err(CommandError::usage(
                    "an archive is not for a terminal: name a file, or a pipe behind it",
                ));
            }
        }
        for (flag, file) in [("--iidfile", &flags.iidfile), ("--metadata-file", &flags.metadata_file)] {
            let Some(file) = file else { continue };
            files::begin(file).map_err(|e| CommandError::usage(format!("{flag} {}: {e}", file.display())))?;
        }
        Ok(Self { wanted, iidfile: flags.iidfile.clone(), metadata_file: flags.metadata_file.clone() })
    }

    /// Does it all, one after the other, and says the image's digest.
    pub async fn deliver(
        self,
        context: &Context,
        settings: &Settings,
        workspace: &Workspace,
        image: &ImageOutput,
    ) -> Result<(), CommandError> {
        let store = &workspace.store;
        let cancel = context.cancel.token();
        // What is told of is the first.
        let mut told: Option<(Descriptor, Vec<ImageRef>)> = None;
        for wanted in &self.wanted {
            let (own, form) = ((store.clone(), image.clone()), wanted.form.clone());
            let manifest =
                blocking(move || in_form(&own.0, &own.1, &form).map_err(|e| failed(&ExportError::from(e))))
                    .await?;
            match wanted.exporter {
                Exporter::Image { push } => {
                    for name in &wanted.names {
                        store.set_reference(name, &manifest).map_err(CommandError::outside)?;
                    }
                    if push {
                        self.push(context, settings, store, &manifest, &wanted.names).await?;
                    }
                }
                _ => {
                    let (store, image, wanted) = (store.clone(), image.clone(), wanted.clone());
                    let (manifest, cancel) = (manifest.clone(), cancel.clone());
                    let owners = context.machine.root;
                    blocking(move || write(&store, &image, &manifest, &wanted, owners, cancel)).await?;
                }
            }
            if let Some(Dest::Path(path)) = &wanted.dest {
                context.say(&format!("wrote {}", path.display()));
            }
            told.get_or_insert((manifest, wanted.names.clone()));
        }
        let (manifest, names) = told.unwrap_or_else(|| (image.manifest.clone(), Vec::new()));
        self.tell(store, &manifest, &names)?;
        match context.global.format {
            Format::Text if self.wanted.iter().any(|w| w.dest == Some(Dest::Stdout)) => Ok(()),
            Format::Text => context.print(&format!("{}\n", manifest.digest)),
            Format::Json => Ok(()),
        }
    }

    async fn push(
        &self,
        context: &Context,
        settings: &Settings,
        store: &Store,
        manifest: &Descriptor,
        names: &[ImageRef],
    ) -> Result<(), CommandError> {
        let client = settings.registry_client(&BTreeMap::new())?.telling(super::image::say_waits(context));
        for name in names {
            let tags: Vec<_> = name.effective_tag().into_iter().collect();
            let push =
                client.push(store, manifest, &name.repository, &tags, super::image::say_transfers(context));
            let cancel = context.cancel.token();
            tokio::select! {
                pushed = push => pushed.map_err(CommandError::outside)?,
                _ = cancel.cancelled() => return Err(cancelled()),
            };
            context.say(&format!("pushed {name}@{}", manifest.digest));
        }
        Ok(())
    }

    /// The files that programs read.
    fn tell(&self, store: &Store, manifest: &Descriptor, names: &[ImageRef]) -> Result<(), CommandError> {
        if self.iidfile.is_none() && self.metadata_file.is_none() {
            return Ok(());
        }
        let id = export::config(store, manifest).map_err(|e| failed(&e))?;
        let put = |file: &Option<PathBuf>, bytes: &[u8]| {
            let Some(file) = file else { return Ok(()) };
            files::write(file, bytes).map_err(|e| CommandError::outside(format!("{}: {e}", file.display())))
        };
        put(&self.iidfile, id.to_string().as_bytes())?;
        let mut metadata = serde_json::json!({
            "containerimage.config.digest": id,
            "containerimage.descriptor": manifest,
            "containerimage.digest": manifest.digest,
        });
        if !names.is_empty() {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            metadata["image.name"] = names.join(",").into();
        }
        let text = serde_json::to_string_pretty(&metadata).map_err(CommandError::outside)?;
        put(&self.metadata_file, format!("{text}\n").as_bytes())
    }
}

fn cancelled() -> CommandError {
    Failure::new(ExitCode::Cancelled, "cancelled").into()
}

fn failed(e: &ExportError) -> CommandError {
    match e {
        ExportError::Refused { .. } => CommandError::usage(e.to_string()),
        e => CommandError::outside(e),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CommandError> + Send + 'static,
) -> Result<T, CommandError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Failure::bug(format!("a worker of Keelway failed: {e}")))?
}

/// One export that is no name in the store.
fn write(
    store: &Store,
    image: &ImageOutput,
    manifest: &Descriptor,
    wanted: &Wanted,
    owners: bool,
    cancel: CancelToken,
) -> Result<(), CommandError> {
    let Some(dest) = &wanted.dest else { return Ok(()) };
    if let (Dest::Path(dir), Exporter::Local) = (dest, wanted.exporter) {
        return export::directory(store, &image.chain, owners, dir).map_err(|e| failed(&e));
    }
    if let (Dest::Path(dir), true) = (dest, wanted.unpacked) {
        return export::layout(store, manifest, &wanted.names, dir).map_err(|e| failed(&e));
    }
    let archive = |out: &mut dyn Write| -> Result<(), ExportError> {
        let out = BufWriter::with_capacity(BUFFER, Stoppable { out, cancel: cancel.clone() });
        match wanted.exporter {
            Exporter::Oci => export::archive(store, manifest, &wanted.names, Archive::Oci, out).map(drop),
            Exporter::Docker => {
                export::archive(store, manifest, &wanted.names, Archive::Docker, out).map(drop)
            }
            _ => export::tar(store, &image.chain, out).map(drop),
        }
    };
    let told = |e: ExportError| if cancel.is_cancelled() { cancelled() } else { failed(&e) };
    match dest {
        Dest::Stdout => archive(&mut io::stdout().lock()).map_err(told),
        Dest::Path(path) => {
            let open = |e: io::Error| CommandError::outside(format!("cannot write {}: {e}", path.display()));
            let mut file = files::Pending::create(path).map_err(open)?;
            archive(file.file()).map_err(told)?;
            file.publish().map_err(open)
        }
    }
}

/// A writer that ends when the command is to end.
struct Stoppable<'a> {
    out: &'a mut dyn Write,
    cancel: CancelToken,
}

impl Write for Stoppable<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        self.out.write(buf)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
