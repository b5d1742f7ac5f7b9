//! Credential helpers: `docker-credential-NAME get`, the registry on standard input, JSON on standard output.

use crate::docker_config::{Login, helper_key};
use crate::error::cleaned;
use serde::Deserialize;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

/// How long a helper may take: long enough for a person to unlock a key chain.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// How much a helper may say on either stream, in bytes.
const MAX_OUTPUT: u64 = 64 << 10;

/// A credential helper failed.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// It could not be started.
    #[error("the credential helper {program} could not be started: {cause}")]
    Start {
        /// The program.
        program: String,
        /// The cause.
        cause: String,
    },
    /// It ended badly.
    #[error("the credential helper {program} failed: {said}")]
    Failed {
        /// The program.
        program: String,
        /// Its words on standard error, bounded and cleaned; never its standard output.
        said: String,
    },
    /// It did not end.
    #[error("the credential helper {program} did not answer within {}", keelway_model::format_duration(*.after))]
    Timeout {
        /// The program.
        program: String,
        /// How long it was given.
        after: Duration,
    },
    /// Its answer makes no sense.
    #[error("the credential helper {program} answered with something that is no login")]
    Answer {
        /// The program.
        program: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Asks a helper; `None` when it has no login for the registry. The process is killed at the deadline and
/// when the future is dropped.
pub(crate) async fn get(
    name: &str,
    dirs: &[PathBuf],
    registry: &str,
    deadline: Duration,
) -> Result<Option<Login>, HelperError> {
    let program = format!("docker-credential-{name}");
    let path = dirs
        .iter()
        .map(|d| d.join(&program))
        .find(|p| p.is_file())
        .unwrap_or_else(|| PathBuf::from(&program));
    let start = |e: std::io::Error| HelperError::Start { program: program.clone(), cause: e.to_string() };
    let mut child = tokio::process::Command::new(path)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(start)?;
    let mut stdin = child.stdin.take().expect("piped above");
    let stdout = child.stdout.take().expect("piped above");
    let stderr = child.stderr.take().expect("piped above");
    let talk = async {
        // A helper may answer without reading its input; that write error is no failure.
        let _ = stdin.write_all(format!("{}\n", helper_key(registry)).as_bytes()).await;
        drop(stdin);
        let (out, err) = tokio::join!(bounded(stdout), bounded(stderr));
        Ok::<_, std::io::Error>((child.wait().await?, out?, err?))
    };
    let (status, out, err) = tokio::time::timeout(deadline, talk)
        .await
        .map_err(|_| HelperError::Timeout { program: program.clone(), after: deadline })?
        .map_err(start)?;
    if !status.success() {
        let (out, err) = (String::from_utf8_lossy(&out), String::from_utf8_lossy(&err));
        // The words by which helpers say that there is nothing, on either stream.
        if out.contains("credentials not found") || err.contains("credentials not found") {
            return Ok(None);
        }
        let said = cleaned(&err);
        let said = if said.is_empty() { status.to_string() } else { said };
        return Err(HelperError::Failed { program, said });
    }
    let answer: Answer =
        serde_json::from_slice(&out).map_err(|_| HelperError::Answer { program: program.clone() })?;
    if answer.secret.is_empty() {
        return Ok(None);
    }
    Ok(Some(match answer.username.as_str() {
        "<token>" => Login::Identity { token: answer.secret.into() },
        _ => Login::Password { user: answer.username, password: answer.secret.into() },
    }))
}

/// Reads up to the limit and throws the rest away, so that the helper does not block on a full pipe.
async fn bounded(mut from: impl AsyncRead + Unpin) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::new();
    (&mut from).take(MAX_OUTPUT).read_to_end(&mut out).await?;
    tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
    Ok(out)
}
