//! The schemas of a document: those of k8s-openapi, with what clients need to know beyond JSON Schema.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, ListMeta, Status};
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use crate::{
    api::patch::schema::{self, Topology},
    resources::{Kind, form::Form},
};

/// Version 2 and version 3 of OpenAPI differ in small ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    V2,
    V3,
}

impl Dialect {
    /// Where schemas are within a document.
    fn root(self) -> &'static str {
        match self {
            Self::V2 => "/definitions",
            Self::V3 => "/components/schemas",
        }
    }

    /// A reference to a schema.
    pub(super) fn reference(self, definition: &str) -> Value {
        json!({ "$ref": format!("#{}/{definition}", self.root()) })
    }
}

/// The definition of what a delete takes.
pub(super) fn delete_options() -> String {
    DeleteOptions::schema_name().into_owned()
}

/// The definition of what is answered when there is no object to show.
pub(super) fn status() -> String {
    Status::schema_name().into_owned()
}

/// The definitions of `kinds`, of their lists, of `forms`, and of all that these refer to, by name.
pub(super) fn of(kinds: &[&Kind], forms: &[Form], dialect: Dialect) -> Map<String, Value> {
    let mut generator = SchemaSettings::draft07()
        .with(|settings| {
            settings.definitions_path = dialect.root().into();
            settings.transforms.clear();
        })
        .into_generator();
    for kind in kinds {
        (kind.schema)(&mut generator);
    }
    for form in forms {
        (form.schema)(&mut generator);
    }
    generator.subschema_for::<DeleteOptions>();
    generator.subschema_for::<Status>();
    let list_metadata = list_metadata(&mut generator, dialect);
    let mut definitions = generator.take_definitions(false);
    definitions
        .iter_mut()
        .for_each(|(name, schema)| finish(name, schema, dialect));
    for kind in kinds {
        let name = (kind.definition)();
        if let Some(schema) = definitions.get_mut(name.as_ref()) {
            schema["x-kubernetes-group-version-kind"] = json!([kind_extension(kind, "")]);
        }
        definitions.insert(list_name(kind), list(kind, &list_metadata, dialect));
    }
    for form in forms {
        if let Some(schema) = definitions.get_mut((form.definition)().as_ref()) {
            schema["x-kubernetes-group-version-kind"] =
                json!([extension(form.group, form.version, form.kind)]);
        }
    }
    for (name, kind) in [(delete_options(), "DeleteOptions"), (status(), "Status")] {
        if let Some(schema) = definitions.get_mut(&name) {
            schema["x-kubernetes-group-version-kind"] = json!([extension("", "v1", kind)]);
        }
    }
    definitions.sort_keys();
    definitions
}

/// How a schema or an operation says which kind it is about.
pub(super) fn extension(group: &str, version: &str, kind: &str) -> Value {
    json!({ "group": group, "kind": kind, "version": version })
}

fn kind_extension(kind: &Kind, suffix: &str) -> Value {
    extension(kind.group, kind.version, &format!("{}{suffix}", kind.kind))
}

pub(super) fn list_name(kind: &Kind) -> String {
    format!("{}List", (kind.definition)())
}

fn list_metadata(generator: &mut SchemaGenerator, dialect: Dialect) -> Value {
    let mut reference = generator.subschema_for::<ListMeta>().to_value();
    adapt(&mut reference, dialect);
    reference
}

fn list(kind: &Kind, metadata: &Value, dialect: Dialect) -> Value {
    json!({
        "description": format!("{}List is a list of {}.", kind.kind, kind.kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": { "type": "string" },
            "items": { "type": "array", "items": dialect.reference(&(kind.definition)()) },
            "kind": { "type": "string" },
            "metadata": metadata,
        },
        "x-kubernetes-group-version-kind": [kind_extension(kind, "List")],
    })
}

/// Adds how lists merge, and makes the schema speak the dialect.
fn finish(name: &str, schema: &mut Value, dialect: Dialect) {
    if let Some(known) = schema::of(name) {
        for field in known.fields {
            let Some(property) = schema.pointer_mut(&format!("/properties/{}", field.name)) else {
                continue;
            };
            if let Some(strategy) = field.merge.strategy() {
                property["x-kubernetes-patch-strategy"] = json!(strategy);
            }
            if let Some(key) = field.merge.key() {
                property["x-kubernetes-patch-merge-key"] = json!(key);
            }
            owned(field, property);
        }
    }
    adapt(schema, dialect);
    // The server makes do without, as with reviews, which have no name.
    if let Some(Value::Array(required)) = schema.get_mut("required") {
        required.retain(|field| field != "metadata");
        if required.is_empty()
            && let Value::Object(fields) = schema
        {
            fields.shift_remove("required");
        }
    }
    // An amount may be written as a number, but it is text to those who read the schema.
    if name.ends_with("resource.Quantity") && dialect == Dialect::V2 {
        schema["type"] = json!("string");
        if let Value::Object(fields) = schema {
            fields.shift_remove("format");
        }
    }
}

/// Adds what has one owner.
fn owned(field: &schema::Field, property: &mut Value) {
    match field.topology() {
        Topology::Fields => {}
        Topology::Whole if property["type"] == "array" => {
            property["x-kubernetes-list-type"] = json!("atomic");
        }
        Topology::Whole => property["x-kubernetes-map-type"] = json!("atomic"),
        Topology::Values => property["x-kubernetes-list-type"] = json!("set"),
        Topology::Items(keys) => {
            let names: Vec<&str> = keys.iter().map(|key| key.name).collect();
            property["x-kubernetes-list-type"] = json!("map");
            property["x-kubernetes-list-map-keys"] = json!(names);
        }
    }
}

fn adapt(schema: &mut Value, dialect: Dialect) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(|item| adapt(item, dialect)),
        Value::Object(fields) => {
            if fields.shift_remove("x-kubernetes-int-or-string").is_some() {
                fields.insert("format".to_owned(), json!("int-or-string"));
                match dialect {
                    Dialect::V2 => fields.insert("type".to_owned(), json!("string")),
                    Dialect::V3 => fields.insert(
                        "oneOf".to_owned(),
                        json!([{ "type": "integer" }, { "type": "string" }]),
                    ),
                };
            }
            // In version 3 nothing may stand beside a reference.
            if dialect == Dialect::V3
                && fields.len() > 1
                && let Some(reference) = fields.shift_remove("$ref")
            {
                fields.insert("allOf".to_owned(), json!([{ "$ref": reference }]));
            }
            fields.values_mut().for_each(|value| adapt(value, dialect));
        }
        _ => {}
    }
}
