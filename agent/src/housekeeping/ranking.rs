//! Which pod has to go when the node is short of something, and what people are told. Pure.

use std::cmp::{Ordering, Reverse};
use std::sync::Arc;

use super::eviction::{Observation, Threshold};
use super::signal::{Signal, quantity};
use crate::pod::spec::{PodView, request};

/// What a pod uses. What could not be read is `None`.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    pub pod: Arc<PodView>,
    /// The working set, in bytes.
    pub memory: Option<u64>,
    /// On the file system in question, in bytes.
    pub disk: Option<u64>,
    pub inodes: Option<u64>,
    pub processes: Option<u64>,
    pub containers: Vec<ContainerUse>,
}

/// What one of its containers uses, in bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerUse {
    pub name: String,
    pub memory: Option<u64>,
    /// Its writable layer and its logs.
    pub disk: Option<u64>,
}

impl Candidate {
    fn used(&self, signal: Signal) -> Option<u64> {
        match signal {
            Signal::MemoryAvailable => self.memory,
            Signal::NodefsAvailable | Signal::ImagefsAvailable => self.disk,
            Signal::NodefsInodesFree | Signal::ImagefsInodesFree => self.inodes,
            Signal::PidAvailable => self.processes,
        }
    }
}

/// Orders the pods that may be evicted, the first to go first: those that use more than they asked for, then those of lower
/// priority, then those that are the farthest above what they asked for. Nobody asks for processes or inodes; as upstream, the
/// first rule is then left out for processes.
pub fn rank(signal: Signal, mut pods: Vec<Candidate>) -> Vec<Candidate> {
    pods.retain(|candidate| !candidate.pod.is_critical());
    pods.sort_by(|a, b| compare(signal, a, b));
    pods
}

fn compare(signal: Signal, a: &Candidate, b: &Candidate) -> Ordering {
    let asked = |candidate: &Candidate| candidate.pod.requests(signal.resource()) as u64;
    let key = |candidate: &Candidate| {
        let used = candidate.used(signal);
        let exceeds = used.is_none_or(|used| used > asked(candidate));
        let excess = i128::from(used.unwrap_or(0)) - i128::from(asked(candidate));
        // Of which nothing is known goes before those of which something is.
        let unknown = used.is_none();
        let first = exceeds && signal != Signal::PidAvailable;
        (
            Reverse(first),
            candidate.pod.priority(),
            Reverse(unknown),
            Reverse(excess),
        )
    };
    key(a).cmp(&key(b)).then_with(|| a.pod.id.cmp(&b.pod.id))
}

/// What the pod's status says of its eviction, in upstream's words.
pub fn message(threshold: &Threshold, seen: Option<Observation>, candidate: &Candidate) -> String {
    let resource = threshold.signal.resource();
    let mut text = format!("The node was low on resource: {resource}. ");
    if let Some(seen) = seen {
        text += &format!(
            "Threshold quantity: {}, available: {}. ",
            quantity(threshold.amount.of(seen.capacity)),
            quantity(seen.available)
        );
    }
    for container in &candidate.containers {
        let used = match resource {
            "memory" => container.memory,
            "ephemeral-storage" => container.disk,
            _ => None,
        };
        let mut specs = candidate.pod.all_containers();
        let spec = specs.find(|spec| spec.name == container.name);
        let (Some(used), Some(spec)) = (used, spec) else {
            continue;
        };
        let asked = request(spec, resource).unwrap_or(0.0) as u64;
        if used > asked {
            text += &format!(
                "Container {} was using {}, request is {}, has larger consumption of {resource}. ",
                container.name,
                quantity(used),
                quantity(asked)
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::signal::Amount;
    use super::*;

    fn candidate(name: &str, priority: i32, asked: u64, used: Option<u64>) -> Candidate {
        let requests = json!({"memory": asked.to_string(), "ephemeral-storage": asked.to_string()});
        let object = json!({
            "metadata": {"name": name, "namespace": "d", "uid": name},
            "spec": {"priority": priority, "containers": [{"name": "c", "resources": {"requests": requests}}]},
        });
        Candidate {
            pod: Arc::new(PodView::new(serde_json::from_value(object).unwrap()).unwrap()),
            memory: used,
            disk: used,
            inodes: used,
            processes: used,
            containers: vec![ContainerUse {
                name: "c".into(),
                memory: used,
                disk: used,
            }],
        }
    }

    fn order(signal: Signal, pods: Vec<Candidate>) -> Vec<String> {
        let ranked = rank(signal, pods);
        ranked.iter().map(|it| it.pod.id.name.clone()).collect()
    }

    #[test]
    fn who_uses_more_than_asked_goes_first_then_priority_then_by_how_much() {
        let pods = || {
            vec![
                candidate("within", -5, 100, Some(90)),
                candidate("important", 1000, 0, Some(900)),
                candidate("large", 0, 0, Some(500)),
                candidate("small", 0, 400, Some(500)),
                candidate("unknown", 0, 0, None),
                candidate("critical", 2_000_000_000, 0, Some(9000)),
            ]
        };
        let exceeding_first = ["unknown", "large", "small", "important", "within"];
        assert_eq!(order(Signal::MemoryAvailable, pods()), exceeding_first);
        assert_eq!(order(Signal::NodefsAvailable, pods()), exceeding_first);
        assert_eq!(
            order(Signal::PidAvailable, pods()),
            ["within", "unknown", "large", "small", "important"]
        );
    }

    #[test]
    fn the_message_is_upstreams() {
        let threshold = Threshold {
            signal: Signal::MemoryAvailable,
            amount: Amount::Absolute(100 << 20),
            grace: SignedDuration::ZERO,
            is_hard: true,
            min_reclaim: None,
        };
        let seen = Observation {
            available: 50 << 20,
            capacity: 1 << 30,
        };
        let pod = candidate("p", 0, 0, Some(200 << 20));
        assert_eq!(
            message(&threshold, Some(seen), &pod),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. \
             Container c was using 200Mi, request is 0, has larger consumption of memory. "
        );
        let modest = candidate("p", 0, 1 << 30, Some(200 << 20));
        assert_eq!(
            message(&threshold, None, &modest),
            "The node was low on resource: memory. "
        );
    }

    proptest! {
        #[test]
        fn nobody_goes_before_one_that_is_worse_in_every_respect(
            pods in prop::collection::vec((0..3i32, 0..100u64, 0..100u64), 2..8),
        ) {
            let pods: Vec<_> = pods.into_iter().enumerate()
                .map(|(n, (priority, asked, used))| candidate(&n.to_string(), priority, asked, Some(used)))
                .collect();
            let facts = |it: &Candidate| {
                let asked = it.pod.requests("memory") as i64;
                let used = it.memory.unwrap() as i64;
                (used > asked, -it.pod.priority(), used - asked)
            };
            for pair in rank(Signal::MemoryAvailable, pods).windows(2) {
                let (first, second) = (facts(&pair[0]), facts(&pair[1]));
                prop_assert!(first >= second, "{first:?} {second:?}");
            }
        }
    }
}
