//! Which pods stand behind a Service, and how they answer: the part that EndpointSlices and Endpoints share. No I/O.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

pub(super) use crate::resources::Family;

use crate::controllers::pods::{has_ended, is_ready, node_of};

/// A Service port as one pod answers it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) port: i32,
    pub(super) protocol: String,
    pub(super) app_protocol: Option<String>,
}

#[derive(Clone, Debug)]
pub(super) struct Backend {
    pub(super) address: String,
    pub(super) ports: Vec<Port>,
    pub(super) ready: bool,
    pub(super) serving: bool,
    pub(super) terminating: bool,
    pub(super) node: Option<String>,
    pub(super) hostname: Option<String>,
    pub(super) target: ObjectReference,
}

/// The families that the Service has addresses of.
pub(super) fn families(service: &Service) -> Vec<Family> {
    let named = service
        .spec
        .as_ref()
        .and_then(|spec| spec.ip_families.as_ref());
    let named = named.into_iter().flatten();
    let mut families: Vec<Family> = named.filter_map(|name| Family::named(name)).collect();
    if families.is_empty() {
        families.push(Family::V4);
    }
    families
}

/// Whether a controller looks for this Service's pods; the others' endpoints are written by hand.
pub(super) fn has_selector(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| {
        spec.type_.as_deref() != Some("ExternalName")
            && spec
                .selector
                .as_ref()
                .is_some_and(|selector| !selector.is_empty())
    })
}

pub(super) fn is_headless(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .and_then(|spec| spec.cluster_ip.as_deref())
        == Some("None")
}

pub(super) fn selects(service: &Service, pod: &Pod) -> bool {
    let Some(selector) = service
        .spec
        .as_ref()
        .and_then(|spec| spec.selector.as_ref())
    else {
        return false;
    };
    let Some(labels) = &pod.metadata.labels else {
        return false;
    };
    !selector.is_empty()
        && selector
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
}

/// The word under which a Service is found by a pod's label: its first selector pair.
pub(in crate::controllers) fn service_index(service: &Service) -> Vec<String> {
    let selector = service
        .spec
        .as_ref()
        .and_then(|spec| spec.selector.as_ref());
    let first = selector.and_then(|selector| selector.first_key_value());
    let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
    first
        .map(|(key, value)| selector_word(namespace, key, value))
        .into_iter()
        .collect()
}

pub(super) fn selector_word(namespace: &str, key: &str, value: &str) -> String {
    format!("{namespace}/{key}={value}")
}

/// The backends of one family among `pods`, in the order of their names.
pub(super) fn backends(service: &Service, pods: &[Arc<Pod>], family: Family) -> Vec<Backend> {
    let mut backends: Vec<Backend> = pods
        .iter()
        .filter_map(|pod| backend(service, pod, family))
        .collect();
    backends.sort_by(|a, b| a.target.name.cmp(&b.target.name));
    backends
}

fn backend(service: &Service, pod: &Pod, family: Family) -> Option<Backend> {
    if has_ended(pod) || !selects(service, pod) {
        return None;
    }
    let spec = service.spec.as_ref()?;
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let serving = is_ready(pod);
    let publish_all = spec.publish_not_ready_addresses == Some(true);
    let pod_spec = pod.spec.as_ref();
    let in_subdomain =
        pod_spec.and_then(|spec| spec.subdomain.as_ref()) == service.metadata.name.as_ref();
    let hostname = pod_spec
        .and_then(|spec| spec.hostname.clone())
        .filter(|name| in_subdomain && !name.is_empty());
    Some(Backend {
        address: address(pod, family)?,
        ports: spec
            .ports
            .iter()
            .flatten()
            .filter_map(|port| answer(port, pod))
            .collect(),
        ready: publish_all || (serving && !terminating),
        serving,
        terminating,
        node: node_of(pod).map(str::to_owned),
        hostname,
        target: ObjectReference {
            kind: Some("Pod".into()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        },
    })
}

pub(super) fn address(pod: &Pod, family: Family) -> Option<String> {
    let status = pod.status.as_ref()?;
    let all = status
        .pod_ips
        .iter()
        .flatten()
        .map(|ip| &ip.ip)
        .chain(&status.pod_ip);
    let mut of_family = all.filter(|ip| Family::of_text(ip) == Some(family));
    of_family.next().cloned()
}

/// The port on the pod; `None` when it is named and the pod has no port of that name.
fn answer(port: &ServicePort, pod: &Pod) -> Option<Port> {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let number = match &port.target_port {
        None => port.port,
        Some(IntOrString::Int(0)) => port.port,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) => named_port(pod, name, protocol)?,
    };
    Some(Port {
        name: port.name.clone().unwrap_or_default(),
        port: number,
        protocol: protocol.to_owned(),
        app_protocol: port.app_protocol.clone(),
    })
}

fn named_port(pod: &Pod, name: &str, protocol: &str) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars =
        sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten());
    ports
        .filter(|port| {
            port.name.as_deref() == Some(name)
                && port.protocol.as_deref().unwrap_or("TCP") == protocol
        })
        .map(|port| port.container_port)
        .next()
}
