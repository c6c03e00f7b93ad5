//! Which pod has which address. Pure.
//!
//! The pod's veth pair itself is the record: one netlink message makes it with a name that follows from the pod's uid
//! and hardware addresses that follow from its IP address. So there is no file that could disagree with the kernel, no
//! step between allocating and recording that a crash could split, and a reboot clears both at once. An address set
//! explicitly is also one that udev leaves alone.

use std::collections::BTreeSet;
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

/// The pod addresses of one node.
#[derive(Debug)]
pub struct AddressPool {
    range: Ipv4Net,
    taken: BTreeSet<Ipv4Addr>,
    /// Given last. The next search starts behind it, so that an address rests as long as the range allows: somebody may
    /// still talk to the pod that had it.
    last: Ipv4Addr,
}

impl AddressPool {
    /// A pool in which `taken` are in use, the youngest last.
    pub fn new(range: Ipv4Net, taken: impl IntoIterator<Item = Ipv4Addr>) -> Self {
        let mut pool = AddressPool {
            range,
            taken: BTreeSet::new(),
            last: gateway(range),
        };
        for address in taken {
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

    /// Takes a free address; `None` when there is none.
    pub fn take(&mut self) -> Option<Ipv4Addr> {
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
        self.taken.insert(address);
        self.last = address;
        Some(address)
    }

    /// Frees an address. Freeing a free one changes nothing.
    pub fn release(&mut self, address: Ipv4Addr) {
        self.taken.remove(&address);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range() -> Ipv4Net {
        "10.244.1.0/24".parse().unwrap()
    }

    #[test]
    fn addresses_start_behind_the_gateway_and_rotate() {
        let mut pool = AddressPool::new(range(), []);
        assert_eq!(pool.take(), Some(Ipv4Addr::new(10, 244, 1, 2)));
        assert_eq!(pool.take(), Some(Ipv4Addr::new(10, 244, 1, 3)));
        pool.release(Ipv4Addr::new(10, 244, 1, 2));
        assert_eq!(
            pool.take(),
            Some(Ipv4Addr::new(10, 244, 1, 4)),
            "the freed one rests"
        );
    }

    #[test]
    fn a_pool_made_anew_goes_on_behind_the_youngest() {
        let taken = [7, 200, 9].map(|last| Ipv4Addr::new(10, 244, 1, last));
        let mut pool = AddressPool::new(range(), taken);
        assert_eq!(pool.take(), Some(Ipv4Addr::new(10, 244, 1, 10)));
    }

    #[test]
    fn a_full_range_gives_nothing_until_something_goes() {
        let mut pool = AddressPool::new("10.0.0.0/29".parse().unwrap(), []);
        let all: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(
            all,
            [2, 3, 4, 5, 6].map(|last| Ipv4Addr::new(10, 0, 0, last))
        );
        pool.release(all[3]);
        assert_eq!(pool.take(), Some(all[3]));
        assert_eq!(pool.take(), None);
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
        Take,
        /// Releases the n-th address that is held (modulo their number).
        Release(usize),
        Restart,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => Just(Step::Take),
            3 => any::<usize>().prop_map(Step::Release),
            1 => Just(Step::Restart),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn no_address_is_given_twice_or_outside_and_none_is_lost(
            steps in steps(), length in 24u8..=30,
        ) {
            let range = Ipv4Net::new(Ipv4Addr::new(10, 244, 1, 0), length).unwrap();
            let room = range.hosts().count() - 1;
            let mut pool = AddressPool::new(range, []);
            let mut held: Vec<Ipv4Addr> = Vec::new();
            for step in steps {
                match step {
                    Step::Take => match pool.take() {
                        Some(address) => {
                            prop_assert!(range.contains(&address));
                            prop_assert_ne!(address, range.network());
                            prop_assert_ne!(address, gateway(range));
                            prop_assert_ne!(address, range.broadcast());
                            prop_assert!(!held.contains(&address));
                            held.push(address);
                        }
                        None => prop_assert_eq!(held.len(), room),
                    },
                    Step::Release(n) if !held.is_empty() => pool.release(held.remove(n % held.len())),
                    Step::Release(_) => {}
                    Step::Restart => pool = AddressPool::new(range, held.iter().copied()),
                }
            }
        }

        #[test]
        fn an_address_rests_until_all_others_were_given(length in 26u8..=30) {
            let range = Ipv4Net::new(Ipv4Addr::new(10, 244, 1, 0), length).unwrap();
            let room = range.hosts().count() - 1;
            let mut pool = AddressPool::new(range, []);
            let first = pool.take().unwrap();
            pool.release(first);
            for _ in 1..room {
                let other = pool.take().unwrap();
                prop_assert_ne!(other, first);
                pool.release(other);
            }
            prop_assert_eq!(pool.take(), Some(first));
        }
    }
}
