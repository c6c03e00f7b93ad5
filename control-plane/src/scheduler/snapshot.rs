//! The cluster as the scheduler sees it: what each node has, and what the pods on it took. Only the fields that decide.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Container, ContainerStatus, Namespace, Node, NodeAffinity, Pod, PodSpec, PodStatus,
    ResourceRequirements, Taint, Toleration,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::jiff::Timestamp;

use super::quantity::{milli, whole};
use super::terms::{Labels, Namespaces, SpreadRule, Terms};
use crate::resources::pod::requests::peak;
use crate::resources::pod::whole;

/// Amounts by resource name: `cpu` in thousandths, everything else in whole units.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Resources(pub(super) BTreeMap<String, i64>);

impl Resources {
    fn of(quantities: Option<&BTreeMap<String, Quantity>>) -> Self {
        let amounts = quantities.into_iter().flatten();
        // Validation keeps out what is no quantity.
        Self(
            amounts
                .filter_map(|(name, quantity)| Some((name.clone(), amount(name, quantity)?)))
                .collect(),
        )
    }

    pub(super) fn get(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let mine = self.0.entry(name.clone()).or_default();
            *mine = mine.saturating_add(*amount);
        }
    }

    pub(super) fn subtract(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let mine = self.0.entry(name.clone()).or_default();
            *mine = mine.saturating_sub(*amount);
        }
    }

    fn max(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let mine = self.0.entry(name.clone()).or_default();
            *mine = (*mine).max(*amount);
        }
    }
}

fn amount(name: &str, quantity: &Quantity) -> Option<i64> {
    if name == "cpu" {
        milli(quantity)
    } else {
        whole(quantity)
    }
}

/// A port that a pod takes on the node itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HostPort {
    pub(super) ip: String,
    pub(super) port: i32,
    pub(super) protocol: String,
}

impl HostPort {
    /// Two ports clash on equal or unspecified addresses.
    pub(super) fn clashes(&self, other: &Self) -> bool {
        let any = |ip: &str| matches!(ip, "" | "0.0.0.0" | "::");
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || any(&self.ip) || any(&other.ip))
    }
}

/// Where a pod may go and would like to go.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Wishes {
    pub(super) node_selector: BTreeMap<String, String>,
    pub(super) node_affinity: Option<NodeAffinity>,
    pub(super) tolerations: Vec<Toleration>,
    pub(super) spread: Vec<SpreadRule>,
}

impl Wishes {
    /// What the specification says alone.
    pub(super) fn of(spec: &PodSpec) -> Self {
        let affinity = spec.affinity.as_ref();
        Self {
            node_selector: spec.node_selector.clone().unwrap_or_default(),
            node_affinity: affinity.and_then(|affinity| affinity.node_affinity.clone()),
            tolerations: spec.tolerations.clone().unwrap_or_default(),
            spread: Vec::new(),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct PodInfo {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) labels: Labels,
    /// Asked to end: it is not spread among any more.
    pub(super) is_terminating: bool,
    pub(super) requests: Resources,
    pub(super) host_ports: Vec<HostPort>,
    /// Pods of one group are spread: those of one owner, or else those with the same labels.
    pub(super) group: u64,
    pub(super) priority: i32,
    /// Whether pods of lower priority may be driven away for it.
    pub(super) may_preempt: bool,
    /// When its node took it up.
    pub(super) started: Option<Timestamp>,
    /// Only for pods that wait; a bound one has no wishes left.
    pub(super) wishes: Option<Arc<Wishes>>,
    /// What it says about its neighbours, as long as it is there.
    pub(super) terms: Option<Arc<Terms>>,
}

impl PodInfo {
    pub(super) fn of(pod: &Pod) -> Self {
        let meta = &pod.metadata;
        let none = PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&none);
        let is_bound = spec
            .node_name
            .as_deref()
            .is_some_and(|node| !node.is_empty());
        let status = pod.status.as_ref();
        let started = status.and_then(|status| status.start_time.as_ref());
        let wishes = || {
            Arc::new(Wishes {
                spread: SpreadRule::all(pod),
                ..Wishes::of(spec)
            })
        };
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            labels: meta.labels.clone().unwrap_or_default(),
            is_terminating: meta.deletion_timestamp.is_some(),
            requests: requests(spec, status),
            host_ports: host_ports(spec),
            group: group(pod),
            priority: spec.priority.unwrap_or_default(),
            may_preempt: spec.preemption_policy.as_deref() != Some("Never"),
            started: started.map(|time| time.0),
            wishes: (!is_bound).then(wishes),
            terms: Terms::of(pod).map(Arc::new),
        }
    }

    /// Whether it depends on other pods where the pod may go.
    pub(super) fn minds_others(&self) -> bool {
        let spreads = self.wishes.as_ref().is_some_and(|it| !it.spread.is_empty());
        self.terms.is_some() || spreads
    }
}

fn group(pod: &Pod) -> u64 {
    let mut hasher = DefaultHasher::new();
    let owner = pod
        .metadata
        .owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true));
    match owner {
        Some(owner) => owner.uid.hash(&mut hasher),
        None => (&pod.metadata.namespace, &pod.metadata.labels).hash(&mut hasher),
    }
    hasher.finish()
}

/// The most that the pod takes at any time. A container that is being resized takes what it has until it has less (KEP-1287).
fn requests(spec: &PodSpec, status: Option<&PodStatus>) -> Resources {
    let conditions = status.and_then(|status| status.conditions.as_ref());
    // The node will never give what is asked for.
    let is_infeasible = conditions.into_iter().flatten().any(|condition| {
        condition.type_ == "PodResizePending"
            && condition.status == "True"
            && condition.reason.as_deref() == Some("Infeasible")
    });
    let asked = |resources: Option<&ResourceRequirements>| {
        Resources::of(resources.and_then(|resources| resources.requests.as_ref()))
    };
    let of = |container: &Container| {
        let mut most = asked(container.resources.as_ref());
        let known = status.and_then(|status| status_of(status, &container.name));
        let given = known.filter(|it| it.allocated_resources.is_some() || it.resources.is_some());
        if let Some(given) = given {
            if is_infeasible {
                most = Resources::default();
            }
            most.max(&Resources::of(given.allocated_resources.as_ref()));
            most.max(&asked(given.resources.as_ref()));
        }
        most
    };
    let mut total = peak(spec, of, Resources::add, Resources::max);
    total
        .0
        .extend(Resources::of(Some(&whole::requests(spec))).0);
    total.add(&Resources::of(spec.overhead.as_ref()));
    total
}

fn status_of<'a>(status: &'a PodStatus, container: &str) -> Option<&'a ContainerStatus> {
    let init = status.init_container_statuses.iter().flatten();
    let mut all = init.chain(status.container_statuses.iter().flatten());
    all.find(|it| it.name == container)
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let on_host = spec.host_network == Some(true);
    let init = spec.init_containers.iter().flatten();
    let sidecars = init.filter(|it| it.restart_policy.as_deref() == Some("Always"));
    let ports = sidecars
        .chain(&spec.containers)
        .flat_map(|container| container.ports.iter().flatten());
    let ports = ports.filter_map(|port| {
        let number = port
            .host_port
            .or(on_host.then_some(port.container_port))
            .filter(|number| *number > 0)?;
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
        Some(HostPort {
            ip: port.host_ip.clone().unwrap_or_default(),
            port: number,
            protocol,
        })
    });
    ports.collect()
}

#[derive(Clone, Debug, Default)]
pub(super) struct NodeInfo {
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) taints: Vec<Taint>,
    pub(super) unschedulable: bool,
    pub(super) ready: bool,
    pub(super) allocatable: Resources,
    pub(super) used: Resources,
    pub(super) pods: i64,
    pub(super) host_ports: Vec<HostPort>,
    /// How many pods of each group are here.
    pub(super) groups: HashMap<u64, i64>,
}

impl NodeInfo {
    /// A node without any pod.
    pub(super) fn of(node: &Node) -> Self {
        let mut info = Self::default();
        info.describe(node);
        info
    }

    fn describe(&mut self, node: &Node) {
        let spec = node.spec.clone().unwrap_or_default();
        let status = node.status.as_ref();
        let conditions = status.and_then(|status| status.conditions.as_ref());
        self.name = node.metadata.name.clone().unwrap_or_default();
        self.labels = node.metadata.labels.clone().unwrap_or_default();
        self.taints = spec.taints.unwrap_or_default();
        self.unschedulable = spec.unschedulable.unwrap_or_default();
        self.ready = conditions
            .into_iter()
            .flatten()
            .any(|it| it.type_ == "Ready" && it.status == "True");
        let capacity =
            status.and_then(|status| status.allocatable.as_ref().or(status.capacity.as_ref()));
        self.allocatable = Resources::of(capacity);
    }

    fn take(&mut self, pod: &PodInfo) {
        self.used.add(&pod.requests);
        self.pods += 1;
        self.host_ports.extend(pod.host_ports.iter().cloned());
        *self.groups.entry(pod.group).or_default() += 1;
    }

    fn give_back(&mut self, pod: &PodInfo) {
        self.used.subtract(&pod.requests);
        self.pods -= 1;
        for port in &pod.host_ports {
            if let Some(at) = self.host_ports.iter().position(|taken| taken == port) {
                self.host_ports.swap_remove(at);
            }
        }
        if let Some(count) = self.groups.get_mut(&pod.group) {
            *count -= 1;
            if *count == 0 {
                self.groups.remove(&pod.group);
            }
        }
    }
}

/// All nodes with what is on them. A pod counts from the moment a node was chosen for it.
#[derive(Clone, Debug, Default)]
pub(super) struct Snapshot {
    nodes: BTreeMap<String, NodeInfo>,
    /// Pods on a node, by uid.
    placed: HashMap<String, (String, PodInfo)>,
    /// Those of them that say something about their neighbours.
    with_terms: HashSet<String>,
    namespaces: Namespaces,
}

impl Snapshot {
    pub(super) fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.nodes.values()
    }

    pub(super) fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.nodes.get(name)
    }

    pub(super) fn set_node(&mut self, node: &Node) {
        let name = node.metadata.name.clone().unwrap_or_default();
        let is_new = !self.nodes.contains_key(&name);
        let info = self.nodes.entry(name.clone()).or_default();
        info.describe(node);
        if is_new {
            self.placed
                .values()
                .filter(|(on, _)| *on == name)
                .for_each(|(_, pod)| info.take(pod));
        }
    }

    pub(super) fn remove_node(&mut self, name: &str) {
        self.nodes.remove(name);
    }

    /// Says whether other pods see a difference.
    pub(super) fn place(&mut self, pod: PodInfo, node: &str) -> bool {
        let is_news = self.placed.get(&pod.uid).is_none_or(|(on, was)| {
            on != node || was.labels != pod.labels || was.is_terminating != pod.is_terminating
        });
        self.remove_pod(&pod.uid);
        if let Some(info) = self.nodes.get_mut(node) {
            info.take(&pod);
        }
        if pod.terms.is_some() {
            self.with_terms.insert(pod.uid.clone());
        }
        self.placed.insert(pod.uid.clone(), (node.to_owned(), pod));
        is_news
    }

    /// Says whether the pod was on a node.
    pub(super) fn remove_pod(&mut self, uid: &str) -> bool {
        let Some((node, pod)) = self.placed.remove(uid) else {
            return false;
        };
        self.with_terms.remove(uid);
        if let Some(info) = self.nodes.get_mut(&node) {
            info.give_back(&pod);
        }
        true
    }

    /// The pods on nodes that are there.
    pub(super) fn placed(&self) -> impl Iterator<Item = (&NodeInfo, &PodInfo)> {
        let placed = self.placed.values();
        placed.filter_map(|(node, pod)| Some((self.nodes.get(node)?, pod)))
    }

    /// Those of them that say something about their neighbours.
    pub(super) fn placed_with_terms(&self) -> impl Iterator<Item = (&NodeInfo, &PodInfo)> {
        let placed = self
            .with_terms
            .iter()
            .filter_map(|uid| self.placed.get(uid));
        placed.filter_map(|(node, pod)| Some((self.nodes.get(node)?, pod)))
    }

    pub(super) fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    pub(super) fn set_namespace(&mut self, namespace: &Namespace) {
        let meta = &namespace.metadata;
        let name = meta.name.clone().unwrap_or_default();
        self.namespaces
            .insert(name, meta.labels.clone().unwrap_or_default());
    }

    pub(super) fn retain_namespaces(&mut self, is_there: impl Fn(&str) -> bool) {
        self.namespaces.retain(|name, _| is_there(name));
    }

    pub(super) fn is_placed(&self, uid: &str) -> bool {
        self.placed.contains_key(uid)
    }

    pub(super) fn placed_uids(&self) -> Vec<String> {
        self.placed.keys().cloned().collect()
    }

    pub(super) fn node_names(&self) -> Vec<String> {
        self.nodes.keys().cloned().collect()
    }
}
