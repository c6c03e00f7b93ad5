//! The paths of a document: which operations there are on which kind, and which parameters they take.

use serde_json::{Map, Value, json};

use super::definitions::{Dialect, kind_extension, list_name};
use crate::resources::{Kind, Subresource};

/// A query parameter: name, type, meaning.
type Query = (&'static str, &'static str, &'static str);

const PRETTY: Query = (
    "pretty",
    "string",
    "Whether the answer is written for people.",
);
const DRY_RUN: Query = (
    "dryRun",
    "string",
    "All: do everything except storing the change.",
);
const FIELD_MANAGER: Query = ("fieldManager", "string", "Who makes the change.");
const FIELD_VALIDATION: Query = (
    "fieldValidation",
    "string",
    "What becomes of unknown and duplicate fields: Ignore, Warn or Strict.",
);
const FORCE: Query = (
    "force",
    "boolean",
    "Whether server-side apply takes over fields of others.",
);

const LIST: &[Query] = &[
    PRETTY,
    (
        "allowWatchBookmarks",
        "boolean",
        "Whether the watch may send bookmarks.",
    ),
    (
        "continue",
        "string",
        "Where the last page of the list ended.",
    ),
    ("fieldSelector", "string", "Which objects, by their fields."),
    ("labelSelector", "string", "Which objects, by their labels."),
    ("limit", "integer", "How many objects a page holds at most."),
    ("resourceVersion", "string", "How new the answer has to be."),
    (
        "resourceVersionMatch",
        "string",
        "How resourceVersion is meant.",
    ),
    (
        "sendInitialEvents",
        "boolean",
        "Whether the watch begins with what there is.",
    ),
    ("timeoutSeconds", "integer", "When the call ends."),
    ("watch", "boolean", "Whether changes follow the list."),
];
const READ: &[Query] = &[PRETTY];
const WRITE: &[Query] = &[PRETTY, DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION];
const PATCH: &[Query] = &[PRETTY, DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION, FORCE];
const DELETE: &[Query] = &[
    PRETTY,
    DRY_RUN,
    (
        "gracePeriodSeconds",
        "integer",
        "How long the object has to end.",
    ),
    ("orphanDependents", "boolean", "Whether dependents stay."),
    (
        "propagationPolicy",
        "string",
        "What becomes of dependents: Orphan, Background or Foreground.",
    ),
];

/// An apply comes first, as upstream lists it.
const PATCH_TYPES: [&str; 4] = {
    let [json, merge, strategic] = crate::api::patch::PatchKind::CONTENT_TYPES;
    [crate::api::applying::CONTENT_TYPE, json, merge, strategic]
};

/// One operation: HTTP verb, action, query parameters.
type Operation = (&'static str, &'static str, &'static [Query]);

const ON_COLLECTION: &[Operation] = &[
    ("get", "list", LIST),
    ("post", "post", WRITE),
    ("delete", "deletecollection", DELETE),
];
const ON_OBJECT: &[Operation] = &[
    ("get", "get", READ),
    ("put", "put", WRITE),
    ("patch", "patch", PATCH),
    ("delete", "delete", DELETE),
];
const ON_STATUS: &[Operation] = &[
    ("get", "get", READ),
    ("put", "put", WRITE),
    ("patch", "patch", PATCH),
];

pub(super) fn of(kinds: &[&Kind], dialect: Dialect) -> Map<String, Value> {
    let mut paths = Map::new();
    for kind in kinds {
        let root = match kind.group {
            "" => format!("/api/{}", kind.version),
            group => format!("/apis/{group}/{}", kind.version),
        };
        let collection = match kind.namespaced {
            true => format!("{root}/namespaces/{{namespace}}/{}", kind.plural),
            false => format!("{root}/{}", kind.plural),
        };
        let mut add = |path: String, operations| {
            let item = path_item(kind, &path, operations, dialect);
            paths.insert(path, item);
        };
        if kind.namespaced {
            add(format!("{root}/{}", kind.plural), &ON_COLLECTION[..1]);
        }
        add(format!("{collection}/{{name}}"), ON_OBJECT);
        for (subresource, name) in [
            (Subresource::Status, "status"),
            (Subresource::Approval, "approval"),
        ] {
            if kind.has(subresource) {
                add(format!("{collection}/{{name}}/{name}"), ON_STATUS);
            }
        }
        add(collection, ON_COLLECTION);
    }
    paths.sort_keys();
    paths
}

fn path_item(kind: &Kind, path: &str, operations: &[Operation], dialect: Dialect) -> Value {
    let mut item = Map::new();
    for (verb, action, query) in operations {
        item.insert(
            (*verb).to_owned(),
            operation(kind, path, action, query, dialect),
        );
    }
    let parameters = [
        ("namespace", "The namespace of the object."),
        ("name", "The name of the object."),
    ];
    let parameters: Vec<_> = parameters
        .into_iter()
        .filter(|(name, _)| path.contains(&format!("{{{name}}}")))
        .map(|(name, description)| parameter(name, "path", "string", description, dialect))
        .collect();
    if !parameters.is_empty() {
        item.insert("parameters".to_owned(), Value::from(parameters));
    }
    Value::Object(item)
}

fn operation(kind: &Kind, path: &str, action: &str, query: &[Query], dialect: Dialect) -> Value {
    let definition = match action {
        "list" => list_name(kind),
        _ => (kind.definition)().into_owned(),
    };
    let schema = dialect.reference(&definition);
    let mut parameters: Vec<_> = query
        .iter()
        .map(|(name, kind, description)| parameter(name, "query", kind, description, dialect))
        .collect();
    let takes_body = matches!(action, "post" | "put" | "patch");
    let body_types: &[&str] = if action == "patch" {
        &PATCH_TYPES
    } else {
        &["application/json"]
    };
    let body_schema = if action == "patch" {
        json!({ "type": "object" })
    } else {
        schema.clone()
    };
    let id: String = path.chars().filter(char::is_ascii_alphanumeric).collect();
    let mut operation = json!({
        "operationId": format!("{action}{id}"),
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": kind_extension(kind, ""),
    });
    match dialect {
        Dialect::V2 => {
            if takes_body {
                parameters.push(json!({ "name": "body", "in": "body", "required": true, "schema": body_schema }));
                operation["consumes"] = json!(body_types);
            }
            operation["produces"] = json!(["application/json"]);
            operation["responses"] = json!({ "200": { "description": "OK", "schema": schema } });
        }
        Dialect::V3 => {
            if takes_body {
                let content: Map<_, _> = body_types
                    .iter()
                    .map(|content_type| {
                        ((*content_type).to_owned(), json!({ "schema": body_schema }))
                    })
                    .collect();
                operation["requestBody"] = json!({ "required": true, "content": content });
            }
            operation["responses"] = json!({
                "200": { "description": "OK", "content": { "application/json": { "schema": schema } } }
            });
        }
    }
    operation["parameters"] = Value::from(parameters);
    operation
}

fn parameter(name: &str, place: &str, kind: &str, description: &str, dialect: Dialect) -> Value {
    let mut parameter = json!({ "name": name, "in": place, "description": description });
    if place == "path" {
        parameter["required"] = json!(true);
    }
    match dialect {
        Dialect::V2 => parameter["type"] = json!(kind),
        Dialect::V3 => parameter["schema"] = json!({ "type": kind }),
    }
    parameter
}
