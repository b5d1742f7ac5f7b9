//! `COPY`, `ADD`, and the mounts of `RUN`.

use super::{Flags, Typer, nearest, opener};
use crate::ast::{Heredoc, Mount, MountKind, Transfer, Word};
use crate::parser::Node;
use keelway_model::Diagnostic;

/// Options of `--mount` that all types share, and those of each.
const MOUNT_OPTIONS: [(MountKind, &str, &[&str]); 5] = [
    (MountKind::Bind, "bind", &["target", "source", "from", "readonly", "readwrite"]),
    (
        MountKind::Cache,
        "cache",
        &["id", "target", "source", "from", "sharing", "readonly", "readwrite", "mode", "uid", "gid"],
    ),
    (MountKind::Tmpfs, "tmpfs", &["target", "size"]),
    (MountKind::Secret, "secret", &["id", "target", "required", "mode", "uid", "gid", "env"]),
    (MountKind::Ssh, "ssh", &["id", "target", "required", "mode", "uid", "gid"]),
];

impl Typer<'_> {
    pub(super) fn transfer(&mut self, node: &Node) -> Option<Transfer> {
        let name = node.name.to_ascii_uppercase();
        let mut flags = if node.name == "copy" {
            Flags::new(self, node, &["chown", "chmod", "from", "link", "parents"], &["exclude"])?
        } else {
            Flags::new(
                self,
                node,
                &["chown", "chmod", "checksum", "keep-git-dir", "link", "unpack"],
                &["exclude"],
            )?
        };
        let Some((dest, sources)) = node.args.split_last().filter(|(_, sources)| !sources.is_empty()) else {
            return self.error(
                "D0005",
                self.line.span,
                format!("{name} takes at least one source and a destination"),
            );
        };
        let dest = self.word(dest);
        if !node.json && opener(&dest).is_some() {
            return self.error("D0006", dest.span, format!("a heredoc cannot be the destination of {name}"));
        }
        let mut bodies: Vec<Option<Heredoc>> = self.line.heredocs.iter().cloned().map(Some).collect();
        let (mut paths, mut contents) = (Vec::new(), Vec::new());
        for source in sources {
            let word = self.word(source);
            let opened = if node.json { None } else { opener(&word) };
            let Some(opened) = opened else {
                paths.push(word);
                continue;
            };
            let body = bodies
                .iter_mut()
                .find(|b| b.as_ref().is_some_and(|b| b.name == opened.name))
                .and_then(Option::take);
            match body {
                Some(body) if is_file_name(&body.name) => contents.push(body),
                Some(body) => {
                    return self.error("D0006", word.span, format!("{:?} cannot be a file name", body.name));
                }
                None => {
                    return self.error(
                        "D0006",
                        word.span,
                        format!("the heredoc {:?} has no body", opened.name),
                    );
                }
            }
        }
        Some(Transfer {
            sources: paths,
            contents,
            dest,
            from: flags.value("from"),
            chown: flags.value("chown"),
            chmod: flags.value("chmod"),
            link: flags.switch("link").map(|w| w.span),
            parents: flags.switch("parents").map(|w| w.span),
            exclude: flags.values("exclude"),
            checksum: flags.value("checksum"),
            keep_git_dir: flags.switch("keep-git-dir").map(|w| w.span),
            unpack: flags.value("unpack").map(|w| (w.text == "true", w.span)),
        })
    }

    pub(super) fn mount(&mut self, flag: &Word) -> Option<Mount> {
        let mut kind = (MountKind::Bind, MOUNT_OPTIONS[0].2);
        let mut options: Vec<(String, Option<Word>)> = Vec::new();
        for field in flag.text.split(',') {
            let (key, value) = field.split_once('=').map_or((field, None), |(k, v)| (k, Some(v)));
            let key = key.trim().to_ascii_lowercase();
            if key == "type" {
                let wanted = value.unwrap_or_default();
                let Some((k, _, known)) = MOUNT_OPTIONS.iter().find(|(_, n, _)| *n == wanted) else {
                    let names: Vec<&str> = MOUNT_OPTIONS.iter().map(|(_, n, _)| *n).collect();
                    let mut d = Diagnostic::error(
                        "D0004",
                        self.file,
                        flag.span,
                        format!("unknown mount type {wanted:?}"),
                    );
                    d = d.hint(match nearest(wanted, &names) {
                        Some(near) => format!("did you mean {near}?"),
                        None => format!("the types are {}", names.join(", ")),
                    });
                    self.push(d);
                    return None;
                };
                kind = (*k, known);
                continue;
            }
            let key = match key.as_str() {
                "dst" | "destination" => "target".to_owned(),
                "src" => "source".to_owned(),
                "ro" => "readonly".to_owned(),
                "rw" => "readwrite".to_owned(),
                _ => key,
            };
            options.push((key, value.map(|v| Word { text: v.to_owned(), span: flag.span })));
        }
        for (key, value) in &options {
            if !kind.1.contains(&key.as_str()) {
                let mut d =
                    Diagnostic::error("D0004", self.file, flag.span, format!("invalid mount option {key:?}"));
                d = d.hint(match nearest(key, kind.1) {
                    Some(near) => format!("did you mean {near}?"),
                    None => format!("this type of mount takes {}", kind.1.join(", ")),
                });
                self.push(d);
                return None;
            }
            let switch = matches!(key.as_str(), "readonly" | "readwrite" | "required");
            let fine = match value.as_ref().map(|v| v.text.as_str()) {
                None | Some("") => switch,
                Some(v) => !switch || v.contains('$') || matches!(v, "true" | "false" | "1" | "0"),
            };
            if !fine {
                return self.error("D0004", flag.span, format!("mount option {key} has no fitting value"));
            }
        }
        Some(Mount { kind: kind.0, options, span: flag.span })
    }
}

/// A heredoc's name becomes the name of a file.
fn is_file_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']) && name.len() <= 255
}
