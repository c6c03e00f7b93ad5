//! When the world made a Service's slices change: an annotation from which proxies measure how long the change takes to
//! reach the kernel. Pure.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::Timestamp;

use super::slices::Plan;
use crate::controllers::cache::Key;
use crate::controllers::pods::condition;

pub(super) const LAST_CHANGE: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// What was seen of each Service at its last pass.
#[derive(Debug, Default)]
pub(super) struct Triggers(HashMap<Key, Seen>);

#[derive(Debug, Default)]
struct Seen {
    service: Option<Timestamp>,
    /// By name: when the pod became ready, or ceased to be.
    pods: BTreeMap<String, Timestamp>,
}

impl Triggers {
    /// The earliest change since the last pass, by the cluster's clock; of a Service that was not known, its creation.
    /// `None` when what changed has no time, such as a label. Upstream's rule.
    pub(super) fn changed<'a>(
        &mut self,
        key: &Key,
        service: &Service,
        pods: impl Iterator<Item = &'a Pod>,
    ) -> Option<Timestamp> {
        let created = service.metadata.creation_timestamp.as_ref().map(|at| at.0);
        let pods = pods
            .filter_map(|pod| Some((pod.metadata.name.clone()?, turned(pod)?)))
            .collect();
        let now = Seen {
            service: created,
            pods,
        };
        let Some(before) = self.0.get(key) else {
            self.0.insert(key.clone(), now);
            return created;
        };
        let of_pods = now
            .pods
            .iter()
            .filter(|(name, at)| before.pods.get(*name).is_none_or(|last| *at > last))
            .map(|(_, at)| *at);
        let of_service = now.service.filter(|at| Some(*at) > before.service);
        let earliest = of_pods.chain(of_service).min();
        self.0.insert(key.clone(), now);
        earliest
    }

    /// The Service is gone, or needs no slices.
    pub(super) fn forget(&mut self, key: &Key) {
        self.0.remove(key);
    }
}

fn turned(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready")?;
    ready.last_transition_time.as_ref().map(|at| at.0)
}

/// Notes the time on each slice that is written anyhow; an older one would be wrong and goes.
pub(super) fn annotate(plan: &mut Plan, changed: Option<Timestamp>) {
    for slice in plan.create.iter_mut().chain(&mut plan.update) {
        note(slice, changed);
    }
}

fn note(slice: &mut EndpointSlice, changed: Option<Timestamp>) {
    let annotations = slice.metadata.annotations.get_or_insert_default();
    match changed {
        Some(at) => drop(annotations.insert(LAST_CHANGE.into(), at.to_string())),
        None => drop(annotations.remove(LAST_CHANGE)),
    }
    if annotations.is_empty() {
        slice.metadata.annotations = None;
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PodCondition, PodStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn service() -> Service {
        let mut service = Service::default();
        service.metadata.creation_timestamp = Some(Time(at(10)));
        service
    }

    fn pod(name: &str, turned: i64) -> Pod {
        let ready = PodCondition {
            type_: "Ready".into(),
            status: "True".into(),
            last_transition_time: Some(Time(at(turned))),
            ..PodCondition::default()
        };
        let mut pod = Pod {
            status: Some(PodStatus {
                conditions: Some(vec![ready]),
                ..PodStatus::default()
            }),
            ..Pod::default()
        };
        pod.metadata.name = Some(name.into());
        pod
    }

    #[test]
    fn the_trigger_is_the_earliest_change_since_the_last_pass() {
        let (mut triggers, key) = (Triggers::default(), Key::new("ns", "web"));
        let mut pass = |pods: &[Pod]| triggers.changed(&key, &service(), pods.iter());
        assert_eq!(pass(&[pod("a", 5)]), Some(at(10)), "a Service that is new");
        assert_eq!(pass(&[pod("a", 5)]), None, "nothing that has a time");
        let changed = [pod("a", 30), pod("b", 20), pod("c", 40)];
        assert_eq!(pass(&changed), Some(at(20)));
        assert_eq!(pass(&changed[1..]), None, "a pod that is gone has no time");
    }

    #[test]
    fn what_is_forgotten_counts_as_new() {
        let (mut triggers, key) = (Triggers::default(), Key::new("ns", "web"));
        let none = || std::iter::empty::<&Pod>();
        triggers.changed(&key, &service(), none());
        triggers.forget(&key);
        assert_eq!(triggers.changed(&key, &service(), none()), Some(at(10)));
    }

    #[test]
    fn slices_that_are_written_say_when_and_lose_an_older_time() {
        let mut plan = Plan {
            create: vec![EndpointSlice::default()],
            ..Plan::default()
        };
        annotate(&mut plan, Some(at(0)));
        let annotations = plan.create[0].metadata.annotations.clone().unwrap();
        assert_eq!(annotations[LAST_CHANGE], "1970-01-01T00:00:00Z");
        annotate(&mut plan, None);
        assert_eq!(plan.create[0].metadata.annotations, None);
    }
}
