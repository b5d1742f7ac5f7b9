//! The pipeline files that ship: templates and examples all plan.

use crate::pipeline::{commit, git};
use crate::{Ended, Test, World};
use std::fs;

/// The tests of this file.
pub const TESTS: &[Test] = &[("shipped::every_pipeline_file_plans", every_pipeline_file_plans)];

fn every_pipeline_file_plans(world: &World) -> Ended {
    let env = world.env();
    let mut files = Vec::new();
    for entry in fs::read_dir(world.project.join("pipelines")).expect("pipelines/ is there").flatten() {
        files.push(entry.path());
    }
    for entry in fs::read_dir(world.project.join("examples")).expect("examples/ is there").flatten() {
        files.extend(Some(entry.path().join("keelway.yml")).filter(|p| p.is_file()));
    }
    assert!(files.len() >= 3, "{files:?}");
    for (n, file) in files.iter().enumerate() {
        let dir = env.work().join(format!("p{n}"));
        fs::create_dir_all(&dir).expect("folders can be made");
        fs::copy(file, dir.join("keelway.yml")).expect("files can be copied");
        // Stages that build find a Dockerfile with the targets that the files name.
        fs::write(dir.join("Dockerfile"), "FROM scratch AS test\nFROM scratch AS app\nCOPY keelway.yml /\n")
            .expect("files can be written");
        git(&env, &dir, &["init", "-q", "-b", "main"]);
        commit(&env, &dir, "as shipped");
        let plan = env.keelway_in(&dir, &["plan"]).expect(0);
        assert!(plan.stdout.contains("image"), "{}: {}", file.display(), plan.stdout);
    }
    Ok(())
}
