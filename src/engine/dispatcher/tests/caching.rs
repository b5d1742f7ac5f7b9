//! Hits, misses with their reasons, and equal steps that run once.

use super::*;

fn misses(ran: &Ran, name: &str) -> Vec<MissReason> {
    let kinds = ran.events_of(name);
    kinds
        .into_iter()
        .filter_map(|k| if let EventKind::CacheMiss { reason, .. } = k { Some(reason.clone()) } else { None })
        .collect()
}

fn keyed(keys: &[(&str, &'static str)]) -> Fake {
    Fake { keys: keys.iter().map(|(n, k)| ((*n).to_owned(), *k)).collect(), ..Fake::default() }
}

async fn once(fake: Fake, cache: &MemoryCache) -> (Ran, Vec<String>) {
    let fake = Arc::new(fake);
    let ran = run_with(plan(&[("step", &[])]), &fake, cache, options(), CancelToken::never()).await;
    let performed = fake.performed();
    (ran, performed)
}

#[tokio::test]
async fn a_step_runs_once_and_a_changed_one_says_what_changed() {
    let cache = MemoryCache::new();
    let (first, performed) = once(keyed(&[("step", "make")]), &cache).await;
    assert_eq!((misses(&first, "step"), performed.len()), (vec![MissReason::NeverBuilt], 1));
    let (second, performed) = once(keyed(&[("step", "make")]), &cache).await;
    assert_eq!((second.outcome("step"), performed.len()), (&Outcome::Cached, 0));
    assert!(second.events_of("step").iter().any(|k| matches!(k, EventKind::CacheHit { .. })));
    assert!(!second.events_of("step").iter().any(|k| matches!(k, EventKind::Started { .. })));
    let (third, performed) = once(keyed(&[("step", "make all")]), &cache).await;
    assert_eq!(
        (misses(&third, "step"), performed.len()),
        (vec![MissReason::Changed(vec![KeyPart::Command])], 1)
    );
}

#[tokio::test]
async fn a_step_that_shall_run_anew_runs_once_in_a_run() {
    let cache = MemoryCache::new();
    once(keyed(&[("step", "make")]), &cache).await;
    let fake = Arc::new(keyed(&[("a", "make"), ("b", "make"), ("c", "make")]));
    let mut nodes = plan(&[("a", &[]), ("b", &[0]), ("c", &[])]);
    nodes.nodes[0].anew = true;
    nodes.nodes[1].anew = true;
    let ran = run_with(nodes, &fake, &cache, options(), CancelToken::never()).await;
    assert_eq!(fake.performed(), ["a"], "what this run made itself serves the others");
    assert_eq!(misses(&ran, "a"), [MissReason::Asked]);
    assert_eq!(*ran.outcome("b"), Outcome::Cached);
}

#[tokio::test]
async fn what_is_kept_elsewhere_is_used_and_not_recorded_here() {
    let cache = MemoryCache::new();
    let fake = || Fake { elsewhere: vec!["step"], ..keyed(&[("step", "make")]) };
    let (ran, performed) = once(fake(), &cache).await;
    assert_eq!((ran.outcome("step"), performed.len()), (&Outcome::Cached, 0));
    assert!(cache.get(&key("make")).unwrap().is_none());
    assert!(cache.try_claim(&key("make").digest).unwrap().is_some(), "the claim is free again");
    let fake = Arc::new(fake());
    let mut nodes = plan(&[("step", &[])]);
    nodes.nodes[0].anew = true;
    run_with(nodes, &fake, &cache, options(), CancelToken::never()).await;
    assert_eq!(fake.performed(), ["step"]);
}

#[tokio::test]
async fn a_failed_step_is_not_recorded_and_frees_its_claim() {
    let cache = MemoryCache::new();
    for exit in [ExitCode::Failed, ExitCode::Bug] {
        let act = if exit == ExitCode::Bug { Act::Panics } else { Act::Fails(exit) };
        let fake = Fake { acts: [("step".to_owned(), act)].into(), ..keyed(&[("step", "make")]) };
        assert_eq!(once(fake, &cache).await.0.report.exit, exit);
    }
    assert!(cache.get(&key("make")).unwrap().is_none());
    assert_eq!(once(keyed(&[("step", "make")]), &cache).await.1.len(), 1);
}

#[tokio::test]
async fn equal_steps_of_one_run_and_of_two_run_once() {
    let cache = MemoryCache::new();
    let fake = || {
        let keys = [("a", "make"), ("b", "make"), ("c", "make")];
        let acts = keys.map(|(n, _)| (n.to_owned(), Act::Yields(50)));
        Arc::new(Fake { acts: acts.into(), ..keyed(&keys) })
    };
    let nodes = || plan(&[("a", &[]), ("b", &[]), ("c", &[])]);
    let (one, two) = (fake(), fake());
    let (x, y) = tokio::join!(
        run_with(nodes(), &one, &cache, options(), CancelToken::never()),
        run_with(nodes(), &two, &cache, options(), CancelToken::never())
    );
    assert_eq!(one.performed().len() + two.performed().len(), 1);
    let outcomes: Vec<_> = x.report.nodes.iter().chain(&y.report.nodes).map(|n| n.outcome.clone()).collect();
    assert_eq!(outcomes.iter().filter(|o| **o == Outcome::Succeeded).count(), 1);
    assert_eq!(outcomes.iter().filter(|o| **o == Outcome::Cached).count(), 5);
}

#[tokio::test]
async fn who_waits_for_an_equal_step_says_so_and_gives_its_place_away() {
    let cache = MemoryCache::new();
    let claim = cache.try_claim(&key("make").digest).unwrap().unwrap();
    let fake = Arc::new(keyed(&[("waits", "make")]));
    let mut options = options();
    options.max_parallel = 1;
    let run = run_with(plan(&[("waits", &[]), ("other", &[])]), &fake, &cache, options, CancelToken::never());
    let elsewhere = async {
        // The only place is free for `other`, although `waits` came first.
        while fake.performed() != ["other"] {
            tokio::task::yield_now().await;
        }
        cache.put(&key("make"), None, &Output::Nothing).unwrap();
        drop(claim);
    };
    let (ran, ()) = tokio::join!(run, elsewhere);
    assert_eq!(*ran.outcome("waits"), Outcome::Cached);
    assert!(ran.events_of("waits").contains(&&EventKind::Waiting { reason: WaitReason::SameStepElsewhere }));
}

#[tokio::test]
async fn waiting_for_an_equal_step_is_bounded_and_can_be_cancelled() {
    let cache = MemoryCache::new();
    let _claim = cache.try_claim(&key("make").digest).unwrap().unwrap();
    let fake = Arc::new(keyed(&[("waits", "make")]));
    let mut p = plan(&[("waits", &[])]);
    p.nodes[0].timeout = Some(Duration::from_millis(20));
    let ran = run_with(p, &fake, &cache, options(), CancelToken::never()).await;
    assert!(matches!(ran.outcome("waits"), Outcome::Failed { exit: 1, .. }));

    let source = CancelSource::new();
    source.cancel(CancelReason::Interrupt);
    let ran = run_with(plan(&[("waits", &[])]), &fake, &cache, options(), source.token()).await;
    assert_eq!(ran.report.exit, ExitCode::Cancelled);
}

/// The same through a real store.
#[tokio::test]
async fn a_store_is_a_step_cache() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let clock = Arc::new(FixedClock(Timestamp(0)));
    for expected in [Outcome::Succeeded, Outcome::Cached] {
        let store = keelway_store::Store::open(dir.path(), clock.clone()).unwrap();
        let fake = Arc::new(keyed(&[("step", "make")]));
        let sink = Box::new(Discard);
        let report =
            run(plan(&[("step", &[])]), fake, Arc::new(store), sink, options(), CancelToken::never());
        assert_eq!(report.await.unwrap().nodes[0].outcome, expected);
    }
}
