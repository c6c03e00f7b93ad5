//! When a pod has to leave a node that is tainted NoExecute. No I/O.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Taint};
use k8s_openapi::jiff::Timestamp;

use super::health::NO_EXECUTE;
use crate::scheduler::tolerates;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stay {
    ForEver,
    For(Duration),
    Over,
}

/// How long the pod may stay under these taints.
pub(super) fn stay(pod: &Pod, taints: &[Taint], now: Timestamp) -> Stay {
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
