//! What a service should look like from one node: its addresses, its backends in their order, and how to draw. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use agent_ebpf::abi::{self, FLAG_LOCAL_ONLY, SHARE_ONE, ServiceKey};

use crate::cluster::{Endpoint, Name, ObjectKey, Protocol, Service, ServicePort, View};

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
    /// `internalTrafficPolicy: Local`: nobody but the node's own.
    LocalOnly,
    /// `trafficDistribution: PreferSameNode`.
    SameNode,
    /// `trafficDistribution: PreferSameZone` or `PreferClose`.
    SameZone,
    /// Annotation `kernelet.io/locality: cluster`.
    Even,
    /// Nothing is said: the node, with a little for the others.
    Node,
}

/// One service address: what one entry of `SERVICES` should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    pub key: ServiceKey,
    pub port_name: Name,
    pub preference: Preference,
    /// Seconds for which a client keeps its backend; 0 without session affinity.
    pub affinity_timeout_s: u32,
    /// Sorted, each target once.
    pub backends: Vec<Backend>,
}

impl Frontend {
    /// The backends that new connections may go to.
    pub fn offered(&self) -> impl Iterator<Item = &Backend> {
        let backends = self.backends.iter();
        backends.filter(|backend| backend.class != Class::Draining)
    }
}

/// Why a part of a service is not in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ignored {
    /// A port with protocol SCTP, which the socket hooks do not see.
    Sctp,
    /// An IPv6 service address.
    Ipv6,
}

impl Ignored {
    /// The reason, for a person.
    pub fn reason(self) -> &'static str {
        match self {
            Ignored::Sctp => "SCTP ports are not translated",
            Ignored::Ipv6 => "IPv6 service addresses are not translated",
        }
    }
}

/// The node from whose point of view things are local.
#[derive(Clone, Copy, Debug)]
struct Here<'a> {
    node: &'a str,
    zone: Option<&'a str>,
}

/// What the service `key` should look like on `node`, and what of it had to be left out. Nothing when it is gone,
/// headless, or another proxy's.
pub fn desired(view: &View, node: &str, key: &ObjectKey) -> (Vec<Frontend>, Vec<Ignored>) {
    let (mut frontends, mut ignored) = (Vec::new(), Vec::new());
    let Some(service) = view.services.get(key) else {
        return (frontends, ignored);
    };
    if service.proxy_name.is_some() || service.headless {
        return (frontends, ignored);
    }
    let here = Here {
        node,
        zone: view.nodes.get(node).and_then(|node| node.zone.as_deref()),
    };
    for port in &service.ports {
        let protocol = match port.protocol {
            Protocol::Tcp => abi::TCP,
            Protocol::Udp => abi::UDP,
            Protocol::Sctp => {
                ignored.push(Ignored::Sctp);
                continue;
            }
        };
        let mut backends = None;
        for ip in &service.cluster_ips {
            let IpAddr::V4(ip) = ip else {
                ignored.push(Ignored::Ipv6);
                continue;
            };
            let backends = backends
                .get_or_insert_with(|| backends_of(view, here, key, service, port, protocol));
            frontends.push(Frontend {
                key: ServiceKey {
                    address: (*ip).into(),
                    port: port.port.to_be_bytes(),
                    protocol,
                    pad: 0,
                },
                port_name: port.name.clone(),
                preference: preference(service),
                affinity_timeout_s: service.affinity_timeout_s.unwrap_or(0),
                backends: backends.clone(),
            });
        }
    }
    (frontends, ignored)
}

fn preference(service: &Service) -> Preference {
    if service.internal_local {
        return Preference::LocalOnly;
    }
    match service.traffic_distribution.as_deref() {
        Some("PreferSameNode") => Preference::SameNode,
        Some("PreferSameZone" | "PreferClose") => Preference::SameZone,
        _ if service.locality.as_deref() == Some("cluster") => Preference::Even,
        _ => Preference::Node,
    }
}

/// The backends of one port, over all slices of the service; a target that appears twice counts once, in its best state.
fn backends_of(
    view: &View,
    here: Here<'_>,
    key: &ObjectKey,
    service: &Service,
    port: &ServicePort,
    protocol: u8,
) -> Vec<Backend> {
    let preference = preference(service);
    let mut best: BTreeMap<Target, Class> = BTreeMap::new();
    for slice in view.slices_for(key) {
        let Some(number) = slice
            .ports
            .iter()
            .find(|p| p.name == port.name && p.protocol == port.protocol)
            .map(|p| p.port)
        else {
            continue;
        };
        for endpoint in &slice.endpoints {
            // Only the first address has a meaning; the others are never sent to.
            let Some(IpAddr::V4(ip)) = endpoint.addresses.first() else {
                continue;
            };
            let class = classify(here, preference, service.publish_not_ready, endpoint);
            let target = Target {
                address: (*ip).into(),
                port: number.to_be_bytes(),
                protocol,
            };
            best.entry(target)
                .and_modify(|known| *known = (*known).min(class))
                .or_insert(class);
        }
    }
    let mut backends: Vec<Backend> = best
        .into_iter()
        .map(|(target, class)| Backend { class, target })
        .collect();
    backends.sort_unstable();
    backends
}

fn classify(
    here: Here<'_>,
    preference: Preference,
    publish_not_ready: bool,
    endpoint: &Endpoint,
) -> Class {
    let remote = endpoint.node.as_deref() != Some(here.node);
    if preference == Preference::LocalOnly && remote {
        return Class::Draining;
    }
    if !(endpoint.ready || publish_not_ready) {
        if endpoint.terminating && endpoint.serving {
            Class::Terminating
        } else {
            Class::Draining
        }
    } else if !remote {
        Class::Local
    } else if preference != Preference::Even
        && here.zone.is_some()
        && endpoint.zone.as_deref() == here.zone
    {
        Class::Zone
    } else {
        Class::Rest
    }
}

impl Preference {
    pub(super) fn flags(self) -> u32 {
        if self == Preference::LocalOnly {
            FLAG_LOCAL_ONLY
        } else {
            0
        }
    }

    /// Share of new connections that stay on the node, of [`SHARE_ONE`].
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
