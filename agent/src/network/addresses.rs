//! How a pod's link records the pod's addresses. Pure.
//!
//! The pod's veth pair itself is the record: one netlink message makes it with a name that follows from the pod's uid
//! and hardware addresses that follow from its IPv4 address. So there is no file that could disagree with the kernel, no
//! step between allocating and recording that a crash could split, and a reboot clears both at once. An address set
//! explicitly is also one that udev leaves alone.
//!
//! A pod with an IPv6 address has all its addresses in its link's alias too, which is set before anything else is done
//! with the link, in the order of the pod's status. They are what the pod got, whatever ranges the node has had since.
//! Both addresses have the same number in their range, so nobody else gets the second before it is recorded.

use std::net::{IpAddr, Ipv4Addr};

use sha2::{Digest, Sha256};

use super::ranges::PodAddresses;

/// Starts the name of every pod's veth on the host.
const VETH_PREFIX: &str = "kn";
/// Characters of a hash in that name. Linux allows 15 in all; 12 of five bits each make a clash beyond practice.
const VETH_HASH_CHARS: usize = 12;

/// First two bytes of the hardware address of a pod's `eth0`; the IPv4 address follows. Locally administered, unicast.
const POD_MAC_PREFIX: [u8; 2] = [0x06, 0x6b];
/// The same for the host's end.
const HOST_MAC_PREFIX: [u8; 2] = [0x02, 0x6b];
/// The same for pods without an IPv4 address; the end of the IPv6 address follows.
const POD_MAC_PREFIX_V6: [u8; 2] = [0x06, 0x6c];
const HOST_MAC_PREFIX_V6: [u8; 2] = [0x02, 0x6c];

/// A hardware address.
pub type Mac = [u8; 6];

/// The characters of the hash in a link's name.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";

/// Name of the host's end of a pod's veth pair.
pub fn veth_name(pod_uid: &str) -> String {
    let hash = Sha256::digest(pod_uid);
    let chars = hash
        .iter()
        .take(VETH_HASH_CHARS)
        .map(|byte| char::from(ALPHABET[usize::from(byte & 31)]));
    VETH_PREFIX.chars().chain(chars).collect()
}

/// Whether a link is named like the host's end of a pod's veth pair.
pub fn is_pods_link(name: &str) -> bool {
    let hash = name.strip_prefix(VETH_PREFIX);
    hash.is_some_and(|hash| {
        hash.len() == VETH_HASH_CHARS && hash.bytes().all(|byte| ALPHABET.contains(&byte))
    })
}

/// Hardware address of the pod's `eth0`.
pub fn pod_mac(addresses: &PodAddresses) -> Mac {
    mac(POD_MAC_PREFIX, POD_MAC_PREFIX_V6, addresses)
}

/// Hardware address of the host's end.
pub fn host_mac(addresses: &PodAddresses) -> Mac {
    mac(HOST_MAC_PREFIX, HOST_MAC_PREFIX_V6, addresses)
}

fn mac(with_v4: [u8; 2], without: [u8; 2], addresses: &PodAddresses) -> Mac {
    let ([a, b], [c, d, e, f]) = match addresses.v4 {
        Some(v4) => (with_v4, v4.octets()),
        None => {
            let v6 = addresses.v6.map_or(0, u128::from).to_be_bytes();
            (without, [v6[12], v6[13], v6[14], v6[15]])
        }
    };
    [a, b, c, d, e, f]
}

/// The alias of the host's end; `None` where the hardware address says everything.
pub fn alias(addresses: &PodAddresses) -> Option<String> {
    addresses.v6.is_some().then(|| addresses.to_string())
}

/// The addresses of the pod that a link on the host stands for; `None` for every link that is no pod's. Without any
/// where a crash came before the alias.
pub fn recorded(link_name: &str, link_mac: &[u8], alias: Option<&str>) -> Option<PodAddresses> {
    let [a, b, c, d, e, f] = *link_mac else {
        return None;
    };
    if !link_name.starts_with(VETH_PREFIX) {
        return None;
    }
    let by_mac: Option<IpAddr> = match [a, b] {
        HOST_MAC_PREFIX => Some(Ipv4Addr::new(c, d, e, f).into()),
        HOST_MAC_PREFIX_V6 => None,
        _ => return None,
    };
    let by_alias: PodAddresses = alias
        .unwrap_or_default()
        .split(' ')
        .filter_map(|text| text.parse::<IpAddr>().ok())
        .collect();
    // An alias that somebody else wrote is no record.
    if host_mac(&by_alias) == *link_mac && by_alias.iter().next().is_some() {
        return Some(by_alias);
    }
    Some(by_mac.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> PodAddresses {
        texts
            .iter()
            .map(|text| -> IpAddr { text.parse().unwrap() })
            .collect()
    }

    #[test]
    fn a_veth_name_is_short_stable_and_its_own() {
        let name = veth_name("2f1c9c7e-62a1-4f0e-9b8e-0d5b7c1d2e3f");
        assert_eq!(name, veth_name("2f1c9c7e-62a1-4f0e-9b8e-0d5b7c1d2e3f"));
        assert!(name.len() <= 15);
        assert_ne!(name, veth_name("2f1c9c7e-62a1-4f0e-9b8e-0d5b7c1d2e30"));
    }

    #[test]
    fn a_links_addresses_are_read_back_and_other_links_are_nobodys() {
        let name = veth_name("uid");
        for texts in [
            &["10.244.1.7"][..],
            &["10.244.1.7", "fd00::7"],
            &["fd00::7", "10.244.1.7"],
            &["fd00::1:2:7"],
        ] {
            let given = addresses(texts);
            let alias = alias(&given);
            let read = |name, mac: &[u8]| recorded(name, mac, alias.as_deref());
            assert_eq!(read(&name, &host_mac(&given)), Some(given));
            assert_eq!(read("eth0", &host_mac(&given)), None);
            assert_eq!(read(&name, &pod_mac(&given)), None);
        }
        assert_eq!(recorded("lo", &[], None), None);
    }

    #[test]
    fn what_a_crash_or_somebody_else_left_as_alias_is_told_apart() {
        let name = veth_name("uid");
        let dual = addresses(&["fd00::7", "10.244.1.7"]);
        let v4 = addresses(&["10.244.1.7"]);
        for alias in [None, Some("uplink of rack 7"), Some("fd00::8 10.244.1.8")] {
            assert_eq!(recorded(&name, &host_mac(&dual), alias), Some(v4));
        }
        let v6 = addresses(&["fd00::7"]);
        assert_eq!(
            recorded(&name, &host_mac(&v6), None),
            Some(PodAddresses::default())
        );
    }
}
