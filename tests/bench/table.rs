//! The table: one row a workload, case and file system; a column group a builder; and the same as JSON.

use crate::builders::Builder;
use crate::measure::Figure;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

/// The store has the bases and nothing else.
pub const NOTHING_CACHED: &str = "nothing cached";
/// The same build again.
pub const ALL_CACHED: &str = "all cached";
/// And again after one file of the context was changed.
pub const ONE_EDITED: &str = "one file edited";

/// The figures of one workload in one case on one file system.
pub struct Row {
    workload: &'static str,
    pub case: &'static str,
    place: String,
    runs: u32,
    figures: Vec<(Builder, Vec<Figure>)>,
}

/// What all rounds of one builder come to.
struct Summary {
    median: Duration,
    least: Duration,
    most: Duration,
    /// Bytes; the largest of all rounds.
    peak: u64,
    rounds: usize,
}

impl Summary {
    fn of(figures: &[Figure]) -> Self {
        let mut walls: Vec<Duration> = figures.iter().map(|f| f.wall).collect();
        walls.sort();
        let n = walls.len();
        Self {
            median: (walls[(n - 1) / 2] + walls[n / 2]) / 2,
            least: walls[0],
            most: walls[n - 1],
            peak: figures.iter().map(|f| f.peak).max().unwrap_or(0),
            rounds: n,
        }
    }
}

fn ms(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

impl Row {
    pub fn new(workload: &'static str, case: &'static str, place: &str, runs: u32) -> Self {
        Self { workload, case, place: place.to_owned(), runs, figures: Vec::new() }
    }

    pub fn add(&mut self, builder: Builder, figure: Figure) {
        match self.figures.iter_mut().find(|(b, _)| *b == builder) {
            Some((_, list)) => list.push(figure),
            None => self.figures.push((builder, vec![figure])),
        }
    }

    fn summary(&self, builder: Builder) -> Option<Summary> {
        self.figures.iter().find(|(b, _)| *b == builder).map(|(_, list)| Summary::of(list))
    }
}

/// All rows, and where and how they were measured.
pub struct Table {
    builders: Vec<Builder>,
    described: Vec<String>,
    kernel: String,
    cores: usize,
    load: String,
    rounds: usize,
    rows: Vec<Row>,
}

fn load() -> io::Result<String> {
    let text = fs::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').take(3).collect::<Vec<_>>().join(" "))
}

impl Table {
    pub fn new(builders: &[Builder], keelway: &Path, rounds: usize) -> io::Result<Self> {
        Ok(Self {
            builders: builders.to_vec(),
            described: builders.iter().map(|b| b.described(keelway)).collect(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            load: load()?,
            rounds,
            rows: Vec::new(),
        })
    }

    /// The conditions and the head.
    pub fn head(&self) -> String {
        let mut out = format!(
            "kernel {}, {} cores, {} rounds, load at the start {}\n{}\n\n| workload | case | store on |",
            self.kernel,
            self.cores,
            self.rounds,
            self.load,
            self.described.join("\n"),
        );
        for b in &self.builders {
            out += &format!(" {} | spread | peak |", b.name());
        }
        if self.builders.len() > 1 {
            out += " ratio |";
        }
        out += "\n|---|---|---|";
        out += &"---|---|---|".repeat(self.builders.len());
        if self.builders.len() > 1 {
            out += "---|";
        }
        out
    }

    /// Takes a row and gives it as text.
    pub fn add(&mut self, row: Row) -> String {
        let mut out = format!("| {} | {} | {} |", row.workload, row.case, row.place);
        for b in &self.builders {
            let Some(s) = row.summary(*b) else { continue };
            let per_run = match row.runs {
                0 => String::new(),
                n => format!(" ({:.1} a RUN)", ms(s.median) / f64::from(n)),
            };
            out += &format!(
                " {:.0} ms{per_run} | {:.0} to {:.0} | {:.0} MiB |",
                ms(s.median),
                ms(s.least),
                ms(s.most),
                mib(s.peak)
            );
        }
        if let [ours, peer] = self.builders[..]
            && let (Some(ours), Some(peer)) = (row.summary(ours), row.summary(peer))
        {
            out += &format!(" {:.2} |", ours.median.as_secs_f64() / peer.median.as_secs_f64());
        }
        self.rows.push(row);
        out
    }

    /// What the columns mean.
    pub fn foot(&self) -> String {
        let load = load().unwrap_or_default();
        format!(
            "median of the rounds; spread from the least to the most; peak is the largest resident memory of one \
             process; ratio is ours to the peer's; load at the end {load}"
        )
    }

    /// The same for machines; times in milliseconds, memory in bytes.
    pub fn json(&self) -> serde_json::Value {
        let mut figures = Vec::new();
        for row in &self.rows {
            for b in &self.builders {
                let Some(s) = row.summary(*b) else { continue };
                let per_run = (row.runs > 0).then(|| ms(s.median) / f64::from(row.runs));
                figures.push(serde_json::json!({
                    "workload": row.workload, "case": row.case, "file_system": row.place, "builder": b.name(),
                    "rounds": s.rounds, "median_ms": ms(s.median), "least_ms": ms(s.least), "most_ms": ms(s.most),
                    "median_ms_per_run": per_run, "peak_bytes": s.peak,
                }));
            }
        }
        serde_json::json!({
            "kernel": self.kernel, "cores": self.cores, "builders": self.described,
            "load_at_start": self.load, "load_at_end": load().unwrap_or_default(), "figures": figures,
        })
    }
}
