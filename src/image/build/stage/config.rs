//! The instructions that only change the image's config: one function each. None adds a layer, every one adds a line to
//! the history.

use super::{Layer, Lower, Planned, State, Step, argv, shown};
use crate::build::metadata::{is_signal, ports};
use crate::build::scope::is_proxy;
use crate::user;
use keelway_dockerfile::{Argument, Command, Health, Trigger, Word, expand_words};
use keelway_model::oci::Healthcheck;
use keelway_model::plan::UserSpec;
use std::collections::BTreeMap;

impl Lower<'_> {
    pub(super) fn env(&mut self, state: &mut State, step: &Step<'_>, pairs: &[(Word, Word)]) -> Planned<()> {
        let mut values = Vec::with_capacity(pairs.len());
        for (name, value) in pairs {
            let (key, text) = (self.value(state, step, name)?, self.value(state, step, value)?);
            if key.is_empty() || key.contains(['=', '\0']) {
                return Err(step.error("D0204", name, format!("{key:?} cannot be the name of a variable")));
            }
            self.secret(step, name.span, &key);
            values.push((key, text));
        }
        self.old_form(step);
        // Only now: no value sees another of the same instruction.
        let mut said = Vec::with_capacity(values.len());
        for (key, text) in values {
            state.env.set(&key, &text);
            let entry = format!("{key}={text}");
            let env = &mut state.config.config.env;
            match state.config_env.get(&key).and_then(|i| env.get_mut(*i)) {
                Some(old) => old.clone_from(&entry),
                None => {
                    state.config_env.insert(key, env.len());
                    env.push(entry.clone());
                }
            }
            said.push(entry);
        }
        self.record(state, step, format!("ENV {}", said.join(" ")), Layer::None)
    }

    pub(super) fn arguments(
        &mut self,
        state: &mut State,
        step: &Step<'_>,
        arguments: &[Argument],
    ) -> Planned<()> {
        let mut said = Vec::new();
        for argument in arguments {
            let name = self.value(state, step, &argument.name)?;
            self.secret(step, argument.name.span, &name);
            let options = &self.build.options;
            let proxy =
                || options.proxy.iter().find(|(n, _)| *n == name && is_proxy(n)).map(|(_, v)| v.clone());
            let value = match (options.args.get(&name), &argument.default) {
                (Some(given), _) => Some(given.clone()),
                (None, Some(default)) => Some(self.value(state, step, default)?),
                (None, None) => self.build.globals.values.get(&name).cloned().or_else(proxy),
            };
            said.push(value.as_ref().map_or_else(|| name.clone(), |v| format!("{name}={v}")));
            if let Some(value) = value {
                state.env.set(&name, &value);
                state.args.set(&name, &value);
            }
            state.seen.declare(name);
        }
        self.record(state, step, format!("ARG {}", said.join(" ")), Layer::None)
    }

    pub(super) fn label(
        &mut self,
        state: &mut State,
        step: &Step<'_>,
        pairs: &[(Word, Word)],
    ) -> Planned<()> {
        self.old_form(step);
        let mut said = Vec::new();
        for (name, value) in pairs {
            let (key, text) = (self.value(state, step, name)?, self.value(state, step, value)?);
            said.push(format!("{key}={text}"));
            state.config.config.labels.insert(key, text);
        }
        self.record(state, step, format!("LABEL {}", said.join(" ")), Layer::None)
    }

    pub(super) fn expose(&mut self, state: &mut State, step: &Step<'_>, words: &[Word]) -> Planned<()> {
        let mut said = Vec::new();
        for word in words {
            let several = expand_words(&word.text, &state.env, self.build.dockerfile.escape)
                .map_err(|e| step.error("D0204", word, e.to_string()))?;
            for port in several {
                self.port(step, word.span, &port);
                let several = ports(&port).map_err(|e| step.error("D0206", word, e))?;
                self.charge(step, several.iter().map(|p| p.len() + 16).sum())?;
                said.extend(several);
            }
        }
        state.config.config.exposed_ports.extend(said.iter().map(|p| (p.clone(), BTreeMap::new())));
        self.record(state, step, format!("EXPOSE [{}]", said.join(" ")), Layer::None)
    }

    pub(super) fn volume(&mut self, state: &mut State, step: &Step<'_>, words: &[Word]) -> Planned<()> {
        let values = words.iter().map(|w| self.value(state, step, w)).collect::<Planned<Vec<_>>>()?;
        if values.iter().any(String::is_empty) {
            return Err(step.refuse("a volume expands to an empty text"));
        }
        state.config.config.volumes.extend(values.iter().map(|v| (v.clone(), BTreeMap::new())));
        self.record(state, step, format!("VOLUME [{}]", values.join(" ")), Layer::None)
    }

    pub(super) fn user(&mut self, state: &mut State, step: &Step<'_>, word: &Word) -> Planned<()> {
        let user = self.value(state, step, word)?;
        user::check(&UserSpec(user.clone())).map_err(|e| step.error("D0206", word, e.to_string()))?;
        state.config.config.user = Some(user.clone());
        self.record(state, step, format!("USER {user}"), Layer::None)
    }

    pub(super) fn stop_signal(&mut self, state: &mut State, step: &Step<'_>, word: &Word) -> Planned<()> {
        let signal = self.value(state, step, word)?;
        if !is_signal(&signal) {
            let message = format!("{signal:?} is not a signal: write SIGTERM or a number");
            return Err(step.error("D0206", word, message));
        }
        state.config.config.stop_signal = Some(signal.clone());
        self.record(state, step, format!("STOPSIGNAL {signal}"), Layer::None)
    }

    pub(super) fn shell(&mut self, state: &mut State, step: &Step<'_>, argv: &[String]) -> Planned<()> {
        state.config.config.shell = argv.to_vec();
        self.record(state, step, format!("SHELL [{}]", argv.join(" ")), Layer::None)
    }

    pub(super) fn cmd(&mut self, state: &mut State, step: &Step<'_>, command: &Command) -> Planned<()> {
        let argv = argv(state, command);
        self.shell_form(state, step, command);
        self.once(state, step);
        let created_by = format!("CMD {}", json(&argv));
        state.cmd_set = true;
        state.config.config.cmd = Some(argv);
        self.record(state, step, created_by, Layer::None)
    }

    pub(super) fn entrypoint(
        &mut self,
        state: &mut State,
        step: &Step<'_>,
        command: &Command,
    ) -> Planned<()> {
        let argv = argv(state, command);
        self.shell_form(state, step, command);
        self.once(state, step);
        let created_by = format!("ENTRYPOINT {}", json(&argv));
        if !state.cmd_set {
            state.config.config.cmd = None;
        }
        state.config.config.entrypoint = Some(argv);
        self.record(state, step, created_by, Layer::None)
    }

    pub(super) fn healthcheck(&mut self, state: &mut State, step: &Step<'_>, health: &Health) -> Planned<()> {
        self.once(state, step);
        let check = healthcheck(health);
        let created_by = format!("HEALTHCHECK {}", json(&check.test));
        state.config.config.healthcheck = Some(check);
        self.record(state, step, created_by, Layer::None)
    }

    pub(super) fn on_build(&mut self, state: &mut State, step: &Step<'_>, trigger: &Trigger) -> Planned<()> {
        state.config.config.on_build.push(trigger.text.clone());
        self.record(state, step, format!("ONBUILD {}", shown(&trigger.text)), Layer::None)
    }

    pub(super) fn maintainer(&mut self, state: &mut State, step: &Step<'_>, word: &Word) -> Planned<()> {
        state.config.author = Some(word.text.clone());
        self.record(state, step, format!("MAINTAINER {}", word.text), Layer::None)
    }
}

fn healthcheck(health: &Health) -> Healthcheck {
    let test = match &health.test {
        None => vec!["NONE".to_owned()],
        Some(Command::Exec(argv)) => [&["CMD".to_owned()][..], argv].concat(),
        Some(Command::Shell(word)) => vec!["CMD-SHELL".to_owned(), word.text.clone()],
    };
    Healthcheck {
        test,
        interval: health.interval,
        timeout: health.timeout,
        start_period: health.start_period,
        start_interval: health.start_interval,
        retries: health.retries,
    }
}

fn json(argv: &[String]) -> String {
    serde_json::to_string(argv).unwrap_or_default()
}
