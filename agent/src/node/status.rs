//! What the Node object should say, and whether that is worth a write. Pure.

mod conditions;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
    NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use self::conditions::condition_of;
use super::facts::Facts;
use super::reserve::KeptBack;
use crate::events::Kind;
use crate::housekeeping::eviction::Pressures;
use crate::housekeeping::signal::Signal;

/// A status without a change is written this often.
const REPORT_INTERVAL: Duration = Duration::from_secs(300);
/// Upstream keeps so many images in the status, the largest first.
const MAX_IMAGES: usize = 50;
/// The Kubernetes version whose kubelet this agent stands in for.
const KUBELET_VERSION: &str = concat!("v1.34.0+kernelet-", env!("CARGO_PKG_VERSION"));

/// Whether a part of the node works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    Up,
    /// Why not, for people.
    Down(String),
}

impl Part {
    fn complaint(&self, name: &str) -> Option<String> {
        match self {
            Part::Up => None,
            Part::Down(why) => Some(format!("{name} is not ready: {why}")),
        }
    }
}

/// What the rest of the agent tells about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    pub runtime: Part,
    pub network: Part,
    /// Whether the other nodes' pods are reached; `None` until that was looked at.
    pub routes: Option<Part>,
    /// `containerd://1.6.20`, once known.
    pub runtime_version: String,
    /// By what names the runtime can run containers; the default has none.
    pub handlers: Vec<String>,
    pub images: Vec<Image>,
    pub pressures: Pressures,
    /// The machine is about to go down, or to start anew.
    pub is_shutting_down: bool,
}

/// An image that is present on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub names: Vec<String>,
    pub size_bytes: i64,
}

impl Default for Health {
    fn default() -> Self {
        let starting = || Part::Down("it is starting".into());
        Health {
            runtime: starting(),
            network: starting(),
            routes: None,
            runtime_version: String::new(),
            handlers: Vec::new(),
            images: Vec::new(),
            pressures: Pressures::default(),
            is_shutting_down: false,
        }
    }
}

/// What the node is called and where it is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub name: String,
    /// The InternalIPs, at most one of each family, the primary one first.
    pub addresses: Vec<IpAddr>,
    /// From the command line; the node's own labels are added to them.
    pub labels: BTreeMap<String, String>,
    /// The port that the kubelet API answers at.
    pub kubelet_port: u16,
}

/// The status as it should be now. What is `kept_back` is not for pods. Conditions that others keep are left out: a strategic merge leaves them alone.
pub fn desired(
    identity: &Identity,
    facts: &Facts,
    kept_back: &KeptBack,
    health: &Health,
    present: &NodeStatus,
    now: Timestamp,
) -> NodeStatus {
    NodeStatus {
        addresses: Some(addresses(identity)),
        allocatable: Some(allocatable(facts, kept_back)),
        capacity: Some(capacity(facts, kept_back.max_pods)),
        conditions: Some(conditions::of(health, present, now)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint {
                port: identity.kubelet_port.into(),
            }),
        }),
        features: Some(NodeFeatures {
            supplemental_groups_policy: Some(true),
        }),
        images: Some(images(&health.images)),
        runtime_handlers: Some(handlers(&health.handlers)),
        node_info: Some(node_info(facts, health)),
        ..NodeStatus::default()
    }
}

/// Whether the desired status has to be written: something changed, or the last report is old.
pub fn needs_write(present: &NodeStatus, desired: &NodeStatus, now: Timestamp) -> bool {
    let conditions = desired.conditions.iter().flatten();
    let stale = |condition: &NodeCondition| match condition_of(present, &condition.type_) {
        Some(there) => {
            let reported = there
                .last_heartbeat_time
                .as_ref()
                .map_or(Timestamp::UNIX_EPOCH, |time| time.0);
            let age = now.duration_since(reported);
            (&there.status, &there.reason, &there.message)
                != (&condition.status, &condition.reason, &condition.message)
                || age.unsigned_abs() >= REPORT_INTERVAL
        }
        None => true,
    };
    let without_conditions = |status: &NodeStatus| NodeStatus {
        // An empty list is not stored, so it comes back absent.
        images: status.images.clone().filter(|images| !images.is_empty()),
        addresses: status.addresses.clone(),
        allocatable: status.allocatable.clone(),
        capacity: status.capacity.clone(),
        daemon_endpoints: status.daemon_endpoints.clone(),
        features: status.features.clone(),
        runtime_handlers: status.runtime_handlers.clone(),
        node_info: status.node_info.clone(),
        ..NodeStatus::default()
    };
    without_conditions(present) != without_conditions(desired) || conditions.into_iter().any(stale)
}

/// What became of the node between two statuses, as upstream tells it.
pub fn happenings(
    name: &str,
    before: &NodeStatus,
    after: &NodeStatus,
) -> Vec<(Kind, &'static str, String)> {
    let mut told = Vec::new();
    let boot = |status: &NodeStatus| status.node_info.as_ref().map(|info| info.boot_id.clone());
    if let (Some(old), Some(new)) = (boot(before), boot(after))
        && old != new
    {
        let message = format!("Node {name} has been rebooted, boot id: {new}");
        told.push((Kind::Warning, "Rebooted", message));
    }
    for (kind, yes, no) in [
        (
            "MemoryPressure",
            "NodeHasInsufficientMemory",
            "NodeHasSufficientMemory",
        ),
        (
            "DiskPressure",
            "NodeHasDiskPressure",
            "NodeHasNoDiskPressure",
        ),
        (
            "PIDPressure",
            "NodeHasInsufficientPID",
            "NodeHasSufficientPID",
        ),
        ("Ready", "NodeReady", "NodeNotReady"),
    ] {
        let holds = |status| condition_of(status, kind).map(|it| it.status == "True");
        let (old, new) = (holds(before), holds(after));
        if let Some(holds) = new.filter(|_| old != new) {
            let reason = if holds { yes } else { no };
            let message = format!("Node {name} status is now: {reason}");
            told.push((Kind::Normal, reason, message));
        }
    }
    told
}

fn addresses(identity: &Identity) -> Vec<NodeAddress> {
    let address = |kind: &str, address: String| NodeAddress {
        type_: kind.into(),
        address,
    };
    let internal = identity.addresses.iter();
    internal
        .map(|ip| address("InternalIP", ip.to_string()))
        .chain([address("Hostname", identity.name.clone())])
        .collect()
}

fn capacity(facts: &Facts, pods: u32) -> BTreeMap<String, Quantity> {
    let storage = binary(facts.storage_bytes);
    let cpus = facts.cpus.to_string();
    let mut all = resources(cpus, facts.memory_bytes, storage, pods);
    all.extend(huge_pages(facts));
    all
}

/// What the node gives its pods, by resource.
pub fn allocatable(facts: &Facts, kept_back: &KeptBack) -> BTreeMap<String, Quantity> {
    let reserved = kept_back.reserved;
    let (memory, storage) = (facts.memory_bytes, facts.storage_bytes);
    // What is set aside for huge pages can be nothing else.
    let aside = facts.huge_pages.values().sum();
    let memory = kept_back.from(memory, reserved.memory_bytes, Signal::MemoryAvailable);
    let storage = kept_back.from(storage, reserved.storage_bytes, Signal::NodefsAvailable);
    let memory = memory.saturating_sub(aside);
    let cpus = kept_back.cpus(facts);
    let mut all = resources(cpus, memory, decimal(storage), kept_back.max_pods);
    all.extend(huge_pages(facts));
    all
}

/// `hugepages-2Mi` and its like, even where the kernel has none of them yet.
fn huge_pages(facts: &Facts) -> impl Iterator<Item = (String, Quantity)> {
    let all = facts.huge_pages.iter();
    all.map(|(size, bytes)| {
        (
            format!("hugepages-{}", binary(*size)),
            Quantity(binary(*bytes)),
        )
    })
}

fn resources(
    cpus: String,
    memory_bytes: u64,
    storage: String,
    pods: u32,
) -> BTreeMap<String, Quantity> {
    [
        ("cpu", cpus),
        ("memory", binary(memory_bytes)),
        ("ephemeral-storage", storage),
        ("pods", pods.to_string()),
    ]
    .into_iter()
    .map(|(name, quantity)| (name.to_owned(), Quantity(quantity)))
    .collect()
}

/// A quantity as the API server writes it: otherwise each comparison with the stored status would find a change.
fn binary(bytes: u64) -> String {
    scaled(
        bytes / 1024 * 1024,
        1024,
        &["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"],
    )
}

/// The same in powers of ten.
fn decimal(number: u64) -> String {
    scaled(number, 1000, &["", "k", "M", "G", "T", "P", "E"])
}

/// With the largest suffix that needs no fraction.
pub(crate) fn scaled(mut number: u64, base: u64, suffixes: &[&str]) -> String {
    let mut exponent = 0;
    while number != 0 && number.is_multiple_of(base) && exponent + 1 < suffixes.len() {
        number /= base;
        exponent += 1;
    }
    format!("{number}{}", suffixes[exponent])
}

fn images(present: &[Image]) -> Vec<ContainerImage> {
    let mut images: Vec<_> = present.iter().collect();
    images.sort_by(|a, b| {
        b.size_bytes
            .cmp(&a.size_bytes)
            .then_with(|| a.names.cmp(&b.names))
    });
    images
        .into_iter()
        .take(MAX_IMAGES)
        .map(|image| ContainerImage {
            names: Some(image.names.clone()),
            size_bytes: Some(image.size_bytes),
        })
        .collect()
}

/// What the runtime can do, with the default handler and with the others.
fn handlers(names: &[String]) -> Vec<NodeRuntimeHandler> {
    let names = [String::new()].into_iter().chain(names.iter().cloned());
    let handler = |name| NodeRuntimeHandler {
        name: Some(name),
        features: Some(NodeRuntimeHandlerFeatures {
            recursive_read_only_mounts: Some(true),
            user_namespaces: Some(true),
        }),
    };
    names.map(handler).collect()
}

fn node_info(facts: &Facts, health: &Health) -> NodeSystemInfo {
    NodeSystemInfo {
        architecture: facts.architecture.into(),
        boot_id: facts.boot_id.clone(),
        container_runtime_version: health.runtime_version.clone(),
        kernel_version: facts.kernel_version.clone(),
        kube_proxy_version: String::new(),
        kubelet_version: KUBELET_VERSION.into(),
        machine_id: facts.machine_id.clone(),
        operating_system: "linux".into(),
        os_image: facts.os_image.clone(),
        system_uuid: facts.system_uuid.clone(),
        ..NodeSystemInfo::default()
    }
}

#[cfg(test)]
mod tests;
