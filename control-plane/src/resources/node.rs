//! Node.

use std::collections::{BTreeMap, HashSet};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, NodeSpec};
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, Subresource, age, print, quantity,
    validate::{self, Path, names},
};

const ROLE_PREFIX: &str = "node-role.kubernetes.io/";
const ROLE: &str = "kubernetes.io/role";
const EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "PreferNoSchedule"];

impl Strategy for Node {
    const SINGULAR: &'static str = "node";
    const SHORT_NAMES: &'static [&'static str] = &["no"];
    const NAMESPACED: bool = false;
    const SUBRESOURCES: &'static [Subresource] = &[Subresource::Status, Subresource::Proxy];
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::text("Status", "Whether the node is ready and takes pods."),
        Column::text("Roles", "What the node is for."),
        Column::AGE,
        Column::text("Version", "The version that the node's agent reports."),
        Column::text("Internal-IP", "The address inside the cluster.").wide(),
        Column::text("External-IP", "The address outside the cluster.").wide(),
        Column::text("OS-Image", "The operating system.").wide(),
        Column::text("Kernel-Version", "The kernel.").wide(),
        Column::text("Container-Runtime", "What runs containers.").wide(),
    ];

    fn row(&self, now: i64) -> Vec<Value> {
        let info = self
            .status
            .as_ref()
            .and_then(|status| status.node_info.clone())
            .unwrap_or_default();
        let or_unknown = |text: &str| {
            if text.is_empty() {
                "<unknown>".to_owned()
            } else {
                text.to_owned()
            }
        };
        vec![
            json!(print::name(&self.metadata)),
            json!(readiness(self)),
            json!(roles(self)),
            json!(age::of(&self.metadata, now)),
            json!(info.kubelet_version),
            json!(print::or_none(address(self, "InternalIP"))),
            json!(print::or_none(address(self, "ExternalIP"))),
            json!(or_unknown(&info.os_image)),
            json!(or_unknown(&info.kernel_version)),
            json!(or_unknown(&info.container_runtime_version)),
        ]
    }

    fn set_defaults(&mut self) {
        if let Some(spec) = &mut self.spec {
            one_list_of_ranges(spec);
        }
        let Some(status) = &mut self.status else {
            return;
        };
        quantity::canonicalize(status.capacity.as_mut());
        if status.allocatable.is_none() {
            status.allocatable.clone_from(&status.capacity);
        }
        quantity::canonicalize(status.allocatable.as_mut());
    }

    fn prepare_create(&mut self) {
        self.spec.get_or_insert_default();
        self.status.get_or_insert_default();
    }

    fn prepare_update(&mut self, old: &Self) {
        self.status = old.status.clone();
    }

    fn prepare_status(&mut self, old: &Self) {
        self.spec = old.spec.clone();
    }

    fn validate(&self, old: Option<&Self>) -> Vec<FieldError> {
        let path = Path::new("spec");
        let spec = self.spec.clone().unwrap_or_default();
        let mut errors = Vec::new();
        let cidrs = spec.pod_cidrs.as_deref().unwrap_or_default();
        for (index, cidr) in cidrs.iter().enumerate() {
            if cidr.parse::<IpNet>().is_err() {
                errors.push(path.child("podCIDRs").index(index).invalid(
                    cidr.as_str(),
                    "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
                ));
            }
        }
        if more_than_one_of_a_family(cidrs) {
            errors.push(path.child("podCIDRs").invalid(
                json!(cidrs),
                "may specify no more than one CIDR for each IP family",
            ));
        }
        let mut seen = HashSet::new();
        for (index, taint) in spec.taints.iter().flatten().enumerate() {
            let path = path.child("taints").index(index);
            errors.extend(
                path.child("key")
                    .invalid_all(&taint.key, names::qualified(&taint.key)),
            );
            let value = taint.value.as_deref().unwrap_or_default();
            errors.extend(
                path.child("value")
                    .invalid_all(value, names::label_value(value)),
            );
            errors.extend(validate::one_of(
                &path.child("effect"),
                Some(&taint.effect),
                EFFECTS,
            ));
            if !seen.insert((&taint.key, &taint.effect)) {
                let taint = serde_json::to_value(taint).unwrap_or_default();
                errors.push(path.invalid(taint, "taints must be unique by key and effect pair"));
            }
        }
        for (field, amounts) in [
            (
                "capacity",
                self.status
                    .as_ref()
                    .and_then(|status| status.capacity.as_ref()),
            ),
            (
                "allocatable",
                self.status
                    .as_ref()
                    .and_then(|status| status.allocatable.as_ref()),
            ),
        ] {
            errors.extend(quantity::errors(&Path::new("status").child(field), amounts));
        }
        if let Some(was) = old.and_then(|old| old.spec.as_ref()) {
            errors.extend(assigned_once(
                &path,
                "podCIDRs",
                &spec.pod_cidrs,
                &was.pod_cidrs,
            ));
            errors.extend(assigned_once(
                &path,
                "providerID",
                &spec.provider_id,
                &was.provider_id,
            ));
        }
        errors
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        let unschedulable = self
            .spec
            .as_ref()
            .and_then(|spec| spec.unschedulable)
            .unwrap_or_default();
        vec![("spec.unschedulable", unschedulable.to_string())]
    }
}

/// `podCIDR` is the first of `podCIDRs`; where a client says otherwise, it knows only the former.
fn one_list_of_ranges(spec: &mut NodeSpec) {
    let first = spec.pod_cidrs.iter().flatten().next();
    match (&spec.pod_cidr, first) {
        (None, Some(first)) => spec.pod_cidr = Some(first.clone()),
        (Some(one), first) if !one.is_empty() && first != Some(one) => {
            spec.pod_cidrs = Some(vec![one.clone()]);
        }
        _ => {}
    }
}

fn more_than_one_of_a_family(cidrs: &[String]) -> bool {
    let families = cidrs.iter().filter_map(|cidr| cidr.parse().ok());
    let mut seen = HashSet::new();
    cidrs.len() > 1
        && !families
            .into_iter()
            .all(|range: IpNet| seen.insert(range.addr().is_ipv4()))
}

/// An error for a field that was set before and is set to something else now.
fn assigned_once<T: PartialEq>(
    path: &Path,
    field: &str,
    new: &Option<T>,
    old: &Option<T>,
) -> Option<FieldError> {
    (old.is_some() && new != old).then(|| {
        path.child(field).forbidden(format!(
            "node updates may not change {field} except from \"\" to valid"
        ))
    })
}

/// `Ready`, `NotReady,SchedulingDisabled` …
fn readiness(node: &Node) -> String {
    let conditions = node
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions
        .into_iter()
        .find(|condition| condition.type_ == "Ready");
    let mut words = vec![match ready.map(|condition| condition.status.as_str()) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }];
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        words.push("SchedulingDisabled");
    }
    words.join(",")
}

fn roles(node: &Node) -> String {
    let empty = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&empty);
    let mut roles: Vec<_> = labels
        .iter()
        .filter_map(|(key, value)| match key.strip_prefix(ROLE_PREFIX) {
            Some(role) if !role.is_empty() => Some(role),
            None if key == ROLE && !value.is_empty() => Some(value.as_str()),
            _ => None,
        })
        .collect();
    roles.sort_unstable();
    roles.dedup();
    print::or_none(Some(&roles.join(",")))
}

fn address<'a>(node: &'a Node, kind: &str) -> Option<&'a str> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    addresses
        .iter()
        .find(|address| address.type_ == kind)
        .map(|address| address.address.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(value: Value) -> Node {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_row_says_what_a_node_is_and_how_it_does() {
        let node = node(json!({
            "metadata": { "name": "a", "labels": { "node-role.kubernetes.io/worker": "", "kubernetes.io/role": "edge" } },
            "spec": { "unschedulable": true },
            "status": {
                "conditions": [{ "type": "Ready", "status": "True" }],
                "addresses": [{ "type": "InternalIP", "address": "10.0.0.1" }],
                "nodeInfo": { "kubeletVersion": "v1.34.0", "osImage": "Debian", "kernelVersion": "6.18",
                              "containerRuntimeVersion": "containerd://1.6.20" },
            },
        }));
        assert_eq!(
            node.row(0),
            [
                "a",
                "Ready,SchedulingDisabled",
                "edge,worker",
                "<unknown>",
                "v1.34.0",
                "10.0.0.1",
                "<none>",
                "Debian",
                "6.18",
                "containerd://1.6.20"
            ]
        );
    }

    #[test]
    fn amounts_are_made_canonical_and_allocatable_follows_capacity() {
        let mut node =
            node(json!({ "status": { "capacity": { "cpu": "2000m", "memory": "1024Mi" } } }));
        node.set_defaults();
        let status = serde_json::to_value(node.status).unwrap();
        assert_eq!(
            status["allocatable"],
            json!({ "cpu": "2", "memory": "1Gi" })
        );
    }

    #[test]
    fn taints_are_checked_and_addresses_stay() {
        let new = node(json!({ "spec": {
            "podCIDRs": ["10.244.2.0/24"],
            "taints": [{ "key": "a", "effect": "Sometimes" }, { "key": "a", "effect": "NoSchedule" }],
        } }));
        let old = node(json!({ "spec": { "podCIDRs": ["10.244.1.0/24"] } }));
        let errors: Vec<_> = Strategy::validate(&new, Some(&old))
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            errors,
            [
                "spec.taints[0].effect: Unsupported value: \"Sometimes\": supported values: \"NoExecute\", \"NoSchedule\", \"PreferNoSchedule\"",
                "spec.podCIDRs: Forbidden: node updates may not change podCIDRs except from \"\" to valid",
            ]
        );
    }

    #[test]
    fn a_node_has_one_range_of_each_family_and_both_fields_say_so() {
        let errors = |cidrs: Value| -> Vec<String> {
            let node = node(json!({ "spec": { "podCIDRs": cidrs } }));
            let errors = Strategy::validate(&node, None);
            errors.iter().map(ToString::to_string).collect()
        };
        assert!(errors(json!(["fd00::/64", "10.244.1.0/24"])).is_empty());
        let refused = errors(json!(["10.244.1.0/24", "10.244.2.0/24"]));
        assert!(
            refused[0].ends_with("may specify no more than one CIDR for each IP family"),
            "{refused:?}"
        );
        for (said, one, all) in [
            (
                json!({"podCIDR": "10.1.0.0/24"}),
                "10.1.0.0/24",
                vec!["10.1.0.0/24"],
            ),
            (
                json!({"podCIDRs": ["fd00::/64", "10.1.0.0/24"]}),
                "fd00::/64",
                vec!["fd00::/64", "10.1.0.0/24"],
            ),
            (
                json!({"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.2.0.0/24"]}),
                "10.1.0.0/24",
                vec!["10.1.0.0/24"],
            ),
        ] {
            let mut node = node(json!({ "spec": said }));
            node.set_defaults();
            let spec = node.spec.unwrap();
            assert_eq!(spec.pod_cidr.as_deref(), Some(one));
            assert_eq!(spec.pod_cidrs.unwrap(), all);
        }
    }
}
