//! The benchmarks: the workloads of docs/performance.md, ours beside the peers that this machine has.
//!
//! `tests/bench/run --help` says what can be asked for. Peers in turn (A B A B), medians, and the spread. Nothing here is
//! a test: no figure makes it fail.

mod builders;
mod measure;
mod places;
mod table;
mod workloads;

use builders::{BaseImage, Builder};
use keelway_tests::base::{self, Base};
use measure::Figure;
use places::Place;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use table::{Row, Table};
use workloads::Workload;

const USAGE: &str = "\
usage: tests/bench/run [OPTION..] [WORKLOAD..]

  --rounds N      how often each is built; the slow ones at most 3 times (default 5)
  --on DIR        where stores and workloads lie (default /dev/shm)
  --journaled     the same again on a journaled ext4 of our own
  --image DIR     where its image file lies (default /var/tmp)
  --alone         no peers
  --json FILE     where the figures go (default target/bench.json)

KEELWAY_BENCH_WORKLOADS may name a folder that holds the contexts, as make-workloads writes them.
";

/// Rounds of a workload that takes half a minute.
const SLOW_ROUNDS: usize = 3;

struct Asked {
    keelway: PathBuf,
    rounds: usize,
    on: PathBuf,
    journaled: bool,
    image: PathBuf,
    alone: bool,
    json: PathBuf,
    workloads: Vec<String>,
}

fn asked(mut args: impl Iterator<Item = String>) -> io::Result<Asked> {
    let wrong = |why: String| io::Error::new(io::ErrorKind::InvalidInput, format!("{why}\n\n{USAGE}"));
    let keelway = args.next().ok_or_else(|| wrong("the binary to measure is missing".into()))?.into();
    let mut asked = Asked {
        keelway,
        rounds: 5,
        on: "/dev/shm".into(),
        journaled: false,
        image: "/var/tmp".into(),
        alone: false,
        json: "target/bench.json".into(),
        workloads: Vec::new(),
    };
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| wrong(format!("{arg} needs a value")));
        match arg.as_str() {
            "--rounds" => {
                let rounds = value()?.parse().ok().filter(|n| *n > 0);
                asked.rounds = rounds.ok_or_else(|| wrong("--rounds: a number from 1".into()))?;
            }
            "--on" => asked.on = value()?.into(),
            "--journaled" => asked.journaled = true,
            "--image" => asked.image = value()?.into(),
            "--alone" => asked.alone = true,
            "--json" => asked.json = value()?.into(),
            name if workloads::ALL.iter().any(|w| w.name == name) => asked.workloads.push(arg),
            _ => return Err(wrong(format!("there is no workload or option {arg}"))),
        }
    }
    Ok(asked)
}

/// Builds one workload with every builder in turn.
fn workload(
    w: &Workload,
    place: &Place,
    asked: &Asked,
    builders: &[Builder],
    bases: &[BaseImage],
) -> io::Result<Vec<Row>> {
    let context = place.dir.join(w.name);
    match std::env::var_os("KEELWAY_BENCH_WORKLOADS") {
        Some(ready) => workloads::copy(&Path::new(&ready).join(w.name), &context)?,
        None => {
            fs::create_dir_all(&context)?;
            workloads::make(w.name, &context)?;
        }
    }
    let used: Vec<BaseImage> = bases.iter().filter(|(name, _)| w.bases.contains(name)).cloned().collect();
    let rounds = if w.slow { asked.rounds.min(SLOW_ROUNDS) } else { asked.rounds };
    let mut rows: Vec<Row> = Vec::new();
    let mut note = |case: &'static str, builder: Builder, figure: Figure| {
        let at = rows.iter().position(|r| r.case == case).unwrap_or_else(|| {
            let runs = if case == table::NOTHING_CACHED { w.runs } else { 0 };
            rows.push(Row::new(w.name, case, &place.name, runs));
            rows.len() - 1
        });
        rows[at].add(builder, figure);
    };
    for round in 0..rounds {
        for &builder in builders {
            let store = place.dir.join(format!("store-{}-{round}", builder.name()));
            builder.fresh(&asked.keelway, &store, &used)?;
            let build = || -> io::Result<Figure> {
                place.settle()?;
                builder.build(&asked.keelway, &store, &context)
            };
            note(table::NOTHING_CACHED, builder, build()?);
            note(table::ALL_CACHED, builder, build()?);
            if let Some(edit) = w.edit {
                fs::write(context.join(edit), format!("round {round} of {}\n", builder.name()))?;
                note(table::ONE_EDITED, builder, build()?);
            }
            builder.remove(&store)?;
        }
    }
    fs::remove_dir_all(&context)?;
    Ok(rows)
}

fn bench() -> io::Result<()> {
    let asked = asked(std::env::args().skip(1))?;
    places::own_mounts()?;
    let bases = [("busybox", base::oci_layout(Base::Busybox)?), ("debian", base::oci_layout(Base::Python)?)];
    let builders = if asked.alone { vec![Builder::Keelway] } else { Builder::installed() };
    let chosen = |w: &&Workload| asked.workloads.is_empty() || asked.workloads.iter().any(|n| n == w.name);
    let mut table = Table::new(&builders, &asked.keelway, asked.rounds)?;
    writeln!(io::stdout(), "{}", table.head())?;
    let mut places = vec![Place::folder(&asked.on)?];
    if asked.journaled {
        places.push(Place::journaled(&asked.image)?);
    }
    for w in workloads::ALL.iter().filter(chosen) {
        for place in &places {
            for row in workload(w, place, &asked, &builders, &bases)? {
                writeln!(io::stdout(), "{}", table.add(row))?;
            }
        }
    }
    for place in places {
        place.close()?;
    }
    fs::write(&asked.json, serde_json::to_vec_pretty(&table.json())?)?;
    writeln!(io::stdout(), "\n{}\nwritten to {}", table.foot(), asked.json.display())
}

fn main() -> ExitCode {
    let first = std::env::args_os().nth(1);
    let result = match first.as_ref().and_then(|a| a.to_str()) {
        Some(measure::ARGUMENT) => measure::main(std::env::args_os().skip(2)),
        _ if std::env::args().any(|a| a == "--help" || a == "-h") => {
            write!(io::stdout(), "{USAGE}").map(|()| ExitCode::SUCCESS)
        }
        _ => bench().map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|e| {
        let _ = writeln!(io::stderr(), "bench: {e}");
        ExitCode::FAILURE
    })
}
