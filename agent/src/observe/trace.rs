//! What would become of a connect, and which map entries say so. Pure: it draws from the rows that a lookup found, with
//! the very function that the kernel runs.

use agent_ebpf::abi::{
    AffinityEntry, BackendId, FLAG_HOST_PORT, ServiceEntry, ServiceKey, SlotKey, UDP,
};
use agent_ebpf::select::{self, Served, Verdict};

use super::destination::ports;
use super::names::{Names, protocol, socket_address, text};
use crate::cluster::View;
use crate::dataplane::{Lookup, MapRow};
use crate::introspection as api;
use crate::proxy::{Class, LbState, Live};

/// Who would connect, and when.
#[derive(Clone, Debug)]
pub struct Caller {
    /// As people call it.
    pub name: String,
    pub netns_cookie: u64,
    /// The clock of `AffinityEntry::last_use_ns`.
    pub now_ns: u64,
}

/// What would become of a connect to `dialled`; `found` is what a lookup of it found.
pub fn trace(
    dialled: &ServiceKey,
    found: Option<&Lookup>,
    caller: &Caller,
    names: Names<'_>,
    node: &str,
) -> api::Trace {
    let address = socket_address(dialled.address, dialled.port);
    let mut trace = api::Trace {
        client: caller.name.clone(),
        dialled: address.clone(),
        protocol: protocol(dialled.protocol),
        ..api::Trace::default()
    };
    let Some(found) = found else {
        trace.outcome = "not-service".to_owned();
        let what = format!("{address}/{} is not in SERVICES", trace.protocol);
        trace.steps.push(match why_not(dialled, names.view) {
            Some(why) => format!("{what}: {why}"),
            None => format!("{what}: the kernel connects to the address itself"),
        });
        return trace;
    };
    if found.service.key != *dialled {
        let row = &found.service.key;
        let row = socket_address(row.address, row.port);
        let is_host_port = found.service.entry.flags & FLAG_HOST_PORT != 0;
        let port = match is_host_port {
            true => "a pod's host port",
            false => "among its node ports",
        };
        trace.steps.push(format!(
            "NODE_ADDRESSES: {} is the node's, and the port {port}: {row} is looked up",
            dialled.address
        ));
    }
    trace.entries = found.rows().into_iter().map(entry).collect();
    let owner = names.service(dialled);
    let service = owner.map_or(
        "a service that nobody claims".to_owned(),
        |(owner, port)| {
            trace.service = owner.to_string();
            let what = match owner.pod_name() {
                Some(pod) => format!("a host port of pod {}/{pod}", owner.namespace),
                None => format!("service {owner}"),
            };
            match &**port {
                "" => what,
                port => format!("{what}, port {port}"),
            }
        },
    );
    let row = found.service.entry;
    trace.steps.push(format!(
        "SERVICES: {address}/{} is {service}; table {} generation {}, {} ready, {} terminating",
        trace.protocol, row.service_id, row.generation, row.ready, row.terminating
    ));
    match decide(found, caller) {
        Decision::NotServed => {
            trace.outcome = "refused".to_owned();
            trace.steps.push(
                "SOURCE_RANGES: none of the service's loadBalancerSourceRanges has the node's address: refused"
                    .to_owned(),
            );
        }
        Decision::ByPacket => {
            trace.outcome = "by-packet".to_owned();
            trace.steps.push(
                "the service has loadBalancerSourceRanges: at the pod's link its packets are judged by their source, and translated"
                    .to_owned(),
            );
        }
        Decision::Refused => {
            trace.outcome = "refused".to_owned();
            trace.steps.push(
                "no backend is ready, nor terminating and still serving: refused at once"
                    .to_owned(),
            );
        }
        Decision::Hole => {
            trace.outcome = "hole".to_owned();
            trace.steps.push(
                "rows are missing: the table flipped while it was read, or is broken; try again"
                    .to_owned(),
            );
        }
        Decision::Sticks { slot, last } => {
            trace.outcome = "backend".to_owned();
            trace.steps.push(sticks(&row, &last, caller.now_ns));
            let choice = choice(slot, last.backend, 1.0, found, names, dialled, node);
            trace.choices.push(choice);
        }
        Decision::Draws => draws(&mut trace, found, names, dialled, node),
    }
    if let [
        api::TraceChoice {
            slot,
            backend: Some(backend),
            ..
        },
    ] = &trace.choices[..]
    {
        let pod = if backend.pod.is_empty() {
            String::new()
        } else {
            format!(", pod {}", backend.pod)
        };
        trace.steps.push(format!(
            "BACKEND_TABLE: slot {slot} is backend {}; BACKENDS: it is {}{pod}",
            backend.id, backend.address
        ));
    }
    trace
}

enum Decision {
    NotServed,
    ByPacket,
    Refused,
    Hole,
    /// The client keeps the backend that it had.
    Sticks {
        slot: u32,
        last: AffinityEntry,
    },
    /// A slot is drawn.
    Draws,
}

fn decide(found: &Lookup, caller: &Caller) -> Decision {
    let entry = found.service.entry;
    let served = found.served;
    let socket = |spread| Socket {
        caller,
        spread,
        served,
    };
    match select::choose(found, &socket(0), &found.service.key) {
        Verdict::NotServed { .. } => return Decision::NotServed,
        Verdict::ByPacket => return Decision::ByPacket,
        Verdict::NoBackend { .. } => return Decision::Refused,
        Verdict::Hole { .. } | Verdict::NotService => return Decision::Hole,
        Verdict::Backend { .. } => {}
    }
    let timeout_ns = u64::from(entry.affinity_timeout_s) * 1_000_000_000;
    let holds = |last: &AffinityEntry| caller.now_ns.saturating_sub(last.last_use_ns) < timeout_ns;
    let Some((_, last)) = found.affinity.filter(|(_, last)| holds(last)) else {
        return Decision::Draws;
    };
    let offered = if entry.ready > 0 {
        entry.ready
    } else {
        entry.terminating
    };
    let slot =
        (0..offered).find(|slot| found.slots.get(&slot_key(&entry, *slot)) == Some(&last.backend));
    // The kernel's function decides whether the client keeps it: then that is what it gives, whatever is drawn.
    let always = (0..64).all(|spread| {
        matches!(select::choose(found, &socket(spread), &found.service.key),
            Verdict::Backend { picked, .. } if picked.backend == last.backend)
    });
    match slot {
        Some(slot) if always => Decision::Sticks { slot, last },
        _ => Decision::Draws,
    }
}

fn slot_key(entry: &ServiceEntry, slot: u32) -> SlotKey {
    SlotKey {
        service_id: entry.service_id,
        generation: entry.generation,
        slot,
    }
}

fn sticks(entry: &ServiceEntry, last: &AffinityEntry, now_ns: u64) -> String {
    let ago = now_ns.saturating_sub(last.last_use_ns) / 1_000_000_000;
    let left = u64::from(entry.affinity_timeout_s).saturating_sub(ago);
    format!(
        "AFFINITY: the client was sent to backend {} {ago} s ago and keeps it for {left} s more",
        last.backend.0
    )
}

fn draws(
    trace: &mut api::Trace,
    found: &Lookup,
    names: Names<'_>,
    dialled: &ServiceKey,
    node: &str,
) {
    let entry = found.service.entry;
    if entry.affinity_timeout_s > 0 {
        trace.steps.push(format!(
            "AFFINITY: nothing that holds is remembered of the client; what is drawn is kept for {} s",
            entry.affinity_timeout_s
        ));
    }
    // The odds are those of the rows that were found, whatever the proxy is about to write.
    let state = LbState::adopt(found.tables(), 0);
    if let Some(live) = state.frontend(&found.service.key) {
        for (slot, id) in live.slots.iter().enumerate() {
            let share = live.share(slot);
            if share > 0.0 {
                let slot = u32::try_from(slot).unwrap_or(u32::MAX);
                trace
                    .choices
                    .push(choice(slot, *id, share, found, names, dialled, node));
            }
        }
        trace.steps.push(odds(live));
        if dialled.protocol == UDP && trace.choices.len() > 1 {
            trace
                .steps
                .push("a UDP socket keeps its backend: what is drawn is the socket's".to_owned());
        }
    }
    trace.outcome = match &trace.choices[..] {
        [_] => "backend",
        _ => "drawn",
    }
    .to_owned();
}

fn odds(live: &Live) -> String {
    let share = |wanted: Class| -> f64 {
        let slots = 0..live.slots.len();
        let of_class = slots.filter(|slot| live.class(*slot) == wanted);
        of_class.map(|slot| live.share(slot)).sum()
    };
    let parts = [
        (Class::Local, "stay on the node"),
        (Class::Zone, "go to the node's zone"),
        (Class::Rest, "go beyond"),
        (Class::Terminating, "go to backends that terminate"),
    ];
    let parts = parts
        .into_iter()
        .map(|(class, text)| (share(class), text))
        .filter(|(share, _)| *share > 0.0)
        .map(|(share, text)| format!("{:.1}% {text}", share * 100.0));
    format!(
        "of new connections {}",
        parts.collect::<Vec<_>>().join(", ")
    )
}

fn choice(
    slot: u32,
    id: BackendId,
    share: f64,
    found: &Lookup,
    names: Names<'_>,
    dialled: &ServiceKey,
    node: &str,
) -> api::TraceChoice {
    let mut backend = api::Backend {
        id: id.0,
        share,
        ..api::Backend::default()
    };
    if let Some(row) = found.backends.get(&id) {
        let owner = names.service(dialled).map(|(owner, _)| owner);
        let endpoint = owner.and_then(|owner| names.endpoint(owner, row.address.to_ip()));
        let peer = names.peer(owner, row.address);
        backend.address = socket_address(row.address, row.port);
        backend.protocol = protocol(row.protocol);
        backend.local = peer.node == node;
        backend.pod = peer.pod;
        backend.node = peer.node;
        backend.zone = text(endpoint.and_then(|endpoint| endpoint.zone.as_ref()));
        backend.state = if slot < found.service.entry.ready {
            "ready"
        } else {
            "terminating"
        }
        .to_owned();
    }
    api::TraceChoice {
        slot,
        share,
        backend: Some(backend),
    }
}

/// What an address is that is no service's.
fn why_not(dialled: &ServiceKey, view: &View) -> Option<String> {
    let ip = dialled.address.to_ip();
    let mut services = view.services.iter();
    if let Some((owner, service)) = services.find(|(_, it)| it.cluster_ips.contains(&ip)) {
        return Some(match &service.proxy_name {
            Some(proxy) => format!("service {owner} is left to the service proxy {proxy}"),
            None => format!("service {owner} has the address, with {}", ports(service)),
        });
    }
    for (key, slice) in &view.slices {
        for endpoint in &slice.endpoints {
            if endpoint.addresses.contains(&ip) {
                let whose = match &endpoint.pod {
                    Some(pod) => format!("pod {}/{pod}", key.namespace),
                    None => format!("an endpoint of {}/{}", key.namespace, slice.service),
                };
                return Some(format!(
                    "it is the address of {whose}, which is dialled directly"
                ));
            }
        }
    }
    let mut nodes = view.nodes.iter();
    let (name, _) = nodes.find(|(_, node)| node.internal_ips.contains(&ip))?;
    Some(format!("it is the address of node {name}"))
}

/// The socket that would connect. What it draws is the caller's to say.
struct Socket<'a> {
    caller: &'a Caller,
    spread: u32,
    served: Served,
}

impl select::Caller for Socket<'_> {
    fn spread(&self) -> u32 {
        self.spread
    }
    fn served(&self, _: u32) -> Served {
        self.served
    }
    fn netns_cookie(&self) -> u64 {
        self.caller.netns_cookie
    }
    fn now_ns(&self) -> u64 {
        self.caller.now_ns
    }
    fn last(&self) -> Option<select::Picked> {
        None
    }
}

fn entry(row: MapRow) -> api::MapRow {
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

#[cfg(test)]
#[path = "trace_tests.rs"]
mod tests;
