//! When a pod has to leave a node that is tainted NoExecute. No I/O.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Taint};
use k8s_openapi::jiff::Timestamp;

use super::health::NO_EXECUTE;
use crate::controllers::pods::{bound_since, uid};
use crate::scheduler::tolerates;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stay {
    ForEver,
    For(Duration),
    Over,
}

/// When each pod of one node was first seen under each of its taints. Taints that people add do not tell their time.
#[derive(Debug, Default)]
pub(super) struct FirstSeen(HashMap<(String, TaintId), Timestamp>);

/// Key, value and effect.
type TaintId = (String, Option<String>, String);

fn id(taint: &Taint) -> TaintId {
    (taint.key.clone(), taint.value.clone(), taint.effect.clone())
}

impl FirstSeen {
    /// Takes note of what is there now and forgets the rest.
    pub(super) fn look(&mut self, pods: &[Arc<Pod>], taints: &[Taint], now: Timestamp) {
        let mut seen = HashMap::new();
        for taint in taints.iter().filter(|taint| taint.effect == NO_EXECUTE) {
            for pod in pods {
                let pair = (uid(&pod.metadata).to_owned(), id(taint));
                let since = self.0.get(&pair).copied().unwrap_or(now);
                seen.insert(pair, since);
            }
        }
        self.0 = seen;
    }

    /// Since when the pod is under the taint: not from before it was bound to the node.
    fn since(&self, pod: &Pod, taint: &Taint) -> Option<Timestamp> {
        match &taint.time_added {
            Some(added) => Some(bound_since(pod).map_or(added.0, |bound| bound.max(added.0))),
            None => self
                .0
                .get(&(uid(&pod.metadata).to_owned(), id(taint)))
                .copied(),
        }
    }
}

/// How long the pod may stay under these taints.
pub(super) fn stay(pod: &Pod, taints: &[Taint], seen: &FirstSeen, now: Timestamp) -> Stay {
    let tolerations = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.tolerations.as_deref())
        .unwrap_or_default();
    let mut least = Stay::ForEver;
    for taint in taints.iter().filter(|taint| taint.effect == NO_EXECUTE) {
        let tolerating: Vec<_> = tolerations
            .iter()
            .filter(|toleration| tolerates(std::slice::from_ref(toleration), taint))
            .collect();
        if tolerating.is_empty() {
            return Stay::Over;
        }
        // Of several tolerations the shortest counts; one without a time sets no limit.
        let seconds = tolerating
            .iter()
            .filter_map(|toleration| toleration.toleration_seconds)
            .min();
        let Some(seconds) = seconds else { continue };
        let limit = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
        let since = seen.since(pod, taint).unwrap_or(now);
        let passed = Duration::try_from(now.duration_since(since)).unwrap_or_default();
        let left = limit.saturating_sub(passed);
        least = match least {
            _ if left.is_zero() => return Stay::Over,
            Stay::For(known) => Stay::For(known.min(left)),
            _ => Stay::For(left),
        };
    }
    least
}
