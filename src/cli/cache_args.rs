//! `--cache-from` and `--cache-to`, as buildx's users write them.

use crate::build_args::BuildFlags;
use crate::outcome::CommandError;
use crate::output_args::{fields, pair, truth};
use keelway_runner::{CachePlace, CacheTo, Caches};

/// The flags as places of caches.
pub fn caches(flags: &BuildFlags) -> Result<Caches, CommandError> {
    let all = |words: &[String], flag: &str, write| -> Result<Vec<Read>, CommandError> {
        let one = |word: &String| {
            read(word, write).map_err(|e| CommandError::usage(format!("{flag} {word:?}: {e}")))
        };
        words.iter().map(one).collect()
    };
    let from = all(&flags.cache_from, "--cache-from", false)?;
    let to = all(&flags.cache_to, "--cache-to", true)?;
    Ok(Caches {
        from: from.into_iter().map(|r| r.place).collect(),
        to: to.into_iter().map(|r| CacheTo { place: r.place, max: r.max }).collect(),
    })
}

/// Whether the build succeeds without this `--cache-to`.
pub fn may_fail(flags: &BuildFlags, at: usize) -> bool {
    flags.cache_to.get(at).and_then(|word| read(word, true).ok()).is_some_and(|r| r.ignore_error)
}

#[derive(Debug)]
struct Read {
    place: CachePlace,
    max: bool,
    ignore_error: bool,
}

fn read(word: &str, write: bool) -> Result<Read, String> {
    let name = |text: &str| text.parse().map(CachePlace::Registry).map_err(|e| format!("{e}"));
    if !word.contains(['=', ',']) {
        return Ok(Read { place: name(word)?, max: false, ignore_error: false });
    }
    let (mut kind, mut reference, mut dir, mut tag) = (None, None, None, None);
    let (mut max, mut ignore_error) = (false, false);
    for field in fields(word) {
        let (key, value) = pair(&field);
        let yes = || truth(value).ok_or_else(|| format!("{key} is true or false, not {value:?}"));
        match key {
            "type" => kind = Some(value.to_owned()),
            "ref" => reference = Some(value.to_owned()),
            "src" if !write => dir = Some(value.to_owned()),
            "dest" if write => dir = Some(value.to_owned()),
            "tag" => tag = Some(value.to_owned()),
            "mode" if write => {
                max = match value {
                    "min" => false,
                    "max" => true,
                    _ => return Err(format!("the mode is min or max, not {value:?}")),
                }
            }
            "ignore-error" if write => ignore_error = yes()?,
            // What is always so.
            "compression" if write && value == "gzip" => {}
            "image-manifest" | "oci-mediatypes" if write && yes()? => {}
            _ => {
                let end = if write { "dest, mode, ignore-error" } else { "src" };
                return Err(format!("{key}={value} is not known; there is type, ref, tag, {end}"));
            }
        }
    }
    let place = match (kind.as_deref(), reference, dir) {
        (Some("registry"), Some(text), None) if tag.is_none() => name(&text)?,
        (Some("registry"), ..) => {
            return Err("a cache in a registry has a ref, and no directory or tag".into());
        }
        (Some("local"), None, Some(dir)) if !dir.is_empty() => {
            let tag = tag.unwrap_or_else(|| "latest".into());
            let _: keelway_model::Tag = tag.parse().map_err(|e| format!("{e}"))?;
            CachePlace::Directory(dir.into(), tag)
        }
        (Some("local"), ..) => {
            return Err(format!("a local cache has a {}, and no ref", if write { "dest" } else { "src" }));
        }
        (Some(other), ..) => {
            return Err(format!("the type {other:?} is not known; there is registry, local"));
        }
        (None, ..) => return Err("it has no type; there is registry, local".into()),
    };
    Ok(Read { place, max, ignore_error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_are_read_as_buildx_reads_them() {
        let place = |word, write| read(word, write).unwrap().place.to_string();
        assert_eq!(place("a/b:c", false), "docker.io/a/b:c");
        assert_eq!(place("type=registry,ref=r.example.com/a:c", false), "r.example.com/a:c");
        assert_eq!(place("type=local,src=d", false), "d:latest");
        assert_eq!(place("type=local,dest=d,tag=x", true), "d:x");
        let max = read("type=registry,ref=a,mode=max,ignore-error=true,image-manifest=true", true).unwrap();
        assert!(max.max && max.ignore_error);
        assert!(!read("type=local,dest=d", true).unwrap().max);
        for (word, write, why) in [
            ("type=gha", true, "registry, local"),
            ("ref=a", true, "no type"),
            ("type=local,src=d", true, "not known"),
            ("type=local,dest=d", false, "not known"),
            ("type=local,ref=a", false, "has a src"),
            ("type=registry,src=d", false, "has a ref"),
            ("type=registry,ref=a,mode=all", true, "min or max"),
            ("type=registry,ref=a,mode=max", false, "not known"),
            ("type=local,dest=d,tag=a/b", true, "a/b"),
            ("type=registry,ref=a,compression=zstd", true, "compression=zstd"),
        ] {
            let e = read(word, write).unwrap_err();
            assert!(e.contains(why), "{word}: {e}");
        }
    }
}
