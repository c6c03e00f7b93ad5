//! What a service should look like from one node: its addresses, its backends in their order, and how to draw. Pure.

mod addresses;
mod host_ports;
mod near;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use agent_ebpf::abi::{
    self, FLAG_DIRECT_RETURN, FLAG_HOST_PORT, FLAG_LOCAL_ONLY, FLAG_SOURCE_RANGES, SHARE_ONE,
    Scope, ServiceKey,
};
use ipnet::IpNet;

pub use self::addresses::AddressKind;
use self::addresses::addresses;
pub(super) use self::addresses::has_pod;
use self::near::{Here, Nearness};
use crate::cluster::{
    Endpoint, Ignored, Leftovers, Locality, Name, ObjectKey, Protocol, ServicePort, Slice,
    SlicePort, View, Why,
};

/// Share of new connections that stay on the node while its backends are comfortable. The rest keeps the picture of the
/// other backends fresh.
const COMFORTABLE_SHARE: u32 = SHARE_ONE - SHARE_ONE / 100;

/// Where a backend listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    pub address: abi::Address,
    pub port: abi::Port,
    /// The `IPPROTO` number: 6 for TCP, 17 for UDP.
    pub protocol: u8,
}

/// Where a backend stands in its service's table. The order is the table's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    Local,
    Zone,
    Rest,
    /// Terminating and still serving: used only when nothing is ready.
    Terminating,
    /// There, and not offered: not ready, or not on this node where policy is node-local. No new connection goes to it,
    /// and it keeps those that it has.
    Draining,
}

/// One backend of one [`Frontend`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    pub class: Class,
    pub target: Target,
}

/// Whom to prefer among the ready backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preference {
    /// `internalTrafficPolicy: Local`, or `externalTrafficPolicy: Local` from outside: nobody but the node's own.
    LocalOnly,
    /// `trafficDistribution: PreferSameNode`, or hints for this node.
    SameNode,
    /// `trafficDistribution: PreferSameZone` or `PreferClose`, locality `zone`, or hints for this zone: evenly over who is
    /// on the node and who is near.
    SameZone,
    /// Locality `cluster`, or the zone on a node that has none, or from outside: which node a client comes in by says
    /// nothing of where it is.
    Even,
    /// Locality `node`: the node, with a little for the others.
    Node,
}

/// One service address: what one entry of `SERVICES` should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    pub key: ServiceKey,
    pub kind: AddressKind,
    pub port_name: Name,
    /// When its service was made, in seconds since 1970.
    pub created: i64,
    pub preference: Preference,
    /// Seconds for which a client keeps its backend; 0 without session affinity.
    pub affinity_timeout_s: u32,
    /// Share of new connections that stays on the node with [`Preference::Node`], of [`SHARE_ONE`].
    pub node_share: u32,
    /// Who is let in; everybody with `None`.
    pub source_ranges: Option<Arc<[IpNet]>>,
    /// The backend's node answers the client itself.
    pub direct_return: bool,
    /// Sorted, each target once.
    pub backends: Vec<Backend>,
}

impl Frontend {
    /// The backends that new connections may go to.
    pub fn offered(&self) -> impl Iterator<Item = &Backend> {
        let backends = self.backends.iter();
        backends.filter(|backend| backend.class != Class::Draining)
    }

    /// The `FLAG_*` bits that say how it is served, whoever its backends are.
    pub(super) fn flags(&self) -> u32 {
        let mut flags = 0;
        if self.source_ranges.is_some() {
            flags |= FLAG_SOURCE_RANGES;
        }
        if self.direct_return {
            flags |= FLAG_DIRECT_RETURN;
        }
        if self.kind == AddressKind::HostPort {
            flags |= FLAG_HOST_PORT;
        }
        flags
    }
}

/// What the service `key` should look like on `node`, and what of it had to be left out. Nothing when it is gone,
/// headless, or another proxy's. `default` is what the node prefers where the service does not say.
pub fn desired(
    view: &View,
    node: &str,
    default: Locality,
    key: &ObjectKey,
) -> (Vec<Frontend>, Vec<Ignored>) {
    if key.pod_name().is_some() {
        return host_ports::desired(view, key);
    }
    let mut frontends: Vec<Frontend> = Vec::new();
    let Some(service) = view.services.get(key) else {
        return (frontends, Vec::new());
    };
    if service.proxy_name.is_some() || service.not_for_proxies || service.headless {
        return (frontends, Vec::new());
    }
    let mut leftovers = Leftovers::default();
    let slices = view.slices_for(key).filter(|it| !it.not_for_proxies);
    let slices: Vec<&Slice> = slices.map(|slice| &**slice).collect();
    for ignored in service.ignored.iter().cloned() {
        leftovers.join(ignored);
    }
    for ignored in slices.iter().flat_map(|it| it.ignored.iter().cloned()) {
        leftovers.join(ignored);
    }
    let here = Here::new(view, node);
    let addresses = addresses(view, node, service, &mut leftovers);
    let ports: Vec<(&ServicePort, u8)> = match addresses.is_empty() {
        true => Vec::new(),
        false => seen_ports(&service.ports, &mut leftovers),
    };
    for (address, kind, scope) in addresses {
        for (port, protocol) in &ports {
            let number = match kind {
                AddressKind::NodePort => port.node_port,
                _ => Some(port.port),
            };
            let Some(number) = number else { continue };
            let endpoints = endpoints_of(&slices, port, address.is_ipv6());
            let members: Vec<&Endpoint> = endpoints.iter().map(|(_, member)| *member).collect();
            let nearness = match (scope, kind) {
                (Scope::EXTERNAL, _) => Nearness::from_outside(here, service),
                (_, AddressKind::ClusterIp) => Nearness::new(here, service, default, &members),
                _ => Nearness::whoever_is_near(here, service, default, &members),
            };
            let exposed = service.exposed.as_deref();
            let outside = exposed.filter(|_| scope == Scope::EXTERNAL);
            frontends.push(Frontend {
                key: ServiceKey {
                    address: address.into(),
                    port: number.to_be_bytes(),
                    protocol: *protocol,
                    scope,
                },
                kind,
                port_name: port.name.clone(),
                created: service.created,
                preference: nearness.preference,
                affinity_timeout_s: service.affinity_timeout_s.unwrap_or(0),
                node_share: COMFORTABLE_SHARE,
                source_ranges: exposed
                    .filter(|_| kind == AddressKind::LoadBalancer)
                    .and_then(|exposed| exposed.source_ranges.clone()),
                direct_return: outside.is_some_and(|exposed| exposed.direct_return),
                backends: backends_of(&endpoints, nearness, *protocol),
            });
        }
    }
    (frontends, leftovers.into_vec())
}

/// The ports that the programs see, with the `IPPROTO` number of each.
fn seen_ports<'a>(
    ports: &'a [ServicePort],
    leftovers: &mut Leftovers,
) -> Vec<(&'a ServicePort, u8)> {
    let mut seen = Vec::new();
    for port in ports {
        match number(port.protocol) {
            Some(protocol) => seen.push((port, protocol)),
            None => leftovers.add(
                Why::Protocol,
                format_args!("{}/{}", port.port, port.protocol),
            ),
        }
    }
    seen
}

/// The `IPPROTO` number of what the socket hooks see.
fn number(protocol: Protocol) -> Option<u8> {
    match protocol {
        Protocol::Tcp => Some(abi::TCP),
        Protocol::Udp => Some(abi::UDP),
        Protocol::Sctp => None,
    }
}

/// Where the endpoints of one port and family listen, over all slices of the service.
fn endpoints_of<'a>(
    slices: &[&'a Slice],
    port: &ServicePort,
    ipv6: bool,
) -> Vec<(SocketAddr, &'a Endpoint)> {
    let mut all = Vec::new();
    for slice in slices {
        let mut ports = slice.ports.iter();
        let same = |it: &&SlicePort| it.name == port.name && it.protocol == port.protocol;
        let Some(number) = ports.find(same).map(|it| it.port) else {
            continue;
        };
        // Only the first address has a meaning; the others are never sent to.
        let first = |endpoint: &'a Endpoint| Some((*endpoint.addresses.first()?, endpoint));
        let endpoints = slice.endpoints.iter().filter_map(first);
        let of_family = endpoints.filter(|(ip, _)| ip.is_ipv6() == ipv6);
        all.extend(of_family.map(|(ip, endpoint)| (SocketAddr::new(ip, number), endpoint)));
    }
    all
}

/// The backends of one port; a target that appears twice counts once, in its best state.
fn backends_of(
    endpoints: &[(SocketAddr, &Endpoint)],
    nearness: Nearness<'_>,
    protocol: u8,
) -> Vec<Backend> {
    let mut best: BTreeMap<Target, Class> = BTreeMap::new();
    for (at, endpoint) in endpoints {
        let class = nearness.classify(endpoint);
        let target = Target {
            address: at.ip().into(),
            port: at.port().to_be_bytes(),
            protocol,
        };
        best.entry(target)
            .and_modify(|known| *known = (*known).min(class))
            .or_insert(class);
    }
    let mut backends: Vec<Backend> = best
        .into_iter()
        .map(|(target, class)| Backend { class, target })
        .collect();
    backends.sort_unstable();
    backends
}

impl Preference {
    pub(super) fn flags(self) -> u32 {
        if self == Preference::LocalOnly {
            FLAG_LOCAL_ONLY
        } else {
            0
        }
    }

    /// Share of new connections that stay on the node, of [`SHARE_ONE`], while its backends are comfortable.
    pub(super) fn local_share(self, local: u32, zone: u32, ready: u32) -> u32 {
        let one_in = |all: u32| {
            u32::try_from(u64::from(SHARE_ONE) * u64::from(local) / u64::from(all))
                .unwrap_or(SHARE_ONE)
        };
        if local == 0 {
            return 0;
        }
        match self {
            _ if local == ready => SHARE_ONE,
            Preference::LocalOnly | Preference::SameNode => SHARE_ONE,
            // What does not stay goes to the zone while it has backends, so this spreads evenly over the zone.
            Preference::SameZone => one_in(local + zone),
            Preference::Even => one_in(ready),
            Preference::Node => COMFORTABLE_SHARE,
        }
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "policy/exposed_tests.rs"]
mod exposed_tests;
