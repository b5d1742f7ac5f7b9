//! Who gets a lease, and that the fence never falls.

use super::*;
use proptest::prelude::*;

fn claim(owner: &str, epoch: u64) -> LeaseClaim {
    LeaseClaim {
        app: "web".parse().unwrap(),
        owner: owner.into(),
        who: format!("{owner}@test"),
        epoch: Epoch(epoch),
        ttl_ms: 15_000,
    }
}
fn at(now_ms: u64) -> HostTime<'static> {
    HostTime { now_ms, boot_id: "a" }
}

#[test]
fn a_living_lease_keeps_others_out_and_a_dead_one_does_not() {
    let (answer, state) = decide(&LeaseState::default(), &claim("a", 1), at(0));
    assert_eq!(answer, LeaseAnswer::Granted);
    let state = state.unwrap();
    let (answer, none) = decide(&state, &claim("b", 2), at(14_999));
    assert!(matches!(answer, LeaseAnswer::Held(v) if v.owner == "a" && v.left_ms == 1 && v.age_ms == 14_999));
    assert!(none.is_none());
    let (answer, taken) = decide(&state, &claim("b", 2), at(15_000));
    assert_eq!(answer, LeaseAnswer::Granted);
    let taken = taken.unwrap();
    // The paused one comes back: neither its renewal nor its order passes.
    assert!(matches!(decide(&taken, &claim("a", 1), at(15_001)).0, LeaseAnswer::Held(_)));
    assert_eq!(decide(&taken, &claim("a", 1), at(90_000)).0, LeaseAnswer::Stale { highest: Epoch(2) });
    assert!(matches!(admit(&taken, Epoch(1)).unwrap_err().kind, RefusalKind::Fenced { highest: Epoch(2) }));
    assert_eq!(admit(&taken, Epoch(2)).unwrap(), None);
    // A reboot ends it, whatever the clock says.
    let after = decide(&taken, &claim("c", 3), HostTime { now_ms: 15_002, boot_id: "b" });
    assert_eq!(after.0, LeaseAnswer::Granted);
}

#[test]
fn a_restarted_owner_takes_over_at_once_with_a_higher_epoch() {
    let state = decide(&LeaseState::default(), &claim("a", 1), at(0)).1.unwrap();
    let renewed = decide(&state, &claim("a", 1), at(5_000)).1.unwrap();
    assert_eq!(renewed.holder.as_ref().unwrap().since_ms, 0);
    assert_eq!(renewed.holder.as_ref().unwrap().until_ms, 20_000);
    assert_eq!(decide(&renewed, &claim("a", 2), at(6_000)).0, LeaseAnswer::Granted);
    assert!(release(&renewed, "a", Epoch(2)).is_none());
    let free = release(&renewed, "a", Epoch(1)).unwrap();
    assert_eq!(free.highest, Epoch(1), "the number is never given again");
    assert!(matches!(decide(&free, &claim("b", 1), at(6_000)).0, LeaseAnswer::Stale { .. }));
}

#[test]
fn majorities() {
    for (hosts, want) in [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (20, 11)] {
        assert_eq!(majority(hosts), want);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    /// Whatever is claimed, released and ordered: the highest epoch never falls, and nobody is granted a lease
    /// while another owner's lives.
    #[test]
    fn the_fence_never_falls(steps in proptest::collection::vec((0u8..4, 0u8..3, 0u64..6, 0u64..9_000), 0..60)) {
        let (mut state, mut now) = (LeaseState::default(), 0);
        for (what, owner, epoch, pass) in steps {
            now += pass;
            let owner = ["a", "b", "c"][usize::from(owner)];
            let before = state.clone();
            match what {
                0 | 1 => {
                    let (answer, next) = decide(&state, &claim(owner, epoch), at(now));
                    prop_assert_eq!(next.is_some(), answer == LeaseAnswer::Granted);
                    if let Some(h) = before.holder.as_ref().filter(|h| h.lives(at(now)) && h.owner != owner) {
                        prop_assert!(matches!(answer, LeaseAnswer::Held(v) if v.owner == h.owner));
                    }
                    state = next.unwrap_or(state);
                }
                2 => state = release(&state, owner, Epoch(epoch)).unwrap_or(state),
                _ => match admit(&state, Epoch(epoch)) {
                    Ok(next) => state = next.unwrap_or(state),
                    Err(_) => prop_assert!(Epoch(epoch) < before.highest),
                },
            }
            prop_assert!(state.highest >= before.highest);
        }
    }
}
