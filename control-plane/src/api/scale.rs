//! The `scale` subresource: `autoscaling/v1 Scale`, a small view of an object that has replicas.

use axum::response::Response;
use http::StatusCode;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::{Value, json};

use super::apply::Part;
use super::applying;
use super::body::{self, FieldValidation};
use super::content::{self, Encoding, MetaVersion, Shape};
use super::error::ApiError;
use super::meta;
use super::patching;
use super::present;
use super::registry::{Registry, Through};
use super::table;
use super::verbs::Input;
use crate::resources::FieldError;
use crate::resources::FieldErrorReason;
use crate::resources::age;
use crate::resources::form::SCALE;
use crate::store::cache::Freshness;

pub async fn get(registry: &Registry, input: &Input<'_>) -> Result<Response, ApiError> {
    let shape = content::shape(input.headers)?;
    let request = input.request;
    let object = registry
        .get(
            input.kind,
            &request.namespace,
            &request.name,
            Freshness::Latest,
        )
        .await?;
    let object: Value = serde_json::from_slice(&object.json).map_err(ApiError::internal)?;
    let scale = scale_of(&object);
    let answer = match shape {
        Shape::Object => scale,
        Shape::Table(version) => table_of(scale, version, meta::now()),
        Shape::Metadata(version) => table::partial(scale, version),
    };
    Ok(present::value(StatusCode::OK, &answer))
}

/// A scale as people read it.
fn table_of(scale: Value, version: MetaVersion, now: i64) -> Value {
    let (spec, status) = (&scale["spec"]["replicas"], &scale["status"]["replicas"]);
    let metadata = ObjectMeta::deserialize(&scale["metadata"]).unwrap_or_default();
    let cells = json!([metadata.name, spec, status, age::of(&metadata, now)]);
    let column = |name: &str, kind: &str, format: &str, description: &str| {
        json!({
            "name": name, "type": kind, "format": format, "description": description, "priority": 0,
        })
    };
    let columns = json!([
        column(
            "Name",
            "string",
            "name",
            "The name of the object that is scaled."
        ),
        column("Desired", "integer", "", "How many replicas are wanted."),
        column("Available", "integer", "", "How many replicas there are."),
        column("Age", "string", "", "Time since the object was created."),
    ]);
    let metadata = json!({"resourceVersion": scale["metadata"]["resourceVersion"]});
    let row = json!({"cells": cells, "object": table::partial(scale, version)});
    table::table(metadata, Some(columns), vec![row], version)
}

pub async fn update(registry: &Registry, input: &Input<'_>) -> Result<Response, ApiError> {
    let scale = input.form(&SCALE)?;
    check_place(input, &scale)?;
    change(registry, input, |old| scaled(old, &scale)).await
}

pub async fn patch(registry: &Registry, input: &Input<'_>) -> Result<Response, ApiError> {
    content::require_json(input.headers)?;
    if applying::is_apply(input.headers) {
        return apply(registry, input).await;
    }
    let patch = patching::patch_of(input.headers, &input.body)?;
    change(registry, input, |old| {
        let scale = patching::apply(&patch, None, &scale_of(old))?;
        scaled(old, &scale)
    })
    .await
}

/// Server-side apply: who applies a scale owns the object's replicas, through this subresource.
async fn apply(registry: &Registry, input: &Input<'_>) -> Result<Response, ApiError> {
    let sent = body::form(&SCALE, &input.body, Encoding::Yaml, FieldValidation::Strict)?;
    let scale = sent.object;
    applying::check_unowned(&scale)?;
    check_place(input, &scale)?;
    let mut config = json!({"metadata": scale["metadata"]});
    if let Some(replicas) = scale["spec"]["replicas"].as_i64() {
        config["spec"] = json!({"replicas": replicas});
    }
    let part = Part::Below(&["spec", "replicas"]);
    change(registry, input, |old| {
        let applied = applying::applied(input, old, &config, part)?;
        let mut next = scaled(old, &applied)?;
        meta::of(&mut next).insert(
            "managedFields".to_owned(),
            applied["metadata"]["managedFields"].clone(),
        );
        Ok(next)
    })
    .await
}

fn check_place(input: &Input<'_>, scale: &Value) -> Result<(), ApiError> {
    match meta::text(scale, "name") {
        "" => Ok(()),
        _ => input.check_place(scale),
    }
}

async fn change(
    registry: &Registry,
    input: &Input<'_>,
    change: impl FnMut(&Value) -> Result<Value, ApiError>,
) -> Result<Response, ApiError> {
    let updated = registry
        .update(&input.call()?, &input.request.name, Through::Main, change)
        .await?;
    Ok(present::value(StatusCode::OK, &scale_of(&updated)))
}

/// The `Scale` of an object.
fn scale_of(object: &Value) -> Value {
    let metadata = &object["metadata"];
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
            "creationTimestamp": metadata["creationTimestamp"],
        },
        "spec": {"replicas": object["spec"]["replicas"].as_i64().unwrap_or(0)},
        "status": {
            "replicas": object["status"]["replicas"].as_i64().unwrap_or(0),
            "selector": selector_text(&object["spec"]["selector"]),
        },
    })
}

/// `object` with the replicas that `scale` asks for.
fn scaled(object: &Value, scale: &Value) -> Result<Value, ApiError> {
    let wrong = |value: &Value, detail: &str| {
        let error = FieldError {
            path: "spec.replicas".into(),
            reason: FieldErrorReason::Invalid,
            value: Some(value.clone()),
            detail: detail.into(),
        };
        ApiError::invalid("autoscaling", "Scale", meta::text(object, "name"), &[error])
    };
    let replicas = match &scale["spec"]["replicas"] {
        Value::Null => 0,
        value => value
            .as_i64()
            .ok_or_else(|| wrong(value, "must be a whole number"))?,
    };
    if replicas < 0 {
        return Err(wrong(
            &json!(replicas),
            "must be greater than or equal to 0",
        ));
    }
    let mut object = object.clone();
    object["spec"]["replicas"] = json!(replicas);
    // An update of the scale is conditional when the client says which state it saw.
    let asked = meta::text(scale, "resourceVersion");
    meta::of(&mut object).insert("resourceVersion".to_owned(), json!(asked));
    Ok(object)
}

/// A `LabelSelector` as the text that clients send.
fn selector_text(selector: &Value) -> String {
    let mut terms: Vec<String> = Vec::new();
    // A ReplicationController's selector is only a map of labels.
    let labels = [selector, &selector["matchLabels"]].map(Value::as_object);
    for (key, value) in labels.into_iter().flatten().flatten() {
        terms.extend(value.as_str().map(|value| format!("{key}={value}")));
    }
    for expression in selector["matchExpressions"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let key = expression["key"].as_str().unwrap_or_default();
        let values: Vec<&str> = expression["values"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        terms.push(match expression["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    terms.sort();
    terms.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_shows_replicas_and_selector() {
        let object = json!({
            "metadata": {"name": "web", "resourceVersion": "5"},
            "spec": {"replicas": 3, "selector": {
                "matchLabels": {"app": "web"},
                "matchExpressions": [{"key": "tier", "operator": "In", "values": ["a", "b"]}],
            }},
            "status": {"replicas": 2},
        });
        let scale = scale_of(&object);
        assert_eq!(scale["spec"]["replicas"], 3);
        assert_eq!(
            scale["status"],
            json!({"replicas": 2, "selector": "app=web,tier in (a,b)"})
        );
    }

    #[test]
    fn people_read_it_as_a_table() {
        let object = json!({
            "metadata": {"name": "web", "creationTimestamp": "1970-01-01T00:00:00Z"},
            "spec": {"replicas": 3}, "status": {"replicas": 2},
        });
        let table = table_of(scale_of(&object), MetaVersion::V1, 60);
        assert_eq!(table["rows"][0]["cells"], json!(["web", 3, 2, "60s"]));
        assert_eq!(table["columnDefinitions"][1]["name"], "Desired");
    }

    #[test]
    fn a_selector_may_be_a_map_of_labels() {
        let selector = json!({"app": "web", "tier": "a"});
        assert_eq!(selector_text(&selector), "app=web,tier=a");
    }

    #[test]
    fn negative_replicas_are_refused() {
        let object = json!({"metadata": {"name": "web"}, "spec": {"replicas": 1}});
        let error = scaled(&object, &json!({"spec": {"replicas": -1}})).map_err(|e| e.message);
        assert_eq!(
            error,
            Err("Scale.autoscaling \"web\" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0".into())
        );
        assert_eq!(
            scaled(&object, &json!({"spec": {"replicas": 4}})).expect("scaled")["spec"]["replicas"],
            4
        );
    }
}
