//! Even and complete placement.

use super::*;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    /// Every slot is placed once, and where nothing stood before, hosts differ by one replica at most.
    #[test]
    fn placement_is_even_and_complete(hosts in 1usize..8, replicas in 0u32..20, standing in proptest::collection::vec((0usize..8, 0u32..20), 0..10)) {
        let placed = place(hosts, Revision(1), replicas, &standing);
        let mut slots: Vec<u32> = placed.iter().map(|p| p.1.slot).collect();
        slots.sort_unstable();
        prop_assert_eq!(slots, (0..replicas).collect::<Vec<_>>());
        prop_assert_eq!(&placed, &place(hosts, Revision(1), replicas, &placed.iter().map(|p| (p.0, p.1.slot)).collect::<Vec<_>>()));
        let fresh = place(hosts, Revision(1), replicas, &[]);
        let count = |h: usize| fresh.iter().filter(|p| p.0 == h).count();
        let (most, least) = ((0..hosts).map(count).max().unwrap(), (0..hosts).map(count).min().unwrap());
        prop_assert!(most - least <= 1);
    }
}
