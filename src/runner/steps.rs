//! `Op::Steps`: serial scripts in one container.
//!
//! Each step is a process tree of its own over the same root: what a step wrote is there for the next, what it
//! left running is not. Values reach the script as environment, never by substitution into it.

use crate::perform::{Performer, chain_of};
use crate::{blocking, exec, lower};
use keelway_engine::{Ctx, Failure, Performed};
use keelway_model::Output;
use keelway_model::plan::{ImageSource, StepsOp, UserSpec};
use keelway_sandbox::CapProfile;

/// Later values win; the order of first appearance stays.
fn set(env: &mut Vec<(String, String)>, name: &str, value: &str) {
    match env.iter_mut().find(|(k, _)| k == name) {
        Some((_, v)) => value.clone_into(v),
        None => env.push((name.to_owned(), value.to_owned())),
    }
}

pub(crate) async fn run(
    performer: &Performer,
    ctx: &Ctx,
    op: &StepsOp,
    inputs: &[Output],
) -> Result<Performed, Failure> {
    let store = performer.store();
    let (chain, config) = match (&op.image, inputs.first()) {
        (ImageSource::Reference(name), _) => performer.image_by_name(ctx, name).await?,
        (ImageSource::Node(_), Some(Output::Image(image))) => {
            let (store, manifest) = (store.clone(), image.manifest.clone());
            let config = blocking(move || Ok(lower::config_of(&store, &manifest)?.1)).await?;
            (image.chain.clone(), config)
        }
        (ImageSource::Node(_), other) => {
            return Err(Failure::bug(format!("the steps' image is {:?}", chain_of(other).err())));
        }
    };
    let config = config.config;
    let mut base: Vec<(String, String)> = Vec::new();
    for pair in &config.env {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        set(&mut base, name, value);
    }
    if !base.iter().any(|(k, _)| k == "PATH") {
        set(&mut base, "PATH", keelway_sandbox::DEFAULT_PATH);
    }
    set(&mut base, "CI", "true");
    set(&mut base, "KEELWAY_STAGE", op.stage.as_str());
    if let Some(commit) = &performer.subject.commit {
        set(&mut base, "KEELWAY_COMMIT", commit.as_str());
    }
    if let Some(branch) = &performer.subject.branch {
        set(&mut base, "KEELWAY_BRANCH", branch);
    }
    for (name, value) in &op.env {
        set(&mut base, name, value);
    }
    let cwd = config.working_dir.clone().filter(|w| w.starts_with('/')).unwrap_or_else(|| "/".into());
    let user = {
        let (store, snapshots) = (store.clone(), chain.snapshots.clone());
        let spec = UserSpec(config.user.clone().unwrap_or_default());
        blocking(move || {
            let view = store.view(&snapshots).map_err(|e| Failure::outside(e.to_string()))?;
            keelway_image::user::resolve(&view, &spec).map_err(|e| Failure::failed(e.to_string()))
        })
        .await?
    };
    let mut lowers = store.lowers(&chain.snapshots);
    // Dropped, and so deleted, only when the stage is over: later steps stand on them.
    let mut uppers = Vec::new();
    for step in &op.steps {
        let upper = {
            let store = store.clone();
            blocking(move || store.begin().map_err(|e| Failure::outside(e.to_string()))).await?
        };
        let mut env = base.clone();
        for (name, value) in &step.env {
            set(&mut env, name, value);
        }
        let job = exec::Job {
            lowers: lowers.clone(),
            upper: upper.fs().to_owned(),
            work: upper.work().to_owned(),
            argv: ["/bin/sh", "-eu", "-c", &step.run].map(str::to_owned).to_vec(),
            env,
            cwd: cwd.clone(),
            user: user.clone(),
            network: op.network,
            limits: op.limits.clone(),
            caps: CapProfile::Step,
            runtime: performer.settings.runtime(op.stage.as_str(), op.runtime.as_deref())?,
            mounts: Vec::new(),
            locks: Vec::new(),
            hidden: Vec::new(),
        };
        ctx.news(format!("step {}", step.name)).await;
        let exit = exec::run(&performer.workspace, ctx, job).await?;
        if !exit.success() {
            return Err(exec::unsuccessful(Some(&format!("step {}", step.name)), &exit, store.path()));
        }
        lowers.push(upper.fs().to_owned());
        uppers.push(upper);
    }
    Ok(Performed::output(Output::Nothing))
}
