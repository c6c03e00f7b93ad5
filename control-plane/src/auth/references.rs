//! Which ConfigMaps, Secrets and ServiceAccounts a pod names. Pure: these are the ones that its node may read, or have tokens
//! of.

use std::collections::BTreeSet;

use serde_json::Value;

/// The kinds of object that a pod brings along to its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Referenced {
    ConfigMap,
    Secret,
    ServiceAccount,
}

impl Referenced {
    pub fn of_resource(group: &str, plural: &str) -> Option<Self> {
        match (group, plural) {
            ("", "configmaps") => Some(Referenced::ConfigMap),
            ("", "secrets") => Some(Referenced::Secret),
            ("", "serviceaccounts") => Some(Referenced::ServiceAccount),
            _ => None,
        }
    }
}

/// The names, in the pod's own namespace, that the pod refers to.
pub fn references(pod: &Value, to: Referenced) -> BTreeSet<&str> {
    let spec = &pod["spec"];
    if to == Referenced::ServiceAccount {
        let name = spec["serviceAccountName"].as_str();
        return name.into_iter().filter(|name| !name.is_empty()).collect();
    }
    let containers = ["initContainers", "containers", "ephemeralContainers"];
    let mut names: Vec<&Value> = Vec::new();
    for container in containers.iter().flat_map(|field| items(&spec[*field])) {
        let (whole, one) = match to {
            Referenced::ConfigMap => ("configMapRef", "configMapKeyRef"),
            _ => ("secretRef", "secretKeyRef"),
        };
        names.extend(items(&container["envFrom"]).map(|from| &from[whole]["name"]));
        names.extend(items(&container["env"]).map(|env| &env["valueFrom"][one]["name"]));
    }
    for volume in items(&spec["volumes"]) {
        volume_names(volume, to, &mut names);
    }
    if to == Referenced::Secret {
        names.extend(items(&spec["imagePullSecrets"]).map(|secret| &secret["name"]));
    }
    let names = names.into_iter().filter_map(Value::as_str);
    names.filter(|name| !name.is_empty()).collect()
}

fn volume_names<'a>(volume: &'a Value, to: Referenced, names: &mut Vec<&'a Value>) {
    let source = match to {
        Referenced::ConfigMap => "configMap",
        _ => "secret",
    };
    let projected = items(&volume["projected"]["sources"]);
    names.extend(projected.map(|from| &from[source]["name"]));
    if to == Referenced::ConfigMap {
        names.push(&volume[source]["name"]);
        return;
    }
    // Volume types that need a password name its Secret in one of three ways.
    for source in volume.as_object().into_iter().flat_map(|v| v.values()) {
        names.extend([
            &source["secretName"],
            &source["secretRef"]["name"],
            &source["nodePublishSecretRef"]["name"],
        ]);
    }
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn every_place_of_a_pod_that_names_one_counts() {
        let pod = json!({"spec": {
            "serviceAccountName": "a",
            "imagePullSecrets": [{"name": "s-pull"}],
            "initContainers": [{"envFrom": [{"configMapRef": {"name": "c-init"}}]}],
            "containers": [
                {"env": [
                    {"name": "A", "value": "plain"},
                    {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "c-env", "key": "k"}}},
                    {"name": "C", "valueFrom": {"secretKeyRef": {"name": "s-env", "key": "k"}}},
                    {"name": "D", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                ]},
                {"envFrom": [{"secretRef": {"name": "s-from"}}, {"secretRef": {"name": ""}}]},
            ],
            "ephemeralContainers": [{"envFrom": [{"configMapRef": {"name": "c-debug"}}]}],
            "volumes": [
                {"name": "v-none", "emptyDir": {}},
                {"name": "v1", "configMap": {"name": "c-volume"}},
                {"name": "v2", "secret": {"secretName": "s-volume"}},
                {"name": "v3", "projected": {"sources": [
                    {"configMap": {"name": "c-projected"}},
                    {"secret": {"name": "s-projected"}},
                    {"serviceAccountToken": {"path": "token"}},
                ]}},
                {"name": "v4", "csi": {"driver": "d", "nodePublishSecretRef": {"name": "s-csi"}}},
                {"name": "v5", "cephfs": {"secretRef": {"name": "s-ceph"}}},
            ],
        }});
        let names = |to| references(&pod, to).into_iter().collect::<Vec<_>>();
        assert_eq!(
            names(Referenced::ConfigMap),
            ["c-debug", "c-env", "c-init", "c-projected", "c-volume"]
        );
        assert_eq!(names(Referenced::ServiceAccount), ["a"]);
        assert_eq!(
            names(Referenced::Secret),
            [
                "s-ceph",
                "s-csi",
                "s-env",
                "s-from",
                "s-projected",
                "s-pull",
                "s-volume"
            ]
        );
    }

    proptest! {
        #[test]
        fn a_pod_of_any_shape_is_read(text in "[a-z\\[\\]{}:\",]{0,40}") {
            let part: Value = serde_json::from_str(&text).unwrap_or(json!([text]));
            let pod = json!({"spec": {"volumes": [part.clone()], "containers": part}});
            references(&pod, Referenced::ConfigMap);
            references(&pod, Referenced::Secret);
        }
    }
}
