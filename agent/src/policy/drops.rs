//! Tells people what policies refuse: a line in the log for each pod, direction and peer, and not too many; and all that the
//! kernel records of it, to whoever watches flows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use agent_ebpf::abi::LinkIndex;
use agent_ebpf::abi::policy::PolicyDrop;
use agent_ebpf::policy::{Direction, Refusal};
use jiff::Timestamp;
use tracing::warn;

use super::engine::Engine;
use super::types::protocol_name;
use super::view::View;
use crate::cluster::Name;
use crate::dataplane::{MapError, Records, monotonic_ns};
use crate::introspection as api;
use crate::observe::{Clock, DROPPED, Flows};

/// Between two lines about one pod, direction and peer.
const QUIET: Duration = Duration::from_secs(30);
/// Lines in that time.
const MOST: usize = 100;
/// Records that are taken at once.
const BATCH: usize = 64;

/// Reads records until the process ends.
pub async fn run(
    node: Name,
    engine: Engine,
    flows: Flows,
    mut records: Records<PolicyDrop>,
) -> Result<(), MapError> {
    let (mut said, mut batch) = (Said::default(), Vec::new());
    loop {
        records.next(&mut batch, BATCH).await?;
        let now = Instant::now();
        let clock = Clock {
            monotonic_ns: monotonic_ns(),
            wall: Timestamp::now(),
        };
        let watched = flows.is_watched();
        for drop in batch.drain(..) {
            if watched {
                let shown = engine.look(|local, _| {
                    let view = engine.known().view();
                    flow(&drop, &view, &local.node, &node, clock)
                });
                flows.publish(&shown, true);
            }
            if let Some(count) = said.note(&drop, now) {
                tell(&engine, &drop, count);
            }
        }
    }
}

/// A drop as people watch it, with the names of both ends.
fn flow(
    drop: &PolicyDrop,
    view: &View,
    own: &BTreeSet<IpAddr>,
    node: &str,
    clock: Clock,
) -> api::Flow {
    let pod = |address: IpAddr| {
        let mut pods = view.pods.iter();
        let found = pods.find(|(_, pod)| pod.addresses.contains(&address));
        found.map(|(key, _)| key.to_string())
    };
    let (source, destination) = (drop.source.to_ip(), drop.destination.to_ip());
    let client = match pod(source) {
        Some(pod) => pod,
        None if own.contains(&source) => "host".to_owned(),
        None => source.to_string(),
    };
    let port = u16::from_be_bytes(drop.destination_port);
    let (direction, here) = match is_ingress(drop) {
        true => ("ingress", node),
        false => ("egress", ""),
    };
    api::Flow {
        time: clock.at(drop.time_ns).to_string(),
        verdict: DROPPED.to_owned(),
        protocol: protocol_name(drop.protocol),
        client,
        dialled: SocketAddr::new(destination, port).to_string(),
        backend_pod: pod(destination).unwrap_or_default(),
        backend_node: here.to_owned(),
        reason: format!("{direction}: {}", why(drop)),
        ..api::Flow::default()
    }
}

fn tell(engine: &Engine, drop: &PolicyDrop, packets: u64) {
    let link = engine.look(|local, _| {
        let mut links = local.links.iter();
        let found = links.find(|(_, link)| link.index == drop.pod);
        found.map(|(name, _)| name.clone())
    });
    let view = engine.known().view();
    let (peer, port) = match is_ingress(drop) {
        true => (drop.source, drop.destination_port),
        false => (drop.destination, drop.destination_port),
    };
    let local = view.local();
    let pod = link.as_ref().and_then(|link| local.get(&**link));
    let pod = pod.map_or_else(
        || format!("link {}", drop.pod.0),
        |(key, _)| key.to_string(),
    );
    let direction = if is_ingress(drop) {
        "ingress"
    } else {
        "egress"
    };
    let port = u16::from_be_bytes(port);
    let protocol = protocol_name(drop.protocol);
    let peer = named(&view, peer.to_ip());
    let why = why(drop);
    warn!(%pod, direction, peer, port, protocol, packets, "a network policy refused this: {why}");
}

fn why(drop: &PolicyDrop) -> &'static str {
    match drop.reason {
        reason if reason == Refusal::Pending as u8 => "the pod's policies are not known yet",
        reason if reason == Refusal::Fragment as u8 => "a fragment whose first one did not pass",
        _ => "the pod is isolated, and no policy allows it",
    }
}

fn is_ingress(drop: &PolicyDrop) -> bool {
    drop.direction == Direction::Ingress as u32
}

/// An address, and the pod that has it.
pub(super) fn named(view: &View, address: IpAddr) -> String {
    let mut pods = view.pods.iter();
    match pods.find(|(_, pod)| pod.addresses.contains(&address)) {
        Some((key, _)) => format!("{address} ({key})"),
        None => address.to_string(),
    }
}

/// What a line is about.
type About = (LinkIndex, u32, IpAddr, u16, u8);

/// What has been said lately.
#[derive(Debug, Default)]
struct Said {
    lines: BTreeMap<About, (Instant, u64)>,
}

impl Said {
    /// Notes one. Gives how many packets a line about it stands for; `None` when it is too early for a line, or too much
    /// has been said.
    fn note(&mut self, drop: &PolicyDrop, now: Instant) -> Option<u64> {
        let peer = if is_ingress(drop) {
            drop.source
        } else {
            drop.destination
        };
        let port = u16::from_be_bytes(drop.destination_port);
        let about = (drop.pod, drop.direction, peer.to_ip(), port, drop.protocol);
        if let Some((at, more)) = self.lines.get_mut(&about) {
            *more += 1;
            if now.saturating_duration_since(*at) < QUIET {
                return None;
            }
            *at = now;
            return Some(std::mem::take(more));
        }
        if self.lines.len() >= MOST {
            let is_old = |at: &Instant| now.saturating_duration_since(*at) >= QUIET;
            self.lines.retain(|_, (at, _)| !is_old(at));
            if self.lines.len() >= MOST {
                return None;
            }
        }
        self.lines.insert(about, (now, 0));
        Some(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::types::Pod;
    use agent_ebpf::abi::{Address, TCP};

    fn drop(last: u8, port: u16) -> PolicyDrop {
        PolicyDrop {
            time_ns: 0,
            source: Address::v4([10, 0, 0, last]),
            destination: Address::v4([10, 0, 0, 99]),
            source_port: [1, 2],
            destination_port: port.to_be_bytes(),
            pod: LinkIndex(7),
            direction: Direction::Ingress as u32,
            protocol: TCP,
            reason: 0,
            pad: [0; 2],
        }
    }

    #[test]
    fn a_drop_is_shown_with_the_names_of_both_ends() {
        let key = |name: &str| crate::cluster::ObjectKey::new("shop", name);
        let pod = |last: u8| Pod {
            labels: Default::default(),
            ports: [].into(),
            addresses: vec![[10, 0, 0, last].into()],
            created: 0,
            link: None,
        };
        let view = View {
            pods: [(key("web"), pod(99).into()), (key("friend"), pod(1).into())].into(),
            ..View::default()
        };
        let clock = Clock {
            monotonic_ns: 0,
            wall: Timestamp::UNIX_EPOCH,
        };
        let own = BTreeSet::from([[10, 0, 0, 7].into()]);
        let shown = |drop: &PolicyDrop| flow(drop, &view, &own, "worker", clock);
        let seen = shown(&drop(1, 80));
        assert_eq!(
            (&*seen.client, &*seen.backend_pod, &*seen.dialled),
            ("shop/friend", "shop/web", "10.0.0.99:80")
        );
        assert_eq!((&*seen.verdict, &*seen.protocol), (DROPPED, "TCP"));
        assert_eq!(
            seen.reason,
            "ingress: the pod is isolated, and no policy allows it"
        );
        assert_eq!(seen.backend_node, "worker");
        assert_eq!(shown(&drop(7, 80)).client, "host");
        assert_eq!(shown(&drop(8, 80)).client, "10.0.0.8");
    }

    #[test]
    fn the_first_is_said_at_once_the_rest_in_one_line_and_never_too_much() {
        let (mut said, start) = (Said::default(), Instant::now());
        assert_eq!(said.note(&drop(1, 80), start), Some(1));
        assert_eq!(said.note(&drop(1, 80), start), None);
        assert_eq!(said.note(&drop(1, 81), start), Some(1), "another port");
        assert_eq!(said.note(&drop(1, 80), start + QUIET), Some(2));
        for port in 0..2 * MOST as u16 {
            said.note(&drop(2, port), start + QUIET);
        }
        assert_eq!(said.lines.len(), MOST);
        assert_eq!(said.note(&drop(3, 1), start + QUIET), None);
        assert_eq!(said.note(&drop(3, 1), start + 2 * QUIET), Some(1));
    }
}
