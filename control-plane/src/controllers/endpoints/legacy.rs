//! The older Endpoints object of a Service, for clients that still read it. No I/O.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service,
};

use super::backends::{Backend, Port, is_headless};

/// More addresses than this are cut off and the object says so, as upstream does.
const MAX_ADDRESSES: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const HEADLESS: &str = "service.kubernetes.io/headless";

/// What the Service's Endpoints shall be, built upon what they are.
pub(super) fn desired(
    service: &Service,
    backends: &[Backend],
    existing: Option<&Endpoints>,
) -> Endpoints {
    let mut endpoints = existing.cloned().unwrap_or_default();
    endpoints.metadata.name = service.metadata.name.clone();
    endpoints.metadata.namespace = service.metadata.namespace.clone();
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.into(), "endpoint-controller".into());
    if is_headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    endpoints.metadata.labels = Some(labels);
    // This object cannot say "terminating", so such backends are left out, unless the Service wants all.
    let publish_all = service
        .spec
        .as_ref()
        .and_then(|spec| spec.publish_not_ready_addresses)
        == Some(true);
    let mut listed: Vec<&Backend> = backends
        .iter()
        .filter(|backend| publish_all || !backend.terminating)
        .collect();
    listed.sort_by_key(|backend| !backend.ready);
    let annotations = endpoints.metadata.annotations.get_or_insert_default();
    if listed.len() > MAX_ADDRESSES {
        annotations.insert(OVER_CAPACITY.into(), "truncated".into());
        listed.truncate(MAX_ADDRESSES);
    } else {
        annotations.remove(OVER_CAPACITY);
    }
    if annotations.is_empty() {
        endpoints.metadata.annotations = None;
    }
    let subsets = subsets(&listed);
    endpoints.subsets = (!subsets.is_empty()).then_some(subsets);
    endpoints
}

fn subsets(backends: &[&Backend]) -> Vec<EndpointSubset> {
    let mut groups: BTreeMap<&[Port], EndpointSubset> = BTreeMap::new();
    for backend in backends {
        let subset = groups.entry(&backend.ports).or_default();
        let list = if backend.ready {
            &mut subset.addresses
        } else {
            &mut subset.not_ready_addresses
        };
        list.get_or_insert_default().push(EndpointAddress {
            ip: backend.address.clone(),
            hostname: backend.hostname.clone(),
            node_name: backend.node.clone(),
            target_ref: Some(backend.target.clone()),
        });
    }
    let with_ports = groups.into_iter().map(|(ports, mut subset)| {
        for list in [&mut subset.addresses, &mut subset.not_ready_addresses]
            .into_iter()
            .flatten()
        {
            list.sort_by(|a, b| a.ip.cmp(&b.ip));
        }
        let ports: Vec<EndpointPort> = ports.iter().map(port_of).collect();
        subset.ports = (!ports.is_empty()).then_some(ports);
        subset
    });
    with_ports.collect()
}

fn port_of(port: &Port) -> EndpointPort {
    EndpointPort {
        name: (!port.name.is_empty()).then(|| port.name.clone()),
        port: port.port,
        protocol: Some(port.protocol.clone()),
        app_protocol: port.app_protocol.clone(),
    }
}
