//! What to do about a full disk, beside what failed because of it.

use keelway_engine::Failure;
use std::path::Path;

/// So little is as good as nothing.
const NOTHING: u64 = 256 << 10;

/// Whether the disk of the store has no room left: neither bytes nor, where it counts them, files.
pub(crate) fn is_full(store: &Path) -> bool {
    rustix::fs::statvfs(store)
        .is_ok_and(|s| s.f_bavail.saturating_mul(s.f_frsize) < NOTHING || (s.f_files > 0 && s.f_favail == 0))
}

/// Whether a message says that there was no room, in the words of the system: by now it has no number any more.
pub(crate) fn says_full(message: &str) -> bool {
    ["No space left on device", "Disk quota exceeded"].iter().any(|words| message.contains(words))
}

/// The failure, with what to do. A failure of a build holds that of its step, which says it already.
pub(crate) fn advise(mut failure: Failure, store: &Path) -> Failure {
    let advice = format!(
        "the disk is full: make room where the store is (`keelway image prune --all` removes what nothing needs), then run it again: df -h {}",
        store.display()
    );
    if !failure.message.contains(&advice) {
        failure.message = format!("{}; {advice}", failure.message);
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_advised_about_once() {
        let failure = Failure::outside("cannot write /x: No space left on device (os error 28)");
        assert!(says_full(&failure.message) && !says_full("exit code 28"));
        let store = Path::new("/s");
        let once = advise(failure, store);
        assert!(once.message.ends_with(
            "(os error 28); the disk is full: make room where the store is (`keelway image prune --all` removes what nothing needs), then run it again: df -h /s"
        ));
        let outer = Failure::outside(format!("image: {}", once.message));
        assert_eq!(advise(outer.clone(), store).message, outer.message);
    }
}
