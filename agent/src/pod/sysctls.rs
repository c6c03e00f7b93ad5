//! Kernel parameters that a pod sets for its own namespaces: which of them it may. Pure.
//!
//! <https://kubernetes.io/docs/tasks/administer-cluster/sysctl-cluster/>

use std::collections::BTreeMap;
use std::str::FromStr;

use k8s_openapi::api::core::v1::Sysctl;

use super::spec::PodView;

/// Those that no pod can use against another, or against the node; upstream allows the same.
const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];
/// What begins so belongs to an IPC namespace.
const OF_IPC: [&str; 4] = ["kernel.sem", "kernel.shm", "kernel.msg", "fs.mqueue."];
/// What begins so belongs to a network namespace.
const OF_NET: &str = "net.";

/// A parameter, or with an asterisk at its end all that begin so, that the node allows beyond the safe ones.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Allowed(String);

impl Allowed {
    fn covers(&self, name: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == self.0,
        }
    }
}

impl FromStr for Allowed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = normalized(text.trim());
        match is_of_namespace(&name) {
            true => Ok(Allowed(name)),
            false => Err(format!(
                "{text:?} is no parameter of a namespace: kernel.sem, kernel.shm*, kernel.msg*, fs.mqueue.* and net.* are"
            )),
        }
    }
}

/// What the containers' namespaces get.
pub(super) fn of(pod: &PodView) -> BTreeMap<String, String> {
    let all = asked(pod).map(|sysctl| (normalized(&sysctl.name), sysctl.value.clone()));
    all.collect()
}

/// Why the node does not take the pod, if it asks for what it may not have; in upstream's words.
pub(super) fn refusal(pod: &PodView, allowed: &[Allowed]) -> Option<String> {
    let host_ipc = pod.spec().host_ipc == Some(true);
    let refused = asked(pod).find_map(|sysctl| {
        let name = normalized(&sysctl.name);
        let is_known = SAFE.contains(&name.as_str())
            || (is_of_namespace(&name) && allowed.iter().any(|allowed| allowed.covers(&name)));
        let why = match is_known {
            false => "not allowlisted",
            true if name.starts_with(OF_NET) && pod.host_network() => {
                "not allowed with host net enabled"
            }
            true if !name.starts_with(OF_NET) && host_ipc => "not allowed with host ipc enabled",
            true => return None,
        };
        Some(format!("{:?} {why}", sysctl.name))
    });
    refused.map(|why| format!("forbidden sysctl: {why}"))
}

fn asked(pod: &PodView) -> impl Iterator<Item = &Sysctl> {
    let security = pod.spec().security_context.as_ref();
    security
        .into_iter()
        .flat_map(|it| it.sysctls.iter().flatten())
}

fn is_of_namespace(name: &str) -> bool {
    name.starts_with(OF_NET) || OF_IPC.iter().any(|prefix| name.starts_with(prefix))
}

/// With dots between the parts: where a slash comes first, slashes do that, and dots are part of names.
fn normalized(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name[at..].starts_with('/') => name
            .chars()
            .map(|character| match character {
                '/' => '.',
                '.' => '/',
                other => other,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(mut spec: Value, names: &[&str]) -> PodView {
        let sysctls: Vec<Value> = names
            .iter()
            .map(|name| json!({"name": name, "value": "1"}))
            .collect();
        spec["containers"] = json!([]);
        spec["securityContext"] = json!({ "sysctls": sysctls });
        let object = json!({
            "metadata": {"name": "p", "namespace": "d", "uid": "u"},
            "spec": spec,
        });
        PodView::new(serde_json::from_value(object).unwrap()).unwrap()
    }

    #[test]
    fn safe_ones_are_for_pods_with_namespaces_of_their_own() {
        let (net, ipc) = ("net.ipv4.tcp_syncookies", "kernel.shm_rmid_forced");
        assert_eq!(refusal(&pod(json!({}), &[net, ipc]), &[]), None);
        assert_eq!(
            refusal(&pod(json!({"hostNetwork": true}), &[ipc, net]), &[]).unwrap(),
            "forbidden sysctl: \"net.ipv4.tcp_syncookies\" not allowed with host net enabled"
        );
        assert_eq!(
            refusal(&pod(json!({"hostIPC": true}), &[net, ipc]), &[]).unwrap(),
            "forbidden sysctl: \"kernel.shm_rmid_forced\" not allowed with host ipc enabled"
        );
    }

    #[test]
    fn others_are_for_who_runs_the_node_to_allow() {
        let asks = pod(json!({}), &["net/core/somaxconn"]);
        assert_eq!(
            refusal(&asks, &[]).unwrap(),
            "forbidden sysctl: \"net/core/somaxconn\" not allowlisted"
        );
        let allowed = |text: &str| [text.parse::<Allowed>().unwrap()];
        assert_eq!(refusal(&asks, &allowed("net.core.*")), None);
        assert_eq!(refusal(&asks, &allowed("net.core.somaxconn")), None);
        assert!(refusal(&asks, &allowed("net.core.so")).is_some());
        assert_eq!(
            of(&asks),
            [("net.core.somaxconn".to_owned(), "1".to_owned())].into()
        );
        // What belongs to no namespace would be the whole node's.
        for nodes in ["kernel.panic", "vm.*", "*"] {
            assert!(nodes.parse::<Allowed>().is_err(), "{nodes}");
        }
    }

    #[test]
    fn a_links_name_may_hold_dots() {
        assert_eq!(
            normalized("net/ipv4/conf/eth0.1/forwarding"),
            "net.ipv4.conf.eth0/1.forwarding"
        );
        assert_eq!(
            normalized("net.ipv4.conf.eth0/1.forwarding"),
            "net.ipv4.conf.eth0/1.forwarding"
        );
    }
}
