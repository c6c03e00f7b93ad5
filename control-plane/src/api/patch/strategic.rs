//! Strategic merge patch: a merge patch that knows which lists are sets of things with a key, and takes directives.
//!
//! | directive | where | meaning |
//! |---|---|---|
//! | `$patch: replace` | in an object or an item of a list | what is beside it replaces all there was |
//! | `$patch: delete` | in an object or an item of a list | the object, or the item of that key, goes |
//! | `$retainKeys: [a, b]` | in an object | its other fields go |
//! | `$setElementOrder/list: […]` | beside `list` | the order in which the client wants the items |
//! | `$deleteFromPrimitiveList/list: […]` | beside `list` | these values go from the list |

use serde_json::{Map, Value};

use super::{PatchError, schema::Field, schema::Merge, schema::Type};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder/";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

type Object = Map<String, Value>;

/// The object with the patch laid over it. Both are JSON objects; a target that is none counts as empty.
pub(super) fn merge(
    target: &Value,
    patch: &Value,
    schema: Option<&'static Type>,
) -> Result<Value, PatchError> {
    let empty = Map::new();
    let target = target.as_object().unwrap_or(&empty).clone();
    let patch = patch.as_object().ok_or(PatchError::NotAnObject)?;
    Ok(Value::Object(merge_objects(target, patch, schema, "")?))
}

fn wrong(path: &str, reason: impl Into<String>) -> PatchError {
    let path = if path.is_empty() { "patch" } else { path };
    PatchError::Directive {
        path: path.to_owned(),
        reason: reason.into(),
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

/// What `$patch` asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Directive {
    Merge,
    Replace,
    Delete,
}

fn directive(object: &Object, path: &str) -> Result<Directive, PatchError> {
    match object.get(DIRECTIVE) {
        None => Ok(Directive::Merge),
        Some(Value::String(text)) if text == "merge" => Ok(Directive::Merge),
        Some(Value::String(text)) if text == "replace" => Ok(Directive::Replace),
        Some(Value::String(text)) if text == "delete" => Ok(Directive::Delete),
        Some(other) => Err(wrong(
            path,
            format!("unknown {DIRECTIVE} directive: {other}"),
        )),
    }
}

fn is_directive(name: &str) -> bool {
    name == DIRECTIVE
        || name == RETAIN_KEYS
        || name.starts_with(SET_ORDER)
        || name.starts_with(DELETE_FROM)
}

/// A value as it stands in a patch, without directives and nulls: what is stored where nothing was before.
fn plain(value: &Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .iter()
                .filter(|(name, value)| !is_directive(name) && !value.is_null())
                .map(|(name, value)| (name.clone(), plain(value)))
                .collect(),
        ),
        Value::Array(items) => {
            let deleted = |item: &&Value| item.get(DIRECTIVE).is_some();
            Value::Array(
                items
                    .iter()
                    .filter(|item| !deleted(item))
                    .map(plain)
                    .collect(),
            )
        }
        other => other.clone(),
    }
}

fn merge_objects(
    mut target: Object,
    patch: &Object,
    schema: Option<&'static Type>,
    path: &str,
) -> Result<Object, PatchError> {
    match directive(patch, path)? {
        Directive::Merge => {}
        Directive::Delete => return Ok(Map::new()),
        Directive::Replace => {
            return Ok(match plain(&Value::Object(patch.clone())) {
                Value::Object(fields) => fields,
                _ => Map::new(),
            });
        }
    }
    if let Some(retained) = patch.get(RETAIN_KEYS) {
        let retained = retained
            .as_array()
            .ok_or_else(|| wrong(path, format!("{RETAIN_KEYS} is not a list")))?;
        let keeps = |name: &str| retained.iter().any(|key| key == name);
        if let Some((extra, _)) = patch
            .iter()
            .find(|(name, value)| !is_directive(name) && !value.is_null() && !keeps(name))
        {
            return Err(wrong(
                path,
                format!("{RETAIN_KEYS} does not hold {extra:?}, which the patch sets"),
            ));
        }
        target.retain(|name, _| keeps(name));
    }
    for (name, values) in patch {
        if let Some(list) = name.strip_prefix(DELETE_FROM) {
            let values = values
                .as_array()
                .ok_or_else(|| wrong(path, format!("{name} is not a list")))?;
            if let Some(Value::Array(items)) = target.get_mut(list) {
                items.retain(|item| !values.contains(item));
            }
        }
    }
    for (name, change) in patch.iter().filter(|(name, _)| !is_directive(name)) {
        let path = join(path, name);
        let field = schema.and_then(|schema| schema.field(name));
        let order = patch.get(&format!("{SET_ORDER}{name}"));
        match merge_field(
            target.get_mut(name).map(Value::take),
            change,
            field,
            order,
            &path,
        )? {
            Some(value) => target.insert(name.clone(), value),
            None => target.shift_remove(name),
        };
    }
    for (name, order) in patch {
        // With the list itself in the patch, the order was applied along with it.
        if let Some(list) = name
            .strip_prefix(SET_ORDER)
            .filter(|list| !patch.contains_key(*list))
            && let Some(Value::Array(items)) = target.get_mut(list)
        {
            let key = schema
                .and_then(|schema| schema.field(list))
                .and_then(|field| field.merge.key());
            let order = order
                .as_array()
                .ok_or_else(|| wrong(path, format!("{name} is not a list")))?;
            *items = ordered(items.clone(), order, items, key);
        }
    }
    Ok(target)
}

/// One field's new value, or none if it goes.
fn merge_field(
    before: Option<Value>,
    change: &Value,
    field: Option<&'static Field>,
    order: Option<&Value>,
    path: &str,
) -> Result<Option<Value>, PatchError> {
    Ok(match (before, change) {
        (_, Value::Null) => None,
        (Some(Value::Object(before)), Value::Object(change)) => {
            // An object that is deleted goes as a field, too.
            if directive(change, path)? == Directive::Delete {
                return Ok(None);
            }
            Some(Value::Object(merge_objects(
                before,
                change,
                field.and_then(|field| field.of),
                path,
            )?))
        }
        (before, Value::Array(change)) => {
            let before = match before {
                Some(Value::Array(before)) => before,
                _ => Vec::new(),
            };
            Some(Value::Array(merge_lists(
                before, change, field, order, path,
            )?))
        }
        (_, Value::Object(fields)) if directive(fields, path)? == Directive::Delete => None,
        (_, change) => Some(plain(change)),
    })
}

fn merge_lists(
    before: Vec<Value>,
    change: &[Value],
    field: Option<&'static Field>,
    order: Option<&Value>,
    path: &str,
) -> Result<Vec<Value>, PatchError> {
    let merge = field.map_or(Merge::Plain, |field| field.merge);
    let merged = match merge {
        Merge::Plain | Merge::Retaining => return Ok(change.iter().map(plain).collect()),
        Merge::Set => union(&before, change),
        Merge::ByKey(key) | Merge::ByKeyRetaining(key) => merge_items(
            before.clone(),
            change,
            key,
            field.and_then(|field| field.of),
            path,
        )?,
    };
    match order {
        Some(Value::Array(order)) => Ok(ordered(merged, order, &before, merge.key())),
        Some(_) => Err(wrong(path, "the order of elements is not a list")),
        // Without one, the patch itself is an order: what it brings along comes before what only the server knows.
        None => Ok(ordered(merged, change, &before, merge.key())),
    }
}

fn union(before: &[Value], change: &[Value]) -> Vec<Value> {
    let mut all: Vec<Value> = Vec::with_capacity(before.len() + change.len());
    for value in before.iter().chain(change) {
        if !all.contains(value) {
            all.push(value.clone());
        }
    }
    all
}

fn merge_items(
    mut items: Vec<Value>,
    change: &[Value],
    key: &str,
    of: Option<&'static Type>,
    path: &str,
) -> Result<Vec<Value>, PatchError> {
    let objects = change
        .iter()
        .map(|item| {
            item.as_object()
                .ok_or_else(|| wrong(path, "the list holds something that is no object"))
        })
        .collect::<Result<Vec<_>, _>>()?;
    // One item that says so makes the patch's items replace all there were.
    for item in &objects {
        if directive(item, path)? == Directive::Replace {
            let others = objects
                .iter()
                .filter(|item| item.len() > 1 || !item.contains_key(DIRECTIVE));
            return Ok(others
                .map(|item| plain(&Value::Object((*item).clone())))
                .collect());
        }
    }
    for item in objects {
        let id = item.get(key).ok_or_else(|| {
            wrong(
                path,
                format!("an item does not contain the declared merge key {key:?}"),
            )
        })?;
        let position = items.iter().position(|known| known.get(key) == Some(id));
        match (directive(item, path)?, position) {
            (Directive::Delete, _) => items.retain(|known| known.get(key) != Some(id)),
            (_, Some(position)) => {
                let before = match items[position].take() {
                    Value::Object(fields) => fields,
                    _ => Map::new(),
                };
                let path = format!("{path}[{key}={id}]");
                items[position] = Value::Object(merge_objects(before, item, of, &path)?);
            }
            (_, None) => items.push(plain(&Value::Object(item.clone()))),
        }
    }
    Ok(items)
}

/// The items that the client knows in the client's order, those only the server knows where they were among them.
fn ordered(items: Vec<Value>, order: &[Value], before: &[Value], key: Option<&str>) -> Vec<Value> {
    let id = |item: &Value| {
        key.map_or_else(
            || item.clone(),
            |key| item.get(key).cloned().unwrap_or_default(),
        )
    };
    let position =
        |list: &[Value], item: &Value| list.iter().position(|other| id(other) == id(item));
    let (mut clients, mut servers): (Vec<_>, Vec<_>) = items
        .into_iter()
        .partition(|item| position(order, item).is_some());
    clients.sort_by_key(|item| position(order, item));
    servers.sort_by_key(|item| position(before, item).unwrap_or(usize::MAX));
    let mut all = Vec::with_capacity(clients.len() + servers.len());
    let (mut clients, mut servers) = (
        clients.into_iter().peekable(),
        servers.into_iter().peekable(),
    );
    loop {
        let server_first = match (servers.peek(), clients.peek()) {
            (None, None) => return all,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(server), Some(client)) => {
                matches!((position(before, server), position(before, client)), (Some(s), Some(c)) if s < c)
            }
        };
        all.extend(if server_first {
            servers.next()
        } else {
            clients.next()
        });
    }
}

#[cfg(test)]
mod tests;
