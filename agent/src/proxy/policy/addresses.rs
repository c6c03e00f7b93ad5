//! At which addresses a service is answered, and which of those that it asks for it cannot have. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent_ebpf::abi::{FLAG_HOST_PORT, Scope, ServiceEntry, ServiceKey};

use crate::cluster::{Leftovers, Node, Service, View, Why};

/// What an address of a service is. Of two services that ask for one address, a cluster IP comes before all others: nobody
/// takes it by listing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AddressKind {
    ClusterIp,
    /// A port of each of the node's addresses.
    NodePort,
    LoadBalancer,
    ExternalIp,
    /// A port of a pod at the node's addresses, or at one of them.
    HostPort,
}

impl AddressKind {
    /// For a person, in Kubernetes' words.
    pub fn name(self) -> &'static str {
        match self {
            AddressKind::ClusterIp => "ClusterIP",
            AddressKind::NodePort => "NodePort",
            AddressKind::LoadBalancer => "LoadBalancer",
            AddressKind::ExternalIp => "ExternalIP",
            AddressKind::HostPort => "HostPort",
        }
    }

    /// As far as it tells, of a row that nobody has claimed yet.
    pub(in crate::proxy) fn of_row(key: &ServiceKey, entry: &ServiceEntry) -> Self {
        if entry.flags & FLAG_HOST_PORT != 0 {
            return AddressKind::HostPort;
        }
        match (key.address.to_ip().is_unspecified(), key.scope) {
            (true, _) => AddressKind::NodePort,
            (false, Scope::EXTERNAL) => AddressKind::ExternalIp,
            _ => AddressKind::ClusterIp,
        }
    }

    fn scopes(self) -> &'static [Scope] {
        match self {
            AddressKind::ClusterIp => &[Scope::CLUSTER],
            _ => &[Scope::CLUSTER, Scope::EXTERNAL],
        }
    }
}

/// The addresses of a service, each once for each scope that it is dialled from, in the order of the service. A node
/// port's is the unspecified one.
pub(super) fn addresses(
    view: &View,
    node: &str,
    service: &Service,
    leftovers: &mut Leftovers,
) -> Vec<(IpAddr, AddressKind, Scope)> {
    let mut all: Vec<(IpAddr, AddressKind)> = Vec::new();
    for ip in &service.cluster_ips {
        match foreign(view, node, *ip) {
            Some(why) => leftovers.add(why, ip),
            None => all.push((*ip, AddressKind::ClusterIp)),
        }
    }
    if let Some(exposed) = &service.exposed {
        let is_served = |ip: IpAddr| service.cluster_ips.iter().any(|it| same_family(*it, ip));
        let everywhere = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let everywhere = everywhere.into_iter().filter(|_| exposed.node_ports);
        let node_ports = everywhere.filter(|ip| is_served(*ip));
        all.extend(node_ports.map(|ip| (ip, AddressKind::NodePort)));

        let kind = AddressKind::LoadBalancer;
        let balanced = exposed.load_balancer_ips.iter().map(|ip| (*ip, kind));
        let kind = AddressKind::ExternalIp;
        let listed = exposed.external_ips.iter().map(|ip| (*ip, kind));
        for (ip, kind) in balanced.chain(listed) {
            if all.iter().any(|(known, _)| *known == ip) {
                continue;
            }
            let why = match is_served(ip) {
                true => captured(view, node, ip, kind),
                false => Some(Why::AddressFamily),
            };
            match why {
                Some(why) => leftovers.add(why, ip),
                None => all.push((ip, kind)),
            }
        }
    }
    let all = all.into_iter();
    all.flat_map(|(ip, kind)| kind.scopes().iter().map(move |scope| (ip, kind, *scope)))
        .collect()
}

fn same_family(one: IpAddr, other: IpAddr) -> bool {
    one.is_ipv4() == other.is_ipv4()
}

/// Whose address it is if it cannot be a service's: connections to this node and to pods must not go astray. What the
/// other nodes say of their addresses is not asked: one of them could keep a service from all nodes.
fn foreign(view: &View, node: &str, ip: IpAddr) -> Option<Why> {
    let own = view.nodes.get(node);
    if own.is_some_and(|node| node.internal_ips.contains(&ip)) {
        return Some(Why::NodeAddress);
    }
    let mut nodes = view.nodes.values();
    nodes.any(|node| has_pod(node, ip)).then_some(Why::PodRange)
}

/// Whose address it is if it cannot be an external one. Who makes Services lists what he likes, and no controller looks at
/// it (CVE-2020-8554): of external IPs the other nodes are asked, too.
fn captured(view: &View, node: &str, ip: IpAddr, kind: AddressKind) -> Option<Why> {
    if let Some(why) = foreign(view, node, ip) {
        return Some(why);
    }
    let listed = kind == AddressKind::ExternalIp;
    if listed && view.nodes.values().any(|it| it.internal_ips.contains(&ip)) {
        return Some(Why::NodeAddress);
    }
    let mut services = view.services.values();
    services
        .any(|service| service.cluster_ips.contains(&ip))
        .then_some(Why::ClusterAddress)
}

/// Whether the address is for the node's pods.
pub(in crate::proxy) fn has_pod(node: &Node, ip: IpAddr) -> bool {
    node.pod_cidrs.iter().any(|range| range.contains(&ip))
}
