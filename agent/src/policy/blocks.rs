//! The ranges that rules name, found by the addresses that they are about: a look for each length that there is, however
//! many ranges there are. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::prefix::{Lengths, Prefix};
use super::types::Block;
use crate::cluster::Name;

/// The ranges of rules.
#[derive(Debug, Default)]
pub(super) struct Blocks(Ranges<Vec<(Name, Ranges<()>)>>);

/// Something for each of some ranges.
#[derive(Debug)]
struct Ranges<V> {
    map: BTreeMap<Prefix, V>,
    lengths: Lengths,
}

impl<V> Default for Ranges<V> {
    fn default() -> Self {
        Self::new(BTreeMap::new())
    }
}

impl<V> Ranges<V> {
    fn new(map: BTreeMap<Prefix, V>) -> Self {
        let lengths = Lengths::of(&map);
        Self { map, lengths }
    }

    /// Of those that a prefix is in. No range of IPv6 means IPv4's addresses, which stand among its own.
    fn around(&self, prefix: &Prefix) -> impl Iterator<Item = &V> {
        let shortest = match prefix.is_v4() {
            true => Prefix::all_of_v4().bits,
            false => 0,
        };
        let lengths = shortest..prefix.bits + 1;
        self.lengths.all_covering(&self.map, prefix, lengths)
    }
}

impl Blocks {
    /// By the text of their peers.
    pub(super) fn of(blocks: BTreeMap<Name, &Block>) -> Self {
        let mut map: BTreeMap<Prefix, Vec<_>> = BTreeMap::new();
        for (text, Block { range, except }) in blocks {
            let except = except.iter().map(|range| (Prefix::from(*range), ()));
            let block = (text, Ranges::new(except.collect()));
            map.entry(Prefix::from(*range)).or_default().push(block);
        }
        Self(Ranges::new(map))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.map.is_empty()
    }

    /// The peers that are about all addresses in a prefix, which is no longer than those of the ranges that rules name.
    pub(super) fn about(&self, prefix: &Prefix) -> impl Iterator<Item = Name> {
        let blocks = self.0.around(prefix).flatten();
        let blocks = blocks.filter(|(_, except)| except.around(prefix).next().is_none());
        blocks.map(|(text, _)| text.clone())
    }

    /// The prefixes at which an answer of [`Self::about`] begins or ends.
    pub(super) fn edges(&self) -> BTreeSet<Prefix> {
        let mut edges = BTreeSet::new();
        for (range, blocks) in &self.0.map {
            edges.insert(*range);
            edges.extend(blocks.iter().flat_map(|(_, except)| except.map.keys()));
        }
        let v4 = Prefix::all_of_v4();
        let is_around_v4 = |edge: &Prefix| edge.bits < v4.bits && edge.covers(&v4);
        if edges.iter().any(is_around_v4) {
            edges.insert(v4);
        }
        edges
    }
}

#[cfg(test)]
mod tests {
    use ipnet::IpNet;
    use proptest::prelude::*;

    use super::*;

    /// The same, a look at each block.
    fn simple(blocks: &BTreeMap<Name, &Block>, prefix: &Prefix) -> BTreeSet<Name> {
        let has = |range: &IpNet| {
            let range = Prefix::from(*range);
            range.is_v4() == prefix.is_v4() && range.covers(prefix)
        };
        let about = blocks
            .iter()
            .filter(|(_, block)| has(&block.range) && !block.except.iter().any(has));
        about.map(|(text, _)| text.clone()).collect()
    }

    /// Ranges of few bits, so that they often contain each other.
    fn range() -> impl Strategy<Value = IpNet> {
        let v4 = (0_u8..4, prop::sample::select(vec![0, 1, 6, 7, 8, 32]))
            .prop_map(|(byte, bits)| IpNet::new([byte, 0, 0, 0].into(), bits).unwrap().trunc());
        let v6 = (0_u16..4, prop::sample::select(vec![0, 14, 15, 16, 96, 128])).prop_map(
            |(word, bits)| {
                IpNet::new([word, 0, 0, 0, 0, 0, 0, 0].into(), bits)
                    .unwrap()
                    .trunc()
            },
        );
        prop_oneof![v4, v6]
    }

    fn block() -> impl Strategy<Value = Block> {
        let except = prop::collection::vec(range(), 0..3);
        (range(), except).prop_map(|(range, except)| Block { range, except })
    }

    proptest! {
        #[test]
        fn blocks_are_found_as_by_a_look_at_each(
            blocks in prop::collection::vec(block(), 0..20),
            others in prop::collection::vec(range(), 0..10),
        ) {
            let named: BTreeMap<Name, &Block> =
                blocks.iter().map(|it| (it.to_string().into(), it)).collect();
            let found = Blocks::of(named.clone());
            let others = others.into_iter().map(Prefix::from);
            for prefix in found.edges().into_iter().chain(others) {
                let about: Vec<Name> = found.about(&prefix).collect();
                let once: BTreeSet<Name> = about.iter().cloned().collect();
                prop_assert_eq!(about.len(), once.len());
                prop_assert_eq!(once, simple(&named, &prefix), "{}", prefix);
            }
        }
    }
}
