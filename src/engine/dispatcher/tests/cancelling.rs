//! Cancellation always ends, by the gentlest measure that works.

use super::*;

/// Cancels once every named node runs.
async fn cancel_when_running(fake: &Fake, names: &[&str], source: &CancelSource, kill: bool) {
    while !names.iter().all(|n| fake.performed().iter().any(|p| p == n)) {
        tokio::task::yield_now().await;
    }
    if kill { source.kill(CancelReason::Interrupt) } else { source.cancel(CancelReason::Interrupt) }
}

async fn cancelled(act: Act, kill: bool) -> (Ran, Duration) {
    let fake = Arc::new(Fake::of([("runs", act)]));
    let source = CancelSource::new();
    let p = plan(&[("runs", &[]), ("next", &[0])]);
    let begun = Instant::now();
    let cache = MemoryCache::new();
    let run = run_with(p, &fake, &cache, options(), source.token());
    let (ran, ()) = tokio::join!(run, cancel_when_running(&fake, &["runs"], &source, kill));
    assert!(!fake.performed().iter().any(|n| n == "next"), "nothing starts after a cancellation");
    (ran, begun.elapsed())
}

#[tokio::test]
async fn an_interrupt_asks_then_kills_then_gives_up() {
    for (act, at_least) in [(Act::Obeys, 0), (Act::Stubborn, 30), (Act::Deaf, 60)] {
        let (ran, took) = cancelled(act.clone(), false).await;
        assert_eq!(*ran.outcome("runs"), Outcome::Cancelled, "{act:?}");
        assert_eq!(
            (ran.report.exit, &ran.report.outcome),
            (ExitCode::Cancelled, &Outcome::Cancelled),
            "{act:?}"
        );
        assert!(took >= Duration::from_millis(at_least), "{act:?} took {took:?}");
    }
}

#[tokio::test]
async fn a_second_interrupt_skips_the_grace() {
    let fake = Arc::new(Fake::of([("runs", Act::Stubborn)]));
    let source = CancelSource::new();
    let mut options = options();
    options.grace = Duration::from_secs(3600);
    options.kill_grace = Duration::from_secs(3600);
    let cache = MemoryCache::new();
    let run = run_with(plan(&[("runs", &[])]), &fake, &cache, options, source.token());
    let twice = async {
        cancel_when_running(&fake, &["runs"], &source, false).await;
        source.kill(CancelReason::Interrupt);
    };
    let (ran, ()) = tokio::join!(run, twice);
    assert_eq!(*ran.outcome("runs"), Outcome::Cancelled);
}

#[tokio::test]
async fn what_a_deploy_says_of_its_hosts_is_kept_and_the_run_is_cancelled() {
    let (ran, _) = cancelled(Act::Undoes(ExitCode::RolledBack), false).await;
    assert_eq!(*ran.outcome("runs"), Outcome::Failed { exit: 10, message: "rolled back".into() });
    assert_eq!(
        ran.report.exit,
        ExitCode::RolledBack,
        "nothing was left undone but the rollback that was asked for"
    );
}

#[tokio::test]
async fn a_timeout_stops_one_node_and_says_so() {
    for act in [Act::Obeys, Act::Stubborn, Act::Deaf] {
        let fake = Arc::new(Fake::of([("slow", act.clone())]));
        let mut p = plan(&[("slow", &[]), ("other", &[])]);
        p.nodes[0].timeout = Some(Duration::from_millis(20));
        let ran = run_plain(p, &fake).await;
        let Outcome::Failed { exit: 1, message } = ran.outcome("slow") else {
            panic!("{:?}", ran.outcome("slow"))
        };
        assert!(message.starts_with("not done after 20ms, its time limit; raise `timeout`"), "{message}");
        assert_eq!(*ran.outcome("other"), Outcome::Succeeded);
        assert_eq!(ran.report.exit, ExitCode::Failed);
    }
}

#[tokio::test]
async fn a_timeout_of_a_build_stops_its_steps() {
    let fake = Arc::new(Fake::of([
        ("image", Act::Becomes(plan(&[("make", &[]), ("rest", &[0])]))),
        ("make", Act::Deaf),
    ]));
    let mut p = plan(&[("image", &[])]);
    p.nodes[0].timeout = Some(Duration::from_millis(20));
    let ran = run_plain(p, &fake).await;
    assert_eq!(*ran.outcome("make"), Outcome::Cancelled);
    assert!(matches!(ran.outcome("rest"), Outcome::Skipped { .. }));
    let outcome = ran.outcome("image");
    assert!(
        matches!(outcome, Outcome::Failed { exit: 1, message } if message.contains("its time limit")),
        "{outcome:?}"
    );
}

/// Time stands still and jumps to the next timer: hours cost nothing.
#[tokio::test(start_paused = true)]
async fn a_step_of_a_build_has_the_time_that_its_stage_has() {
    struct Long;
    #[async_trait]
    impl Perform for Long {
        async fn key(&self, _: &Ctx, _: &Node, _: &[Output]) -> Result<Option<CacheKey>, Failure> {
            Ok(None)
        }
        async fn perform(&self, ctx: Ctx, node: &Node, _: Vec<Output>) -> Result<Performed, Failure> {
            if node.name == "image" {
                return Ok(Performed::SubPlan(plan(&[("make", &[])])));
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(2 * 3600)) => Ok(Performed::output(Output::Nothing)),
                _ = ctx.cancel.cancelled() => Err(Failure::failed("stopped by SIGTERM")),
            }
        }
    }
    for (timeout, exit) in [(None, ExitCode::Done), (Some(3), ExitCode::Done), (Some(1), ExitCode::Failed)] {
        let mut p = plan(&[("image", &[])]);
        p.nodes[0].timeout = timeout.map(|hours| Duration::from_secs(hours * 3600));
        let cache = Arc::new(MemoryCache::new());
        let ran = run(p, Arc::new(Long), cache, Box::new(Discard), options(), CancelToken::never());
        assert_eq!(ran.await.unwrap().exit, exit, "{timeout:?}");
    }
}

#[tokio::test]
async fn an_interrupt_reaches_the_steps_of_a_build() {
    let fake = Arc::new(Fake::of([
        ("image", Act::Becomes(plan(&[("make", &[]), ("rest", &[0])]))),
        ("make", Act::Obeys),
    ]));
    let source = CancelSource::new();
    let cache = MemoryCache::new();
    let run = run_with(plan(&[("image", &[]), ("test", &[0])]), &fake, &cache, options(), source.token());
    let (ran, ()) = tokio::join!(run, cancel_when_running(&fake, &["make"], &source, false));
    for name in ["image", "make", "rest", "test"] {
        assert!(!ran.outcome(name).is_ok(), "{name}");
    }
    assert_eq!(ran.report.exit, ExitCode::Cancelled);
}

#[tokio::test]
async fn the_time_limit_does_not_count_the_wait_for_a_place() {
    let (here, go) = (Arc::new(Notify::new()), Arc::new(Semaphore::new(0)));
    let fake = Arc::new(Fake::of([("first", Act::Waits(here, go.clone())), ("second", Act::Nothing)]));
    let mut p = plan(&[("first", &[]), ("second", &[])]);
    p.nodes[1].timeout = Some(Duration::from_millis(1));
    let mut options = options();
    options.max_parallel = 1;
    let cache = MemoryCache::new();
    let run = run_with(p, &fake, &cache, options, CancelToken::never());
    let release = async {
        // Far longer than the limit of `second`; it is the limit that is under test, not an event.
        tokio::time::sleep(Duration::from_millis(50)).await;
        go.add_permits(1);
    };
    let (ran, ()) = tokio::join!(run, release);
    assert_eq!(*ran.outcome("second"), Outcome::Succeeded);
}

#[tokio::test]
async fn a_sink_that_fails_stops_the_run_and_says_why() {
    struct Full;
    impl EventSink for Full {
        fn events(&mut self, _: &[RunEvent]) -> Result<(), SinkError> {
            Err(SinkError { message: "cannot record: the disk is full; free some space".into() })
        }
    }
    let fake = Arc::new(Fake::of([("runs", Act::Obeys)]));
    let cache = Arc::new(MemoryCache::new());
    let report = run(plan(&[("runs", &[])]), fake, cache, Box::new(Full), options(), CancelToken::never());
    let report = tokio::time::timeout(Duration::from_secs(60), report).await.unwrap().unwrap();
    assert_eq!(report.exit, ExitCode::Outside);
    assert!(
        matches!(&report.outcome, Outcome::Failed { exit: 4, message } if message.contains("the disk is full"))
    );
}

/// Fails, or panics, once a node runs.
struct Breaks {
    panics: bool,
}
impl EventSink for Breaks {
    fn events(&mut self, batch: &[RunEvent]) -> Result<(), SinkError> {
        let runs = batch.iter().any(|e| matches!(e.kind, EventKind::Started { .. }));
        assert!(!(runs && self.panics), "it was told to panic");
        if runs { Err(SinkError { message: "cannot record: the disk is full".into() }) } else { Ok(()) }
    }
}

async fn broken(sink: Box<dyn EventSink>, act: Act) -> RunReport {
    let fake = Arc::new(Fake::of([("deploy", act)]));
    let cache = Arc::new(MemoryCache::new());
    let report = run(plan(&[("deploy", &[])]), fake, cache, sink, options(), CancelToken::never());
    tokio::time::timeout(Duration::from_secs(60), report).await.unwrap().unwrap()
}

#[tokio::test]
async fn hosts_that_a_stopped_rollout_left_mixed_are_told_of_when_nothing_can_be_recorded() {
    let shown = Kept::default();
    let tee = Tee::new(vec![Box::new(Breaks { panics: false }), Box::new(shown.clone())]);
    let report = broken(Box::new(tee), Act::Undoes(ExitCode::Halted)).await;
    assert_eq!((report.exit, report.interrupted), (ExitCode::Halted, true));
    assert_eq!(report.sink_error.unwrap().message, "cannot record: the disk is full");
    // Who looks on sees the node's failure and the end, although the first sink took no more.
    let shown = shown.0.lock().unwrap();
    assert_eq!(shown.len() as u64, report.events);
    let [.., node, end] = shown.as_slice() else { panic!("{shown:?}") };
    assert!(
        matches!(&node.kind, EventKind::Finished { outcome: Outcome::Failed { exit: 11, .. }, .. }),
        "{node:?}"
    );
    let EventKind::RunFinished { outcome: Outcome::Failed { exit: 11, message }, interrupted: true, .. } =
        &end.kind
    else {
        panic!("{end:?}")
    };
    assert_eq!(message, "failed: deploy; cannot record: the disk is full");
}

#[tokio::test]
async fn a_sink_that_panics_stops_the_run_as_a_bug() {
    let report = broken(Box::new(Breaks { panics: true }), Act::Obeys).await;
    assert_eq!(report.exit, ExitCode::Bug);
    assert!(report.sink_error.unwrap().message.contains("panicked"));
    assert!(report.events_lost > 0);
}

#[tokio::test]
async fn what_waits_for_a_node_that_succeeds_after_a_cancellation_is_not_started() {
    let (here, go) = (Arc::new(Notify::new()), Arc::new(Semaphore::new(0)));
    let fake = Arc::new(Fake::of([("runs", Act::Waits(here.clone(), go.clone()))]));
    let source = CancelSource::new();
    let mut options = options();
    options.grace = Duration::from_secs(3600);
    let cache = MemoryCache::new();
    let p = plan(&[("runs", &[]), ("next", &[0])]);
    let run = run_with(p, &fake, &cache, options, source.token());
    let stop = async {
        here.notified().await;
        source.cancel(CancelReason::Interrupt);
        go.add_permits(1);
    };
    let (ran, ()) = tokio::join!(run, stop);
    assert_eq!((ran.outcome("runs"), ran.outcome("next")), (&Outcome::Succeeded, &Outcome::Cancelled));
    assert!(!ran.events_of("next").iter().any(|k| matches!(k, EventKind::Started { .. })));
    assert_eq!(fake.performed(), ["runs"]);
    assert_eq!((ran.report.exit, ran.report.interrupted), (ExitCode::Cancelled, true));
}
