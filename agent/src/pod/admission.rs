//! Whether the node has what a new pod asks for. The scheduler sees to that; not every pod is its. Pure.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::spec::{PodView, amount};

/// What is counted, the reason of a pod that finds too little of it, and in how many parts of the unit people are told.
const RESOURCES: [(&str, &str, f64); 5] = [
    ("cpu", "OutOfcpu", 1000.0),
    ("memory", "OutOfmemory", 1.0),
    ("ephemeral-storage", "OutOfephemeral-storage", 1.0),
    ("hugepages-2Mi", "OutOfhugepages-2Mi", 1.0),
    ("hugepages-1Gi", "OutOfhugepages-1Gi", 1.0),
];
const PODS: (&str, &str) = ("pods", "OutOfpods");

/// Whether this is the reason of a pod for which the node had too little.
pub(super) fn is_shortage(reason: &str) -> bool {
    reason == PODS.1 || RESOURCES.iter().any(|(_, known, _)| *known == reason)
}

/// What the pods of a node ask for together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Taken {
    pods: u32,
    amounts: [f64; RESOURCES.len()],
}

impl Taken {
    pub(super) fn add(&mut self, pod: &PodView) {
        self.pods += 1;
        for ((name, ..), sum) in RESOURCES.iter().zip(&mut self.amounts) {
            *sum += pod.requests(name);
        }
    }

    /// What the node has too little of for one pod more: the reason, and upstream's words.
    pub(super) fn shortage(
        &self,
        pod: &PodView,
        allocatable: &BTreeMap<String, Quantity>,
    ) -> Option<(&'static str, String)> {
        let capacity = |name: &str| allocatable.get(name).and_then(amount);
        let told = |name, asked: f64, used: f64, capacity: f64| {
            format!(
                "Node didn't have enough resource: {name}, requested: {asked:.0}, used: {used:.0}, capacity: {capacity:.0}"
            )
        };
        let (name, reason) = PODS;
        let pods = f64::from(self.pods);
        if let Some(most) = capacity(name).filter(|most| pods + 1.0 > *most) {
            return Some((reason, told(name, 1.0, pods, most)));
        }
        let all = RESOURCES.iter().zip(self.amounts);
        all.filter_map(|((name, reason, unit), used)| {
            let (asked, most) = (pod.requests(name), capacity(name)?);
            let lacks = asked > 0.0 && asked + used > most;
            lacks.then(|| (*reason, told(name, asked * unit, used * unit, most * unit)))
        })
        .next()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(requests: serde_json::Value) -> PodView {
        let object = json!({
            "metadata": {"name": "p", "namespace": "d", "uid": "u"},
            "spec": {"containers": [{"name": "c", "resources": {"requests": requests}}]},
        });
        PodView::new(serde_json::from_value(object).unwrap()).unwrap()
    }

    #[test]
    fn a_pod_is_taken_while_the_node_has_what_it_asks_for() {
        let amounts = [("cpu", "2"), ("memory", "1Gi"), ("pods", "3")];
        let allocatable = amounts.map(|(name, text)| (name.to_owned(), Quantity(text.to_owned())));
        let allocatable = BTreeMap::from(allocatable);
        let mut taken = Taken::default();
        let one = pod(json!({"cpu": "1500m", "memory": "512Mi"}));
        assert_eq!(taken.shortage(&one, &allocatable), None);
        taken.add(&one);
        let half = pod(json!({"cpu": "500m", "memory": "512Mi", "ephemeral-storage": "1Ti"}));
        assert_eq!(taken.shortage(&half, &allocatable), None, "it just fits");
        assert_eq!(
            taken.shortage(&one, &allocatable),
            Some((
                "OutOfcpu",
                "Node didn't have enough resource: cpu, requested: 1500, used: 1500, capacity: 2000".into()
            ))
        );
        let mut heavy = pod(json!({"cpu": "300m"}));
        let overhead = json!({"cpu": "300m"});
        heavy.object.spec.as_mut().unwrap().overhead = serde_json::from_value(overhead).unwrap();
        let (reason, words) = taken.shortage(&heavy, &allocatable).unwrap();
        assert_eq!(reason, "OutOfcpu", "what its class adds counts");
        assert!(words.contains("requested: 600, used: 1500, "), "{words}");
        let (reason, _) = taken
            .shortage(&pod(json!({"memory": "513Mi"})), &allocatable)
            .unwrap();
        assert_eq!(reason, "OutOfmemory");
        taken.add(&half);
        // Who asks for nothing fits wherever a pod more does.
        let modest = pod(json!({}));
        assert_eq!(taken.shortage(&modest, &allocatable), None);
        taken.add(&modest);
        let (reason, words) = taken.shortage(&modest, &allocatable).unwrap();
        assert!(is_shortage(reason) && words.ends_with("requested: 1, used: 3, capacity: 3"));
        assert!(!is_shortage("Evicted"));
    }
}
