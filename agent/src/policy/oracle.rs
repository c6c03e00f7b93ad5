//! For tests: what upstream's documentation of NetworkPolicy says of one conversation, taken literally and written without
//! a look at how the agent decides. It shares no code with it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use agent_ebpf::policy::Direction;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::testing::{Flow, NODE_ADDRESS, World, addresses_of};

/// Whether a conversation of `pod` is allowed in one direction.
pub fn allows(world: &World, pod: &Pod, direction: Direction, flow: &Flow) -> bool {
    if flow.pod == flow.peer || flow.peer == NODE_ADDRESS.parse::<IpAddr>().unwrap() {
        return true;
    }
    let peer = world.pods.iter().find(|it| {
        let ended = it.status.as_ref().unwrap().phase.as_deref() == Some("Succeeded");
        !ended && addresses_of(it).contains(&flow.peer)
    });
    let connected_to = match direction {
        Direction::Ingress => Some(pod),
        Direction::Egress => peer,
    };
    let mut isolated = false;
    for policy in &world.policies {
        let spec = policy.spec.as_ref().unwrap();
        let chosen = spec.pod_selector.as_ref().unwrap();
        let here = policy.metadata.namespace == pod.metadata.namespace;
        if !here || !selects(chosen, pod.metadata.labels.as_ref()) || !affects(policy, direction) {
            continue;
        }
        isolated = true;
        let rules: Vec<(Vec<NetworkPolicyPeer>, Vec<NetworkPolicyPort>)> = match direction {
            Direction::Ingress => (spec.ingress.iter().flatten())
                .map(|it| {
                    (
                        it.from.clone().unwrap_or_default(),
                        it.ports.clone().unwrap_or_default(),
                    )
                })
                .collect(),
            Direction::Egress => (spec.egress.iter().flatten())
                .map(|it| {
                    (
                        it.to.clone().unwrap_or_default(),
                        it.ports.clone().unwrap_or_default(),
                    )
                })
                .collect(),
        };
        for (peers, ports) in rules {
            let right_peer = peers.is_empty()
                || peers
                    .iter()
                    .any(|it| is_peer(world, policy, it, peer, flow.peer));
            let right_port =
                ports.is_empty() || ports.iter().any(|it| is_port(it, connected_to, flow));
            if right_peer && right_port {
                return true;
            }
        }
    }
    !isolated
}

fn affects(policy: &NetworkPolicy, direction: Direction) -> bool {
    let spec = policy.spec.as_ref().unwrap();
    let types = spec.policy_types.clone().unwrap_or_default();
    match direction {
        Direction::Ingress => types.is_empty() || types.contains(&"Ingress".to_owned()),
        Direction::Egress if types.is_empty() => spec.egress.iter().flatten().next().is_some(),
        Direction::Egress => types.contains(&"Egress".to_owned()),
    }
}

fn is_peer(
    world: &World,
    policy: &NetworkPolicy,
    peer: &NetworkPolicyPeer,
    pod: Option<&Pod>,
    address: IpAddr,
) -> bool {
    if let Some(block) = &peer.ip_block {
        let within = |text: &str| text.parse::<IpNet>().unwrap().contains(&address);
        let mut except = block.except.iter().flatten();
        return within(&block.cidr) && !except.any(|it| within(it));
    }
    let Some(pod) = pod else {
        return false;
    };
    let right_namespace = match &peer.namespace_selector {
        None => pod.metadata.namespace == policy.metadata.namespace,
        Some(selector) => world.namespaces.iter().any(|it| {
            it.metadata.name == pod.metadata.namespace
                && selects(selector, it.metadata.labels.as_ref())
        }),
    };
    let right_pod = match &peer.pod_selector {
        None => true,
        Some(selector) => selects(selector, pod.metadata.labels.as_ref()),
    };
    right_namespace && right_pod
}

fn is_port(port: &NetworkPolicyPort, connected_to: Option<&Pod>, flow: &Flow) -> bool {
    let number = |protocol: Option<&str>| match protocol.unwrap_or("TCP") {
        "TCP" => 6,
        "UDP" => 17,
        other => panic!("{other}"),
    };
    if number(port.protocol.as_deref()) != flow.protocol {
        return false;
    }
    match &port.port {
        None => true,
        Some(IntOrString::Int(first)) => {
            let last = port.end_port.unwrap_or(*first);
            (*first..=last).contains(&i32::from(flow.port))
        }
        Some(IntOrString::String(name)) => connected_to.is_some_and(|pod| {
            let containers = pod.spec.as_ref().unwrap().containers.iter();
            containers
                .flat_map(|it| it.ports.iter().flatten())
                .any(|it| {
                    it.name.as_ref() == Some(name)
                        && number(it.protocol.as_deref()) == flow.protocol
                        && it.container_port == i32::from(flow.port)
                })
        }),
    }
}

fn selects(selector: &LabelSelector, labels: Option<&BTreeMap<String, String>>) -> bool {
    let value = |key: &str| labels.and_then(|labels| labels.get(key));
    let equal = selector.match_labels.iter().flatten();
    let mut expressions = selector.match_expressions.iter().flatten();
    equal
        .into_iter()
        .all(|(key, wanted)| value(key) == Some(wanted))
        && expressions.all(|it| {
            let listed = |value: &String| it.values.iter().flatten().any(|one| one == value);
            match &*it.operator {
                "In" => value(&it.key).is_some_and(listed),
                "NotIn" => !value(&it.key).is_some_and(listed),
                "Exists" => value(&it.key).is_some(),
                "DoesNotExist" => value(&it.key).is_none(),
                other => panic!("{other}"),
            }
        })
}
