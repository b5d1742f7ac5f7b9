//! The instructions that make layers: `RUN`, `COPY`, `ADD`, `WORKDIR`.

use super::mounts::Mounted;
use super::{From, Layer, Lower, Planned, SCRIPTS, State, Step, absolute, argv};
use crate::build::refuse::unfetched;
use crate::build::scope::is_proxy;
use crate::{fetch, git, user};
use keelway_dockerfile::{Command, Ignore, Kind, Run, Transfer, Word, expand_heredoc};
use keelway_model::mount::RunMount;
use keelway_model::oci::DEFAULT_PATH;
use keelway_model::plan::{CopyFrom, CopyOp, ExecOp, FetchOp, GitOp, MkdirOp, Network, Unpack, UserSpec};
use keelway_model::{Chmod, NodeId, Op};
use std::collections::BTreeMap;

/// What `--from` names.
pub(super) enum Origin {
    /// The chain of a node.
    Node(NodeId),
    /// A context of files, by its name.
    Files(String),
}

/// The sources of a copy that are no heredocs.
struct Sources {
    paths: Vec<String>,
    /// With where they stand.
    addresses: Vec<(String, Word)>,
}

impl Lower<'_> {
    pub(super) fn workdir(&mut self, state: &mut State, step: &Step<'_>, word: &Word) -> Planned<()> {
        let text = self.value(state, step, word)?;
        if text.contains('\0') {
            return Err(step.error("D0206", word, "a path cannot hold a NUL character"));
        }
        self.relative(state, step, word.span, &text);
        let path = absolute(state.config.config.working_dir.as_deref(), &text);
        state.config.config.working_dir = Some(path.clone());
        let created_by = format!("WORKDIR {path}");
        if path == "/" {
            return self.record(state, step, created_by, Layer::None);
        }
        self.charge(step, path.len())?;
        let user = UserSpec(state.config.config.user.clone().unwrap_or_default());
        let op = MkdirOp { path, user, identity: self.identity(step, 0) };
        state.chain = self.plan.add(step.name.clone(), vec![state.chain], Op::Mkdir(op));
        self.record(state, step, created_by, Layer::One)
    }

    pub(super) fn run(&mut self, state: &mut State, step: &Step<'_>, run: &Run) -> Planned<()> {
        let mut scripts = Vec::new();
        let command = match (&run.command, &run.heredocs[..]) {
            (command, []) => command.clone(),
            (Command::Exec(_), _) => return Err(step.refuse("RUN in JSON form takes no heredoc")),
            (Command::Shell(word), [only, ..]) if keelway_dockerfile::is_heredoc(&word.text) => {
                // The heredoc is all there is: its body is the command, or a script of its own.
                let body = only.body();
                let text = if only.content.starts_with("#!") {
                    let path = format!("{SCRIPTS}{}", only.name);
                    if only.name.contains('/') || only.name == "." || only.name == ".." {
                        return Err(step.refuse(format!("{:?} cannot be the name of a script", only.name)));
                    }
                    scripts.push(RunMount::Script { target: path.clone(), content: body });
                    path
                } else {
                    body
                };
                Command::Shell(Word { text, span: word.span })
            }
            (Command::Shell(word), heredocs) => {
                // The shell itself reads them: put back together as they were written.
                let bodies =
                    heredocs.iter().map(|h| format!("\n{}{}", h.content, h.name)).collect::<String>();
                Command::Shell(Word { text: format!("{}{bodies}", word.text), span: word.span })
            }
        };
        let mut mounted = Mounted::new(state.chain, scripts);
        for mount in &run.mounts {
            self.mount(state, step, mount, &mut mounted)?;
        }
        let argv = argv(state, &command);
        let config = &state.config.config;
        let more = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        self.charge(step, state.env.size() + more(&config.working_dir) + more(&config.user))?;
        let mut env = state.env.pairs().to_vec();
        if !env.iter().any(|(k, _)| k == "PATH") {
            env.push(("PATH".to_owned(), DEFAULT_PATH.to_owned()));
        }
        let network = match run.network.as_ref().map(|n| n.text.as_str()) {
            Some("none") => Network::None,
            Some("host") => Network::Host,
            _ => self.build.options.network,
        };
        let said = argv.join(" ");
        let declared: Vec<String> = state.args.pairs().iter().map(|(k, v)| format!("{k}={v}")).collect();
        let created_by = match &declared[..] {
            [] => format!("RUN {said}"),
            some => format!("RUN |{} {} {said}", some.len(), some.join(" ")),
        };
        let op = ExecOp {
            argv,
            unkeyed_env: self.proxies(&env),
            env,
            cwd: state
                .config
                .config
                .working_dir
                .clone()
                .filter(|w| !w.is_empty())
                .unwrap_or_else(|| "/".to_owned()),
            user: UserSpec(state.config.config.user.clone().unwrap_or_default()),
            network,
            mounts: mounted.mounts,
            limits: self.build.options.limits.clone(),
            identity: self.identity(step, 0),
        };
        state.chain = self.plan.add(step.name.clone(), mounted.needs, Op::Exec(op));
        self.record(state, step, created_by, Layer::One)
    }

    /// Proxy variables that the step gets without having declared them.
    fn proxies(&self, env: &[(String, String)]) -> Vec<(String, String)> {
        let options = &self.build.options;
        let mut out: BTreeMap<&str, &str> = BTreeMap::new();
        let machine = options.proxy.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        let given = options.args.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        out.extend(machine.chain(given).filter(|(k, _)| is_proxy(k) && !env.iter().any(|(e, _)| e == k)));
        out.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    pub(super) fn transfer(
        &mut self,
        state: &mut State,
        step: &Step<'_>,
        t: &Transfer,
        unpack: Unpack,
    ) -> Planned<()> {
        let Sources { paths: sources, addresses } = self.sources(state, step, t)?;
        self.ignored(step, t, &sources);
        let (said_dest, dest) = self.destination(state, step, t)?;
        let chown = match &t.chown {
            Some(word) => {
                let spec = UserSpec(self.value(state, step, word)?);
                user::check(&spec).map_err(|e| step.error("D0206", word, e.to_string()))?;
                Some(spec)
            }
            None => None,
        };
        let chmod = match &t.chmod {
            Some(word) => {
                let mode = self.value(state, step, word)?.parse::<Chmod>();
                Some(mode.map_err(|e| step.error("D0206", word, format!("--chmod: {e}")))?)
            }
            None => None,
        };
        let exclude = self.excluded(step, t)?;
        let (from, context) = match &t.from {
            Some(word) => match self.origin(step, word)? {
                Some(Origin::Node(chain)) => (Some(chain), None),
                Some(Origin::Files(name)) => (None, Some(name)),
                // Its own errors were reported where it stands.
                None => return Ok(()),
            },
            None => (None, None),
        };
        let name = step.located.instruction.kind.name();
        let said = |what: &[String]| format!("{name} {} {said_dest}", what.join(" "));
        let op = |sources, from, unpack, identity| CopyOp {
            sources,
            from,
            context: context.clone(),
            dest: dest.clone(),
            chown: chown.clone(),
            chmod: chmod.clone(),
            exclude: exclude.clone(),
            parents: t.parents.is_some(),
            link: t.link.is_some(),
            unpack,
            identity,
        };
        if !sources.is_empty() {
            let created_by = said(&sources);
            let origin = if from.is_some() { CopyFrom::Stage } else { CopyFrom::Context };
            let op = op(sources, origin, unpack, self.identity(step, 0));
            self.copy(state, step, op, from);
            self.record(state, step, created_by, Layer::One)?;
        }
        if !t.contents.is_empty() {
            let files = self.contents(state, step, t)?;
            let names: Vec<String> = files.iter().map(|(n, _)| format!("<<{n}")).collect();
            let created_by = said(&names);
            let op = op(Vec::new(), CopyFrom::Inline(files), Unpack::Never, self.identity(step, 1));
            self.copy(state, step, op, None);
            self.record(state, step, created_by, Layer::One)?;
        }
        for (url, word) in addresses {
            let created_by = said(std::slice::from_ref(&url));
            let (fetched, source, unpack) = if fetch::kind(&url) == fetch::Kind::Git {
                (self.repository(state, step, t, (url, &word))?, git::source(), Unpack::Never)
            } else {
                let (fetched, source) = self.fetched(state, step, t, (url, &word), &dest)?;
                // What comes from elsewhere is unpacked where that is asked for.
                let wanted = t.unpack.is_some_and(|(on, _)| on);
                (fetched, source, if wanted { Unpack::Archives } else { Unpack::Never })
            };
            let op = op(vec![source], CopyFrom::Stage, unpack, self.identity(step, 254));
            self.copy(state, step, op, Some(fetched));
            self.record(state, step, created_by, Layer::One)?;
        }
        Ok(())
    }

    /// A copy into the chain; a link is made on its own, at any time, and put there.
    fn copy(&mut self, state: &mut State, step: &Step<'_>, op: CopyOp, from: Option<NodeId>) {
        if !op.link {
            let needs = [state.chain].into_iter().chain(from).collect();
            state.chain = self.plan.add(step.name.clone(), needs, Op::Copy(op));
            return;
        }
        let known = op.chown.as_ref().filter(|spec| user::is_by_name(spec)).map(|_| state.chain);
        let needs = from.into_iter().chain(known).collect();
        let made = self.plan.add(step.name.clone(), needs, Op::Copy(op));
        let name = format!("{} (link)", step.name);
        state.chain = self.plan.add(name, vec![state.chain, made], Op::Link);
    }

    /// What is copied, heredocs aside: paths, and the addresses of `ADD`.
    fn sources(&self, state: &State, step: &Step<'_>, t: &Transfer) -> Planned<Sources> {
        let (mut paths, mut addresses) = (Vec::new(), Vec::new());
        let add = matches!(step.located.instruction.kind, Kind::Add(_));
        for word in &t.sources {
            let source = self.value(state, step, word)?;
            if !add || fetch::kind(&source) == fetch::Kind::Path {
                paths.push(source);
            } else if let Some(what) = unfetched(&source) {
                return Err(step.error("D0201", word, format!("{what} is not supported yet")));
            } else {
                addresses.push((source, word.clone()));
            }
        }
        if let Some(span) = t.keep_git_dir
            && !addresses.iter().any(|(a, _)| fetch::kind(a) == fetch::Kind::Git)
        {
            let message = "--keep-git-dir is for an ADD of git repositories";
            return Err(Box::new(step.located.error("D0206", span, message)));
        }
        if let Some(word) = t.checksum.as_ref().filter(|_| t.sources.len() != 1 || addresses.len() != 1) {
            return Err(step.error("D0206", word, "--checksum is for an ADD of one address"));
        }
        Ok(Sources { paths, addresses })
    }

    /// The node that fetches the repository that an address names.
    fn repository(
        &mut self,
        state: &State,
        step: &Step<'_>,
        t: &Transfer,
        (url, word): (String, &Word),
    ) -> Planned<NodeId> {
        let wrong = |e: String| step.error("D0206", word, format!("the repository {url:?}: {e}"));
        let network = self.reached(step, word)?;
        let mut address = git::Address::parse(&url).map_err(wrong)?;
        if let Some(word) = &t.checksum {
            let text = self.value(state, step, word)?;
            address.must_be(&text).map_err(|e| step.error("D0206", word, format!("--checksum: {e}")))?;
        }
        let keep_git_dir = t.keep_git_dir.is_some() || address.keep_git_dir == Some(true);
        if keep_git_dir && address.folder.is_some() {
            return Err(wrong("a .git is for all of it, and this names a folder of it".to_owned()));
        }
        let op = GitOp {
            url: address.url,
            reference: address.reference.unwrap_or_else(|| "HEAD".to_owned()),
            folder: address.folder,
            checksum: address.commit,
            keep_git_dir,
            submodules: address.submodules.unwrap_or(true),
            network,
            identity: self.identity(step, 255),
        };
        Ok(self.plan.add(format!("{} (fetch)", step.name), Vec::new(), Op::Git(op)))
    }

    /// What a fetch of this build reaches.
    fn reached(&self, step: &Step<'_>, word: &Word) -> Planned<Network> {
        match self.build.options.network {
            Network::None => {
                Err(step.error("D0206", word, "this build has no network: nothing can be fetched"))
            }
            network => Ok(network),
        }
    }

    /// The node that fetches what an address names, and the copy's source in it.
    fn fetched(
        &mut self,
        state: &State,
        step: &Step<'_>,
        t: &Transfer,
        (url, word): (String, &Word),
        dest: &str,
    ) -> Planned<(NodeId, String)> {
        let network = self.reached(step, word)?;
        let checksum = match &t.checksum {
            Some(word) => {
                let text = self.value(state, step, word)?;
                fetch::check(&text).map_err(|e| step.error("D0206", word, e))?;
                Some(text)
            }
            None => None,
        };
        let name = match fetch::name(&url) {
            Some(name) => name,
            None if dest.ends_with('/') => {
                let message = format!(
                    "the address {url:?} names no file: the destination must be one, without a / at its end"
                );
                return Err(step.error("D0206", word, message));
            }
            None => "file".to_owned(),
        };
        let source = fetch::source(&name);
        let identity = self.identity(step, 255);
        let op = FetchOp { url, name, checksum, network, identity };
        Ok((self.plan.add(format!("{} (fetch)", step.name), Vec::new(), Op::Fetch(op)), source))
    }

    /// Where a copy goes: as it was written, for the history, and as an absolute path that ends in `/` where it names a
    /// directory.
    fn destination(&self, state: &State, step: &Step<'_>, t: &Transfer) -> Planned<(String, String)> {
        let said = self.value(state, step, &t.dest)?;
        if let Some(word) = t.sources.iter().chain([&t.dest]).find(|w| w.text.contains('\0')) {
            return Err(step.error("D0206", word, "a path cannot hold a NUL character"));
        }
        let directory = said.is_empty() || said == "." || said.ends_with('/');
        let mut dest = absolute(state.config.config.working_dir.as_deref(), &said);
        if directory && !dest.ends_with('/') {
            dest.push('/');
        }
        if t.sources.len() + t.contents.len() > 1 && !directory {
            let name = step.located.instruction.kind.name();
            let message = format!("{name} of more than one source needs a destination that ends in /");
            return Err(step.error("D0206", &t.dest, message));
        }
        self.charge(step, dest.len())?;
        Ok((said, dest))
    }

    /// What `--from` names; `None` where it is a stage that could not be planned.
    pub(super) fn origin(&mut self, step: &Step<'_>, word: &Word) -> Planned<Option<Origin>> {
        let source = self.build.source_of(step.stage, word).map_err(|e| step.error("D0203", word, e))?;
        let node = match &source {
            From::Stage(index) => self.chains.get(index).copied(),
            From::Scratch => Some(self.base_node(&source, "FROM scratch".to_owned())),
            From::Image(image) => Some(self.base_node(&source, format!("FROM {image}"))),
            From::Pinned(name) => Some(self.base_node(&source, format!("FROM {}", super::shown(name)))),
            From::Files(name) => return Ok(Some(Origin::Files(name.clone()))),
        };
        Ok(node.map(Origin::Node))
    }

    /// The files that heredocs make: names and bytes.
    fn contents(&self, state: &State, step: &Step<'_>, t: &Transfer) -> Planned<Vec<(String, String)>> {
        let mut files = Vec::new();
        for h in &t.contents {
            let body = h.body();
            let body = if h.expand {
                self.watched(state, step, h.span, |env| expand_heredoc(&body, env)).map_err(|e| {
                    Box::new(step.located.error("D0204", h.span, format!("heredoc {}: {e}", h.name)))
                })?
            } else {
                body
            };
            self.charge(step, body.len())?;
            files.push((h.name.clone(), body));
        }
        Ok(files)
    }

    /// The patterns of `--exclude`, as written: the reference replaces no variables in them.
    fn excluded(&self, step: &Step<'_>, t: &Transfer) -> Planned<Vec<String>> {
        let mut out = Vec::new();
        for word in &t.exclude {
            Ignore::from_patterns([word.text.as_bytes()])
                .map_err(|e| step.error("D0206", word, format!("--exclude: {}", e.of_one_pattern())))?;
            self.charge(step, word.text.len())?;
            out.push(word.text.clone());
        }
        Ok(out)
    }
}
