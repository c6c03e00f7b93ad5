//! Server-side apply: who owns which fields, and what becomes of an object when one of its managers applies a
//! configuration. Pure functions, after upstream's documentation of the feature
//! (<https://kubernetes.io/docs/reference/using-api/server-side-apply/>).
//!
//! ```text
//! apply: what the configuration says is merged into the live object
//!        what others own and would change is a conflict, unless forced
//!        what the manager applied before, does not now, and nobody else owns goes
//! else:  who changes a field owns it
//! ```

mod fields;
mod managers;
mod typed;
mod upgrade;

use serde_json::{Map, Value};

pub use fields::Fields;
pub use managers::{Manager, Operation, Owner, Owners};
pub use typed::Shape;

use super::patch::schema::Type;

/// Fields that say what an object is, or that only the server sets: nobody owns them.
const UNOWNED: [&[&str]; 12] = [
    &["apiVersion"],
    &["kind"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "generateName"],
    &["metadata", "creationTimestamp"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "resourceVersion"],
    &["metadata", "deletionTimestamp"],
];

/// Why a configuration was not applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    #[error("{path}: {reason}")]
    List { path: String, reason: String },
    #[error("{0}")]
    Invalid(String),
    #[error("{}", describe(.0))]
    Conflicts(Vec<Conflict>),
}

impl ApplyError {
    fn of_list(reason: String) -> Self {
        Self::List {
            path: String::new(),
            reason,
        }
    }

    /// The same, seen from a level higher.
    fn below(self, field: &str) -> Self {
        match self {
            Self::List { path, reason } => Self::List {
                path: format!(".{field}{path}"),
                reason,
            },
            other => other,
        }
    }
}

/// A field that another manager owns and the configuration would change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The other manager, as people are told of it.
    pub with: String,
    pub field: String,
}

/// What all conflicts are, in upstream's words.
fn describe(conflicts: &[Conflict]) -> String {
    let mut managers: Vec<&str> = conflicts.iter().map(|one| &*one.with).collect();
    managers.dedup();
    let mut lines = Vec::new();
    for manager in managers {
        let fields: Vec<&str> = conflicts
            .iter()
            .filter(|one| one.with == manager)
            .map(|one| &*one.field)
            .collect();
        match fields.as_slice() {
            [one] => lines.push(format!("conflict with {manager}: {one}")),
            many => {
                lines.push(format!("conflicts with {manager}:"));
                lines.extend(many.iter().map(|field| format!("- {field}")));
            }
        }
    }
    let plural = if conflicts.len() == 1 { "" } else { "s" };
    format!(
        "Apply failed with {} conflict{plural}: {}",
        conflicts.len(),
        lines.join("\n")
    )
}

/// Which part of an object a request may set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    /// The object without its status, which is changed in another way.
    WithoutStatus,
    /// What is at or below a path of fields.
    Below(&'static [&'static str]),
}

impl Part {
    fn restrict(self, fields: &mut Fields) {
        for path in UNOWNED {
            fields.forget(path);
        }
        fields.here = false;
        fields.unmark("metadata");
        match self {
            Self::Whole => {}
            Self::WithoutStatus => fields.forget(&["status"]),
            Self::Below(path) => fields.keep(path),
        }
    }
}

/// Who applies, or writes otherwise, and when.
#[derive(Clone, Copy)]
pub struct Writer<'a> {
    pub manager: &'a Manager,
    pub part: Part,
    /// As `managedFields` writes times.
    pub now: &'a str,
}

/// The object as it becomes when a manager applies a configuration, its `managedFields` included. With `force` the manager
/// takes over what others own.
pub fn apply(
    live: &Value,
    config: &Value,
    writer: Writer<'_>,
    force: bool,
    kind: Option<&'static Type>,
) -> Result<Value, ApplyError> {
    let (manager, shape) = (writer.manager, Shape::of(kind));
    let mut set = typed::fields_of(config, shape)?;
    writer.part.restrict(&mut set);
    let mut there = typed::places(live, shape);
    Part::Whole.restrict(&mut there);
    let mut owners = Owners::of(live)
        .map_err(ApplyError::Invalid)?
        .or_before_first_apply(there, &manager.api_version, writer.now);

    let mut merged = typed::merge(live, &only(config, writer.part), shape)?;
    let mut changed = typed::difference(live, &merged, shape).set;
    Part::Whole.restrict(&mut changed);
    let mut disputed = changed.clone();
    disputed.remove(&upgrade::own_before(live, manager, shape));
    let conflicts = conflicts(&owners, manager, &disputed);
    if !force && !conflicts.is_empty() {
        return Err(ApplyError::Conflicts(conflicts));
    }
    owners.take_from_others(manager, &changed);

    if let Some(before) = owners.get(manager) {
        let mut gone = before.fields.clone();
        gone.remove(&set);
        let mut kept = set.clone();
        owners
            .others(manager)
            .for_each(|other| kept.add(&other.fields));
        let full = merged.clone();
        typed::prune(&mut merged, shape, &gone, &kept);
        owners.take(&typed::difference(&full, &merged, shape).gone);
    }
    owners.set(manager, set, writer.now);
    write(&mut merged, &owners);
    upgrade::note(live, config, manager, &mut merged);
    Ok(merged)
}

/// The part of a configuration that may be applied.
fn only(config: &Value, part: Part) -> Value {
    let mut config = config.clone();
    if let Value::Object(fields) = &mut config {
        match part {
            Part::Whole => {}
            Part::WithoutStatus => drop(fields.shift_remove("status")),
            Part::Below(path) => keep(fields, path),
        }
    }
    config
}

/// Leaves of an object what is at or below a path.
fn keep(fields: &mut Map<String, Value>, path: &[&str]) {
    if let Some((first, rest)) = path.split_first() {
        fields.retain(|name, _| name == first);
        for below in fields.values_mut().filter_map(Value::as_object_mut) {
            keep(below, rest);
        }
    }
}

fn conflicts(owners: &Owners, manager: &Manager, changed: &Fields) -> Vec<Conflict> {
    let mut conflicts = Vec::new();
    for other in owners.others(manager) {
        let with = shown(other);
        for field in other.fields.common(changed).paths() {
            let with = with.clone();
            conflicts.push(Conflict { with, field });
        }
    }
    conflicts
}

/// `"kubectl" with subresource "scale" using apps/v1 at 2026-01-02T03:04:05Z`
fn shown(owner: &Owner) -> String {
    let Manager {
        name,
        operation,
        api_version,
        subresource,
    } = &owner.manager;
    let mut text = format!("{name:?}");
    if !subresource.is_empty() {
        text += &format!(" with subresource {subresource:?}");
    }
    text += &format!(" using {api_version}");
    if *operation == Operation::Update && !owner.time.is_empty() {
        text += &format!(" at {}", owner.time);
    }
    text
}

/// Notes in `new` who owns its fields, after a write that was no apply. What a client says of owners itself is taken; one
/// empty entry means that nobody is to own anything.
pub fn track(
    old: Option<&Value>,
    new: &mut Value,
    writer: Writer<'_>,
    kind: Option<&'static Type>,
) -> Result<(), ApplyError> {
    let shape = Shape::of(kind);
    if new["metadata"]["managedFields"] == serde_json::json!([{}]) {
        write(new, &Owners::default());
        return Ok(());
    }
    let said = Owners::of(new).map_err(ApplyError::Invalid)?;
    let mut owners = match old {
        // Clients that do not know the field send it back without.
        Some(old) if said.0.is_empty() => Owners::of(old).unwrap_or_default(),
        Some(_) => said,
        None => Owners::default(),
    };
    let nothing = Value::Object(serde_json::Map::new());
    let mut changes = typed::difference(old.unwrap_or(&nothing), new, shape);
    Part::Whole.restrict(&mut changes.set);
    owners.take_from_others(writer.manager, &changes.set);
    owners.take(&changes.gone);
    if !changes.set.is_empty() {
        let mut fields = changes.set;
        if let Some(before) = owners.get(writer.manager) {
            fields.add(&before.fields);
        }
        owners.set(writer.manager, fields, writer.now);
    }
    write(new, &owners);
    Ok(())
}

fn write(object: &mut Value, owners: &Owners) {
    let metadata = super::meta::of(object);
    if owners.0.is_empty() {
        metadata.shift_remove("managedFields");
    } else {
        metadata.insert("managedFields".to_owned(), owners.to_json());
    }
}

#[cfg(test)]
mod tests;
