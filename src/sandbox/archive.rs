//! Files out of a sandbox and into it, as a tar.
//!
//! The side of the sandbox is a process of ours inside of it, with its root, its ids and no more powers than its own
//! processes: whatever they do to paths meanwhile, no path leads out (CVE-2018-15664). The other side unpacks below one
//! directory by descriptor, so that a hostile tar writes nowhere else. No program of the root is run (CVE-2019-14271).
//!
//! The tar holds one entry `r` and what is beneath it. Device nodes, FIFOs and sockets are left out.

use crate::spec::Work;
use keelway_disk::{NodeKind, Root};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::{File, Metadata, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tar::{Builder, EntryType, Header};

/// The name of the one entry.
const NAME: &[u8] = b"r";
/// The bits of a mode that let a program run as its owner or group.
const SET_ID: u32 = 0o6000;
/// Longest path in a tar.
const MAX_PATH: usize = 4096;

/// Where an unpacked tree goes, by the rules of docker's `cp`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    /// The path as it was written; a `/` at its end wants a directory that is there.
    pub path: String,
    /// The name that it gets where the path is a directory that is there.
    pub name: String,
    /// Whether only what is beneath goes into that directory.
    pub contents: bool,
}

/// What becomes of [`SET_ID`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetId {
    /// They stay: in a container they count for its own users only.
    Kept,
    /// They go: on the machine a file that a container chose would run as whoever copied it, root perhaps.
    Dropped,
}

impl SetId {
    const fn of(self, mode: u32) -> u32 {
        match self {
            Self::Kept => mode & 0o7777,
            Self::Dropped => mode & 0o7777 & !SET_ID,
        }
    }
}

/// Does it for a process of the sandbox; gives its exit code.
pub(crate) fn work(work: &Work) -> i32 {
    let own = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().map(File::from);
    let done = match work {
        Work::Program => Ok(()),
        Work::Pack { path } => {
            own(io::stdout().as_fd()).and_then(|out| pack(Path::new(path), out, SetId::Dropped))
        }
        Work::Unpack { to } => own(io::stdin().as_fd())
            .and_then(|from| unpack(from, &Root::open(Path::new("/"))?, to, SetId::Kept)),
    };
    match done {
        Ok(()) => 0,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            1
        }
    }
}

fn about(path: &Path) -> impl Fn(io::Error) -> io::Error + use<> {
    let path = path.to_owned();
    move |e| io::Error::new(e.kind(), format!("{}: {e}", path.display()))
}

/// Writes a tar of a path and what is beneath it. Links are packed, not followed.
pub fn pack(path: &Path, to: impl Write, ids: SetId) -> io::Result<()> {
    let mut tar = Builder::new(to);
    let mut left: Vec<(PathBuf, Vec<u8>)> = vec![(path.to_owned(), NAME.to_vec())];
    let mut first = true;
    while let Some((path, name)) = left.pop() {
        let meta = match std::fs::symlink_metadata(&path) {
            Ok(meta) => meta,
            // Removed since it was listed.
            Err(e) if e.kind() == io::ErrorKind::NotFound && !first => continue,
            Err(e) => return Err(about(&path)(e)),
        };
        if meta.is_dir() {
            let items = match std::fs::read_dir(&path) {
                Ok(items) => items,
                Err(e) if e.kind() == io::ErrorKind::NotFound && !first => continue,
                Err(e) => return Err(about(&path)(e)),
            };
            append(&mut tar, header(&meta, EntryType::Directory, ids), &name, io::empty())?;
            let mut names: Vec<OsString> = items.flatten().map(|i| i.file_name()).collect();
            names.sort_unstable();
            for child in names.iter().rev() {
                left.push((path.join(child), [&name[..], b"/", child.as_bytes()].concat()));
            }
        } else if meta.is_symlink() {
            let target = std::fs::read_link(&path).map_err(about(&path))?;
            let mut header = header(&meta, EntryType::Symlink, ids);
            tar.append_link(&mut header, as_path(&name), target)?;
        } else if meta.is_file() {
            pack_file(&mut tar, &path, &name, first, ids)?;
        } else if first {
            return Err(about(&path)(io::Error::other("it is neither a file, nor a directory, nor a link")));
        }
        first = false;
    }
    tar.into_inner()?.flush()
}

fn pack_file(
    tar: &mut Builder<impl Write>,
    path: &Path,
    name: &[u8],
    first: bool,
    ids: SetId,
) -> io::Result<()> {
    // Whatever is there by now: a FIFO must not hold us, a link is not followed.
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = match std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound && !first => return Ok(()),
        Err(e) => return Err(about(path)(e)),
    };
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Ok(());
    }
    // As long as it was said to be, whatever is written to it meanwhile.
    let bytes = file.chain(io::repeat(0)).take(meta.len());
    append(tar, header(&meta, EntryType::Regular, ids), name, bytes).map_err(about(path))
}

fn as_path(name: &[u8]) -> PathBuf {
    OsString::from_vec(name.to_vec()).into()
}

fn header(meta: &Metadata, kind: EntryType, ids: SetId) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(if kind == EntryType::Regular { meta.len() } else { 0 });
    header.set_mode(ids.of(meta.mode()));
    header.set_mtime(u64::try_from(meta.mtime()).unwrap_or(0));
    header
}

fn append(
    tar: &mut Builder<impl Write>,
    mut header: Header,
    name: &[u8],
    bytes: impl Read,
) -> io::Result<()> {
    tar.append_data(&mut header, as_path(name), bytes)
}

/// Reads such a tar into a place below `root`. Owners are those of the caller.
pub fn unpack(from: impl Read, root: &Root, to: &Destination, ids: SetId) -> io::Result<()> {
    let mut tar = tar::Archive::new(from);
    let mut base: Option<Vec<u8>> = None;
    let mut directories = Vec::new();
    for entry in tar.entries()? {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        let name = entry.path_bytes().into_owned();
        let beneath = beneath(&name)?.to_vec();
        let base = match &base {
            Some(base) => base,
            None => base.insert(place(root, to, kind == EntryType::Directory)?),
        };
        let path = [&base[..], &beneath].concat();
        let (mode, mtime) = (ids.of(entry.header().mode()?), entry.header().mtime()?);
        let wrong = about(&as_path(&path));
        let there = root.stat(&path).map_err(&wrong)?.map(|s| s.kind);
        match kind {
            EntryType::Directory => {
                if root.open_dir(&path).is_err() {
                    clear(root, &path, there.as_ref()).map_err(&wrong)?;
                    root.mkdir(&path, mode | 0o700).map_err(&wrong)?;
                    directories.push((path, mode));
                }
                continue;
            }
            EntryType::Regular | EntryType::Continuous => {
                clear(root, &path, there.as_ref()).map_err(&wrong)?;
                let mut file = root.create_file(&path, mode).map_err(&wrong)?;
                io::copy(&mut entry, &mut file).map_err(&wrong)?;
                if mode & SET_ID != 0 {
                    // The kernel took them away when it was written.
                    file.set_permissions(Permissions::from_mode(mode)).map_err(&wrong)?;
                }
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                clear(root, &path, there.as_ref()).map_err(&wrong)?;
                root.symlink(&target, &path).map_err(&wrong)?;
            }
            other => {
                return Err(wrong(io::Error::other(format!(
                    "an entry of the kind {other:?} was not packed by us"
                ))));
            }
        }
        root.set_mtime(&path, i64::try_from(mtime).unwrap_or(0), 0).map_err(&wrong)?;
    }
    for (path, mode) in directories.iter().rev() {
        root.set_mode(path, *mode).map_err(about(&as_path(path)))?;
    }
    match base {
        Some(_) => Ok(()),
        None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "nothing came")),
    }
}

/// What an entry's name is beneath the one entry, with the `/` before it.
fn beneath(name: &[u8]) -> io::Result<&[u8]> {
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "a name that was not packed by us");
    let name = name.strip_suffix(b"/").unwrap_or(name);
    let rest = name.strip_prefix(NAME).filter(|_| name.len() <= MAX_PATH).ok_or_else(bad)?;
    let sound = rest.is_empty()
        || rest.strip_prefix(b"/").is_some_and(|r| {
            r.split(|b| *b == b'/').all(|part| !matches!(part, b"" | b"." | b"..") && !part.contains(&0))
        });
    if sound { Ok(rest) } else { Err(bad()) }
}

/// A file or a link makes way; a directory does not.
fn clear(root: &Root, path: &[u8], there: Option<&NodeKind>) -> io::Result<()> {
    match there {
        None => Ok(()),
        Some(NodeKind::Directory) => Err(io::Error::other("there is a directory of this name")),
        Some(_) => root.remove(path),
    }
}

/// Where the one entry goes.
fn place(root: &Root, to: &Destination, directory: bool) -> io::Result<Vec<u8>> {
    let refused = |why: &str| Err(io::Error::other(format!("{}: {why}", to.path)));
    let path = to.path.as_bytes();
    let plain = path.strip_suffix(b"/.").unwrap_or(path);
    let plain = plain.iter().rposition(|b| *b != b'/').map_or(&b""[..], |end| &plain[..=end]);
    if root.open_dir(plain).is_ok() {
        if to.contents {
            return Ok(plain.to_vec());
        }
        if beneath(&[NAME, b"/", to.name.as_bytes()].concat()).is_err() || to.name.contains('/') {
            return refused("what is copied has no name of its own: name the file that it shall be");
        }
        return Ok([plain, b"/", to.name.as_bytes()].concat());
    }
    let is_there = root.stat(plain)?.is_some();
    match (is_there, directory) {
        (true, true) => refused("a directory cannot be copied over a file"),
        (false, false) if plain.len() != path.len() => refused("there is no such directory"),
        _ => Ok(plain.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn destination(path: &str) -> Destination {
        Destination { path: path.into(), name: "src".into(), contents: false }
    }

    fn packed(path: &Path) -> Vec<u8> {
        let mut bytes = Vec::new();
        pack(path, &mut bytes, SetId::Kept).unwrap();
        bytes
    }

    #[test]
    fn trees_go_where_docker_puts_them() {
        let dir = tempfile::tempdir().unwrap();
        let src = dir.path().join("src");
        std::fs::create_dir_all(src.join("sub")).unwrap();
        std::fs::write(src.join("sub/file"), "text").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", src.join("link")).unwrap();
        nix::unistd::mkfifo(&src.join("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        let out = dir.path().join("out");
        std::fs::create_dir_all(out.join("there")).unwrap();
        let root = Root::open(&out).unwrap();
        let (tree, file) = (packed(&src), packed(&src.join("sub/file")));
        let put = |bytes: &[u8], to: &Destination| unpack(bytes, &root, to, SetId::Kept);
        put(&tree, &destination("new")).unwrap();
        put(&tree, &destination("there")).unwrap();
        put(&tree, &Destination { contents: true, ..destination("there") }).unwrap();
        for top in ["new", "there/src", "there"] {
            assert_eq!(std::fs::read_to_string(out.join(top).join("sub/file")).unwrap(), "text", "{top}");
            assert!(out.join(top).join("link").is_symlink() && !out.join(top).join("fifo").exists());
        }
        put(&file, &destination("there")).unwrap_err();
        put(&file, &destination("renamed")).unwrap();
        put(&file, &destination("renamed")).unwrap();
        put(&file, &destination("nowhere/")).unwrap_err();
        put(&tree, &destination("renamed")).unwrap_err();
        assert!(pack(&src.join("fifo"), io::sink(), SetId::Kept).is_err());
        assert!(put(&b""[..], &destination("x")).is_err());
    }

    #[test]
    fn nothing_runs_as_another_because_it_was_copied_here() {
        let dir = tempfile::tempdir().unwrap();
        let src = dir.path().join("src");
        std::fs::create_dir(&src).unwrap();
        let all = [("root", 0o6755, 0o755), ("group", 0o2750, 0o750), ("sticky", 0o1644, 0o1644)];
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        let set =
            |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        for (name, mode, _) in all {
            std::fs::write(src.join(name), "#!").unwrap();
            set(&src.join(name), mode);
        }
        set(&src, 0o7777);
        let root = Root::open(dir.path()).unwrap();
        unpack(&packed(&src)[..], &root, &destination("here"), SetId::Dropped).unwrap();
        unpack(&packed(&src)[..], &root, &destination("there"), SetId::Kept).unwrap();
        let mut careful = Vec::new();
        pack(&src, &mut careful, SetId::Dropped).unwrap();
        unpack(&careful[..], &root, &destination("piped"), SetId::Kept).unwrap();
        for (name, before, after) in all.into_iter().chain([("", 0o7777, 0o1777)]) {
            for (copy, wanted) in [("here", after), ("there", before), ("piped", after)] {
                assert_eq!(mode(&dir.path().join(copy).join(name)), wanted, "{copy}/{name}");
            }
        }
    }

    #[test]
    fn a_hostile_tar_stays_below_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let (out, victim) = (dir.path().join("out"), dir.path().join("victim"));
        std::fs::create_dir_all(&out).unwrap();
        std::fs::create_dir_all(&victim).unwrap();
        let root = Root::open(&out).unwrap();
        let mut tar = Builder::new(Vec::new());
        let mut add = |kind, name: &str, link: Option<&Path>| {
            let mut header = Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(0o755);
            header.set_mtime(0);
            header.set_size(0);
            match link {
                Some(link) => tar.append_link(&mut header, name, link).unwrap(),
                None => tar.append_data(&mut header, name, io::empty()).unwrap(),
            }
        };
        add(EntryType::Directory, "r", None);
        add(EntryType::Symlink, "r/out", Some(&victim));
        add(EntryType::Regular, "r/out/owned", None);
        let bytes = tar.into_inner().unwrap();
        assert!(unpack(&bytes[..], &root, &destination("tree"), SetId::Kept).is_err());
        assert_eq!(std::fs::read_dir(&victim).unwrap().count(), 0);
        for bad in ["q", "r/../x", "r//x", "r/./x", "rx", "/r"] {
            assert!(beneath(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn no_bytes_panic(noise in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..2048) {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("f"), "text").unwrap();
            let mut bytes = packed(&dir.path().join("f"));
            let at = at % bytes.len();
            let end = (at + noise.len()).min(bytes.len());
            bytes.splice(at..end, noise);
            let out = dir.path().join("out");
            std::fs::create_dir(&out).unwrap();
            let _ = unpack(&bytes[..], &Root::open(&out).unwrap(), &destination("x"), SetId::Dropped);
        }
    }
}
