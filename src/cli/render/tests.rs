//! What people read, as snapshots with a clock that stands still.

use super::*;
use crate::render::style::Style;
use keelway_model::{
    Attempt, Diagnostic, Diagnostics, EventKind, KeyPart, LogStream, MissReason, NodeId, Outcome, RunEvent,
    SkipReason, SourceText, Span, Timestamp, WaitReason,
};
use std::io::Write;
use std::sync::{Arc, Mutex};

#[derive(Debug, Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Shared {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn told(kinds: Vec<(&[u32], EventKind)>) -> Vec<RunEvent> {
    let event = |(i, (node, kind)): (usize, (&[u32], EventKind))| RunEvent {
        at: Timestamp(1_795_442_589_000 + i as i64 * 250),
        seq: i as u64 + 1,
        node: node.iter().map(|n| NodeId(*n)).collect(),
        kind,
    };
    kinds.into_iter().enumerate().map(event).collect()
}

fn run_that_fails() -> Vec<RunEvent> {
    let planned = |name: &str, kind: &str| EventKind::Planned { name: name.into(), kind: kind.into() };
    let named = |name: &str| name.to_owned();
    let finished = |outcome, millis, result: Option<&str>| EventKind::Finished {
        name: String::new(),
        outcome,
        millis,
        result: result.map(str::to_owned),
    };
    let log = |text: &str| EventKind::Log { stream: LogStream::Stdout, text: text.into() };
    let failed = |message: &str| Outcome::Failed { exit: 1, message: message.into() };
    let mut kinds: Vec<(&[u32], EventKind)> = vec![
        (
            &[],
            EventKind::RunStarted {
                run: "20261123-140309-3fa2c1".parse().unwrap(),
                attempt: Attempt(2),
                commit: Some("0123456789abcdef0123456789abcdef01234567".parse().unwrap()),
            },
        ),
        (&[0], planned("image", "build")),
        (&[1], planned("test", "steps")),
        (&[2], planned("publish", "push")),
        (&[3], planned("nightly", "steps")),
        (
            &[3],
            finished(
                Outcome::Skipped { reason: SkipReason::When { text: "branch is \"dev\", not main".into() } },
                0,
                None,
            ),
        ),
        (&[0], EventKind::Started { name: named("image") }),
        (&[0, 0], planned("[app 1/3] FROM base", "base")),
        (&[0, 1], planned("[app 2/3] COPY . /src", "copy")),
        (&[0, 2], planned("[app 3/3] RUN make", "exec")),
        (&[0, 0], EventKind::Started { name: named("base") }),
        (
            &[0, 0],
            EventKind::Progress { what: "pull sha256:0123".into(), done: 1 << 20, total: Some(3 << 20) },
        ),
        (&[0, 0], finished(Outcome::Succeeded, 40, None)),
        (&[0, 1], EventKind::CacheHit { name: named("copy") }),
        (&[0, 1], finished(Outcome::Cached, 1, None)),
        (&[0, 2], EventKind::Waiting { reason: WaitReason::SameStepElsewhere }),
        (
            &[0, 2],
            EventKind::CacheMiss {
                name: named("run"),
                reason: MissReason::Changed(vec![KeyPart::Environment, KeyPart::Files]),
            },
        ),
        (&[0, 2], EventKind::Started { name: named("run") }),
        (&[0, 2], EventKind::Notice { text: "this step has the network of the machine".into() }),
        (&[0, 2], log("cc -o app\nstrip app\n")),
        (&[0, 2], finished(Outcome::Succeeded, 4200, None)),
        (&[0], finished(Outcome::Succeeded, 4300, Some("sha256:0123456789ab"))),
        (&[1], EventKind::Started { name: named("test") }),
    ];
    for i in 1..=25 {
        kinds.push((&[1], log(&format!("test case {i} \x1b[32mok\x1b[0m\n"))));
    }
    kinds.extend([
        (&[1][..], log("\x1b]52;c;cm0gLXJm\x07\x1b[2Afake: step passed\n")),
        (&[1], finished(failed("step unit ended with exit code 1"), 187_000, None)),
        (&[2], finished(Outcome::Skipped { reason: SkipReason::Needs { name: "test".into() } }, 0, None)),
        (
            &[],
            EventKind::RunFinished { outcome: failed("failed: test"), millis: 191_500, interrupted: false },
        ),
    ]);
    told(kinds)
}

fn said(
    make: impl FnOnce(Shared, Story) -> Box<dyn EventSink>,
    style: &Style,
    record: Record,
    events: &[RunEvent],
) -> String {
    let out = Shared::default();
    let mut sink = make(out.clone(), Story::new(style.clone(), record));
    for batch in events.chunks(7) {
        sink.events(batch).unwrap();
    }
    out.text()
}

#[test]
fn plain_lines_with_the_time() {
    let style = Style::plain(false);
    let text = said(
        |o, s| Box::new(forms::Plain::new(o, s, Style::plain(false))),
        &style,
        Record::Kept,
        &run_that_fails(),
    );
    assert!(!text.contains('\x1b'));
    insta::assert_snapshot!(text);
}

#[test]
fn colour_only_where_it_was_asked_for() {
    let style = Style::plain(true);
    let text = said(
        |o, s| Box::new(forms::Plain::new(o, s, Style::plain(true))),
        &style,
        Record::Kept,
        &run_that_fails(),
    );
    assert!(text.contains("\x1b[31;1mx\x1b[0m test failed"), "{text}");
    let bare = said(
        |o, s| Box::new(forms::Plain::new(o, s, Style::plain(false))),
        &Style::plain(false),
        Record::Kept,
        &run_that_fails(),
    );
    assert_eq!(clean_lines(&text), bare, "colours change nothing but colour");
}

#[test]
fn quiet_is_the_end_and_its_cause() {
    let style = Style::plain(false);
    let text = said(|o, s| Box::new(forms::Quiet::new(o, s)), &style, Record::Kept, &run_that_fails());
    insta::assert_snapshot!(text);
}

#[test]
fn commands_to_copy_name_the_state_directory() {
    for (dir, shown) in
        [("/var/k", "keelway --state /var/k"), ("/it's here", "keelway --state '/it'\\''s here'")]
    {
        let style = Style::plain(false).with_state(dir);
        let make = |o, s| -> Box<dyn EventSink> { Box::new(forms::Plain::new(o, s, style.clone())) };
        let text = said(make, &style, Record::Kept, &run_that_fails());
        let wanted = format!("the whole log: {shown} runs logs 20261123-140309-3fa2c1 test\n");
        assert!(text.contains(&wanted), "{text}");
    }
}

#[test]
fn json_lines_are_the_events() {
    let style = Style::plain(false);
    let events = run_that_fails();
    let text = said(|o, _| Box::new(forms::Json::new(o)), &style, Record::Kept, &events);
    let back: Vec<RunEvent> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(back, events);
    assert!(!text.contains('\x1b'), "control characters are escaped");
}

#[test]
fn a_run_that_is_not_recorded_promises_no_log() {
    let style = Style::plain(false);
    let text = said(
        |o, s| Box::new(forms::Plain::new(o, s, Style::plain(false))),
        &style,
        Record::Nowhere,
        &run_that_fails(),
    );
    assert!(!text.contains("runs logs"));
}

#[test]
fn a_reader_that_went_away_stops_nothing_and_a_full_disk_is_said() {
    struct Broken(io::ErrorKind);
    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let events = run_that_fails();
    assert!(forms::Json::new(Broken(io::ErrorKind::BrokenPipe)).events(&events).is_ok());
    let error = forms::Json::new(Broken(io::ErrorKind::StorageFull)).events(&events).unwrap_err();
    assert!(error.to_string().contains("is the disk full?"), "{error}");
}

#[test]
fn live_lines_show_what_runs_and_leave_what_is_over() {
    let screen = Shared::default();
    let style = Style::plain(false);
    let terminal = terminal::Terminal::new(Box::new(screen.clone()), || (30, 100));
    let mut live = live::Live::on(
        terminal,
        Box::new(screen.clone()),
        || (30, 100),
        Story::new(style.clone(), Record::Kept),
        &style,
    );
    for event in run_that_fails() {
        live.events(&[event]).unwrap();
    }
    let text = screen.text();
    assert!(!text.contains("\x1b]"), "no escape sequence of a step's output: {text:?}");
    let text = clean_lines(&text);
    for line in [
        "= image [app 2/3] COPY . /src: cached\n",
        "+ image: done in 4.3s -> sha256:0123456789ab\n",
        "  | fake: step passed\n",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let last = "x run 20261123-140309-3fa2c1 failed after 3m11s, exit code 1";
    assert!(text.lines().last().unwrap().starts_with(last), "{text}");
}

#[test]
fn a_long_command_leaves_room_for_what_it_says() {
    let style = Style::plain(false);
    let events = told(vec![
        (&[0], EventKind::Planned { name: format!("RUN {}", "x".repeat(300)), kind: "exec".into() }),
        (&[0], EventKind::Started { name: String::new() }),
        (&[0], EventKind::Log { stream: LogStream::Stdout, text: "compiling main.c\n".into() }),
    ]);
    let screen = Shared::default();
    let size = || (30, 80);
    let terminal = terminal::Terminal::new(Box::new(screen.clone()), size);
    let story = Story::new(style.clone(), Record::Kept);
    let mut live = live::Live::on(terminal, Box::new(screen.clone()), size, story, &style);
    live.events(&events).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !screen.text().contains("compiling main.c") && std::time::Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert!(screen.text().contains(".. | compiling main.c"), "{:?}", screen.text());
}

/// The other side of the resize test: draws, and goes on when it is told to.
#[test]
fn child_that_draws_in_a_terminal() {
    if std::env::var_os("KEELWAY_TEST_CHILD").is_none() {
        return;
    }
    let style = Style::plain(false);
    let mut live = live::Live::on_stderr(Story::new(style.clone(), Record::Kept), &style);
    let events = run_that_fails();
    let test_runs = events
        .iter()
        .position(|e| matches!(&e.kind, EventKind::Log { text, .. } if text.starts_with("test case 3 ")))
        .unwrap();
    live.events(&events[..test_runs]).unwrap();
    std::fs::write("drawn", "").unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !std::path::Path::new("go").exists() && std::time::Instant::now() < deadline {
        std::thread::yield_now();
    }
    live.events(&events[test_runs..]).unwrap();
    std::fs::write("ended", "").unwrap();
    while !std::path::Path::new("leave").exists() && std::time::Instant::now() < deadline {
        std::thread::yield_now();
    }
}

/// A tmux server of its own, ended with the test.
struct Tmux(std::path::PathBuf);

impl Tmux {
    fn run(&self, args: &[&str]) -> String {
        let out = std::process::Command::new("tmux")
            .arg("-S")
            .arg(self.0.join("socket"))
            .args(["-f", "/dev/null"])
            .args(args)
            .output();
        let out = out.expect("tmux is installed");
        assert!(out.status.success(), "tmux {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }
    fn wait_for(&self, what: &str, there: impl Fn() -> bool) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(15);
        while !there() {
            assert!(std::time::Instant::now() < deadline, "{what} within 15 seconds");
            std::thread::yield_now();
        }
    }
    fn screen(&self) -> String {
        self.run(&["capture-pane", "-p", "-J", "-S", "-"])
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        let _ = std::process::Command::new("tmux")
            .arg("-S")
            .arg(self.0.join("socket"))
            .arg("kill-server")
            .output();
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn live_lines_leave_no_litter_when_the_terminal_gets_narrow() {
    let dir = std::path::PathBuf::from(format!("/dev/shm/keelway-resize-{}", std::process::id()));
    std::fs::create_dir(&dir).unwrap();
    let tmux = Tmux(dir.clone());
    let exe = std::env::current_exe().unwrap();
    let child = format!(
        "cd {} && KEELWAY_TEST_CHILD=1 exec {} --exact render::tests::child_that_draws_in_a_terminal --nocapture --test-threads=1",
        dir.display(),
        exe.display()
    );
    tmux.run(&["new-session", "-d", "-x", "120", "-y", "50", &child]);
    let live = "test | test case 2 ok";
    tmux.wait_for("the first drawing", || dir.join("drawn").exists());
    tmux.wait_for("the live line", || tmux.screen().contains(live));
    // Narrower than the live line is long.
    tmux.run(&["resize-window", "-x", "20", "-y", "50"]);
    tmux.wait_for("the narrow window", || {
        tmux.run(&["display-message", "-p", "#{pane_width}"]).trim() == "20"
    });
    std::fs::write(dir.join("go"), "").unwrap();
    tmux.wait_for("the end", || dir.join("ended").exists());
    tmux.wait_for("the last line", || tmux.screen().contains("failed: test"));
    let screen = tmux.screen();
    std::fs::write(dir.join("leave"), "").unwrap();
    assert!(!screen.contains(live), "the live line is gone: {screen}");
    assert!(!screen.contains("0s "), "so is every other: {screen}");
    for once in
        ["+ image: done in 4.3s", "= image [app 2/3] COPY . /src: cached", "x test: failed after 3m07s"]
    {
        assert_eq!(screen.matches(once).count(), 1, "{once}: {screen}");
    }
}

#[test]
fn diagnostics_show_every_place() {
    let text = "version: 1\nstages:\n  tset:\n    needs: [imag]\n\x1b[2J  tset:\n    steps: []\n";
    let at = |what: &str, nth: usize| {
        let start = text.match_indices(what).nth(nth).unwrap().0;
        Span::new(start, start + what.len())
    };
    let mut found = Diagnostics::of(SourceText::new("keelway.yml", text));
    found.push(
        Diagnostic::error("K0102", "keelway.yml", at("imag", 0), "stage \"imag\" does not exist")
            .label("no such stage")
            .hint("did you mean \"image\"?"),
    );
    found.push(
        Diagnostic::error("K0007", "keelway.yml", at("tset", 1), "stage \"tset\" is there twice")
            .label("again here")
            .related(at("tset", 0), "first defined here"),
    );
    found.push(Diagnostic::warning("K0900", "keelway.yml", Span::new(9999, 10_000), "the file ends early"));
    found.push(Diagnostic::error("K0001", "other.yml", Span::new(0, 1), "the file cannot be read"));
    let plain = diagnostics(&found, &Style::plain(false));
    assert!(plain.contains("keelway.yml:4:13"), "{plain}");
    assert!(!plain.contains('\x1b'), "{plain:?}");
    assert!(diagnostics(&found, &Style::plain(true)).contains("\x1b["));
    insta::assert_snapshot!(plain);
}

#[test]
fn no_span_makes_rendering_panic() {
    let text = "дом: 1\r\nb\x07\u{202e}ж\n";
    for start in 0..text.len() + 3 {
        for end in 0..text.len() + 3 {
            let mut found = Diagnostics::of(SourceText::new("f", text));
            found.push(
                Diagnostic::error("K1", "f", Span::new(start, end), "m").related(Span::new(end, start), "r"),
            );
            let out = diagnostics(&found, &Style::plain(false));
            assert!(!out.contains(['\x07', '\u{202e}', '\r']), "{out:?}");
        }
    }
}
