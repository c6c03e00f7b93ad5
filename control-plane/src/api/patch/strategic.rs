//! Strategic merge patch: a merge patch that knows which lists are sets of things with a key, and takes directives.
//!
//! | directive | where | meaning |
//! |---|---|---|
//! | `$patch: replace` | in an object or an item of a list | what is beside it replaces all there was |
//! | `$patch: delete` | in an object or an item of a list | the object, or the item of that key, goes |
//! | `$retainKeys: [a, b]` | in an object | its other fields go |
//! | `$setElementOrder/list: […]` | beside `list` | the order in which the client wants the items |
//! | `$deleteFromPrimitiveList/list: […]` | beside `list` | these values go from the list |

use std::collections::{HashMap, HashSet};

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
        let retained: HashSet<&str> = retained.iter().filter_map(Value::as_str).collect();
        let keeps = |name: &str| retained.contains(name);
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
            let values: HashSet<&Value> = values.iter().collect();
            if let Some(Value::Array(items)) = target.get_mut(list) {
                items.retain(|item| !values.contains(item));
            }
        }
    }
    // Removed together: one at a time moves all that follow.
    let mut gone = HashSet::new();
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
            Some(value) => {
                target.insert(name.clone(), value);
            }
            None => {
                gone.insert(name.as_str());
            }
        }
    }
    if !gone.is_empty() {
        target.retain(|name, _| !gone.contains(name.as_str()));
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
            if field.is_some_and(|field| field.merge == Merge::Replace) {
                return Ok(Some(plain(&Value::Object(change.clone()))));
            }
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
    let merged = match (merge, merge.key()) {
        (Merge::Set, _) => union(&before, change),
        (_, Some(key)) => merge_items(
            before.clone(),
            change,
            key,
            field.and_then(|field| field.of),
            path,
        )?,
        (_, None) => return Ok(change.iter().map(plain).collect()),
    };
    match order {
        Some(Value::Array(order)) => Ok(ordered(merged, order, &before, merge.key())),
        Some(_) => Err(wrong(path, "the order of elements is not a list")),
        // Without one, the patch itself is an order: what it brings along comes before what only the server knows.
        None => Ok(ordered(merged, change, &before, merge.key())),
    }
}

fn union(before: &[Value], change: &[Value]) -> Vec<Value> {
    let mut seen = HashSet::new();
    let all = before.iter().chain(change);
    all.filter(|value| seen.insert(*value)).cloned().collect()
}

fn merge_items(
    items: Vec<Value>,
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
    // Where the items with an id are. A deleted item leaves a gap, so that positions stay.
    let mut positions: HashMap<Value, Vec<usize>> = HashMap::new();
    for (position, id) in items.iter().map(|item| item.get(key)).enumerate() {
        if let Some(id) = id {
            positions.entry(id.clone()).or_default().push(position);
        }
    }
    let mut items: Vec<Option<Value>> = items.into_iter().map(Some).collect();
    for item in objects {
        let id = item.get(key).ok_or_else(|| {
            wrong(
                path,
                format!("an item does not contain the declared merge key {key:?}"),
            )
        })?;
        let present = positions.get(id).and_then(|all| all.first().copied());
        match (directive(item, path)?, present) {
            (Directive::Delete, _) => {
                for position in positions.remove(id).unwrap_or_default() {
                    items[position] = None;
                }
            }
            (_, Some(position)) => {
                let before = match items[position].take() {
                    Some(Value::Object(fields)) => fields,
                    _ => Map::new(),
                };
                let path = format!("{path}[{key}={id}]");
                items[position] = Some(Value::Object(merge_objects(before, item, of, &path)?));
            }
            (_, None) => {
                positions.insert(id.clone(), vec![items.len()]);
                items.push(Some(plain(&Value::Object(item.clone()))));
            }
        }
    }
    Ok(items.into_iter().flatten().collect())
}

/// What tells the items of a list apart: the value of their key, or all that they are.
fn id<'a>(item: &'a Value, key: Option<&str>) -> &'a Value {
    static NONE: Value = Value::Null;
    match key {
        Some(key) => item.get(key).unwrap_or(&NONE),
        None => item,
    }
}

/// Where each item first stands in a list.
fn positions<'a>(list: &'a [Value], key: Option<&str>) -> HashMap<&'a Value, usize> {
    let mut positions = HashMap::with_capacity(list.len());
    for (position, item) in list.iter().enumerate() {
        positions.entry(id(item, key)).or_insert(position);
    }
    positions
}

/// The items that the client knows in the client's order, those only the server knows where they were among them.
fn ordered(items: Vec<Value>, order: &[Value], before: &[Value], key: Option<&str>) -> Vec<Value> {
    let (order, before) = (positions(order, key), positions(before, key));
    let in_order = |item: &Value| order.get(id(item, key)).copied();
    let was = |item: &Value| before.get(id(item, key)).copied();
    let (mut clients, mut servers): (Vec<_>, Vec<_>) =
        items.into_iter().partition(|item| in_order(item).is_some());
    clients.sort_by_key(|item| in_order(item));
    servers.sort_by_key(|item| was(item).unwrap_or(usize::MAX));
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
                matches!((was(server), was(client)), (Some(s), Some(c)) if s < c)
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
