//! From the API's objects to the slim ones. Pure; everything that the node does not use is dropped here, at once.

use std::collections::HashSet;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::types::{
    Endpoint, Name, Node, ObjectKey, Protocol, Service, ServicePort, Slice, SlicePort,
};

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
const LOCALITY_ANNOTATION: &str = "kernelet.io/locality";
const CHANGED_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// What the API server fills in for `sessionAffinity: ClientIP` without a timeout.
const DEFAULT_AFFINITY_TIMEOUT_S: u32 = 10_800;

/// Keeps one copy of each name that many objects repeat.
#[derive(Debug, Default)]
pub(super) struct Names(HashSet<Name>);

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

pub(super) fn service(object: &core::Service, names: &mut Names) -> Service {
    let Some(spec) = &object.spec else {
        return Service::default();
    };
    let addresses: Vec<&str> = match (&spec.cluster_ips, &spec.cluster_ip) {
        (Some(all), _) if !all.is_empty() => all.iter().map(String::as_str).collect(),
        (_, one) => one.as_deref().into_iter().collect(),
    };
    let external = spec.type_.as_deref() == Some("ExternalName");
    Service {
        headless: addresses.contains(&"None"),
        cluster_ips: if external {
            Vec::new()
        } else {
            parsed(addresses)
        },
        external_name: names
            .get_opt(spec.external_name.as_deref())
            .filter(|_| external),
        ports: spec
            .ports
            .iter()
            .flatten()
            .filter_map(|port| service_port(port, names))
            .collect(),
        affinity_timeout_s: (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
            let configured = spec
                .session_affinity_config
                .as_ref()
                .and_then(|config| config.client_ip.as_ref());
            configured
                .and_then(|client_ip| client_ip.timeout_seconds)
                .and_then(|seconds| u32::try_from(seconds).ok())
                .unwrap_or(DEFAULT_AFFINITY_TIMEOUT_S)
        }),
        internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        traffic_distribution: names.get_opt(spec.traffic_distribution.as_deref()),
        locality: names.get_opt(annotation(&object.metadata, LOCALITY_ANNOTATION)),
        publish_not_ready: spec.publish_not_ready_addresses == Some(true),
        proxy_name: names.get_opt(label(&object.metadata, PROXY_NAME_LABEL)),
    }
}

/// `None` for a slice that belongs to no service.
pub(super) fn slice(object: &discovery::EndpointSlice, names: &mut Names) -> Option<Slice> {
    Some(Slice {
        service: label(&object.metadata, SERVICE_NAME_LABEL)
            .filter(|name| !name.is_empty())?
            .into(),
        ports: object
            .ports
            .iter()
            .flatten()
            .filter_map(|port| slice_port(port, names))
            .collect(),
        endpoints: object
            .endpoints
            .iter()
            .map(|endpoint| self::endpoint(endpoint, names))
            .collect(),
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

fn service_port(port: &core::ServicePort, names: &mut Names) -> Option<ServicePort> {
    Some(ServicePort {
        name: names.get(port.name.as_deref().unwrap_or_default()),
        protocol: protocol(port.protocol.as_deref())?,
        port: u16::try_from(port.port).ok()?,
        node_port: port
            .node_port
            .and_then(|port| u16::try_from(port).ok())
            .filter(|port| *port != 0),
    })
}

/// `None` for a port that means "every port": there is no address to send to.
fn slice_port(port: &discovery::EndpointPort, names: &mut Names) -> Option<SlicePort> {
    Some(SlicePort {
        name: names.get(port.name.as_deref().unwrap_or_default()),
        protocol: protocol(port.protocol.as_deref())?,
        port: port
            .port
            .and_then(|port| u16::try_from(port).ok())
            .filter(|port| *port != 0)?,
    })
}

fn endpoint(endpoint: &discovery::Endpoint, names: &mut Names) -> Endpoint {
    // An absent `ready` is true; an absent `serving` says the same as `ready`; an absent `terminating` is false.
    let conditions = endpoint.conditions.as_ref();
    let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
    let pod = endpoint
        .target_ref
        .as_ref()
        .filter(|target| target.kind.as_deref() == Some("Pod"));
    Endpoint {
        addresses: parsed(endpoint.addresses.iter().map(String::as_str)),
        ready,
        serving: conditions.and_then(|c| c.serving).unwrap_or(ready),
        terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
        node: names.get_opt(endpoint.node_name.as_deref()),
        zone: names.get_opt(endpoint.zone.as_deref()),
        hostname: endpoint.hostname.as_deref().map(Name::from),
        pod: pod
            .and_then(|target| target.name.as_deref())
            .map(Name::from),
    }
}

/// An absent protocol is TCP; one that is unknown has no place in any table.
fn protocol(name: Option<&str>) -> Option<Protocol> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    }
}

/// What parses; the rest (`None`, an FQDN) is no address. Never holds more room than it needs.
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

fn annotation<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(name).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_service_keeps_what_the_node_uses() {
        let object: core::Service = serde_json::from_value(json!({
            "metadata": {"namespace": "shop", "name": "web", "managedFields": [{"manager": "kubectl"}],
                "annotations": {"kernelet.io/locality": "cluster"},
                "labels": {"service.kubernetes.io/service-proxy-name": "other"}},
            "spec": {"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00::7"],
                "sessionAffinity": "ClientIP", "internalTrafficPolicy": "Local", "trafficDistribution": "PreferClose",
                "ports": [{"name": "http", "port": 80, "targetPort": "web", "nodePort": 30080},
                          {"name": "dns", "port": 53, "protocol": "UDP"},
                          {"name": "sig", "port": 9, "protocol": "SCTP"}]}
        }))
        .unwrap();
        let mut names = Names::default();
        assert_eq!(
            key(&object.metadata, &mut names),
            Some(ObjectKey::new("shop", "web"))
        );
        let service = service(&object, &mut names);
        assert_eq!(
            service.cluster_ips,
            [
                "10.96.0.7".parse::<std::net::IpAddr>().unwrap(),
                "fd00::7".parse().unwrap()
            ]
        );
        assert_eq!(service.affinity_timeout_s, Some(10_800));
        assert!(service.internal_local && !service.headless && !service.publish_not_ready);
        assert_eq!(service.traffic_distribution.as_deref(), Some("PreferClose"));
        assert_eq!(service.locality.as_deref(), Some("cluster"));
        assert_eq!(service.proxy_name.as_deref(), Some("other"));
        let ports: Vec<_> = service
            .ports
            .iter()
            .map(|p| (&*p.name, p.protocol, p.port, p.node_port))
            .collect();
        assert_eq!(
            ports,
            [
                ("http", Protocol::Tcp, 80, Some(30080)),
                ("dns", Protocol::Udp, 53, None),
                ("sig", Protocol::Sctp, 9, None)
            ]
        );
    }

    #[test]
    fn headless_and_external_services_have_no_address() {
        let headless =
            serde_json::from_value(json!({"spec": {"clusterIP": "None", "clusterIPs": ["None"]}}))
                .unwrap();
        let headless = service(&headless, &mut Names::default());
        assert!(headless.headless && headless.cluster_ips.is_empty());

        let external = json!({"spec": {"type": "ExternalName", "externalName": "db.example.com"}});
        let external = service(
            &serde_json::from_value(external).unwrap(),
            &mut Names::default(),
        );
        assert_eq!(external.external_name.as_deref(), Some("db.example.com"));
        assert!(external.cluster_ips.is_empty() && !external.headless);
    }

    #[test]
    fn absent_conditions_mean_ready() {
        let object = serde_json::from_value(json!({
            "addressType": "IPv4",
            "metadata": {"labels": {"kubernetes.io/service-name": "web"}},
            "ports": [{"name": "http", "port": 8080}, {"name": "any"}],
            "endpoints": [
                {"addresses": ["10.244.1.5"], "nodeName": "a", "zone": "z",
                 "targetRef": {"kind": "Pod", "name": "web-1"}},
                {"addresses": ["10.244.1.6"], "conditions": {"ready": false, "terminating": true, "serving": true}},
                {"addresses": ["web.example.com"], "conditions": {"ready": false}},
            ]
        }))
        .unwrap();
        let slice = slice(&object, &mut Names::default()).unwrap();
        assert_eq!(&*slice.service, "web");
        assert_eq!(
            slice.ports.len(),
            1,
            "a port that means every port is left out"
        );
        let states: Vec<_> = slice
            .endpoints
            .iter()
            .map(|e| (e.ready, e.serving, e.terminating))
            .collect();
        assert_eq!(
            states,
            [
                (true, true, false),
                (false, true, true),
                (false, false, false)
            ]
        );
        assert_eq!(slice.endpoints[0].pod.as_deref(), Some("web-1"));
        assert!(slice.endpoints[2].addresses.is_empty());
    }

    #[test]
    fn a_slice_without_a_service_is_nobodys() {
        let object =
            serde_json::from_value(json!({"addressType": "IPv4", "endpoints": []})).unwrap();
        assert_eq!(slice(&object, &mut Names::default()), None);
    }

    #[test]
    fn a_node_tells_its_ranges_addresses_and_zone() {
        let object = serde_json::from_value(json!({
            "metadata": {"name": "a", "labels": {"topology.kubernetes.io/zone": "z1"}},
            "spec": {"podCIDR": "10.244.1.0/24"},
            "status": {"addresses": [{"type": "Hostname", "address": "a"}, {"type": "InternalIP", "address": "192.0.2.1"}]}
        }))
        .unwrap();
        let node = node(&object, &mut Names::default());
        assert_eq!(node.pod_cidrs, ["10.244.1.0/24".parse().unwrap()]);
        assert_eq!(
            node.internal_ips,
            ["192.0.2.1".parse::<std::net::IpAddr>().unwrap()]
        );
        assert_eq!(node.zone.as_deref(), Some("z1"));
    }

    #[test]
    fn names_are_shared_and_forgotten() {
        let mut names = Names::default();
        let first = names.get("default");
        assert!(Name::ptr_eq(&first, &names.get("default")));
        for n in 0..10_000 {
            names.get(&format!("gone-{n}"));
        }
        assert!(names.0.len() < 100, "{}", names.0.len());
    }
}
