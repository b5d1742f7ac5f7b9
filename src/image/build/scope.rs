//! Build arguments: the global scope, and what is predefined.

use super::BuildOptions;
use super::budget::Budget;
use keelway_dockerfile::{Dockerfile, Kind, expand};
use keelway_model::{Diagnostic, Diagnostics, Platform};
use std::collections::BTreeMap;

/// Variables that RUN sees without an ARG, in both cases; no part of keys or history unless declared.
const PROXIES: [&str; 5] = ["HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"];

/// Whether this is one of the predefined proxy variables.
pub(super) fn is_proxy(name: &str) -> bool {
    PROXIES.iter().any(|p| *p == name || p.to_lowercase() == name)
}

/// Variables of the reference that are settings of its scanner, and never set.
pub(super) fn is_scanner_setting(name: &str) -> bool {
    matches!(name, "BUILDKIT_SBOM_SCAN_CONTEXT" | "BUILDKIT_SBOM_SCAN_STAGE")
}

/// Arguments that a builder takes for itself.
pub(super) fn is_builtin(name: &str) -> bool {
    name.starts_with("BUILDKIT_") || name == "SOURCE_DATE_EPOCH"
}

/// The scope before the first `FROM`: platform arguments, then the file's own.
#[derive(Debug, Clone)]
pub(super) struct Globals {
    pub(super) values: BTreeMap<String, String>,
}

impl Globals {
    pub(super) fn new(
        file: &Dockerfile,
        options: &BuildOptions,
        target: usize,
        found: &mut Diagnostics,
    ) -> Self {
        let mut values = BTreeMap::new();
        platform(&mut values, "TARGET", &options.platform);
        platform(&mut values, "BUILD", &Platform::host());
        let stage = file.stages.get(target).and_then(|s| s.name.as_ref());
        values
            .insert("TARGETSTAGE".to_owned(), stage.map_or_else(|| "default".to_owned(), |n| n.text.clone()));
        for (name, value) in values.iter_mut() {
            if let Some(given) = options.args.get(name) {
                value.clone_from(given);
            }
        }
        let budget = Budget::new();
        for instruction in &file.globals {
            let Kind::Arg(arguments) = &instruction.kind else { continue };
            if budget.is_used_up() {
                break;
            }
            for argument in arguments {
                let value = match (options.args.get(&argument.name.text), &argument.default) {
                    (Some(given), _) => Ok(Some(given.clone())),
                    (None, Some(default)) => expand(&default.text, &values, file.escape).map(Some),
                    (None, None) => Ok(None),
                };
                let value = value.map_err(|e| e.to_string()).and_then(|v| {
                    budget.charge(v.as_ref().map_or(0, String::len)).map_err(|e| e.to_string())?;
                    Ok(v)
                });
                match value {
                    Ok(Some(value)) => _ = values.insert(argument.name.text.clone(), value),
                    Ok(None) => {}
                    Err(e) => {
                        found.push(Diagnostic::error("D0204", &file.source.name, argument.name.span, e))
                    }
                }
            }
        }
        Self { values }
    }
}

fn platform(values: &mut BTreeMap<String, String>, side: &str, p: &Platform) {
    values.insert(format!("{side}PLATFORM"), p.to_string());
    values.insert(format!("{side}OS"), p.os.clone());
    values.insert(format!("{side}ARCH"), p.architecture.clone());
    values.insert(format!("{side}VARIANT"), p.variant.clone().unwrap_or_default());
    values.insert(format!("{side}OSVERSION"), String::new());
}
