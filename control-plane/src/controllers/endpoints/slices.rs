//! EndpointSlices of one Service: which to write so that they say what is true, with the fewest writes. An endpoint stays
//! in the slice where it is. No I/O.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};

use super::backends::{Backend, Family, Port, is_headless};
use crate::controllers::cache::Key;
use crate::controllers::pods::controlled_by;

pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(super) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub(super) const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
const MAX_ENDPOINTS: usize = 100;

#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) create: Vec<EndpointSlice>,
    pub(super) update: Vec<EndpointSlice>,
    /// Names.
    pub(super) delete: Vec<String>,
}

/// `existing` are the slices of this Service that this controller manages.
pub(super) fn plan(
    service: &Service,
    backends: &[(Family, Vec<Backend>)],
    zone_of: impl Fn(&str) -> Option<String>,
    existing: &[Arc<EndpointSlice>],
) -> Plan {
    let mut plan = Plan::default();
    let is_current = |slice: &EndpointSlice| is_owned_by(slice, service.metadata.uid.as_deref());
    for (family, backends) in backends {
        let mine: Vec<&Arc<EndpointSlice>> = existing
            .iter()
            .filter(|slice| slice.address_type == family.as_str() && is_current(slice))
            .collect();
        plan_family(service, *family, backends, &zone_of, &mine, &mut plan);
    }
    let served = |slice: &EndpointSlice| {
        backends
            .iter()
            .any(|(family, _)| family.as_str() == slice.address_type)
    };
    // Slices of an earlier Service of this name go with it; they are not this one's.
    plan.delete.extend(
        existing
            .iter()
            .filter(|slice| !served(slice) || !is_current(slice))
            .filter_map(|slice| slice.metadata.name.clone()),
    );
    plan
}

fn plan_family(
    service: &Service,
    family: Family,
    backends: &[Backend],
    zone_of: &impl Fn(&str) -> Option<String>,
    existing: &[&Arc<EndpointSlice>],
    plan: &mut Plan,
) {
    // Pods may answer one named port on different numbers; a slice has one list of ports for all its endpoints.
    let mut groups: BTreeMap<Vec<Port>, Vec<Endpoint>> = BTreeMap::new();
    for backend in backends {
        groups
            .entry(backend.ports.clone())
            .or_default()
            .push(endpoint(service, backend, zone_of));
    }
    if groups.is_empty() {
        // One empty slice stays, to say that the Service is known and has nobody.
        let ports = existing
            .first()
            .map(|slice| ports_of(slice))
            .unwrap_or_default();
        groups.insert(ports, Vec::new());
    }
    for (ports, endpoints) in &groups {
        let mine: Vec<&Arc<EndpointSlice>> = existing
            .iter()
            .copied()
            .filter(|slice| ports_of(slice) == *ports)
            .collect();
        plan_group(service, family, ports, endpoints, &mine, plan);
    }
    let stale = existing
        .iter()
        .filter(|slice| !groups.contains_key(&ports_of(slice)));
    plan.delete
        .extend(stale.filter_map(|slice| slice.metadata.name.clone()));
}

fn plan_group(
    service: &Service,
    family: Family,
    ports: &[Port],
    endpoints: &[Endpoint],
    existing: &[&Arc<EndpointSlice>],
    plan: &mut Plan,
) {
    let mut homeless: HashMap<&str, &Endpoint> = endpoints
        .iter()
        .map(|endpoint| (identity(endpoint), endpoint))
        .collect();
    let mut slices: Vec<EndpointSlice> = Vec::new();
    for old in existing {
        let mut slice = described(service, (***old).clone());
        slice.endpoints = old
            .endpoints
            .iter()
            .filter_map(|endpoint| homeless.remove(identity(endpoint)).cloned())
            .collect();
        slices.push(slice);
    }
    let mut rest = endpoints
        .iter()
        .filter(|endpoint| homeless.contains_key(identity(endpoint)))
        .peekable();
    // Slices that have to be written anyhow take the newcomers first, then those with room, then new ones.
    let mut order: Vec<usize> = (0..slices.len()).collect();
    order.sort_by_key(|index| slices[*index] == **existing[*index]);
    for index in order {
        while slices[index].endpoints.len() < MAX_ENDPOINTS
            && let Some(endpoint) = rest.next()
        {
            slices[index].endpoints.push(endpoint.clone());
        }
    }
    while rest.peek().is_some()
        || (slices.is_empty() && plan.create.is_empty() && endpoints.is_empty())
    {
        let mut slice = described(service, new_slice(service, family, ports));
        slice.endpoints = rest.by_ref().take(MAX_ENDPOINTS).cloned().collect();
        plan.create.push(slice);
        if endpoints.is_empty() {
            return;
        }
    }
    let mut kept = slices
        .iter()
        .filter(|slice| !slice.endpoints.is_empty())
        .count();
    for (slice, old) in slices.into_iter().zip(existing) {
        // One empty slice may stay, if it is the only one.
        if slice.endpoints.is_empty() && (kept > 0 || !endpoints.is_empty()) {
            plan.delete.extend(slice.metadata.name);
            continue;
        }
        kept += 1;
        if slice != ***old {
            plan.update.push(slice);
        }
    }
}

/// A pod is one endpoint in each family, whatever address it has at the moment.
fn identity(endpoint: &Endpoint) -> &str {
    endpoint
        .target_ref
        .as_ref()
        .and_then(|target| target.uid.as_deref())
        .unwrap_or_default()
}

fn endpoint(
    service: &Service,
    backend: &Backend,
    zone_of: &impl Fn(&str) -> Option<String>,
) -> Endpoint {
    let mut endpoint = Endpoint {
        addresses: vec![backend.address.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(backend.ready),
            serving: Some(backend.serving),
            terminating: Some(backend.terminating),
        }),
        hostname: backend.hostname.clone(),
        node_name: backend.node.clone(),
        zone: backend.node.as_deref().and_then(zone_of),
        target_ref: Some(backend.target.clone()),
        ..Endpoint::default()
    };
    endpoint.hints = hints(service, &endpoint).filter(|_| backend.ready);
    endpoint
}

/// For proxies that look at hints alone: whoever is near by what the Service prefers.
fn hints(service: &Service, endpoint: &Endpoint) -> Option<EndpointHints> {
    let spec = service.spec.as_ref()?;
    let to_nodes = match spec.traffic_distribution.as_deref()? {
        "PreferSameNode" => true,
        "PreferSameZone" | "PreferClose" => false,
        _ => return None,
    };
    let zone = endpoint.zone.clone().map(|name| vec![ForZone { name }]);
    let node = endpoint
        .node_name
        .clone()
        .map(|name| vec![ForNode { name }]);
    let for_nodes = node.filter(|_| to_nodes);
    (zone.is_some() || for_nodes.is_some()).then_some(EndpointHints {
        for_nodes,
        for_zones: zone,
    })
}

fn new_slice(service: &Service, family: Family, ports: &[Port]) -> EndpointSlice {
    let mut slice = EndpointSlice {
        address_type: family.as_str().into(),
        ..EndpointSlice::default()
    };
    slice.ports = Some(ports.iter().map(slice_port).collect());
    slice.metadata.generate_name = service
        .metadata
        .name
        .as_ref()
        .map(|name| format!("{name}-"));
    slice.metadata.namespace = service.metadata.namespace.clone();
    slice.metadata.owner_references = Some(vec![controlled_by(service)]);
    slice
}

/// The labels that tie a slice to its Service, beside the Service's own.
fn described(service: &Service, mut slice: EndpointSlice) -> EndpointSlice {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    labels.insert(
        SERVICE_NAME.into(),
        service.metadata.name.clone().unwrap_or_default(),
    );
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    slice.metadata.labels = Some(labels);
    slice
}

pub(super) fn slice_port(port: &Port) -> EndpointPort {
    EndpointPort {
        name: Some(port.name.clone()),
        port: Some(port.port),
        protocol: Some(port.protocol.clone()),
        app_protocol: port.app_protocol.clone(),
    }
}

pub(super) fn ports_of(slice: &EndpointSlice) -> Vec<Port> {
    let ports = slice.ports.iter().flatten().map(|port| Port {
        name: port.name.clone().unwrap_or_default(),
        port: port.port.unwrap_or_default(),
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
        app_protocol: port.app_protocol.clone(),
    });
    ports.collect()
}

pub(super) fn is_owned_by(slice: &EndpointSlice, uid: Option<&str>) -> bool {
    let owners = slice.metadata.owner_references.iter().flatten();
    owners
        .into_iter()
        .any(|owner| Some(owner.uid.as_str()) == uid)
}

/// The words under which a slice is found by who keeps it and its Service.
pub(in crate::controllers) fn slice_index(slice: &EndpointSlice) -> Vec<String> {
    let Some(labels) = &slice.metadata.labels else {
        return Vec::new();
    };
    let names = labels.get(MANAGED_BY).zip(labels.get(SERVICE_NAME));
    let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
    names
        .map(|(manager, service)| word(manager, &Key::new(namespace, service)))
        .into_iter()
        .collect()
}

pub(super) fn word(manager: &str, service: &Key) -> String {
    format!("{manager}/{service}")
}
