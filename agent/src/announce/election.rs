//! Which node announces which address. Pure: time is an argument.
//!
//! Every node has a Lease, as upstream's have. A node that may have to announce something renews it every [`BEAT`], and
//! when it has done so for a while without a gap, it *stands*: its Lease names the networks that it can announce in. For
//! each address the standing node with the highest [`rank`](super::rank) announces, and the next one is its standby;
//! others have no need to renew fast. So what it costs follows the number of nodes that announce something, and never
//! the number of services.
//!
//! A node is silent when this node has seen renewals of its own come back from the API server for [`SILENCE`] since the
//! last one of that node. So nobody is taken for dead because the API server is away, or because this node cannot reach
//! it: whoever announces goes on, and nobody takes an address over. Clocks of two machines are never compared.
//!
//! A node that is cut off from the API server alone goes on, too, and others, who cannot know whether it lives, take over.
//! It hears that on the wire, and yields.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use jiff::Timestamp;

use super::rank::rank;
use super::wanted::Who;
use super::{Addresses, Pulse};
use crate::cluster::Name;

/// Between two renewals of a node that announces, or stands by.
pub const BEAT: Duration = Duration::from_millis(400);
/// Two renewals may be late or lost. With one more until it is noticed, a dead node is replaced after 1.4 s at most, and
/// what the API server takes for a write.
const SILENCE: Duration = Duration::from_secs(1);
/// How long a node renews without a gap before it stands: longer than it takes to find out who is silent.
const SETTLE: Duration = Duration::from_secs(2);
/// A node that was not heard of for so long is not counted on as an announcer or standby, whatever the reason.
const DOUBTFUL: Duration = Duration::from_secs(2);
/// The announcer and one standby renew fast.
const PLACES: usize = 2;

/// What a node's Lease says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sign {
    pub renewed: Option<Timestamp>,
    /// Where it stands ready to announce.
    pub networks: Vec<IpNet>,
}

struct Heard {
    sign: Sign,
    at: Instant,
}

/// What the node knows of itself.
#[derive(Clone, Copy, Debug)]
pub struct Own<'a> {
    /// The networks of its links.
    pub networks: &'a [IpNet],
    /// It is ready, and nobody wants it to be left out.
    pub fit: bool,
}

/// What is to be done, and seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// The addresses that this node announces.
    pub mine: Addresses,
    pub pulse: Pulse,
    /// Who announces each address.
    pub announcers: BTreeMap<IpAddr, Result<Name, Nobody>>,
}

/// Why nobody announces an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Nobody {
    #[error("no node has a ready endpoint, which externalTrafficPolicy Local asks for")]
    NoEndpoint,
    #[error(
        "no node that may announce it has a link in its network, or none has stood ready long enough"
    )]
    NoNode,
}

/// What to do about somebody else who claims an address of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dispute {
    /// Announce it again.
    Defend,
    /// It is no longer ours.
    Yield,
}

/// One node's part in the election.
pub struct Election {
    own: Name,
    heard: BTreeMap<Name, Heard>,
    /// Since when our renewals have come back without a gap.
    steady_since: Option<Instant>,
    stands: bool,
    mine: Addresses,
}

impl Election {
    pub fn new(own: Name) -> Self {
        Self {
            own,
            heard: BTreeMap::new(),
            steady_since: None,
            stands: false,
            mine: Addresses::new(),
        }
    }

    /// A node's Lease, as a watch or a list shows it. The same once more is no news.
    pub fn heard(&mut self, node: &Name, sign: Sign, now: Instant) {
        let before = self.heard.get(node);
        if before.is_some_and(|before| before.sign == sign) {
            return;
        }
        let gap = before.is_none_or(|before| now.duration_since(before.at) > SILENCE);
        if *node == self.own && gap {
            self.steady_since = Some(now);
        }
        self.heard.insert(node.clone(), Heard { sign, at: now });
    }

    /// A list is complete: nodes that it does not name have no Lease.
    pub fn listed(&mut self, nodes: &BTreeSet<Name>) {
        self.heard.retain(|node, _| nodes.contains(node));
    }

    pub fn gone(&mut self, node: &Name) {
        self.heard.remove(node);
    }

    /// When a renewal of ours was last seen.
    pub fn own_heard_at(&self) -> Option<Instant> {
        Some(self.heard.get(&self.own)?.at)
    }

    /// Somebody else claims an address of ours.
    pub fn disputed(&mut self, address: IpAddr, now: Instant) -> Dispute {
        if self.is_steady(now) {
            return Dispute::Defend;
        }
        self.mine.remove(&address);
        Dispute::Yield
    }

    /// Whether our renewals come back, and have for long enough to tell who is silent.
    fn is_steady(&self, now: Instant) -> bool {
        match (self.steady_since, self.own_heard_at()) {
            (Some(since), Some(last)) => {
                last.duration_since(since) >= SETTLE && now.duration_since(last) <= SILENCE
            }
            _ => false,
        }
    }

    /// Whether we were heard for so long after the node that it should have been heard, too.
    fn is_silent(&self, heard: &Heard) -> bool {
        self.own_heard_at()
            .is_some_and(|own| own.saturating_duration_since(heard.at) >= SILENCE)
    }

    /// Nodes that stand for the address, without this one.
    fn standing<'a>(
        &'a self,
        address: IpAddr,
        who: &'a Who,
    ) -> impl Iterator<Item = (&'a Name, &'a Heard)> {
        self.heard.iter().filter(move |(node, heard)| {
            **node != self.own && contain(&heard.sign.networks, address) && who.includes(node)
        })
    }

    /// What this node is to do now.
    pub fn decide(
        &mut self,
        addresses: &BTreeMap<IpAddr, &Who>,
        own: Own<'_>,
        now: Instant,
    ) -> Decision {
        let steady = self.is_steady(now);
        self.stands |= steady;
        let mut needed = false;
        let mut mine = Addresses::new();
        for (address, who) in addresses {
            let may = own.fit && contain(own.networks, *address) && who.includes(&self.own);
            if !may {
                continue;
            }
            let place = self.place(*address, who, now);
            needed |= place.before < PLACES;
            let is_told = self
                .heard
                .get(&self.own)
                .is_some_and(|own| contain(&own.sign.networks, *address));
            let is_mine = match place {
                // Whoever is heard and comes first announces, however we are ourselves.
                Place { fresh: true, .. } => false,
                Place { silent: true, .. } if steady && is_told => true,
                // Who cannot tell changes nothing.
                _ => self.mine.contains(address),
            };
            if is_mine {
                mine.insert(*address);
            }
        }
        self.mine = mine;
        self.stands &= needed;
        let networks = if self.stands {
            own.networks.to_vec()
        } else {
            Vec::new()
        };
        Decision {
            mine: self.mine.clone(),
            pulse: Pulse {
                fast: needed,
                networks,
            },
            announcers: addresses
                .iter()
                .map(|(address, who)| (*address, self.announcer(*address, who)))
                .collect(),
        }
    }

    /// Where we are in the order of those who stand for the address.
    fn place(&self, address: IpAddr, who: &Who, now: Instant) -> Place {
        let own = (rank(&self.own, address), &self.own);
        let mut place = Place {
            before: 0,
            fresh: false,
            silent: true,
        };
        let better = self
            .standing(address, who)
            .filter(|(node, _)| (rank(node, address), *node) > own);
        for (_, heard) in better {
            let age = now.duration_since(heard.at);
            place.before += usize::from(age <= DOUBTFUL);
            place.fresh |= age <= SILENCE;
            place.silent &= self.is_silent(heard);
        }
        place
    }

    fn announcer(&self, address: IpAddr, who: &Who) -> Result<Name, Nobody> {
        if self.mine.contains(&address) {
            return Ok(self.own.clone());
        }
        let live = self
            .standing(address, who)
            .filter(|(_, heard)| !self.is_silent(heard));
        match live.max_by_key(|(node, _)| (rank(node, address), *node)) {
            Some((node, _)) => Ok(node.clone()),
            None if *who == Who::Nodes(BTreeSet::new()) => Err(Nobody::NoEndpoint),
            None => Err(Nobody::NoNode),
        }
    }
}

/// A node's place for one address.
struct Place {
    /// How many come before it that can be counted on.
    before: usize,
    /// One of those that come before it was heard just now.
    fresh: bool,
    /// All that come before it are silent.
    silent: bool,
}

fn contain(networks: &[IpNet], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(&address))
}
