//! What the Node object should say, and whether that is worth a write. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
    NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

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
    let ours = [
        ready(health),
        memory_pressure(health.pressures),
        disk_pressure(health.pressures),
        pid_pressure(health.pressures),
    ];
    // A new agent knows nothing of it at first, and leaves what the last one said.
    let routes = health.routes.as_ref().map(network_unavailable);
    let conditions = ours
        .into_iter()
        .chain(routes)
        .map(|condition| condition.dated(present, now))
        .collect();
    NodeStatus {
        addresses: Some(addresses(identity)),
        allocatable: Some(allocatable(facts, kept_back)),
        capacity: Some(capacity(facts, kept_back.max_pods)),
        conditions: Some(conditions),
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

fn condition_of<'a>(status: &'a NodeStatus, kind: &str) -> Option<&'a NodeCondition> {
    status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == kind)
}

/// A condition without its times.
struct Condition {
    kind: &'static str,
    holds: bool,
    reason: &'static str,
    message: String,
}

impl Condition {
    fn dated(self, present: &NodeStatus, now: Timestamp) -> NodeCondition {
        let status = if self.holds { "True" } else { "False" };
        let unchanged = condition_of(present, self.kind).filter(|there| there.status == status);
        let since = unchanged.and_then(|there| there.last_transition_time.clone());
        NodeCondition {
            type_: self.kind.into(),
            status: status.into(),
            reason: Some(self.reason.into()),
            message: Some(self.message),
            last_heartbeat_time: Some(whole_seconds(now)),
            last_transition_time: Some(since.unwrap_or_else(|| whole_seconds(now))),
        }
    }
}

/// The API keeps whole seconds.
fn whole_seconds(time: Timestamp) -> Time {
    Time(Timestamp::from_second(time.as_second()).unwrap_or(time))
}

fn ready(health: &Health) -> Condition {
    let complaints = [
        health.runtime.complaint("container runtime"),
        health.network.complaint("pod network"),
        health
            .is_shutting_down
            .then(|| "node is shutting down".to_owned()),
    ];
    let complaints: Vec<_> = complaints.into_iter().flatten().collect();
    let (reason, message) = if complaints.is_empty() {
        ("KubeletReady", "kubelet is posting ready status".to_owned())
    } else {
        ("KubeletNotReady", complaints.join("; "))
    };
    Condition {
        kind: "Ready",
        holds: complaints.is_empty(),
        reason,
        message,
    }
}

/// In the words of upstream's route controller. While it holds, no pod is scheduled here.
fn network_unavailable(routes: &Part) -> Condition {
    let (holds, reason, message) = match routes {
        Part::Up => (
            false,
            "RouteCreated",
            "the other nodes' pods are routed".to_owned(),
        ),
        Part::Down(why) => (true, "NoRouteCreated", why.clone()),
    };
    Condition {
        kind: "NetworkUnavailable",
        holds,
        reason,
        message,
    }
}

fn memory_pressure(pressures: Pressures) -> Condition {
    pressure(
        "MemoryPressure",
        pressures.memory,
        (
            "KubeletHasInsufficientMemory",
            "kubelet has insufficient memory available",
        ),
        (
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
        ),
    )
}

fn disk_pressure(pressures: Pressures) -> Condition {
    pressure(
        "DiskPressure",
        pressures.disk,
        ("KubeletHasDiskPressure", "kubelet has disk pressure"),
        ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    )
}

fn pid_pressure(pressures: Pressures) -> Condition {
    pressure(
        "PIDPressure",
        pressures.pid,
        (
            "KubeletHasInsufficientPID",
            "kubelet has insufficient PID available",
        ),
        (
            "KubeletHasSufficientPID",
            "kubelet has sufficient PID available",
        ),
    )
}

type Wording = (&'static str, &'static str);

fn pressure(kind: &'static str, holds: bool, yes: Wording, no: Wording) -> Condition {
    let (reason, message) = if holds { yes } else { no };
    Condition {
        kind,
        holds,
        reason,
        message: message.into(),
    }
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
            user_namespaces: Some(false),
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
mod tests {
    use super::*;
    use crate::housekeeping::signal::thresholds;
    use crate::node::reserve::Reserved;

    fn identity() -> Identity {
        Identity {
            name: "worker-1".into(),
            addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            labels: BTreeMap::new(),
            kubelet_port: 10250,
        }
    }

    fn facts() -> Facts {
        Facts {
            cpus: 4,
            memory_bytes: 8 << 30,
            storage_bytes: 100 << 30,
            kernel_version: "6.18.0".into(),
            architecture: "amd64",
            ..Facts::default()
        }
    }

    fn kept_back() -> KeptBack {
        let eviction = thresholds("memory.available<100Mi,nodefs.available<10%");
        KeptBack {
            reserved: Reserved::default(),
            eviction: eviction.unwrap(),
            max_pods: 110,
        }
    }

    #[test]
    fn huge_pages_are_a_resource_of_their_own() {
        let facts = Facts {
            huge_pages: [(2 << 20, 1 << 30), (1 << 30, 0)].into(),
            ..facts()
        };
        let (whole, left) = (capacity(&facts, 110), allocatable(&facts, &kept_back()));
        for amounts in [&whole, &left] {
            assert_eq!(amounts["hugepages-2Mi"].0, "1Gi");
            assert_eq!(amounts["hugepages-1Gi"].0, "0");
        }
        assert_eq!(whole["memory"].0, "8Gi");
        assert_eq!(
            left["memory"].0, "7068Mi",
            "less the pages and the threshold"
        );
    }

    #[test]
    fn what_becomes_of_the_node_is_told_once() {
        let status = |health: &Health, boot: &str| {
            let facts = Facts {
                boot_id: boot.into(),
                ..facts()
            };
            let now = Timestamp::UNIX_EPOCH;
            desired(
                &identity(),
                &facts,
                &kept_back(),
                health,
                &NodeStatus::default(),
                now,
            )
        };
        let reasons = |before: &NodeStatus, after: &NodeStatus| -> Vec<&str> {
            let told = happenings("n", before, after);
            told.into_iter().map(|(_, reason, _)| reason).collect()
        };
        let starting = status(&Health::default(), "a");
        let well = status(&healthy(), "a");
        assert_eq!(reasons(&starting, &well), ["NodeReady"]);
        assert_eq!(reasons(&well, &well), [""; 0]);
        let mut short = healthy();
        short.pressures.disk = true;
        assert_eq!(
            reasons(&well, &status(&short, "b")),
            ["Rebooted", "NodeHasDiskPressure"]
        );
        let (_, _, message) = happenings("n", &well, &starting).remove(0);
        assert_eq!(message, "Node n status is now: NodeNotReady");
    }

    #[test]
    fn what_is_reserved_is_not_for_pods() {
        let kept = KeptBack {
            reserved: "cpu=500m,memory=924Mi,ephemeral-storage=10Gi"
                .parse()
                .unwrap(),
            ..kept_back()
        };
        let left = allocatable(&facts(), &kept);
        assert_eq!(left["cpu"].0, "3500m");
        assert_eq!(left["memory"].0, "7Gi");
        assert_eq!(left["ephemeral-storage"].0, (80_u64 << 30).to_string());
        assert_eq!(left["pods"].0, "110");
    }

    fn healthy() -> Health {
        Health {
            runtime: Part::Up,
            network: Part::Up,
            routes: None,
            runtime_version: "containerd://1.6.20".into(),
            handlers: Vec::new(),
            images: Vec::new(),
            pressures: Pressures::default(),
            is_shutting_down: false,
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn status(health: &Health, present: &NodeStatus, second: i64) -> NodeStatus {
        desired(
            &identity(),
            &facts(),
            &kept_back(),
            health,
            present,
            at(second),
        )
    }

    /// Type, status and reason of each condition.
    fn told(status: &NodeStatus) -> Vec<String> {
        let conditions = status.conditions.iter().flatten();
        conditions
            .map(|c| format!("{} {} {}", c.type_, c.status, c.reason.clone().unwrap()))
            .collect()
    }

    #[test]
    fn a_healthy_node_says_so_in_upstreams_words() {
        let status = status(&healthy(), &NodeStatus::default(), 1000);
        assert_eq!(
            told(&status),
            [
                "Ready True KubeletReady",
                "MemoryPressure False KubeletHasSufficientMemory",
                "DiskPressure False KubeletHasNoDiskPressure",
                "PIDPressure False KubeletHasSufficientPID",
            ]
        );
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["capacity"]["memory"], "8Gi");
        assert_eq!(json["allocatable"]["memory"], "8092Mi");
        assert_eq!(json["allocatable"]["pods"], "110");
        assert_eq!(json["addresses"][0]["address"], "192.0.2.1");
        assert_eq!(json["addresses"][1]["type"], "InternalIP");
        assert_eq!(json["addresses"][1]["address"], "2001:db8::1");
        assert_eq!(json["addresses"][2]["address"], "worker-1");
        assert_eq!(json["daemonEndpoints"]["kubeletEndpoint"]["Port"], 10250);
        assert!(
            json["nodeInfo"]["kubeletVersion"]
                .as_str()
                .unwrap()
                .starts_with("v1.34.")
        );
    }

    #[test]
    fn quantities_are_written_as_the_api_server_writes_them() {
        assert_eq!(binary(24_579_456 * 1024), "24579456Ki");
        assert_eq!(
            [binary(0), binary(3 << 30), binary(1025)],
            ["0", "3Gi", "1Ki"]
        );
        assert_eq!(
            [decimal(96_636_764_160), decimal(5000)],
            ["96636764160", "5k"]
        );
    }

    #[test]
    fn whether_other_nodes_pods_are_reached_is_a_condition_once_it_is_known() {
        let said = |routes| {
            let health = Health {
                routes,
                ..healthy()
            };
            let status = status(&health, &NodeStatus::default(), 1000);
            let found = condition_of(&status, "NetworkUnavailable").cloned();
            found.map(|it| {
                [
                    it.status,
                    it.reason.unwrap_or_default(),
                    it.message.unwrap_or_default(),
                ]
            })
        };
        assert_eq!(said(None), None, "what the last agent said stays");
        let routed = ["False", "RouteCreated", "the other nodes' pods are routed"];
        assert_eq!(said(Some(Part::Up)).unwrap(), routed);
        let down = Some(Part::Down("no route".into()));
        assert_eq!(said(down).unwrap(), ["True", "NoRouteCreated", "no route"]);
    }

    #[test]
    fn every_part_that_is_down_is_named() {
        let health = Health {
            runtime: Part::Down("connection refused".into()),
            network: Part::Down("no podCIDR yet".into()),
            ..healthy()
        };
        let status = status(&health, &NodeStatus::default(), 1000);
        let ready = condition_of(&status, "Ready").unwrap();
        assert_eq!(ready.status, "False");
        assert_eq!(ready.reason.as_deref(), Some("KubeletNotReady"));
        assert_eq!(
            ready.message.as_deref(),
            Some(
                "container runtime is not ready: connection refused; pod network is not ready: no podCIDR yet"
            )
        );
    }

    #[test]
    fn a_node_that_shuts_down_is_not_ready() {
        let health = Health {
            is_shutting_down: true,
            ..healthy()
        };
        let status = status(&health, &NodeStatus::default(), 1000);
        let ready = condition_of(&status, "Ready").unwrap();
        let told = (
            ready.status.as_str(),
            ready.reason.as_deref(),
            ready.message.as_deref(),
        );
        let wanted = (
            "False",
            Some("KubeletNotReady"),
            Some("node is shutting down"),
        );
        assert_eq!(told, wanted);
    }

    #[test]
    fn shortage_is_told() {
        let short = Health {
            pressures: Pressures {
                memory: true,
                disk: true,
                pid: true,
            },
            ..healthy()
        };
        assert_eq!(
            told(&status(&short, &NodeStatus::default(), 1000))[1..],
            [
                "MemoryPressure True KubeletHasInsufficientMemory",
                "DiskPressure True KubeletHasDiskPressure",
                "PIDPressure True KubeletHasInsufficientPID",
            ]
        );
    }

    #[test]
    fn a_transition_is_dated_when_it_happens_and_not_again() {
        let first = status(&healthy(), &NodeStatus::default(), 1000);
        let later = status(&healthy(), &first, 2000);
        let ready = condition_of(&later, "Ready").unwrap();
        assert_eq!(ready.last_transition_time.as_ref().unwrap().0, at(1000));
        assert_eq!(ready.last_heartbeat_time.as_ref().unwrap().0, at(2000));

        let down = Health {
            network: Part::Down("gone".into()),
            ..healthy()
        };
        let changed = status(&down, &later, 3000);
        let ready = condition_of(&changed, "Ready").unwrap();
        assert_eq!(ready.last_transition_time.as_ref().unwrap().0, at(3000));
    }

    #[test]
    fn only_a_change_or_time_causes_a_write() {
        let first = status(&healthy(), &NodeStatus::default(), 1000);
        assert!(needs_write(&NodeStatus::default(), &first, at(1000)));
        let soon = status(&healthy(), &first, 1010);
        assert!(!needs_write(&first, &soon, at(1010)));
        let late = status(&healthy(), &first, 1300);
        assert!(needs_write(&first, &late, at(1300)));
        let down = Health {
            runtime: Part::Down("gone".into()),
            ..healthy()
        };
        let changed = status(&down, &first, 1010);
        assert!(needs_write(&first, &changed, at(1010)));
        // The node lifecycle controller takes a silent node for lost; it has to be told otherwise.
        let mut lost = first.clone();
        for condition in lost.conditions.iter_mut().flatten() {
            condition.status = "Unknown".into();
        }
        assert!(needs_write(&lost, &soon, at(1010)));
    }

    #[test]
    fn the_largest_images_are_told() {
        let image = |n: i64| Image {
            names: vec![format!("image-{n}")],
            size_bytes: n,
        };
        let health = Health {
            images: (0..60).map(image).collect(),
            ..healthy()
        };
        let status = status(&health, &NodeStatus::default(), 1000);
        let images = status.images.unwrap();
        assert_eq!(images.len(), 50);
        assert_eq!(images[0].size_bytes, Some(59));
    }
}
