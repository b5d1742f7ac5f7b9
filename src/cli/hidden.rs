//! The hidden verbs: re-executions of the binary by itself. No person types them.

use crate::doctor;
use keelway_container::diary::Diary;
use keelway_container::keeping::{self, Attachment, Post, Role};
use keelway_container::{keeper, process, supervisor};
use keelway_host::{BalancerSettings, HostSettings, SuperviseSettings, balancer, supervise};
use keelway_model::ExitCode as Code;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

/// Becomes what the first argument names, when it is one of ours.
pub fn run_if_asked() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    let verb = args.next()?;
    let rest: Vec<OsString> = args.collect();
    match verb.to_str()? {
        keelway_sandbox::INIT_ARGUMENT => keelway_sandbox::init_main(),
        keelway_sandbox::rootless::OUTSIDE_ARGUMENT => {
            Some(fail(&keelway_sandbox::rootless::leave(&rest), Code::Outside))
        }
        doctor::TRY_ARGUMENT => Some(doctor::try_it(&rest, false)),
        // The same program once more, in this user's own namespace.
        keelway_sandbox::rootless::ROOTLESS_ARGUMENT => match rest.split_first() {
            Some((verb, rest)) if verb == doctor::TRY_ARGUMENT => Some(doctor::try_it(rest, true)),
            _ => None,
        },
        "oci" => Some(crate::oci::main(rest)),
        "__host" => Some(host(&rest)),
        "__balancer" => {
            diary();
            Some(with(BalancerSettings::from_args(&rest), balancer::run))
        }
        "__supervise" => {
            diary();
            Some(with(SuperviseSettings::from_args(&rest), supervise::run))
        }
        keeping::VERB => {
            diary();
            Some(container(&rest))
        }
        _ => None,
    }
}

/// The keeper or the supervisor of a container that was made by hand.
fn container(args: &[OsString]) -> ExitCode {
    let (role, post) = match Post::from_args(args) {
        Ok(found) => found,
        Err(e) => return fail(&e, Code::Usage),
    };
    process::detach();
    let runtime = match process::runtime("container") {
        Ok(r) => r,
        Err(e) => return fail(&e, Code::Outside),
    };
    let done: Result<(), String> = runtime.block_on(async {
        tokio::spawn(Diary::at(&post.files().diary()).keep());
        match role {
            Role::Keeper => {
                let kept = keeping::keep(&post, Attachment::default(), keeper::desk()).await;
                kept.map(drop).map_err(|e| e.to_string())
            }
            Role::Supervisor => supervisor::supervise(&post).await.map_err(|e| e.to_string()),
        }
    });
    runtime.shutdown_timeout(std::time::Duration::from_millis(500));
    match done {
        Ok(()) => Code::Done.code().into(),
        Err(e) => fail(&e, Code::Outside),
    }
}

/// What a process of a host has to say goes to its standard error, which whoever started it keeps as its diary.
fn diary() {
    let filter = tracing_subscriber::EnvFilter::new("info");
    let _ =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(io::stderr).try_init();
}

fn with<S, E: Display>(settings: Result<S, E>, run: impl FnOnce(S) -> Code) -> ExitCode {
    match settings {
        Ok(settings) => run(settings).code().into(),
        Err(e) => fail(&e, Code::Usage),
    }
}

fn fail(e: &dyn Display, code: Code) -> ExitCode {
    let _ = writeln!(io::stderr(), "keelway: {e}");
    code.code().into()
}

fn host(args: &[OsString]) -> ExitCode {
    let connection = std::env::var("SSH_CONNECTION").ok();
    let settings = match HostSettings::from_args(args, connection.as_deref()) {
        Ok(s) => s,
        Err(e) => return fail(&e, Code::Usage),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(r) => r,
        Err(e) => return fail(&e, Code::Outside),
    };
    let served = runtime.block_on(keelway_host::serve(tokio::io::stdin(), tokio::io::stdout(), settings));
    // A read of standard input that never returns must not keep the process.
    runtime.shutdown_background();
    match served {
        Ok(()) => Code::Done.code().into(),
        Err(e) => fail(&e, Code::Outside),
    }
}
