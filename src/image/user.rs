//! `USER` and `--chown` names to numbers, by the image's own /etc/passwd and /etc/group.
//!
//! Those files are hostile: they are looked up inside the root, must be regular, and are read up to a bound.
//! A number is taken as it is when it is decimal and fits a signed 32-bit id; nothing wraps round to root.

use keelway_model::plan::UserSpec;
use keelway_model::{Tree, TreeError, TreeKind, TreePath};
use keelway_store::View;
use std::io::Read;

/// Most that is read of /etc/passwd and of /etc/group.
const MAX_FILE: u64 = 4 << 20;
/// Largest id: ids above are refused, as runtimes that use signed numbers would.
const MAX_ID: u32 = i32::MAX as u32;

/// A user in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups, sorted, without `gid`.
    pub groups: Vec<u32>,
    /// Home directory by /etc/passwd: the HOME of a process whose environment has none.
    pub home: Option<String>,
}

/// Why a user cannot be resolved.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// The text is not a user.
    #[error(
        "{0:?} is not a user: write a name or a number up to 2147483647, and a group after a colon where needed"
    )]
    Malformed(String),
    /// A name that the image does not know.
    #[error("the {what} {name:?} is not in {file} of the image: add it in an earlier RUN, or use a number")]
    Unknown {
        /// `user` or `group`.
        what: &'static str,
        /// The name.
        name: String,
        /// Which file was read.
        file: &'static str,
    },
    /// The file is no regular file, or too large.
    #[error("{file} of the image cannot be used: {why}")]
    Unusable {
        /// Which file.
        file: &'static str,
        /// Why not.
        why: String,
    },
}

/// A name or a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Id<'a> {
    Number(u32),
    Name(&'a str),
}

fn id(text: &str) -> Option<Id<'_>> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().ok().filter(|n| *n <= MAX_ID).map(Id::Number);
    }
    let named = !text.is_empty()
        && text.len() <= 256
        && !text.starts_with(['-', '+'])
        && !text.chars().any(|c| c.is_control() || c.is_whitespace() || matches!(c, ':' | '/' | ','));
    // A hexadecimal number is meant as one, and is none here.
    (named && !text.starts_with("0x") && !text.starts_with("0X")).then_some(Id::Name(text))
}

fn parse(spec: &UserSpec) -> Result<(Option<Id<'_>>, Option<Id<'_>>), UserError> {
    let bad = || UserError::Malformed(spec.0.chars().take(100).collect());
    let (user, group) = spec.0.split_once(':').map_or((spec.0.as_str(), None), |(u, g)| (u, Some(g)));
    let user = if user.is_empty() { None } else { Some(id(user).ok_or_else(bad)?) };
    let group = match group.filter(|g| !g.is_empty()) {
        Some(group) => Some(id(group).ok_or_else(bad)?),
        None => None,
    };
    Ok((user, group))
}

/// Whether the text can be a user at all, without an image.
pub fn check(spec: &UserSpec) -> Result<(), UserError> {
    parse(spec).map(|_| ())
}

/// Whether a name stands in it, so that its meaning is in the files of an image.
pub(crate) fn is_by_name(spec: &UserSpec) -> bool {
    let named = |id: Option<Id<'_>>| matches!(id, Some(Id::Name(_)));
    parse(spec).is_ok_and(|(user, group)| named(user) || named(group))
}

/// Resolves a user specification in the root file system; an empty one is root. Supplementary groups are
/// those of /etc/group that name the user, where no group was given.
pub fn resolve(view: &View, spec: &UserSpec) -> Result<User, UserError> {
    let (user, group) = parse(spec)?;
    let user = user.unwrap_or(Id::Number(0));
    let passwd = read(view, "/etc/passwd")?;
    let entry = passwd.lines().filter_map(passwd_entry).find(|e| match user {
        Id::Number(uid) => e.uid == uid,
        Id::Name(name) => e.name == name,
    });
    let (uid, primary, home) = match (user, &entry) {
        (_, Some(e)) => (e.uid, e.gid, Some(e.home.to_owned())),
        (Id::Number(uid), None) => (uid, 0, None),
        (Id::Name(name), None) => return Err(unknown("user", name)),
    };
    let home = home.filter(|h| h.starts_with('/'));
    if let Some(group) = group {
        return Ok(User { uid, gid: group_id(view, group)?, groups: Vec::new(), home });
    }
    let groups = read(view, "/etc/group")?;
    let mut member_of: Vec<u32> = match &entry {
        Some(e) => groups
            .lines()
            .filter_map(group_entry)
            .filter(|g| g.members.split(',').any(|m| m == e.name))
            .map(|g| g.gid)
            .collect(),
        None => Vec::new(),
    };
    member_of.retain(|g| *g != primary);
    member_of.sort_unstable();
    member_of.dedup();
    Ok(User { uid, gid: primary, groups: member_of, home })
}

/// Resolves `--chown`: a user without a group gets the group of the same number.
pub fn resolve_owner(view: &View, spec: &UserSpec) -> Result<(u32, u32), UserError> {
    let (user, group) = parse(spec)?;
    let uid = match user {
        None => 0,
        Some(Id::Number(uid)) => uid,
        Some(Id::Name(name)) => {
            let passwd = read(view, "/etc/passwd")?;
            let found = passwd.lines().filter_map(passwd_entry).find(|e| e.name == name).map(|e| e.uid);
            found.ok_or_else(|| unknown("user", name))?
        }
    };
    Ok((uid, group.map_or(Ok(uid), |g| group_id(view, g))?))
}

fn group_id(view: &View, group: Id<'_>) -> Result<u32, UserError> {
    match group {
        Id::Number(gid) => Ok(gid),
        Id::Name(name) => {
            let groups = read(view, "/etc/group")?;
            let found = groups.lines().filter_map(group_entry).find(|g| g.name == name).map(|g| g.gid);
            found.ok_or_else(|| unknown("group", name))
        }
    }
}

fn unknown(what: &'static str, name: &str) -> UserError {
    let file = if what == "user" { "/etc/passwd" } else { "/etc/group" };
    UserError::Unknown { what, name: name.to_owned(), file }
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// Lines that are malformed are no entries.
fn passwd_entry(line: &str) -> Option<PasswdEntry<'_>> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|n| !n.is_empty())?;
    let uid = number(fields.nth(1)?)?;
    let gid = number(fields.next()?)?;
    Some(PasswdEntry { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn group_entry(line: &str) -> Option<GroupEntry<'_>> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|n| !n.is_empty())?;
    let gid = number(fields.nth(1)?)?;
    Some(GroupEntry { name, gid, members: fields.next().unwrap_or_default() })
}

fn number(text: &str) -> Option<u32> {
    match id(text)? {
        Id::Number(n) => Some(n),
        Id::Name(_) => None,
    }
}

/// A file of the image; empty where there is none.
fn read(view: &View, file: &'static str) -> Result<String, UserError> {
    let unusable = |why: String| UserError::Unusable { file, why };
    let failed = |e: TreeError| unusable(e.to_string());
    let path = view.resolve(&TreePath::from(file)).map_err(failed)?;
    let size = match view.entry(&path).map_err(failed)?.map(|e| e.kind) {
        None => return Ok(String::new()),
        Some(TreeKind::File { size }) => size,
        Some(_) => return Err(unusable("it is not a regular file".to_owned())),
    };
    if size > MAX_FILE {
        return Err(unusable(format!("it has {size} bytes; at most {MAX_FILE} are read")));
    }
    let mut bytes = Vec::new();
    view.open(&path)
        .map_err(failed)?
        .take(MAX_FILE)
        .read_to_end(&mut bytes)
        .map_err(|e| unusable(e.to_string()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Reads both files from any bytes: for the fuzzer.
pub(crate) fn read_any(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for line in text.lines() {
        let _ = (passwd_entry(line), group_entry(line), check(&UserSpec(line.to_owned())));
    }
}
