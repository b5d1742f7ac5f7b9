//! Random graphs of random performers, with and without a cancellation at a random moment.

use super::*;
use proptest::prelude::*;

#[derive(Debug, Clone)]
struct Case {
    /// Of each node: its act, its needs among the earlier ones, whether it has a key, whether it is a build.
    nodes: Vec<(u8, Vec<prop::sample::Index>, u8)>,
    places: usize,
    cancel_after: Option<usize>,
    kill: bool,
}

fn case() -> impl Strategy<Value = Case> {
    let node = (0u8..12, prop::collection::vec(any::<prop::sample::Index>(), 0..4), 0u8..5);
    (prop::collection::vec(node, 1..24), 1usize..5, prop::option::weighted(0.4, 0usize..12), any::<bool>())
        .prop_map(|(nodes, places, cancel_after, kill)| Case { nodes, places, cancel_after, kill })
}

fn build(case: &Case) -> (Plan, Fake) {
    let mut p = Plan::default();
    let mut fake = Fake::default();
    for (i, (act, needs, key)) in case.nodes.iter().enumerate() {
        let mut needs: Vec<NodeId> =
            needs.iter().filter(|_| i > 0).map(|ix| NodeId(ix.index(i) as u32)).collect();
        needs.sort();
        needs.dedup();
        let name = format!("n{i}");
        let act = match act {
            0 => Act::Fails(ExitCode::Failed),
            1 => Act::Panics,
            2 => Act::Becomes(sub_plan(i, &mut fake)),
            3 => Act::Logs(30),
            // Never ends unless it is cancelled; then by asking, killing or giving up.
            4 if case.cancel_after.is_some() => Act::Obeys,
            5 if case.cancel_after.is_some() => Act::Stubborn,
            6 if case.cancel_after.is_some() => Act::Deaf,
            7 => Act::Nothing,
            n => Act::Yields(usize::from(*n)),
        };
        if !matches!(act, Act::Becomes(_)) && *key < 3 {
            // Three keys for all nodes, so that equal steps meet.
            fake.keys.insert(name.clone(), ["x", "y", "z"][usize::from(*key)]);
        }
        fake.acts.insert(name.clone(), act);
        p.add(name, needs, op());
    }
    (p, fake)
}

fn sub_plan(i: usize, fake: &mut Fake) -> Plan {
    let mut p = Plan::default();
    let a = p.add(format!("n{i}.a"), vec![], op());
    p.add(format!("n{i}.b"), vec![], op());
    let c = p.add(format!("n{i}.c"), vec![a], op());
    p.result = Some(c);
    if i.is_multiple_of(3) {
        fake.acts.insert(format!("n{i}.b"), Act::Fails(ExitCode::Outside));
    }
    p
}

fn hold(case: &Case) -> Result<(), TestCaseError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (p, fake) = build(case);
    let fake = Arc::new(fake);
    let mut options = options();
    options.max_parallel = case.places;
    options.grace = Duration::from_millis(3);
    options.kill_grace = Duration::from_millis(3);
    let source = CancelSource::new();
    let cache = MemoryCache::new();
    let ran = runtime.block_on(async {
        let run = run_with(p.clone(), &fake, &cache, options, source.token());
        let cancel = async {
            let Some(after) = case.cancel_after else { return };
            // At a random moment: after that many nodes began, or, where fewer ever will, soon.
            let deadline = Instant::now() + Duration::from_millis(20);
            while fake.performed().len() < after && Instant::now() < deadline {
                tokio::task::yield_now().await;
            }
            if case.kill {
                source.kill(CancelReason::Interrupt)
            } else {
                source.cancel(CancelReason::Interrupt)
            }
        };
        tokio::join!(run, cancel).0
    });

    let performed = fake.performed();
    let mut unique = performed.clone();
    unique.sort();
    unique.dedup();
    prop_assert_eq!(unique.len(), performed.len(), "each node at most once");
    let place = |name: &str| performed.iter().position(|n| n == name);
    for node in &p.nodes {
        let outcome = ran.outcome(&node.name);
        for need in &node.needs {
            let need = &p.nodes[need.index()].name;
            if !ran.outcome(need).is_ok() {
                prop_assert!(
                    place(&node.name).is_none(),
                    "{} ran although {} did not succeed",
                    node.name,
                    need
                );
                prop_assert!(
                    matches!(outcome, Outcome::Skipped { .. } | Outcome::Cancelled),
                    "{:?}",
                    outcome
                );
            }
            if let (Some(mine), Some(its)) = (place(&node.name), place(need)) {
                prop_assert!(its < mine, "{} before {}", node.name, need);
            }
        }
        if case.cancel_after.is_none() {
            let all_ok = node.needs.iter().all(|n| ran.outcome(&p.nodes[n.index()].name).is_ok());
            prop_assert_eq!(
                all_ok,
                !matches!(outcome, Outcome::Skipped { .. }),
                "what can run is run: {}",
                node.name
            );
        }
    }
    let failed = ran.report.failed().count() > 0;
    if case.cancel_after.is_none() {
        prop_assert_eq!(failed, ran.report.exit != ExitCode::Done);
    }
    prop_assert_eq!(fake.running.load(Ordering::SeqCst), 0, "nothing is left running");
    let claims = ["x", "y", "z"].map(|k| cache.try_claim(&key(k).digest).unwrap().is_some());
    prop_assert_eq!(claims, [true; 3], "no claim is left");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn every_graph_ends_in_order(case in case()) {
        hold(&case)?;
    }
}
