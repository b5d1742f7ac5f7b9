//! The benchmarks: the workloads of docs/performance.md, ours beside the peers that this machine has.
//!
//! `tests/bench/run [--rounds N] [--on DIR] [WORKLOAD..]`. Peers in turn (A B A B), medians, and the spread. Nothing here is a
//! test: no figure makes it fail.

mod workloads;

use keelway_tests::base::{self, Base};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use workloads::Workload;

/// Who builds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Builder {
    Keelway,
    Buildah,
}

impl Builder {
    const fn name(self) -> &'static str {
        match self {
            Self::Keelway => "keelway",
            Self::Buildah => "buildah",
        }
    }
    fn there(self) -> bool {
        self == Self::Keelway
            || Command::new("buildah").arg("--version").output().is_ok_and(|o| o.status.success())
    }
}

struct Bench {
    keelway: PathBuf,
    dir: PathBuf,
    rounds: usize,
    bases: [(&'static str, PathBuf); 2],
}

fn run(command: &mut Command) -> io::Result<Duration> {
    let begun = Instant::now();
    let out = command.stdin(Stdio::null()).output()?;
    let took = begun.elapsed();
    if out.status.success() {
        return Ok(took);
    }
    Err(io::Error::other(format!("{command:?}: {}\n{}", out.status, String::from_utf8_lossy(&out.stderr))))
}

impl Bench {
    /// A builder's store with the bases in it and nothing cached.
    fn fresh(&self, builder: Builder, round: usize) -> io::Result<PathBuf> {
        let store = self.dir.join(format!("store-{}-{round}", builder.name()));
        fs::create_dir_all(&store)?;
        for (name, layout) in &self.bases {
            let layout = layout.to_str().expect("the cache path is UTF-8");
            match builder {
                Builder::Keelway => run(self.command(builder, &store).args(["image", "load", layout, name])),
                Builder::Buildah => {
                    run(self.command(builder, &store).args(["pull", "-q", &format!("oci:{layout}:latest")]))
                        .and_then(|_| {
                            let out = self
                                .command(builder, &store)
                                .args(["images", "-q", "--no-trunc"])
                                .output()?;
                            let id = String::from_utf8_lossy(&out.stdout)
                                .lines()
                                .next()
                                .unwrap_or_default()
                                .to_owned();
                            run(self.command(builder, &store).args(["tag", &id, name]))
                        })
                }
            }?;
        }
        Ok(store)
    }

    fn command(&self, builder: Builder, store: &Path) -> Command {
        let store = store.to_str().expect("the store's path is UTF-8");
        match builder {
            Builder::Keelway => {
                let mut c = Command::new(&self.keelway);
                c.args(["--state", store, "--quiet"]);
                c
            }
            Builder::Buildah => {
                let mut c = Command::new("buildah");
                c.args([
                    "--root",
                    &format!("{store}/root"),
                    "--runroot",
                    &format!("{store}/run"),
                    "--storage-driver",
                    "overlay",
                ]);
                c
            }
        }
    }

    fn build(&self, builder: Builder, store: &Path, context: &Path) -> io::Result<Duration> {
        let mut c = self.command(builder, store);
        match builder {
            Builder::Keelway => c.args(["image", "build", "-t", "bench/result:1"]).arg(context),
            Builder::Buildah => c
                .args([
                    "build",
                    "--layers",
                    "--runtime",
                    "runc",
                    "--network",
                    "host",
                    "--jobs",
                    "2",
                    "-q",
                    "-t",
                    "bench/result:1",
                ])
                .arg(context),
        };
        run(&mut c)
    }

    fn workload(
        &self,
        w: &Workload,
        builders: &[Builder],
        report: &mut Vec<serde_json::Value>,
    ) -> io::Result<()> {
        let context = self.dir.join(w.name);
        fs::create_dir_all(&context)?;
        workloads::make(w.name, &context)?;
        let mut times: Vec<(Builder, &'static str, Vec<Duration>)> = Vec::new();
        let mut note = |b: Builder, what: &'static str, t: Duration| match times
            .iter_mut()
            .find(|(tb, tw, _)| *tb == b && *tw == what)
        {
            Some((_, _, list)) => list.push(t),
            None => times.push((b, what, vec![t])),
        };
        for round in 0..self.rounds {
            for &builder in builders {
                let store = self.fresh(builder, round)?;
                note(builder, "nothing cached", self.build(builder, &store, &context)?);
                note(builder, "all cached", self.build(builder, &store, &context)?);
                if let Some(edit) = w.edit {
                    let file = context.join(edit);
                    fs::write(&file, format!("round {round} of {}\n", builder.name()))?;
                    note(builder, "one file edited", self.build(builder, &store, &context)?);
                }
                let _ = Command::new("umount").arg(store.join("root/overlay")).stderr(Stdio::null()).status();
                fs::remove_dir_all(&store)?;
            }
        }
        fs::remove_dir_all(&context)?;
        for (builder, what, mut list) in times {
            list.sort();
            let (median, least, most) = (list[list.len() / 2], list[0], list[list.len() - 1]);
            let per_run = (w.runs > 0 && what == "nothing cached")
                .then(|| format!(" ({:.1} ms a RUN)", median.as_secs_f64() * 1e3 / f64::from(w.runs)));
            let ms = |d: Duration| d.as_secs_f64() * 1e3;
            writeln!(
                io::stdout(),
                "| {} | {what} | {} | {:.0} ms{} | {:.0} to {:.0} |",
                w.name,
                builder.name(),
                ms(median),
                per_run.unwrap_or_default(),
                ms(least),
                ms(most)
            )?;
            report.push(serde_json::json!({"workload": w.name, "case": what, "builder": builder.name(), "median_ms": ms(median), "least_ms": ms(least), "most_ms": ms(most)}));
        }
        Ok(())
    }
}

fn file_system(dir: &Path) -> String {
    let out = Command::new("stat").args(["-f", "-c", "%T"]).arg(dir).output();
    out.map_or_else(|_| "?".into(), |o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
}

fn bench() -> io::Result<()> {
    let mut args = std::env::args().skip(1);
    let keelway =
        PathBuf::from(args.next().ok_or_else(|| {
            io::Error::other("usage: tests/bench/run [--rounds N] [--on DIR] [WORKLOAD..]")
        })?);
    let (mut rounds, mut on, mut names) = (5, PathBuf::from("/dev/shm"), Vec::new());
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| io::Error::other(format!("{arg} needs a value")));
        match arg.as_str() {
            "--rounds" => rounds = value()?.parse().map_err(io::Error::other)?,
            "--on" => on = value()?.into(),
            _ => names.push(arg),
        }
    }
    let dir = tempfile::Builder::new().prefix("keelway-bench-").tempdir_in(&on)?;
    let bases = [("busybox", base::oci_layout(Base::Busybox)?), ("debian", base::oci_layout(Base::Python)?)];
    let bench = Bench { keelway, dir: dir.path().to_owned(), rounds, bases };
    let builders: Vec<Builder> =
        [Builder::Keelway, Builder::Buildah].into_iter().filter(|b| b.there()).collect();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    writeln!(io::stdout(), "kernel {}, stores on {}, {rounds} rounds\n", kernel.trim(), file_system(&on))?;
    writeln!(io::stdout(), "| workload | case | builder | median | spread |\n|---|---|---|---|---|")?;
    let mut report = Vec::new();
    for w in workloads::ALL.iter().filter(|w| names.is_empty() || names.iter().any(|n| n == w.name)) {
        bench.workload(w, &builders, &mut report)?;
    }
    let json = serde_json::json!({"kernel": kernel.trim(), "file_system": file_system(&on), "rounds": rounds, "figures": report});
    fs::write("target/bench.json", serde_json::to_vec_pretty(&json)?)
}

fn main() -> std::process::ExitCode {
    match bench() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(io::stderr(), "bench: {e}");
            std::process::ExitCode::FAILURE
        }
    }
}
