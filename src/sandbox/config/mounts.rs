//! The mounts of a bundle. An option is done as asked, or is what every such mount has here anyway; any other one refuses the
//! bundle under its name, since a mount that is less than it seems is worse than none.

use super::{Read, list, none_of, text, texts, unsupported};
use crate::spec::{Access, Mount, MountKind, Spec};
use keelway_model::Bytes;
use serde_json::Value;
use std::path::Path;

/// Size of a tmpfs that names none.
const TMPFS: u64 = 1 << 30;
/// What every mount here is.
const EVERY: [&str; 5] = ["nosuid", "nodev", "private", "rprivate", "relatime"];

/// One entry of the list.
struct Asked<'a> {
    target: &'a str,
    kind: &'a str,
    options: Vec<String>,
}

impl Asked<'_> {
    fn what(&self) -> String {
        format!("mounts {:?} ({})", self.target, self.kind)
    }
    fn has(&self, name: &str) -> bool {
        self.options.iter().any(|o| o == name)
    }
    /// Refuses every option but these. One that ends with `=` has a value.
    fn only(&self, known: &[&str]) -> Read<()> {
        let is_known = |option: &String| {
            let is = |k: &&str| if k.ends_with('=') { option.starts_with(*k) } else { option == k };
            EVERY.iter().chain(known).any(is)
        };
        match self.options.iter().find(|o| !is_known(o)) {
            None => Ok(()),
            Some(option) => unsupported(
                format!("{} with option {option:?}", self.what()),
                format!(
                    "every mount is private, nosuid and nodev; beside that it may have {}",
                    known.join(", ")
                ),
            ),
        }
    }
    /// The last value of an option that has one.
    fn value<T>(&self, name: &str, read: impl Fn(&str) -> Option<T>, expected: &str) -> Read<Option<T>> {
        let Some(text) = self.options.iter().rev().find_map(|o| o.strip_prefix(name)) else {
            return Ok(None);
        };
        match read(text) {
            Some(value) => Ok(Some(value)),
            None => unsupported(format!("{} with option \"{name}{text}\"", self.what()), expected),
        }
    }
    fn size(&self) -> Read<Option<Bytes>> {
        self.value("size=", size, "write a number of bytes above 0, with k, m or g")
    }
    fn mode(&self) -> Read<Option<u32>> {
        let mode = |text: &str| u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
        self.value("mode=", mode, "write four octal digits")
    }
}

/// Reads `mounts`.
pub(super) fn read(all: &Value, bundle: &Path, spec: &mut Spec, warnings: &mut Vec<String>) -> Read<()> {
    let mut shm = None;
    for mount in list(all, "mounts")? {
        let target = text(&mount["destination"], "mounts.destination")?;
        let kind = mount["type"].as_str().unwrap_or_default();
        let asked = Asked { target, kind, options: texts(&mount["options"], "mounts.options")? };
        let own = "files have the ids that they have on disk";
        none_of(mount, &format!("mounts {target:?} "), &[("uidMappings", own), ("gidMappings", own)])?;
        let bind = kind == "bind" || asked.has("bind") || asked.has("rbind");
        match (kind, target) {
            // These everybody has, as strict as can be.
            ("proc", "/proc") | ("mqueue", "/dev/mqueue") if !bind => asked.only(&["noexec", "rw"])?,
            ("devpts", "/dev/pts") if !bind => {
                asked.only(&["noexec", "rw", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"])?;
            }
            ("tmpfs", "/dev") if !bind => {
                asked.only(&["noexec", "rw", "strictatime", "mode=755", "mode=0755", "size="])?;
                asked.size()?;
            }
            ("sysfs", "/sys") if asked.has("ro") => asked.only(&["noexec", "ro"])?,
            ("sysfs", "/sys") => return unsupported(asked.what(), "it is read-only: say so with \"ro\""),
            ("tmpfs", "/dev/shm") => {
                asked.only(&["noexec", "rw", "mode=1777", "mode=01777", "size="])?;
                shm = asked.size()?;
            }
            // podman's, which its pods may share.
            ("bind", "/dev/shm") => {
                warnings.push("/dev/shm is the container's own: the engine's is left out".into());
            }
            ("cgroup" | "cgroup2", "/sys/fs/cgroup") => {
                warnings.push("/sys/fs/cgroup is left out: a container sees no cgroups here".into());
            }
            ("tmpfs", _) if !bind => {
                asked.only(&["rw", "exec", "size=", "mode="])?;
                let size = asked.size()?.unwrap_or(Bytes(TMPFS));
                let kind = MountKind::Tmpfs { size, mode: asked.mode()?.unwrap_or(0o1777) };
                spec.mounts.push(Mount { target: target.into(), kind });
            }
            _ if bind => {
                asked.only(&["bind", "rbind", "ro", "rw", "exec"])?;
                let source = bundle.join(text(&mount["source"], "mounts.source")?);
                let access = if asked.has("ro") { Access::ReadOnly } else { Access::ReadWrite };
                let kind = MountKind::Bind { source, access, below: asked.has("rbind") };
                spec.mounts.push(Mount { target: target.into(), kind });
            }
            _ => {
                return unsupported(
                    asked.what(),
                    "bind and tmpfs are, and the usual ones where they usually are",
                );
            }
        }
    }
    spec.limits.shm = shm;
    Ok(())
}

/// `65536k`. None at all would be no bound.
fn size(text: &str) -> Option<Bytes> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" => 1,
        "k" | "K" => 1 << 10,
        "m" | "M" => 1 << 20,
        "g" | "G" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok().filter(|n| *n > 0)?.checked_mul(unit).map(Bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConfigError;
    use crate::spec::RootFs;
    use serde_json::json;

    fn of(mount: Value) -> Read<Spec> {
        let root = RootFs::ReadOnly { lowers: vec!["/x".into()] };
        let mut spec = Spec::new(root, vec!["x".into()], "box".parse().unwrap());
        read(&json!([mount]), Path::new("/bundle"), &mut spec, &mut Vec::new())?;
        Ok(spec)
    }

    fn bind(options: &[&str]) -> Read<Spec> {
        of(json!({ "destination": "/x", "type": "bind", "source": "y", "options": options }))
    }

    #[test]
    fn what_is_mounted_below_comes_along_where_it_was_asked_for() {
        for (options, access, below) in [
            (&["rbind", "rprivate", "ro"][..], Access::ReadOnly, true),
            (&["bind", "nosuid", "nodev", "relatime"], Access::ReadWrite, false),
            (&[], Access::ReadWrite, false),
        ] {
            let kind = MountKind::Bind { source: "/bundle/y".into(), access, below };
            assert_eq!(bind(options).unwrap().mounts, [Mount { target: "/x".into(), kind }], "{options:?}");
        }
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        let usual = |target: &str, kind: &str, option: &str| {
            of(json!({ "destination": target, "type": kind, "source": "s", "options": ["nosuid", option] }))
        };
        for (target, kind, option) in [
            ("/x", "bind", "noexec"),
            ("/x", "bind", "noatime"),
            ("/x", "bind", "rshared"),
            ("/x", "bind", "unheard-of"),
            ("/x", "bind", "size=1k"),
            ("/x", "bind", "suid"),
            ("/x", "tmpfs", "ro"),
            ("/x", "tmpfs", "noexec"),
            ("/x", "tmpfs", "size=50%"),
            ("/x", "tmpfs", "size=0"),
            ("/x", "tmpfs", "size=1x"),
            ("/x", "tmpfs", "mode=99"),
            ("/x", "tmpfs", "mode=17777"),
            ("/x", "tmpfs", "uid=5"),
            ("/x", "tmpfs", "nr_inodes=5"),
            ("/x", "tmpfs", "tmpcopyup"),
            ("/dev/shm", "tmpfs", "size=50%"),
            ("/dev/shm", "tmpfs", "mode=700"),
            ("/dev", "tmpfs", "size=50%"),
            ("/proc", "proc", "hidepid=2"),
            ("/dev/pts", "devpts", "mode=0600"),
        ] {
            let error = usual(target, kind, option).expect_err(option);
            let ConfigError::Unsupported { what, .. } = &error else { panic!("{error}") };
            assert_eq!(*what, format!("mounts {target:?} ({kind}) with option {option:?}"));
        }
        let spec = usual("/x", "tmpfs", "size=64k").unwrap();
        assert_eq!(spec.mounts[0].kind, MountKind::Tmpfs { size: Bytes(65536), mode: 0o1777 });
        assert_eq!(usual("/dev/shm", "tmpfs", "size=1m").unwrap().limits.shm, Some(Bytes(1 << 20)));
    }
}
