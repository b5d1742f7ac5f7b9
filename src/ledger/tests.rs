//! The whole ledger: on disk, reopened, shared, and after kill -9.

use super::*;
use keelway_model::clock::{FixedClock, SystemClock};
use keelway_model::{
    Attempt, CommitId, EventKind, EventSink, ExitCode, LogStream, NodeId, Outcome, RunEvent, RunId, Timestamp,
};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const NOW: Timestamp = Timestamp(1_795_442_589_000);

fn open(dir: &Path) -> Ledger {
    Ledger::open(dir, Arc::new(FixedClock(NOW))).unwrap()
}

fn new_run(branch: &str) -> NewRun {
    NewRun {
        repo: "https://git.example.com/shop".into(),
        commit: Some(commit(1)),
        branch: Some(branch.into()),
        event: "push".into(),
        definition: "keelway.yml: image, test".into(),
    }
}

fn commit(n: u32) -> CommitId {
    format!("{n:040x}").parse().unwrap()
}

fn event(seq: u64, node: &[u32], kind: EventKind) -> RunEvent {
    RunEvent { at: Timestamp(NOW.0 + seq as i64), seq, node: node.iter().map(|n| NodeId(*n)).collect(), kind }
}

fn log(seq: u64, node: &[u32], text: &str) -> RunEvent {
    event(seq, node, EventKind::Log { stream: LogStream::Stdout, text: text.into() })
}

fn finished(seq: u64, node: &[u32], outcome: Outcome) -> RunEvent {
    event(
        seq,
        node,
        EventKind::Finished { name: "image".into(), outcome, millis: 40, result: Some("sha256:1".into()) },
    )
}

fn story(run: &RunId) -> Vec<RunEvent> {
    vec![
        event(1, &[], EventKind::RunStarted { run: run.clone(), attempt: Attempt(1), commit: None }),
        event(2, &[0], EventKind::Planned { name: "image".into(), kind: "build".into() }),
        event(3, &[1], EventKind::Planned { name: "test".into(), kind: "steps".into() }),
        event(4, &[0], EventKind::Started { name: "image".into() }),
        event(5, &[0, 0], EventKind::Planned { name: "RUN make".into(), kind: "exec".into() }),
        log(6, &[0, 0], "cc -o app\n"),
        event(7, &[0, 0], EventKind::Notice { text: "the network is the host's".into() }),
        log(8, &[0, 0], "ok\n"),
        finished(9, &[0, 0], Outcome::Succeeded),
        finished(10, &[0], Outcome::Succeeded),
        event(11, &[1], EventKind::Started { name: "test".into() }),
        log(12, &[1], "1 failed\n"),
        finished(13, &[1], Outcome::Failed { exit: 1, message: "unit ended with 1".into() }),
        event(
            14,
            &[],
            EventKind::RunFinished {
                outcome: Outcome::Failed { exit: 1, message: "failed: test".into() },
                millis: 90,
                interrupted: false,
            },
        ),
    ]
}

fn events(ledger: &Ledger, run: &RunId, attempt: Option<Attempt>) -> Vec<RunEvent> {
    ledger.events(run, attempt).unwrap().map(Result::unwrap).collect()
}

fn texts(lines: LogLines) -> Vec<String> {
    lines.map(|l| l.unwrap().text).collect()
}

#[test]
fn a_run_reads_back_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    for ledger in [open(dir.path()), Ledger::in_memory(Arc::new(FixedClock(NOW))).unwrap()] {
        let run = ledger.create_run(&new_run("main")).unwrap();
        let attempt = ledger.begin_attempt(&run).unwrap();
        let told = story(&run);
        let mut sink = attempt.sink();
        for batch in told.chunks(3) {
            sink.events(batch).unwrap();
        }
        assert_eq!(events(&ledger, &run, None), told);
        assert_eq!(texts(ledger.logs(&run, None, None).unwrap()), ["cc -o app\n", "ok\n", "1 failed\n"]);
        assert_eq!(texts(ledger.logs(&run, Some(Attempt(1)), Some(&[NodeId(1)])).unwrap()), ["1 failed\n"]);
        let shown = ledger.show(&run).unwrap();
        let [only] = shown.attempts.as_slice() else { panic!("{shown:?}") };
        assert_eq!(only.attempt.state, AttemptState::Failed);
        assert_eq!(only.attempt.exit, Some(ExitCode::Failed));
        assert_eq!(only.attempt.message.as_deref(), Some("failed: test"));
        let names: Vec<_> = only.nodes.iter().map(|n| (n.name.as_str(), n.path.len())).collect();
        assert_eq!(names, [("image", 1), ("RUN make", 2), ("test", 1)]);
        assert_eq!(only.nodes[0].state, NodeState::Ended(Outcome::Succeeded, 40));
        assert_eq!(only.notices.len(), 1);
    }
}

#[test]
fn what_was_recorded_is_there_after_reopening_and_listed_newest_first() {
    let dir = tempfile::tempdir().unwrap();
    let ids: Vec<RunId> =
        ["main", "dev", "main"].map(|b| open(dir.path()).create_run(&new_run(b)).unwrap()).into();
    let ledger = open(dir.path());
    let list = |filter: &Filter| ledger.runs(filter).unwrap().into_iter().map(|r| r.id).collect::<Vec<_>>();
    assert_eq!(list(&Filter::default()), [ids[2].clone(), ids[1].clone(), ids[0].clone()]);
    assert_eq!(list(&Filter { limit: 1, ..Filter::default() }), [ids[2].clone()]);
    assert_eq!(list(&Filter { branch: Some("dev".into()), ..Filter::default() }), [ids[1].clone()]);
    assert_eq!(ledger.find_run(ids[1].as_str()).unwrap(), ids[1]);
    assert_eq!(ledger.find_run(&ids[1].as_str()[16..]).unwrap(), ids[1]);
    for nothing in ["", "zzz", "%"] {
        assert!(matches!(ledger.find_run(nothing), Err(LedgerError::NoRun { .. })), "{nothing}");
    }
    let several = ledger.find_run("2026").unwrap_err();
    assert_eq!(
        several.to_string(),
        format!("2026 fits more than one run: {}, {}, {}; write more of the id", ids[2], ids[1], ids[0])
    );
}

#[test]
fn one_owner_at_a_time_and_a_late_one_is_fenced() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    let run = ledger.create_run(&new_run("main")).unwrap();
    let first = ledger.begin_attempt(&run).unwrap();
    assert!(matches!(open(dir.path()).begin_attempt(&run), Err(LedgerError::Running { pid: Some(_), .. })));
    assert_eq!(ledger.interrupted().unwrap(), [], "its owner lives");
    let mut late = first.sink();
    late.events(&story(&run)[..2]).unwrap();
    first.finish(Outcome::Cancelled).unwrap();
    first.finish(Outcome::Succeeded).unwrap();
    let error = late.record(&story(&run)[2..3]).unwrap_err();
    assert!(matches!(error, LedgerError::Fenced { attempt: Attempt(1), .. }), "{error}");
    drop((first, late));
    let second = ledger.begin_attempt(&run).unwrap();
    assert_eq!(second.attempt(), Attempt(2));
    let shown = ledger.show(&run).unwrap();
    let states: Vec<_> = shown.attempts.iter().map(|a| (a.attempt.state, a.attempt.exit)).collect();
    assert_eq!(states, [(AttemptState::Cancelled, Some(ExitCode::Cancelled)), (AttemptState::Running, None)]);
    assert!(matches!(ledger.begin_attempt(&"no-such".parse().unwrap()), Err(LedgerError::NoRun { .. })));
}

#[test]
fn a_state_and_its_event_are_one_transaction() {
    let ledger = Ledger::in_memory(Arc::new(FixedClock(NOW))).unwrap();
    let run = ledger.create_run(&new_run("main")).unwrap();
    let attempt = ledger.begin_attempt(&run).unwrap();
    let mut sink = attempt.sink();
    let told = story(&run);
    sink.events(&told[..4]).unwrap();
    // The second event of the batch has a number that is taken, so the whole batch is refused.
    let batch = [told[13].clone(), told[1].clone()];
    assert!(sink.events(&batch).is_err());
    let shown = ledger.show(&run).unwrap();
    assert_eq!(shown.attempts[0].attempt.state, AttemptState::Running);
    assert_eq!(events(&ledger, &run, None), told[..4]);
}

#[test]
fn each_commit_is_queued_once_and_leaves_with_the_end_of_its_run() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    let (repo, branch) = ("https://git.example.com/shop", "main");
    assert_eq!(ledger.branch(repo, branch).unwrap(), None);
    ledger.record_commits(repo, branch, None, &[commit(1)]).unwrap();
    let again = ledger.record_commits(repo, branch, None, &[commit(1)]).unwrap_err();
    assert!(matches!(again, LedgerError::BranchMoved { .. }), "{again}");
    ledger.record_commits(repo, branch, Some(&commit(1)), &[commit(2), commit(3)]).unwrap();
    assert_eq!(ledger.branch(repo, branch).unwrap().unwrap().last, commit(3));

    let queue = |l: &Ledger| l.queued(repo, branch).unwrap();
    let order: Vec<_> = queue(&ledger).into_iter().map(|q| q.commit).collect();
    assert_eq!(order, [commit(1), commit(2), commit(3)]);
    assert_eq!(ledger.queued(repo, "dev").unwrap(), []);

    let first = queue(&ledger).remove(0);
    let run = ledger.run_queued(first.position, &new_run(branch)).unwrap();
    let ledger = open(dir.path());
    assert_eq!(
        ledger.run_queued(first.position, &new_run(branch)).unwrap(),
        run,
        "the same run after a restart"
    );
    assert_eq!(queue(&ledger)[0].run, Some(run.clone()));

    ledger.begin_attempt(&run).unwrap().finish(Outcome::Cancelled).unwrap();
    assert_eq!(queue(&ledger).len(), 3, "a cancelled run is still to be run");
    let halted = |interrupted| EventKind::RunFinished {
        outcome: Outcome::Failed { exit: 11, message: "failed: deploy".into() },
        millis: 1,
        interrupted,
    };
    ledger.begin_attempt(&run).unwrap().sink().events(&[event(1, &[], halted(true))]).unwrap();
    assert_eq!(queue(&ledger).len(), 3, "a rollout that was stopped half-way is still to be run");
    assert_eq!(ledger.show(&run).unwrap().attempts[1].attempt.exit, Some(ExitCode::Halted));
    let attempt = ledger.begin_attempt(&run).unwrap();
    let failed = Outcome::Failed { exit: 1, message: "failed: test".into() };
    attempt
        .sink()
        .events(&[event(1, &[], EventKind::RunFinished { outcome: failed, millis: 1, interrupted: false })])
        .unwrap();
    let left: Vec<_> = queue(&ledger).into_iter().map(|q| q.commit).collect();
    assert_eq!(left, [commit(2), commit(3)], "a failed run is over");
    ledger.drop_queued(queue(&ledger)[0].position).unwrap();
    assert_eq!(queue(&ledger).len(), 1);
}

#[test]
fn files_that_are_no_ledger_are_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.db");
    let junk = b"this is a text file, and long enough that sqlite would look for a header in it...........................";
    std::fs::write(&path, junk).unwrap();
    let refused = Ledger::open(dir.path(), Arc::new(SystemClock)).unwrap_err();
    assert!(matches!(refused, LedgerError::Foreign { .. }), "{refused}");
    assert_eq!(std::fs::read(&path).unwrap(), junk);
}

#[test]
fn a_ledger_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("state/ledger");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    std::fs::create_dir_all(&at).unwrap();
    std::fs::set_permissions(&at, std::fs::Permissions::from_mode(0o755)).unwrap();
    drop(open(&at));
    assert_eq!((mode(&at), mode(&at.join("runs"))), (0o700, 0o700));
    assert_eq!(mode(&at.join("ledger.db")), 0o600);
}

#[test]
fn a_ledger_that_is_cut_off_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    for _ in 0..50 {
        ledger.create_run(&new_run("main")).unwrap();
    }
    drop(ledger);
    let path = dir.path().join("ledger.db");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let e = Ledger::open(dir.path(), Arc::new(FixedClock(NOW)))
        .and_then(|l| l.runs(&Filter { limit: 100, ..Filter::default() }))
        .unwrap_err();
    assert!(e.to_string().contains(&format!("`mv {0} {0}.damaged`", dir.path().display())), "{e}");
}

/// Set for the process that is killed; without it the test below has nothing to do.
const CHILD: &str = "KEELWAY_TEST_CHILD";

/// The other side of the kill tests: records, and says on standard output what it has recorded, until it is killed.
#[test]
fn child_that_records_until_it_is_killed() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let ledger = open(Path::new("."));
    let run = match ledger.queued("r", "b").unwrap().first() {
        Some(queued) => ledger.run_queued(queued.position, &new_run("b")).unwrap(),
        None => return,
    };
    let attempt = ledger.begin_attempt(&run).unwrap();
    let mut sink = attempt.sink();
    let mut out = std::io::stdout();
    for seq in (1..200_000).step_by(4) {
        let planned = EventKind::Planned { name: format!("n{seq}"), kind: "exec".into() };
        let batch = [
            event(seq, &[seq as u32 % 7], planned),
            log(seq + 1, &[seq as u32 % 7], &format!("line {seq}\n")),
            log(seq + 2, &[1], "more\n"),
            event(seq + 3, &[1], EventKind::Started { name: "n".into() }),
        ];
        sink.events(&batch).unwrap();
        writeln!(out, "recorded {}", seq + 3).unwrap();
    }
}

#[test]
fn nothing_recorded_is_lost_by_kill_9() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let ledger = Ledger::open(dir.path(), Arc::new(SystemClock)).unwrap();
    ledger.record_commits("r", "b", None, &[commit(1)]).unwrap();
    let exe = std::env::current_exe().unwrap();
    for round in 1..=20u32 {
        let mut child = Command::new(&exe)
            .args([
                "--exact",
                "tests::child_that_records_until_it_is_killed",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(CHILD, "1")
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        // Killed after another number of batches each round, somewhere in the next one.
        let mut last = 0;
        let mut batches = 0;
        while batches < round * 3 {
            let line = said.next().expect("the child died by itself").unwrap();
            if let Some(seq) = line.strip_prefix("recorded ") {
                last = seq.parse().unwrap();
                batches += 1;
            }
        }
        // Not at a batch's border: a pause of a few microseconds to a few hundred.
        let until = Instant::now() + Duration::from_micros(u64::from(round) * 37 % 400);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        for line in said.map_while(Result::ok) {
            if let Some(seq) = line.strip_prefix("recorded ") {
                last = seq.parse().unwrap();
            }
        }

        let run = ledger.queued("r", "b").unwrap()[0].run.clone().expect("recorded before it began");
        let attempt = Attempt(round);
        let marked = open(dir.path()).interrupted().unwrap();
        assert_eq!(marked, [Interrupted { run: run.clone(), attempt, commit: Some(commit(1)) }]);
        assert_eq!(ledger.interrupted().unwrap(), [], "marked once");
        let events = events(&ledger, &run, Some(attempt));
        let (notice, told) = events.split_last().unwrap();
        assert!(
            matches!(&notice.kind, EventKind::Notice { text } if text.contains("interrupted")),
            "{notice:?}"
        );
        assert!(told.len() as u64 >= last, "round {round}: {} of {last} events", told.len());
        for (i, e) in told.iter().take(last as usize).enumerate() {
            assert_eq!(e.seq, i as u64 + 1, "round {round}");
        }
        assert!(events.windows(2).all(|w| w[0].seq < w[1].seq), "round {round}: a number twice");
        assert_eq!(
            ledger.show(&run).unwrap().attempts.last().unwrap().attempt.state,
            AttemptState::Interrupted
        );
    }
}

#[test]
fn several_processes_share_a_ledger() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    open(dir.path());
    let threads: Vec<_> = (0..4u32)
        .map(|t| {
            // Each with a connection of its own, as another process would have.
            let ledger = Ledger::open(dir.path(), Arc::new(SystemClock)).unwrap();
            std::thread::spawn(move || {
                for i in 0..10 {
                    let run = ledger.create_run(&new_run(&format!("b{t}"))).unwrap();
                    let attempt = ledger.begin_attempt(&run).unwrap();
                    attempt.sink().events(&story(&run)).unwrap();
                    assert!(ledger.interrupted().unwrap().is_empty(), "thread {t}, run {i}");
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
    let runs = open(dir.path()).runs(&Filter { limit: 100, ..Filter::default() }).unwrap();
    assert_eq!(runs.len(), 40);
    assert!(runs.iter().all(|r| r.last.as_ref().is_some_and(|a| a.state == AttemptState::Failed)));
}
