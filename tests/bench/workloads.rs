//! The workloads: build contexts of pseudo-random content from a fixed seed, so two machines write the same bytes.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

/// One workload.
pub struct Workload {
    /// Its name in the table and its folder.
    pub name: &'static str,
    /// A file whose edit makes the `edited` column; none where there is none.
    pub edit: Option<&'static str>,
    /// RUN steps that follow each other, for the figure per RUN; 0 where that says nothing.
    pub runs: u32,
    /// The bases it stands on.
    pub bases: &'static [&'static str],
    /// Takes long enough that a few rounds must do.
    pub slow: bool,
}

/// All of them, in the order of the table.
pub const ALL: [Workload; 5] = [
    Workload { name: "runs20", edit: None, runs: 20, bases: &["busybox"], slow: false },
    Workload { name: "app", edit: Some("src/f7.txt"), runs: 0, bases: &["busybox", "debian"], slow: false },
    Workload { name: "parallel8", edit: None, runs: 0, bases: &["busybox"], slow: false },
    Workload { name: "many50k", edit: None, runs: 0, bases: &[], slow: true },
    Workload { name: "big1g", edit: None, runs: 0, bases: &[], slow: true },
];

/// xorshift64*: small, and the same everywhere.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    fn bytes(&mut self, n: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(n + 8);
        while out.len() < n {
            out.extend_from_slice(&self.next().to_le_bytes());
        }
        out.truncate(n);
        out
    }
    /// Roughly normal: the sum of twelve uniform numbers less six.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.below(1 << 32) as f64 / (1u64 << 32) as f64).sum::<f64>() - 6.0
    }
}

fn write(path: &Path, data: &[u8]) -> io::Result<()> {
    fs::create_dir_all(path.parent().expect("a file has a folder"))?;
    fs::write(path, data)
}

fn dockerfile(dir: &Path, lines: &[String]) -> io::Result<()> {
    write(&dir.join("Dockerfile"), (lines.join("\n") + "\n").as_bytes())
}

/// Copies a context that is there already.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let status = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other(format!("cp -a {}: {status}", from.display())))
    }
}

/// Writes one workload into `dir`. The bases are called `busybox` and `debian`.
pub fn make(name: &str, dir: &Path) -> io::Result<()> {
    let mut rng = Rng(0x9E37_79B9_7F4A_7C15);
    match name {
        "runs20" => {
            let runs = (1..=20).map(|i| format!("RUN echo {i} > /f{i}"));
            dockerfile(dir, &std::iter::once("FROM busybox".to_owned()).chain(runs).collect::<Vec<_>>())
        }
        "app" => app(dir, &mut rng),
        "parallel8" => {
            let mut lines = Vec::new();
            for i in 1..=8 {
                lines.push(format!("FROM busybox AS s{i}"));
                lines.push(format!("RUN sleep 1; echo {i} > /o{i}"));
            }
            lines.push("FROM busybox".into());
            lines.extend((1..=8).map(|i| format!("COPY --from=s{i} /o{i} /o{i}")));
            dockerfile(dir, &lines)
        }
        "many50k" => many(dir, &mut rng),
        "big1g" => {
            let pool = pool(&mut rng);
            let mut file = io::BufWriter::new(fs::File::create(dir.join("blob.bin"))?);
            for _ in 0..256 {
                let at = rng.below(pool.len() as u64 - 2_097_152) as usize;
                file.write_all(&pool[at..at + 2_097_152])?;
                file.write_all(&rng.bytes(2_097_152))?;
            }
            file.flush()?;
            dockerfile(dir, &["FROM scratch".into(), "COPY blob.bin /blob.bin".into()])
        }
        other => Err(io::Error::other(format!("no workload {other}"))),
    }
}

fn app(dir: &Path, rng: &mut Rng) -> io::Result<()> {
    for i in 1..=400 {
        let text: String = rng.bytes(8192).iter().map(|b| format!("{b:02x}")).collect();
        write(&dir.join(format!("src/f{i}.txt")), text.as_bytes())?;
    }
    write(&dir.join("asset.bin"), &rng.bytes(40_000_000))?;
    let lines = [
        "FROM debian AS build",
        "ENV LANG=C.UTF-8",
        "RUN mkdir -p /opt/tools && cp -r /usr/share/perl* /opt/tools/",
        "RUN cp -r /usr/bin /opt/tools/bin",
        "WORKDIR /app",
        "COPY asset.bin ./",
        "COPY src ./src",
        "RUN cat src/* | sha256sum > out.txt",
        "FROM busybox",
        "COPY --from=build /app/out.txt /out.txt",
        "COPY --from=build /opt/tools/bin /bin2",
        "CMD [\"cat\", \"/out.txt\"]",
    ];
    dockerfile(dir, &lines.map(str::to_owned))
}

/// Text-like content that compresses about three to one.
fn pool(rng: &mut Rng) -> Vec<u8> {
    const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz_(){};";
    let words: Vec<Vec<u8>> = (0..4000)
        .map(|_| (0..2 + rng.below(11)).map(|_| LETTERS[rng.below(LETTERS.len() as u64) as usize]).collect())
        .collect();
    let mut out = Vec::new();
    for _ in 0..1_500_000 {
        out.extend_from_slice(&words[rng.below(4000) as usize]);
        out.push(b' ');
    }
    out
}

/// 200 folders of 250 files, sizes log-normal around 5.4 KB.
fn many(dir: &Path, rng: &mut Rng) -> io::Result<()> {
    let pool = pool(rng);
    for d in 0..200 {
        fs::create_dir_all(dir.join(format!("tree/d{d}")))?;
        for f in 0..250 {
            let size = ((8.6 + 1.3 * rng.normal()).exp() as usize).min(pool.len() - 1);
            let at = rng.below((pool.len() - size) as u64) as usize;
            fs::write(dir.join(format!("tree/d{d}/f{f}")), &pool[at..at + size])?;
        }
    }
    dockerfile(dir, &["FROM scratch".into(), "COPY tree /tree".into()])
}
