//! A kind as the generic registry sees it, and the typed trait behind it.

use std::borrow::Cow;

use k8s_openapi::{Metadata, Resource, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    decode::{self, DecodeError},
    validate::{self, FieldError},
};

/// A printer column of `kubectl get`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: &'static str,
    /// OpenAPI type: `string`, `integer`, `date` …
    pub kind: &'static str,
    pub format: &'static str,
    pub description: &'static str,
    /// 0 is always shown; 1 only with `-o wide`.
    pub priority: i32,
}

impl Column {
    /// A column of text that is always shown.
    pub const fn text(name: &'static str, description: &'static str) -> Self {
        Self {
            name,
            kind: "string",
            format: "",
            description,
            priority: 0,
        }
    }

    /// A column of whole numbers that is always shown.
    pub const fn integer(name: &'static str, description: &'static str) -> Self {
        Self {
            kind: "integer",
            ..Self::text(name, description)
        }
    }

    /// The same column, shown only with `-o wide`.
    pub const fn wide(self) -> Self {
        Self {
            priority: 1,
            ..self
        }
    }

    /// The column that names the object.
    pub const NAME: Self = Self {
        format: "name",
        ..Self::text(
            "Name",
            "The object's name, unique among the kind within its namespace.",
        )
    };
    /// The column that says how long ago the object was created.
    pub const AGE: Self = Self::text("Age", "Time since the object was created.");
    /// What a kind that has a template of pods shows of it.
    pub const CONTAINERS: Self =
        Self::text("Containers", "Names of the template's containers.").wide();
    pub const IMAGES: Self = Self::text("Images", "Images of the template's containers.").wide();
    /// The column that says which pods are an object's own.
    pub const SELECTOR: Self = Self::text("Selector", "Which pods belong.").wide();
}

/// A subresource that a kind serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subresource {
    Status,
    Scale,
    Binding,
    Log,
    Approval,
    Finalize,
    Eviction,
    Exec,
    Attach,
    PortForward,
    EphemeralContainers,
    Resize,
    Token,
    Proxy,
}

/// How a kind that is stored as another one gets there and back. Both functions take decoded objects.
#[derive(Clone, Copy)]
pub struct Conversion {
    /// The group and version that the stored kind belongs to; its plural is the same.
    pub group: &'static str,
    pub version: &'static str,
    pub to_stored: fn(&Value) -> Result<Value, DecodeError>,
    pub from_stored: fn(&Value) -> Result<Value, DecodeError>,
}

/// Checks the types of all fields and drops what the kind does not have; gives the paths of what it dropped.
pub type Decode = fn(Value) -> Result<(Value, Vec<String>), DecodeError>;

/// A kind of object, erased from its Rust type: what the generic registry works with.
///
/// Functions take and give `serde_json::Value`s that came out of `decode`, and do no I/O. Given a value of another
/// shape they leave it as it is, and `validate` says what is wrong with it.
#[derive(Clone, Copy)]
pub struct Kind {
    /// Empty for the core group.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    pub subresources: &'static [Subresource],
    pub columns: &'static [Column],
    /// Nodes, and machines that join, may read only those that are their own.
    pub private_to_node: bool,
    /// A delete that removes an object answers with it, not with a `Status`.
    pub returns_deleted_object: bool,
    /// A delete that says nothing of what the object owns leaves that alone.
    pub orphans: bool,
    /// What the client is told then.
    pub orphans_warning: Option<&'static str>,
    /// Objects are not stored: the server says what there is, and they can only be read.
    pub computed: bool,
    /// Set when objects are kept as another kind.
    pub conversion: Option<Conversion>,
    /// The cells of a row, in the order of `columns`. `now` is seconds since the Unix epoch.
    pub row: fn(object: &Value, now: i64) -> Vec<Value>,
    pub decode: Decode,
    pub default: fn(&mut Value),
    /// All that is wrong with `new`, given what was there.
    pub validate: fn(new: &Value, old: Option<&Value>) -> Vec<FieldError>,
    /// What a client may not set at creation is reset, what the server sets is set.
    pub prepare_create: fn(&mut Value),
    /// Carries over what an update through this path may not change (`status`, …); says through `generation` if spec changed.
    pub prepare_update: fn(new: &mut Value, old: &Value),
    /// The same for an update through `/status`.
    pub prepare_status: fn(new: &mut Value, old: &Value),
    /// How long an object has to stop after a delete that asks for so much, in seconds.
    pub grace_period: fn(&Value, asked: Option<i64>) -> i64,
    /// What field selectors can ask, beyond `metadata.name` and `metadata.namespace`.
    pub fields: fn(&Value) -> Vec<(&'static str, String)>,
    /// The name of the OpenAPI definition: `io.k8s.api.core.v1.Pod`.
    pub definition: fn() -> Cow<'static, str>,
    /// Leaves the OpenAPI definition, and all that it refers to, in the generator; gives a reference to it.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
}

impl Kind {
    /// Erases a kind's type.
    pub const fn of<T: Strategy>() -> Self {
        Self {
            group: T::GROUP,
            version: T::VERSION,
            kind: T::KIND,
            plural: T::URL_PATH_SEGMENT,
            singular: T::SINGULAR,
            short_names: T::SHORT_NAMES,
            categories: T::CATEGORIES,
            namespaced: T::NAMESPACED,
            subresources: T::SUBRESOURCES,
            columns: T::COLUMNS,
            private_to_node: T::PRIVATE_TO_NODE,
            returns_deleted_object: T::RETURNS_DELETED_OBJECT,
            orphans: T::ORPHANS,
            orphans_warning: T::ORPHANS_WARNING,
            computed: T::COMPUTED,
            conversion: T::CONVERSION,
            row: |object, now| match decode::typed::<T>(object) {
                Ok(object) => object.row(now),
                Err(_) => vec![Value::Null; T::COLUMNS.len()],
            },
            decode: decode::decode::<T>,
            default: |object| edit::<T>(object, T::set_defaults),
            validate: validate_erased::<T>,
            prepare_create: |object| edit::<T>(object, T::prepare_create),
            prepare_update: |new, old| edit_with::<T>(new, old, T::prepare_update),
            prepare_status: |new, old| edit_with::<T>(new, old, T::prepare_status),
            grace_period: |object, asked| {
                decode::typed::<T>(object).map_or(0, |object| object.grace_period(asked))
            },
            fields: |object| {
                decode::typed::<T>(object)
                    .map(|object| object.fields())
                    .unwrap_or_default()
            },
            definition: T::schema_name,
            schema: |generator| generator.subschema_for::<T>(),
        }
    }

    /// `apps/v1`, or `v1` for the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `deployments.apps`, or `pods` for the core group: how messages name the resource.
    pub fn qualified_plural(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_owned()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// Whether one request may delete all objects, or those that a selector chooses. What holds others is deleted one by one.
    pub fn deletes_collections(&self) -> bool {
        !self.has(Subresource::Finalize)
    }

    pub fn has(&self, subresource: Subresource) -> bool {
        self.subresources.contains(&subresource)
    }
}

/// What is particular to one kind, over its own type.
pub trait Strategy:
    Resource + Metadata<Ty = ObjectMeta> + Serialize + DeserializeOwned + JsonSchema + 'static
{
    const SINGULAR: &'static str;
    const SHORT_NAMES: &'static [&'static str] = &[];
    const CATEGORIES: &'static [&'static str] = &[];
    const NAMESPACED: bool = true;
    const SUBRESOURCES: &'static [Subresource] = &[];
    const COLUMNS: &'static [Column];
    const PRIVATE_TO_NODE: bool = false;
    const RETURNS_DELETED_OBJECT: bool = false;
    const ORPHANS: bool = false;
    const ORPHANS_WARNING: Option<&'static str> = None;
    const COMPUTED: bool = false;
    const CONVERSION: Option<Conversion> = None;
    /// What is wrong with a name of this kind, if anything.
    const NAME_RULE: validate::NameRule = validate::names::dns1123_subdomain;

    /// The cells of a row, in the order of `COLUMNS`.
    fn row(&self, now: i64) -> Vec<Value>;

    fn set_defaults(&mut self) {}

    /// What is wrong beyond the metadata.
    fn validate(&self, _old: Option<&Self>) -> Vec<FieldError> {
        Vec::new()
    }

    fn prepare_create(&mut self) {}

    fn prepare_update(&mut self, _old: &Self) {}

    fn prepare_status(&mut self, _old: &Self) {}

    /// Most objects are data, which goes at once.
    fn grace_period(&self, _asked: Option<i64>) -> i64 {
        0
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

fn validate_erased<T: Strategy>(new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let new = match decode::typed::<T>(new) {
        Ok(new) => new,
        Err(error) => return vec![error.into()],
    };
    let old = match old.map(decode::typed::<T>).transpose() {
        Ok(old) => old,
        Err(error) => return vec![error.into()],
    };
    let mut errors = validate::metadata::object(
        new.metadata(),
        old.as_ref().map(Metadata::metadata),
        T::NAMESPACED,
        T::NAME_RULE,
    );
    errors.extend(new.validate(old.as_ref()));
    errors
}

fn edit<T: Strategy>(object: &mut Value, change: fn(&mut T)) {
    if let Ok(mut typed) = decode::typed::<T>(object) {
        change(&mut typed);
        write_back(object, &typed);
    }
}

fn edit_with<T: Strategy>(object: &mut Value, old: &Value, change: fn(&mut T, &T)) {
    if let (Ok(mut typed), Ok(old)) = (decode::typed::<T>(object), decode::typed::<T>(old)) {
        change(&mut typed, &old);
        write_back(object, &typed);
    }
}

fn write_back<T: Serialize>(object: &mut Value, typed: &T) {
    // Only a time outside of years 0 to 9999 could fail here, and decoding refuses those.
    if let Ok(value) = serde_json::to_value(typed) {
        *object = value;
    }
}

/// Sets `generation` to what it was, or one more if the object's desired state changed.
pub(super) fn carry_generation(new: &mut ObjectMeta, old: &ObjectMeta, changed: bool) {
    new.generation = match old.generation {
        Some(generation) => Some(generation + i64::from(changed)),
        None if changed => Some(1),
        None => None,
    };
}
