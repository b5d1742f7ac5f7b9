//! `--output` and what goes with it, as buildx's users write it: `type=oci,dest=app.tar,compression=zstd`.

use crate::build_args::BuildFlags;
use crate::outcome::CommandError;
use keelway_image::Form;
use keelway_model::ImageRef;
use keelway_store::Compression;
use std::path::{Path, PathBuf};

/// What is made of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exporter {
    /// A name in the store.
    Image {
        /// And in its registry.
        push: bool,
    },
    /// An OCI layout.
    Oci,
    /// An archive for `docker load`.
    Docker,
    /// A tar of its files.
    Tar,
    /// Its files in a directory.
    Local,
}

/// Where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dest {
    /// Standard output.
    Stdout,
    /// A file or a directory.
    Path(PathBuf),
}

/// One `--output`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// What.
    pub exporter: Exporter,
    /// Where to; none for [`Exporter::Image`].
    pub dest: Option<Dest>,
    /// A directory instead of an archive.
    pub unpacked: bool,
    /// Its names; none where those of `-t` hold.
    pub names: Vec<ImageRef>,
    /// How the manifest and the layers are written.
    pub form: Form,
}

/// The parts of a list with commas; a part in double quotes may hold some, and `""` in it is a quote.
pub fn fields(text: &str) -> Vec<String> {
    let mut out = vec![String::new()];
    let (mut quoted, mut chars) = (false, text.chars().peekable());
    while let Some(c) = chars.next() {
        let last = out.last_mut();
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                last.into_iter().for_each(|l| l.push('"'));
            }
            '"' if quoted || last.as_ref().is_some_and(|l| l.is_empty()) => quoted = !quoted,
            ',' if !quoted => out.push(String::new()),
            c => last.into_iter().for_each(|l| l.push(c)),
        }
    }
    out
}

/// Key and value of a part; a key alone has an empty value.
pub fn pair(field: &str) -> (&str, &str) {
    let (key, value) = field.split_once('=').unwrap_or((field, ""));
    (key.trim(), value)
}

/// Yes or no, as Go's flags read it.
pub fn truth(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn image_name(text: &str) -> Result<ImageRef, String> {
    let name: ImageRef = text.parse().map_err(|e| format!("{e}"))?;
    match name.digest {
        Some(_) => Err(format!("{name}: an image that is not built yet cannot be named by digest")),
        None => Ok(name),
    }
}

/// The keys that an output knows, for a slip of the pen.
const KEYS: [&str; 10] = [
    "type",
    "dest",
    "name",
    "tar",
    "push",
    "compression",
    "force-compression",
    "oci-mediatypes",
    "annotation.KEY",
    "annotation-manifest.KEY",
];

fn one(word: &str) -> Result<Wanted, String> {
    let mut wanted = Wanted {
        exporter: Exporter::Local,
        dest: None,
        unpacked: false,
        names: Vec::new(),
        form: Form::default(),
    };
    if !word.contains('=') && !word.contains(',') && !word.is_empty() {
        if word == "-" {
            wanted.exporter = Exporter::Tar;
            wanted.dest = Some(Dest::Stdout);
        } else {
            wanted.dest = Some(Dest::Path(word.into()));
        }
        return Ok(wanted);
    }
    let (mut kind, mut push, mut tar, mut oci) = (None, None, None, None);
    for field in fields(word) {
        let (key, value) = pair(&field);
        let yes = || truth(value).ok_or_else(|| format!("{key} is true or false, not {value:?}"));
        match key {
            "type" => kind = Some(value.to_owned()),
            "dest" if value == "-" => wanted.dest = Some(Dest::Stdout),
            "dest" if !value.is_empty() => wanted.dest = Some(Dest::Path(value.into())),
            "name" => {
                wanted.names = value.split(',').map(image_name).collect::<Result<_, _>>()?;
            }
            "tar" => tar = Some(yes()?),
            "push" => push = Some(yes()?),
            "force-compression" => wanted.form.force = yes()?,
            "oci-mediatypes" => oci = Some(yes()?),
            "compression" => {
                wanted.form.compression = Some(match value {
                    "gzip" => Compression::Gzip,
                    "zstd" => Compression::Zstd,
                    "uncompressed" => Compression::None,
                    _ => return Err(format!("compression is gzip, zstd or uncompressed, not {value:?}")),
                });
            }
            _ => match key.strip_prefix("annotation.").or_else(|| key.strip_prefix("annotation-manifest.")) {
                Some(name) if !name.is_empty() => {
                    wanted.form.annotations.insert(name.to_owned(), value.to_owned());
                }
                _ => {
                    let near = keelway_dockerfile::nearest(key, &KEYS);
                    let near = near.map(|n| format!("; did you mean {n}?")).unwrap_or_default();
                    return Err(format!("{key:?} is not known{near} There is {}", KEYS.join(", ")));
                }
            },
        }
    }
    wanted.exporter = match kind.as_deref() {
        Some("image") => Exporter::Image { push: push.take().unwrap_or(false) },
        Some("registry") => Exporter::Image { push: push.take().unwrap_or(true) },
        Some("oci") => Exporter::Oci,
        Some("docker") => Exporter::Docker,
        Some("tar") => Exporter::Tar,
        Some("local") => Exporter::Local,
        Some(other) => return Err(format!("the type {other:?} is not known; there is {TYPES}")),
        None => return Err(format!("it has no type; there is {TYPES}")),
    };
    let archive = matches!(wanted.exporter, Exporter::Oci | Exporter::Docker);
    // Docker's own types are what its older versions load.
    wanted.form.docker = !oci.unwrap_or(wanted.exporter != Exporter::Docker);
    if tar.is_some() && !archive || push.is_some() {
        return Err("tar= is of oci and docker, push= of image".into());
    }
    wanted.unpacked = tar == Some(false);
    let stdout = wanted.dest == Some(Dest::Stdout);
    match wanted.exporter {
        Exporter::Image { .. } if wanted.dest.is_some() => {
            return Err("an image of the store has no dest".into());
        }
        Exporter::Image { .. } => {}
        _ if wanted.dest.is_none() => return Err("it has no dest, a path".into()),
        Exporter::Local if stdout => return Err("a directory cannot go to standard output".into()),
        _ if stdout && wanted.unpacked => return Err("tar=false needs a directory".into()),
        _ => {}
    }
    let files = matches!(wanted.exporter, Exporter::Tar | Exporter::Local);
    if files && (oci.is_some() || wanted.form != Form::default() || !wanted.names.is_empty()) {
        return Err("plain files have no names, compression, media types and annotations".into());
    }
    Ok(wanted)
}

const TYPES: &str = "image, registry, oci, docker, tar, local";

/// Everything that shall be made of the image; `tags` are its names by `-t`.
pub fn outputs(flags: &BuildFlags, tags: &[ImageRef]) -> Result<Vec<Wanted>, CommandError> {
    let store = || Wanted {
        exporter: Exporter::Image { push: flags.push },
        dest: None,
        unpacked: false,
        names: Vec::new(),
        form: Form::default(),
    };
    let mut out = flags
        .output
        .iter()
        .map(|word| one(word).map_err(|e| CommandError::usage(format!("--output {word:?}: {e}"))))
        .collect::<Result<Vec<_>, _>>()?;
    if out.is_empty() {
        out.push(store());
    }
    if flags.push {
        let mut images = out.iter_mut().filter(|w| matches!(w.exporter, Exporter::Image { .. })).peekable();
        if images.peek().is_none() {
            return Err(CommandError::usage("--push: no --output is an image; write type=image for it"));
        }
        images.for_each(|w| w.exporter = Exporter::Image { push: true });
    }
    if flags.load && !out.iter().any(|w| matches!(w.exporter, Exporter::Image { .. })) {
        out.push(store());
    }
    for wanted in &mut out {
        if wanted.names.is_empty() {
            wanted.names = tags.to_vec();
        }
        if wanted.exporter == (Exporter::Image { push: true }) && wanted.names.is_empty() {
            return Err(CommandError::usage(
                "an image that shall be pushed needs a name: -t REGISTRY/NAME:TAG",
            ));
        }
        let files = matches!(wanted.exporter, Exporter::Tar | Exporter::Local);
        for annotation in flags.annotation.iter().filter(|_| !files) {
            let (key, value) = annotated(annotation).ok_or_else(|| {
                CommandError::usage(format!("--annotation {annotation:?}: write KEY=VALUE"))
            })?;
            wanted.form.annotations.entry(key.to_owned()).or_insert_with(|| value.to_owned());
        }
    }
    if out.iter().filter(|w| w.dest == Some(Dest::Stdout)).count() > 1 {
        return Err(CommandError::usage("only one --output can go to standard output"));
    }
    let path = |w: &Wanted| match &w.dest {
        Some(Dest::Path(p)) => std::path::absolute(p).ok(),
        _ => None,
    };
    let mut paths: Vec<_> = out.iter().filter_map(path).collect();
    paths.sort();
    if let Some(twice) = paths.windows(2).find(|p| p[0] == p[1]) {
        return Err(CommandError::usage(format!("two --output go to {}", twice[0].display())));
    }
    for wanted in &out {
        if let Some(Dest::Path(path)) = &wanted.dest {
            let directory = wanted.unpacked || wanted.exporter == Exporter::Local;
            possible(path, directory)
                .map_err(|e| CommandError::usage(format!("--output {}: {e}", path.display())))?;
        }
    }
    Ok(out)
}

fn annotated(text: &str) -> Option<(&str, &str)> {
    let (key, value) = text.split_once('=')?;
    let key = key.strip_prefix("manifest:").unwrap_or(key);
    (!key.is_empty() && !key.starts_with("index:")).then_some((key, value))
}

/// Whether a build has a chance to write there: said before it runs.
fn possible(path: &Path, directory: bool) -> Result<(), String> {
    match (std::fs::metadata(path), directory) {
        (Ok(found), true) if !found.is_dir() => Err("it is no directory".into()),
        (Ok(found), false) if found.is_dir() => Err("it is a directory, and a file is to be written".into()),
        (Ok(_), _) | (Err(_), true) => Ok(()),
        (Err(_), false) => match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() && !parent.is_dir() => {
                Err(format!("there is no directory {}", parent.display()))
            }
            _ => Ok(()),
        },
    }
}

/// `--label KEY=VALUE`; a key alone has an empty value.
pub fn labels(words: &[String]) -> Result<std::collections::BTreeMap<String, String>, CommandError> {
    words
        .iter()
        .map(|word| match pair(word) {
            ("", _) => Err(CommandError::usage(format!("--label {word:?}: write KEY=VALUE"))),
            (key, value) => Ok((key.to_owned(), value.to_owned())),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(word: &str) -> String {
        one(word).unwrap_err()
    }

    #[test]
    fn outputs_are_read_as_buildx_reads_them() {
        let local = one("out/x").unwrap();
        assert_eq!((local.exporter, local.dest), (Exporter::Local, Some(Dest::Path("out/x".into()))));
        let tar = one("-").unwrap();
        assert_eq!((tar.exporter, tar.dest), (Exporter::Tar, Some(Dest::Stdout)));
        let oci = one("type=oci,dest=a.tar,\"name=a/b:1,c\",compression=zstd,annotation.k=\"v").unwrap();
        assert_eq!(
            oci.names.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["docker.io/a/b:1", "docker.io/library/c:latest"]
        );
        assert_eq!((oci.form.compression, oci.form.docker), (Some(Compression::Zstd), false));
        assert_eq!(oci.form.annotations["k"], "\"v");
        assert!(one("type=docker,dest=-").unwrap().form.docker);
        assert!(!one("type=docker,dest=-,oci-mediatypes=true").unwrap().form.docker);
        assert!(one("type=oci,dest=d,tar=false").unwrap().unpacked);
        assert_eq!(one("type=registry").unwrap().exporter, Exporter::Image { push: true });
        assert_eq!(one("type=image,push=true").unwrap().exporter, Exporter::Image { push: true });
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (word, why) in [
            ("type=ocl,dest=x", "image, registry, oci"),
            ("dest=x", "no type"),
            ("type=oci", "no dest"),
            ("type=oci,dest=-,tar=false", "needs a directory"),
            ("type=local,dest=-", "standard output"),
            ("type=image,dest=x", "no dest"),
            ("type=oci,dest=x,push=true", "push= of image"),
            ("type=tar,dest=x,compression=gzip", "plain files"),
            ("type=oci,dest=x,compression=xz", "gzip, zstd or uncompressed"),
            ("type=oci,dest=x,compresion=gzip", "did you mean compression?"),
            ("type=oci,dest=x,tar=maybe", "true or false"),
            ("type=oci,dest=x,name=a@sha256:0", "malformed digest"),
        ] {
            assert!(wrong(word).contains(why), "{word}: {}", wrong(word));
        }
    }

    #[test]
    fn quotes_hold_commas() {
        assert_eq!(fields("a,\"b,c\"\"d\",e\"f"), ["a", "b,c\"d", "e\"f"]);
        assert_eq!(fields(""), [""]);
    }
}
