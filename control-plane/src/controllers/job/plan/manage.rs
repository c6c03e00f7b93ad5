//! How many of a job's pods are too many or missing, and which. No I/O.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;

use super::{Plan, since};
use crate::controllers::job::pods::{ended_at, failures, index, is_indexed, of_index, plain};
use crate::controllers::job::policy::{Failure, failure, has_failed, waits_for_end};
use crate::controllers::job::tally::Tally;
use crate::controllers::pods::{has_ended, is_active, is_ready, node_of, phase, uid};

/// No more pods than this are created or deleted in one pass; the rest follows when those were seen.
const BURST: usize = 500;
/// After a failure a pod is tried again after this, and after each more after twice as long.
const BACKOFF: Duration = Duration::from_secs(10);
const MAX_BACKOFF: Duration = Duration::from_secs(600);

/// How many pods are too many or missing.
pub(super) fn pods(
    plan: &mut Plan,
    job: &Job,
    pods: &[Arc<Pod>],
    active: &[Arc<Pod>],
    tally: &Tally,
    now: Timestamp,
) {
    let Some(spec) = &job.spec else { return };
    if spec.suspend == Some(true) {
        plan.dismiss = active.iter().take(BURST).cloned().collect();
        return;
    }
    let number = |number: i32| usize::try_from(number).unwrap_or_default();
    let parallelism = number(spec.parallelism.unwrap_or(1));
    let wanted = match spec.completions {
        None if tally.succeeded > 0 => active.len(),
        None => parallelism,
        Some(completions) => number(completions - tally.succeeded)
            .saturating_sub(number(tally.lost.len()))
            .min(parallelism),
    };
    plan.dismiss = surplus(spec, active, tally, active.len().saturating_sub(wanted));
    if !plan.dismiss.is_empty() {
        return;
    }
    let leaving = pods
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_some() && !has_ended(pod));
    let leaving = if waits_for_end(spec) {
        leaving.count()
    } else {
        0
    };
    let missing = wanted.saturating_sub(leaving + active.len()).min(BURST);
    if missing == 0 {
        return;
    }
    if spec.backoff_limit_per_index.is_none()
        && let Some(wait) = pause(spec, pods, now)
    {
        plan.look_in(wait);
        return;
    }
    if !is_indexed(spec) {
        plan.create = vec![plain(job, spec); missing];
        return;
    }
    let taken: BTreeSet<i32> = pods
        .iter()
        .filter(|pod| is_active(pod) || waits_for_end(spec) && !has_ended(pod))
        .filter_map(|pod| index(pod, spec))
        .collect();
    let open = (0..spec.completions.unwrap_or_default())
        .filter(|index| !taken.contains(index))
        .filter(|index| !tally.completed.contains(*index) && !tally.lost.contains(*index));
    for index in open.take(missing) {
        let before = tally.retried.get(&index);
        let counted = spec.backoff_limit_per_index.map(|_| match before {
            None => (0, 0),
            Some(pod) => after(pod, spec),
        });
        if let (Some((failed, ignored)), Some(pod)) = (counted, before)
            && let Some(wait) = rest(failed + ignored, ended_at(pod), now)
        {
            plan.look_in(wait);
            continue;
        }
        plan.create.push(of_index(job, spec, index, counted));
    }
}

/// How often an index has failed once the pod has.
fn after(pod: &Pod, spec: &JobSpec) -> (i32, i32) {
    let (counted, ignored) = failures(pod);
    match failure(pod, spec) {
        Failure::Ignored => (counted, ignored + 1),
        _ => (counted + 1, ignored),
    }
}

/// How long to wait after so many failures, the last of them at `last`.
fn rest(failures: i32, last: Option<Timestamp>, now: Timestamp) -> Option<Duration> {
    let doublings = u32::try_from(failures - 1).ok()?;
    let whole = BACKOFF
        .saturating_mul(2_u32.saturating_pow(doublings))
        .min(MAX_BACKOFF);
    let left = whole.checked_sub(since(last?, now))?;
    (!left.is_zero()).then_some(left)
}

/// How long no pod is made because the last ones failed.
fn pause(spec: &JobSpec, pods: &[Arc<Pod>], now: Timestamp) -> Option<Duration> {
    let of = |wanted: fn(&Pod, &JobSpec) -> bool| {
        let pods = pods.iter().filter(move |pod| wanted(pod, spec));
        pods.filter_map(|pod| ended_at(pod))
    };
    let succeeded = of(|pod, _| phase(pod) == "Succeeded").max();
    let failed = of(|pod, spec| {
        phase(pod) == "Failed" && has_failed(pod, spec) && failure(pod, spec) != Failure::Ignored
    });
    let failed: Vec<_> = failed
        .filter(|end| succeeded.is_none_or(|success| *end > success))
        .collect();
    rest(
        i32::try_from(failed.len()).unwrap_or(i32::MAX),
        failed.into_iter().max(),
        now,
    )
}

/// Pods of no use, and beyond those the `count` that are missed least.
fn surplus(spec: &JobSpec, active: &[Arc<Pod>], tally: &Tally, count: usize) -> Vec<Arc<Pod>> {
    let mut seen = BTreeSet::new();
    let mut ranked: Vec<(bool, &Arc<Pod>)> = active
        .iter()
        .map(|pod| {
            let is_needed = !is_indexed(spec)
                || index(pod, spec).is_some_and(|index| {
                    let done = tally.completed.contains(index) || tally.lost.contains(index);
                    !done && seen.insert(index)
                });
            (is_needed, pod)
        })
        .collect();
    ranked.sort_by_key(|(is_needed, pod)| {
        let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (
            *is_needed,
            node_of(pod).is_some(),
            phase(pod) == "Running",
            is_ready(pod),
            std::cmp::Reverse(created),
            uid(&pod.metadata).to_owned(),
        )
    });
    let useless = ranked.iter().filter(|(is_needed, _)| !is_needed).count();
    let count = count.max(useless).min(BURST);
    ranked
        .into_iter()
        .take(count)
        .map(|(_, pod)| pod.clone())
        .collect()
}
