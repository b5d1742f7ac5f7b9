//! The rules of `docs/architecture.md`, checked on the tree itself.

#![allow(clippy::unwrap_used, reason = "a test: whatever is missing here is a failure")]

use cargo_metadata::DependencyKind;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is below the top").to_path_buf()
}

fn rust_files(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path.file_name().is_some_and(|n| n != "target") {
                rust_files(&path, out);
            }
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// Every Rust file below `src` and `tests`, with its path from the top.
fn sources() -> Vec<(String, String)> {
    let mut files = Vec::new();
    for dir in ["src", "tests"] {
        rust_files(&top().join(dir), &mut files);
    }
    files.sort();
    assert!(files.len() > 20, "the walk found only {} files", files.len());
    files
        .into_iter()
        .map(|p| {
            (p.strip_prefix(top()).unwrap().to_str().unwrap().to_owned(), fs::read_to_string(&p).unwrap())
        })
        .collect()
}

/// Lines that are code: no comment lines, and no item that is only there in tests.
fn product_lines(text: &str) -> Vec<(usize, &str)> {
    let indent = |l: &str| l.len() - l.trim_start().len();
    let mut out = Vec::new();
    let mut lines = text.lines().enumerate().map(|(i, l)| (i + 1, l));
    while let Some((n, line)) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            if !line.trim_start().starts_with("//") {
                out.push((n, line));
            }
            continue;
        }
        // As rustfmt writes it, an item ends on its first line, or with a brace as far to the right as it began.
        let Some((_, first)) = lines.find(|(_, l)| !l.trim_start().starts_with("#[")) else { break };
        if !first.ends_with([';', ',', '}']) {
            lines.find(|(_, l)| indent(l) == indent(first) && l.trim_start().starts_with('}'));
        }
    }
    out
}

#[test]
fn only_items_of_tests_are_passed_over() {
    let text = "use a;\n#[cfg(test)]\nmod tests;\nfn b() {\n    c();\n}\n// note\n    #[cfg(test)]\n    \
                #[allow(x)]\n    fn d() {\n        if e {\n        }\n    }\n    f();\n#[cfg(test)]\nmod g {\n}\nh();\n";
    let left: Vec<&str> = product_lines(text).into_iter().map(|(_, l)| l.trim()).collect();
    assert_eq!(left, ["use a;", "fn b() {", "c();", "}", "f();", "h();"]);
    assert_eq!(product_lines(text).last(), Some(&(18, "h();")));
}

fn is_test_file(path: &str) -> bool {
    path.starts_with("tests/")
        || path.contains("/tests/")
        || path.ends_with("/tests.rs")
        || path.ends_with("_tests.rs")
        || path.contains("/examples/")
}

fn fail_with(broken: Vec<String>) {
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

/// `level | crate | .. | uses` rows of the table in docs/architecture.md.
fn table() -> BTreeMap<String, (u32, BTreeSet<String>)> {
    let text = fs::read_to_string(top().join("docs/architecture.md")).unwrap();
    text.lines()
        .filter_map(|l| {
            let cells: Vec<&str> = l.trim_matches('|').split('|').map(str::trim).collect();
            let level = cells[0].parse().ok()?;
            (cells.len() == 4).then(|| {
                (cells[1].to_owned(), (level, cells[3].split_whitespace().map(str::to_owned).collect()))
            })
        })
        .collect()
}

fn packages() -> Vec<cargo_metadata::Package> {
    let mut command = cargo_metadata::MetadataCommand::new();
    command.manifest_path(top().join("Cargo.toml")).no_deps().exec().unwrap().packages
}

#[test]
fn crates_use_exactly_what_the_table_says() {
    let table = table();
    let mut broken = Vec::new();
    let mut seen = BTreeSet::new();
    for package in packages() {
        let Some(name) = package.name.strip_prefix("keelway-").filter(|n| *n != "tests") else { continue };
        seen.insert(name.to_owned());
        let Some((level, uses)) = table.get(name) else {
            broken.push(format!("{name}: not in the table"));
            continue;
        };
        let normal = package.dependencies.iter().filter(|d| d.kind == DependencyKind::Normal);
        let used: BTreeSet<String> =
            normal.filter_map(|d| d.name.strip_prefix("keelway-")).map(str::to_owned).collect();
        broken.extend(
            used.difference(uses).map(|o| format!("{name} uses {o}, which the table does not allow")),
        );
        broken.extend(uses.difference(&used).map(|o| format!("{name} does not use {o}, as the table says")));
        broken.extend(
            used.iter()
                .filter(|o| table.get(*o).is_some_and(|(l, _)| l >= level))
                .map(|o| format!("{name} (level {level}) uses {o}, which is not lower")),
        );
    }
    broken.extend(
        table.keys().filter(|n| !seen.contains(*n)).map(|n| format!("{n}: in the table, but no such crate")),
    );
    fail_with(broken);
}

/// Whether a line names an identifier.
fn names(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == word)
}

#[test]
fn every_declared_dependency_is_used() {
    let sources = sources();
    let mut broken = Vec::new();
    for package in packages() {
        let folder = |path: &Path| {
            let path = path.canonicalize().unwrap();
            format!("{}/", path.parent().unwrap().strip_prefix(top()).unwrap().to_str().unwrap())
        };
        // Its own folder, and where its targets lie: the end-to-end tests are a target of cli.
        let mut folders: BTreeSet<String> =
            package.targets.iter().map(|t| folder(t.src_path.as_std_path())).collect();
        folders.insert(folder(package.manifest_path.as_std_path()));
        let own: Vec<&(String, String)> =
            sources.iter().filter(|(path, _)| folders.iter().any(|f| path.starts_with(f))).collect();
        for dep in &package.dependencies {
            let word = dep.rename.as_ref().unwrap_or(&dep.name).replace('-', "_");
            let product_only = dep.kind == DependencyKind::Normal && *package.name != "keelway-tests";
            let used = own.iter().any(|(path, text)| {
                if product_only {
                    !is_test_file(path) && product_lines(text).iter().any(|(_, l)| names(l, &word))
                } else {
                    text.lines().any(|l| !l.trim_start().starts_with("//") && names(l, &word))
                }
            });
            if !used {
                let whose = if product_only { "its product" } else { "its tests" };
                broken
                    .push(format!("{}: {} is declared, but {whose} never names it", package.name, dep.name));
            }
        }
    }
    fail_with(broken);
}

#[test]
fn every_file_says_what_it_is_for_and_stays_readable() {
    let mut broken = Vec::new();
    for (path, text) in sources() {
        if !text.starts_with("//!") {
            broken.push(format!("{path}: does not open with //!"));
        }
        let lines = text.lines().count();
        if lines > 800 {
            broken.push(format!("{path}: {lines} lines; 800 is the end, 600 asks to be two files"));
        }
    }
    fail_with(broken);
}

#[test]
fn unsafe_code_is_only_in_the_sandbox() {
    let mut broken = Vec::new();
    for (path, text) in sources() {
        let unsafe_lines = text.lines().enumerate().filter(|(_, l)| {
            !l.trim_start().starts_with("//")
                && l.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == "unsafe")
        });
        for (i, line) in unsafe_lines {
            if !path.starts_with("src/sandbox/") && path != "tests/tidy.rs" {
                broken.push(format!("{path}:{}: {}", i + 1, line.trim()));
            }
        }
    }
    fail_with(broken);
}

#[test]
fn only_cli_prints_exits_and_reads_the_environment() {
    const BANNED: [&str; 9] = [
        "println!(",
        "eprintln!(",
        "print!(",
        "eprint!(",
        "process::exit(",
        "env::var(",
        "env::var_os(",
        "env::vars(",
        "env::vars_os(",
    ];
    let mut broken = Vec::new();
    for (path, text) in sources() {
        if is_test_file(&path) || path.starts_with("src/cli/") || path.starts_with("src/sandbox/init") {
            continue;
        }
        for (n, line) in product_lines(&text) {
            if BANNED.iter().any(|b| line.contains(b)) {
                broken.push(format!("{path}:{n}: {}", line.trim()));
            }
        }
    }
    fail_with(broken);
}

#[test]
fn the_top_level_shows_the_layout_and_nothing_else() {
    let allowed: BTreeSet<&str> = [
        "Cargo.toml",
        "Cargo.lock",
        "src",
        "pipelines",
        "runners",
        "examples",
        "tests",
        "docs",
        "README.md",
        "LICENSE",
        "rust-toolchain.toml",
        "target",
    ]
    .into();
    let extra: Vec<String> = fs::read_dir(top())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| !n.starts_with('.') && !allowed.contains(n.as_str()))
        .collect();
    fail_with(extra);
}

#[test]
fn the_documented_exit_codes_are_the_ones_in_the_code() {
    let rows = |text: &str| -> Vec<String> {
        text.lines()
            .filter(|l| l.starts_with("| ") && l.as_bytes()[2].is_ascii_digit())
            .map(str::to_owned)
            .collect()
    };
    let documented = rows(&fs::read_to_string(top().join("docs/exit-codes.md")).unwrap());
    let coded: Vec<String> =
        keelway_model::ExitCode::ALL.iter().map(|c| format!("| {} | {} |", c.code(), c.meaning())).collect();
    assert_eq!(documented, coded);
}

#[test]
fn no_test_is_ignored_and_nothing_is_left_to_do() {
    let ignored = ["#[", "ignore"].concat();
    let later = [["to", "do!("].concat(), ["unimpl", "emented!("].concat()];
    let mut broken = Vec::new();
    for (path, text) in sources() {
        for (i, line) in text.lines().enumerate() {
            if line.trim_start().starts_with(&ignored) || later.iter().any(|l| line.contains(l.as_str())) {
                broken.push(format!("{path}:{}: {}", i + 1, line.trim()));
            }
        }
    }
    fail_with(broken);
}

#[test]
fn a_failing_property_test_writes_no_file() {
    // What it would write is a folder beside the crates, which cargo then takes for one of them.
    let (begin, none) = (["propt", "est!"].concat(), "failure_persistence: None");
    let mut broken = Vec::new();
    for (path, text) in sources() {
        let tests = text.lines().filter(|l| l.trim_start().starts_with(&begin)).count();
        if text.matches(none).count() < tests {
            broken.push(format!("{path}: a {begin} without {none}"));
        }
    }
    fail_with(broken);
}

#[test]
fn every_code_of_a_dockerfile_diagnostic_is_explained() {
    let codes = |text: &str| -> BTreeSet<String> {
        let quoted = text.split('"').filter(|w| w.len() == 5 && w.starts_with('D'));
        quoted.filter(|w| w[1..].bytes().all(|b| b.is_ascii_digit())).map(str::to_owned).collect()
    };
    let (mut used, mut explained) = (BTreeSet::new(), BTreeSet::new());
    for (path, text) in sources() {
        let product: String = product_lines(&text).into_iter().flat_map(|(_, l)| [l, "\n"]).collect();
        if path == "src/dockerfile/codes.rs" {
            explained = codes(&product);
        } else if path.starts_with("src/") && !is_test_file(&path) {
            used.extend(codes(&product));
        }
    }
    assert!(used.len() > 20, "{used:?}");
    assert_eq!(explained, used);
}
