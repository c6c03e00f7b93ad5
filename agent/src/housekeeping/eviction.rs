//! When the node is short of something, and what is to be done about it. Pure.
//!
//! A threshold is met while less is available than it says. Once met, it stays so until its minimum reclaim is available
//! beyond it. It is acted on when it was met for its grace period. The node's condition holds as long as one of its
//! thresholds is met, and for the transition period after that, so that it does not come and go.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Toleration;

use super::signal::{Amount, BySignal, GoDuration, Pressure, Signal};
use crate::pod::spec::{PodView, QosClass};

/// How much there is of something, and how much of that is available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    pub available: u64,
    pub capacity: u64,
}

/// What was seen of each signal; of one that could not be read, nothing.
pub type Observations = BTreeMap<Signal, Observation>;

/// One threshold.
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    pub signal: Signal,
    pub amount: Amount,
    /// How long it has to be met before it is acted on; zero for a hard one.
    pub grace: SignedDuration,
    /// A soft one lets pods end by themselves.
    pub is_hard: bool,
    /// How much more than `amount` has to be available for it to be met no more.
    pub min_reclaim: Option<Amount>,
}

impl Threshold {
    fn is_met(&self, observations: &Observations, was_met: bool) -> bool {
        let Some(seen) = observations.get(&self.signal) else {
            // What could not be looked at is as before.
            return was_met;
        };
        let mut wanted = self.amount.of(seen.capacity);
        if let Some(more) = self.min_reclaim.as_ref().filter(|_| was_met) {
            wanted = wanted.saturating_add(more.of(seen.capacity));
        }
        seen.available < wanted
    }
}

/// What flags say of thresholds, in a kubelet's words.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    pub thresholds: Vec<Threshold>,
    /// The longest that a pod may take to end after a soft threshold; none, where pods have their own time.
    pub max_pod_grace: SignedDuration,
    pub transition: SignedDuration,
}

impl Rules {
    /// All thresholds in the order in which they are acted on. A soft one without a grace period is refused.
    pub fn thresholds(
        hard: &BySignal<Amount>,
        soft: &BySignal<Amount>,
        soft_graces: &BySignal<GoDuration>,
        reclaims: &BySignal<Amount>,
    ) -> Result<Vec<Threshold>, String> {
        let mut all = Vec::new();
        for (&signal, amount) in &hard.0 {
            all.push(Threshold {
                signal,
                amount: amount.clone(),
                grace: SignedDuration::ZERO,
                is_hard: true,
                min_reclaim: reclaims.get(signal),
            });
        }
        for (&signal, amount) in &soft.0 {
            let grace = soft_graces.get(signal).ok_or_else(|| {
                format!(
                    "grace period must be specified for the soft eviction threshold {}",
                    signal.name()
                )
            })?;
            all.push(Threshold {
                signal,
                amount: amount.clone(),
                grace: grace.0,
                is_hard: false,
                min_reclaim: reclaims.get(signal),
            });
        }
        // Of two that are due the more urgent signal goes first, and of one signal the hard one.
        all.sort_by_key(|threshold| (threshold.signal, !threshold.is_hard));
        Ok(all)
    }
}

/// What is remembered from one look to the next.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    /// Since when each threshold is met, by its place among the rules.
    met: BTreeMap<usize, Timestamp>,
    /// When each condition was last seen to hold.
    pressed: BTreeMap<Pressure, Timestamp>,
}

/// The node's conditions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressures {
    pub memory: bool,
    pub disk: bool,
    pub pid: bool,
}

impl Pressures {
    /// The conditions that hold.
    fn names(self) -> Vec<&'static str> {
        let all = [
            (self.memory, "MemoryPressure"),
            (self.disk, "DiskPressure"),
            (self.pid, "PIDPressure"),
        ];
        all.iter()
            .filter(|(holds, _)| *holds)
            .map(|(_, name)| *name)
            .collect()
    }

    /// Why the node cannot have a new pod now, if it cannot. Short of nothing but memory it takes those that asked for some.
    pub fn refusal(self, pod: &PodView) -> Option<String> {
        let names = self.names();
        if names.is_empty() || pod.is_critical() {
            return None;
        }
        if names == ["MemoryPressure"] {
            let asked = pod.qos() != QosClass::BestEffort;
            let mut tolerations = pod.spec().tolerations.iter().flatten();
            if asked || tolerations.any(tolerates_memory_pressure) {
                return None;
            }
        }
        Some(format!("The node had condition: [{}]. ", names.join(" ")))
    }
}

/// Whether it tolerates the taint that stands for the condition.
fn tolerates_memory_pressure(toleration: &Toleration) -> bool {
    let named = |field: &Option<String>, value: &str| {
        let text = field.as_deref().unwrap_or_default();
        text.is_empty() || text == value
    };
    let exists = toleration.operator.as_deref() == Some("Exists");
    let key = toleration.key.as_deref().unwrap_or_default();
    let is_this = key == "node.kubernetes.io/memory-pressure" || (key.is_empty() && exists);
    let value = toleration.value.as_deref().unwrap_or_default();
    is_this && named(&toleration.effect, "NoSchedule") && (exists || value.is_empty())
}

impl Memory {
    /// Takes in what was seen.
    pub fn look(&mut self, rules: &Rules, observations: &Observations, now: Timestamp) {
        let before = std::mem::take(&mut self.met);
        for (at, threshold) in rules.thresholds.iter().enumerate() {
            let since = before.get(&at).copied();
            if threshold.is_met(observations, since.is_some()) {
                self.met.insert(at, since.unwrap_or(now));
                self.pressed.insert(threshold.signal.pressure(), now);
            }
        }
        let recent = |at: Timestamp| at == now || now.duration_since(at) < rules.transition;
        self.pressed.retain(|_, at| recent(*at));
    }

    pub fn pressures(&self) -> Pressures {
        let holds = |pressure| self.pressed.contains_key(&pressure);
        Pressures {
            memory: holds(Pressure::Memory),
            disk: holds(Pressure::Disk),
            pid: holds(Pressure::Pid),
        }
    }

    /// The threshold to act on, if any.
    pub fn due<'a>(&self, rules: &'a Rules, now: Timestamp) -> Option<&'a Threshold> {
        self.met.iter().find_map(|(at, since)| {
            let threshold = rules.thresholds.get(*at)?;
            (now.duration_since(*since) >= threshold.grace).then_some(threshold)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::signal::{graces, reclaims, thresholds};
    use super::*;

    fn rules(hard: &str, soft: &str, grace: &str, reclaim: &str) -> Rules {
        let read = |text| thresholds(text).unwrap();
        Rules {
            thresholds: Rules::thresholds(
                &read(hard),
                &read(soft),
                &graces(grace).unwrap(),
                &reclaims(reclaim).unwrap(),
            )
            .unwrap(),
            max_pod_grace: SignedDuration::ZERO,
            transition: SignedDuration::from_secs(300),
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000_000 + seconds).unwrap()
    }

    fn seen(signal: Signal, available: u64) -> Observations {
        let capacity = 1000;
        [(
            signal,
            Observation {
                available,
                capacity,
            },
        )]
        .into()
    }

    #[test]
    fn a_hard_threshold_is_acted_on_at_once_and_its_condition_outlasts_it() {
        let rules = rules("memory.available<10%", "", "", "");
        let mut memory = Memory::default();
        let mut look = |available, second| {
            memory.look(
                &rules,
                &seen(Signal::MemoryAvailable, available),
                at(second),
            );
            let due = memory.due(&rules, at(second)).is_some();
            (due, memory.pressures().memory)
        };
        assert_eq!(look(100, 0), (false, false), "as much as that is enough");
        assert_eq!(look(99, 10), (true, true));
        assert_eq!(look(500, 20), (false, true));
        assert_eq!(look(500, 309), (false, true));
        assert_eq!(look(500, 310), (false, false));
    }

    #[test]
    fn a_soft_threshold_has_to_be_met_all_through_its_grace_period() {
        let rules = rules("", "nodefs.available<200", "nodefs.available=1m", "");
        let mut memory = Memory::default();
        let mut look = |available, second| {
            memory.look(
                &rules,
                &seen(Signal::NodefsAvailable, available),
                at(second),
            );
            assert_eq!(memory.pressures().disk, available < 200 || second > 40);
            memory.due(&rules, at(second)).is_some()
        };
        assert!(!look(100, 0));
        assert!(!look(100, 50));
        assert!(!look(300, 55), "it begins anew");
        assert!(!look(100, 60));
        assert!(!look(100, 119));
        assert!(look(100, 120));
        let missing = Rules::thresholds(
            &BySignal::default(),
            &thresholds("pid.available<1").unwrap(),
            &BySignal::default(),
            &BySignal::default(),
        );
        assert!(missing.unwrap_err().ends_with("threshold pid.available"));
    }

    #[test]
    fn more_than_the_threshold_has_to_be_reclaimed() {
        let rules = rules("imagefs.available<100", "", "", "imagefs.available=50");
        let mut memory = Memory::default();
        let mut due = |observations: &Observations| {
            memory.look(&rules, observations, at(0));
            memory.due(&rules, at(0)).is_some()
        };
        let free = |available| seen(Signal::ImagefsAvailable, available);
        assert!(!due(&free(120)));
        assert!(due(&free(90)));
        assert!(due(&free(149)));
        assert!(due(&Observations::new()), "nobody saw it get better");
        assert!(!due(&free(150)));
        assert!(!due(&free(120)));
    }

    #[test]
    fn a_node_that_is_short_takes_only_pods_that_may_come() {
        let pod = |more: serde_json::Value| {
            let mut spec = serde_json::json!({"containers": [{"name": "c"}]});
            for (field, value) in more.as_object().unwrap() {
                spec[field] = value.clone();
            }
            let metadata = serde_json::json!({"name": "p", "namespace": "d", "uid": "u"});
            let object = serde_json::json!({"metadata": metadata, "spec": spec});
            PodView::new(serde_json::from_value(object).unwrap()).unwrap()
        };
        let plain = pod(serde_json::json!({}));
        let tolerant = pod(serde_json::json!({"tolerations": [
            {"key": "node.kubernetes.io/memory-pressure", "operator": "Exists", "effect": "NoSchedule"},
        ]}));
        let burstable = pod(serde_json::json!({"containers": [
            {"name": "c", "resources": {"requests": {"memory": "1Mi"}}},
        ]}));
        let critical = pod(serde_json::json!({"priority": 2_000_000_000}));
        let nothing = Pressures::default();
        let memory = Pressures {
            memory: true,
            ..nothing
        };
        let both = Pressures {
            disk: true,
            ..memory
        };
        assert_eq!(nothing.refusal(&plain), None);
        assert_eq!(
            memory.refusal(&plain).unwrap(),
            "The node had condition: [MemoryPressure]. "
        );
        assert_eq!(memory.refusal(&tolerant), None);
        assert_eq!(memory.refusal(&burstable), None);
        for pod in [&plain, &tolerant, &burstable] {
            assert_eq!(
                both.refusal(pod).unwrap(),
                "The node had condition: [MemoryPressure DiskPressure]. "
            );
        }
        assert_eq!(both.refusal(&critical), None);
    }

    #[test]
    fn memory_comes_first_and_hard_before_soft() {
        let rules = rules(
            "nodefs.available<1,memory.available<1",
            "memory.available<5",
            "memory.available=0s",
            "",
        );
        let order: Vec<_> = rules
            .thresholds
            .iter()
            .map(|threshold| (threshold.signal, threshold.is_hard))
            .collect();
        assert_eq!(
            order,
            [
                (Signal::MemoryAvailable, true),
                (Signal::MemoryAvailable, false),
                (Signal::NodefsAvailable, true),
            ]
        );
    }

    proptest! {
        #[test]
        fn what_is_due_is_met_and_what_is_met_presses(
            looks in prop::collection::vec((0..300u64, 1..200i64), 1..40),
        ) {
            let rules = rules("memory.available<100", "memory.available<200", "memory.available=1m", "");
            let mut memory = Memory::default();
            let mut now = at(0);
            for (available, later) in looks {
                now = now.checked_add(SignedDuration::from_secs(later)).unwrap();
                memory.look(&rules, &seen(Signal::MemoryAvailable, available), now);
                let due = memory.due(&rules, now);
                prop_assert!(due.is_none() || available < 200);
                prop_assert!(available >= 100 || due.is_some_and(|due| due.is_hard));
                prop_assert!(available >= 200 || memory.pressures().memory);
            }
        }
    }
}
