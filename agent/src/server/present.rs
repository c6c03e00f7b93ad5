//! From the agent's state to the introspection API's messages. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use agent_ebpf::abi::pods::PodTraffic;
use agent_ebpf::abi::{self, BackendId, FLAG_DIRECT_RETURN, SHARE_ONE, Scope, ServiceKey};

use super::ComponentHealth;
use crate::announce::Announcements;
use crate::cluster::{Cluster, Endpoint, Name, ObjectKey, View};
use crate::dataplane::{MapRow, MapSummary, Totals};
use crate::introspection as api;
use crate::network::routes::{Hop, Peers, Refusal};
use crate::observe::quantile;
use crate::pod::PodSummary;
use crate::proxy::feedback::{Ejection, Explanation};
use crate::proxy::{self, Class, Inner, LbState, Live, Preference, Target, maglev_size};

pub(super) fn api_health(cluster: &Cluster) -> ComponentHealth {
    let view = cluster.view();
    let known = format!(
        "{} services, {} slices, {} nodes known",
        view.services.len(),
        view.slices.len(),
        view.nodes.len()
    );
    let synced = view.synced;
    drop(view);
    let failing: Vec<String> = cluster
        .failing()
        .iter()
        .map(|(kind, why)| format!("{kind}: {why}"))
        .collect();
    let detail = match (failing.is_empty(), synced) {
        (true, true) => known,
        (true, false) => format!("waiting for the first full list; {known}"),
        (false, _) => format!("{}; {known}", failing.join("; ")),
    };
    ComponentHealth {
        healthy: failing.is_empty() && synced,
        detail,
    }
}

pub(super) fn proxy_health(health: &proxy::Health) -> ComponentHealth {
    let mut detail = format!(
        "{} addresses, {} backends",
        health.addresses, health.backends
    );
    if !health.synced {
        detail += "; nothing is removed before the first full list";
    }
    for (count, reason) in &health.ignored {
        detail += &format!("; {count} left out: {reason}");
    }
    if let Some(error) = &health.first_error {
        detail += &format!("; {} services not up to date: {error}", health.problems);
    }
    ComponentHealth {
        healthy: health.synced && health.problems == 0,
        detail,
    }
}

/// How the other nodes' pods are reached.
pub(super) fn peers(peers: &Peers) -> Vec<api::Peer> {
    let rows = peers.iter().flat_map(|(node, ranges)| {
        let hops = ranges.iter();
        hops.map(move |(range, hop)| (node, range, hop))
    });
    let row = |(node, range, hop): (&Name, &ipnet::IpNet, &Result<Hop, Refusal>)| {
        let (path, detail) = match hop {
            Ok(Hop::Direct(next_hop)) => ("direct", format!("via {next_hop}")),
            Ok(Hop::Tunnel(it)) => (
                "vxlan",
                format!("to {}, at most {} bytes", it.remote, it.mtu),
            ),
            Err(why) => ("none", why.to_string()),
        };
        api::Peer {
            node: node.to_string(),
            range: range.to_string(),
            path: path.to_owned(),
            detail,
        }
    };
    rows.map(row).collect()
}

/// The service addresses of one namespace, or of all when it is empty, by name.
pub(super) fn services(state: &LbState, totals: &Totals, namespace: &str) -> Vec<api::Service> {
    let mut all: Vec<api::Service> = state
        .frontends()
        .filter(|(_, live)| {
            namespace.is_empty()
                || live
                    .owner
                    .as_ref()
                    .is_some_and(|owner| &*owner.namespace == namespace)
        })
        .map(|(key, live)| service(state, key, live, totals))
        .collect();
    all.sort_by(|a, b| {
        let order = |it: &api::Service| (it.address.clone(), it.outside);
        (&a.namespace, &a.name, order(a)).cmp(&(&b.namespace, &b.name, order(b)))
    });
    all
}

fn service(state: &LbState, key: &ServiceKey, live: &Live, totals: &Totals) -> api::Service {
    let entry = live.entry;
    let refused = totals
        .services
        .get(&entry.service_id)
        .map_or(0, |stats| stats.no_backend);
    let (namespace, name) = match &live.owner {
        Some(owner) => (owner.namespace.to_string(), owner.name.to_string()),
        // Found in the maps, and no service has claimed it yet.
        None => (String::new(), "-".to_owned()),
    };
    api::Service {
        namespace,
        name,
        port_name: live.port_name.to_string(),
        address: address(key.address, key.port),
        protocol: protocol(key.protocol),
        local: entry.local,
        zone: entry.zone,
        ready: entry.ready,
        terminating: entry.terminating,
        local_share: f64::from(entry.local_share) / f64::from(SHARE_ONE),
        policy: policy(live),
        id: entry.service_id,
        generation: entry.generation,
        refused,
        kind: live.kind.name().to_owned(),
        outside: key.scope == Scope::EXTERNAL,
        source_ranges: state.source_ranges(live).map(|ranges| api::SourceRanges {
            ranges: ranges.map(ToString::to_string).collect(),
        }),
        direct_return: entry.flags & FLAG_DIRECT_RETURN != 0,
        maglev: maglev_size(&entry).unwrap_or(0),
        // Known to who shows it.
        indirect: Vec::new(),
    }
}

/// One service's addresses, each with its backends, and the keys to look up the rows behind them, in the same order.
pub(super) fn service_details(
    view: &View,
    node: &str,
    inner: &Inner,
    totals: &Totals,
    key: &ObjectKey,
) -> (api::ShowServiceReply, Vec<ServiceKey>) {
    let known = Known {
        node,
        endpoints: endpoints(view, std::iter::once(key)),
        pods: pods(view),
        totals,
    };
    let (mut ports, mut keys) = (Vec::new(), Vec::new());
    for (address, live) in inner.state.frontends_of(key) {
        let backends = live.slots.iter().enumerate().filter_map(|(slot, id)| {
            let target = inner.state.backend(*id)?;
            let class = live.class(slot);
            let backend = api::Backend {
                share: live.share(slot),
                ..known.backend(*id, target, Some(class))
            };
            let ejection = inner.watch.ejection(&target);
            Some(match ejection.filter(|_| class == Class::Draining) {
                Some((ejection, left)) => ejected(backend, &ejection, left),
                None => backend,
            })
        });
        ports.push(api::ServiceDetail {
            service: Some(service(&inner.state, address, live, totals)),
            backends: backends.collect(),
            entries: Vec::new(),
            feedback: inner.watch.explain(address).map(feedback),
        });
        keys.push(*address);
    }
    (
        api::ShowServiceReply {
            ports,
            notes: notes(view, inner, key),
            announcements: Vec::new(),
        },
        keys,
    )
}

/// Which node announces each of the load balancer's addresses.
pub(super) fn announcements(
    view: &View,
    key: &ObjectKey,
    known: &Announcements,
) -> Vec<api::Announcement> {
    let exposed = view.services.get(key).and_then(|it| it.exposed.as_ref());
    let addresses = exposed.into_iter().flat_map(|it| &it.load_balancer_ips);
    let announced = addresses.filter_map(|address| {
        let (node, reason) = match known.of(*address)? {
            Ok(node) => (node.to_string(), String::new()),
            Err(nobody) => (String::new(), nobody.to_string()),
        };
        Some(api::Announcement {
            address: address.to_string(),
            node,
            reason,
        })
    });
    announced.collect()
}

fn feedback(explanation: Explanation) -> api::Feedback {
    let worst = explanation.inputs.worst();
    api::Feedback {
        share: explanation.share,
        signal: worst.signal.name().to_owned(),
        value: worst.value,
        pressure: worst.pressure(),
        explanation: explanation.to_string(),
    }
}

fn ejected(backend: api::Backend, ejection: &Ejection, left: Duration) -> api::Backend {
    api::Backend {
        state: "ejected".to_owned(),
        ejection: Some(api::Ejection {
            reason: ejection.reason.to_string(),
            seconds_left: left.as_secs_f64(),
            times: ejection.times,
        }),
        ..backend
    }
}

/// Why a service, or a part of it, is not in the maps.
fn notes(view: &View, inner: &Inner, key: &ObjectKey) -> Vec<String> {
    let mut notes = Vec::new();
    match view.services.get(key) {
        None if key.pod_name().is_some() => {
            if !view.host_ports.contains_key(key) {
                notes.push("no container of the pod that has host ports runs".to_owned());
            }
        }
        None => notes.push("the service is gone from the cluster, or not listed yet".to_owned()),
        Some(service) if service.headless => {
            notes.push(
                "headless: it has no address of its own; DNS answers with its endpoints".to_owned(),
            );
        }
        Some(service) => {
            notes.extend(
                service
                    .external_name
                    .iter()
                    .map(|name| format!("DNS answers with the name {name}")),
            );
            notes.extend(
                service
                    .proxy_name
                    .iter()
                    .map(|name| format!("left to the service proxy {name}")),
            );
        }
    }
    let ignored = inner.state.ignored_of(key);
    notes.extend(ignored.iter().map(ToString::to_string));
    for (address, holder) in inner.state.conflicts_of(key) {
        let holder = holder.map_or_else(|| "another service".to_owned(), ObjectKey::to_string);
        notes.push(format!(
            "{} belongs to {holder}",
            self::address(address.address, address.port)
        ));
    }
    if let Some(problem) = inner.problems.get(key) {
        notes.push(format!(
            "not up to date after {} tries: {}",
            problem.attempts, problem.error
        ));
    }
    notes
}

/// Every backend, by address.
pub(super) fn backends(
    view: &View,
    node: &str,
    state: &LbState,
    totals: &Totals,
) -> Vec<api::Backend> {
    let known = Known {
        node,
        endpoints: endpoints(view, view.slices_of.keys()),
        pods: pods(view),
        totals,
    };
    let mut users: HashMap<BackendId, (Class, BTreeSet<String>)> = HashMap::new();
    for (_, live) in state.frontends() {
        for (slot, id) in live.slots.iter().enumerate() {
            let class = live.class(slot);
            let (best, owners) = users.entry(*id).or_insert((class, BTreeSet::new()));
            *best = (*best).min(class);
            owners.extend(live.owner.iter().map(ToString::to_string));
        }
    }
    let mut all: Vec<_> = state.backends().collect();
    all.sort_by_key(|(_, target)| *target);
    all.into_iter()
        .map(|(id, target)| {
            let (class, owners) = users.remove(&id).unzip();
            api::Backend {
                services: owners.into_iter().flatten().collect(),
                ..known.backend(id, target, class)
            }
        })
        .collect()
}

/// What the cluster says of each backend address, with the namespace.
type Endpoints<'a> = HashMap<IpAddr, (&'a Name, &'a Endpoint)>;

fn endpoints<'a>(view: &'a View, services: impl Iterator<Item = &'a ObjectKey>) -> Endpoints<'a> {
    let mut known = BTreeMap::new();
    for service in services {
        for endpoint in view.slices_for(service).flat_map(|slice| &slice.endpoints) {
            if let Some(ip) = endpoint.addresses.first() {
                known.insert(*ip, (&service.namespace, endpoint));
            }
        }
    }
    known.into_iter().collect()
}

/// The pods of this node that have host ports, by address: they need not be endpoints of anything.
fn pods(view: &View) -> HashMap<IpAddr, String> {
    let mut pods = HashMap::new();
    for (key, ports) in &view.host_ports {
        let name = key.pod_name().unwrap_or(&key.name);
        let addresses = ports.addresses.iter();
        pods.extend(addresses.map(|ip| (*ip, format!("{}/{name}", key.namespace))));
    }
    pods
}

/// What is known of backends, from one node's point of view.
struct Known<'a> {
    node: &'a str,
    endpoints: Endpoints<'a>,
    pods: HashMap<IpAddr, String>,
    totals: &'a Totals,
}

impl Known<'_> {
    /// `class` is `None` for a backend that no service names any more.
    fn backend(&self, id: BackendId, target: Target, class: Option<Class>) -> api::Backend {
        let stats = self.totals.backends.get(&id).copied().unwrap_or_default();
        let found = self.endpoints.get(&target.address.to_ip());
        let endpoint = found.map(|(_, endpoint)| *endpoint);
        let handshake = |percent| quantile(&stats, percent).map(|time| time.as_secs_f64());
        let name = |name: Option<&Name>| name.map(ToString::to_string).unwrap_or_default();
        let of_host_port = self.pods.get(&target.address.to_ip());
        let own = of_host_port.map(|_| self.node);
        let node = endpoint.and_then(|endpoint| endpoint.node.as_deref());
        let node = node.or(own);
        let state = match class {
            Some(Class::Local | Class::Zone | Class::Rest) => "ready",
            Some(Class::Terminating) => "terminating",
            Some(Class::Draining) => "draining",
            None => "unused",
        };
        api::Backend {
            id: id.0,
            address: address(target.address, target.port),
            protocol: protocol(target.protocol),
            node: node.unwrap_or_default().to_owned(),
            zone: name(endpoint.and_then(|endpoint| endpoint.zone.as_ref())),
            pod: found
                .and_then(|(namespace, endpoint)| {
                    Some(format!("{namespace}/{}", endpoint.pod.as_ref()?))
                })
                .or_else(|| of_host_port.cloned())
                .unwrap_or_default(),
            local: node == Some(self.node),
            state: state.to_owned(),
            share: 0.0,
            opens: stats.opens,
            active: stats.opens.saturating_sub(stats.closes),
            services: Vec::new(),
            failures: stats.failures,
            handshake_p50_seconds: handshake(50),
            handshake_p99_seconds: handshake(99),
            bytes_sent: stats.bytes_sent,
            bytes_received: stats.bytes_received,
            ejection: None,
        }
    }
}

fn policy(live: &Live) -> String {
    let mut text = match live.preference {
        Preference::Node => "prefer node".to_owned(),
        Preference::SameNode => "same node".to_owned(),
        Preference::SameZone => "same zone".to_owned(),
        Preference::LocalOnly => "node only".to_owned(),
        Preference::Even => "cluster".to_owned(),
    };
    if live.entry.affinity_timeout_s > 0 {
        text += &format!(", client affinity {} s", live.entry.affinity_timeout_s);
    }
    text
}

fn address(ip: abi::Address, port: abi::Port) -> String {
    SocketAddr::from((ip.to_ip(), u16::from_be_bytes(port))).to_string()
}

fn protocol(number: u8) -> String {
    match number {
        abi::TCP => "TCP".to_owned(),
        abi::UDP => "UDP".to_owned(),
        other => other.to_string(),
    }
}

pub(super) fn map(map: MapSummary) -> api::Map {
    api::Map {
        name: map.name.to_owned(),
        kind: map.kind,
        entries: map.entries,
        max_entries: map.max_entries,
        pin: map.pin.display().to_string(),
    }
}

pub(super) fn row(row: MapRow) -> api::MapRow {
    let MapRow {
        map,
        key,
        value,
        raw_key,
        raw_value,
    } = row;
    api::MapRow {
        map: map.to_owned(),
        key,
        value,
        raw_key,
        raw_value,
    }
}

pub(super) fn pod(pod: PodSummary, traffic: Option<PodTraffic>) -> api::Pod {
    let traffic = traffic.map(|it| api::PodTraffic {
        sent_packets: it.sent.packets,
        sent_bytes: it.sent.bytes,
        received_packets: it.received.packets,
        received_bytes: it.received.bytes,
    });
    let containers = pod.containers.into_iter().map(|container| api::Container {
        name: container.name,
        id: container.id,
        state: container.state,
        restarts: container.restarts,
        image: container.image,
    });
    api::Pod {
        namespace: pod.namespace,
        name: pod.name,
        uid: pod.uid,
        phase: pod.phase,
        ready: pod.ready,
        addresses: pod.addresses.iter().map(ToString::to_string).collect(),
        containers: containers.collect(),
        traffic,
    }
}
