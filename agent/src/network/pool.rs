//! Which pod has which addresses. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::ranges::{FIRST_NUMBER, PodAddresses, Ranges};

/// The pod addresses of one node, each with its owner: the name of a veth.
#[derive(Debug)]
pub struct AddressPool {
    ranges: Ranges,
    owned: BTreeMap<String, PodAddresses>,
    taken: BTreeSet<IpAddr>,
    /// Given last. The next search starts behind it, so that an address rests as long as the range allows: somebody may
    /// still talk to the pod that had it.
    last: u32,
}

impl AddressPool {
    /// A pool in which the addresses of `owners` are in use, the youngest last.
    pub fn new(ranges: Ranges, owners: impl IntoIterator<Item = (String, PodAddresses)>) -> Self {
        let mut pool = AddressPool {
            ranges,
            owned: BTreeMap::new(),
            taken: BTreeSet::new(),
            last: FIRST_NUMBER - 1,
        };
        for (owner, addresses) in owners {
            pool.taken.extend(addresses.iter());
            if let Some(number) = pool.ranges.number(&addresses) {
                pool.last = number;
            }
            pool.owned.insert(owner, addresses);
        }
        pool
    }

    /// The ranges that addresses come from.
    pub fn ranges(&self) -> &Ranges {
        &self.ranges
    }

    /// Takes the order of the same ranges over, for the pods to come.
    pub fn reorder(&mut self, ranges: Ranges) {
        if self.ranges.same(&ranges) {
            self.ranges = ranges;
        }
    }

    /// The owner's addresses, free ones if it has none yet; `None` when there are none.
    pub fn take(&mut self, owner: &str) -> Option<PodAddresses> {
        if let Some(addresses) = self.owned.get(owner) {
            return Some(*addresses);
        }
        let (number, addresses) = self
            .free_from(self.last.saturating_add(1).max(FIRST_NUMBER))
            .or_else(|| self.free_from(FIRST_NUMBER))?;
        self.owned.insert(owner.to_owned(), addresses);
        self.taken.extend(addresses.iter());
        self.last = number;
        Some(addresses)
    }

    /// The first number from `start` on of which no address is taken.
    fn free_from(&self, start: u32) -> Option<(u32, PodAddresses)> {
        // Looks at one number more than addresses are taken, at most.
        (start..=u32::MAX)
            .map_while(|number| Some((number, self.ranges.addresses(number)?)))
            .find(|(_, addresses)| {
                !addresses
                    .iter()
                    .any(|address| self.taken.contains(&address))
            })
    }

    /// Frees the owner's addresses, if it has some.
    pub fn release(&mut self, owner: &str) {
        for address in self.owned.remove(owner).iter().flat_map(PodAddresses::iter) {
            self.taken.remove(&address);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranges(texts: &[&str]) -> Ranges {
        Ranges::new(texts.iter().map(|text| text.parse().unwrap())).unwrap()
    }

    fn range() -> Ranges {
        ranges(&["10.244.1.0/24"])
    }

    fn of(texts: &[&str]) -> PodAddresses {
        texts
            .iter()
            .map(|text| -> IpAddr { text.parse().unwrap() })
            .collect()
    }

    fn ip(last: u8) -> Option<PodAddresses> {
        Some(of(&[&format!("10.244.1.{last}")]))
    }

    #[test]
    fn addresses_start_behind_the_gateway_stay_and_rotate() {
        let mut pool = AddressPool::new(range(), []);
        assert_eq!(pool.take("a"), ip(2));
        assert_eq!(pool.take("b"), ip(3));
        assert_eq!(pool.take("a"), ip(2), "asked again, the same");
        pool.release("a");
        assert_eq!(pool.take("c"), ip(4), "the freed one rests");
    }

    #[test]
    fn a_pool_made_anew_goes_on_behind_the_youngest() {
        let owners = [7, 200, 9].map(|last| (format!("pod-{last}"), ip(last).unwrap()));
        let mut pool = AddressPool::new(range(), owners);
        assert_eq!(pool.take("new"), ip(10));
        assert_eq!(pool.take("pod-200"), ip(200));
    }

    #[test]
    fn a_full_range_gives_nothing_until_something_goes() {
        let mut pool = AddressPool::new(ranges(&["10.244.1.0/29"]), []);
        for (owner, last) in ["a", "b", "c", "d", "e"].into_iter().zip(2..) {
            assert_eq!(pool.take(owner), ip(last));
        }
        assert_eq!(pool.take("f"), None);
        pool.release("c");
        assert_eq!(pool.take("f"), ip(4));
        assert_eq!(pool.take("g"), None);
    }

    #[test]
    fn a_number_is_free_when_both_its_addresses_are() {
        // Two pods from before the node had these ranges.
        let owners = [
            ("old".to_owned(), of(&["10.244.1.2"])),
            ("other".to_owned(), of(&["10.9.9.9", "fd00::3"])),
        ];
        let mut pool = AddressPool::new(ranges(&["10.244.1.0/24", "fd00::/64"]), owners);
        assert_eq!(pool.take("old"), Some(of(&["10.244.1.2"])));
        assert_eq!(pool.take("new"), Some(of(&["10.244.1.4", "fd00::4"])));
        pool.reorder(ranges(&["fd00::/64", "10.244.1.0/24"]));
        assert_eq!(pool.take("newer"), Some(of(&["fd00::5", "10.244.1.5"])));
        pool.reorder(ranges(&["fd00:9::/64"]));
        assert_eq!(pool.ranges().iter().count(), 2, "other ranges are no order");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Take(u8),
        Release(u8),
        Restart,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0u8..40).prop_map(Step::Take),
            3 => (0u8..40).prop_map(Step::Release),
            1 => Just(Step::Restart),
        ];
        prop::collection::vec(step, 0..200)
    }

    /// Ranges of one family or of both, and how many pods find addresses.
    fn small_ranges() -> impl Strategy<Value = (Ranges, usize)> {
        (26u8..=30, 122u8..=126, 0..4).prop_map(|(v4, v6, which)| {
            let (room_v4, room_v6) = ((1 << (32 - v4)) - 3, (1 << (128 - v6)) - 2);
            let (v4, v6) = (format!("10.244.1.0/{v4}"), format!("fd00::/{v6}"));
            match which {
                0 => (ranges(&[&v4]), room_v4),
                1 => (ranges(&[&v6]), room_v6),
                2 => (ranges(&[&v4, &v6]), room_v4.min(room_v6)),
                _ => (ranges(&[&v6, &v4]), room_v4.min(room_v6)),
            }
        })
    }

    proptest! {
        #[test]
        fn no_address_is_given_twice_or_outside_and_none_is_lost(
            steps in steps(), (ranges, room) in small_ranges(),
        ) {
            let mut pool = AddressPool::new(ranges.clone(), []);
            let mut held: BTreeMap<String, PodAddresses> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Take(owner) => {
                        let owner = owner.to_string();
                        match (pool.take(&owner), held.get(&owner)) {
                            (given, Some(had)) => prop_assert_eq!(given, Some(*had)),
                            (Some(addresses), None) => {
                                prop_assert_eq!(addresses.iter().count(), ranges.iter().count());
                                for (address, range) in addresses.iter().zip(ranges.iter()) {
                                    prop_assert!(range.contains(&address));
                                    prop_assert_ne!(address, range.network());
                                    prop_assert!(!ranges.gateways().contains(&address));
                                    prop_assert!(address.is_ipv6() || address != range.broadcast());
                                    prop_assert!(!held.values().any(|it| it.iter().any(|other| other == address)));
                                }
                                held.insert(owner, addresses);
                            }
                            (None, None) => prop_assert_eq!(held.len(), room),
                        }
                    }
                    Step::Release(owner) => {
                        pool.release(&owner.to_string());
                        held.remove(&owner.to_string());
                    }
                    Step::Restart => pool = AddressPool::new(ranges.clone(), held.clone()),
                }
            }
        }

        #[test]
        fn an_address_rests_until_all_others_were_given((ranges, room) in small_ranges()) {
            let mut pool = AddressPool::new(ranges, []);
            let first = pool.take("pod").unwrap();
            pool.release("pod");
            for _ in 1..room {
                prop_assert_ne!(pool.take("pod").unwrap(), first);
                pool.release("pod");
            }
            prop_assert_eq!(pool.take("pod"), Some(first));
        }
    }
}
