//! Which pod has which address. Pure.
//!
//! The pod's veth pair itself is the record: one netlink message makes it with a name that follows from the pod's uid
//! and hardware addresses that follow from its IP address. So there is no file that could disagree with the kernel, no
//! step between allocating and recording that a crash could split, and a reboot clears both at once. An address set
//! explicitly is also one that udev leaves alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use sha2::{Digest, Sha256};

/// Starts the name of every pod's veth on the host.
const VETH_PREFIX: &str = "kn";
/// Characters of a hash in that name. Linux allows 15 in all; 12 of five bits each make a clash beyond practice.
const VETH_HASH_CHARS: usize = 12;

/// First two bytes of the hardware address of a pod's `eth0`; the IP address follows. Locally administered, unicast.
const POD_MAC_PREFIX: [u8; 2] = [0x06, 0x6b];
/// The same for the host's end.
const HOST_MAC_PREFIX: [u8; 2] = [0x02, 0x6b];

/// A hardware address.
pub type Mac = [u8; 6];

/// Name of the host's end of a pod's veth pair.
pub fn veth_name(pod_uid: &str) -> String {
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";
    let hash = Sha256::digest(pod_uid);
    let chars = hash
        .iter()
        .take(VETH_HASH_CHARS)
        .map(|byte| char::from(ALPHABET[usize::from(byte & 31)]));
    VETH_PREFIX.chars().chain(chars).collect()
}

/// Hardware address of the pod's `eth0`.
pub fn pod_mac(address: Ipv4Addr) -> Mac {
    mac(POD_MAC_PREFIX, address)
}

/// Hardware address of the host's end.
pub fn host_mac(address: Ipv4Addr) -> Mac {
    mac(HOST_MAC_PREFIX, address)
}

fn mac([a, b]: [u8; 2], address: Ipv4Addr) -> Mac {
    let [c, d, e, f] = address.octets();
    [a, b, c, d, e, f]
}

/// The pod address that a link on the host stands for; `None` for every link that is no pod's.
pub fn recorded_address(link_name: &str, link_mac: &[u8]) -> Option<Ipv4Addr> {
    match link_mac {
        [a, b, c, d, e, f] if link_name.starts_with(VETH_PREFIX) && [*a, *b] == HOST_MAC_PREFIX => {
            Some(Ipv4Addr::new(*c, *d, *e, *f))
        }
        _ => None,
    }
}

/// The node's gateway: the first address of its pod range.
pub fn gateway(range: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(range.network()).saturating_add(1))
}

/// The pod addresses of one node, each with its owner: the name of a veth.
#[derive(Debug)]
pub struct AddressPool {
    range: Ipv4Net,
    owned: BTreeMap<String, Ipv4Addr>,
    taken: BTreeSet<Ipv4Addr>,
    /// Given last. The next search starts behind it, so that an address rests as long as the range allows: somebody may
    /// still talk to the pod that had it.
    last: Ipv4Addr,
}

impl AddressPool {
    /// A pool in which the addresses of `owners` are in use, the youngest last.
    pub fn new(range: Ipv4Net, owners: impl IntoIterator<Item = (String, Ipv4Addr)>) -> Self {
        let mut pool = AddressPool {
            range,
            owned: BTreeMap::new(),
            taken: BTreeSet::new(),
            last: gateway(range),
        };
        for (owner, address) in owners {
            pool.owned.insert(owner, address);
            pool.taken.insert(address);
            if range.contains(&address) {
                pool.last = address;
            }
        }
        pool
    }

    /// The range that addresses come from.
    pub fn range(&self) -> Ipv4Net {
        self.range
    }

    /// The owner's address, a free one if it has none yet; `None` when there is none.
    pub fn take(&mut self, owner: &str) -> Option<Ipv4Addr> {
        if let Some(address) = self.owned.get(owner) {
            return Some(*address);
        }
        // The network's own address, the gateway and the broadcast address are never a pod's.
        let first = u32::from(gateway(self.range)).checked_add(1)?;
        let end = u32::from(self.range.broadcast());
        let behind = u32::from(self.last)
            .saturating_add(1)
            .clamp(first, end.max(first));
        let address = (behind..end)
            .chain(first..behind.min(end))
            .map(Ipv4Addr::from)
            .find(|address| !self.taken.contains(address))?;
        self.owned.insert(owner.to_owned(), address);
        self.taken.insert(address);
        self.last = address;
        Some(address)
    }

    /// Frees the owner's address, if it has one.
    pub fn release(&mut self, owner: &str) {
        if let Some(address) = self.owned.remove(owner) {
            self.taken.remove(&address);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range() -> Ipv4Net {
        "10.244.1.0/24".parse().unwrap()
    }

    fn ip(last: u8) -> Option<Ipv4Addr> {
        Some(Ipv4Addr::new(10, 244, 1, last))
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
        let owners =
            [7, 200, 9].map(|last| (format!("pod-{last}"), Ipv4Addr::new(10, 244, 1, last)));
        let mut pool = AddressPool::new(range(), owners);
        assert_eq!(pool.take("new"), ip(10));
        assert_eq!(pool.take("pod-200"), ip(200));
    }

    #[test]
    fn a_full_range_gives_nothing_until_something_goes() {
        let mut pool = AddressPool::new("10.244.1.0/29".parse().unwrap(), []);
        for (owner, last) in ["a", "b", "c", "d", "e"].into_iter().zip(2..) {
            assert_eq!(pool.take(owner), ip(last));
        }
        assert_eq!(pool.take("f"), None);
        pool.release("c");
        assert_eq!(pool.take("f"), ip(4));
        assert_eq!(pool.take("g"), None);
    }

    #[test]
    fn a_veth_name_is_short_stable_and_its_own() {
        let name = veth_name("2f1c9c7e-62a1-4f0e-9b8e-0d5b7c1d2e3f");
        assert_eq!(name, veth_name("2f1c9c7e-62a1-4f0e-9b8e-0d5b7c1d2e3f"));
        assert!(name.len() <= 15);
        assert_ne!(name, veth_name("2f1c9c7e-62a1-4f0e-9b8e-0d5b7c1d2e30"));
    }

    #[test]
    fn a_links_address_is_read_back_and_other_links_are_nobodys() {
        let address = Ipv4Addr::new(10, 244, 1, 7);
        let name = veth_name("uid");
        assert_eq!(recorded_address(&name, &host_mac(address)), Some(address));
        assert_eq!(recorded_address("eth0", &host_mac(address)), None);
        assert_eq!(recorded_address(&name, &pod_mac(address)), None);
        assert_eq!(recorded_address("lo", &[]), None);
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

    proptest! {
        #[test]
        fn no_address_is_given_twice_or_outside_and_none_is_lost(
            steps in steps(), length in 26u8..=30,
        ) {
            let range = Ipv4Net::new(Ipv4Addr::new(10, 244, 1, 0), length).unwrap();
            let room = range.hosts().count() - 1;
            let mut pool = AddressPool::new(range, []);
            let mut held: BTreeMap<String, Ipv4Addr> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Take(owner) => {
                        let owner = owner.to_string();
                        match (pool.take(&owner), held.get(&owner)) {
                            (given, Some(had)) => prop_assert_eq!(given, Some(*had)),
                            (Some(address), None) => {
                                prop_assert!(range.contains(&address));
                                prop_assert_ne!(address, range.network());
                                prop_assert_ne!(address, gateway(range));
                                prop_assert_ne!(address, range.broadcast());
                                prop_assert!(!held.values().any(|other| *other == address));
                                held.insert(owner, address);
                            }
                            (None, None) => prop_assert_eq!(held.len(), room),
                        }
                    }
                    Step::Release(owner) => {
                        pool.release(&owner.to_string());
                        held.remove(&owner.to_string());
                    }
                    Step::Restart => pool = AddressPool::new(range, held.clone()),
                }
            }
        }

        #[test]
        fn an_address_rests_until_all_others_were_given(length in 26u8..=30) {
            let range = Ipv4Net::new(Ipv4Addr::new(10, 244, 1, 0), length).unwrap();
            let room = range.hosts().count() - 1;
            let mut pool = AddressPool::new(range, []);
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
