//! The node authorizer: an agent reads what it routes to and its own pods, and writes what is its own.

use serde_json::Value;

use super::{Attributes, BOOTSTRAPPERS, MASTERS, NODE_USER_PREFIX, NODES, Referenced, User, rules};

/// Where the nodes' heartbeats are.
const LEASE_NAMESPACE: &str = "kube-node-lease";

/// The node that the user is, if it is one: `system:node:NAME` in group `system:nodes`.
pub fn node_name(user: &User) -> Option<&str> {
    let name = user.name.strip_prefix(NODE_USER_PREFIX)?;
    (!name.is_empty() && user.is_in(NODES)).then_some(name)
}

/// What node `node` may do by attributes alone. The error completes the refusal.
pub(super) fn authorize(node: &str, a: &Attributes<'_>) -> Result<(), &'static str> {
    if rules::any(rules::NODE_RULES, a) {
        return Ok(());
    }
    let own = |reason| if a.name == node { Ok(()) } else { Err(reason) };
    match (a.group, a.resource, a.subresource) {
        ("", "nodes", "") => match a.verb {
            "create" => Ok(()),
            "update" | "patch" => own("a node may only modify its own Node"),
            _ => Err("a node may not do this to Nodes"),
        },
        ("", "nodes", "status") => match a.verb {
            "get" => Ok(()),
            "update" | "patch" => own("a node may only modify its own Node's status"),
            _ => Err("a node may not do this to Nodes"),
        },
        ("storage.k8s.io", "csinodes", "") => match a.verb {
            "create" => Ok(()),
            "get" | "update" | "patch" | "delete" => own("a node may only use its own CSINode"),
            _ => Err("a node may not do this to CSINodes"),
        },
        ("coordination.k8s.io", "leases", "") if a.namespace == LEASE_NAMESPACE => match a.verb {
            "create" => Ok(()),
            // Each other's signs of life: whoever announces an address is replaced when it is silent.
            "list" | "watch" => Ok(()),
            "get" | "update" | "patch" | "delete" => own("a node may only use its own Lease"),
            _ => Err("a node may not do this to Leases"),
        },
        ("coordination.k8s.io", "leases", _) => {
            Err("a node may only use Leases in the namespace kube-node-lease")
        }
        ("", "pods", "") => match a.verb {
            // Single pods are checked again when it is known where they run.
            "get" | "delete" => Ok(()),
            // Mirrors of what it runs from files; admission sees to it that they are that.
            "create" => Ok(()),
            // All of them: a NetworkPolicy names its peers by labels, and packets show addresses. Upstream's node
            // authorizer insists on the field selector spec.nodeName, and leaves this to the network plugin's own account.
            "list" | "watch" => Ok(()),
            _ => Err("a node may not do this to Pods"),
        },
        ("", "pods", "status") => match a.verb {
            "get" | "update" | "patch" => Ok(()),
            _ => Err("a node may not do this to Pods' status"),
        },
        ("", "configmaps" | "secrets", "") => match a.verb {
            "get" => Err("no pod on this node refers to it"),
            _ => Err("a node may only get ConfigMaps and Secrets"),
        },
        ("", "serviceaccounts", "token") => match a.verb {
            "create" => Err("no pod on this node uses it"),
            _ => Err("a node may only create tokens of ServiceAccounts"),
        },
        _ => Err(""),
    }
}

/// Whether a refusal by [`authorize`] is lifted by a pod that refers to the object.
pub(super) fn if_referred_to(a: &Attributes<'_>) -> Option<Referenced> {
    if a.namespace.is_empty() || a.name.is_empty() {
        return None;
    }
    let object = Referenced::of_resource(a.group, a.resource)?;
    let asked = match object {
        Referenced::ConfigMap | Referenced::Secret => ("get", ""),
        Referenced::ServiceAccount => ("create", "token"),
    };
    (asked == (a.verb, a.subresource)).then_some(object)
}

/// Whether the user may act on this very object, after [`super::authorize`] allowed the attributes. Pods must run on the
/// node; Nodes, CSINodes and Leases must bear its name (attributes do not name what is being created); signing requests must
/// be the caller's own. For all others than nodes and bootstrappers it is always true.
///
/// `object` is the stored object, or the new one for a creation.
pub fn node_may_touch(user: &User, object: &Value) -> bool {
    let text = |pointer| object.pointer(pointer).and_then(Value::as_str);
    let is_request = text("/kind") == Some("CertificateSigningRequest");
    if user.is_in(MASTERS) {
        return true;
    }
    if is_request && (user.is_in(NODES) || user.is_in(BOOTSTRAPPERS)) {
        // Unset only before a creation, where the API server fills it in.
        return text("/spec/username").is_none_or(|name| name == user.name);
    }
    let Some(node) = node_name(user) else {
        return true;
    };
    match text("/kind") {
        Some("Pod") => text("/spec/nodeName") == Some(node),
        Some("Node" | "CSINode" | "Lease") => text("/metadata/name") == Some(node),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::super::rbac::Policy;
    use super::super::{Attributes, Decision};
    use super::*;
    use serde_json::json;

    /// Without any role.
    fn authorize(user: &User, a: &Attributes<'_>) -> Decision {
        super::super::authorize(&Policy::default(), user, a)
    }

    fn node() -> User {
        User::authenticated("system:node:w1", [NODES.to_owned()])
    }

    fn core<'a>(
        verb: &'a str,
        resource: &'a str,
        subresource: &'a str,
        name: &'a str,
    ) -> Attributes<'a> {
        Attributes {
            verb,
            resource,
            subresource,
            name,
            ..Default::default()
        }
    }

    #[test]
    fn a_node_reads_what_it_routes_to_and_writes_what_is_its_own() {
        let user = node();
        let lease = |verb, name, namespace| Attributes {
            group: "coordination.k8s.io",
            namespace,
            ..core(verb, "leases", "", name)
        };
        let pods = |field_selector| Attributes {
            field_selector,
            ..core("watch", "pods", "", "")
        };
        let policies = |verb| Attributes {
            group: "networking.k8s.io",
            ..core(verb, "networkpolicies", "", "")
        };
        for (allowed, a) in [
            (true, core("list", "services", "", "")),
            (true, core("watch", "nodes", "", "")),
            (true, core("update", "nodes", "", "w1")),
            (true, core("patch", "nodes", "status", "w1")),
            (false, core("patch", "nodes", "status", "w2")),
            (false, core("delete", "nodes", "", "w1")),
            (true, core("create", "pods", "", "")),
            (false, core("get", "secrets", "", "s")),
            (false, core("create", "services", "", "")),
            (true, lease("update", "w1", "kube-node-lease")),
            (false, lease("update", "w2", "kube-node-lease")),
            (true, lease("watch", "", "kube-node-lease")),
            (false, lease("list", "", "")),
            (false, lease("update", "w1", "default")),
            (true, pods("spec.nodeName=w1")),
            (true, pods("status.phase!=Failed,spec.nodeName==w1")),
            (true, pods("")),
            (false, core("deletecollection", "pods", "", "")),
            (true, core("list", "namespaces", "", "")),
            (false, core("update", "namespaces", "", "a")),
            (true, policies("list")),
            (true, policies("watch")),
            (false, policies("create")),
            (false, policies("delete")),
            (true, core("patch", "pods", "status", "p")),
            (false, core("create", "pods", "binding", "p")),
        ] {
            assert_eq!(authorize(&user, &a).is_allowed(), allowed, "{a:?}");
        }
    }

    #[test]
    fn a_node_user_outside_the_group_is_no_node() {
        let user = User::authenticated("system:node:w1", []);
        assert_eq!(node_name(&user), None);
        assert!(matches!(
            authorize(&user, &core("list", "services", "", "")),
            Decision::Deny { .. }
        ));
    }

    #[test]
    fn a_node_touches_only_its_own_objects() {
        let user = node();
        let pod = |node| json!({"kind": "Pod", "spec": {"nodeName": node}});
        assert!(node_may_touch(&user, &pod("w1")));
        assert!(!node_may_touch(&user, &pod("w2")));
        assert!(!node_may_touch(&user, &json!({"kind": "Pod", "spec": {}})));
        assert!(!node_may_touch(
            &user,
            &json!({"kind": "Node", "metadata": {"name": "w2"}})
        ));
        assert!(node_may_touch(&User::scheduler(), &pod("w2")));
        let request = |by| json!({"kind": "CertificateSigningRequest", "spec": {"username": by}});
        let joining = User::authenticated("system:bootstrap:abcdef", [BOOTSTRAPPERS.to_owned()]);
        assert!(node_may_touch(
            &joining,
            &request("system:bootstrap:abcdef")
        ));
        assert!(!node_may_touch(
            &joining,
            &request("system:bootstrap:zzzzzz")
        ));
        assert!(!node_may_touch(&user, &request("system:bootstrap:abcdef")));
    }
}
