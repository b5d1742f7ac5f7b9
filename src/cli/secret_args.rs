//! `--secret` and `--ssh`: what a Dockerfile's mounts may name, and where it is.
//!
//! The command line has names of files and variables only; what they hold is read here, once, and prints as `***`.

use crate::files;
use crate::machine::Machine;
use crate::outcome::CommandError;
use keelway_model::Redacted;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Largest secret, in bytes, as docker has it.
const MAX_SECRET: u64 = 500 * 1024;

/// `--secret id=ID,src=FILE`, `--secret id=ID,env=NAME`; an id alone is the name of a variable.
pub fn secrets(words: &[String]) -> Result<BTreeMap<String, Redacted<Vec<u8>>>, CommandError> {
    let mut secrets = BTreeMap::new();
    for word in words {
        let (id, content) = secret(word)?;
        if secrets.insert(id.clone(), Redacted::new(content)).is_some() {
            return Err(CommandError::usage(format!("--secret: the id {id:?} is given twice")));
        }
    }
    Ok(secrets)
}

fn secret(word: &str) -> Result<(String, Vec<u8>), CommandError> {
    let wrong = |why: &str| {
        CommandError::usage(format!(
            "--secret {word:?}: {why}; write id=NAME,src=FILE or id=NAME,env=VARIABLE"
        ))
    };
    let (mut id, mut source, mut variable, mut kind) = (None, None, None, None);
    for field in word.split(',') {
        let Some((key, value)) = field.split_once('=').filter(|(_, v)| !v.is_empty()) else {
            return Err(wrong(&format!("{field:?} has no value")));
        };
        let place = match key.trim() {
            "id" => &mut id,
            "src" | "source" => &mut source,
            "env" => &mut variable,
            "type" => &mut kind,
            other => return Err(wrong(&format!("{other:?} is not known"))),
        };
        *place = Some(value);
    }
    let Some(id) = id else { return Err(wrong("it has no id")) };
    match kind {
        None | Some("file" | "env") => {}
        Some(other) => return Err(wrong(&format!("the type {other:?} is not known"))),
    }
    // As docker has it: the source of a secret of type env is a variable.
    if kind == Some("env") && variable.is_none() {
        variable = source.take();
    }
    match (source, variable) {
        (Some(_), Some(_)) => Err(wrong("it has both a file and a variable")),
        (Some(file), None) => {
            let content = files::read(Path::new(file), MAX_SECRET)
                .map_err(|e| CommandError::usage(format!("--secret id={id}: {file}: {e}")))?;
            Ok((id.to_owned(), content))
        }
        (None, variable) => {
            let name = variable.unwrap_or(id);
            let value = Machine::variable(name)
                .ok_or_else(|| wrong(&format!("the environment has no variable {name:?}")))?;
            if value.len() as u64 > MAX_SECRET {
                return Err(wrong(&format!("a secret has at most {} KiB", MAX_SECRET / 1024)));
            }
            Ok((id.to_owned(), value.into_bytes()))
        }
    }
}

/// `--ssh default`, `--ssh ID=SOCKET`: sockets of agents.
pub fn agents(words: &[String]) -> Result<BTreeMap<String, PathBuf>, CommandError> {
    let mut agents = BTreeMap::new();
    for word in words {
        let (id, socket) = match word.split_once('=') {
            Some((id, socket)) => (id, Some(PathBuf::from(socket))),
            None => (word.as_str(), Machine::variable("SSH_AUTH_SOCK").map(PathBuf::from)),
        };
        let wrong = |why: String| CommandError::usage(format!("--ssh {word:?}: {why}"));
        if id.is_empty() {
            return Err(wrong("write it as ID or ID=SOCKET, for example default".into()));
        }
        let Some(socket) = socket.filter(|s| !s.as_os_str().is_empty()) else {
            return Err(wrong(
                "no agent runs: SSH_AUTH_SOCK is not set; start one, or say its socket".into(),
            ));
        };
        let socket = std::path::absolute(&socket).map_err(|e| wrong(e.to_string()))?;
        use std::os::unix::fs::FileTypeExt;
        match std::fs::metadata(&socket) {
            Ok(found) if found.file_type().is_socket() => {}
            Ok(_) => {
                return Err(wrong(format!(
                    "{} is not a socket; keys are given by an agent that holds them: ssh-add them to one",
                    socket.display()
                )));
            }
            Err(e) => return Err(wrong(format!("{}: {e}", socket.display()))),
        }
        if agents.insert(id.to_owned(), socket).is_some() {
            return Err(wrong("this id is given twice".into()));
        }
    }
    Ok(agents)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(e: &CommandError) -> String {
        format!("{e:?}")
    }

    fn one(word: &str) -> Result<(String, Vec<u8>), String> {
        secret(word).map_err(|e| said(&e))
    }

    #[test]
    fn secrets_are_files_or_variables() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("s");
        std::fs::write(&file, b"v\xff\n").unwrap();
        let file = file.to_str().unwrap();
        for word in
            [format!("id=a,src={file}"), format!("type=file,source={file},id=a"), format!("src={file},id=a")]
        {
            assert_eq!(one(&word).unwrap(), ("a".into(), b"v\xff\n".to_vec()), "{word}");
        }
        let path = std::env::var("PATH").unwrap().into_bytes();
        for word in ["id=PATH", "id=PATH,env=PATH", "id=PATH,type=env", "type=env,id=PATH,src=PATH"] {
            assert_eq!(one(word).unwrap(), ("PATH".into(), path.clone()), "{word}");
        }
        for (word, what) in [
            ("a", "has no value"),
            ("src=x", "has no id"),
            ("id=a,scr=x", "is not known"),
            ("id=a,type=vault", "is not known"),
            ("id=a,src=/x,env=Y", "both"),
            ("id=KEELWAY_NOT_SET", "no variable"),
            ("id=a,src=/does/not/exist", "No such file"),
        ] {
            let e = one(word).unwrap_err();
            assert!(e.contains(what), "{word}: {e}");
        }
        let twice = format!("id=a,src={file}");
        assert!(secrets(&[twice.clone(), twice]).is_err());
    }

    #[test]
    fn agents_are_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let word = format!("k={}", path.display());
        assert_eq!(agents(std::slice::from_ref(&word)).unwrap().get("k"), Some(&path));
        assert!(agents(&[word.clone(), word]).is_err());
        for (word, what) in
            [("=x", "ID=SOCKET"), ("k=/etc/passwd", "not a socket"), ("k=/none", "No such file")]
        {
            let e = said(&agents(&[word.to_owned()]).err().unwrap());
            assert!(e.contains(what), "{word}: {e}");
        }
    }
}
