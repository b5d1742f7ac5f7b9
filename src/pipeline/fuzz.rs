//! Entries for fuzzing: each takes any bytes and must return, quickly.

use crate::{Event, Selection, Trigger};

/// A pipeline file: read, checked, planned, rendered, and its diagnostics printed.
pub fn fuzz_pipeline(data: &[u8]) {
    match crate::parse_bytes("keelway.yml", data) {
        Ok(definition) => {
            for dirty in [false, true] {
                let trigger =
                    Trigger { event: Event::Push, branch: Some("main".into()), commit: None, dirty };
                let _ = crate::triggers(&definition, &trigger);
                let plan =
                    crate::plan(&definition, &trigger, &Selection::default()).expect("nothing was selected");
                plan.check().expect("a checked definition gives a valid plan");
                assert_eq!(plan.nodes.len(), definition.stages.len(), "every stage is in the plan");
                let _ = crate::render(&plan);
            }
        }
        Err(found) => {
            assert!(found.has_errors(), "an error that says nothing");
            let _ = found.to_string();
        }
    }
}
