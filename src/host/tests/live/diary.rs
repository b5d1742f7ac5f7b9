//! A diary stays small while the processes that write to it live.

use crate::balancing::wait_for;
use crate::scratch;
use keelway_container::diary::Diary;
use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

const PAGE: u64 = 32 << 10;
/// What one process writes in all, far more than two pages.
const LINES: u32 = 4000;
/// A line with its newline.
const LINE: u64 = 100;
/// Between two lines: slow enough that what is said between two looks is less than a page.
const PAUSE: Duration = Duration::from_millis(1);

/// The process: `DIARY NAME`. It talks, says when it is done, and waits to be ended.
pub fn run(args: &[OsString]) -> ExitCode {
    let (diary, name) = (Diary::in_pages(Path::new(&args[0]), PAGE), args[1].to_string_lossy().into_owned());
    let runtime = keelway_container::process::runtime("chatter").expect("a runtime");
    runtime.spawn(diary.keep());
    for n in 0..LINES {
        let line = format!("{name} {n}");
        let _ = writeln!(std::io::stderr(), "{line:<99}");
        std::thread::sleep(PAUSE);
    }
    let mut nobody = String::new();
    let _ = std::io::stdin().read_line(&mut nobody);
    ExitCode::SUCCESS
}

pub fn stays_small() {
    let path = scratch("diary").join("chatter");
    let diary = Diary::in_pages(&path, PAGE);
    let mut chatters: Vec<_> = ["one", "two"]
        .map(|name| {
            let out = diary.open().unwrap();
            Command::new(std::env::current_exe().unwrap())
                .args(["__chatter".as_ref(), path.as_os_str(), name.as_ref()])
                .stdin(std::process::Stdio::piped())
                .stdout(out.try_clone().unwrap())
                .stderr(out)
                .spawn()
                .unwrap()
        })
        .into();
    let dir = path.parent().unwrap();
    let said = || -> String {
        ["chatter.1", "chatter"].map(|f| std::fs::read_to_string(dir.join(f)).unwrap_or_default()).concat()
    };
    // Two pages, and what both say within two looks of a second.
    let most = 2 * PAGE + 4 * LINE * 1000;
    assert!(most < u64::from(LINES) * 2 * LINE, "without a bound it would be more");
    let (mut largest, begun) = (0, Instant::now());
    wait_for("the last lines of both", || {
        let now = said();
        largest = largest.max(now.len() as u64);
        ["one", "two"].iter().all(|name| now.contains(&format!("{name} {} ", LINES - 1)))
    });
    assert!(largest < most, "{largest} bytes, {:?}", begun.elapsed());
    assert!(std::fs::read_dir(dir).unwrap().count() <= 3, "two pages and a lock");
    for chatter in &mut chatters {
        drop(chatter.stdin.take());
        assert!(chatter.wait().unwrap().success());
    }
}
