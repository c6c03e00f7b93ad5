//! Strategic merge patch against examples and simple models.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::api::patch::schema;

fn patch_as(definition: &str, target: Value, patch: Value) -> Result<Value, PatchError> {
    merge(&target, &patch, Some(schema::of(definition).unwrap()))
}

fn patch_spec(target: Value, patch: Value) -> Value {
    patch_as("io.k8s.api.core.v1.PodSpec", target, patch).unwrap()
}

#[test]
fn items_are_merged_by_their_key() {
    assert_eq!(
        patch_spec(
            json!({ "containers": [{ "name": "a", "image": "a:1", "env": [{ "name": "X", "value": "1" }] }, { "name": "b" }] }),
            json!({ "containers": [
                { "name": "a", "image": "a:2", "env": [{ "name": "Y", "value": "2" }] }, { "name": "c", "tty": null }
            ] })
        ),
        json!({ "containers": [
            { "name": "a", "image": "a:2", "env": [{ "name": "Y", "value": "2" }, { "name": "X", "value": "1" }] },
            { "name": "c" },
            { "name": "b" },
        ] })
    );
}

#[test]
fn other_lists_are_replaced() {
    assert_eq!(
        patch_spec(
            json!({ "tolerations": [{ "key": "a" }] }),
            json!({ "tolerations": [{ "key": "b" }] })
        ),
        json!({ "tolerations": [{ "key": "b" }] })
    );
}

#[test]
fn finalizers_are_a_set() {
    assert_eq!(
        patch_as(
            "io.k8s.api.core.v1.Pod",
            json!({ "metadata": { "finalizers": ["a", "b"] } }),
            json!({ "metadata": { "finalizers": ["b", "c"], "$deleteFromPrimitiveList/finalizers": ["a"] } })
        )
        .unwrap(),
        json!({ "metadata": { "finalizers": ["b", "c"] } })
    );
}

#[test]
fn items_can_be_deleted_and_lists_replaced() {
    let target = || json!({ "containers": [{ "name": "a" }, { "name": "b", "image": "x" }] });
    assert_eq!(
        patch_spec(
            target(),
            json!({ "containers": [{ "name": "a", "$patch": "delete" }] })
        ),
        json!({ "containers": [{ "name": "b", "image": "x" }] })
    );
    assert_eq!(
        patch_spec(
            target(),
            json!({ "containers": [{ "$patch": "replace" }, { "name": "b" }] })
        ),
        json!({ "containers": [{ "name": "b" }] })
    );
}

#[test]
fn objects_can_be_replaced_deleted_and_trimmed() {
    let target = || json!({ "securityContext": { "runAsUser": 1, "fsGroup": 2 }, "hostname": "h" });
    assert_eq!(
        patch_spec(
            target(),
            json!({ "securityContext": { "$patch": "replace", "runAsUser": 3 } })
        ),
        json!({ "securityContext": { "runAsUser": 3 }, "hostname": "h" })
    );
    assert_eq!(
        patch_spec(
            target(),
            json!({ "securityContext": { "$patch": "delete" } })
        ),
        json!({ "hostname": "h" })
    );
    assert_eq!(
        patch_as(
            "io.k8s.api.apps.v1.DeploymentSpec",
            json!({ "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1 } } }),
            json!({ "strategy": { "$retainKeys": ["type"], "type": "Recreate" } })
        )
        .unwrap(),
        json!({ "strategy": { "type": "Recreate" } })
    );
}

#[test]
fn the_client_orders_its_items_and_the_server_keeps_its_own_in_place() {
    let names = |value: Value| -> Vec<String> {
        let items = value["containers"].as_array().unwrap().clone();
        items
            .iter()
            .map(|item| item["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let target =
        json!({ "containers": [{ "name": "injected" }, { "name": "a" }, { "name": "b" }] });
    let patched = patch_spec(
        target.clone(),
        json!({
            "$setElementOrder/containers": [{ "name": "b" }, { "name": "c" }, { "name": "a" }],
            "containers": [{ "name": "c" }],
        }),
    );
    assert_eq!(names(patched), ["injected", "b", "c", "a"]);
    let reordered = patch_spec(
        target,
        json!({ "$setElementOrder/containers": [{ "name": "b" }, { "name": "a" }] }),
    );
    assert_eq!(names(reordered), ["injected", "b", "a"]);
}

#[test]
fn kubectl_apply_can_remove_an_item_and_keep_the_order() {
    assert_eq!(
        patch_as(
            "io.k8s.api.core.v1.Service",
            json!({ "spec": { "ports": [{ "port": 80, "name": "http" }, { "port": 443, "name": "https" }] } }),
            json!({ "spec": {
                "$setElementOrder/ports": [{ "port": 443 }],
                "ports": [{ "port": 80, "$patch": "delete" }],
            } })
        )
        .unwrap(),
        json!({ "spec": { "ports": [{ "port": 443, "name": "https" }] } })
    );
}

#[test]
fn what_is_new_is_stored_without_directives_and_nulls() {
    assert_eq!(
        patch_spec(
            json!({}),
            json!({
                "$setElementOrder/containers": [{ "name": "a" }],
                "containers": [{ "name": "a", "image": null, "resources": { "$patch": "merge", "limits": null } }],
                "nodeName": null,
            })
        ),
        json!({ "containers": [{ "name": "a", "resources": {} }] })
    );
}

/// With work that grows with the square of the items this takes minutes.
#[test]
fn many_items_are_merged() {
    let count = 20_000;
    let items = |value: &str| {
        let item = |n| json!({ "name": format!("N{n}"), "value": value });
        Value::from((0..count).map(item).collect::<Vec<_>>())
    };
    let with = |env: Value| json!({ "containers": [{ "name": "a", "env": env }] });
    let merged = patch_spec(with(items("old")), with(items("new")));
    assert_eq!(merged, with(items("new")));
    let names: serde_json::Map<_, _> = (0..count).map(|n| (format!("n{n}"), json!("x"))).collect();
    let gone: serde_json::Map<_, _> = names.keys().map(|n| (n.clone(), Value::Null)).collect();
    let labels = |labels| json!({ "metadata": { "labels": Value::Object(labels) } });
    let (names, gone) = (labels(names), labels(gone));
    let pod = "io.k8s.api.core.v1.Pod";
    assert_eq!(
        patch_as(pod, names.clone(), gone.clone()).unwrap(),
        labels(serde_json::Map::new())
    );
    assert_eq!(
        super::super::merge::merge(names, &gone),
        labels(serde_json::Map::new())
    );
}

#[test]
fn a_wrong_directive_is_named_with_its_place() {
    let error = |patch: Value| {
        patch_as("io.k8s.api.core.v1.PodSpec", json!({}), patch)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        error(json!({ "containers": [{ "image": "x" }] })),
        "containers: an item does not contain the declared merge key \"name\""
    );
    assert_eq!(
        error(json!({ "$patch": "explode" })),
        "patch: unknown $patch directive: \"explode\""
    );
    assert_eq!(
        error(json!({ "$retainKeys": ["a"], "hostname": "b" })),
        "patch: $retainKeys does not hold \"hostname\", which the patch sets"
    );
}

fn variables() -> impl Strategy<Value = BTreeMap<String, u8>> {
    prop::collection::btree_map("[A-E]", any::<u8>(), 0..5)
}

fn as_list(variables: &BTreeMap<String, u8>) -> Value {
    variables
        .iter()
        .map(|(name, value)| json!({ "name": name, "value": value }))
        .collect()
}

fn as_map(list: &Value) -> BTreeMap<String, u8> {
    let items = list.as_array().cloned().unwrap_or_default();
    items
        .into_iter()
        .map(|item| {
            serde_json::from_value::<(String, u8)>(json!([item["name"], item["value"]])).unwrap()
        })
        .collect()
}

proptest! {
    /// A list with a key is a map: merging lists is merging maps.
    #[test]
    fn keyed_lists_merge_like_maps(before in variables(), change in variables(), removed in prop::collection::btree_set("[A-E]", 0..3)) {
        let mut items = as_list(&change);
        let deletions = removed.iter().map(|name| json!({ "name": name, "$patch": "delete" }));
        items.as_array_mut().unwrap().extend(deletions);
        let patched = patch_as(
            "io.k8s.api.core.v1.Container",
            json!({ "env": as_list(&before) }),
            json!({ "env": items }),
        ).unwrap();
        let mut expected = before;
        expected.extend(change);
        expected.retain(|name, _| !removed.contains(name));
        prop_assert_eq!(as_map(&patched["env"]), expected);
    }

    /// Whatever order is asked for, no item is lost or made up, and the client's items come in its order.
    #[test]
    fn ordering_only_orders(before in variables(), order in prop::collection::vec("[A-F]", 0..6)) {
        let asked: Vec<_> = order.iter().map(|name| json!({ "name": name })).collect();
        let patched = patch_as(
            "io.k8s.api.core.v1.Container",
            json!({ "env": as_list(&before) }),
            json!({ "$setElementOrder/env": asked }),
        ).unwrap();
        prop_assert_eq!(as_map(&patched["env"]), before);
        let place = |item: &Value| order.iter().position(|name| *name == item["name"]);
        let places: Vec<_> = patched["env"].as_array().unwrap().iter().filter_map(place).collect();
        prop_assert!(places.is_sorted());
    }

    #[test]
    fn a_patch_applied_twice_changes_nothing_more(before in variables(), change in variables()) {
        let patch = json!({ "env": as_list(&change) });
        let once = patch_as("io.k8s.api.core.v1.Container", json!({ "env": as_list(&before) }), patch.clone()).unwrap();
        let twice = patch_as("io.k8s.api.core.v1.Container", once.clone(), patch).unwrap();
        prop_assert_eq!(once, twice);
    }
}
