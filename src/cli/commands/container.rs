//! `keelway container ..`: which verb, and what all of them share.
//!
//! There is no daemon: every verb first looks whether a killed keeper left something to put right, does so, and says so.

mod cp;
mod end;
mod exec;
mod inspect;
mod logs;
mod ls;
mod run;
mod stats;
mod terminal;
mod words;

use super::Context;
use crate::container_args::ContainerVerb;
use crate::outcome::CommandError;
use crate::settings;
use keelway_container::containers::{Containers, ContainersError, Entry, Found};
use keelway_container::keeping::{Post, Role};
use std::path::PathBuf;

/// Whether a verb passes signals on itself, instead of ending by them.
pub const fn takes_signals(verb: &ContainerVerb) -> bool {
    matches!(verb, ContainerVerb::Run(_) | ContainerVerb::Exec(_))
}

/// The containers of the state directory.
pub struct Place {
    state: PathBuf,
    containers: Containers,
}

impl Place {
    fn post(&self, entry: &Entry) -> Post {
        Post { state: self.state.clone(), id: entry.record.id.clone() }
    }
    fn find(&self, word: &str) -> Result<Entry, CommandError> {
        Ok(self.containers.find(word)?)
    }
}

impl From<ContainersError> for CommandError {
    fn from(e: ContainersError) -> Self {
        match e {
            ContainersError::Unknown(_)
            | ContainersError::Ambiguous { .. }
            | ContainersError::Taken { .. }
            | ContainersError::Running(_) => Self::usage(e.to_string()),
            ContainersError::Io { .. } | ContainersError::Lock(_) => Self::outside(e),
        }
    }
}

/// Does what was asked for.
pub async fn container(context: &Context, verb: ContainerVerb) -> Result<(), CommandError> {
    let place = open(context);
    match verb {
        ContainerVerb::Run(args) => {
            let place = place.map_err(CommandError::not_started)?;
            run::run(context, &place, *args).await.map_err(CommandError::not_started)
        }
        ContainerVerb::Exec(args) => {
            let place = place.map_err(CommandError::not_started)?;
            exec::exec(context, &place, args).await.map_err(CommandError::not_started)
        }
        ContainerVerb::Ls { all } => ls::ls(context, &place?, all),
        ContainerVerb::Logs { container, follow, since, tail, timestamps } => {
            let wanted = logs::Wanted { follow, since, tail, timestamps };
            logs::logs(context, &place?, &container, wanted).await
        }
        ContainerVerb::Stop { time, containers } => end::stop(context, &place?, time, &containers).await,
        ContainerVerb::Kill { signal, containers } => end::kill(context, &place?, &signal, &containers).await,
        ContainerVerb::Rm { force, containers } => end::rm(context, &place?, force, &containers).await,
        ContainerVerb::Stats { no_stream, containers } => {
            stats::stats(context, &place?, no_stream, &containers).await
        }
        ContainerVerb::Inspect { containers } => inspect::inspect(context, &place?, &containers),
        ContainerVerb::Cp { from, to } => cp::cp(context, &place?, &from, &to).await,
    }
}

fn open(context: &Context) -> Result<Place, CommandError> {
    let state = settings::state_dir(&context.global, &context.machine)?;
    let containers = Containers::of(&state);
    let place = Place { state, containers };
    for (name, found) in place.containers.mend()? {
        match found {
            Found::Restart(id) => {
                let post = Post { state: place.state.clone(), id };
                post.spawn(Role::Supervisor).map_err(CommandError::outside)?;
                context.say(&format!(
                    "container {name}: its keeper and its supervisor were gone; it is started again by its restart policy"
                ));
            }
            Found::Died(name) => {
                context.say(&format!("container {name}: its keeper was killed, and it died with its keeper"));
            }
            Found::Removed(name) => context.say(&format!(
                "container {name}: its keeper was killed, and it died with its keeper; removed, as --rm says"
            )),
        }
    }
    Ok(place)
}
