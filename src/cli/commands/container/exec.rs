//! `keelway container exec`.

use super::terminal::{self, Pipes, Pumps};
use super::{Place, run};
use crate::commands::Context;
use crate::container_args::ExecArgs;
use crate::outcome::CommandError;
use keelway_container::{exec, supervisor};
use keelway_model::plan::UserSpec;
use keelway_sandbox::Window;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Rows and columns of a terminal that nobody looks at.
const WINDOW: (u16, u16) = (24, 80);

pub async fn exec(_: &Context, place: &Place, args: ExecArgs) -> Result<(), CommandError> {
    terminal::check(args.interactive, args.tty)?;
    let entry = place.find(args.container())?;
    if !entry.files.is_kept() {
        return Err(CommandError::usage(format!("container {} is not running", args.container())));
    }
    let mut record = entry.record.clone();
    // As the container's own process, with what is said here over it.
    record.asked.env.extend(run::environment(&[], &args.env)?);
    record.asked.terminal = args.tty;
    let argv = args.command().to_vec();
    if let Some(user) = args.user {
        record.asked.user = Some(UserSpec(user));
    }
    if let Some(dir) = args.workdir {
        record.asked.cwd = Some(dir);
    }
    let post = place.post(&entry);
    let made = tokio::task::spawn_blocking(move || supervisor::joining(&post, &record, argv)).await;
    let mut spec = made.map_err(CommandError::outside)?.map_err(CommandError::outside)?;
    spec.cwd = Path::new("/").join(&spec.cwd);
    spec.terminal = args.tty.then(|| {
        let (rows, columns) = terminal::window().unwrap_or(WINDOW);
        Window { rows, columns }
    });
    let pipes = match args.tty {
        true => Pipes::none(),
        false => Pipes::new(args.interactive),
    };
    let pipes = pipes.map_err(CommandError::outside)?;
    // From before it runs: no signal ends us and leaves it without its end.
    let window = Arc::default();
    let (signals, mut passed) = mpsc::channel(16);
    let _signals = terminal::pass_signals(Arc::clone(&window), signals).map_err(CommandError::outside)?;
    let begun = exec::begin(&entry.files.socket(), &spec, &pipes.theirs).await;
    let mut session = begun.map_err(|e| failed(&e))?;
    let pumps = Pumps::begin(pipes, session.take_terminal(), args.interactive, &window)
        .map_err(CommandError::outside)?;
    let code = session.wait(&mut passed).await;
    pumps.end(&mut passed).await;
    match code.map_err(|e| failed(&e))? {
        0 => Ok(()),
        code => Err(CommandError::code(code, None)),
    }
}

fn failed(error: &exec::ExecError) -> CommandError {
    CommandError::code(error.code(), Some(error.to_string()))
}
