//! When a pod has to leave a node that is tainted NoExecute. No I/O.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Taint};
use k8s_openapi::jiff::Timestamp;

use super::health::{NO_EXECUTE, NOT_READY, UNREACHABLE};
use crate::scheduler::tolerates;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stay {
    ForEver,
    For(Duration),
    Over,
}

/// How long the pod may stay under these taints. `default` is for a pod that says nothing about a node that is not ready or
/// unreachable: upstream's admission writes it into every pod, but not every pod came by there.
pub(super) fn stay(pod: &Pod, taints: &[Taint], default: Duration, now: Timestamp) -> Stay {
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
        let limit = if !tolerating.is_empty() {
            // Of several tolerations the shortest counts; one without a time sets no limit.
            let seconds = tolerating
                .iter()
                .filter_map(|toleration| toleration.toleration_seconds)
                .min();
            seconds.map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or_default()))
        } else if [NOT_READY, UNREACHABLE].contains(&taint.key.as_str()) {
            Some(default)
        } else {
            return Stay::Over;
        };
        let Some(limit) = limit else { continue };
        let since = taint.time_added.as_ref().map_or(now, |time| time.0);
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
