//! `limits`: what a sandbox may use.

use crate::codes;
use crate::walk::{Fields, Place, Walk};
use crate::yaml::Node;
use keelway_model::limits::Io;
use keelway_model::{Bytes, Limits};
use std::num::NonZero;

pub(crate) const STEPS: Place = Place {
    name: "limits",
    known: &["memory", "pids", "cpu", "disk", "files", "io", "open_files", "shm", "log"],
};
pub(crate) const REPLICA: Place = Place {
    name: "limits of a replica",
    known: &["memory", "pids", "cpu", "disk", "files", "io", "open_files", "shm"],
};
pub(crate) const IO: Place =
    Place { name: "io", known: &["read", "write", "read_ops", "write_ops", "weight"] };

const SIZE: &str = "write a size with its unit: 512M";
const MEBI: u64 = 1 << 20;

/// Whose.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// Of steps and of each RUN.
    Steps,
    /// Of each replica; its log is bounded by itself.
    Replica,
}

pub(crate) fn limits(w: &mut Walk<'_>, fields: Fields<'_>, whose: Whose) -> Option<Limits> {
    let Some(entry) = fields.get("limits") else { return Some(Limits::default()) };
    let hint = "write limits: {memory: 512M, pids: 200, cpu: 1.5}";
    let place = if whose == Whose::Steps { &STEPS } else { &REPLICA };
    let f = w.fields(&entry.value, entry.key_span, place, Some(hint))?;
    let memory = size(w, f, "memory", MEBI);
    let pids = f.value("pids").map_or(Some(None), |n| w.number(n, "`pids`", 1, 1_000_000).map(Some));
    let cpu = f.value("cpu").map_or(Some(None), |n| cpu(w, n).map(Some));
    let disk = size(w, f, "disk", MEBI);
    let files = f.value("files").map_or(Some(None), |n| w.number(n, "`files`", 1, u32::MAX).map(Some));
    let io = io(w, f);
    let open = f.value("open_files");
    let open_files = open.map_or(Some(None), |n| w.number(n, "`open_files`", 16, 524_288).map(Some));
    let shm = size(w, f, "shm", 64 << 10);
    let log = size(w, f, "log", 64 << 10);
    Some(Limits {
        memory: memory?,
        pids: pids?,
        cpu_millis: cpu?,
        disk: disk?,
        files: files?.map(u64::from),
        io: io?,
        open_files: open_files?,
        shm: shm?,
        log: log?,
    })
}

fn io(w: &mut Walk<'_>, fields: Fields<'_>) -> Option<Io> {
    let Some(entry) = fields.get("io") else { return Some(Io::default()) };
    let hint = "write io: {read: 50M, write: 20M}; both are for a second";
    let f = w.fields(&entry.value, entry.key_span, &IO, Some(hint))?;
    let mut ops =
        |key: &str, what: &str| f.value(key).map_or(Some(None), |n| w.number(n, what, 1, u32::MAX).map(Some));
    let (read_ops, write_ops) = (ops("read_ops", "`read_ops`"), ops("write_ops", "`write_ops`"));
    let (read, write) = (size(w, f, "read", 64 << 10), size(w, f, "write", 64 << 10));
    let weight = f.value("weight").map_or(Some(None), |n| {
        let weight = w.number(n, "`weight`", 1, 10_000)?;
        Some(u16::try_from(weight).ok().and_then(NonZero::new).map(NonZero::get))
    });
    Some(Io { read: read?, write: write?, read_ops: read_ops?, write_ops: write_ops?, weight: weight? })
}

/// A size that is not less than what makes sense.
fn size(w: &mut Walk<'_>, fields: Fields<'_>, key: &str, least: u64) -> Option<Option<Bytes>> {
    let Some(node) = fields.value(key) else { return Some(None) };
    let bytes: Bytes = w.parsed(node, &format!("`{key}`"))?;
    if bytes.0 >= least {
        return Some(Some(bytes));
    }
    let least = if least >= MEBI { format!("{}M", least >> 20) } else { format!("{}k", least >> 10) };
    w.error_hint(codes::BAD_VALUE, node.span, format!("`{key}` is at least {least}"), SIZE);
    None
}

/// `1.5` or `1500m`, as thousandths of a core.
fn cpu(w: &mut Walk<'_>, node: &Node) -> Option<u32> {
    let text = w.text(node, "`cpu`")?;
    let plain =
        |t: &str| !t.is_empty() && t.len() <= 10 && t.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let millis = match text.strip_suffix('m') {
        Some(t) if plain(t) => t.parse::<f64>().ok(),
        None if plain(text) => text.parse::<f64>().ok().map(|c| c * 1000.0),
        _ => None,
    };
    match millis {
        Some(m) if (10.0..=1_024_000.0).contains(&m) => Some(m.round() as u32),
        _ => {
            let shown: String = text.chars().take(40).collect();
            let message = format!("`cpu` is a number of cores from 0.01 to 1024, not {shown:?}");
            w.error_hint(
                codes::BAD_VALUE,
                node.span,
                message,
                "write 1.5 for one and a half cores, or 1500m",
            );
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use keelway_model::Bytes;
    use keelway_model::limits::Io;

    fn steps(limits: &str) -> Result<keelway_model::Limits, String> {
        let text = format!(
            "version: 1\nstages:\n  t:\n    image: busybox\n    limits: {limits}\n    steps: [{{name: a, run: 'true'}}]\n"
        );
        let definition = crate::parse_bytes("keelway.yml", text.as_bytes()).map_err(|d| d.to_string())?;
        match &definition.stages[0].kind {
            crate::Kind::Steps(steps) => Ok(steps.limits.clone()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_limit() {
        let all = "{memory: 1G, pids: 9, cpu: 2, disk: 5G, files: 1000, io: {read: 50M, write: 20M, read_ops: 500, \
                   write_ops: 100, weight: 50}, open_files: 4096, shm: 256M, log: 10M}";
        let limits = steps(all).unwrap();
        assert_eq!((limits.disk, limits.files), (Some(Bytes(5 << 30)), Some(1000)));
        let (read, write) = (Some(Bytes(50 << 20)), Some(Bytes(20 << 20)));
        assert_eq!(
            limits.io,
            Io { read, write, read_ops: Some(500), write_ops: Some(100), weight: Some(50) }
        );
        assert_eq!((limits.open_files, limits.shm), (Some(4096), Some(Bytes(256 << 20))));
        assert_eq!(limits.log, Some(Bytes(10 << 20)));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (limits, wanted) in [
            ("{disk: 10k}", "`disk` is at least 1M"),
            ("{log: 1k}", "`log` is at least 64k"),
            ("{files: 0}", "`files` is a whole number from 1"),
            ("{open_files: 3}", "`open_files` is a whole number from 16 to 524288"),
            ("{io: {weight: 10001}}", "`weight` is a whole number from 1 to 10000"),
            ("{io: {raed: 1M}}", "io has no key \"raed\""),
            ("{io: 50M}", "io: {read: 50M"),
        ] {
            let error = steps(limits).unwrap_err();
            assert!(error.contains(wanted), "{limits}: {error}");
        }
    }
}
