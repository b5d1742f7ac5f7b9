//! A backend: answers each request once, writes its id down first, and dies at once on SIGTERM.

use crate::http::{Message, read_message};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// While false, `/healthz` says 503; `/sick` and `/well` change it.
static WELL: AtomicBool = AtomicBool::new(true);

/// The process: `LOG`.
pub fn run(args: &[OsString]) -> ExitCode {
    let log = OpenOptions::new().append(true).create(true).open(&args[0]).expect("the log");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut out = std::io::stdout();
    writeln!(out, "{}", listener.local_addr().expect("an address")).expect("stdout");
    out.flush().expect("stdout");
    for stream in listener.incoming().flatten() {
        let log = log.try_clone().expect("a descriptor");
        std::thread::spawn(move || serve(stream, log));
    }
    ExitCode::SUCCESS
}

fn serve(mut stream: TcpStream, mut log: File) {
    let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
    while let Some(request) = read_message(&mut reader, false) {
        let target = request.start.split(' ').nth(1).unwrap_or("/").to_owned();
        if request.header("upgrade").is_some() {
            let head = "HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
            stream.write_all(head.as_bytes()).expect("a head");
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|n| n > 0) {
                stream.write_all(line.to_uppercase().as_bytes()).expect("an echo");
                line.clear();
            }
            return;
        }
        let (status, body) = answer(&target, &request, &mut log);
        if target.starts_with("/half") {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf");
            // Nothing more; until the other side has enough of it.
            let _ = reader.read_line(&mut String::new());
            return;
        }
        if target.starts_with("/two-lengths") {
            let reply = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
            if stream.write_all(reply.as_bytes()).is_err() {
                return;
            }
            continue;
        }
        let none = if request.start.starts_with("HEAD") { "" } else { body.as_str() };
        let reply = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{none}", body.len());
        if stream.write_all(reply.as_bytes()).is_err() {
            return;
        }
    }
}

fn answer(target: &str, request: &Message, log: &mut File) -> (&'static str, String) {
    match target {
        "/healthz" if WELL.load(Ordering::SeqCst) => return ("200 OK", "well\n".into()),
        "/healthz" => return ("503 Sick", "sick\n".into()),
        "/sick" | "/well" => WELL.store(target == "/well", Ordering::SeqCst),
        _ => {}
    }
    // One write: lines of several threads do not mix. Before the answer: what is answered is in the log.
    log.write_all(format!("{target}\n").as_bytes()).expect("the log");
    if let Some(wait) = target.split("wait=").nth(1).and_then(|w| w.parse().ok()) {
        std::thread::sleep(Duration::from_millis(wait));
    }
    if let Some(bytes) = target.split("bytes=").nth(1).and_then(|b| b.parse().ok()) {
        return ("200 OK", "x".repeat(bytes));
    }
    (
        "200 OK",
        format!(
            "{}\n{}\n{}",
            request.start,
            request.headers.join("\n"),
            String::from_utf8_lossy(&request.body)
        ),
    )
}

/// A backend of a test.
pub struct Backend {
    child: Child,
    pub address: SocketAddr,
    pub log: PathBuf,
}

impl Backend {
    pub fn start(log: &Path) -> Self {
        let me = std::env::current_exe().expect("our own path");
        let mut child =
            Command::new(me).arg("__backend").arg(log).stdout(Stdio::piped()).spawn().expect("a backend");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("its address");
        Self { child, address: line.trim().parse().expect("an address"), log: log.into() }
    }
    /// SIGTERM; it dies at once, whatever it is doing.
    pub fn stop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"));
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
    }
    pub fn logged(&self) -> Vec<String> {
        std::fs::read_to_string(&self.log).unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
