//! From the view of the cluster and a question to an answer. Pure.
//!
//! Kubernetes' "DNS-Based Service Discovery" specification is followed. Every name either does not exist or has a set of
//! records, which may be empty; the question's type selects from it. So "no such name" and "no such record" cannot be
//! confused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::Query;
use hickory_proto::rr::rdata::{CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::cluster::{Endpoint, ObjectKey, Protocol, Service, Slice, View};

/// How long, in seconds, an answer with the address of a service may be kept: it lasts as long as the service.
const SERVICE_TTL: u32 = 30;
/// The same for what follows from endpoints or from an absence: it may change at any time.
const ENDPOINT_TTL: u32 = 5;
/// ExternalNames that lead to other ExternalNames are followed this far.
const MAX_ALIASES: usize = 8;
/// Version of the specification that the records follow.
const SCHEMA_VERSION: &str = "1.1.0";

/// What there is to say about a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Records {
        answers: Vec<Record>,
        additionals: Vec<Record>,
    },
    /// The name stands for one outside the cluster, which another server has to be asked about.
    Alias {
        chain: Vec<Record>,
        target: Name,
    },
    /// The name exists, but has no record of the type.
    NoData,
    NoSuchName,
    /// The view is not complete, so nothing may be concluded from an absence.
    NotKnownYet,
    /// The name is not the cluster's.
    NotOurs,
}

/// Answers a question about the cluster whose domain is `zone`.
pub fn answer(view: &View, zone: &Name, query: &Query) -> Answer {
    if !zone.zone_of(&query.name) {
        return match reverse_address(&query.name) {
            Some(address) => reverse(view, zone, query, address),
            None => Answer::NotOurs,
        };
    }
    let mut chain = Vec::new();
    let mut name = query.name.clone();
    loop {
        let Some(found) = records_at(view, zone, &name) else {
            return absent(view);
        };
        let alias = found.iter().find_map(|(_, data)| match data {
            RData::CNAME(alias) => Some(alias.0.clone()),
            _ => None,
        });
        if let Some(target) = alias.filter(|_| query.query_type != RecordType::CNAME) {
            chain.extend(as_records(&name, &found));
            if !zone.zone_of(&target) {
                return Answer::Alias { chain, target };
            }
            if chain.len() > MAX_ALIASES {
                return Answer::NoData;
            }
            name = target;
            continue;
        }
        let wanted = |data: &RData| {
            query.query_type == RecordType::ANY || data.record_type() == query.query_type
        };
        let matching: Vec<_> = found.into_iter().filter(|(_, data)| wanted(data)).collect();
        if matching.is_empty() && chain.is_empty() {
            return Answer::NoData;
        }
        let additionals = targets_of(view, zone, &matching);
        chain.extend(as_records(&name, &matching));
        return Answer::Records {
            answers: chain,
            additionals,
        };
    }
}

/// The record that goes with answers that say "no": how long they may be believed.
pub fn start_of_authority(zone: &Name) -> Record {
    let below = |label: &str| zone.prepend_label(label).unwrap_or_else(|_| zone.clone());
    let soa = SOA::new(
        below("ns"),
        below("hostmaster"),
        1,
        7200,
        1800,
        86_400,
        ENDPOINT_TTL,
    );
    Record::from_rdata(zone.clone(), ENDPOINT_TTL, RData::SOA(soa))
}

/// Time to live in seconds, and the record's data.
type Found = Vec<(u32, RData)>;

fn as_records(name: &Name, found: &Found) -> impl Iterator<Item = Record> {
    found
        .iter()
        .map(|(ttl, data)| Record::from_rdata(name.clone(), *ttl, data.clone()))
}

fn absent(view: &View) -> Answer {
    if view.synced {
        Answer::NoSuchName
    } else {
        Answer::NotKnownYet
    }
}

/// Every record of a name in the zone; `None` when the name does not exist.
fn records_at(view: &View, zone: &Name, name: &Name) -> Option<Found> {
    let depth = usize::from(name.num_labels().saturating_sub(zone.num_labels()));
    let labels: Option<Vec<String>> = name
        .iter()
        .take(depth)
        .map(|label| std::str::from_utf8(label).ok().map(str::to_ascii_lowercase))
        .collect();
    let labels = labels?;
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    match labels[..] {
        [] => {
            let soa = start_of_authority(zone);
            Some(vec![(soa.ttl, soa.data)])
        }
        ["dns-version"] => Some(vec![(
            SERVICE_TTL,
            RData::TXT(TXT::new(vec![SCHEMA_VERSION.into()])),
        )]),
        // Names between the zone and a service exist, without records.
        ["svc" | "pod"] => Some(Found::new()),
        [namespace, "svc" | "pod"] => namespace_exists(view, namespace).then(Found::new),
        [address, _, "pod"] => Some(vec![(ENDPOINT_TTL, record(pod_address(address)?))]),
        [.., service, namespace, "svc"] => {
            let key = ObjectKey::new(namespace, service);
            let service = Named {
                view,
                key: &key,
                service: view.services.get(&key)?,
            };
            match labels[..labels.len() - 3] {
                [] => service.own_records(),
                [below] => service.records_below(below),
                [port, protocol] => service.srv_records(zone, port, protocol),
                _ => None,
            }
        }
        _ => None,
    }
}

fn namespace_exists(view: &View, namespace: &str) -> bool {
    let mut from_there = view.services.range(ObjectKey::new(namespace, "")..);
    from_there
        .next()
        .is_some_and(|(key, _)| &*key.namespace == namespace)
}

/// A service and where it was found.
struct Named<'a> {
    view: &'a View,
    key: &'a ObjectKey,
    service: &'a Service,
}

impl Named<'_> {
    fn own_records(&self) -> Option<Found> {
        if let Some(external) = &self.service.external_name {
            let target = Name::from_ascii(format!("{}.", external.trim_end_matches('.')));
            let alias = target
                .ok()
                .map(|target| (SERVICE_TTL, RData::CNAME(CNAME(target))));
            return Some(alias.into_iter().collect());
        }
        if self.service.headless {
            return some_of(
                self.endpoints()
                    .map(|(_, _, ip)| (ENDPOINT_TTL, record(ip))),
            );
        }
        let addresses = self.service.cluster_ips.iter();
        Some(addresses.map(|ip| (SERVICE_TTL, record(*ip))).collect())
    }

    /// An endpoint's own name, or the protocol below which SRV names hang.
    fn records_below(&self, label: &str) -> Option<Found> {
        if let Some(protocol) = protocol(label) {
            let mut ports = self.service.ports.iter();
            let has = ports.any(|port| port.protocol == protocol && !port.name.is_empty());
            return has.then(Found::new);
        }
        if !self.service.headless {
            return None;
        }
        let named = self
            .endpoints()
            .filter(|(_, host, _)| host.eq_ignore_ascii_case(label));
        some_of(named.map(|(_, _, ip)| (ENDPOINT_TTL, record(ip))))
    }

    fn srv_records(&self, zone: &Name, port: &str, protocol_label: &str) -> Option<Found> {
        let protocol = protocol(protocol_label)?;
        let port = port.strip_prefix('_').filter(|port| !port.is_empty())?;
        let srv = |number, target| RData::SRV(SRV::new(0, 100, number, target));
        if self.service.headless {
            let mut targets = Vec::new();
            for (slice, host, _) in self.endpoints() {
                let ports = slice.ports.iter();
                let matching = ports.filter(|there| {
                    there.protocol == protocol && there.name.eq_ignore_ascii_case(port)
                });
                for there in matching {
                    let target = service_name(zone, self.key)?.prepend_label(&*host).ok()?;
                    targets.push((ENDPOINT_TTL, srv(there.port, target)));
                }
            }
            return some_of(targets);
        }
        let mut ports = self.service.ports.iter();
        let there = ports
            .find(|there| there.protocol == protocol && there.name.eq_ignore_ascii_case(port))?;
        Some(vec![(
            SERVICE_TTL,
            srv(there.port, service_name(zone, self.key)?),
        )])
    }

    /// The endpoints that DNS may show: slice, host name and address of each.
    fn endpoints(&self) -> impl Iterator<Item = (&Slice, String, IpAddr)> {
        let slices = self.view.slices_of.get(self.key).into_iter().flatten();
        let slices = slices.filter_map(|name| {
            let key = ObjectKey {
                namespace: self.key.namespace.clone(),
                name: name.clone(),
            };
            self.view.slices.get(&key)
        });
        let all = slices.flat_map(|slice| {
            slice
                .endpoints
                .iter()
                .map(move |endpoint| (&**slice, endpoint))
        });
        let shown = all.filter(|(_, endpoint)| endpoint.ready || self.service.publish_not_ready);
        shown.flat_map(|(slice, endpoint)| {
            let addresses = endpoint.addresses.iter();
            addresses.map(move |ip| (slice, host_name(endpoint, *ip), *ip))
        })
    }
}

/// An endpoint's name below its service: its own, else one that follows from its address.
fn host_name(endpoint: &Endpoint, address: IpAddr) -> String {
    if let Some(name) = &endpoint.hostname {
        return name.to_string();
    }
    let name = address.to_string().replace(['.', ':'], "-");
    // A name does not end so: `fd00::` is `fd00--0`.
    match name.ends_with('-') {
        true => name + "0",
        false => name,
    }
}

/// The address that a pod's name stands for: `10-244-1-7`, `fd00--7`.
fn pod_address(name: &str) -> Option<IpAddr> {
    let v4 = name.replace('-', ".").parse::<Ipv4Addr>();
    let v6 = || name.replace('-', ":").parse::<Ipv6Addr>();
    v4.map(IpAddr::from)
        .or_else(|_| v6().map(IpAddr::from))
        .ok()
}

fn record(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(address) => RData::A(address.into()),
        IpAddr::V6(address) => RData::AAAA(address.into()),
    }
}

fn service_name(zone: &Name, key: &ObjectKey) -> Option<Name> {
    let labels = [key.name.as_bytes(), key.namespace.as_bytes(), b"svc"];
    Name::from_labels(labels).ok()?.append_domain(zone).ok()
}

/// Address records of what SRV records point to, which saves the client a question.
fn targets_of(view: &View, zone: &Name, found: &Found) -> Vec<Record> {
    let mut records = Vec::new();
    for (_, data) in found {
        if let RData::SRV(srv) = data
            && let Some(at_target) = records_at(view, zone, &srv.target)
        {
            records.extend(as_records(&srv.target, &at_target));
        }
    }
    records
}

/// The address that a name below in-addr.arpa or ip6.arpa stands for.
fn reverse_address(name: &Name) -> Option<IpAddr> {
    let net = name.parse_arpa_name().ok()?;
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}

/// Names of an address. Rare enough that the view keeps no index for it: the services are searched.
fn reverse(view: &View, zone: &Name, query: &Query, address: IpAddr) -> Answer {
    let by_service = view
        .services
        .iter()
        .filter(|(_, service)| service.cluster_ips.contains(&address))
        .map(|(key, _)| (SERVICE_TTL, service_name(zone, key)));
    let by_endpoint = view
        .services
        .iter()
        .filter(|(_, service)| service.headless)
        .flat_map(|(key, service)| {
            let named = Named { view, key, service };
            let hosts: Vec<_> = named
                .endpoints()
                .filter(|(_, _, ip)| *ip == address)
                .map(|(_, host, _)| host)
                .collect();
            hosts.into_iter().map(move |host| {
                let name = service_name(zone, key).and_then(|name| name.prepend_label(host).ok());
                (ENDPOINT_TTL, name)
            })
        });
    let found: Found = by_service
        .chain(by_endpoint)
        .filter_map(|(ttl, name)| Some((ttl, RData::PTR(PTR(name?)))))
        .collect();
    if found.is_empty() {
        // Any other address may be known to the servers that the node uses.
        return if view.synced {
            Answer::NotOurs
        } else {
            Answer::NotKnownYet
        };
    }
    if !matches!(query.query_type, RecordType::PTR | RecordType::ANY) {
        return Answer::NoData;
    }
    Answer::Records {
        answers: as_records(&query.name, &found).collect(),
        additionals: Vec::new(),
    }
}

/// The records without repeats; `None` when there are none, for names that exist only through their records.
fn some_of(records: impl IntoIterator<Item = (u32, RData)>) -> Option<Found> {
    let mut found = Found::new();
    for record in records {
        if !found.contains(&record) {
            found.push(record);
        }
    }
    (!found.is_empty()).then_some(found)
}

fn protocol(label: &str) -> Option<Protocol> {
    match label {
        "_tcp" => Some(Protocol::Tcp),
        "_udp" => Some(Protocol::Udp),
        "_sctp" => Some(Protocol::Sctp),
        _ => None,
    }
}
