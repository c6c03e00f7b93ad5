//! Applies and other writes in turn, against what upstream's documentation says becomes of them.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::api::patch::schema;

fn manager(name: &str, operation: Operation) -> Manager {
    Manager {
        name: name.into(),
        operation,
        api_version: "apps/v1".into(),
        subresource: String::new(),
    }
}

fn deployment() -> Option<&'static Type> {
    schema::of("io.k8s.api.apps.v1.Deployment")
}

const NOW: &str = "2026-01-02T03:04:05Z";

fn applied(live: &Value, by: &str, config: Value, force: bool) -> Result<Value, ApplyError> {
    let writer = Writer {
        manager: &manager(by, Operation::Apply),
        part: Part::WithoutStatus,
        now: NOW,
    };
    apply(live, &config, writer, force, deployment())
}

fn updated(old: Option<&Value>, by: &str, mut new: Value) -> Value {
    let writer = Writer {
        manager: &manager(by, Operation::Update),
        part: Part::Whole,
        now: NOW,
    };
    if let Some(old) = old
        && new["metadata"]["managedFields"].is_null()
    {
        new["metadata"]["managedFields"] = old["metadata"]["managedFields"].clone();
    }
    track(old, &mut new, writer, deployment()).unwrap();
    new
}

fn owned(object: &Value, by: &str) -> Vec<String> {
    let owners = Owners::of(object).unwrap();
    let mine = owners.0.iter().filter(|owner| owner.manager.name == by);
    mine.flat_map(|owner| owner.fields.paths()).collect()
}

fn web(replicas: i64, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"spec": {"containers": [{"name": "c", "image": image}]}},
        },
    })
}

#[test]
fn the_first_apply_makes_the_object_and_owns_what_it_says() {
    let object = applied(&json!({}), "kubectl", web(3, "i:1"), false).unwrap();
    assert_eq!(
        owned(&object, "kubectl"),
        [
            ".metadata.labels.app",
            ".spec.replicas",
            ".spec.selector",
            ".spec.template.spec.containers[name=\"c\"]",
            ".spec.template.spec.containers[name=\"c\"].image",
            ".spec.template.spec.containers[name=\"c\"].name",
        ]
    );
    let again = applied(&object, "kubectl", web(3, "i:1"), false).unwrap();
    assert_eq!(again, object, "once is enough");
}

#[test]
fn what_another_owns_is_a_conflict_unless_it_is_the_same_or_forced() {
    let object = applied(&json!({}), "one", web(3, "i:1"), false).unwrap();
    let agreed = applied(&object, "two", web(3, "i:1"), false).unwrap();
    assert_eq!(owned(&agreed, "two"), owned(&agreed, "one"));
    let error = applied(&object, "two", web(4, "i:1"), false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"one\" using apps/v1: .spec.replicas"
    );
    let error = applied(&object, "two", web(4, "i:2"), false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Apply failed with 2 conflicts: conflicts with \"one\" using apps/v1:\n- .spec.replicas\n- .spec.template.spec.containers[name=\"c\"].image"
    );
    let forced = applied(&object, "two", web(4, "i:1"), true).unwrap();
    assert_eq!(forced["spec"]["replicas"], 4);
    assert!(!owned(&forced, "one").contains(&".spec.replicas".to_owned()));
    assert!(owned(&forced, "two").contains(&".spec.replicas".to_owned()));
}

#[test]
fn what_is_no_longer_applied_goes_if_nobody_else_has_it() {
    let object = applied(&json!({}), "one", web(3, "i:1"), false).unwrap();
    let mut scaled = object.clone();
    scaled["spec"]["replicas"] = json!(5);
    scaled["spec"]["paused"] = json!(true);
    let object = updated(Some(&object), "autoscaler", scaled);
    assert!(!owned(&object, "one").contains(&".spec.replicas".to_owned()));

    let mut config = web(0, "i:1");
    config["metadata"] = json!({"name": "web"});
    config["spec"]
        .as_object_mut()
        .unwrap()
        .shift_remove("replicas");
    let object = applied(&object, "one", config, false).unwrap();
    assert_eq!(object["spec"]["replicas"], 5, "it is the autoscaler's");
    assert_eq!(object["metadata"].get("labels"), None, "it was ours alone");
    assert_eq!(object["spec"]["paused"], true, "it was never ours");
}

#[test]
fn items_of_lists_have_owners_of_their_own() {
    let object = applied(&json!({}), "one", web(3, "i:1"), false).unwrap();
    let side = |containers: Value| {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
            "spec": {"template": {"spec": {"containers": containers}}}})
    };
    let sidecar = json!([{"name": "side", "image": "s", "ports": [{"containerPort": 80}]}]);
    let object = applied(&object, "two", side(sidecar), false).unwrap();
    let names = |object: &Value| -> Vec<String> {
        let containers = &object["spec"]["template"]["spec"]["containers"];
        let containers = containers.as_array().into_iter().flatten();
        containers
            .map(|c| c["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&object), ["side", "c"]);
    // A third knows the sidecar by a field of its own.
    let env = json!([{"name": "side", "env": [{"name": "A", "value": "1"}]}]);
    let object = applied(&object, "three", side(env), false).unwrap();
    let object = applied(&object, "two", side(json!([])), false).unwrap();
    assert_eq!(names(&object), ["side", "c"], "the third has a part of it");
    let container = &object["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(
        *container,
        json!({"name": "side", "env": [{"name": "A", "value": "1"}]})
    );
    let object = applied(&object, "three", side(json!([])), false).unwrap();
    assert_eq!(names(&object), ["c"]);
}

#[test]
fn ports_without_a_protocol_are_those_of_tcp() {
    let ports = |ports: Value| {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
            "spec": {"template": {"spec": {"containers": [{"name": "c", "ports": ports}]}}}})
    };
    let live = applied(
        &json!({}),
        "one",
        ports(json!([{"containerPort": 53, "protocol": "TCP"}])),
        false,
    );
    let udp =
        json!([{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 53, "name": "dns"}]);
    let object = applied(&live.unwrap(), "two", ports(udp), false).unwrap();
    let there = &object["spec"]["template"]["spec"]["containers"][0]["ports"];
    assert_eq!(
        *there,
        json!([
            {"containerPort": 53, "protocol": "UDP"},
            {"containerPort": 53, "protocol": "TCP", "name": "dns"},
        ])
    );
    let twice = ports(json!([{"containerPort": 53}, {"containerPort": 53, "protocol": "TCP"}]));
    let error = applied(&object, "two", twice, false).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("duplicate entries for key [containerPort=53,protocol=\"TCP\"]"),
        "{error}"
    );
    let nameless = applied(&object, "two", ports(json!([{"name": "x"}])), false).unwrap_err();
    assert!(
        nameless
            .to_string()
            .contains("omits key field \"containerPort\""),
        "{nameless}"
    );
}

#[test]
fn an_object_without_owners_belongs_to_those_before_the_first_apply() {
    let error = applied(&web(3, "i:1"), "kubectl", web(4, "i:1"), false).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("conflict with \"before-first-apply\""),
        "{error}"
    );
}

#[test]
fn status_is_not_applied_with_the_object() {
    let mut config = web(3, "i:1");
    config["status"] = json!({"replicas": 9});
    let object = applied(&json!({}), "one", config, false).unwrap();
    assert_eq!(object.get("status"), None);
    assert!(
        owned(&object, "one")
            .iter()
            .all(|path| !path.starts_with(".status"))
    );
}

#[test]
fn whoever_changes_a_field_owns_it_and_whoever_removes_it_frees_it() {
    let object = updated(None, "maker", web(3, "i:1"));
    assert!(owned(&object, "maker").contains(&".spec.replicas".to_owned()));
    for nobodys in [".metadata", ".metadata.name"] {
        assert!(!owned(&object, "maker").contains(&nobodys.to_owned()));
    }
    let mut changed = object.clone();
    changed["spec"]["replicas"] = json!(4);
    let object = updated(Some(&object), "changer", changed);
    assert_eq!(owned(&object, "changer"), [".spec.replicas"]);
    assert!(!owned(&object, "maker").contains(&".spec.replicas".to_owned()));
    let mut removed = object.clone();
    removed["spec"]
        .as_object_mut()
        .unwrap()
        .shift_remove("replicas");
    let object = updated(Some(&object), "maker", removed);
    assert!(owned(&object, "changer").is_empty());
    let same = updated(Some(&object), "reader", object.clone());
    assert_eq!(same, object, "who changes nothing is not noted");
}

#[test]
fn a_client_may_say_who_owns_what_and_reset_it() {
    let object = updated(None, "maker", web(3, "i:1"));
    let mut reset = object.clone();
    reset["metadata"]["managedFields"] = json!([{}]);
    let object = updated(Some(&object), "x", reset);
    assert_eq!(object["metadata"].get("managedFields"), None);
}

/// What a small cluster of two managers and one map of labels does, written without trees.
#[derive(Default)]
struct Model {
    labels: BTreeMap<String, String>,
    applied: BTreeMap<&'static str, BTreeSet<String>>,
    updated: BTreeSet<String>,
}

impl Model {
    fn apply(&mut self, by: &'static str, config: &BTreeMap<String, String>, force: bool) -> bool {
        let changes = |key: &String| self.labels.get(key) != config.get(key);
        let changed: BTreeSet<String> = config.keys().filter(|key| changes(key)).cloned().collect();
        let others = |who: &&str| **who != *by;
        let owned_by_others = |key: &String| {
            self.updated.contains(key)
                || self
                    .applied
                    .iter()
                    .any(|(who, keys)| others(who) && keys.contains(key))
        };
        if !force && changed.iter().any(owned_by_others) {
            return false;
        }
        for (who, keys) in &mut self.applied {
            if *who != by {
                keys.retain(|key| !changed.contains(key));
            }
        }
        self.updated.retain(|key| !changed.contains(key));
        self.labels.extend(config.clone());
        let before = self.applied.insert(by, config.keys().cloned().collect());
        for key in before.unwrap_or_default() {
            let kept =
                self.updated.contains(&key) || self.applied.values().any(|k| k.contains(&key));
            if !kept {
                self.labels.remove(&key);
            }
        }
        true
    }

    fn update(&mut self, labels: BTreeMap<String, String>) {
        for (key, value) in &labels {
            if self.labels.get(key) != Some(value) {
                for keys in self.applied.values_mut() {
                    keys.remove(key);
                }
                self.updated.insert(key.clone());
            }
        }
        let gone = |key: &String| !labels.contains_key(key);
        self.applied
            .values_mut()
            .for_each(|keys| keys.retain(|key| !gone(key)));
        self.updated.retain(|key| !gone(key));
        self.labels = labels;
    }
}

#[derive(Clone, Debug)]
enum Step {
    Apply(&'static str, BTreeMap<String, String>, bool),
    Update(BTreeMap<String, String>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let labels = || prop::collection::btree_map("[a-d]", "[xy]", 0..4);
    let step = prop_oneof![
        (
            prop_oneof![Just("one"), Just("two")],
            labels(),
            any::<bool>()
        )
            .prop_map(|(by, labels, force)| Step::Apply(by, labels, force)),
        labels().prop_map(Step::Update),
    ];
    prop::collection::vec(step, 1..12)
}

fn with(labels: &BTreeMap<String, String>) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "labels": labels}})
}

fn labels_of(object: &Value) -> BTreeMap<String, String> {
    let labels = object["metadata"]["labels"]
        .as_object()
        .into_iter()
        .flatten();
    labels
        .map(|(k, v)| (k.clone(), v.as_str().unwrap().to_owned()))
        .collect()
}

proptest! {
    #[test]
    fn labels_and_their_owners_are_as_in_the_model(steps in steps()) {
        let mut model = Model::default();
        let mut object = updated(None, "maker", with(&BTreeMap::new()));
        for step in steps {
            match step {
                Step::Apply(by, labels, force) => {
                    let outcome = applied(&object, by, with(&labels), force);
                    prop_assert_eq!(outcome.is_ok(), model.apply(by, &labels, force));
                    if let Ok(applied) = outcome {
                        object = applied;
                    }
                }
                Step::Update(labels) => {
                    let mut new = object.clone();
                    new["metadata"]["labels"] = json!(labels);
                    object = updated(Some(&object), "editor", new);
                    model.update(labels);
                }
            }
            prop_assert_eq!(labels_of(&object), model.labels.clone());
            for by in ["one", "two"] {
                let mine = model.applied.get(by).cloned().unwrap_or_default();
                let mine: Vec<String> =
                    mine.iter().map(|key| format!(".metadata.labels.{key}")).collect();
                let mut owned = owned(&object, by);
                // Of no labels the whole is owned.
                owned.retain(|path| path != ".metadata.labels");
                prop_assert_eq!(owned, mine);
            }
        }
    }
}

/// As `kubectl apply` leaves an object that it applied by itself.
fn applied_by_client(replicas: i64, paused: bool) -> Value {
    let config = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": replicas, "paused": paused},
    });
    let mut object = config.clone();
    object["metadata"]["annotations"] =
        json!({"kubectl.kubernetes.io/last-applied-configuration": format!("{config}\n")});
    updated(None, "kubectl-client-side-apply", object)
}

#[test]
fn kubectl_goes_over_to_the_server_without_conflicts_with_itself() {
    let live = applied_by_client(1, true);
    let config = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 2, "paused": false},
    });
    let refused = applied(&live, "another", config.clone(), false).unwrap_err();
    assert!(matches!(refused, ApplyError::Conflicts(all) if all.len() == 2));

    let next = applied(&live, "kubectl", config.clone(), false).unwrap();
    assert_eq!(next["spec"], config["spec"]);
    let noted =
        &next["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"];
    let noted: Value = serde_json::from_str(noted.as_str().unwrap()).unwrap();
    assert_eq!(
        noted, config,
        "the next client-side apply compares with this"
    );

    // What somebody else has changed since is theirs.
    let mut scaled = live.clone();
    scaled["spec"]["replicas"] = 5.into();
    let scaled = updated(Some(&live), "scaler", scaled);
    let refused = applied(&scaled, "kubectl", config, false).unwrap_err();
    let ApplyError::Conflicts(conflicts) = refused else {
        panic!("{refused}");
    };
    let fields: Vec<_> = conflicts.iter().map(|one| &*one.field).collect();
    assert_eq!(fields, [".spec.replicas"]);
}

#[test]
fn an_object_without_the_annotation_does_not_get_it() {
    let live = updated(
        None,
        "else",
        json!({"metadata": {"name": "web"}, "spec": {"replicas": 1}}),
    );
    let next = applied(&live, "kubectl", json!({"spec": {"replicas": 1}}), false).unwrap();
    assert_eq!(next["metadata"]["annotations"], Value::Null);
}
