//! `keelway container cp`: as docker's, files on this machine belong to who copies, those in the container to its root.

use super::Place;
use crate::args::Format;
use crate::commands::Context;
use crate::outcome::CommandError;
use keelway_container::copy::{self, CopyError};
use keelway_disk::Root;
use keelway_sandbox::archive::{self, Destination, SetId};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Side<'a> {
    Here(&'a str),
    There { container: &'a str, path: String },
}

impl<'a> Side<'a> {
    /// A colon before any slash names a container. A path with a colon in it is written with `./` before it.
    fn of(text: &'a str) -> Self {
        match text.split_once(':') {
            Some((container, path))
                if !container.is_empty() && !container.contains('/') && container != "." =>
            {
                let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
                Self::There { container, path }
            }
            _ => Self::Here(text),
        }
    }
}

pub async fn cp(context: &Context, place: &Place, from: &str, to: &str) -> Result<(), CommandError> {
    match (Side::of(from), Side::of(to)) {
        (Side::There { container, path }, Side::Here(to)) => out_of(place, container, &path, to).await,
        (Side::Here(from), Side::There { container, path }) => into(place, from, container, path).await,
        (Side::Here(_), Side::Here(_)) => {
            Err(CommandError::usage("one side must be in a container: write it as CONTAINER:PATH"))
        }
        (Side::There { .. }, Side::There { .. }) => {
            Err(CommandError::usage("from one container to another goes by way of this machine: copy twice"))
        }
    }?;
    match context.global.format {
        Format::Text => Ok(()),
        Format::Json => context.print_json(&serde_json::json!({"from": from, "to": to})),
    }
}

fn failed(error: &CopyError) -> CommandError {
    match error {
        CopyError::Start(_) => CommandError::outside(error),
        CopyError::Refused(_) | CopyError::Here(_) => CommandError::usage(error.to_string()),
    }
}

/// The last name of a path; `.` and a `/` at the end have none.
fn name_of(path: &str) -> String {
    Path::new(path).file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Only what is beneath: `dir/.`
fn is_contents(path: &str) -> bool {
    path.ends_with("/.") || path == "."
}

async fn out_of(place: &Place, container: &str, path: &str, to: &str) -> Result<(), CommandError> {
    let entry = place.find(container)?;
    let post = place.post(&entry);
    if to == "-" {
        let take = |mut tar: std::fs::File| {
            let mut out = io::stdout().lock();
            io::copy(&mut tar, &mut out).and_then(|_| out.flush())
        };
        return copy::out_of(&post, &entry, path, take).await.map_err(|e| failed(&e));
    }
    let (dir, destination) = here(to, path)?;
    let take = move |mut tar: std::fs::File| {
        archive::unpack(&mut tar, &Root::open(&dir)?, &destination, SetId::Dropped)?;
        // To its end, so that who writes it sees no broken pipe.
        io::copy(&mut tar, &mut io::sink()).map(drop)
    };
    copy::out_of(&post, &entry, path, take).await.map_err(|e| failed(&e))
}

/// The directory that is unpacked below, and the place in it.
fn here(to: &str, path: &str) -> Result<(PathBuf, Destination), CommandError> {
    let wrong = |e: io::Error| CommandError::usage(format!("{to}: {e}"));
    let (name, contents) = (name_of(path), is_contents(path));
    if Path::new(to).is_dir() {
        let dir = Path::new(to).canonicalize().map_err(wrong)?;
        return Ok((dir, Destination { path: String::new(), name, contents }));
    }
    let parent = Path::new(to).parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let dir = parent.canonicalize().map_err(wrong)?;
    let slash = if to.ends_with('/') { "/" } else { "" };
    Ok((dir, Destination { path: format!("{}{slash}", name_of(to)), name, contents }))
}

async fn into(place: &Place, from: &str, container: &str, path: String) -> Result<(), CommandError> {
    let entry = place.find(container)?;
    let post = place.post(&entry);
    let source = PathBuf::from(from);
    std::fs::symlink_metadata(&source).map_err(|e| CommandError::usage(format!("{from}: {e}")))?;
    let name = match name_of(from) {
        name if name.is_empty() => {
            let whole = source.canonicalize().map_err(|e| CommandError::usage(format!("{from}: {e}")))?;
            name_of(&whole.to_string_lossy())
        }
        name => name,
    };
    let to = Destination { path, name, contents: is_contents(from) };
    let give = move |pipe: std::fs::File| match archive::pack(&source, &pipe, SetId::Kept) {
        // The other side says why it takes no more.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    };
    copy::into(&post, &entry, to, give).await.map_err(|e| failed(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides() {
        let there = |container, path: &str| Side::There { container, path: path.into() };
        assert_eq!(Side::of("web:/etc/passwd"), there("web", "/etc/passwd"));
        assert_eq!(Side::of("web:etc"), there("web", "/etc"));
        assert_eq!(Side::of("./a:b"), Side::Here("./a:b"));
        assert_eq!(Side::of("/a:b"), Side::Here("/a:b"));
        assert_eq!(Side::of("file"), Side::Here("file"));
    }
}
