//! Answers for addresses on the node's links, and tells everybody when they come to this node.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

use super::links::Uplink;
use super::socket::{Frames, Groups, Kind};
use super::{Addresses, Heard, arp, ndp};
use crate::network::addresses::Mac;

/// When an address is announced, from the moment at which it comes to this node: frames get lost, and a switch that was
/// just plugged in forwards none for a while.
const ANNOUNCED_AT: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(10),
];
/// Two that claim one address must not answer each other without end.
const DEFENDED_EVERY: Duration = Duration::from_secs(1);
/// After an error of a socket, such as that its link is down.
const RETRY: Duration = Duration::from_secs(1);
/// Claims of others that wait to be looked at. More say nothing new.
const CLAIMS: usize = 16;

/// Somebody else claims an address that is answered here.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    pub address: IpAddr,
    pub by: Mac,
}

/// The node's voice. It falls silent when it is dropped.
pub struct Speaker {
    ports: BTreeMap<(u32, Family), Port>,
    mine: BTreeMap<IpAddr, Spoken>,
    /// Where no socket could be opened, and when that was tried last.
    failed: BTreeMap<(u32, Family), Instant>,
    claims: mpsc::Sender<Claim>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// What was said of an address.
struct Spoken {
    since: Instant,
    /// How many of [`ANNOUNCED_AT`] are done.
    done: usize,
    defended: Option<Instant>,
}

impl Speaker {
    /// The receiver hears of others who claim what is answered here.
    pub fn new() -> (Self, mpsc::Receiver<Claim>) {
        let (claims, receiver) = mpsc::channel(CLAIMS);
        let speaker = Self {
            ports: BTreeMap::new(),
            mine: BTreeMap::new(),
            failed: BTreeMap::new(),
            claims,
        };
        (speaker, receiver)
    }

    /// Answers for `mine` and for nothing else, each on the link in whose network it is.
    pub fn set(&mut self, uplinks: &[Uplink], mine: &Addresses, now: Instant) {
        let mut wanted: BTreeMap<(u32, Family), (&Uplink, Addresses)> = BTreeMap::new();
        for address in mine {
            if let Some(uplink) = uplink_of(uplinks, *address) {
                let key = (uplink.index, Family::of(*address));
                let entry = wanted.entry(key);
                let entry = entry.or_insert_with(|| (uplink, Addresses::new()));
                entry.1.insert(*address);
            }
        }
        self.ports.retain(|key, port| {
            wanted
                .get(key)
                .is_some_and(|(uplink, _)| uplink.mac == port.mac)
        });
        for (key, (uplink, addresses)) in wanted {
            if !self.ports.contains_key(&key) && self.open(key, uplink, now) {
                // Nobody has heard of them from this link.
                self.mine.retain(|address, _| !addresses.contains(address));
            }
            if let Some(port) = self.ports.get_mut(&key) {
                port.set(addresses);
            }
        }
        self.mine.retain(|address, _| {
            let kept = mine.contains(address);
            if !kept {
                info!(%address, "a load balancer's address is no longer announced here");
            }
            kept
        });
        for address in mine {
            self.mine.entry(*address).or_insert_with(|| {
                info!(%address, "a load balancer's address is announced here");
                Spoken {
                    since: now,
                    done: 0,
                    defended: None,
                }
            });
        }
        self.speak(now);
    }

    /// Returns whether there is a port now.
    fn open(&mut self, key: (u32, Family), uplink: &Uplink, now: Instant) -> bool {
        let failed = self.failed.get(&key);
        if failed.is_some_and(|at| now.duration_since(*at) < RETRY) {
            return false;
        }
        match Port::open(key.1, uplink, self.claims.clone()) {
            Ok(port) => {
                self.failed.remove(&key);
                self.ports.insert(key, port);
                true
            }
            Err(error) => {
                if self.failed.insert(key, now).is_none() {
                    warn!(link = uplink.name, %error, "cannot answer for load balancers' addresses on this link; trying again");
                }
                false
            }
        }
    }

    /// Announces what is due.
    pub fn speak(&mut self, now: Instant) {
        for (address, spoken) in &mut self.mine {
            let Some(after) = ANNOUNCED_AT.get(spoken.done) else {
                continue;
            };
            if now.duration_since(spoken.since) >= *after {
                announce(&self.ports, *address);
                spoken.done += 1;
            }
        }
    }

    /// Announces the address once more, because somebody else claimed it.
    pub fn defend(&mut self, claim: Claim, now: Instant) {
        let Some(spoken) = self.mine.get_mut(&claim.address) else {
            return;
        };
        if spoken
            .defended
            .is_some_and(|at| now.duration_since(at) < DEFENDED_EVERY)
        {
            return;
        }
        spoken.defended = Some(now);
        warn!(address = %claim.address, by = %Shown(claim.by), "another machine claims a load balancer's address that this node announces");
        announce(&self.ports, claim.address);
    }
}

/// The link in whose network the address is; the longest prefix decides between two.
fn uplink_of(uplinks: &[Uplink], address: IpAddr) -> Option<&Uplink> {
    let prefix = |uplink: &Uplink| {
        let networks = uplink
            .networks
            .iter()
            .filter(|network| network.contains(&address));
        networks.map(IpNet::prefix_len).max()
    };
    uplinks
        .iter()
        .filter_map(|uplink| Some((prefix(uplink)?, uplink)))
        .max_by_key(|(prefix, _)| *prefix)
        .map(|(_, uplink)| uplink)
}

fn announce(ports: &BTreeMap<(u32, Family), Port>, address: IpAddr) {
    let speaking = ports
        .values()
        .filter(|port| port.answers.load().contains(&address));
    for port in speaking {
        let frames = match address {
            IpAddr::V4(address) => arp::announcements(port.mac, address).to_vec(),
            IpAddr::V6(address) => vec![ndp::announcement(port.mac, address)],
        };
        for frame in frames {
            if let Err(error) = port.frames.send(&frame) {
                debug!(%address, %error, "an announcement was not sent");
            }
        }
    }
}

/// One family on one link.
struct Port {
    mac: Mac,
    frames: Arc<Frames>,
    answers: Arc<ArcSwap<Addresses>>,
    /// Of IPv6, with the groups that were joined.
    groups: Option<(Groups, BTreeSet<Ipv6Addr>)>,
    _listening: AbortOnDropHandle<()>,
}

impl Port {
    fn open(family: Family, uplink: &Uplink, claims: mpsc::Sender<Claim>) -> io::Result<Self> {
        let (kind, groups) = match family {
            Family::V4 => (Kind::Arp, None),
            Family::V6 => (
                Kind::Ndp,
                Some((Groups::open(uplink.index)?, BTreeSet::new())),
            ),
        };
        let frames = Arc::new(Frames::open(kind, uplink.index)?);
        let answers = Arc::new(ArcSwap::default());
        let listening = listen(kind, uplink.mac, frames.clone(), answers.clone(), claims);
        Ok(Self {
            mac: uplink.mac,
            frames,
            answers,
            groups,
            _listening: AbortOnDropHandle::new(tokio::spawn(listening)),
        })
    }

    fn set(&mut self, addresses: Addresses) {
        if let Some((groups, joined)) = &mut self.groups {
            let wanted: BTreeSet<Ipv6Addr> = addresses
                .iter()
                .filter_map(|address| match address {
                    IpAddr::V6(address) => Some(ndp::solicited_node(*address)),
                    IpAddr::V4(_) => None,
                })
                .collect();
            for group in wanted.difference(joined) {
                if let Err(error) = groups.join(*group) {
                    warn!(%group, %error, "cannot hear questions for a load balancer's address");
                }
            }
            for group in joined.difference(&wanted) {
                // Fails where joining it has.
                let _ = groups.leave(*group);
            }
            *joined = wanted;
        }
        self.answers.store(Arc::new(addresses));
    }
}

/// Answers until it is stopped.
async fn listen(
    kind: Kind,
    own: Mac,
    frames: Arc<Frames>,
    answers: Arc<ArcSwap<Addresses>>,
    claims: mpsc::Sender<Claim>,
) {
    loop {
        let heard = match frames.receive().await {
            Ok(frame) if kind == Kind::Arp => arp::hear(&frame, own, &answers.load()),
            Ok(frame) => ndp::hear(&frame, own, &answers.load()),
            Err(error) => {
                debug!(%error, "cannot hear questions for load balancers' addresses");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        match heard {
            Some(Heard::Asked(answer)) => {
                if let Err(error) = frames.send(&answer) {
                    debug!(%error, "an answer for a load balancer's address was not sent");
                }
            }
            Some(Heard::Claimed(address, by)) => {
                // Full: others like it wait already.
                let _ = claims.try_send(Claim { address, by });
            }
            None => {}
        }
    }
}

struct Shown(Mac);

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
