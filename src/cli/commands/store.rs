//! `keelway store ..` and `keelway image prune`: what takes room, and making some.

use super::Context;
use crate::args::{Format, PruneArgs};
use crate::outcome::CommandError;
use crate::{render, settings};
use keelway_engine::Failure;
use keelway_model::{Bytes, ExitCode, Timestamp};
use keelway_runner::{Collection, Settings};
use keelway_store::{Aim, Checked, Collected, Kind, Limits, Plan, PruneError, Space, Store, Why};
use std::collections::BTreeMap;
use std::io::{self, BufRead, IsTerminal, Write};
use std::time::{Duration, Instant};

/// For a removal that was ordered: renames, some thousand a second.
const PRUNE: Duration = Duration::from_secs(600);
/// Looks and removals of one repair.
const REPAIRS: u32 = 3;
/// For deleting what was removed; the rest goes with a later command.
const DELETE: Duration = Duration::from_secs(600);

/// After a result is shown: removes what is too much, and deletes what was thrown away. None of it is the command's
/// failure.
pub async fn tidy(context: &Context, settings: &Settings, store: &Store) {
    let (collection, store) = (settings.collection.clone(), store.clone());
    match tokio::task::spawn_blocking(move || collection.tidy(&store)).await {
        Ok(Ok(Some(done))) if done.bytes > 0 => context.say(&tidied(&done)),
        Ok(Err(e)) => context.say(&format!("the store is not made smaller: {e}")),
        Ok(Ok(_)) | Err(_) => {}
    }
}

fn tidied(done: &Collected) -> String {
    let mut text = format!(
        "the store was above its limit: {} that nobody needs were removed, it takes {} now",
        Bytes(done.bytes),
        Bytes(done.after)
    );
    if done.finished && done.after > done.aim {
        text += "; the rest is needed: `keelway store df` says by what, `keelway image prune --all` removes images that only have a name";
    }
    text
}

/// The store alone, without what runs need: so it opens on a full disk, too.
fn open(context: &Context) -> Result<(Store, Collection), CommandError> {
    let state = settings::existing_state(&context.global, &context.machine)?;
    let collection = settings::collection(&state, &context.machine)?;
    let store = Store::open(&state.join("store"), settings::clock(&context.machine))
        .map_err(CommandError::outside)?;
    let dead: Vec<_> =
        store.reaped().iter().flat_map(|run| &run.cgroups).filter_map(|name| name.parse().ok()).collect();
    if !dead.is_empty()
        && let Err(error) = keelway_sandbox::cgroup::reap(&keelway_sandbox::cgroup::Layout::detect(), &dead)
    {
        context.say(&format!("cgroups of dead runs: {error}"));
    }
    Ok((store, collection))
}

fn needs(collection: &Collection) -> Result<Vec<keelway_store::Need>, CommandError> {
    (collection.needed)().map_err(|e| CommandError::outside(PruneError::Needs(e)))
}

/// `image prune`.
pub fn prune(context: &Context, args: &PruneArgs) -> Result<(), CommandError> {
    let (store, collection) = open(context)?;
    let needed = needs(&collection)?;
    let space = Space::at(store.path()).map_err(CommandError::outside)?;
    let unused_for = args.until.or(args.filter).unwrap_or_default();
    let everything = (args.all || !unused_for.is_zero()) && args.keep_free.is_none();
    let storage = args.keep_storage.or(if everything { Some(Bytes(0)) } else { collection.storage });
    let limits = Limits::of(storage, args.keep_free.or(collection.free), space);
    let aim = |bytes| Aim { keep: limits.allowed(bytes, space), unused_for, names: args.all };
    let plan = store.prune_plan(aim, &needed).map_err(CommandError::outside)?;
    show(context, &plan)?;
    if args.dry_run || plan.is_empty() || !(args.yes || agreed(context)?) {
        return Ok(());
    }
    let asked = &*collection.needed;
    let done = store.prune(&plan, &asked, Instant::now() + PRUNE).map_err(CommandError::outside)?;
    let emptied = store.empty_trash(DELETE).map_err(CommandError::outside)?;
    match context.global.format {
        Format::Json => context.print_json(&serde_json::json!({
            "removed": done.removed, "bytes": done.bytes, "spared": done.spared, "after": done.after,
            "finished": done.finished && emptied,
        })),
        Format::Text => {
            let mut text = format!("removed {} in {}", Bytes(done.bytes), things(done.removed));
            if done.spared > 0 {
                text += &format!("; {} came into use meanwhile and stayed", things(done.spared));
            }
            if !(done.finished && emptied) {
                text += "; there was no time for all of it, give the command again";
            }
            context.print(&format!("{text}\n"))
        }
    }
}

fn things(count: usize) -> String {
    if count == 1 { "1 thing".into() } else { format!("{count} things") }
}

/// Asks at the terminal.
fn agreed(context: &Context) -> Result<bool, CommandError> {
    if !io::stdin().is_terminal() || context.global.format == Format::Json {
        return Err(CommandError::usage(
            "nothing was removed: say --yes to remove it without being asked, or --dry-run to see only what would go",
        ));
    }
    let mut err = io::stderr();
    let _ = write!(err, "Remove it? [y/N] ").and_then(|()| err.flush());
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).map_err(CommandError::outside)?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}

fn show(context: &Context, plan: &Plan) -> Result<(), CommandError> {
    if context.global.format == Format::Json {
        for removal in plan.removals() {
            context.print_json(&serde_json::json!({"remove": removal}))?;
        }
        for rest in &plan.remaining {
            context.print_json(&serde_json::json!({"keep": rest}))?;
        }
        let (before, after, aim) = (plan.before, plan.after, plan.aim.keep);
        return context
            .print_json(&serde_json::json!({"plan": {"before": before, "after": after, "aim": aim}}));
    }
    let mut text = String::new();
    if plan.is_empty() {
        text += &format!("Nothing to remove: the store takes {}", Bytes(plan.before));
        text += &match plan.after <= plan.aim.keep && plan.after > 0 {
            true => format!(
                ", and may take {}. `--keep-storage 0` removes all that nothing needs, `--all` images that only have a name, too.\n",
                Bytes(plan.aim.keep)
            ),
            false => ".\n".to_owned(),
        };
    } else {
        text += &format!(
            "The store takes {}, and would take {}. Goes, the least recently used first:\n",
            Bytes(plan.before),
            Bytes(plan.after)
        );
        text += &going(plan, settings::clock(&context.machine).now());
    }
    if plan.after > 0 && (!plan.is_empty() || plan.after > plan.aim.keep) {
        text += "Stays:\n";
        text += &staying(plan);
    }
    if plan.after > plan.aim.keep && plan.aim.unused_for.is_zero() {
        let hint = if plan.aim.names { "" } else { "; --all removes images that only have a name, too" };
        text +=
            &format!("That is above the {} wanted, but all of it is needed{hint}.\n", Bytes(plan.aim.keep));
    }
    context.print(&text)
}

/// What goes, by kind; names one by one.
fn going(plan: &Plan, now: Timestamp) -> String {
    let mut kinds: BTreeMap<Kind, (usize, u64, Timestamp, Timestamp)> = BTreeMap::new();
    let mut rows = Vec::new();
    for one in plan.removals() {
        if one.kind == Kind::Name {
            let row = [format!("the name {}", one.name), String::new(), String::new(), ago(now, one.used)];
            rows.push(row);
            continue;
        }
        let entry = kinds.entry(one.kind).or_insert((0, 0, one.used, one.used));
        *entry = (entry.0 + 1, entry.1 + one.bytes, entry.2.min(one.used), entry.3.max(one.used));
    }
    for (kind, (count, bytes, first, last)) in kinds {
        let what = match kind {
            Kind::Snapshot => "files of steps and unpacked layers",
            Kind::Blob => "packed layers and documents of images",
            Kind::Mount => "cache mounts of RUN",
            Kind::Record | Kind::Name => "records of steps",
        };
        let (first, last) = (ago(now, first), ago(now, last));
        let used = if first == last { first } else { format!("{first} to {last}") };
        rows.push([what.to_owned(), count.to_string(), Bytes(bytes).to_string(), used]);
    }
    render::table(["WHAT", "COUNT", "SIZE", "LAST USED"], &rows, 3)
}

fn ago(now: Timestamp, then: Timestamp) -> String {
    let hours = now.0.saturating_sub(then.0) / 3_600_000;
    match hours {
        ..1 => "within the hour".into(),
        1..48 => format!("{hours}h ago"),
        _ => format!("{}d ago", hours / 24),
    }
}

fn staying(plan: &Plan) -> String {
    let rows: Vec<[String; 3]> = plan
        .remaining
        .iter()
        .filter(|r| r.bytes > 0)
        .map(|r| [why(&r.why), r.count.to_string(), Bytes(r.bytes).to_string()])
        .collect();
    render::table(["WHY IT STAYS", "COUNT", "SIZE"], &rows, 3)
}

fn why(why: &Why) -> String {
    match why {
        Why::Running => "in use by what runs now".into(),
        Why::Needed(who) => format!("needed by {who}"),
        Why::Named => "belongs to an image that has a name".into(),
        Why::Room => "cache, for which there is room".into(),
        Why::Books => "records and names".into(),
    }
}

/// `store df`.
pub fn df(context: &Context) -> Result<(), CommandError> {
    let (store, collection) = open(context)?;
    let space = Space::at(store.path()).map_err(CommandError::outside)?;
    let limits = Limits::of(collection.storage, collection.free, space);
    let aim = |_| Aim { keep: u64::MAX, unused_for: Duration::ZERO, names: false };
    let plan = store.prune_plan(aim, &needs(&collection)?).map_err(CommandError::outside)?;
    if context.global.format == Format::Json {
        for rest in &plan.remaining {
            context.print_json(rest)?;
        }
        return context.print_json(&serde_json::json!({
            "total": plan.before, "limit": limits.storage, "allowed": limits.allowed(plan.before, space),
            "disk": {"size": space.size, "free": space.free, "keep-free": limits.free},
        }));
    }
    let text = format!(
        "{}\nThe store takes {}; its limit is {}. Of its disk {} of {} are free; {} shall stay so.\n",
        staying(&plan),
        Bytes(plan.before),
        Bytes(limits.storage),
        Bytes(space.free),
        Bytes(space.size),
        Bytes(limits.free)
    );
    context.print(&text)
}

/// `store check`.
pub fn check(context: &Context, read_data: bool, repair: bool) -> Result<(), CommandError> {
    let (store, collection) = open(context)?;
    let cancel = context.cancel.token();
    let look = || -> Result<Checked, CommandError> {
        let needs = needs(&collection)?;
        let checked =
            store.check(&needs, read_data, &|| cancel.is_cancelled()).map_err(CommandError::outside)?;
        match checked.finished {
            true => Ok(checked),
            false => Err(Failure::new(ExitCode::Cancelled, "cancelled; nothing was changed").into()),
        }
    };
    let mut checked = look()?;
    tell(context, &checked)?;
    let mut mended = 0;
    // Without a damaged blob an image is not whole, which only the second look finds.
    for _ in 0..if repair { REPAIRS } else { 0 } {
        let (now, used) = store.mend(&checked.findings).map_err(CommandError::outside)?;
        for finding in &used {
            context.say(&format!("{}: a process uses it; repair it when that has ended", finding.path));
        }
        mended += now;
        if now == 0 {
            break;
        }
        checked = look()?;
        tell(context, &checked)?;
    }
    let bad = checked.findings.len();
    match context.global.format {
        Format::Json => context.print_json(&serde_json::json!({
            "checked": checked, "read-data": read_data, "repaired": mended, "findings": bad,
        }))?,
        Format::Text => {
            let Checked { snapshots, blobs, mounts, records, names, .. } = checked;
            let how = if read_data { ", every byte was read" } else { "" };
            let repaired = if mended > 0 { format!("; {} repaired", things(mended)) } else { String::new() };
            context.print(&format!(
                "{names} names, {snapshots} snapshots, {blobs} blobs, {mounts} cache mounts, {records} records{how}{repaired}\n"
            ))?;
        }
    }
    match bad {
        0 => Ok(()),
        _ => Err(CommandError::outside(format!("the store {} has {bad} faults", store.path().display()))),
    }
}

fn tell(context: &Context, checked: &Checked) -> Result<(), CommandError> {
    for one in &checked.findings {
        match context.global.format {
            Format::Json => context.print_json(&serde_json::json!({"finding": one}))?,
            Format::Text => context.print(&format!("{}: {}\n  {}\n", one.path, one.problem, one.remedy))?,
        }
    }
    Ok(())
}
