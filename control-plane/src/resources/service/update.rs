//! What an update of a Service carries over from before, and what goes with the type that it leaves.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::ServiceSpec;

use super::{has_cluster_ip, is_reached_from_outside, kind};

/// A client that replaces a service without its allocated addresses and ports means to keep them.
pub(super) fn keep_allocated(new: &mut ServiceSpec, old: &ServiceSpec) {
    if has_cluster_ip(new) && has_cluster_ip(old) {
        keep_addresses(new, old);
    }
    if may_have_node_ports(new) && may_have_node_ports(old) {
        for port in new
            .ports
            .iter_mut()
            .flatten()
            .filter(|port| port.node_port.unwrap_or_default() == 0)
        {
            let same = old
                .ports
                .iter()
                .flatten()
                .find(|was| (was.port, &was.protocol) == (port.port, &port.protocol));
            port.node_port = same.and_then(|was| was.node_port);
        }
    }
}

/// A client knows both `clusterIP` and `clusterIPs`, or only the first of them.
fn keep_addresses(new: &mut ServiceSpec, old: &ServiceSpec) {
    let is_same_list = new.cluster_ips == old.cluster_ips;
    let is_named = new.cluster_ip.as_ref().is_some_and(|ip| !ip.is_empty());
    if !is_named && (is_same_list || new.cluster_ips.as_ref().is_none_or(Vec::is_empty)) {
        new.cluster_ip.clone_from(&old.cluster_ip);
        new.cluster_ips.clone_from(&old.cluster_ips);
    } else if new.cluster_ip == old.cluster_ip && new.cluster_ips.as_ref().is_none_or(Vec::is_empty)
    {
        new.cluster_ips.clone_from(&old.cluster_ips);
    } else if is_named && new.cluster_ip != old.cluster_ip && is_same_list {
        new.cluster_ips = new.cluster_ip.clone().map(|ip| vec![ip]);
    }
}

/// A client that changes only the type sends back what the old type had. What it did not change and the new type does not
/// have goes, so that no one has to name and clear it.
pub(super) fn drop_unused(new: &mut ServiceSpec, old: &ServiceSpec) {
    if has_cluster_ip(old) && !has_cluster_ip(new) {
        let is_cleared = new.cluster_ip.as_deref().unwrap_or_default().is_empty();
        if (is_cleared || new.cluster_ip == old.cluster_ip) && new.cluster_ips == old.cluster_ips {
            new.cluster_ip = None;
            new.cluster_ips = None;
        }
        forget_unchanged(&mut new.ip_families, &old.ip_families);
        forget_unchanged(&mut new.ip_family_policy, &old.ip_family_policy);
    }
    if may_have_node_ports(old)
        && !may_have_node_ports(new)
        && node_ports(old).is_superset(&node_ports(new))
    {
        for port in new.ports.iter_mut().flatten() {
            port.node_port = None;
        }
    }
    if is_health_checked(old) && !is_health_checked(new) {
        forget_unchanged(&mut new.health_check_node_port, &old.health_check_node_port);
    }
    if is_balanced(old) && !is_balanced(new) {
        forget_unchanged(&mut new.load_balancer_class, &old.load_balancer_class);
        forget_unchanged(
            &mut new.allocate_load_balancer_node_ports,
            &old.allocate_load_balancer_node_ports,
        );
    }
    if is_reached_from_outside(old) && !is_reached_from_outside(new) {
        forget_unchanged(
            &mut new.external_traffic_policy,
            &old.external_traffic_policy,
        );
    }
}

fn forget_unchanged<T: PartialEq>(new: &mut Option<T>, old: &Option<T>) {
    if new == old {
        *new = None;
    }
}

fn is_balanced(spec: &ServiceSpec) -> bool {
    kind(spec) == "LoadBalancer"
}

fn is_health_checked(spec: &ServiceSpec) -> bool {
    is_balanced(spec) && spec.external_traffic_policy.as_deref() == Some("Local")
}

fn may_have_node_ports(spec: &ServiceSpec) -> bool {
    matches!(kind(spec), "NodePort" | "LoadBalancer")
}

fn node_ports(spec: &ServiceSpec) -> BTreeSet<i32> {
    let ports = spec.ports.iter().flatten();
    ports
        .filter_map(|port| port.node_port.filter(|number| *number > 0))
        .collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;
    use serde_json::{Value, json};

    use crate::resources::Strategy;

    fn service(mut spec: Value) -> Service {
        if spec["clusterIP"].as_str().is_some_and(|ip| !ip.is_empty()) {
            spec["clusterIPs"] = json!([spec["clusterIP"]]);
        }
        let mut service: Service =
            serde_json::from_value(json!({ "metadata": { "name": "web" }, "spec": spec })).unwrap();
        service.set_defaults();
        service
    }

    /// What a merge of `change` into a service of `spec` gives, if it is not refused.
    fn changed(spec: Value, change: &Value) -> Value {
        let old = service(spec);
        let mut merged = serde_json::to_value(&old.spec).unwrap();
        for (field, value) in change.as_object().unwrap() {
            merged[field] = value.clone();
        }
        let mut new = service(merged);
        new.prepare_update(&old);
        let errors = new.validate(Some(&old));
        assert!(errors.is_empty(), "{change}: {errors:?}");
        serde_json::to_value(new.spec).unwrap()
    }

    #[test]
    fn a_replacement_keeps_address_and_node_port() {
        let old = service(
            json!({ "type": "NodePort", "clusterIP": "10.96.0.10", "ports": [{ "port": 80, "nodePort": 30080 }] }),
        );
        let mut new = service(json!({ "type": "NodePort", "ports": [{ "port": 80 }] }));
        new.prepare_update(&old);
        assert_eq!(new.spec, old.spec);
    }

    #[test]
    fn a_client_that_knows_one_address_keeps_both() {
        let mut old = service(json!({ "clusterIP": "10.96.0.10", "ports": [{ "port": 80 }] }));
        let both = vec!["10.96.0.10".to_owned(), "fd00::a".to_owned()];
        old.spec.as_mut().unwrap().cluster_ips = Some(both.clone());
        for (ip, ips, kept) in [
            (json!(null), json!(null), &*both),
            (json!("10.96.0.10"), json!(null), &*both),
            (json!(""), json!(both), &*both),
            (json!("10.96.0.11"), json!(both), &["10.96.0.11".to_owned()]),
            (json!("10.96.0.10"), json!(["10.96.0.10"]), &both[..1]),
        ] {
            let mut new = service(json!({ "ports": [{ "port": 80 }] }));
            let spec = new.spec.as_mut().unwrap();
            spec.cluster_ip = serde_json::from_value(ip.clone()).unwrap();
            spec.cluster_ips = serde_json::from_value(ips.clone()).unwrap();
            new.prepare_update(&old);
            let spec = new.spec.unwrap();
            assert_eq!(spec.cluster_ips.as_deref(), Some(kept), "{ip} {ips}");
            assert_eq!(spec.cluster_ip.as_ref(), kept.first(), "{ip} {ips}");
        }
    }

    #[test]
    fn a_service_leaves_its_type_with_what_only_that_type_has() {
        for from in ["NodePort", "LoadBalancer"] {
            let was = json!({
                "type": from, "clusterIP": "10.96.0.10", "ports": [{ "port": 80, "nodePort": 30080 }],
            });
            let now = changed(was, &json!({ "type": "ClusterIP" }));
            assert_eq!(now["clusterIP"], "10.96.0.10");
            for field in [
                "externalTrafficPolicy",
                "allocateLoadBalancerNodePorts",
                "loadBalancerClass",
            ] {
                assert_eq!(now.get(field), None, "{from}: {field}");
            }
            assert_eq!(now["ports"][0].get("nodePort"), None);
        }
        let local = json!({
            "type": "LoadBalancer", "clusterIP": "10.96.0.10", "ports": [{ "port": 80 }], "loadBalancerClass": "a/b",
            "externalTrafficPolicy": "Local", "healthCheckNodePort": 30081,
        });
        let now = changed(local, &json!({ "type": "NodePort" }));
        assert_eq!(now["externalTrafficPolicy"], "Local");
        assert_eq!(now.get("healthCheckNodePort"), None);
        assert_eq!(now.get("loadBalancerClass"), None);
    }

    #[test]
    fn a_service_gives_up_its_address_for_a_name() {
        let was = json!({ "clusterIP": "10.96.0.10", "ports": [{ "port": 80 }] });
        let mut change = json!({ "type": "ExternalName", "externalName": "example.com" });
        for _ in 0..2 {
            let now = changed(was.clone(), &change);
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                assert_eq!(now.get(field), None, "{field}");
            }
            change["clusterIP"] = json!("");
        }
    }

    #[test]
    fn what_was_changed_with_the_type_is_not_swept_away() {
        let old =
            service(json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": 30080 }] }));
        let mut new = service(json!({ "ports": [{ "port": 80, "nodePort": 30099 }] }));
        new.prepare_update(&old);
        assert_eq!(new.spec.unwrap().ports.unwrap()[0].node_port, Some(30099));
    }
}
