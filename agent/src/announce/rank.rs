//! Rendezvous hashing: an order of the nodes for each address, the same on every node. Pure.
//!
//! Addresses spread evenly over nodes; a node that comes or goes moves only those that it gets or had.

use std::net::IpAddr;

/// The node with the highest rank announces the address.
///
/// All nodes have to agree, whatever version they run: this function never changes.
pub(super) fn rank(node: &str, address: IpAddr) -> u64 {
    let octets = match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    };
    // FNV-1a, then the finalizer of MurmurHash3, because FNV's high bits hardly depend on the last bytes.
    let bytes = node.bytes().chain(octets);
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mixed = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    mixed ^ (mixed >> 33)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn addresses_spread_over_nodes_and_only_those_of_a_lost_node_move() {
        let nodes: Vec<String> = (0..5).map(|n| format!("worker-{n}")).collect();
        let best = |nodes: &[String], address| {
            let best = nodes.iter().max_by_key(|node| rank(node, address));
            best.unwrap().clone()
        };
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for n in 0..1000_u32 {
            let address = IpAddr::from((0xc000_0200 + n).to_be_bytes());
            let before = best(&nodes, address);
            let after = best(&nodes[1..], address);
            assert!(before == nodes[0] || before == after);
            *counts.entry(before).or_default() += 1;
        }
        assert!(
            counts.values().all(|count| (140..260).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn the_order_is_the_same_in_every_version() {
        let of = |address: &str| rank("worker-1", address.parse().unwrap());
        assert_eq!(of("192.0.2.1"), 14_099_190_764_356_692_395);
        assert_eq!(of("2001:db8::1"), 15_318_836_419_710_537_023);
    }
}
