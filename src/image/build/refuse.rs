//! What is valid in a Dockerfile and not executed yet: refused before anything runs, by line and name.

use super::Located;
use crate::fetch;
use keelway_dockerfile::{Kind, Run, Transfer, Word};
use keelway_model::plan::Grant;
use keelway_model::{Diagnostics, Span};
use std::collections::BTreeSet;

/// Puts an error for each thing in the instruction that cannot be executed.
pub(super) fn unsupported(located: &Located, allow: &BTreeSet<Grant>, found: &mut Diagnostics) {
    if let Kind::Run(run) = &located.instruction.kind
        && let Some(network) = run.network.as_ref().filter(|n| n.text == "host")
        && !allow.contains(&Grant::HostNetwork)
    {
        let message =
            "RUN --network=host is not allowed here; who runs the build allows it with --allow host-network";
        found.push(located.error("D0208", network.span, message));
    }
    let mut no = |span: Span, what: String| {
        found.push(located.error("D0201", span, format!("{what} is not supported yet")));
    };
    match &located.instruction.kind {
        Kind::Run(run) => run_flags(run, &mut no),
        Kind::Copy(t) => transfer_flags("COPY", t, &mut no),
        Kind::Add(t) => transfer_flags("ADD", t, &mut no),
        // The trigger does not run here; the stage that stands on this one refuses it.
        _ => {}
    }
}

fn run_flags(run: &Run, no: &mut dyn FnMut(Span, String)) {
    let known = |n: &&Word| matches!(n.text.as_str(), "default" | "none" | "host");
    if let Some(network) = run.network.as_ref().filter(|n| !known(n)) {
        no(network.span, format!("RUN --network={}", network.text));
    }
    if let Some(security) = run.security.as_ref().filter(|s| s.text != "sandbox") {
        no(security.span, format!("RUN --security={}", security.text));
    }
    for device in &run.devices {
        no(device.span, "RUN --device".to_owned());
    }
}

fn transfer_flags(name: &str, t: &Transfer, no: &mut dyn FnMut(Span, String)) {
    if name == "ADD" {
        for source in &t.sources {
            if let Some(what) = unfetched(&source.text) {
                no(source.span, what);
            }
        }
    }
}

/// What a source of `ADD` is called that is neither a path nor fetched.
pub(super) fn unfetched(source: &str) -> Option<String> {
    match fetch::kind(source) {
        fetch::Kind::Path | fetch::Kind::File | fetch::Kind::Git => None,
        fetch::Kind::Other => Some(format!("ADD of the address {source:?}")),
    }
}
