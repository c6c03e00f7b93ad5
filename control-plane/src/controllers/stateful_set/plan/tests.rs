//! What is done for a StatefulSet, given its pods and claims; and, in a small simulation, what comes of it.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::controllers::stateful_set::identity::REVISION;
use crate::controllers::testing::{PodBuilder, at, pod};
use crate::resources::Strategy as _;

fn set(change: impl FnOnce(&mut Value)) -> StatefulSet {
    let mut value = json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "sts"},
        "spec": {
            "replicas": 3,
            "serviceName": "web",
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "i:1"}]},
            },
        },
    });
    change(&mut value);
    let mut set: StatefulSet = serde_json::from_value(value).unwrap();
    set.set_defaults();
    set.prepare_create();
    set
}

fn ours(name: &str, revision: &str) -> PodBuilder {
    pod(name)
        .label("app", "web")
        .label(REVISION, revision)
        .owner("StatefulSet", "web", "sts")
}

fn running(name: &str, revision: &str) -> PodBuilder {
    ours(name, revision).phase("Running").ready_at(10)
}

struct World {
    set: StatefulSet,
    pods: Vec<Arc<Pod>>,
    volumes: BTreeMap<String, Arc<PersistentVolumeClaim>>,
}

impl World {
    fn new(set: StatefulSet, pods: Vec<PodBuilder>) -> Self {
        let pods = pods.into_iter().map(|pod| Arc::new(pod.build())).collect();
        let volumes = BTreeMap::new();
        Self { set, pods, volumes }
    }

    fn plan(&self) -> Plan {
        self.plan_of("old", "new")
    }

    fn plan_of(&self, current: &str, update: &str) -> Plan {
        let template = &self.set.spec.as_ref().unwrap().template;
        let revision = |name| Revision { name, template };
        plan(&Picture {
            set: &self.set,
            current: revision(current),
            update: revision(update),
            around: &self.pods,
            volumes: &self.volumes,
            settled: true,
            now: at(1000),
        })
    }
}

fn created(plan: &Plan) -> Vec<(&str, &str)> {
    let name = |pod: &Pod| pod.metadata.name.clone().unwrap_or_default();
    let pods = plan.create.iter();
    pods.map(|pod| {
        let name = name(pod);
        assert_eq!(pod.spec.as_ref().unwrap().hostname, Some(name));
        (
            pod.metadata.name.as_deref().unwrap(),
            revision_of(pod).unwrap(),
        )
    })
    .collect()
}

fn deleted(plan: &Plan) -> Vec<&str> {
    let pods = plan.delete.iter();
    pods.filter_map(|pod| pod.metadata.name.as_deref())
        .collect()
}

#[test]
fn pods_are_made_one_after_the_other() {
    let plan = World::new(set(|_| {}), Vec::new()).plan();
    assert_eq!(created(&plan), [("web-0", "new")]);
    let first = plan.create[0].clone();
    let labels = first.metadata.labels.unwrap();
    assert_eq!(labels["apps.kubernetes.io/pod-index"], "0");
    assert_eq!(labels["statefulset.kubernetes.io/pod-name"], "web-0");
    assert_eq!(first.spec.unwrap().subdomain.as_deref(), Some("web"));

    let plan = World::new(set(|_| {}), vec![ours("web-0", "new")]).plan();
    assert_eq!(created(&plan), [], "the first one is not ready yet");
    let plan = World::new(set(|_| {}), vec![running("web-0", "new")]).plan();
    assert_eq!(created(&plan), [("web-1", "new")]);
}

#[test]
fn parallel_ones_are_made_and_removed_at_once() {
    let parallel = |replicas: i32| {
        set(|set| {
            set["spec"]["podManagementPolicy"] = json!("Parallel");
            set["spec"]["replicas"] = json!(replicas);
            set["spec"]["ordinals"] = json!({"start": 5});
        })
    };
    let plan = World::new(parallel(2), Vec::new()).plan();
    assert_eq!(created(&plan), [("web-5", "new"), ("web-6", "new")]);
    let pods = vec![
        running("web-4", "new"),
        running("web-5", "new"),
        running("web-6", "new"),
    ];
    assert_eq!(
        deleted(&World::new(parallel(0), pods).plan()),
        ["web-6", "web-5", "web-4"]
    );
}

#[test]
fn as_many_as_a_number_can_say_cost_no_more_than_a_few() {
    let many = |policy: &str| {
        set(|set| {
            set["spec"]["podManagementPolicy"] = json!(policy);
            set["spec"]["replicas"] = json!(i32::MAX);
            set["spec"]["ordinals"] = json!({"start": 1});
        })
    };
    let plan = World::new(many("Parallel"), Vec::new()).plan();
    assert_eq!(plan.create.len(), BURST);
    assert_eq!(
        created(&World::new(many("OrderedReady"), Vec::new()).plan()),
        [("web-1", "new")]
    );
}

#[test]
fn the_last_goes_first_and_one_that_is_not_well_holds_up_those_before_it() {
    let two = || set(|set| set["spec"]["replicas"] = json!(1));
    let pods = |last: PodBuilder| vec![running("web-0", "new"), running("web-1", "new"), last];
    let plan = |last: PodBuilder| World::new(two(), pods(last)).plan();
    assert_eq!(deleted(&plan(running("web-2", "new"))), ["web-2"]);
    assert_eq!(
        deleted(&plan(ours("web-2", "new"))),
        ["web-2"],
        "it waits for nobody"
    );
    assert_eq!(
        deleted(&plan(running("web-2", "new").terminating())),
        [""; 0]
    );
    let pods = vec![ours("web-0", "new"), running("web-1", "new")];
    let plan = World::new(two(), pods).plan();
    assert_eq!(deleted(&plan), [""; 0], "the one that stays is not ready");
}

#[test]
fn one_that_has_ended_is_made_anew() {
    let pods = vec![
        ours("web-0", "new").phase("Failed"),
        running("web-1", "new"),
    ];
    let plan = World::new(set(|_| {}), pods).plan();
    assert_eq!(deleted(&plan), ["web-0"]);
    let (_, reason, message) = &plan.events[0];
    assert_eq!(
        (*reason, message.as_str()),
        (
            "RecreatingFailedPod",
            "StatefulSet default/web is recreating failed Pod web-0"
        )
    );
}

#[test]
fn a_rollout_goes_from_the_last_down_to_the_partition() {
    let pods = |last: &str| {
        vec![
            running("web-0", "old"),
            running("web-1", "old"),
            running("web-2", last),
        ]
    };
    let partition = |number: i32| {
        set(|set| {
            set["spec"]["updateStrategy"] =
                json!({"type": "RollingUpdate", "rollingUpdate": {"partition": number}});
        })
    };
    assert_eq!(
        deleted(&World::new(partition(0), pods("old")).plan()),
        ["web-2"]
    );
    assert_eq!(
        deleted(&World::new(partition(0), pods("new")).plan()),
        ["web-1"]
    );
    assert_eq!(
        deleted(&World::new(partition(2), pods("new")).plan()),
        [""; 0]
    );
    // A pod below the partition comes back as it was.
    let without_first = pods("new").split_off(1);
    let plan = World::new(partition(2), without_first).plan();
    assert_eq!(created(&plan), [("web-0", "old")]);
    // What people delete themselves comes back as a new one.
    let on_delete = set(|set| set["spec"]["updateStrategy"] = json!({"type": "OnDelete"}));
    assert_eq!(
        deleted(&World::new(on_delete.clone(), pods("old")).plan()),
        [""; 0]
    );
    let plan = World::new(on_delete, pods("old").split_off(1)).plan();
    assert_eq!(created(&plan), [("web-0", "new")]);
}

#[test]
fn the_status_tells_the_rollout() {
    let pods = vec![
        running("web-0", "old"),
        running("web-1", "old"),
        running("web-2", "new"),
    ];
    let status = World::new(set(|_| {}), pods).plan().status;
    // web-1 is about to go.
    assert_eq!(
        (status.current_replicas, status.updated_replicas),
        (Some(1), Some(1))
    );
    assert_eq!((status.replicas, status.ready_replicas), (3, Some(3)));
    assert_eq!(status.current_revision.as_deref(), Some("old"));
    let pods = vec![
        running("web-0", "new"),
        running("web-1", "new"),
        running("web-2", "new"),
    ];
    let status = World::new(set(|_| {}), pods).plan().status;
    assert_eq!(status.current_revision.as_deref(), Some("new"));
    assert_eq!(status.current_replicas, Some(3));
}

#[test]
fn a_stranger_with_our_labels_is_left_alone() {
    let stranger = pod("other-0").label("app", "web").phase("Running");
    let lost = pod("web-0")
        .label("app", "web")
        .phase("Running")
        .ready_at(10);
    let plan = World::new(set(|_| {}), vec![stranger, lost]).plan();
    let adopted: Vec<_> = plan
        .claims
        .adopt
        .iter()
        .map(|pod| pod.metadata.name.as_deref().unwrap())
        .collect();
    assert_eq!(adopted, ["web-0"]);
    assert_eq!(created(&plan), [("web-1", "new")]);
}

fn with_claims(deleted: &str, scaled: &str, replicas: i32) -> StatefulSet {
    set(|set| {
        set["spec"]["replicas"] = json!(replicas);
        set["spec"]["volumeClaimTemplates"] = json!([{"metadata": {"name": "data"}, "spec": {}}]);
        set["spec"]["persistentVolumeClaimRetentionPolicy"] =
            json!({"whenDeleted": deleted, "whenScaled": scaled});
        set["spec"]["template"]["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    })
}

fn claim(pod: &str, owners: Value) -> (String, Arc<PersistentVolumeClaim>) {
    let name = format!("data-{pod}");
    let value = json!({"metadata": {"name": name, "ownerReferences": owners}});
    (name, Arc::new(serde_json::from_value(value).unwrap()))
}

#[test]
fn claims_are_there_before_their_pod() {
    let mut world = World::new(with_claims("Retain", "Retain", 1), Vec::new());
    let plan = world.plan();
    let (pod, made) = &plan.make_claims[0];
    assert_eq!(
        (pod.as_str(), made.metadata.name.as_deref()),
        ("web-0", Some("data-web-0"))
    );
    assert_eq!(made.metadata.labels.as_ref().unwrap()["app"], "web");
    let volumes = plan.create[0]
        .spec
        .as_ref()
        .unwrap()
        .volumes
        .as_ref()
        .unwrap();
    let [volume] = &volumes[..] else {
        panic!("the template's volume has given way")
    };
    assert_eq!(
        volume.persistent_volume_claim.as_ref().unwrap().claim_name,
        "data-web-0"
    );
    world.volumes.extend([claim("web-0", json!([]))]);
    assert!(world.plan().make_claims.is_empty());
    let going =
        json!({"metadata": {"name": "data-web-0", "deletionTimestamp": "2026-03-01T10:00:00Z"}});
    let going = Arc::new(serde_json::from_value(going).unwrap());
    world.volumes.insert("data-web-0".to_owned(), going);
    assert_eq!(created(&world.plan()), []);
    // It goes with a pod of this name that was here before.
    let earlier = json!([{"apiVersion": "v1", "kind": "Pod", "name": "web-0", "uid": "gone"}]);
    world.volumes.extend([claim("web-0", earlier)]);
    assert_eq!(created(&world.plan()), []);
}

#[test]
fn claims_belong_to_whom_the_policy_says() {
    let owners_of = |deleted: &str, scaled: &str| {
        let pods = vec![running("web-0", "new"), running("web-1", "new")];
        let mut world = World::new(with_claims(deleted, scaled, 1), pods);
        world
            .volumes
            .extend([claim("web-0", json!([])), claim("web-1", json!([]))]);
        let plan = world.plan();
        let owners = plan.own_claims.iter().map(|(claim, owners)| {
            let kinds: Vec<_> = owners.iter().map(|owner| owner.kind.clone()).collect();
            (claim.metadata.name.clone().unwrap(), kinds.join(" "))
        });
        owners.collect::<Vec<_>>()
    };
    let told = |list: &[(&str, &str)]| {
        let list = list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned()));
        list.collect::<Vec<_>>()
    };
    assert_eq!(owners_of("Retain", "Retain"), told(&[]));
    assert_eq!(
        owners_of("Delete", "Retain"),
        told(&[("data-web-0", "StatefulSet"), ("data-web-1", "StatefulSet")])
    );
    assert_eq!(
        owners_of("Retain", "Delete"),
        told(&[("data-web-1", "Pod")])
    );
    assert_eq!(
        owners_of("Delete", "Delete"),
        told(&[("data-web-0", "StatefulSet"), ("data-web-1", "Pod")])
    );
}

/// What happens to pods between two looks.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A pod that is not ready becomes so.
    Ready,
    /// A pod that is to go is gone.
    Gone,
    /// A pod fails.
    Fails(u8),
    /// Somebody wants another number of pods.
    Scale(i32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Ready),
        4 => Just(Step::Gone),
        1 => any::<u8>().prop_map(Step::Fails),
        1 => (0..6).prop_map(Step::Scale),
    ];
    prop::collection::vec(step, 0..40)
}

/// Does what the plan says, as the server would.
fn perform(world: &mut World, plan: Plan, next: &mut u32) {
    for pod in &plan.delete {
        for one in &mut world.pods {
            if one.metadata.uid == pod.metadata.uid {
                Arc::make_mut(one).metadata.deletion_timestamp =
                    Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0)));
            }
        }
    }
    for mut pod in plan.create {
        *next += 1;
        pod.metadata.uid = Some(format!("uid-{next}"));
        assert!(
            world
                .pods
                .iter()
                .all(|one| one.metadata.name != pod.metadata.name),
            "two pods of one name"
        );
        world.pods.push(Arc::new(pod));
    }
    world.set.status = Some(plan.status);
}

fn happen(world: &mut World, step: Step) {
    match step {
        Step::Ready => {
            let waiting = |pod: &&mut Arc<Pod>| !has_ended(pod) && !is_running_and_ready(pod);
            if let Some(pod) = world.pods.iter_mut().find(waiting) {
                let name = pod.metadata.name.clone().unwrap();
                let revision = revision_of(pod).unwrap().to_owned();
                let mut ready = running(&name, &revision).build();
                ready.metadata = pod.metadata.clone();
                *pod = Arc::new(ready);
            }
        }
        Step::Gone => {
            let gone = world.pods.iter().position(|pod| is_terminating(pod));
            gone.map(|at| world.pods.remove(at));
        }
        Step::Fails(which) => {
            let count = world.pods.len().max(1);
            if let Some(pod) = world.pods.get_mut(usize::from(which) % count) {
                let status = Arc::make_mut(pod).status.get_or_insert_default();
                status.phase = Some("Failed".to_owned());
                status.conditions = None;
            }
        }
        Step::Scale(to) => world.set.spec.as_mut().unwrap().replicas = Some(to),
    }
}

proptest! {
    #[test]
    fn whatever_happens_the_wanted_pods_come_to_be(steps in steps(), parallel: bool, old in 0..6_i32) {
        let policy = if parallel { "Parallel" } else { "OrderedReady" };
        let set = set(|set| set["spec"]["podManagementPolicy"] = json!(policy));
        let pods = (0..old).map(|number| running(&format!("web-{number}"), "old")).collect();
        let mut world = World::new(set, pods);
        let mut next = 0;
        for step in steps {
            let plan = world.plan();
            if !parallel {
                prop_assert!(plan.create.len() + plan.delete.len() <= 1, "one after the other");
            }
            perform(&mut world, plan, &mut next);
            happen(&mut world, step);
        }
        let quiet = 200;
        for _ in 0..quiet {
            let plan = world.plan();
            perform(&mut world, plan, &mut next);
            happen(&mut world, Step::Ready);
            happen(&mut world, Step::Gone);
        }
        let plan = world.plan();
        prop_assert!(plan.create.is_empty() && plan.delete.is_empty(), "it comes to rest");
        let mut names: Vec<String> = world.pods.iter().map(|pod| pod.metadata.name.clone().unwrap()).collect();
        names.sort();
        let wanted = ordinals(world.set.spec.as_ref().unwrap());
        let wanted: Vec<String> = wanted.map(|number| format!("web-{number}")).collect();
        prop_assert_eq!(names, wanted);
        prop_assert!(world.pods.iter().all(|pod| revision_of(pod) == Some("new") && is_healthy(pod)));
        prop_assert_eq!(plan.status.current_revision.as_deref(), Some("new"));
    }
}
