//! The maps that are sets of ranges of addresses: `EXEMPT` and `NEAR`.

use std::collections::BTreeSet;

use agent_ebpf::abi::{Address, Member, maps as names};
use aya::maps::lpm_trie::Key;
use aya::maps::{LpmTrie, MapData};
use ipnet::IpNet;

use super::maps::{MapError, Maps, read};

/// Bits of an address before those of an IPv4 one.
const V4_PREFIX: u8 = 96;

type Ranges = LpmTrie<MapData, Address, Member>;

impl Maps {
    /// The destinations that see pods' own addresses.
    pub fn exempt(&self) -> Result<BTreeSet<IpNet>, MapError> {
        ranges(names::EXEMPT, &self.exempt)
    }

    /// Makes these the destinations that see pods' own addresses, in the place of those that are there.
    pub fn set_exempt(
        &mut self,
        present: &BTreeSet<IpNet>,
        wanted: &BTreeSet<IpNet>,
    ) -> Result<(), MapError> {
        set(names::EXEMPT, &mut self.exempt, present, wanted)
    }

    /// The addresses of nodes that share a link with this one, and of their pods.
    pub fn near(&self) -> Result<BTreeSet<IpNet>, MapError> {
        ranges(names::NEAR, &self.near)
    }

    /// Makes these the addresses of nodes that share a link with this one, and of their pods.
    pub fn set_near(&mut self, wanted: &BTreeSet<IpNet>) -> Result<(), MapError> {
        let present = self.near()?;
        set(names::NEAR, &mut self.near, &present, wanted)
    }
}

fn ranges(name: &'static str, map: &Ranges) -> Result<BTreeSet<IpNet>, MapError> {
    let keys = map.keys().map(|key| {
        let key = key.map_err(|source| read(name, source))?;
        let (address, bits) = (key.data(), key.prefix_len() as u8);
        let length = address
            .as_v4()
            .map_or(bits, |_| bits.saturating_sub(V4_PREFIX));
        // A longer prefix than the family has is nobody's.
        Ok(IpNet::new(address.to_ip(), length).ok())
    });
    keys.filter_map(Result::transpose).collect()
}

fn set(
    name: &'static str,
    map: &mut Ranges,
    present: &BTreeSet<IpNet>,
    wanted: &BTreeSet<IpNet>,
) -> Result<(), MapError> {
    let key = |range: &IpNet| {
        let length = match range {
            IpNet::V4(range) => V4_PREFIX + range.prefix_len(),
            IpNet::V6(range) => range.prefix_len(),
        };
        Key::new(length.into(), Address::from(range.network()))
    };
    for range in wanted.difference(present) {
        map.insert(&key(range), Member::default(), 0)
            .map_err(|source| MapError::Put { map: name, source })?;
    }
    for range in present.difference(wanted) {
        // It may have gone meanwhile.
        let _ = map.remove(&key(range));
    }
    Ok(())
}
