//! From the API's objects to the slim ones. Pure; everything that the node does not use is dropped here, at once.

use std::collections::HashSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use clap::ValueEnum as _;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::exposed::exposed;
use super::ignored::{Leftovers, Why, is_plain};
use super::types::{
    Endpoint, Hints, Locality, Name, Node, ObjectKey, Protocol, Service, ServicePort, Slice,
    SlicePort,
};

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// `loadBalancerClass` of the load balancers whose addresses nodes announce. Those without a class are, too.
const LOAD_BALANCER_CLASS: &str = "kernelet.io/arp";
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
const LOCALITY_ANNOTATION: &str = "kernelet.io/locality";
const CHANGED_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// What the API server fills in for `sessionAffinity: ClientIP` without a timeout.
const DEFAULT_AFFINITY_TIMEOUT_S: u32 = 10_800;
/// What the API server lets through.
const AFFINITY_TIMEOUTS_S: RangeInclusive<u32> = 1..=86_400;
/// The API server lets no slice have more.
const MAX_ENDPOINTS: usize = 1000;
/// The API server lets no endpoint have more.
const MAX_ADDRESSES: usize = 100;

/// Keeps one copy of each name that many objects repeat.
#[derive(Debug, Default)]
pub(crate) struct Names(HashSet<Name>);

impl Names {
    pub(super) fn get(&mut self, name: &str) -> Name {
        if let Some(known) = self.0.get(name) {
            return known.clone();
        }
        // Before the set would grow its table, drop what nothing uses any more.
        if self.0.len() == self.0.capacity() {
            self.0.retain(|known| Name::strong_count(known) > 1);
        }
        let name: Name = name.into();
        self.0.insert(name.clone());
        name
    }

    fn get_opt(&mut self, name: Option<&str>) -> Option<Name> {
        name.filter(|name| !name.is_empty())
            .map(|name| self.get(name))
    }
}

/// The key of a namespaced object; `None` when the server sent one without a name.
pub(super) fn key(meta: &ObjectMeta, names: &mut Names) -> Option<ObjectKey> {
    Some(ObjectKey {
        namespace: names.get(meta.namespace.as_deref().unwrap_or_default()),
        name: meta.name.as_deref()?.into(),
    })
}

pub(crate) fn service(object: &core::Service, names: &mut Names) -> Service {
    let Some(spec) = &object.spec else {
        return Service::default();
    };
    let addresses: Vec<&str> = match (&spec.cluster_ips, &spec.cluster_ip) {
        (Some(all), _) if !all.is_empty() => all.iter().map(String::as_str).collect(),
        (_, one) => one.as_deref().into_iter().collect(),
    };
    let external = spec.type_.as_deref() == Some("ExternalName");
    let headless = addresses.contains(&"None");
    let mut leftovers = Leftovers::default();
    let meta = &object.metadata;
    Service {
        headless,
        cluster_ips: if external || headless {
            Vec::new()
        } else {
            let filled = addresses.into_iter().filter(|text| !text.is_empty());
            plain(filled, Why::ServiceAddress, |_| true, &mut leftovers)
        },
        external_name: names
            .get_opt(spec.external_name.as_deref())
            .filter(|_| external),
        ports: service_ports(spec, names, &mut leftovers),
        affinity_timeout_s: (spec.session_affinity.as_deref() == Some("ClientIP"))
            .then(|| affinity_timeout_s(spec)),
        internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        traffic_distribution: names.get_opt(spec.traffic_distribution.as_deref()),
        locality: annotation(meta, LOCALITY_ANNOTATION).and_then(|text| {
            let known = Locality::from_str(text, false).ok();
            if known.is_none() {
                leftovers.add(Why::Locality, text);
            }
            known
        }),
        publish_not_ready: spec.publish_not_ready_addresses == Some(true),
        exposed: exposed(object, &mut leftovers).map(Box::new),
        balanced_elsewhere: spec
            .load_balancer_class
            .as_deref()
            .is_some_and(|class| class != LOAD_BALANCER_CLASS),
        proxy_name: names.get_opt(label(meta, PROXY_NAME_LABEL)),
        not_for_proxies: label(meta, HEADLESS_LABEL).is_some(),
        created: meta
            .creation_timestamp
            .as_ref()
            .map_or(0, |time| time.0.as_second()),
        uid: meta.uid.as_deref().and_then(|uid| uid.parse().ok()),
        ignored: leftovers.into_vec().into(),
    }
}

fn affinity_timeout_s(spec: &core::ServiceSpec) -> u32 {
    let config = spec.session_affinity_config.as_ref();
    let seconds = config
        .and_then(|config| config.client_ip.as_ref())
        .and_then(|client_ip| client_ip.timeout_seconds);
    seconds
        .and_then(|seconds| u32::try_from(seconds).ok())
        .filter(|seconds| AFFINITY_TIMEOUTS_S.contains(seconds))
        .unwrap_or(DEFAULT_AFFINITY_TIMEOUT_S)
}

/// `None` for a slice that belongs to no service.
pub(crate) fn slice(object: &discovery::EndpointSlice, names: &mut Names) -> Option<Slice> {
    let meta = &object.metadata;
    let service = label(meta, SERVICE_NAME_LABEL).filter(|name| !name.is_empty())?;
    let mut leftovers = Leftovers::default();
    if let Some(surplus) = object.endpoints.get(MAX_ENDPOINTS..)
        && !surplus.is_empty()
    {
        leftovers.add(Why::TooManyEndpoints, object.endpoints.len());
    }
    let is_of_type = match &*object.address_type {
        "IPv4" => |ip: IpAddr| ip.is_ipv4(),
        "IPv6" => |ip: IpAddr| ip.is_ipv6(),
        // Names, which DNS may follow and a proxy does not.
        _ => |_| false,
    };
    let has_addresses = matches!(&*object.address_type, "IPv4" | "IPv6");
    let endpoints = object.endpoints.iter().take(MAX_ENDPOINTS);
    let endpoints = endpoints.map(|endpoint| {
        let texts = endpoint.addresses.iter().map(String::as_str);
        let texts = texts.filter(|_| has_addresses).take(MAX_ADDRESSES);
        let addresses = plain(texts, Why::EndpointAddress, is_of_type, &mut leftovers);
        self::endpoint(endpoint, addresses, names)
    });
    let endpoints = endpoints.collect();
    Some(Slice {
        service: service.into(),
        endpoints,
        ports: slice_ports(object, names, &mut leftovers),
        not_for_proxies: [HEADLESS_LABEL, PROXY_NAME_LABEL]
            .iter()
            .any(|name| label(meta, name).is_some()),
        ignored: leftovers.into_vec().into(),
        changed: annotation(&object.metadata, CHANGED_ANNOTATION).and_then(|at| at.parse().ok()),
    })
}

pub(super) fn node(object: &core::Node, names: &mut Names) -> Node {
    let spec = object.spec.as_ref();
    let cidrs: Vec<&str> = match spec.and_then(|spec| spec.pod_cidrs.as_ref()) {
        Some(all) if !all.is_empty() => all.iter().map(String::as_str).collect(),
        _ => spec
            .and_then(|spec| spec.pod_cidr.as_deref())
            .into_iter()
            .collect(),
    };
    let addresses = object
        .status
        .iter()
        .flat_map(|status| status.addresses.iter().flatten());
    Node {
        pod_cidrs: parsed(cidrs),
        internal_ips: parsed(
            addresses
                .filter(|a| a.type_ == "InternalIP")
                .map(|a| a.address.as_str()),
        ),
        zone: names.get_opt(label(&object.metadata, ZONE_LABEL)),
    }
}

fn service_ports(
    spec: &core::ServiceSpec,
    names: &mut Names,
    leftovers: &mut Leftovers,
) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::new();
    let mut seen = HashSet::new();
    for port in spec.ports.iter().flatten() {
        let Some(protocol) = protocol(port.protocol.as_deref(), leftovers) else {
            continue;
        };
        let Some(number) = port_number(port.port) else {
            leftovers.add(Why::Port, port.port);
            continue;
        };
        if !seen.insert((number, protocol)) {
            leftovers.add(Why::DuplicatePort, format_args!("{number}/{protocol}"));
            continue;
        }
        ports.push(ServicePort {
            name: names.get(port.name.as_deref().unwrap_or_default()),
            protocol,
            port: number,
            node_port: port.node_port.and_then(port_number),
        });
    }
    ports.shrink_to_fit();
    ports
}

fn slice_ports(
    slice: &discovery::EndpointSlice,
    names: &mut Names,
    leftovers: &mut Leftovers,
) -> Vec<SlicePort> {
    let mut ports: Vec<SlicePort> = Vec::new();
    let mut seen = HashSet::new();
    for port in slice.ports.iter().flatten() {
        // An absent number means every port: there is no address to send to.
        let (Some(protocol), Some(number)) =
            (protocol(port.protocol.as_deref(), leftovers), port.port)
        else {
            continue;
        };
        let name = port.name.as_deref().unwrap_or_default();
        match port_number(number) {
            None => leftovers.add(Why::EndpointPort, number),
            Some(number) if !seen.insert((name, protocol)) => {
                leftovers.add(Why::DuplicatePort, format_args!("{number}/{protocol}"));
            }
            Some(number) => ports.push(SlicePort {
                name: names.get(name),
                protocol,
                port: number,
            }),
        }
    }
    ports.shrink_to_fit();
    ports
}

pub(super) fn port_number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|number| *number != 0)
}

fn endpoint(endpoint: &discovery::Endpoint, addresses: Vec<IpAddr>, names: &mut Names) -> Endpoint {
    // An absent `ready` is true; an absent `serving` says the same as `ready`; an absent `terminating` is false.
    let conditions = endpoint.conditions.as_ref();
    let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
    let pod = endpoint
        .target_ref
        .as_ref()
        .filter(|target| target.kind.as_deref() == Some("Pod"));
    Endpoint {
        addresses,
        ready,
        serving: conditions.and_then(|c| c.serving).unwrap_or(ready),
        terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
        node: names.get_opt(endpoint.node_name.as_deref()),
        zone: names.get_opt(endpoint.zone.as_deref()),
        hostname: endpoint.hostname.as_deref().map(Name::from),
        pod: pod
            .and_then(|target| target.name.as_deref())
            .map(Name::from),
        hints: endpoint.hints.as_ref().and_then(|it| hints(it, names)),
    }
}

fn hints(hints: &discovery::EndpointHints, names: &mut Names) -> Option<Box<Hints>> {
    let nodes = hints
        .for_nodes
        .iter()
        .flatten()
        .map(|it| names.get(&it.name));
    let nodes: Vec<Name> = nodes.collect();
    let zones = hints
        .for_zones
        .iter()
        .flatten()
        .map(|it| names.get(&it.name));
    let zones: Vec<Name> = zones.collect();
    let says = !(nodes.is_empty() && zones.is_empty());
    says.then(|| Box::new(Hints { nodes, zones }))
}

/// An absent protocol is TCP; one that is unknown has no place in any table.
fn protocol(name: Option<&str>, leftovers: &mut Leftovers) -> Option<Protocol> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        other => {
            leftovers.add(Why::Protocol, other);
            None
        }
    }
}

/// The addresses at which others can reach somebody, each once. Never holds more room than it needs.
pub(super) fn plain<'a>(
    texts: impl IntoIterator<Item = &'a str>,
    why: Why,
    is_wanted: impl Fn(IpAddr) -> bool,
    leftovers: &mut Leftovers,
) -> Vec<IpAddr> {
    let mut all = Vec::new();
    for text in texts {
        match text.parse() {
            Ok(ip) if is_plain(ip) && is_wanted(ip) => {
                if !all.contains(&ip) {
                    all.push(ip);
                }
            }
            _ => leftovers.add(why, text),
        }
    }
    all.shrink_to_fit();
    all
}

/// What parses. Never holds more room than it needs.
fn parsed<'a, T: std::str::FromStr>(texts: impl IntoIterator<Item = &'a str>) -> Vec<T> {
    let mut all: Vec<T> = texts
        .into_iter()
        .filter_map(|text| text.parse().ok())
        .collect();
    all.shrink_to_fit();
    all
}

fn label<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(name).map(String::as_str)
}

pub(super) fn annotation<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(name).map(String::as_str)
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
