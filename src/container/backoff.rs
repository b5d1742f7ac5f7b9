//! How long to wait before a container that ended is started again.

use std::time::Duration;

/// First wait.
const FIRST: Duration = Duration::from_millis(200);
/// Longest wait.
const LONGEST: Duration = Duration::from_secs(30);
/// A container that ran so long is taken to be well again.
const WELL: Duration = Duration::from_secs(60);

/// Doubles from one failure to the next, up to a bound; begins again after a long run.
#[derive(Debug, Clone, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after a run of this length.
    pub fn after(&mut self, ran: Duration) -> Duration {
        if ran >= WELL {
            self.failures = 0;
        }
        let wait = FIRST.saturating_mul(1u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_a_bound_and_forgets_after_a_long_run() {
        let mut b = Backoff::default();
        let waits: Vec<u128> = (0..4).map(|_| b.after(Duration::ZERO).as_millis()).collect();
        assert_eq!(waits, [200, 400, 800, 1600]);
        for _ in 0..100 {
            assert!(b.after(Duration::ZERO) <= LONGEST);
        }
        assert_eq!(b.after(Duration::ZERO), LONGEST);
        assert_eq!(b.after(WELL), FIRST);
    }
}
