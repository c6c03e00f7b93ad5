//! Which node announced an address before this one: connections that were opened by it are known there, and the programs
//! hand it their packets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use agent_ebpf::abi::Address;
use tracing::warn;

use super::Announced;
use crate::chain::chain;
use crate::cluster::{Cluster, Name, View};
use crate::dataplane::Maps;

/// The last other node that was seen to announce each address.
pub(super) struct Formers {
    own: Name,
    nodes: BTreeMap<IpAddr, Name>,
    /// All addresses that are announced, by whomever.
    addresses: BTreeSet<IpAddr>,
    /// What the programs were told last.
    told: Option<Rows>,
    is_late: bool,
}

/// For each address the former node's, and those of which rows may stay.
type Rows = (BTreeMap<Address, Address>, BTreeSet<Address>);

impl Formers {
    pub(super) fn new(own: Name) -> Self {
        Self {
            own,
            nodes: BTreeMap::new(),
            addresses: BTreeSet::new(),
            told: None,
            is_late: false,
        }
    }

    /// Takes note of who announces what now.
    pub(super) fn update(&mut self, announcers: &BTreeMap<IpAddr, Announced>) {
        self.addresses = announcers.keys().copied().collect();
        self.nodes
            .retain(|address, _| announcers.contains_key(address));
        for (address, announced) in announcers {
            if let Ok(node) = announced
                && *node != self.own
            {
                self.nodes.insert(*address, node.clone());
            }
        }
    }

    fn rows(&self, view: &View) -> Rows {
        let former = |(address, node): (&IpAddr, &Name)| {
            let mut own = view.nodes.get(node)?.internal_ips.iter();
            let of_family = own.find(|own| own.is_ipv4() == address.is_ipv4())?;
            Some((Address::from(*address), Address::from(*of_family)))
        };
        let known = self.nodes.iter().filter_map(former).collect();
        // What an agent before this one knew holds until this one knows better.
        let kept = self.addresses.iter().copied().map(Address::from).collect();
        (known, kept)
    }

    /// Tells the programs what is new.
    pub(super) fn tell(&mut self, maps: &mut Maps, cluster: &Cluster) {
        let rows = self.rows(&cluster.view());
        if self.told.as_ref() == Some(&rows) {
            return;
        }
        let (known, kept) = &rows;
        match maps.set_formers(known, kept) {
            Ok(()) => (self.told, self.is_late) = (Some(rows), false),
            Err(error) if !self.is_late => {
                self.is_late = true;
                let error = chain(&error);
                warn!(
                    error,
                    "connections of addresses that come to this node may break off; trying again"
                );
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::election::Nobody;
    use super::*;
    use crate::cluster::Node;

    #[test]
    fn the_last_other_node_is_remembered_by_its_address_of_the_family() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut view = View::default();
        for (name, addresses) in [
            ("a", ["192.0.2.1", "2001:db8::1"]),
            ("b", ["192.0.2.2", "2001:db8::2"]),
        ] {
            let node = Node {
                internal_ips: addresses.map(ip).to_vec(),
                ..Node::default()
            };
            view.set_node(name.into(), Some(node));
        }
        let (four, six) = (ip("192.0.2.80"), ip("2001:db8::80"));
        let mut formers = Formers::new("a".into());
        let mut after = |announced: &[(IpAddr, Announced)]| {
            formers.update(&announced.iter().cloned().collect());
            formers.rows(&view)
        };
        let rows = |known: &[(IpAddr, &str)], kept: &[IpAddr]| -> Rows {
            let known = known
                .iter()
                .map(|(address, node)| ((*address).into(), ip(node).into()));
            (
                known.collect(),
                kept.iter().copied().map(Address::from).collect(),
            )
        };
        let own = || Ok("a".into());
        assert_eq!(after(&[(four, own())]), rows(&[], &[four]));
        let known = rows(&[(four, "192.0.2.2"), (six, "2001:db8::2")], &[four, six]);
        assert_eq!(
            after(&[(four, Ok("b".into())), (six, Ok("b".into()))]),
            known
        );
        assert_eq!(after(&[(four, own()), (six, Err(Nobody::NoNode))]), known);
        assert_eq!(
            after(&[(four, own())]),
            rows(&[(four, "192.0.2.2")], &[four])
        );
        // A node without an address of the family, or of no address at all.
        assert_eq!(after(&[(four, Ok("c".into()))]), rows(&[], &[four]));
    }
}
