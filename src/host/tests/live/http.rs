//! A blocking HTTP/1.1 of a few lines, independent of the one under test.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A process that asks from wherever it runs: `ADDRESS TARGET`. Writes the status or `None`.
pub fn run(args: &[std::ffi::OsString]) -> std::process::ExitCode {
    let text = |i: usize| args[i].to_str().expect("our own arguments");
    let status = once(text(0).parse().expect("an address"), text(1));
    writeln!(std::io::stdout(), "{status:?}").expect("stdout");
    std::process::ExitCode::SUCCESS
}

/// No 2xx within this is a lost request.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// A request or an answer.
#[derive(Debug)]
pub struct Message {
    pub start: String,
    pub headers: Vec<String>,
    pub body: Vec<u8>,
}

impl Message {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|h| {
            let (n, v) = h.split_once(':')?;
            n.eq_ignore_ascii_case(name).then(|| v.trim())
        })
    }
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Reads one; `headless` is the answer to a HEAD. `None` when the stream ends or breaks.
pub fn read_message(reader: &mut impl BufRead, headless: bool) -> Option<Message> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line.trim_end().is_empty() {
            break;
        }
        lines.push(line.trim_end().to_owned());
    }
    let mut message =
        Message { start: lines.first()?.clone(), headers: lines.split_off(1), body: Vec::new() };
    if headless {
        return Some(message);
    }
    if let Some(length) = message.header("content-length") {
        message.body = vec![0; length.parse().ok()?];
        reader.read_exact(&mut message.body).ok()?;
    } else if message.header("transfer-encoding").is_some() {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let length = usize::from_str_radix(line.trim(), 16).ok()?;
            let mut chunk = vec![0; length + 2];
            reader.read_exact(&mut chunk).ok()?;
            message.body.extend_from_slice(&chunk[..length]);
            if length == 0 {
                break;
            }
        }
    }
    Some(message)
}

/// A client connection.
pub struct Client {
    reader: BufReader<TcpStream>,
}

impl Client {
    pub fn connect(to: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self::of(stream))
    }
    /// On a connection that is there.
    pub fn of(stream: TcpStream) -> Self {
        Self { reader: BufReader::new(stream) }
    }
    pub fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }
    pub fn read(&mut self) -> Option<Message> {
        read_message(&mut self.reader, false)
    }
    pub fn read_head(&mut self) -> Option<Message> {
        read_message(&mut self.reader, true)
    }
    pub fn read_line(&mut self) -> String {
        let mut line = String::new();
        let _ = self.reader.read_line(&mut line);
        line
    }
    /// Sends one request and reads its answer.
    pub fn ask(&mut self, method: &str, target: &str, body: &str) -> Option<Message> {
        let request = format!(
            "{method} {target} HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.write(request.as_bytes()).ok()?;
        if method == "HEAD" { self.read_head() } else { self.read() }
    }
}

/// One request on a connection of its own: the status, or nothing.
pub fn once(to: SocketAddr, target: &str) -> Option<u16> {
    let answer = Client::connect(to).ok()?.ask("GET", target, "")?;
    answer.start.split(' ').nth(1)?.parse().ok()
}
