//! What a Service may say.

use k8s_openapi::{
    api::core::v1::{ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};
use serde_json::json;

use super::{PROTOCOLS, has_cluster_ip, is_headless, is_reached_from_outside, kind};
use crate::resources::validate::{self, FieldError, Path, labels, names};

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const POLICIES: &[&str] = &["Cluster", "Local"];
const DISTRIBUTIONS: &[&str] = &["PreferClose", "PreferSameNode", "PreferSameZone"];
const MAX_AFFINITY_SECONDS: i32 = 86_400;

pub(super) fn errors(spec: &ServiceSpec, old: Option<&ServiceSpec>) -> Vec<FieldError> {
    let path = Path::new("spec");
    let mut errors = Vec::new();
    if has_cluster_ip(spec) && !is_headless(spec) && spec.ports.as_ref().is_none_or(Vec::is_empty) {
        errors.push(path.child("ports").required(""));
    }
    errors.extend(ports(&path.child("ports"), spec));
    errors.extend(labels::labels(
        &path.child("selector"),
        spec.selector.as_ref(),
    ));
    errors.extend(affinity(&path, spec));
    errors.extend(validate::one_of(
        &path.child("type"),
        spec.type_.as_deref(),
        TYPES,
    ));
    errors.extend(addresses(&path, spec));
    errors.extend(super::addresses::errors(spec));
    errors.extend(policies(&path, spec));
    if let Some(old) = old {
        errors.extend(super::addresses::update_errors(spec, old));
    }
    errors
}

fn ports(path: &Path, spec: &ServiceSpec) -> Vec<FieldError> {
    let list = spec.ports.as_deref().unwrap_or_default();
    let mut errors = Vec::new();
    for (index, port) in list.iter().enumerate() {
        errors.extend(one_port(&path.index(index), port, list.len() > 1));
        if kind(spec) == "ClusterIP" && port.node_port.unwrap_or_default() != 0 {
            let detail = "may not be used when `type` is 'ClusterIP'";
            errors.push(path.index(index).child("nodePort").forbidden(detail));
        }
    }
    errors.extend(validate::duplicates(
        path,
        "name",
        list.iter()
            .map(|port| port.name.as_deref().unwrap_or_default()),
    ));
    for (index, port) in list.iter().enumerate() {
        let before = &list[..index];
        if before
            .iter()
            .any(|other| (other.port, &other.protocol) == (port.port, &port.protocol))
        {
            errors.push(
                path.index(index)
                    .duplicate(json!({ "port": port.port, "protocol": port.protocol })),
            );
        }
        let same_node_port = |other: &ServicePort| {
            port.node_port.unwrap_or_default() != 0
                && (other.node_port, &other.protocol) == (port.node_port, &port.protocol)
        };
        if before.iter().any(same_node_port) {
            errors.push(
                path.index(index)
                    .child("nodePort")
                    .duplicate(port.node_port),
            );
        }
    }
    errors
}

fn one_port(path: &Path, port: &ServicePort, named: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    match port.name.as_deref().unwrap_or_default() {
        "" if named => errors.push(path.child("name").required("")),
        "" => {}
        name => errors.extend(
            path.child("name")
                .invalid_all(name, names::dns1123_label(name, false)),
        ),
    }
    errors.extend(validate::port_number(&path.child("port"), port.port));
    errors.extend(validate::one_of(
        &path.child("protocol"),
        port.protocol.as_deref(),
        PROTOCOLS,
    ));
    match &port.target_port {
        Some(IntOrString::Int(number)) => {
            errors.extend(validate::port_number(&path.child("targetPort"), *number))
        }
        Some(IntOrString::String(name)) => {
            errors.extend(
                path.child("targetPort")
                    .invalid_all(name, names::port_name(name)),
            );
        }
        None => {}
    }
    if let Some(app) = &port.app_protocol {
        errors.extend(
            path.child("appProtocol")
                .invalid_all(app, names::qualified(app)),
        );
    }
    if let Some(node_port) = port.node_port.filter(|&node_port| node_port != 0) {
        errors.extend(validate::port_number(&path.child("nodePort"), node_port));
    }
    errors
}

fn affinity(path: &Path, spec: &ServiceSpec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let choice = spec.session_affinity.as_deref();
    errors.extend(validate::one_of(
        &path.child("sessionAffinity"),
        choice,
        &["ClientIP", "None"],
    ));
    let config = spec
        .session_affinity_config
        .as_ref()
        .and_then(|config| config.client_ip.as_ref());
    if let (Some("ClientIP"), Some(seconds)) =
        (choice, config.and_then(|config| config.timeout_seconds))
        && !(1..=MAX_AFFINITY_SECONDS).contains(&seconds)
    {
        errors.push(
            path.child("sessionAffinityConfig")
                .child("clientIP")
                .child("timeoutSeconds")
                .invalid(
                    seconds,
                    format!("must be greater than 0 and less than {MAX_AFFINITY_SECONDS}"),
                ),
        );
    }
    errors
}

fn addresses(path: &Path, spec: &ServiceSpec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let ips = spec.cluster_ips.as_deref().unwrap_or_default();
    if !has_cluster_ip(spec) {
        let has_ips = !ips.is_empty() || spec.cluster_ip.as_ref().is_some_and(|ip| !ip.is_empty());
        let has_families = spec.ip_families.as_ref().is_some_and(|it| !it.is_empty());
        for (field, is_set) in [
            ("clusterIPs", has_ips),
            ("ipFamilies", has_families),
            ("ipFamilyPolicy", spec.ip_family_policy.is_some()),
        ] {
            if is_set {
                let detail = "may not be set for ExternalName services";
                errors.push(path.child(field).forbidden(detail));
            }
        }
        let name = spec.external_name.as_deref().unwrap_or_default();
        match name {
            "" => errors.push(path.child("externalName").required("")),
            name => errors.extend(path.child("externalName").invalid_all(
                name,
                names::dns1123_subdomain(name.strip_suffix('.').unwrap_or(name), false),
            )),
        }
    }
    if is_headless(spec) && matches!(kind(spec), "NodePort" | "LoadBalancer") {
        let detail = format!("may not be set to 'None' for {} services", kind(spec));
        errors.push(path.child("clusterIPs").index(0).invalid("None", detail));
    }
    for (index, ip) in spec.external_ips.iter().flatten().enumerate() {
        let path = path.child("externalIPs").index(index);
        errors.extend(validate::plain_ip(&path, ip));
    }
    for (index, range) in spec
        .load_balancer_source_ranges
        .iter()
        .flatten()
        .enumerate()
    {
        if range.trim().parse::<ipnet::IpNet>().is_err() {
            errors.push(path.child("loadBalancerSourceRanges").index(index).invalid(
                range.as_str(),
                "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            ));
        }
    }
    errors
}

fn policies(path: &Path, spec: &ServiceSpec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(policy) = spec
        .external_traffic_policy
        .as_deref()
        .filter(|policy| !policy.is_empty())
    {
        let path = path.child("externalTrafficPolicy");
        match is_reached_from_outside(spec) {
            true => errors.extend(validate::one_of(&path, Some(policy), POLICIES)),
            false => errors
                .push(path.invalid(policy, "may only be set for externally-accessible services")),
        }
    }
    if has_cluster_ip(spec) {
        let policy = spec.internal_traffic_policy.as_deref();
        errors.extend(validate::one_of(
            &path.child("internalTrafficPolicy"),
            policy,
            POLICIES,
        ));
    }
    if let Some(distribution) = spec.traffic_distribution.as_deref() {
        errors.extend(validate::one_of(
            &path.child("trafficDistribution"),
            Some(distribution),
            DISTRIBUTIONS,
        ));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn spec(mut value: Value) -> ServiceSpec {
        if value["clusterIP"].is_string() {
            value["clusterIPs"] = json!([value["clusterIP"]]);
        }
        let mut spec = serde_json::from_value(value).unwrap();
        super::super::set_defaults(&mut spec);
        spec
    }

    fn texts(new: Value, old: Option<Value>) -> Vec<String> {
        let old = old.map(spec);
        errors(&spec(new), old.as_ref())
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn a_manifest_with_two_problems_gets_two_answers() {
        assert_eq!(
            texts(
                json!({ "type": "Public", "ports": [{ "port": 70000, "targetPort": 80 }] }),
                None
            ),
            [
                "spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive",
                "spec.type: Unsupported value: \"Public\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
            ]
        );
    }

    #[test]
    fn ports_are_there_and_can_be_told_apart() {
        assert_eq!(texts(json!({}), None), ["spec.ports: Required value"]);
        assert!(texts(json!({ "clusterIP": "None" }), None).is_empty());
        assert_eq!(
            texts(
                json!({ "ports": [{ "port": 80, "name": "a" }, { "port": 80, "name": "a" }, { "port": 81 }] }),
                None
            ),
            [
                "spec.ports[2].name: Required value",
                "spec.ports[1].name: Duplicate value: \"a\"",
                "spec.ports[1]: Duplicate value: {\"port\":80,\"protocol\":\"TCP\"}",
            ]
        );
    }

    #[test]
    fn fields_fit_the_type() {
        assert_eq!(
            texts(
                json!({ "ports": [{ "port": 80, "nodePort": 30080 }], "externalTrafficPolicy": "Local" }),
                None
            ),
            [
                "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
                "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services",
            ]
        );
        assert_eq!(
            texts(json!({ "type": "ExternalName" }), None),
            ["spec.externalName: Required value"]
        );
        assert_eq!(
            texts(
                json!({ "type": "ExternalName", "externalName": "x.y", "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack" }),
                None
            ),
            [
                "spec.ipFamilies: Forbidden: may not be set for ExternalName services",
                "spec.ipFamilyPolicy: Forbidden: may not be set for ExternalName services",
            ]
        );
    }

    #[test]
    fn nobody_takes_the_nodes_own_addresses() {
        let with = |ip: &str| json!({ "externalIPs": [ip], "ports": [{ "port": 80 }] });
        assert!(texts(with("192.0.2.7"), None).is_empty());
        assert_eq!(
            texts(with("127.0.0.1"), None),
            [
                r#"spec.externalIPs[0]: Invalid value: "127.0.0.1": may not be in the loopback range (127.0.0.0/8, ::1/128)"#
            ]
        );
    }
}
