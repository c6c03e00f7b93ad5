//! What of a Service is for clients outside the cluster. Pure.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;

use super::convert::{annotation, plain, port_number};
use super::ignored::{Leftovers, Why};
use super::types::Exposed;

const FORWARDING_ANNOTATION: &str = "kernelet.io/forwarding";
/// Each address costs rows for each port: whoever makes Services must not fill the nodes' tables with one.
const MAX_ADDRESSES: usize = 100;

/// `None` for what only the cluster sees: most services.
pub(super) fn exposed(object: &core::Service, leftovers: &mut Leftovers) -> Option<Exposed> {
    let spec = object.spec.as_ref()?;
    let (node_ports, balanced) = match spec.type_.as_deref() {
        Some("NodePort") => (true, false),
        Some("LoadBalancer") => (true, true),
        Some("ClusterIP") | None => (false, false),
        _ => return None,
    };
    let external = spec.external_ips.iter().flatten().map(String::as_str);
    let external_ips = addresses(external, leftovers);
    if !node_ports && external_ips.is_empty() {
        return None;
    }
    let ingress = object.status.iter();
    let ingress = ingress
        .filter(|_| balanced)
        .filter_map(|status| status.load_balancer.as_ref())
        .flat_map(|balancer| balancer.ingress.iter().flatten())
        .filter(|ingress| ingress.ip_mode.as_deref().is_none_or(|mode| mode == "VIP"))
        .filter_map(|ingress| ingress.ip.as_deref())
        .filter(|ip| !ip.is_empty());
    let load_balancer_ips = addresses(ingress, leftovers);
    let local = spec.external_traffic_policy.as_deref() == Some("Local");
    Some(Exposed {
        node_ports,
        external_ips,
        load_balancer_ips,
        local,
        health_check_node_port: spec
            .health_check_node_port
            .filter(|port| balanced && local && *port != 0)
            .and_then(|port| {
                let number = port_number(port);
                if number.is_none() {
                    leftovers.add(Why::HealthCheckPort, port);
                }
                number
            }),
        source_ranges: source_ranges(spec, leftovers).filter(|_| balanced),
        direct_return: match annotation(&object.metadata, FORWARDING_ANNOTATION) {
            Some("dsr") => true,
            Some("snat") | None => false,
            Some(other) => {
                leftovers.add(Why::Forwarding, other);
                false
            }
        },
    })
}

fn addresses<'a>(texts: impl Iterator<Item = &'a str>, leftovers: &mut Leftovers) -> Vec<IpAddr> {
    let mut all = plain(texts, Why::ServiceAddress, |_| true, leftovers);
    for surplus in all.drain(MAX_ADDRESSES.min(all.len())..) {
        leftovers.add(Why::TooManyAddresses, surplus);
    }
    all
}

/// Whoever lists ranges means to keep the others out, so what cannot be read lets nobody in.
fn source_ranges(spec: &core::ServiceSpec, leftovers: &mut Leftovers) -> Option<Arc<[IpNet]>> {
    let texts = spec.load_balancer_source_ranges.as_ref();
    let texts = texts.filter(|texts| !texts.is_empty())?;
    let mut ranges: Vec<IpNet> = Vec::new();
    for text in texts {
        match text.trim().parse::<IpNet>() {
            Ok(range) => ranges.push(range.trunc()),
            Err(_) => leftovers.add(Why::SourceRange, text),
        }
    }
    ranges.sort_unstable();
    ranges.dedup();
    Some(ranges.into())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::Ignored;

    fn read(object: Value) -> (Option<Exposed>, Vec<Ignored>) {
        let mut leftovers = Leftovers::default();
        let exposed = exposed(&serde_json::from_value(object).unwrap(), &mut leftovers);
        (exposed, leftovers.into_vec())
    }

    fn well(object: Value) -> Exposed {
        let (exposed, ignored) = read(object);
        assert_eq!(ignored, []);
        exposed.unwrap()
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn most_services_are_for_the_cluster() {
        for spec in [
            json!({}),
            json!({"type": "ClusterIP", "clusterIP": "10.96.0.1"}),
            json!({"type": "ExternalName", "externalName": "x", "externalIPs": ["192.0.2.1"]}),
        ] {
            assert_eq!(read(json!({ "spec": spec })), (None, vec![]));
        }
    }

    #[test]
    fn a_load_balancer_with_all_that_it_may_have() {
        let exposed = well(json!({
            "metadata": {"annotations": {"kernelet.io/forwarding": "dsr"}},
            "spec": {
                "type": "LoadBalancer",
                "externalIPs": ["198.51.100.1", "2001:db8::1", "198.51.100.1"],
                "externalTrafficPolicy": "Local",
                "healthCheckNodePort": 30_999,
                "loadBalancerSourceRanges": [" 10.1.2.3/8", "2001:db8::/32", "10.0.0.0/8"],
            },
            "status": {"loadBalancer": {"ingress": [
                {"ip": "203.0.113.1"},
                {"ip": "203.0.113.2", "ipMode": "VIP"},
                {"ip": "203.0.113.3", "ipMode": "Proxy"},
                {"hostname": "lb.example"},
            ]}},
        }));
        let ranges: Vec<IpNet> = vec![
            "10.0.0.0/8".parse().unwrap(),
            "2001:db8::/32".parse().unwrap(),
        ];
        assert_eq!(
            exposed,
            Exposed {
                node_ports: true,
                external_ips: ips(&["198.51.100.1", "2001:db8::1"]),
                load_balancer_ips: ips(&["203.0.113.1", "203.0.113.2"]),
                local: true,
                health_check_node_port: Some(30_999),
                source_ranges: Some(ranges.into()),
                direct_return: true,
            }
        );
    }

    #[test]
    fn what_only_a_load_balancer_has_counts_for_no_other() {
        let exposed = well(json!({
            "spec": {
                "type": "NodePort",
                "externalTrafficPolicy": "Local",
                "healthCheckNodePort": 30_999,
                "loadBalancerSourceRanges": ["10.0.0.0/8"],
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}},
        }));
        let expected = Exposed {
            node_ports: true,
            local: true,
            ..Exposed::default()
        };
        assert_eq!(exposed, expected);

        let cluster = well(json!({"spec": {
            "type": "LoadBalancer", "externalTrafficPolicy": "Cluster", "healthCheckNodePort": 30_999,
        }}));
        assert_eq!(cluster.health_check_node_port, None);
    }

    #[test]
    fn an_external_ip_alone_exposes_a_service() {
        let exposed = well(json!({"spec": {"externalIPs": ["192.0.2.1"]}}));
        assert!(!exposed.node_ports && exposed.external_ips == ips(&["192.0.2.1"]));
    }

    #[test]
    fn nonsense_is_left_out_with_its_reason() {
        let mut many: Vec<String> = (0..120).map(|n| format!("192.0.2.{n}")).collect();
        many.push("127.0.0.1".into());
        let (exposed, ignored) = read(json!({
            "metadata": {"annotations": {"kernelet.io/forwarding": "DSR"}},
            "spec": {
                "type": "LoadBalancer",
                "externalIPs": many,
                "externalTrafficPolicy": "Local",
                "healthCheckNodePort": 70_000,
                "loadBalancerSourceRanges": ["everybody"],
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "localhost"}]}},
        }));
        let exposed = exposed.unwrap();
        assert_eq!(exposed.external_ips.len(), MAX_ADDRESSES);
        assert_eq!(exposed.source_ranges, Some([].into()), "nobody comes in");
        let whys: Vec<(Why, u32)> = ignored.iter().map(|it| (it.why, it.count)).collect();
        assert_eq!(
            whys,
            [
                (Why::ServiceAddress, 2),
                (Why::TooManyAddresses, 20),
                (Why::SourceRange, 1),
                (Why::HealthCheckPort, 1),
                (Why::Forwarding, 1),
            ]
        );
    }
}
