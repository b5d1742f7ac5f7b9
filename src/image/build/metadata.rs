//! Values that only end up in the image's config: ports, signals, names that look like secrets.

/// The ports of one `EXPOSE` word: `80`, `80/udp`, `8000-8010`, with a published port before a `:` dropped.
pub(super) fn ports(word: &str) -> Result<Vec<String>, String> {
    let bad = || format!("{word:?} is not a port: write it as 80, 80/udp or 8000-8010/tcp");
    let (range, protocol) = word.rsplit_once('/').unwrap_or((word, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(bad());
    }
    let range = range.rsplit_once(':').map_or(range, |(_, inner)| inner);
    let (low, high) = range.split_once('-').unwrap_or((range, range));
    let number = |t: &str| {
        t.parse::<u16>().ok().filter(|n| *n > 0 && t.bytes().all(|b| b.is_ascii_digit())).ok_or_else(bad)
    };
    let (low, high) = (number(low)?, number(high)?);
    if low > high {
        return Err(bad());
    }
    Ok((low..=high).map(|p| format!("{p}/{protocol}")).collect())
}

/// Whether this names a signal, by number or by name with or without `SIG`.
pub(super) fn is_signal(text: &str) -> bool {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
        "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
        "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    if let Ok(n) = text.parse::<u32>() {
        return (1..=64).contains(&n);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |base: &str, sign: char, most: u32| {
        name.strip_prefix(base).is_some_and(|r| {
            r.is_empty()
                || r.strip_prefix(sign).and_then(|n| n.parse::<u32>().ok()).is_some_and(|n| n <= most)
        })
    };
    NAMES.contains(&name)
        || matches!(name, "CLD" | "IOT" | "POLL")
        || real_time("RTMIN", '+', 15)
        || real_time("RTMAX", '-', 14)
}

/// Whether a name says that its value is a secret (rule SecretsUsedInArgOrEnv): one of its words does, and none
/// says that it is none.
pub(super) fn looks_secret(name: &str) -> bool {
    const SECRET: [&str; 10] = [
        "apikey",
        "auth",
        "credential",
        "credentials",
        "key",
        "passwd",
        "password",
        "pword",
        "secret",
        "token",
    ];
    const HARMLESS: [&str; 3] = ["file", "public", "version"];
    let name = name.to_ascii_lowercase();
    let has = |words: &[&str]| name.split('_').any(|w| words.contains(&w));
    has(&SECRET) && !has(&HARMLESS)
}
