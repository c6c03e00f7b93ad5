//! The documents hold what kubectl looks for.

use super::*;

fn core() -> Value {
    serde_json::from_slice(&v3_document("api/v1").unwrap().body).unwrap()
}

fn places() -> BTreeSet<String> {
    let Served { kinds, reviews } = Served::all();
    let forms = reviews.iter().map(|review| &review.form);
    let forms = forms.map(|form| place(form.group, form.version));
    let kinds = kinds.iter().map(|kind| place(kind.group, kind.version));
    kinds.chain(forms).collect()
}

/// Every `$ref` below a value.
fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        Value::Object(fields) => {
            found.extend(
                fields
                    .get("$ref")
                    .and_then(Value::as_str)
                    .map(str::to_owned),
            );
            fields.values().for_each(|value| references(value, found));
        }
        _ => {}
    }
}

#[test]
fn the_index_names_every_group_with_its_hash() {
    let index: Value = serde_json::from_slice(&v3_index().body).unwrap();
    let paths = index["paths"].as_object().unwrap();
    for place in places() {
        let url = paths[&place]["serverRelativeURL"].as_str().unwrap();
        let document = v3_document(&place).unwrap();
        assert_eq!(url, format!("/openapi/v3/{place}?hash={}", document.etag));
    }
    assert!(v3_document("apis/example.com/v1").is_none());
}

#[test]
fn every_reference_leads_somewhere() {
    for place in places() {
        let document: Value = serde_json::from_slice(&v3_document(&place).unwrap().body).unwrap();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(!found.is_empty());
        for reference in found {
            assert!(
                document
                    .pointer(reference.trim_start_matches('#'))
                    .is_some(),
                "{place}: {reference}"
            );
        }
    }
    let mut found = Vec::new();
    let document = v2();
    references(&document, &mut found);
    for reference in found {
        assert!(
            document
                .pointer(reference.trim_start_matches('#'))
                .is_some(),
            "{reference}"
        );
    }
}

#[test]
fn schemas_say_their_kind_and_how_lists_merge() {
    let schemas = core()["components"]["schemas"].clone();
    assert_eq!(
        schemas["io.k8s.api.core.v1.Pod"]["x-kubernetes-group-version-kind"],
        json!([{ "group": "", "kind": "Pod", "version": "v1" }])
    );
    let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
    assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
    let volumes = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["volumes"];
    assert_eq!(volumes["x-kubernetes-patch-strategy"], "merge,retainKeys");
    assert_eq!(
        schemas["io.k8s.apimachinery.pkg.util.intstr.IntOrString"]["oneOf"],
        json!([{ "type": "integer" }, { "type": "string" }])
    );
    assert_eq!(
        v2()["definitions"]["io.k8s.apimachinery.pkg.util.intstr.IntOrString"]["format"],
        "int-or-string"
    );
}

#[test]
fn patches_take_the_parameters_that_kubectl_looks_for() {
    let document = core();
    let patch = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
    let names: Vec<_> = patch["parameters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["name"].clone())
        .collect();
    assert!(names.contains(&json!("fieldValidation")) && names.contains(&json!("dryRun")));
    assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Pod");
}

/// Every type in the table of merge keys is one that some document describes, with the fields that it names.
#[test]
fn merge_keys_are_of_fields_that_there_are() {
    let document = v2();
    for kind in kinds() {
        assert!(
            crate::api::patch::schema::of(&(kind.definition)()).is_some(),
            "{}",
            kind.kind
        );
    }
    for known in crate::api::patch::schema::all() {
        let properties = &document["definitions"][known.name]["properties"];
        for field in known.fields {
            assert!(
                properties.get(field.name).is_some(),
                "{} {}",
                known.name,
                field.name
            );
        }
    }
}

#[test]
fn clients_get_the_form_they_ask_for() {
    for asked in [V2_PROTOBUF, V2_PROTOBUF_ASKED] {
        assert_eq!(answer(&["v2"], asked).unwrap().content_type, V2_PROTOBUF);
    }
    assert_eq!(
        answer(&["v2"], "*/*").unwrap().content_type,
        "application/json"
    );
    assert!(answer(&["v3", "apis", "apps", "v1"], "").is_some());
    assert!(answer(&["v3", "apis", "none", "v1"], "").is_none());
    assert!(answer(&["v4"], "").is_none());
}

#[test]
fn protobuf_and_json_say_the_same() {
    let message = protobuf::Document::decode(v2_protobuf().body).unwrap();
    let json = v2();
    let definitions = message.definitions.unwrap().additional_properties;
    assert_eq!(
        definitions.len(),
        json["definitions"].as_object().unwrap().len()
    );
    assert_eq!(
        message.paths.unwrap().path.len(),
        json["paths"].as_object().unwrap().len()
    );
    let spec = definitions
        .iter()
        .find(|schema| schema.name == "io.k8s.api.core.v1.PodSpec")
        .unwrap();
    let spec = spec.value.as_ref().unwrap();
    assert_eq!(spec.required, ["containers"]);
    let properties = &spec.properties.as_ref().unwrap().additional_properties;
    let containers = properties
        .iter()
        .find(|property| property.name == "containers")
        .unwrap()
        .value
        .as_ref()
        .unwrap();
    assert_eq!(
        containers.items.as_ref().unwrap().schema[0].reference,
        "#/definitions/io.k8s.api.core.v1.Container"
    );
    let key = containers
        .vendor_extension
        .iter()
        .find(|one| one.name == "x-kubernetes-patch-merge-key")
        .unwrap();
    assert_eq!(key.value.as_ref().unwrap().yaml, "\"name\"");
}

/// What discovery lists has a path with an operation about its kind, whose definition is there and says its kind: that is how
/// `kubectl explain` finds it. The same holds for subresources, each verb included.
#[test]
fn everything_that_discovery_lists_is_described() {
    let http = |verb: &str| match verb {
        "create" => "post",
        "update" => "put",
        "patch" => "patch",
        "delete" => "delete",
        _ => "get",
    };
    for place in places() {
        let document: Value = serde_json::from_slice(&v3_document(&place).unwrap().body).unwrap();
        let (group, version) = place.rsplit_once('/').unwrap();
        let group = group.strip_prefix("apis/").unwrap_or_default();
        let list = crate::api::discovery::resource_list(group, version).unwrap();
        for resource in list["resources"].as_array().unwrap() {
            let name = resource["name"].as_str().unwrap();
            let (plural, sub) = name.split_once('/').unwrap_or((name, ""));
            let namespaced = resource["namespaced"] == true;
            let middle = if namespaced {
                "/namespaces/{namespace}"
            } else {
                ""
            };
            let mut path = format!("/{place}{middle}/{plural}");
            if !sub.is_empty() {
                path = format!("{path}/{{name}}/{sub}");
            }
            let item = &document["paths"][&path];
            for verb in resource["verbs"].as_array().unwrap() {
                let verb = verb.as_str().unwrap();
                let on_object =
                    sub.is_empty() && matches!(verb, "get" | "update" | "patch" | "delete");
                let item = if on_object {
                    &document["paths"][format!("{path}/{{name}}")]
                } else {
                    item
                };
                let operation = &item[http(verb)];
                let about = &operation["x-kubernetes-group-version-kind"];
                assert_eq!(about["kind"], resource["kind"], "{verb} {path}");
            }
            let kind = json!({
                "group": resource.get("group").cloned().unwrap_or_else(|| json!(group)),
                "kind": resource["kind"],
                "version": resource.get("version").cloned().unwrap_or_else(|| json!(version)),
            });
            if resource["kind"].as_str().unwrap().ends_with("Options") {
                continue;
            }
            let schemas = document["components"]["schemas"].as_object().unwrap();
            let described =
                |schema: &&Value| schema["x-kubernetes-group-version-kind"] == json!([kind]);
            assert!(
                schemas.values().any(|schema| described(&schema)),
                "{name} of {place}"
            );
        }
    }
}
