//! Who has to give way for a pod that fits nowhere. No I/O.
//!
//! On each node where it would help, the pods of lower priority are taken away in thought, and put back one after the other,
//! the most important first, as long as the pod still fits. Of the nodes the one is taken where what is left to go is missed
//! least.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::jiff::Timestamp;
use kube::core::{Selector, SelectorExt as _};

use super::choose::explain;
use super::filter::{is_out_of_question, refusals};
use super::neighbours::Neighbours;
use super::snapshot::{PodInfo, Snapshot};
use super::spread::Spreading;

/// What a disruption budget says.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    namespace: String,
    selector: Selector,
    /// How many more of its pods may go.
    allowed: i32,
    /// Pods that are about to go, and counted.
    disrupted: BTreeSet<String>,
}

impl Budget {
    /// `None` when it selects no pods.
    pub(super) fn of(budget: &PodDisruptionBudget) -> Option<Self> {
        let selector = budget.spec.as_ref()?.selector.clone()?;
        let selector: Selector = selector.try_into().ok()?;
        let status = budget.status.clone().unwrap_or_default();
        let selects = !selector.selects_all();
        selects.then(|| Self {
            namespace: budget.metadata.namespace.clone().unwrap_or_default(),
            selector,
            allowed: status.disruptions_allowed,
            disrupted: status
                .disrupted_pods
                .unwrap_or_default()
                .into_keys()
                .collect(),
        })
    }

    fn guards(&self, pod: &PodInfo) -> bool {
        self.namespace == pod.namespace
            && !self.disrupted.contains(&pod.name)
            && self.selector.matches(&pod.labels)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Preemption {
    /// These give way on the node.
    On { node: String, victims: Vec<PodInfo> },
    /// Those that gave way are not gone yet; as a person reads it.
    Awaited(String),
    /// Nobody does; why, as a person reads it.
    None(String),
}

/// On no more nodes than this is looked for pods that could give way: each costs a look at all neighbours of the pod's. As
/// few as upstream looks at.
const NODES: usize = 100;

/// Pods that would go from a node.
struct Candidate {
    node: String,
    victims: Vec<PodInfo>,
    /// How many of them a budget would keep.
    violations: usize,
}

impl Candidate {
    /// The least is missed least: as upstream, by the budgets it breaks, the priorities of what goes, how many go, and for
    /// how short they were there.
    fn loss(&self) -> (usize, i32, i64, usize, Reverse<Timestamp>, &str) {
        let priorities = self.victims.iter().map(|pod| pod.priority);
        let highest = priorities.clone().max().unwrap_or(i32::MIN);
        let sum = priorities
            .map(|it| i64::from(it) - i64::from(i32::MIN))
            .sum();
        let important = self.victims.iter().filter(|pod| pod.priority == highest);
        let since = important.map(started).min().unwrap_or(Timestamp::MAX);
        (
            self.violations,
            highest,
            sum,
            self.victims.len(),
            Reverse(since),
            &self.node,
        )
    }
}

fn started(pod: &PodInfo) -> Timestamp {
    pod.started.unwrap_or(Timestamp::MAX)
}

/// Whom the pod drives away, given that it fits nowhere. `nominated` is the node from which it has driven others already.
/// The snapshot is worked on, and is as it was afterwards: a copy of a large cluster for each pod that waits is too much.
pub(super) fn preempt(
    pod: &PodInfo,
    nominated: Option<&str>,
    snapshot: &mut Snapshot,
    budgets: &[Budget],
) -> Preemption {
    if !pod.may_preempt {
        return Preemption::None("not eligible due to preemptionPolicy=Never.".to_owned());
    }
    let lower = |other: &PodInfo| other.priority < pod.priority;
    let is_awaited = |(node, other): (&super::snapshot::NodeInfo, &PodInfo)| {
        Some(node.name.as_str()) == nominated && lower(other) && other.is_terminating
    };
    if snapshot.placed().any(is_awaited) {
        let why = "not eligible due to a terminating pod on the nominated node.";
        return Preemption::Awaited(why.to_owned());
    }
    let mut inferior: BTreeMap<String, Vec<PodInfo>> = BTreeMap::new();
    for (node, other) in snapshot.placed().filter(|(_, other)| lower(other)) {
        let pods = inferior.entry(node.name.clone()).or_default();
        pods.push(other.clone());
    }
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut candidates = Vec::new();
    let mut tried = 0;
    for name in snapshot.node_names() {
        let node = snapshot.node(&name);
        let out_of_question = node.is_none_or(|node| is_out_of_question(pod, node));
        let victims = match inferior.remove(&name) {
            Some(pods) if !out_of_question && tried < NODES => {
                tried += 1;
                candidate(pod, &name, pods, snapshot, budgets)
            }
            _ => None,
        };
        let why = match out_of_question {
            true => "Preemption is not helpful for scheduling",
            false => "No preemption victims found for incoming pod",
        };
        match victims {
            Some(candidate) => candidates.push(candidate),
            None => *reasons.entry(why.to_owned()).or_default() += 1,
        }
    }
    let best = candidates
        .into_iter()
        .min_by(|one, other| one.loss().cmp(&other.loss()));
    match best {
        Some(best) => Preemption::On {
            node: best.node,
            victims: best.victims,
        },
        None => Preemption::None(explain(snapshot.nodes().count(), &reasons)),
    }
}

/// Who of `inferior`, which are all on the node, has to go; leaves the snapshot as it was.
fn candidate(
    pod: &PodInfo,
    node: &str,
    mut inferior: Vec<PodInfo>,
    snapshot: &mut Snapshot,
    budgets: &[Budget],
) -> Option<Candidate> {
    for other in &inferior {
        snapshot.remove_pod(&other.uid);
    }
    let mut victims = Vec::new();
    let mut violations = 0;
    let fits_without_all = fits(pod, node, snapshot);
    if fits_without_all {
        inferior.sort_by_key(|other| (Reverse(other.priority), started(other), other.uid.clone()));
        let guarded = guarded(&inferior, budgets);
        // Whom a budget keeps is put back first.
        inferior.sort_by_key(|other| !guarded.contains(&other.uid));
        for other in &inferior {
            snapshot.place(other.clone(), node);
            if !fits(pod, node, snapshot) {
                snapshot.remove_pod(&other.uid);
                violations += usize::from(guarded.contains(&other.uid));
                victims.push(other.clone());
            }
        }
    }
    for other in inferior {
        snapshot.place(other, node);
    }
    (fits_without_all && !victims.is_empty()).then(|| Candidate {
        node: node.to_owned(),
        victims,
        violations,
    })
}

fn fits(pod: &PodInfo, node: &str, snapshot: &Snapshot) -> bool {
    let spreading = Spreading::of(pod, snapshot);
    let neighbours = Neighbours::of(pod, snapshot);
    snapshot
        .node(node)
        .is_some_and(|node| refusals(pod, node, &spreading, &neighbours).is_empty())
}

/// The pods that budgets would keep, if they went in this order.
fn guarded(pods: &[PodInfo], budgets: &[Budget]) -> BTreeSet<String> {
    let mut allowed: Vec<i32> = budgets.iter().map(|budget| budget.allowed).collect();
    let mut kept = BTreeSet::new();
    for pod in pods {
        for (budget, allowed) in budgets.iter().zip(&mut allowed) {
            if budget.guards(pod) {
                *allowed -= 1;
                if *allowed < 0 {
                    kept.insert(pod.uid.clone());
                }
            }
        }
    }
    kept
}
