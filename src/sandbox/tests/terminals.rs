//! Terminals of sandboxes.

use crate::fixture::{PATIENCE, argv, busybox, fresh, launcher, over, sh, start};
use keelway_sandbox::{ExecSpec, ExitKind, Stdio, User, Window};
use libtest_mimic::Failed;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

pub const TESTS: &[crate::Test] = &[
    ("terminals::a_process_has_a_terminal_of_its_own", a_process_has_a_terminal_of_its_own),
    ("terminals::a_joined_process_has_one_too", a_joined_process_has_one_too),
    ("terminals::typed_signals_and_the_end_of_the_line", typed_signals_and_the_end_of_the_line),
    ("terminals::r05_nothing_of_the_image_is_taken_for_one", nothing_of_the_image_is_taken_for_one),
];

const WINDOW: Window = Window { rows: 33, columns: 77 };

/// The owner's side.
struct Side(File);

impl Side {
    fn of(fd: Option<OwnedFd>) -> Self {
        Self(File::from(fd.expect("there is a terminal")))
    }
    fn type_in(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).unwrap();
    }
    /// Reads until this was shown, or the process has closed its side.
    fn until(&mut self, wanted: &str) -> String {
        let (mut text, end) = (String::new(), Instant::now() + PATIENCE);
        while wanted.is_empty() || !text.contains(wanted) {
            let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{wanted:?} did not come: {text:?}");
            if poll(&mut fds, PollTimeout::try_from(left).unwrap()).unwrap() == 0 {
                continue;
            }
            let mut bytes = [0; 4096];
            match self.0.read(&mut bytes) {
                Ok(0) | Err(_) => break,
                Ok(n) => text.push_str(&String::from_utf8_lossy(&bytes[..n])),
            }
        }
        text
    }
    fn resize(&self, rows: u16, columns: u16) {
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&self.0, size).unwrap();
    }
}

fn a_process_has_a_terminal_of_its_own() -> Result<(), Failed> {
    let script = "tty; stty size; test -c /dev/console && stat -c '%u:%g %a %t:%T' /dev/pts/0 /dev/console; \
                  echo hello > /dev/console; echo there > /dev/tty; ls /dev | grep -c console; \
                  trap 'stty size; exit 4' WINCH; echo ready; while :; do sleep 0.01; done";
    for user in [0, 1000] {
        let mut spec = sh(script);
        spec.terminal = Some(WINDOW);
        spec.user = User { uid: user, gid: user, groups: vec![] };
        let mut running = launcher().spawn(&spec, Stdio::null().unwrap()).unwrap();
        let mut side = Side::of(running.take_terminal());
        let shown = side.until("ready\r\n");
        let wanted = format!(
            "/dev/pts/0\r\n33 77\r\n{user}:5 620 88:0\r\n{user}:5 620 88:0\r\nhello\r\nthere\r\n1\r\nready\r\n"
        );
        assert_eq!(shown, wanted);
        side.resize(50, 120);
        assert_eq!(side.until(""), "50 120\r\n");
        assert_eq!(running.wait().unwrap().kind, ExitKind::Code(4));
    }
    Ok(())
}

fn a_joined_process_has_one_too() -> Result<(), Failed> {
    let s = start(&sh("exec sleep 1000")).unwrap();
    let handle = s.running.handle();
    for (n, user) in [0, 1000].into_iter().enumerate() {
        let mut spec =
            ExecSpec::new(argv(&["/bin/sh", "-c", "tty; stty size; id -u; echo x > /dev/tty; cat"]));
        spec.terminal = Some(WINDOW);
        spec.user = User { uid: user, gid: user, groups: vec![] };
        let mut executed = handle.exec(&spec, Stdio::null().unwrap()).unwrap();
        let mut side = Side::of(executed.take_terminal());
        assert_eq!(
            side.until("x\r\n"),
            format!("/dev/pts/{n}\r\n33 77\r\n{user}\r\nx\r\n").replace("pts/1", "pts/0")
        );
        side.type_in("typed\n");
        assert_eq!(side.until("typed\r\ntyped\r\n"), "typed\r\ntyped\r\n");
        side.type_in("\x04");
        assert_eq!(executed.wait().unwrap(), ExitKind::Code(0));
    }
    Ok(())
}

fn typed_signals_and_the_end_of_the_line() -> Result<(), Failed> {
    let mut spec = sh("echo ready; exec sleep 1000");
    spec.terminal = Some(WINDOW);
    let mut running = launcher().spawn(&spec, Stdio::null().unwrap()).unwrap();
    let mut side = Side::of(running.take_terminal());
    side.until("ready\r\n");
    side.type_in("\x03");
    assert_eq!(running.wait().unwrap().kind, ExitKind::Signal(2));
    // The line is cut: the session hears of it.
    let mut spec = sh("echo ready; exec sleep 1000");
    spec.terminal = Some(WINDOW);
    let mut running = launcher().spawn(&spec, Stdio::null().unwrap()).unwrap();
    let mut side = Side::of(running.take_terminal());
    side.until("ready\r\n");
    drop(side);
    assert_eq!(running.wait().unwrap().kind, ExitKind::Signal(1));
    Ok(())
}

fn nothing_of_the_image_is_taken_for_one() -> Result<(), Failed> {
    let sentinel = fresh().join("sentinel");
    std::fs::write(&sentinel, "untouched").unwrap();
    let image = fresh();
    std::fs::create_dir_all(image.join("dev/pts")).unwrap();
    for name in ["dev/console", "dev/pts/0", "dev/pts/ptmx", "dev/ptmx", "dev/tty"] {
        std::os::unix::fs::symlink(&sentinel, image.join(name)).unwrap();
    }
    let mut spec = sh("echo written > /dev/console; tty");
    spec.root = over(vec![busybox(), image]);
    spec.terminal = Some(WINDOW);
    let mut running = launcher().spawn(&spec, Stdio::null().unwrap()).unwrap();
    let mut side = Side::of(running.take_terminal());
    assert_eq!(side.until(""), "written\r\n/dev/pts/0\r\n");
    assert!(running.wait().unwrap().success());
    assert_eq!(std::fs::read_to_string(&sentinel).unwrap(), "untouched");
    Ok(())
}
