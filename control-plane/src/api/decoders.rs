//! What each decoder that a client reaches keeps to, whatever it is fed with: it never panics, and what it accepts means the
//! same when it is written down and read again. The fuzz targets (`control-plane/fuzz`) and the tests feed these functions.

use std::fmt::Display;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Uri, header};
use serde_json::{Value, json};

use super::apply::{self, Manager, Operation, Owners, Part, Writer};
use super::body::{self, FieldValidation};
use super::content::Encoding;
use super::options::ListOptions;
use super::patching;
use super::request::{self, Query};
use super::selectors::{FieldSelector, LabelSelector};
use crate::resources::quantity::Quantity;
use crate::resources::{self, Kind, duplicate_fields, form};

/// Err: what a decoder did that it must not do.
pub type Kept = Result<(), String>;

/// Feeds a decoder.
pub type Decoder = fn(&[u8]) -> Kept;

/// All of them, by the names that their seeds (`fuzz/seeds`) go by.
pub const ALL: [(&str, Decoder); 10] = [
    ("json", json),
    ("yaml", yaml),
    ("protobuf", protobuf),
    ("forms", forms),
    ("patches", patches),
    ("applied", applied),
    ("owners", owners),
    ("selectors", selectors),
    ("quantities", quantities),
    ("uris", uris),
];

/// A moment, for what is written down with one.
const NOW: i64 = 1_800_000_000;

fn same<T: PartialEq + std::fmt::Debug>(what: &str, once: &T, again: &T) -> Kept {
    if once == again {
        return Ok(());
    }
    Err(format!("{what}: {once:?} became {again:?}"))
}

fn accepted<T>(what: &str, again: Result<T, impl Display>) -> Result<T, String> {
    again.map_err(|error| format!("{what}: what was accepted is refused: {error}"))
}

/// The kind that a value says it is, a pod where it says nothing that is known.
fn kind_of(value: &Value) -> &'static Kind {
    let text = |field: &str| value[field].as_str().unwrap_or_default();
    let known =
        |kind: &&Kind| kind.kind == text("kind") && kind.api_version() == text("apiVersion");
    let kinds = resources::kinds();
    let pod = |kind: &&Kind| kind.kind == "Pod";
    // The table has pods; without them the first kind does as well.
    let found = kinds.iter().find(known).or_else(|| kinds.iter().find(pod));
    found.unwrap_or(&kinds[0])
}

/// An object, and the way of a create up to the store.
fn object(text: &[u8], encoding: Encoding) -> Kept {
    let Ok(value) = body::parse(text, encoding) else {
        return Ok(());
    };
    let kind = kind_of(&value);
    let Ok(once) = body::object(kind, text, encoding, FieldValidation::Warn) else {
        return Ok(());
    };
    let written = once.object.to_string();
    let strict = FieldValidation::Strict;
    let again = body::object(kind, written.as_bytes(), Encoding::Json, strict);
    let again = accepted("decode", again.map_err(|error| error.message))?;
    same("decode", &once.object, &again.object)?;

    let mut object = once.object;
    (kind.default)(&mut object);
    let mut twice = object.clone();
    (kind.default)(&mut twice);
    same("default", &object, &twice)?;
    (kind.prepare_create)(&mut object);
    drop((kind.validate)(&object, None));
    let mut updated = object.clone();
    (kind.prepare_update)(&mut updated, &object);
    drop((kind.validate)(&updated, Some(&object)));
    drop((kind.row)(&object, NOW));
    Ok(())
}

/// JSON.
fn json(text: &[u8]) -> Kept {
    drop(duplicate_fields(text));
    object(text, Encoding::Json)
}

/// YAML.
fn yaml(text: &[u8]) -> Kept {
    object(text, Encoding::Yaml)
}

/// Kubernetes' protobuf.
fn protobuf(bytes: &[u8]) -> Kept {
    if let Ok(value) = body::parse(bytes, Encoding::Protobuf) {
        let written = value.to_string();
        let again = body::parse(written.as_bytes(), Encoding::Json).map_err(|error| error.message);
        same("parse", &value, &accepted("parse", again)?)?;
    }
    object(bytes, Encoding::Protobuf)
}

/// What clients send and nobody stores.
fn forms(text: &[u8]) -> Kept {
    for form in [
        &form::SCALE,
        &form::EVICTION,
        &form::BINDING,
        &form::TOKEN_REQUEST,
        &form::SUBJECT_ACCESS_REVIEW,
    ] {
        drop(body::form(
            form,
            text,
            Encoding::Json,
            FieldValidation::Warn,
        ));
    }
    Ok(())
}

/// A pod with something for each kind of patch to change.
fn live() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "labels": {"a": "b"}, "finalizers": ["a/b", "c/d"]},
        "spec": {
            "containers": [
                {"name": "c", "image": "i", "args": ["x"], "ports": [{"containerPort": 80, "protocol": "TCP"}]},
                {"name": "d", "image": "i", "env": [{"name": "E", "value": "v"}]},
            ],
            "tolerations": [{"key": "k", "operator": "Exists"}],
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Gi"}}],
        },
    })
}

/// JSON patches, merge patches and strategic ones.
fn patches(text: &[u8]) -> Kept {
    let pod = live();
    let body = Bytes::copy_from_slice(text);
    for content_type in [
        "application/json-patch+json",
        "application/merge-patch+json",
        "application/strategic-merge-patch+json",
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        let Ok(patch) = patching::patch_of(&headers, &body) else {
            continue;
        };
        let kind = kind_of(&pod);
        let Ok(once) = patching::apply(&patch, Some(kind), &pod) else {
            continue;
        };
        if content_type == "application/merge-patch+json" {
            let twice = patching::apply(&patch, Some(kind), &once).map_err(|error| error.message);
            same("merge", &once, &accepted("merge", twice)?)?;
        }
    }
    Ok(())
}

/// Applied configurations.
fn applied(text: &[u8]) -> Kept {
    let Ok(config) = body::parse(text, Encoding::Yaml) else {
        return Ok(());
    };
    let kind = kind_of(&live());
    let Ok(config) = body::typed(kind, config, Vec::new(), FieldValidation::Warn) else {
        return Ok(());
    };
    let manager = Manager {
        name: "m".to_owned(),
        operation: Operation::Apply,
        api_version: kind.api_version(),
        subresource: String::new(),
    };
    let writer = Writer {
        manager: &manager,
        part: Part::WithoutStatus,
        now: "2026-01-01T00:00:00Z",
    };
    let apply = |object: &Value| {
        let schema = patching::schema_of(kind);
        apply::apply(object, &config.object, writer, true, schema)
    };
    let Ok(once) = apply(&live()) else {
        return Ok(());
    };
    let twice = accepted("apply", apply(&once))?;
    same("apply", &once, &twice)
}

/// `metadata.managedFields`.
fn owners(text: &[u8]) -> Kept {
    let Ok(object) = serde_json::from_slice::<Value>(text) else {
        return Ok(());
    };
    let Ok(owners) = Owners::of(&object) else {
        return Ok(());
    };
    let written = json!({"metadata": {"managedFields": owners.to_json()}});
    same(
        "owners",
        &owners,
        &accepted("owners", Owners::of(&written))?,
    )
}

/// Selectors of labels and of fields.
fn selectors(text: &[u8]) -> Kept {
    let Ok(text) = std::str::from_utf8(text) else {
        return Ok(());
    };
    if let Ok(selector) = LabelSelector::parse(text) {
        selector.matches(&[("app".to_owned(), "web".to_owned())]);
    }
    if let Ok(selector) = FieldSelector::parse(text) {
        selector.matches(&[("metadata.name", "a".to_owned())]);
        drop(selector.check(&["metadata.name"]));
    }
    Ok(())
}

/// Quantities.
fn quantities(text: &[u8]) -> Kept {
    let parsed = std::str::from_utf8(text).map(str::parse::<Quantity>);
    let Ok(Ok(quantity)) = parsed else {
        return Ok(());
    };
    let written = quantity.to_string();
    let again: Quantity = accepted(&written, written.parse())?;
    same("value", &quantity, &again)?;
    same("writing", &written, &again.to_string())
}

/// Paths, parameters and the tokens that continue a list.
fn uris(text: &[u8]) -> Kept {
    let parsed = std::str::from_utf8(text).map(str::parse::<Uri>);
    let Ok(Ok(uri)) = parsed else {
        return Ok(());
    };
    let query = Query::of(&uri);
    for method in [Method::GET, Method::POST, Method::DELETE] {
        drop(request::target(&method, &uri, &query));
    }
    let Ok(ListOptions {
        page: Some(page), ..
    }) = ListOptions::parse(&query)
    else {
        return Ok(());
    };
    let written = format!("/x?continue={}", page.token());
    let uri: Uri = accepted("token", written.parse())?;
    let again = ListOptions::parse(&Query::of(&uri)).map_err(|error| error.message);
    same("page", &Some(page), &accepted("token", again)?.page)
}
