//! `RUN --mount`: options to mounts of the plan, with the reference's defaults.
//!
//! What a bind shows is the chain of a node: of a stage, of an image, or of a copy of that part of the context, which is
//! one node for all who ask for it. So a step that binds is keyed by what it can see, and the context by what is bound.

use super::steps::Origin;
use super::{Lower, Planned, State, Step, absolute};
use keelway_dockerfile::{Mount, MountKind, Word, nearest};
use keelway_model::mount::{FileAccess, RunMount, Sharing};
use keelway_model::{Bytes, NodeId};

#[cfg(test)]
mod tests;

/// Where a copy of the context is, in its own chain.
const BOUND: &str = "/bound";
/// Highest id of a sandbox.
const MAX_ID: u32 = 65_535;

/// What a RUN gets: mounts, and the nodes that they name by place, the first being the root.
pub(super) struct Mounted {
    pub(super) mounts: Vec<RunMount>,
    pub(super) needs: Vec<NodeId>,
    agents: usize,
}

impl Mounted {
    pub(super) fn new(root: NodeId, mounts: Vec<RunMount>) -> Self {
        Self { mounts, needs: vec![root], agents: 0 }
    }

    /// The place of a node among the needs.
    fn need(&mut self, node: NodeId) -> usize {
        match self.needs.iter().skip(1).position(|n| *n == node) {
            Some(at) => at + 1,
            None => {
                self.needs.push(node);
                self.needs.len() - 1
            }
        }
    }
}

/// One `--mount` with its values expanded.
struct Options<'a> {
    mount: &'a Mount,
    kind: &'static str,
    /// Name and value; a switch without one is on.
    values: Vec<(&'a str, String)>,
    step: &'a Step<'a>,
}

impl Options<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        self.values.iter().rev().find(|(k, _)| *k == name).map(|(_, v)| v.as_str())
    }

    fn refuse<T>(&self, message: String) -> Planned<T> {
        let message = format!("RUN --mount=type={}: {message}", self.kind);
        Err(Box::new(self.step.located.error("D0206", self.mount.span, message)))
    }

    fn switch(&self, name: &str) -> Planned<bool> {
        match self.get(name) {
            None | Some("false" | "0") => Ok(false),
            Some("" | "true" | "1") => Ok(true),
            Some(other) => self.refuse(format!("{name}={other:?} is neither true nor false")),
        }
    }

    /// Whichever of `readonly` and `readwrite` comes last.
    fn read_only(&self, unless_said: bool) -> Planned<bool> {
        match self.values.iter().rev().find(|(k, _)| matches!(*k, "readonly" | "readwrite")) {
            None => Ok(unless_said),
            Some(("readonly", _)) => self.switch("readonly"),
            Some(_) => Ok(!self.switch("readwrite")?),
        }
    }

    fn number(&self, name: &str, unless_said: u32) -> Planned<u32> {
        match self.get(name).map(|v| (v, v.parse())) {
            None => Ok(unless_said),
            Some((_, Ok(id))) if id <= MAX_ID => Ok(id),
            Some((text, _)) => self.refuse(format!("{name}={text:?} is not a number from 0 to {MAX_ID}")),
        }
    }

    fn access(&self, mode: u32) -> Planned<FileAccess> {
        let mode = match self.get("mode").map(|v| (v, u32::from_str_radix(v, 8))) {
            None => mode,
            Some((text, Ok(mode))) if mode <= 0o7777 && !text.starts_with('+') => mode,
            Some((text, _)) => {
                return self.refuse(format!("mode={text:?} is not a mode: write it in octal, at most 7777"));
            }
        };
        Ok(FileAccess { mode, uid: self.number("uid", 0)?, gid: self.number("gid", 0)? })
    }

    /// Where it is, cleaned; the working directory is what a relative path stands on.
    fn target(&self, state: &State) -> Planned<Option<String>> {
        let Some(text) = self.get("target").filter(|t| !t.is_empty()) else { return Ok(None) };
        let target = absolute(state.config.config.working_dir.as_deref(), text);
        if target == "/" {
            return self.refuse("its target cannot be /".to_owned());
        }
        Ok(Some(target))
    }

    fn needed_target(&self, state: &State) -> Planned<String> {
        match self.target(state)? {
            Some(target) => Ok(target),
            None => self.refuse("it needs a target: target=/path".to_owned()),
        }
    }

    fn source(&self) -> String {
        absolute(None, self.get("source").unwrap_or("/"))
    }

    fn sharing(&self) -> Planned<Sharing> {
        const NAMES: [&str; 3] = ["shared", "private", "locked"];
        match self.get("sharing") {
            None | Some("shared") => Ok(Sharing::Shared),
            Some("private") => Ok(Sharing::Private),
            Some("locked") => Ok(Sharing::Locked),
            Some(other) => {
                let message = format!("RUN --mount=type=cache: unknown sharing {other:?}");
                let d = self.step.located.error("D0206", self.mount.span, message);
                Err(Box::new(d.hint(match nearest(other, &NAMES) {
                    Some(near) => format!("did you mean {near}?"),
                    None => format!("it is one of {}", NAMES.join(", ")),
                })))
            }
        }
    }
}

/// The last component of a path.
fn base_name(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or_default()
}

impl Lower<'_> {
    /// Puts one `--mount` into what a RUN gets.
    pub(super) fn mount(
        &mut self,
        state: &State,
        step: &Step<'_>,
        mount: &Mount,
        to: &mut Mounted,
    ) -> Planned<()> {
        let options = self.options(state, step, mount)?;
        match mount.kind {
            MountKind::Bind => {
                let (target, read_only) = (options.needed_target(state)?, options.read_only(true)?);
                let Some((node, source)) = self.mounted(step, from(mount), options.source())? else {
                    return Ok(());
                };
                let need = to.need(node);
                to.mounts.push(RunMount::Bind { target, need, source, writable: !read_only });
            }
            MountKind::Cache => {
                let target = options.needed_target(state)?;
                let seed = match from(mount) {
                    None => None,
                    some => match self.mounted(step, some, options.source())? {
                        Some((node, source)) => Some((to.need(node), source)),
                        None => return Ok(()),
                    },
                };
                to.mounts.push(RunMount::Cache {
                    id: options.get("id").filter(|id| !id.is_empty()).unwrap_or(&target).to_owned(),
                    sharing: options.sharing()?,
                    read_only: options.read_only(false)?,
                    // What the seed has there is the whole cache.
                    source: if seed.is_some() { "/".to_owned() } else { options.source() },
                    seed,
                    access: options.access(0o755)?,
                    target,
                });
            }
            MountKind::Tmpfs => {
                let size = match options.get("size").map(str::parse::<Bytes>) {
                    None => None,
                    Some(Ok(size)) => Some(size),
                    Some(Err(e)) => return options.refuse(e.to_string()),
                };
                to.mounts.push(RunMount::Tmpfs { target: options.needed_target(state)?, size });
            }
            MountKind::Secret => secret(state, &options, to)?,
            MountKind::Ssh => {
                let target = match options.target(state)? {
                    Some(target) => target,
                    None => format!("/run/buildkit/ssh_agent.{}", to.agents),
                };
                to.agents += 1;
                to.mounts.push(RunMount::Agent {
                    target,
                    id: options.get("id").filter(|id| !id.is_empty()).unwrap_or("default").to_owned(),
                    required: options.switch("required")?,
                    access: options.access(0o600)?,
                });
            }
        }
        Ok(())
    }

    /// The values, expanded; but `from`, in which the reference expands nothing.
    fn options<'a>(&self, state: &State, step: &'a Step<'a>, mount: &'a Mount) -> Planned<Options<'a>> {
        let kind = match mount.kind {
            MountKind::Bind => "bind",
            MountKind::Cache => "cache",
            MountKind::Tmpfs => "tmpfs",
            MountKind::Secret => "secret",
            MountKind::Ssh => "ssh",
        };
        let mut options = Options { mount, kind, values: Vec::new(), step };
        for (name, word) in &mount.options {
            let value = match word {
                Some(word) if name != "from" => self.value(state, step, word)?,
                Some(word) => word.text.clone(),
                None => String::new(),
            };
            if value.contains('\0') {
                return options.refuse(format!("{name} cannot hold a NUL character"));
            }
            options.values.push((name, value));
        }
        Ok(options)
    }

    /// The node that holds a part of a context, for mounts.
    fn bound(&mut self, step: &Step<'_>, context: Option<&str>, source: &str) -> NodeId {
        let shown = super::shown(source.trim_start_matches('/'));
        let shown = if shown.is_empty() { ".".to_owned() } else { shown };
        let label = step.name.split_once(' ').map_or("", |(label, _)| label).trim_start_matches('[');
        let name = match context {
            Some(context) => format!("[{label} context {}] {shown}", super::shown(context)),
            None => format!("[{label} context] {shown}"),
        };
        self.part(name, context, source, BOUND)
    }

    /// What a mount is from: a node, and the path in its chain; `None` where it is a stage that could not be planned.
    fn mounted(
        &mut self,
        step: &Step<'_>,
        from: Option<&Word>,
        source: String,
    ) -> Planned<Option<(NodeId, String)>> {
        Ok(match from.map(|word| self.origin(step, word)).transpose()? {
            None => Some((self.bound(step, None, &source), BOUND.to_owned())),
            Some(Some(Origin::Files(name))) => {
                Some((self.bound(step, Some(&name), &source), BOUND.to_owned()))
            }
            Some(Some(Origin::Node(node))) => Some((node, source)),
            // Its own errors were reported where it stands.
            Some(None) => None,
        })
    }
}

/// A secret is a file unless it is only a variable.
fn secret(state: &State, options: &Options<'_>, to: &mut Mounted) -> Planned<()> {
    let (said, variable) = (options.target(state)?, options.get("env").filter(|n| !n.is_empty()));
    let id = match (options.get("id").filter(|id| !id.is_empty()), &said) {
        (Some(id), _) => id.to_owned(),
        (None, Some(target)) => base_name(target).to_owned(),
        (None, None) => return options.refuse("it needs an id or a target: id=NAME".to_owned()),
    };
    let required = options.switch("required")?;
    let access = options.access(0o400)?;
    if let Some(name) = variable {
        if name.contains('=') {
            return options.refuse(format!("env={name:?} cannot be the name of a variable"));
        }
        to.mounts.push(RunMount::SecretVariable { name: name.to_owned(), id: id.clone(), required });
    }
    let target = match said {
        Some(target) => target,
        None if variable.is_some() => return Ok(()),
        None => match base_name(&id) {
            "" | "." | ".." => return options.refuse(format!("the id {id:?} names no file: say its target")),
            name => format!("/run/secrets/{name}"),
        },
    };
    to.mounts.push(RunMount::Secret { target, id, required, access });
    Ok(())
}

/// The stage or image that a mount is from.
pub(in crate::build) fn from(mount: &Mount) -> Option<&Word> {
    let (_, word) = mount.options.iter().rev().find(|(name, _)| name == "from")?;
    word.as_ref().filter(|w| !w.text.is_empty())
}
