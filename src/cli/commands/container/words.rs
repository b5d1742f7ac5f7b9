//! How containers are put into words: ages, sizes, states, as people know them from docker.

use keelway_container::containers::{Look, Phase};
use keelway_container::record::Health;
use keelway_model::Timestamp;

/// The time between two moments, in one unit.
pub fn span(from: Timestamp, to: Timestamp) -> String {
    let seconds = to.0.saturating_sub(from.0).max(0) / 1000;
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match (seconds, minutes, hours) {
        (0, ..) => "Less than a second".into(),
        (1, ..) => "1 second".into(),
        (s, 0, _) => format!("{s} seconds"),
        (_, 1, _) => "About a minute".into(),
        (_, m, 0) => format!("{m} minutes"),
        (_, _, 1) => "About an hour".into(),
        (_, _, h) if h < 48 => format!("{h} hours"),
        (_, _, h) if h < 24 * 14 => format!("{} days", h / 24),
        (_, _, h) if h < 24 * 60 => format!("{} weeks", h / 24 / 7),
        (_, _, h) if h < 24 * 365 * 2 => format!("{} months", h / 24 / 30),
        (_, _, h) => format!("{} years", h / 24 / 365),
    }
}

/// The state, with what one wants to know of it.
pub fn status(look: &Look, now: Timestamp) -> String {
    let ended = |word: &str| match &look.end {
        Some(end) => format!("{word} ({}) {} ago", end.code, span(end.ended, now)),
        None => word.to_owned(),
    };
    match (look.phase, &look.run) {
        (Phase::Created, _) => "Created".into(),
        (Phase::Exited, _) => ended("Exited"),
        (Phase::Restarting, _) => ended("Restarting"),
        (Phase::Running, run) => {
            let up = run.as_ref().map_or_else(String::new, |r| format!(" {}", span(r.started, now)));
            let health = match look.health() {
                Some(Health::Starting) => " (health: starting)",
                Some(Health::Healthy) => " (healthy)",
                Some(Health::Unhealthy) => " (unhealthy)",
                None => "",
            };
            format!("Up{up}{health}")
        }
    }
}

/// One word for the state.
pub const fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Created => "created",
        Phase::Running => "running",
        Phase::Restarting => "restarting",
        Phase::Exited => "exited",
    }
}

/// A command, short and in quotes.
pub fn command(argv: &[String]) -> String {
    let whole = argv.join(" ");
    let short: String = whole.chars().take(20).collect();
    if short.len() == whole.len() {
        format!("\"{whole}\"")
    } else {
        format!("\"{}…\"", whole.chars().take(19).collect::<String>())
    }
}

/// A size in powers of 1024, four digits.
pub fn binary_size(bytes: u64) -> String {
    scaled(bytes, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB"])
}

/// A size in powers of 1000, as networks and disks are counted.
pub fn decimal_size(bytes: u64) -> String {
    scaled(bytes, 1000.0, &["B", "kB", "MB", "GB", "TB"])
}

fn scaled(bytes: u64, step: f64, units: &[&str]) -> String {
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= step && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    let text = match value {
        v if unit == 0 || v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    };
    format!("{text}{}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans() {
        let of = |seconds: i64| span(Timestamp(0), Timestamp::from_seconds(seconds));
        let wanted = [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (120, "2 minutes"),
            (3600, "About an hour"),
            (7200, "2 hours"),
            (86_400 * 2, "2 days"),
            (86_400 * 14, "2 weeks"),
            (86_400 * 90, "3 months"),
            (86_400 * 365 * 3, "3 years"),
        ];
        for (seconds, text) in wanted {
            assert_eq!(of(seconds), text);
        }
        // A clock that was set back.
        assert_eq!(of(-5), "Less than a second");
    }

    #[test]
    fn sizes_and_commands() {
        assert_eq!(binary_size(0), "0B");
        assert_eq!(binary_size(1_363_149), "1.30MiB");
        assert_eq!(decimal_size(1_060), "1.06kB");
        assert_eq!(decimal_size(123_400_000), "123MB");
        let words = |w: &[&str]| command(&w.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>());
        assert_eq!(words(&["sleep", "1000"]), "\"sleep 1000\"");
        assert_eq!(words(&["sh", "-c", "while true; do :; done"]), "\"sh -c while true; d…\"");
    }
}
