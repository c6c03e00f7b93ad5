//! Where a proxied request goes. No I/O.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::api::error::ApiError;
use crate::api::kubelet;

/// The label by which a slice names its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// What a path names: `NAME`, `NAME:PORT` or `SCHEME:NAME:PORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Named<'a> {
    pub(super) name: &'a str,
    /// Empty when none is named. Of a service it may be a port's name.
    port: &'a str,
    https: bool,
}

impl<'a> Named<'a> {
    pub(super) fn read(kind: &str, text: &'a str) -> Result<Self, ApiError> {
        let parts: Vec<&str> = text.split(':').collect();
        let (scheme, name, port) = match parts.as_slice() {
            [name] => ("", *name, ""),
            [name, port] => ("", *name, *port),
            [scheme, name, port] => (*scheme, *name, *port),
            _ => ("?", "", ""),
        };
        if name.is_empty() || !matches!(scheme, "" | "http" | "https") {
            return Err(ApiError::bad_request(format!(
                "invalid {kind} request \"{text}\""
            )));
        }
        Ok(Named {
            name,
            port,
            https: scheme == "https",
        })
    }

    fn number(&self) -> Result<u16, ApiError> {
        let port = self.port.parse().ok().filter(|port| *port != 0);
        port.ok_or_else(|| ApiError::bad_request(format!("invalid port \"{}\"", self.port)))
    }

    /// Nothing vouches for the certificates of pods, and a server that believes any would be no better than without.
    fn plain(&self) -> Result<(), ApiError> {
        match self.https {
            true => Err(ApiError::bad_request(
                "https: is not spoken to pods and services, whose certificates nobody vouches for; use kubectl port-forward",
            )),
            false => Ok(()),
        }
    }
}

/// Who is asked in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Destination {
    pub(super) address: SocketAddr,
    /// A node's agent, which is known by its certificate.
    pub(super) is_agent: bool,
}

impl Destination {
    /// This machine's own and its link's addresses are nobody's to reach through the API server.
    fn new(ip: IpAddr, port: u16, is_agent: bool) -> Result<Self, ApiError> {
        let ip = ip.to_canonical();
        let is_local = match ip {
            IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        if is_local || ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() {
            return Err(ApiError::bad_request("address not allowed"));
        }
        Ok(Destination {
            address: SocketAddr::new(ip, port),
            is_agent,
        })
    }
}

pub(super) fn of_node(node: &Node, named: &Named) -> Result<Destination, ApiError> {
    let Some(agent) = kubelet::address_of(node) else {
        return Err(ApiError::bad_request(format!(
            "node \"{}\" has not said where its agent listens",
            named.name
        )));
    };
    let port = match named.port {
        "" => agent.port(),
        _ => named.number()?,
    };
    let is_agent = port == agent.port();
    if !is_agent {
        named.plain()?;
    }
    Destination::new(agent.ip(), port, is_agent)
}

pub(super) fn of_pod(pod: &Pod, named: &Named) -> Result<Destination, ApiError> {
    named.plain()?;
    let port = match named.port {
        "" => first_port(pod).unwrap_or(80),
        _ => named.number()?,
    };
    let ip = pod.status.as_ref().and_then(|it| it.pod_ip.as_deref());
    match ip.and_then(|ip| ip.parse().ok()) {
        Some(ip) => Destination::new(ip, port, false),
        None => Err(ApiError::bad_request(format!(
            "pod \"{}\" has no address yet",
            named.name
        ))),
    }
}

fn first_port(pod: &Pod) -> Option<u16> {
    let containers = &pod.spec.as_ref()?.containers;
    let mut ports = containers
        .iter()
        .filter_map(|it| it.ports.as_ref()?.first());
    u16::try_from(ports.next()?.container_port).ok()
}

/// One of the service's ready endpoints, the one that `draw` decides on.
pub(super) fn of_service(
    service: &Service,
    slices: &[EndpointSlice],
    named: &Named,
    draw: u32,
) -> Result<Destination, ApiError> {
    named.plain()?;
    let port = port_name(service, named)?;
    let of_service = |slice: &&EndpointSlice| {
        let labels = slice.metadata.labels.as_ref();
        labels
            .and_then(|labels| labels.get(SERVICE_NAME))
            .map(String::as_str)
            == Some(named.name)
    };
    let mut ready: Vec<(IpAddr, u16)> = Vec::new();
    for slice in slices.iter().filter(of_service) {
        let mut ports = slice.ports.iter().flatten();
        let port = ports.find(|it| it.name.as_deref().unwrap_or_default() == port);
        let Some(number) = port.and_then(|it| u16::try_from(it.port?).ok()) else {
            continue;
        };
        let endpoints = slice.endpoints.iter();
        let offered = endpoints.filter(|endpoint| {
            let conditions = endpoint.conditions.as_ref();
            conditions.and_then(|it| it.ready).unwrap_or(true)
        });
        let ips = offered.filter_map(|endpoint| endpoint.addresses.first()?.parse().ok());
        ready.extend(ips.map(|ip| (ip, number)));
    }
    // In whatever order the slices came.
    ready.sort_unstable();
    match ready.len() {
        0 => Err(ApiError::unavailable(format!(
            "no endpoints available for service \"{}\"",
            named.name
        ))),
        count => {
            let (ip, port) = ready[draw as usize % count];
            Destination::new(ip, port, false)
        }
    }
}

/// The name of the service's port that is meant: the only one when none is named.
fn port_name<'a>(service: &'a Service, named: &Named) -> Result<&'a str, ApiError> {
    let ports = service.spec.as_ref().and_then(|it| it.ports.as_deref());
    let ports = ports.unwrap_or_default();
    let found = match (named.port, ports) {
        ("", [one]) => Some(one),
        ("", several) => several.iter().find(|it| it.name.is_none()),
        (port, ports) => ports
            .iter()
            .find(|it| it.name.as_deref() == Some(port) || port.parse() == Ok(it.port)),
    };
    match found {
        Some(found) => Ok(found.name.as_deref().unwrap_or_default()),
        None => Err(ApiError::unavailable(format!(
            "no service port \"{}\" found for service \"{}\"",
            named.port, named.name
        ))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn named(text: &str) -> Named<'_> {
        Named::read("pod", text).expect("a name")
    }

    fn to(found: Result<Destination, ApiError>) -> Result<(String, bool), String> {
        match found {
            Ok(found) => Ok((found.address.to_string(), found.is_agent)),
            Err(error) => Err(error.message),
        }
    }

    fn there(address: &str, is_agent: bool) -> Result<(String, bool), String> {
        Ok((address.to_owned(), is_agent))
    }

    fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).expect("an object")
    }

    #[test]
    fn names_have_ports_and_schemes() {
        let parts = |text| {
            Named::read("pod", text)
                .map(|it| (it.name, it.port, it.https))
                .ok()
        };
        assert_eq!(parts("a"), Some(("a", "", false)));
        assert_eq!(parts("a:web"), Some(("a", "web", false)));
        assert_eq!(parts("https:a:"), Some(("a", "", true)));
        assert_eq!(parts(":a:80"), Some(("a", "80", false)));
        for nonsense in ["", ":80", "ftp:a:80", "a:b:c:d", "http::80"] {
            assert_eq!(parts(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn a_node_is_its_agent_or_another_port() {
        let node: Node = read(json!({"status": {
            "addresses": [{"type": "InternalIP", "address": "10.0.0.2"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10251}},
        }}));
        assert_eq!(
            to(of_node(&node, &named("n"))),
            there("10.0.0.2:10251", true)
        );
        assert_eq!(
            to(of_node(&node, &named("https:n:10251"))),
            there("10.0.0.2:10251", true)
        );
        assert_eq!(
            to(of_node(&node, &named("n:9100"))),
            there("10.0.0.2:9100", false)
        );
        assert!(of_node(&node, &named("https:n:9100")).is_err());
        assert!(of_node(&Node::default(), &named("n")).is_err());
    }

    #[test]
    fn a_pod_is_asked_at_its_first_port_and_never_at_this_machines() {
        let pod = |ip: &str| -> Pod {
            read(json!({
                "spec": {"containers": [{"name": "a"}, {"name": "b", "ports": [{"containerPort": 8080}]}]},
                "status": {"podIP": ip},
            }))
        };
        assert_eq!(
            to(of_pod(&pod("10.1.1.1"), &named("p"))),
            there("10.1.1.1:8080", false)
        );
        assert_eq!(
            to(of_pod(&pod("fd00::1"), &named("p:9"))),
            there("[fd00::1]:9", false)
        );
        for hidden in [
            "127.0.0.1",
            "169.254.169.254",
            "fe80::1",
            "::1",
            "::ffff:127.0.0.1",
            "0.0.0.0",
            "224.0.0.1",
        ] {
            let refused = to(of_pod(&pod(hidden), &named("p")));
            assert_eq!(refused, Err("address not allowed".into()), "{hidden}");
        }
        for bad in ["p:0", "p:web", "p:65536"] {
            assert!(of_pod(&pod("10.1.1.1"), &named(bad)).is_err(), "{bad}");
        }
        assert!(of_pod(&Pod::default(), &named("p")).is_err());
    }

    #[test]
    fn a_service_is_one_of_its_ready_endpoints() {
        let service: Service = read(json!({"spec": {"ports": [
            {"name": "web", "port": 80}, {"name": "admin", "port": 81},
        ]}}));
        let slice = |service: &str, ips: &[(&str, bool)]| -> EndpointSlice {
            let endpoints: Vec<Value> = ips
                .iter()
                .map(|(ip, ready)| json!({"addresses": [ip], "conditions": {"ready": ready}}))
                .collect();
            read(json!({
                "metadata": {"labels": {"kubernetes.io/service-name": service}}, "addressType": "IPv4",
                "ports": [{"name": "web", "port": 8080}], "endpoints": endpoints,
            }))
        };
        let slices = [
            slice("s", &[("10.1.1.1", true), ("10.1.1.2", false)]),
            slice("other", &[("10.1.1.9", true)]),
            slice("s", &[("10.1.1.3", true)]),
        ];
        let found = |text, draw| to(of_service(&service, &slices, &named(text), draw));
        assert_eq!(found("s:web", 0), there("10.1.1.1:8080", false));
        assert_eq!(found("s:80", 1), there("10.1.1.3:8080", false));
        assert_eq!(found("s:web", 2), found("s:web", 0));
        let none = Err("no endpoints available for service \"s\"".into());
        assert_eq!(found("s:admin", 0), none);
        assert_eq!(
            found("s", 0),
            Err("no service port \"\" found for service \"s\"".into())
        );
        assert!(found("https:s:web", 0).is_err());
        let one: Service = read(json!({"spec": {"ports": [{"name": "web", "port": 80}]}}));
        assert_eq!(
            to(of_service(&one, &slices, &named("s"), 0)),
            there("10.1.1.1:8080", false)
        );
    }
}
