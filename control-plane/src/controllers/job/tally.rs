//! What of a job's pods has ended, and how: each end is counted once, also when the controller starts anew in between.
//!
//! ```text
//!   the pod ends ──▶ its uid stands in status.uncountedTerminatedPods ──▶ its finalizer goes ──▶ a counter takes over
//! ```
//!
//! No I/O.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::batch::v1::{JobSpec, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;

use super::pods::{failures, index, is_indexed, is_tracked};
use super::policy::{Failure, failure, has_failed};
use crate::controllers::pods::{phase, uid};
use crate::resources::job::indexes::Indexes;

/// How a job has ended, and whatever pods are left with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    Succeeded,
    Failed,
}

/// What has ended until now.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) succeeded: i32,
    pub(super) failed: i32,
    /// Of an indexed job.
    pub(super) completed: Indexes,
    /// Of one that counts failures for each index.
    pub(super) lost: Indexes,
    /// The last pod that failed of each index that is to be tried again.
    pub(super) retried: BTreeMap<i32, Arc<Pod>>,
    /// Why a single failure is the job's.
    pub(super) fatal: Option<String>,
    /// Ends that are new, by the pods' uids.
    new_succeeded: Vec<String>,
    new_failed: Vec<String>,
    /// Indexes that failed once too often, as far as this look goes.
    last_failures: Vec<i32>,
    known: Uncounted,
}

/// Ends that are noted and not yet counted.
#[derive(Debug, Default)]
struct Uncounted {
    succeeded: Vec<String>,
    failed: Vec<String>,
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// Looks at all of a job's pods.
pub(super) fn tally(spec: &JobSpec, status: &JobStatus, pods: &[Arc<Pod>]) -> Tally {
    let completions = spec.completions.unwrap_or_default();
    let noted = status.uncounted_terminated_pods.clone().unwrap_or_default();
    let mut tally = Tally {
        known: Uncounted {
            succeeded: noted.succeeded.unwrap_or_default(),
            failed: noted.failed.unwrap_or_default(),
        },
        ..Tally::default()
    };
    let indexed = is_indexed(spec);
    let read =
        |text: &Option<String>| Indexes::read(text.as_deref().unwrap_or_default(), completions);
    if indexed {
        tally.completed = read(&status.completed_indexes);
        tally.lost = read(&status.failed_indexes);
    }
    let known: HashSet<String> = [&tally.known.succeeded, &tally.known.failed]
        .into_iter()
        .flatten()
        .cloned()
        .collect();
    for pod in pods.iter().filter(|pod| is_tracked(pod)) {
        let id = uid(&pod.metadata);
        let is_new = !known.contains(id);
        if phase(pod) == "Succeeded" {
            match index(pod, spec) {
                Some(index) if indexed => {
                    tally.completed.insert(index);
                }
                None if indexed => {}
                _ if is_new => tally.new_succeeded.push(id.to_owned()),
                _ => {}
            }
        } else if has_failed(pod, spec) {
            tally.take_failure(
                pod,
                spec,
                is_new && (!indexed || index(pod, spec).is_some()),
            );
        }
    }
    for index in std::mem::take(&mut tally.last_failures) {
        if !tally.completed.contains(index) {
            tally.lost.insert(index);
        }
    }
    let (lost, completed) = (&tally.lost, &tally.completed);
    tally
        .retried
        .retain(|index, _| !lost.contains(*index) && !completed.contains(*index));
    tally.succeeded = match indexed {
        true => tally.completed.len(),
        false => {
            let pending = tally.known.succeeded.len() + tally.new_succeeded.len();
            status.succeeded.unwrap_or_default() + count(pending)
        }
    };
    let pending = tally.known.failed.len() + tally.new_failed.len();
    tally.failed = status.failed.unwrap_or_default() + count(pending);
    tally
}

impl Tally {
    fn take_failure(&mut self, pod: &Arc<Pod>, spec: &JobSpec, counts: bool) {
        let meaning = failure(pod, spec);
        if let Failure::OfJob(why) = &meaning {
            self.fatal.get_or_insert_with(|| why.clone());
        }
        if counts && meaning != Failure::Ignored {
            self.new_failed.push(uid(&pod.metadata).to_owned());
        }
        let (Some(limit), Some(index)) = (spec.backoff_limit_per_index, index(pod, spec)) else {
            return;
        };
        let is_last =
            meaning == Failure::OfIndex || meaning != Failure::Ignored && failures(pod).0 >= limit;
        if is_last {
            self.last_failures.push(index);
        }
        let before = self.retried.get(&index);
        if before.is_none_or(|before| tries(before) < tries(pod)) {
            self.retried.insert(index, pod.clone());
        }
    }

    /// With a job that fails, all its pods have failed that have not succeeded.
    fn fail_all(&mut self, spec: &JobSpec, pods: &[Arc<Pod>]) {
        for pod in pods.iter().filter(|pod| is_tracked(pod)) {
            let id = uid(&pod.metadata);
            let noted = [&self.known.failed, &self.new_failed];
            let is_noted = noted.into_iter().flatten().any(|known| known == id);
            let has_place = !is_indexed(spec) || index(pod, spec).is_some();
            if phase(pod) != "Succeeded"
                && failure(pod, spec) != Failure::Ignored
                && has_place
                && !is_noted
            {
                self.new_failed.push(id.to_owned());
            }
        }
    }

    /// Notes what is new and counts what is over, in the status. Gives the pods whose finalizers may go once the status is
    /// stored.
    pub(super) fn settle(
        mut self,
        spec: &JobSpec,
        status: &mut JobStatus,
        pods: &[Arc<Pod>],
        over: Option<Over>,
    ) -> Vec<Arc<Pod>> {
        if over == Some(Over::Failed) {
            self.fail_all(spec, pods);
        }
        let held: HashSet<&str> = pods
            .iter()
            .filter(|pod| is_tracked(pod))
            .map(|pod| uid(&pod.metadata))
            .collect();
        let split = |known: Vec<String>, new: Vec<String>| {
            let (mut open, over): (Vec<String>, Vec<String>) =
                known.into_iter().partition(|id| held.contains(id.as_str()));
            open.extend(new);
            (open, count(over.len()))
        };
        let (succeeded, done) = split(self.known.succeeded, self.new_succeeded);
        let (failed, lost) = split(self.known.failed, self.new_failed);
        let optional = |number: i32| (number != 0).then_some(number);
        if is_indexed(spec) {
            let text = self.completed.to_string();
            status.succeeded = optional(self.succeeded);
            status.completed_indexes = (!text.is_empty()).then_some(text);
            if spec.backoff_limit_per_index.is_some() {
                status.failed_indexes = Some(self.lost.to_string());
            }
        } else {
            status.succeeded = optional(status.succeeded.unwrap_or_default() + done);
        }
        status.failed = optional(status.failed.unwrap_or_default() + lost);
        let list = |ids: &Vec<String>| (!ids.is_empty()).then(|| ids.clone());
        status.uncounted_terminated_pods = Some(UncountedTerminatedPods {
            succeeded: list(&succeeded),
            failed: list(&failed),
        });
        let retried = &self.retried;
        // The last failure of an index says how often it has failed, until another pod of it says so.
        let is_record = |pod: &Pod| {
            let index = index(pod, spec);
            let record = index.and_then(|index| retried.get(&index));
            record.is_some_and(|record| {
                uid(&record.metadata) == uid(&pod.metadata) && !has_successor(record, spec, pods)
            })
        };
        let tracked = pods.iter().filter(|pod| is_tracked(pod));
        let ended = tracked.filter(|pod| {
            over.is_some() || phase(pod) == "Succeeded" || has_failed(pod, spec) && !is_record(pod)
        });
        ended.cloned().collect()
    }
}

/// How often the pod's index has been tried before it.
fn tries(pod: &Pod) -> i32 {
    let (counted, ignored) = failures(pod);
    counted + ignored
}

fn has_successor(pod: &Pod, spec: &JobSpec, pods: &[Arc<Pod>]) -> bool {
    let of = index(pod, spec);
    pods.iter()
        .any(|other| index(other, spec) == of && tries(other) > tries(pod))
}
