//! Nearest names and the words of other systems.

use keelway_model::Diagnostic;

/// Adds `did you mean`, or the list of what there is where nothing is near.
pub(crate) fn nearest<'a>(
    d: Diagnostic,
    given: &str,
    known: impl Iterator<Item = &'a str> + Clone,
    list: &str,
) -> Diagnostic {
    match nearest_name(given, known.clone()) {
        Some(name) => d.hint(format!("did you mean {name:?}?")),
        None => {
            let mut names: Vec<&str> = known.take(21).collect();
            if names.is_empty() {
                return d.hint("there are none".to_owned());
            }
            if names.len() > 20 {
                names[20] = "..";
            }
            d.hint(format!("{list} {}", names.join(", ")))
        }
    }
}

/// The nearest of the known names, where one is near enough to be meant.
pub(crate) fn nearest_name<'a>(given: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if given.len() > 100 {
        return None;
    }
    let lower = given.to_lowercase().replace('-', "_");
    known
        .filter(|k| k.len() <= 100)
        .map(|k| (strsim::osa_distance(&lower, &k.to_lowercase().replace('-', "_")), k))
        .filter(|(d, k)| {
            *d <= (k.chars().count().max(lower.chars().count()) / 3).max(1) && *d < lower.chars().count()
        })
        .min_by_key(|(d, _)| *d)
        .map(|(_, k)| k)
}

const PIPELINE: &str = "the pipeline";
const STAGE: &str = "a stage";
const STEP: &str = "a step";

/// Keys of the format that this version refuses by name: the key, the places it belongs to, what to do meanwhile.
#[rustfmt::skip]
pub(crate) const LATER: &[(&str, &[&str], &str)] = &[
    ("inputs", &[PIPELINE, STAGE], "use `env` with a fixed value"),
    ("services", &[PIPELINE, STAGE], "start what the test needs inside its steps"),
    ("promote", &[STAGE], "push to the second registry with a `push` stage"),
    ("approve", &[STAGE], "use `when: {event: deploy}` or run the stage by name: keelway run STAGE"),
    ("if", &[STAGE, STEP], "use `when: {branch: .., event: ..}`"),
    ("matrix", &[PIPELINE, STAGE], "write one stage for each value"),
    ("cache", &[PIPELINE, STAGE], "what a Dockerfile builds is cached: do the work in a build stage"),
    ("artifacts", &[STAGE, STEP], "make the files in a build stage, where they are part of the image"),
    ("reports", &[STAGE], "the log keeps what the steps print"),
    ("secrets", &[PIPELINE, STAGE, STEP], "nothing secret belongs into this file; wait for the feature, or deploy what needs none"),
    ("retry", &[STAGE, STEP], "run again with keelway run STAGE"),
    ("allow_failure", &[STAGE, STEP], "end the command with `|| true`, and say why in a comment"),
    ("isolation", &[PIPELINE], "say it in each stage: isolation: {runtime: NAME}"),
    ("environment", &[PIPELINE, STAGE], "for variables write `env`; named environments come later"),
    ("concurrency", &[PIPELINE, STAGE], "a deploy holds a lease on its hosts, so two never mix"),
    ("runner", &[PIPELINE, STAGE], "stages run on the machine that keelway runs on"),
    ("include", &[PIPELINE], "write the stages here; anchors (&name, *name, <<) spare repetition"),
    ("finally", &[PIPELINE, STAGE], "clean up at the end of the step, with a shell trap"),
    ("template", &[PIPELINE, STAGE], "anchors (&name, *name, <<) spare repetition"),
    ("strategy", &["a deploy"], "one replica after the other, start-first, is the strategy there is"),
    ("rollback", &["a deploy"], "a failed deploy rolls back by itself"),
    ("platforms", &["a build"], "images are built for the platform of the machine"),
    ("cache", &["a build"], "layers are cached by themselves"),
    ("secrets", &["a build", "a deploy"], "nothing secret belongs into this file"),
    ("ssh", &["a build"], "copy what is needed into the build context"),
    ("paths", &["an event"], "filter by `branches`"),
    ("paths_ignore", &["an event"], "filter by `branches`"),
    ("tags", &["an event"], "filter by `branches`"),
    ("match", &["an event"], "filter by `branches`"),
    ("cron", &["an event"], "start keelway from a timer of the machine"),
    ("path", &["a condition"], "use `branch` and `event`"),
    ("status", &["a condition"], "a stage runs when all it needs succeeded"),
    ("timeout", &[PIPELINE, STEP], "give the stage a `timeout`"),
    ("image", &[STEP], "the image belongs to the stage; another image is another stage"),
    ("when", &[STEP], "the condition belongs to the stage"),
    ("cmd", &["a health check"], "check with `http`"),
    ("tcp", &["a health check"], "check with `http`"),
];

/// What to write instead of a word of another system; the places are those where it is commonly written.
#[rustfmt::skip]
const TEACH: &[(&[&str], &str)] = &[
    (&["script", "commands", "command", "before_script", "after_script", "cmd"],
        "commands go into steps: `steps: [{name: test, run: make test}]`"),
    (&["jobs", "job", "workflow", "workflows", "pipeline", "tasks"], "write `stages`, a map from name to stage"),
    (&["depends_on", "dependencies", "requires", "runAfter", "passed", "stage"], "write `needs: [NAME]`"),
    (&["runs-on", "runs_on", "labels", "agents", "agent", "pool"],
        "leave it out: stages run on the machine that keelway runs on"),
    (&["variables", "params", "environment"], "write `env: {NAME: value}`"),
    (&["timeout-minutes", "timeout_minutes", "timeout_in_minutes"], "write it with its unit: `timeout: 10m`"),
    (&["uses", "with", "plugin", "plugins", "settings"],
        "there are no actions or plugins: building, pushing and deploying are kinds of stages (build, push, deploy), the rest is `run`"),
    (&["container", "docker"], "write `image: NAME`, or `image: {stage: NAME}` for one that this run builds"),
    (&["only", "except", "rules", "branches"], "write `when: {branch: main}`"),
    (&["trigger", "triggers", "workflow_dispatch"], "write `on: {push: {branches: [main]}}`"),
    (&["continue-on-error", "soft_fail", "failure"], "a step that may fail ends with `|| true`"),
    (&["working-directory", "working_directory", "workdir", "dir", "directory"],
        "steps start in the image's WORKDIR: set it in the Dockerfile, or `cd` in `run`"),
    (&["shell", "entrypoint"], "`run` is a script for `sh -eu`"),
    (&["dockerfile", "Dockerfile"], "write `build: {context: ., file: Dockerfile}`"),
    (&["build_args", "build-args", "buildargs"], "write `args: {NAME: value}`"),
    (&["repository", "repo", "registry", "destination"], "write `to: registry.example.com/name`"),
    (&["tag"], "write `tags: [commit, branch]`"),
    (&["targets"], "a deploy names its target with `to: NAME`; `targets` stands at the top of the file"),
    (&["parallel"], "stages without `needs` run in parallel"),
    (&["permissions", "privileged", "volumes", "mounts"],
        "a pushed file cannot decide that; leave it out"),
    (&["ports"], "write `port`: the one port the app listens on inside its own network"),
    (&["healthcheck", "health_check", "readiness"], "write `health: {http: /healthz}`"),
    (&["instances", "scale", "count"], "write `replicas: N`"),
    (&["clone", "checkout", "resources"], "the commit is there already: build stages copy it, steps run in an image"),
];

/// A hint for a word of another system.
pub(crate) fn teach(place: &str, key: &str) -> Option<&'static str> {
    if place == PIPELINE && key == "name" {
        return Some("a pipeline has no name: it is known by its repository");
    }
    if place == PIPELINE
        && ["build", "steps", "push", "deploy", "image", "needs", "when", "test"].contains(&key)
    {
        return Some("that belongs into a stage: `stages: {NAME: {..}}`");
    }
    TEACH.iter().find(|(words, _)| words.contains(&key)).map(|(_, hint)| *hint)
}
