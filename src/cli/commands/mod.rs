//! One file a verb; here they are chosen, given their settings, and ended.

mod build_context;
mod container;
mod delivery;
mod deploy;
mod image;
mod plan;
mod run;
mod runs;
mod store;
mod watch;

use crate::args::{Cli, DeployVerb, Format, Global, ImageVerb, StoreVerb, Verb};
use crate::machine::Machine;
use crate::outcome::CommandError;
use crate::render::{self, Style};
use clap::Parser;
use keelway_engine::{CancelReason, CancelSource, Failure};
use keelway_model::{Diagnostics, ExitCode as Code};
use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

/// How long the end of a command waits for what it has started.
const SETTLE: Duration = Duration::from_secs(1);

/// What every command is given.
pub struct Context {
    /// Flags of every command.
    pub global: Global,
    /// The environment.
    pub machine: Machine,
    /// How to say things.
    pub style: Style,
    /// Cancelled by Ctrl-C and SIGTERM.
    pub cancel: CancelSource,
}

impl Context {
    /// Writes a result to standard output. A reader that is gone (`| head`) is no error.
    pub fn print(&self, text: &str) -> Result<(), CommandError> {
        self.print_more(text).map(|_| ())
    }
    /// The same for a part of a result; false when the reader is gone, and the rest is not worth making.
    pub fn print_more(&self, text: &str) -> Result<bool, CommandError> {
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(e) => Err(CommandError::outside(format!("cannot write the result: {e}"))),
        }
    }
    /// Prints one JSON object as a line.
    pub fn print_json(&self, value: &impl serde::Serialize) -> Result<(), CommandError> {
        let json = serde_json::to_string(value).map_err(CommandError::outside)?;
        self.print(&format!("{json}\n"))
    }
    /// Shows what is worth knowing about a definition and stops nothing: the first of it.
    pub fn warn(&self, found: &Diagnostics) {
        if self.global.quiet || found.items.is_empty() {
            return;
        }
        let mut shown = found.clone();
        shown.items.truncate(WARNINGS);
        let _ = io::stderr().write_all(render::diagnostics(&shown, &self.style).as_bytes());
        if let more @ 1.. = found.items.len() - shown.items.len() {
            self.say(&format!("{more} more; `keelway lint` shows all"));
        }
    }
    /// Says something beside the result.
    pub fn say(&self, text: &str) {
        if !self.global.quiet {
            let _ = writeln!(io::stderr(), "{}", render::clean(text));
        }
    }
}

/// Parses, runs, ends.
pub fn main() -> ExitCode {
    // Before Linux 5.11 it cannot, and what this was started with stays open in what lives on.
    let _ = keelway_sandbox::pass_on_nothing();
    let mut args: Vec<OsString> = std::env::args_os().collect();
    let rootless = args.get(1).is_some_and(|a| a == keelway_sandbox::rootless::ROOTLESS_ARGUMENT);
    if rootless {
        args.remove(1);
    }
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version are no errors; clap knows which stream is meant.
            let code = if e.use_stderr() { Code::Usage } else { Code::Done };
            let _ = e.print();
            return code.code().into();
        }
    };
    let machine = Machine::read(rootless);
    log(&machine);
    let style = Style::new(&cli.global, &machine);
    if !machine.root && !rootless && cli.verb.needs_ids() {
        let e = keelway_sandbox::rootless::enter(args.into_iter().skip(1));
        let _ = writeln!(io::stderr(), "{}", render::error(&e.to_string(), &style));
        return Code::Outside.code().into();
    }
    let context = Context { global: cli.global, machine, style, cancel: CancelSource::new() };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(r) => r,
        Err(e) => {
            let _ = writeln!(io::stderr(), "keelway: cannot start: {e}");
            return Code::Outside.code().into();
        }
    };
    // Who copies a terminal has a read of it under way, which nothing ends.
    let settle = if matches!(cli.verb, Verb::Container(_)) { Duration::ZERO } else { SETTLE };
    let result = runtime.block_on(async {
        let theirs = matches!(&cli.verb, Verb::Container(verb) if container::takes_signals(verb));
        let manner = manner(&cli.verb);
        let signals = (!theirs).then(|| tokio::spawn(listen(context.cancel.clone(), manner)));
        let token = context.cancel.token();
        let result = tokio::select! {
            result = dispatch(&context, cli.verb) => result,
            _ = token.cancelled(), if !theirs && manner == Manner::AtOnce => {
                Err(Failure::new(Code::Cancelled, "cancelled").into())
            }
        };
        if let Some(signals) = signals {
            signals.abort();
        }
        result
    });
    // What still holds the store lets go of it, so that its run directory goes with this process; blocking work that
    // was given up must not keep the process for long.
    runtime.shutdown_timeout(settle);
    match result {
        Ok(()) => Code::Done.code().into(),
        Err(e) => {
            say_error(&context, &e);
            e.number().into()
        }
    }
}

fn say_error(context: &Context, e: &CommandError) {
    let mut err = io::stderr().lock();
    let _ = match e {
        CommandError::Ended(_) | CommandError::Container { message: None, .. } => Ok(()),
        CommandError::Container { message: Some(message), .. } => {
            writeln!(err, "{}", render::error(message, &context.style))
        }
        CommandError::Definition(d) if context.global.format == Format::Json => {
            io::stdout().write_all(render::diagnostics_json(d).as_bytes())
        }
        CommandError::Definition(d) => err.write_all(render::diagnostics(d, &context.style).as_bytes()),
        CommandError::Failed(f) if f.exit == Code::Done => writeln!(err, "{}", render::clean(&f.message)),
        CommandError::Failed(f) => writeln!(err, "{}", render::error(&f.message, &context.style)),
    };
}

fn log(machine: &Machine) {
    if let Some(filter) = &machine.log {
        let filter = tracing_subscriber::EnvFilter::try_new(filter).unwrap_or_default();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).try_init();
    }
}

/// How many warnings are shown by a command that has more to say.
const WARNINGS: usize = 10;

/// How a command takes a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// It ends what it runs, in good order.
    InOrder,
    /// It only reads or waits: nothing is lost when it ends at once.
    AtOnce,
}

fn manner(verb: &Verb) -> Manner {
    match verb {
        Verb::Run { .. }
        | Verb::Watch { .. }
        | Verb::Image(ImageVerb::Build { .. })
        | Verb::Deploy(DeployVerb::Rollback { .. }) => Manner::InOrder,
        _ => Manner::AtOnce,
    }
}

/// How long a command that ends at once may take to tidy up.
const TIDY: Duration = Duration::from_millis(700);
/// How long a command that was killed may take to record that.
const KILLED: Duration = Duration::from_millis(1500);

/// The first signal asks, the second one kills; a terminal that went away (SIGHUP) only asks, however often. Whatever
/// does not end then is ended with the process: the next start tidies up as after a kill.
#[expect(clippy::exit, reason = "blocking work that hangs must not keep a process that was told to end")]
async fn listen(cancel: CancelSource, manner: Manner) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    // Whoever started us with nohup wants to go on without a terminal.
    let mut hangup = if ignores_hangup() { None } else { signal(SignalKind::hangup()).ok() };
    let mut asked = false;
    loop {
        let asks = tokio::select! {
            _ = interrupt.recv() => false,
            _ = terminate.recv() => false,
            _ = async {
                match &mut hangup {
                    Some(hangup) => hangup.recv().await,
                    None => std::future::pending().await,
                }
            } => true,
        };
        match (asked, manner) {
            (true, _) if asks => {}
            (true, _) => {
                cancel.kill(CancelReason::Interrupt);
                tokio::time::sleep(KILLED).await;
                std::process::exit(Code::Cancelled.code().into());
            }
            (false, Manner::AtOnce) => {
                cancel.cancel(CancelReason::Interrupt);
                tokio::time::sleep(TIDY).await;
                std::process::exit(Code::Cancelled.code().into());
            }
            (false, Manner::InOrder) => {
                asked = true;
                cancel.cancel(CancelReason::Interrupt);
                render::above("stopping in good order; once more to stop at once");
            }
        }
    }
}

/// Whether SIGHUP was ignored when this process began.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|l| l.strip_prefix("SigIgn:"));
    mask.and_then(|m| u64::from_str_radix(m.trim(), 16).ok()).is_some_and(|m| m & 1 == 1)
}

async fn dispatch(context: &Context, verb: Verb) -> Result<(), CommandError> {
    match verb {
        Verb::Run { stages, source, names } => run::run(context, &stages, &source, &names).await,
        Verb::Plan { stages, source, names } => plan::plan(context, &stages, &source, &names).await,
        Verb::Lint(args) => plan::lint(context, *args).await,
        Verb::Explain { code } => plan::explain(context, &code),
        Verb::Watch { repo, git_ssh_config, branch, every, once, names } => {
            let wanted = watch::WatchArgs { repo, git_ssh_config, branch, every, once };
            watch::watch(context, wanted, &names).await
        }
        Verb::Runs(verb) => runs::runs(context, verb),
        Verb::Image(ImageVerb::Build {
            dir,
            tag,
            file,
            target,
            build_arg,
            contexts,
            secret,
            ssh,
            network,
            flags,
            limits,
            names,
        }) => {
            let build = image::BuildArgs {
                dir,
                tag,
                file,
                target,
                build_arg,
                contexts: *contexts,
                secret,
                ssh,
                network,
                flags: *flags,
                limits: *limits,
            };
            image::build(context, build, &names).await
        }
        Verb::Image(ImageVerb::Pull { image, names }) => image::pull(context, &image, &names).await,
        Verb::Image(ImageVerb::Push { image, names }) => image::push(context, &image, &names).await,
        Verb::Image(ImageVerb::Load { layout, image, select }) => {
            image::load(context, &layout, &image, select.as_deref())
        }
        Verb::Image(ImageVerb::Ls) => image::ls(context),
        Verb::Image(ImageVerb::Prune(args)) => tokio::task::block_in_place(|| store::prune(context, &args)),
        Verb::Store(StoreVerb::Df) => tokio::task::block_in_place(|| store::df(context)),
        Verb::Store(StoreVerb::Check { read_data, repair }) => {
            tokio::task::block_in_place(|| store::check(context, read_data, repair))
        }
        Verb::Container(verb) => container::container(context, verb).await,
        Verb::Deploy(verb) => deploy::deploy(context, verb).await,
        Verb::Doctor => tokio::task::block_in_place(|| crate::doctor::doctor(context)),
    }
}
