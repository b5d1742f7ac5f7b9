//! Which entries of a tree the sources of a `COPY` name.
//!
//! Invariants: every path is resolved inside the tree, component by component, a link's target clamped at the
//! tree's root; what the ignore patterns leave out is not there. The same selection serves key and copy.
//!
//! With `--parents` a source is a pattern for paths (`**` and all) beneath a starting point, which is what stands
//! before `/./` or the root; no link is followed after it. `--exclude` is about paths from the directory
//! that is copied, or from the starting point; of a file that a source names, about its name.

use crate::error::StepError;
use keelway_dockerfile::glob::{Glob, is_pattern};
use keelway_dockerfile::{Coverage, Ignore};
use keelway_model::{Tree, TreeEntry, TreeKind, TreePath};
use keelway_store::{Verdict, View};

/// Links followed in one path at most.
const MAX_LINKS: usize = 40;
/// Entries that one wildcard may name at most.
const MAX_MATCHES: usize = 100_000;

/// A tree behind its ignore patterns.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) tree: &'a dyn Tree,
    /// `None` for a tree that has no such patterns (another stage).
    pub(crate) ignore: Option<&'a Ignore>,
}

/// One entry that a source names.
#[derive(Debug, Clone)]
pub(crate) struct Selected {
    /// Where it is, no link left in it.
    pub(crate) path: TreePath,
    /// The name that the source gives it; empty for the root.
    pub(crate) name: Vec<u8>,
    /// What it is; never a link.
    pub(crate) entry: TreeEntry,
    /// With `--parents`: it is the starting point, and this what is taken of it.
    pub(crate) beneath: Option<Beneath>,
}

/// What a pattern of `--parents` takes.
#[derive(Debug, Clone)]
pub(crate) enum Beneath {
    All,
    Matching(Ignore),
}

/// What one copy asks for.
#[derive(Clone, Copy)]
pub(crate) struct Wanted<'a> {
    /// As written.
    pub(crate) sources: &'a [String],
    /// `--parents`
    pub(crate) parents: bool,
    /// `--exclude`
    pub(crate) exclude: &'a Ignore,
}

/// The patterns of `--exclude`, which were checked when the build was planned.
pub(crate) fn exclude(patterns: &[String]) -> Result<Ignore, StepError> {
    Ignore::from_patterns(patterns.iter().map(String::as_bytes))
        .map_err(|e| StepError::Refused(format!("--exclude: {}", e.of_one_pattern())))
}

impl<'a> Source<'a> {
    /// A build context behind its patterns.
    pub(crate) fn context(tree: &'a dyn Tree, ignore: &'a Ignore) -> Self {
        Self { tree, ignore: Some(ignore) }
    }
    /// Another stage or image.
    pub(crate) fn chain(view: &'a View) -> Self {
        Self { tree: view, ignore: None }
    }

    fn visible(&self, path: &TreePath, entry: &TreeEntry) -> bool {
        let Some(ignore) = self.ignore else { return true };
        if path.is_root() || !ignore.excludes(path.as_bytes()) {
            return true;
        }
        // A directory that is left out may still hold something that is taken back in.
        entry.kind == TreeKind::Directory && ignore.coverage(path.as_bytes()) == Coverage::OnlyBeneath
    }

    /// An entry behind the patterns.
    fn entry(&self, path: &TreePath) -> Result<Option<TreeEntry>, StepError> {
        Ok(self.tree.entry(path)?.filter(|e| self.visible(path, e)))
    }

    /// What the content key and the copy take of an entry of `one`.
    pub(crate) fn verdict(
        &self,
        one: &Selected,
        exclude: &Ignore,
        path: &TreePath,
        entry: &TreeEntry,
    ) -> Verdict {
        let behind = self.ignore.map_or(Verdict::Whole, |i| kept(i, path.as_bytes(), entry));
        if one.entry.kind != TreeKind::Directory {
            // `--exclude` had its say when it was selected.
            return behind;
        }
        let inner = path.as_bytes().strip_prefix(one.path.as_bytes()).unwrap_or(path.as_bytes());
        let inner = inner.strip_prefix(b"/").unwrap_or(inner);
        let wanted = match &one.beneath {
            Some(Beneath::Matching(patterns)) => matching(patterns, inner, entry),
            _ => Verdict::Whole,
        };
        both(both(behind, wanted), kept(exclude, inner, entry))
    }

    /// Follows every link of `path` inside the tree; `None` where it leads nowhere.
    fn follow(&self, path: &TreePath) -> Result<Option<(TreePath, TreeEntry)>, StepError> {
        let mut todo: Vec<Vec<u8>> = path.components().rev().map(<[u8]>::to_vec).collect();
        let mut at = TreePath::root();
        let mut links = 0;
        loop {
            let Some(name) = todo.pop() else {
                return Ok(self.entry(&at)?.map(|e| (at, e)));
            };
            if name == b".." {
                at = at.parent().unwrap_or_default();
                continue;
            }
            let Some(next) = at.join(&name) else { continue };
            match self.entry(&next)? {
                None => return Ok(None),
                Some(TreeEntry { kind: TreeKind::Symlink { target }, .. }) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(StepError::Refused(format!(
                            "{path} has more than {MAX_LINKS} symbolic links in it"
                        )));
                    }
                    if target.starts_with(b"/") {
                        at = TreePath::root();
                    }
                    let parts = target.split(|&b| b == b'/').filter(|p| !p.is_empty() && *p != b".");
                    todo.extend(parts.rev().map(<[u8]>::to_vec));
                }
                Some(_) => at = next,
            }
        }
    }

    /// What one source, as written, names: in order of names where it is a pattern. A source without a
    /// wildcard must be there; a pattern may name nothing.
    pub(crate) fn select(&self, source: &str) -> Result<Vec<Selected>, StepError> {
        let clamped = TreePath::clamped(source.as_bytes()).ok_or_else(|| {
            StepError::Refused(format!("the source {} holds a NUL character", quoted(source)))
        })?;
        let components: Vec<&[u8]> = clamped.components().collect();
        let fixed = components.iter().take_while(|c| !is_pattern(c)).count();
        if fixed == components.len() {
            let name = clamped.file_name().unwrap_or_default().to_vec();
            let Some((path, entry)) = self.follow(&clamped)? else {
                return Err(self.missing(source, &clamped)?);
            };
            return Ok(vec![Selected { path, name, entry, beneath: None }]);
        }
        let start = TreePath::clamped(&components[..fixed].join(&b'/')).unwrap_or_default();
        let mut level: Vec<TreePath> = self.follow(&start)?.map(|(path, _)| path).into_iter().collect();
        for (i, component) in components.iter().enumerate().skip(fixed) {
            let glob = Glob::new(component)
                .map_err(|e| StepError::Refused(format!("source {}: {e}", quoted(source))))?;
            let last = i + 1 == components.len();
            let mut next = Vec::new();
            for dir in &level {
                if self.entry(dir)?.is_none_or(|e| e.kind != TreeKind::Directory) {
                    continue;
                }
                for entry in self.tree.list(dir)? {
                    let Some(path) = dir.join(&entry.name).filter(|_| glob.matches(&entry.name)) else {
                        continue;
                    };
                    let leads_on = last || entry.kind == TreeKind::Directory;
                    if leads_on && self.visible(&path, &entry) {
                        next.push(path);
                    }
                }
            }
            if next.len() > MAX_MATCHES {
                return Err(StepError::Refused(format!(
                    "source {} names more than {MAX_MATCHES} entries",
                    quoted(source)
                )));
            }
            level = next;
        }
        let mut out = Vec::new();
        for found in level {
            let name = found.file_name().unwrap_or_default().to_vec();
            match self.follow(&found)? {
                Some((path, entry)) => out.push(Selected { path, name, entry, beneath: None }),
                None => return Err(self.missing(source, &found)?),
            }
        }
        Ok(out)
    }

    /// What one source names with `--parents`: its starting point, and what of it. A source without a wildcard must
    /// be there.
    fn select_beneath(&self, source: &str) -> Result<Vec<Selected>, StepError> {
        let (start, pattern) = source.split_once("/./").unwrap_or(("", source));
        let Some(pattern) = TreePath::clamped(pattern.as_bytes()) else {
            return Err(StepError::Refused(format!("the source {} holds a NUL character", quoted(source))));
        };
        let beneath = if pattern.is_root() {
            Beneath::All
        } else {
            // A path that begins with ! is a path.
            let text = pattern.as_bytes();
            let escaped = if text.starts_with(b"!") { [b"\\", text].concat() } else { text.to_vec() };
            let patterns = Ignore::from_patterns([&escaped[..]]).map_err(|e| {
                StepError::Refused(format!("source {}: {}", quoted(source), e.of_one_pattern()))
            })?;
            Beneath::Matching(patterns)
        };
        let mut out = self.select(start)?;
        out.retain(|one| one.entry.kind == TreeKind::Directory);
        if !is_pattern(pattern.as_bytes()) && !is_pattern(start.as_bytes()) {
            let mut there = false;
            for one in &out {
                there |= self.holds(&one.path, &pattern)?;
            }
            if !there {
                let at = out.first().map(|o| o.path.clone()).unwrap_or_default();
                let at = pattern.components().try_fold(at, |at, c| at.join(c)).unwrap_or_default();
                return Err(self.missing(source, &at)?);
            }
        }
        for one in &mut out {
            one.beneath = Some(beneath.clone());
        }
        Ok(out)
    }

    /// Whether there is something at `path` beneath `start`, no link followed.
    fn holds(&self, start: &TreePath, path: &TreePath) -> Result<bool, StepError> {
        let mut at = start.clone();
        let mut components = path.components().peekable();
        while let Some(component) = components.next() {
            let Some(next) = at.join(component) else { return Ok(false) };
            let last = components.peek().is_none();
            if self.entry(&next)?.is_none_or(|e| !last && e.kind != TreeKind::Directory) {
                return Ok(false);
            }
            at = next;
        }
        Ok(true)
    }

    /// Everything that the sources of a copy name; an error where that is nothing.
    pub(crate) fn select_all(&self, wanted: &Wanted<'_>) -> Result<Vec<Selected>, StepError> {
        let mut out = Vec::new();
        for source in wanted.sources {
            out.extend(if wanted.parents { self.select_beneath(source)? } else { self.select(source)? });
        }
        if out.is_empty() {
            return Err(self.nothing(wanted));
        }
        out.retain(|one| one.entry.kind == TreeKind::Directory || !wanted.exclude.excludes(&one.name));
        Ok(out)
    }

    /// That the sources name nothing.
    pub(crate) fn nothing(&self, wanted: &Wanted<'_>) -> StepError {
        let shown = shown(&wanted.sources.join(", "));
        let everything = Source { ignore: None, ..*self };
        let hidden = self.ignore.is_some() && !wanted.parents && everything.select_all(wanted).is_ok();
        StepError::Refused(match hidden {
            true => {
                format!("what matches {shown} is left out of the build context by the .dockerignore file")
            }
            false => format!("no file matches {shown}"),
        })
    }

    fn missing(&self, source: &str, path: &TreePath) -> Result<StepError, StepError> {
        let Some(ignore) = self.ignore else {
            return Ok(StepError::Refused(format!("{} is not there", quoted(source))));
        };
        let ignored = ignore.excludes(path.as_bytes()) && self.tree.entry(path)?.is_some();
        Ok(StepError::Refused(match ignored {
            true => format!("{} is left out of the build context by the .dockerignore file", quoted(source)),
            false => match self.near(path)? {
                Some(near) => format!(
                    "{} is not in the build context; did you mean {}?",
                    quoted(source),
                    quoted(&near.to_string())
                ),
                None => format!("{} is not in the build context", quoted(source)),
            },
        }))
    }
}

impl Source<'_> {
    /// What is there by nearly the name of something that is not, in the last folder on its way that is there.
    fn near(&self, path: &TreePath) -> Result<Option<TreePath>, StepError> {
        let mut at = TreePath::root();
        for component in path.components() {
            let Some(next) = at.join(component) else { return Ok(None) };
            if self.entry(&next)?.is_some_and(|e| e.kind == TreeKind::Directory) {
                at = next;
                continue;
            }
            if self.entry(&at)?.is_none_or(|e| e.kind != TreeKind::Directory) {
                return Ok(None);
            }
            let mut names = Vec::new();
            for entry in self.tree.list(&at)?.into_iter().take(MAX_NEAR) {
                let there = at.join(&entry.name).is_some_and(|p| self.visible(&p, &entry));
                names.extend(String::from_utf8(entry.name).ok().filter(|_| there));
            }
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let near = keelway_dockerfile::nearest(&String::from_utf8_lossy(component), &names);
            return Ok(near.and_then(|n| at.join(n.as_bytes())));
        }
        Ok(None)
    }
}

/// What patterns that leave out say of an entry.
fn kept(ignore: &Ignore, path: &[u8], entry: &TreeEntry) -> Verdict {
    if ignore.is_empty() {
        return Verdict::Whole;
    }
    if entry.kind != TreeKind::Directory {
        return if ignore.excludes(path) { Verdict::Skip } else { Verdict::Whole };
    }
    match ignore.coverage(path) {
        Coverage::Whole => Verdict::Whole,
        Coverage::Partly => Verdict::Partly,
        Coverage::OnlyBeneath => Verdict::OnlyBeneath,
        Coverage::Nothing => Verdict::Skip,
    }
}

/// What patterns that take in, none of which takes back, say of an entry.
fn matching(patterns: &Ignore, path: &[u8], entry: &TreeEntry) -> Verdict {
    match kept(patterns, path, entry) {
        Verdict::Skip => Verdict::Whole,
        Verdict::Whole => Verdict::Skip,
        Verdict::Partly | Verdict::OnlyBeneath => Verdict::OnlyBeneath,
    }
}

/// What is left where two have a say.
fn both(a: Verdict, b: Verdict) -> Verdict {
    match (a, b) {
        (Verdict::Skip, _) | (_, Verdict::Skip) => Verdict::Skip,
        (Verdict::Whole, Verdict::Whole) => Verdict::Whole,
        (Verdict::OnlyBeneath, _) | (_, Verdict::OnlyBeneath) => Verdict::OnlyBeneath,
        _ => Verdict::Partly,
    }
}

/// Entries of a folder among which a near name is looked for.
const MAX_NEAR: usize = 1_000;

/// Text of somebody else in a message: not endless.
fn shown(text: &str) -> String {
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text.to_owned(),
    }
}

fn quoted(text: &str) -> String {
    format!("{:?}", shown(text))
}
