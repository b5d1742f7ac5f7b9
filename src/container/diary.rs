//! What a process of ours says, in a file that stays small while the process lives.
//!
//! Several processes may share a diary: each appends to it as its standard output and error, and each looks now and then.
//! Whoever finds it full turns the page: the file becomes `NAME.1`, in place of the one before, and a new one begins. The
//! others find that the name leads elsewhere, and follow. So a diary takes at most two pages, and what is said within one
//! look beyond.

use keelway_disk::Lock;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes of a page.
pub const PAGE: u64 = 4 << 20;
/// Bytes of the last line, at most.
const LAST: u64 = 4096;
/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// A diary, by its file.
#[derive(Debug, Clone)]
pub struct Diary {
    path: PathBuf,
    page: u64,
}

impl Diary {
    /// At this path, in pages of [`PAGE`].
    pub fn at(path: &Path) -> Self {
        Self::in_pages(path, PAGE)
    }
    /// The same, with pages of another size.
    pub fn in_pages(path: &Path, page: u64) -> Self {
        Self { path: path.to_owned(), page }
    }

    fn beside(&self, end: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(end);
        name.into()
    }

    /// Opens it for appending: living processes share the file, and none may write at an offset of its own. A full page
    /// is turned first.
    pub fn open(&self) -> io::Result<File> {
        if std::fs::metadata(&self.path).is_ok_and(|m| m.len() > self.page) {
            self.turn()?;
        }
        OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path)
    }

    /// The last line that was said, without what the command line says before each; `None` where nothing was said.
    pub fn last_line(&self) -> io::Result<Option<String>> {
        let mut file = match File::open(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(LAST)))?;
        let mut end = Vec::new();
        file.take(LAST).read_to_end(&mut end)?;
        let text = String::from_utf8_lossy(&end);
        let last = text.lines().map(str::trim).rfind(|line| !line.is_empty());
        Ok(last.map(|line| line.strip_prefix("keelway: ").unwrap_or(line).to_owned()))
    }

    /// Turns the page, unless somebody else does.
    fn turn(&self) -> io::Result<()> {
        let Some(_turning) = Lock::try_take(&self.beside(".lock")).map_err(io::Error::other)? else {
            return Ok(());
        };
        // Somebody else may have done it before we had the lock.
        if std::fs::metadata(&self.path).is_ok_and(|m| m.len() > self.page) {
            std::fs::rename(&self.path, self.beside(".1"))?;
        }
        Ok(())
    }

    /// The file to go on with instead of `ours`, where that is not the page that the next line belongs on.
    fn next(&self, ours: &Metadata) -> io::Result<Option<File>> {
        let is_open = |m: &Metadata| same(m, ours) && ours.len() <= self.page;
        if std::fs::metadata(&self.path).is_ok_and(|m| is_open(&m)) {
            return Ok(None);
        }
        self.open().map(Some)
    }

    /// Keeps the diary short for as long as it is polled, where this process writes to it: where its standard error is a
    /// page of it.
    pub async fn keep(self) {
        let pages = [self.path.clone(), self.beside(".1")];
        let is_page =
            |ours: &Metadata| pages.iter().any(|p| std::fs::metadata(p).is_ok_and(|m| same(&m, ours)));
        if !standard_error().is_ok_and(|ours| is_page(&ours)) {
            return;
        }
        let mut said = false;
        loop {
            tokio::time::sleep(LOOK).await;
            let followed = standard_error().and_then(|ours| self.next(&ours)).and_then(|next| match next {
                Some(next) => Ok(nix::unistd::dup2_stdout(&next).and(nix::unistd::dup2_stderr(&next))?),
                None => Ok(()),
            });
            // Once: a diary that cannot be kept short must not grow because of that.
            if let Err(error) = followed
                && !std::mem::replace(&mut said, true)
            {
                tracing::warn!(%error, path = %self.path.display(), "cannot keep the diary short");
            }
        }
    }
}

fn same(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// What standard error is.
fn standard_error() -> io::Result<Metadata> {
    let duplicate = std::os::fd::AsFd::as_fd(&io::stderr()).try_clone_to_owned()?;
    File::from(duplicate).metadata()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_full_page_is_turned_once_and_everybody_follows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("diary");
        let diary = Diary::in_pages(&path, 100);
        // Two processes.
        let mut files = [diary.open().unwrap(), diary.open().unwrap()];
        let look = |file: &mut File| {
            if let Some(next) = diary.next(&file.metadata().unwrap()).unwrap() {
                *file = next;
            }
        };
        for round in 0..50 {
            for (n, file) in files.iter_mut().enumerate() {
                writeln!(file, "line {round} of {n}, long enough").unwrap();
                look(file);
            }
        }
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        let (before, now) = (read("diary.1"), read("diary"));
        // A page, the line that made it full, and one of the other before it looked.
        assert!(before.len() < 200 && now.len() < 200, "{before}{now}");
        let last: Vec<String> = (0..2).map(|n| format!("line 49 of {n}, long enough\n")).collect();
        assert!((before + &now).ends_with(&last.concat()), "nothing new is lost");
        files.iter_mut().for_each(look);
        let names = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(names, 3, "two pages and a lock");
    }

    #[test]
    fn a_diary_that_is_not_full_is_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let diary = Diary::in_pages(&dir.path().join("diary"), 100);
        writeln!(diary.open().unwrap(), "one").unwrap();
        writeln!(diary.open().unwrap(), "two").unwrap();
        assert_eq!(std::fs::read_to_string(&diary.path).unwrap(), "one\ntwo\n");
        assert_eq!(diary.last_line().unwrap().unwrap(), "two");
        write!(diary.open().unwrap(), "{}\nkeelway: three\n\n", "x".repeat(9000)).unwrap();
        assert_eq!(diary.last_line().unwrap().unwrap(), "three");
        assert_eq!(Diary::at(&dir.path().join("absent")).last_line().unwrap(), None);
    }
}
