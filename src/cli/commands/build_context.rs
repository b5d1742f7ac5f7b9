//! What `keelway image build` builds from: its context, its Dockerfile, and the contexts that it names.

use super::Context;
use super::image::BuildArgs;
use crate::files;
use crate::outcome::CommandError;
use keelway_model::{ImageRef, SourceText, Tree};
use keelway_runner::contexts::{self, BuildContext, BuildContexts, Streamed};
use keelway_runner::{Settings, Workspace};
use keelway_source::DirTree;
use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;

/// The largest Dockerfile outside its context, in bytes; the parser takes no larger one.
const MAX_DOCKERFILE: u64 = 4 << 20;
/// What stands for standard input.
const STDIN: &str = "-";
/// The argument that keeps the `.git` of a repository, as with docker.
const KEEP_GIT_DIR: &str = "BUILDKIT_CONTEXT_KEEP_GIT_DIR";

/// Where files are.
enum Place<'a> {
    Stdin,
    Repository(&'a str),
    /// By http or https.
    Address(&'a str),
    Folder(&'a Path),
}

/// The context and the Dockerfile of a build.
pub struct Opened {
    /// The files.
    pub tree: Arc<dyn Tree>,
    /// Where in them the Dockerfile is, or what it is called.
    pub file: String,
    /// The Dockerfile, where it is not among them.
    pub dockerfile: Option<SourceText>,
}

/// Opens everything, in the order of the command line; `created` of the image becomes the time of the commit that is its
/// context.
pub async fn open(
    context: &Context,
    settings: &mut Settings,
    workspace: &Workspace,
    args: &BuildArgs,
) -> Result<Opened, CommandError> {
    let opened = main(context, settings, workspace, args).await?;
    settings.contexts = named(context, settings, workspace, args).await?;
    Ok(opened)
}

/// The Dockerfile of a folder, where nothing is built and nothing is fetched.
pub fn local(dir: &Path, file: Option<&Path>) -> Result<Opened, CommandError> {
    let Place::Folder(dir) = place(dir)? else {
        return Err(CommandError::usage(format!(
            "{}: only Dockerfiles of folders are looked at",
            dir.display()
        )));
    };
    let tree = folder(dir)?;
    let (file, dockerfile) = match file {
        Some(file) => dockerfile(file, dir)?,
        None => ("Dockerfile".to_owned(), None),
    };
    Ok(Opened { tree, file, dockerfile })
}

async fn main(
    context: &Context,
    settings: &mut Settings,
    workspace: &Workspace,
    args: &BuildArgs,
) -> Result<Opened, CommandError> {
    let file_is_stdin = args.file.as_deref().is_some_and(|f| f == Path::new(STDIN));
    let place = place(&args.dir)?;
    let given = if file_is_stdin {
        if matches!(place, Place::Stdin) {
            return Err(CommandError::usage("standard input cannot be both the context and the Dockerfile"));
        }
        match read(context, workspace).await? {
            Streamed::Dockerfile(text) => Some(text),
            Streamed::Files(_) => {
                return Err(CommandError::usage(
                    "-f -: standard input is a tar, not a Dockerfile; a context is given as -",
                ));
            }
        }
    } else {
        None
    };
    let (tree, given): (Arc<dyn Tree>, _) = match place {
        Place::Folder(dir) => (folder(dir)?, given),
        Place::Repository(address) => {
            let cancel = context.cancel.token();
            let keep = super::image::build_args(&args.build_arg)?
                .get(KEEP_GIT_DIR)
                .is_some_and(|v| matches!(v.as_str(), "1" | "true"));
            let found = contexts::repository(settings, workspace, address, keep, &cancel).await?;
            for remark in &found.remarks {
                context.say(remark);
            }
            if context.machine.source_date.is_none() {
                settings.build_time = found.time;
            }
            (found.tree, given)
        }
        Place::Stdin | Place::Address(_) => {
            let streamed = match place {
                Place::Address(address) => {
                    contexts::download(settings, &workspace.store, address, &context.cancel.token()).await?
                }
                _ => read(context, workspace).await?,
            };
            match streamed {
                Streamed::Files(tree) => (tree, given),
                Streamed::Dockerfile(_) if args.file.is_some() => {
                    return Err(CommandError::usage(
                        "-f names a file of the context, and this is no tar; a Dockerfile alone needs no -f",
                    ));
                }
                Streamed::Dockerfile(text) => (contexts::nothing(&workspace.store)?, Some(text)),
            }
        }
    };
    let usual = "Dockerfile".to_owned();
    if let Some(text) = given {
        let name =
            if file_is_stdin || args.dir == Path::new(STDIN) { "standard input" } else { "Dockerfile" };
        let dockerfile = Some(SourceText::new(name, text));
        return Ok(Opened { tree, file: usual, dockerfile });
    }
    let (file, dockerfile) = match (&args.file, self::place(&args.dir)?) {
        (None, _) => (usual, None),
        (Some(file), Place::Folder(dir)) => dockerfile(file, dir)?,
        (Some(file), _) => match file.to_str() {
            Some(file) => (file.to_owned(), None),
            None => return Err(CommandError::usage(format!("-f {}: the path is not UTF-8", file.display()))),
        },
    };
    Ok(Opened { tree, file, dockerfile })
}

/// Where the Dockerfile is: inside the context by its path there, else by its text.
fn dockerfile(file: &Path, dir: &Path) -> Result<(String, Option<SourceText>), CommandError> {
    let real = |p: &Path| p.canonicalize().map_err(|e| CommandError::usage(format!("{}: {e}", p.display())));
    let (file_real, dir_real) = (real(file)?, real(dir)?);
    match file_real.strip_prefix(&dir_real).ok().and_then(Path::to_str) {
        Some(inside) => Ok((inside.to_owned(), None)),
        None => {
            let text = files::read_text(&file_real, MAX_DOCKERFILE)
                .map_err(|e| CommandError::usage(format!("{}: {e}", file.display())))?;
            let name =
                file.file_name().map_or_else(|| "Dockerfile".into(), |n| n.to_string_lossy().into_owned());
            Ok((name, Some(SourceText::new(file.display().to_string(), text))))
        }
    }
}

async fn read(context: &Context, workspace: &Workspace) -> Result<Streamed, CommandError> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Err(CommandError::usage(
            "standard input is a terminal: give it a tar or a Dockerfile, for example tar -c . | keelway image build -",
        ));
    }
    Ok(contexts::stream(&workspace.store, stdin, &context.cancel.token()).await?)
}

fn folder(dir: &Path) -> Result<Arc<dyn Tree>, CommandError> {
    Ok(Arc::new(DirTree::open(dir).map_err(|e| CommandError::usage(e.to_string()))?))
}

/// What a word of the command line names.
fn place(word: &Path) -> Result<Place<'_>, CommandError> {
    let Some(text) = word.to_str() else { return Ok(Place::Folder(word)) };
    if text == STDIN {
        return Ok(Place::Stdin);
    }
    if keelway_image::git::is_address(text) {
        return Ok(Place::Repository(text));
    }
    match text.split_once("://") {
        Some(("http" | "https", _)) => Ok(Place::Address(text)),
        Some((scheme, _)) if is_scheme(scheme) => Err(CommandError::usage(format!(
            "{text:?}: {scheme} is no kind of context: it is a folder, a repository by https, ssh or file address, a tar by http or https, or -"
        ))),
        _ => Ok(Place::Folder(word)),
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
}

/// `--build-context NAME=WHAT`.
async fn named(
    context: &Context,
    settings: &Settings,
    workspace: &Workspace,
    args: &BuildArgs,
) -> Result<BuildContexts, CommandError> {
    let mut out = BuildContexts::new();
    for word in &args.contexts.build_context {
        let wrong = |why: &str| CommandError::usage(format!("--build-context {word:?}: {why}"));
        let (name, what) = word
            .split_once('=')
            .filter(|(n, w)| !n.is_empty() && !w.is_empty())
            .ok_or_else(|| wrong("write it as NAME=FOLDER, NAME=REPOSITORY, NAME=https://TAR, NAME=docker-image://IMAGE or NAME=oci-layout://FOLDER"))?;
        if name.contains("::") {
            return Err(wrong("a context for one platform only is not supported yet"));
        }
        if name == "scratch" {
            return Err(wrong("scratch is empty, whatever is given"));
        }
        let found = if let Some(image) = what.strip_prefix("docker-image://") {
            BuildContext::Image(image.parse::<ImageRef>().map_err(|e| wrong(&e.to_string()))?)
        } else if let Some(layout) = what.strip_prefix("oci-layout://") {
            let (dir, select) = layout_of(layout);
            tokio::task::block_in_place(|| contexts::layout(&workspace.store, Path::new(dir), select))?
        } else {
            match place(Path::new(what))? {
                Place::Stdin => {
                    return Err(wrong("standard input can only be the context of the build itself"));
                }
                Place::Folder(dir) => {
                    let tree = folder(dir)?;
                    tokio::task::block_in_place(|| contexts::files(tree))?
                }
                Place::Address(address) => {
                    let cancel = context.cancel.token();
                    match contexts::download(settings, &workspace.store, address, &cancel).await? {
                        Streamed::Files(tree) => tokio::task::block_in_place(|| contexts::files(tree))?,
                        Streamed::Dockerfile(_) => return Err(wrong("what is there is no tar")),
                    }
                }
                Place::Repository(address) => {
                    let cancel = context.cancel.token();
                    let found = contexts::repository(settings, workspace, address, false, &cancel).await?;
                    for remark in &found.remarks {
                        context.say(&format!("{name}: {remark}"));
                    }
                    tokio::task::block_in_place(|| contexts::files(found.tree))?
                }
            }
        };
        if out.insert(name.to_lowercase(), found).is_some() {
            return Err(wrong("this name is given twice"));
        }
    }
    Ok(out)
}

/// The folder of a layout and what is wanted of it: `DIR[:TAG][@DIGEST]`; the digest decides where both are given.
fn layout_of(text: &str) -> (&str, Option<&str>) {
    let (rest, digest) = match text.rsplit_once('@') {
        Some((rest, digest)) if digest.starts_with("sha256:") => (rest, Some(digest)),
        _ => (text, None),
    };
    match rest.rsplit_once(':') {
        Some((dir, tag)) if !tag.contains('/') && !dir.is_empty() => (dir, digest.or(Some(tag))),
        _ => (rest, digest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart() {
        let told = |text: &str| match place(Path::new(text)) {
            Ok(Place::Stdin) => "stdin",
            Ok(Place::Repository(_)) => "repository",
            Ok(Place::Folder(_)) => "folder",
            Ok(Place::Address(_)) => "address",
            Err(_) => "refused",
        };
        for (text, want) in [
            (".", "folder"),
            ("-", "stdin"),
            ("./-", "folder"),
            ("a:b", "folder"),
            ("https://x/y.git#main:sub", "repository"),
            ("https://x/y.git?ref=main", "repository"),
            ("ssh://git@x/y", "repository"),
            ("git@x:y", "repository"),
            ("file:///srv/y.git", "repository"),
            ("https://x/y.tar", "address"),
            ("s3://x/y", "refused"),
            ("/a//b", "folder"),
        ] {
            assert_eq!(told(text), want, "{text}");
        }
    }

    #[test]
    fn layouts_are_named_with_tag_or_digest() {
        for (text, want) in [
            ("a/b", ("a/b", None)),
            ("/a/b:v1", ("/a/b", Some("v1"))),
            ("/a:b/c", ("/a:b/c", None)),
            ("/a@sha256:12", ("/a", Some("sha256:12"))),
            ("/a:v1@sha256:12", ("/a", Some("sha256:12"))),
        ] {
            assert_eq!(layout_of(text), want, "{text}");
        }
    }
}
