//! A Deployment's plan, driven against a small model of ReplicaSets and their pods.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentSpec, DeploymentStrategy, ReplicaSet, ReplicaSetStatus,
    RollingUpdateDeployment,
};
use k8s_openapi::api::core::v1::{Container, PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use proptest::prelude::*;

use super::plan::{Plan, plan};
use super::sets::{REVISION, max_surge, max_unavailable, replicas};
use super::status::refused;
use crate::controllers::testing::at;

fn deployment(replicas: i32, image: &str) -> Deployment {
    let labels = std::collections::BTreeMap::from([("app".to_owned(), "web".to_owned())]);
    Deployment {
        metadata: ObjectMeta {
            name: Some("web".into()),
            namespace: Some("default".into()),
            uid: Some("d".into()),
            generation: Some(1),
            ..ObjectMeta::default()
        },
        spec: Some(DeploymentSpec {
            replicas: Some(replicas),
            selector: LabelSelector {
                match_labels: Some(labels.clone()),
                ..LabelSelector::default()
            },
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".into()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::String("25%".into())),
                    max_unavailable: Some(IntOrString::String("25%".into())),
                }),
            }),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels),
                    ..ObjectMeta::default()
                }),
                spec: Some(PodSpec {
                    containers: vec![Container {
                        name: "c".into(),
                        image: Some(image.into()),
                        ..Container::default()
                    }],
                    ..PodSpec::default()
                }),
            },
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

/// The API server and the ReplicaSet controller, as far as a Deployment sees them.
struct World {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    clock: i64,
    old_pods_run: bool,
}

impl World {
    fn new(deployment: Deployment) -> Self {
        Self {
            deployment,
            sets: Vec::new(),
            clock: 1000,
            old_pods_run: false,
        }
    }

    fn step(&mut self) -> Plan {
        self.clock += 1;
        let owned: Vec<Arc<ReplicaSet>> = self.sets.iter().cloned().map(Arc::new).collect();
        let old_pods_run = self.old_pods_run;
        let plan = plan(&self.deployment, &owned, |_| old_pods_run, at(self.clock));
        if let Some(mut set) = plan.create.clone() {
            set.metadata.creation_timestamp = Some(Time(at(self.clock)));
            set.metadata.uid = set.metadata.name.clone();
            self.sets.push(set);
        }
        for change in &plan.update {
            let name = change.wanted.metadata.name.clone();
            *self
                .sets
                .iter_mut()
                .find(|set| set.metadata.name == name)
                .unwrap() = change.wanted.clone();
        }
        self.sets
            .retain(|set| !plan.delete.contains(set.metadata.name.as_ref().unwrap()));
        if let Some(revision) = &plan.revision {
            let annotations = self.deployment.metadata.annotations.get_or_insert_default();
            annotations.insert(REVISION.into(), revision.clone());
        }
        self.deployment.status = Some(plan.status.clone());
        plan
    }

    /// The ReplicaSets have as many pods as they want, `ready(image)` says whether these serve.
    fn pods(&mut self, ready: impl Fn(&str) -> bool) {
        for set in &mut self.sets {
            let wanted = set.spec.as_ref().unwrap().replicas.unwrap();
            let serving = if ready(image_of(set)) { wanted } else { 0 };
            set.status = Some(ReplicaSetStatus {
                replicas: wanted,
                ready_replicas: Some(serving),
                available_replicas: Some(serving),
                observed_generation: set.metadata.generation,
                ..ReplicaSetStatus::default()
            });
        }
    }

    fn settle(&mut self) {
        for _ in 0..50 {
            self.step();
            self.pods(|_| true);
        }
        let plan = self.step();
        assert!(
            plan.create.is_none() && plan.update.is_empty() && plan.delete.is_empty(),
            "not settled: {plan:?}"
        );
    }

    fn change(&mut self, change: impl FnOnce(&mut DeploymentSpec)) {
        change(self.deployment.spec.as_mut().unwrap());
        *self.deployment.metadata.generation.as_mut().unwrap() += 1;
    }

    fn sizes(&self) -> Vec<(String, i32)> {
        self.sets
            .iter()
            .map(|set| {
                (
                    image_of(set).to_owned(),
                    set.spec.as_ref().unwrap().replicas.unwrap(),
                )
            })
            .collect()
    }

    fn condition(&self, type_: &str) -> (String, String) {
        let status = self.deployment.status.as_ref().unwrap();
        let condition = status
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_ == type_)
            .unwrap();
        (condition.status.clone(), condition.reason.clone().unwrap())
    }
}

fn image_of(set: &ReplicaSet) -> &str {
    set.spec
        .as_ref()
        .unwrap()
        .template
        .as_ref()
        .unwrap()
        .spec
        .as_ref()
        .unwrap()
        .containers[0]
        .image
        .as_deref()
        .unwrap()
}

fn set_image(spec: &mut DeploymentSpec, image: &str) {
    spec.template.spec.as_mut().unwrap().containers[0].image = Some(image.into());
}

#[test]
fn a_new_deployment_gets_one_set_of_full_size_and_becomes_available() {
    let mut world = World::new(deployment(3, "a"));
    world.step();
    assert_eq!(world.sizes(), [("a".into(), 3)]);
    assert_eq!(
        world.condition("Progressing"),
        ("True".into(), "NewReplicaSetCreated".into())
    );
    assert_eq!(
        world.condition("Available"),
        ("False".into(), "MinimumReplicasUnavailable".into())
    );
    world.settle();
    assert_eq!(
        world.condition("Progressing"),
        ("True".into(), "NewReplicaSetAvailable".into())
    );
    assert_eq!(
        world.condition("Available"),
        ("True".into(), "MinimumReplicasAvailable".into())
    );
    let status = world.deployment.status.unwrap();
    assert_eq!(
        (
            status.replicas,
            status.updated_replicas,
            status.available_replicas
        ),
        (Some(3), Some(3), Some(3))
    );
    assert_eq!(
        (status.unavailable_replicas, status.observed_generation),
        (None, Some(1))
    );
    let set = &world.sets[0];
    let hash = &set.metadata.labels.as_ref().unwrap()["pod-template-hash"];
    assert_eq!(
        set.metadata.name.as_deref(),
        Some(format!("web-{hash}").as_str())
    );
    assert_eq!(
        set.spec
            .as_ref()
            .unwrap()
            .selector
            .match_labels
            .as_ref()
            .unwrap()["pod-template-hash"],
        *hash
    );
    assert_eq!(
        world.deployment.metadata.annotations.unwrap()[REVISION],
        "1"
    );
}

#[test]
fn a_broken_template_stops_the_rollout_at_the_fences() {
    let mut world = World::new(deployment(4, "good"));
    world.settle();
    world.change(|spec| set_image(spec, "bad"));
    for _ in 0..20 {
        world.step();
        world.pods(|image| image == "good");
    }
    assert_eq!(world.sizes(), [("good".into(), 3), ("bad".into(), 2)]);
    world.clock += 700;
    world.step();
    assert_eq!(
        world.condition("Progressing"),
        ("False".into(), "ProgressDeadlineExceeded".into())
    );
    world.change(|spec| set_image(spec, "good"));
    world.settle();
    assert_eq!(world.sizes(), [("good".into(), 4), ("bad".into(), 0)]);
}

#[test]
fn undo_reuses_the_old_set_under_a_new_revision() {
    let mut world = World::new(deployment(2, "a"));
    world.settle();
    world.change(|spec| set_image(spec, "b"));
    world.settle();
    assert_eq!(
        world.deployment.metadata.annotations.as_ref().unwrap()[REVISION],
        "2"
    );
    world.change(|spec| set_image(spec, "a"));
    world.settle();
    assert_eq!(world.sizes(), [("a".into(), 2), ("b".into(), 0)]);
    assert_eq!(
        world.deployment.metadata.annotations.as_ref().unwrap()[REVISION],
        "3"
    );
}

#[test]
fn a_rollout_is_not_judged_by_the_end_of_the_last_one() {
    let mut world = World::new(deployment(2, "a"));
    world.settle();
    world.change(|spec| set_image(spec, "b"));
    world.settle();
    world.clock += 10_000;
    world.change(|spec| set_image(spec, "a"));
    for _ in 0..10 {
        world.step();
        assert_eq!(world.condition("Progressing").0, "True");
        world.pods(|_| true);
    }
}

#[test]
fn a_set_that_the_server_refuses_is_told_of_once() {
    let mut world = World::new(deployment(2, "a"));
    let said = |message: &str| message.to_owned();
    let status = refused(&world.deployment, said("no a"), at(10));
    world.deployment.status = Some(status.clone());
    assert_eq!(
        world.condition("Progressing"),
        ("False".into(), "ReplicaSetCreateError".into())
    );
    let again = refused(&world.deployment, said("no b"), at(20));
    assert_eq!(again, status, "a retry writes nothing");
    world.settle();
    assert_eq!(world.condition("Progressing").0, "True");
}

#[test]
fn a_resize_in_the_middle_of_a_rollout_keeps_the_proportions() {
    let mut world = World::new(deployment(10, "good"));
    world.settle();
    world.change(|spec| set_image(spec, "bad"));
    for _ in 0..20 {
        world.step();
        world.pods(|image| image == "good");
    }
    assert_eq!(world.sizes(), [("good".into(), 8), ("bad".into(), 5)]);
    world.change(|spec| spec.replicas = Some(20));
    world.step();
    // 25 may run; 8 and 5 of 13 become 15 and 10.
    assert_eq!(world.sizes(), [("good".into(), 15), ("bad".into(), 10)]);
}

#[test]
fn recreate_waits_for_the_last_old_pod() {
    let mut world = World::new(deployment(2, "a"));
    world.change(|spec| spec.strategy.as_mut().unwrap().type_ = Some("Recreate".into()));
    world.settle();
    world.change(|spec| set_image(spec, "b"));
    world.old_pods_run = true;
    world.step();
    world.pods(|_| true);
    world.step();
    assert_eq!(world.sizes(), [("a".into(), 0)]);
    world.old_pods_run = false;
    world.settle();
    assert_eq!(world.sizes(), [("a".into(), 0), ("b".into(), 2)]);
}

#[test]
fn a_paused_deployment_resizes_but_does_not_roll() {
    let mut world = World::new(deployment(2, "a"));
    world.settle();
    world.change(|spec| {
        spec.paused = Some(true);
        set_image(spec, "b");
    });
    world.step();
    assert_eq!(
        world.condition("Progressing"),
        ("Unknown".into(), "DeploymentPaused".into())
    );
    world.change(|spec| spec.replicas = Some(5));
    world.settle();
    assert_eq!(world.sizes(), [("a".into(), 5)]);
    world.change(|spec| spec.paused = Some(false));
    world.step();
    assert_ne!(world.condition("Progressing").1, "DeploymentPaused");
    world.settle();
    assert_eq!(world.sizes(), [("a".into(), 0), ("b".into(), 5)]);
}

#[test]
fn history_beyond_the_limit_goes_oldest_first() {
    let mut world = World::new(deployment(1, "v0"));
    world.change(|spec| spec.revision_history_limit = Some(2));
    for version in 1..6 {
        world.settle();
        world.change(|spec| set_image(spec, &format!("v{version}")));
    }
    world.settle();
    let images: Vec<&str> = world.sets.iter().map(image_of).collect();
    assert_eq!(images, ["v3", "v4", "v5"]);
}

#[test]
fn a_deleted_deployment_changes_nothing() {
    let mut world = World::new(deployment(2, "a"));
    world.settle();
    world.change(|spec| set_image(spec, "b"));
    world.deployment.metadata.deletion_timestamp = Some(Time(at(0)));
    let plan = world.step();
    assert!(plan.create.is_none() && plan.update.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Pods of the sets come up one by one, in any order; the fences hold at every step and the rollout ends.
    #[test]
    fn a_rollout_never_leaves_its_fences_and_ends(
        size in 0i32..15, surge in 0i32..4, unavailable in 0i32..4, order in prop::collection::vec(0usize..3, 200)
    ) {
        let mut world = World::new(deployment(size, "a"));
        world.change(|spec| {
            spec.strategy.as_mut().unwrap().rolling_update = Some(RollingUpdateDeployment {
                max_surge: Some(IntOrString::Int(surge)),
                max_unavailable: Some(IntOrString::Int(unavailable)),
            });
        });
        world.settle();
        world.change(|spec| set_image(spec, "b"));
        let most = replicas(&world.deployment) + max_surge(&world.deployment);
        let least = replicas(&world.deployment) - max_unavailable(&world.deployment);
        for pick in order {
            world.step();
            let total: i32 = world.sizes().iter().map(|(_, size)| size).sum();
            prop_assert!(total <= most, "{total} of at most {most}");
            // Terminated pods leave at once, started ones come up one at a time.
            for set in &mut world.sets {
                let wanted = set.spec.as_ref().unwrap().replicas.unwrap();
                let status = set.status.get_or_insert_default();
                status.observed_generation = set.metadata.generation;
                status.replicas = wanted;
                let serving = status.available_replicas.unwrap_or_default().min(wanted);
                status.available_replicas = Some(serving);
                status.ready_replicas = Some(serving);
            }
            let available: i32 = world.sets.iter().map(|set| set.status.as_ref().unwrap().available_replicas.unwrap()).sum();
            prop_assert!(available >= least, "{available} of at least {least}");
            if let Some(set) = world.sets.get_mut(pick) {
                let status = set.status.as_mut().unwrap();
                if status.available_replicas.unwrap() < status.replicas {
                    *status.available_replicas.as_mut().unwrap() += 1;
                    *status.ready_replicas.as_mut().unwrap() += 1;
                }
            }
        }
        world.settle();
        let live: Vec<(String, i32)> = world.sizes().into_iter().filter(|(_, size)| *size > 0).collect();
        prop_assert_eq!(live, if size > 0 { vec![("b".to_owned(), size)] } else { vec![] });
    }
}
