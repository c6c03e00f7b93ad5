//! Objects as sets of fields: which an object has, which two differ in, and one merged into another.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::ApplyError;
use super::fields::{Fields, Step};
use crate::api::patch::schema::{Key, Topology, Type};

/// What is known of a value at its place.
#[derive(Clone, Copy)]
pub struct Shape {
    topology: Topology,
    of: Option<&'static Type>,
}

impl Shape {
    /// Of a whole object.
    pub fn of(kind: Option<&'static Type>) -> Self {
        Self {
            topology: Topology::Fields,
            of: kind,
        }
    }

    fn field(self, name: &str) -> Self {
        match self.of.and_then(|of| of.field(name)) {
            Some(field) => Self {
                topology: field.topology(),
                of: field.of,
            },
            None => Self::of(None),
        }
    }

    fn item(self) -> Self {
        Self::of(self.of)
    }
}

/// A value as its parts.
enum Parts<'a> {
    /// One thing.
    Whole,
    Fields(&'a Map<String, Value>),
    /// Items of a list, each under its own step.
    Items(Vec<(Step, &'a Value)>),
}

fn parts(value: &Value, shape: Shape) -> Result<Parts<'_>, ApplyError> {
    Ok(match (value, shape.topology) {
        (Value::Object(map), Topology::Fields) => Parts::Fields(map),
        (Value::Array(list), Topology::Items(keys)) => Parts::Items(by_key(list, keys)?),
        (Value::Array(list), Topology::Values) => Parts::Items(distinct(
            list.iter().map(|v| (Step::value(v), v)).collect(),
        )?),
        _ => Parts::Whole,
    })
}

fn by_key<'a>(list: &'a [Value], keys: &[Key]) -> Result<Vec<(Step, &'a Value)>, ApplyError> {
    let mut items = Vec::with_capacity(list.len());
    for (index, item) in list.iter().enumerate() {
        let step = Step::item(item, keys).map_err(|key| ApplyError::of_list(format!(
            "element {index}: associative list with keys has an element that omits key field \"{key}\" (and doesn't have default value)"
        )))?;
        items.push((step, item));
    }
    distinct(items)
}

fn distinct(items: Vec<(Step, &Value)>) -> Result<Vec<(Step, &Value)>, ApplyError> {
    let mut seen = BTreeSet::new();
    match items.iter().find(|(step, _)| !seen.insert(step)) {
        Some((step, _)) => Err(ApplyError::of_list(format!(
            "duplicate entries for key {step}"
        ))),
        None => Ok(items),
    }
}

/// Where in a list each of its items is: lists may have many thousands of them.
fn places_of<'a>(items: &'a [(Step, &Value)]) -> BTreeMap<&'a Step, usize> {
    let steps = items.iter().map(|(step, _)| step);
    steps.zip(0..).collect()
}

/// The same for a stored value: a list whose items cannot be told apart is one thing.
fn stored(value: &Value, shape: Shape) -> Parts<'_> {
    parts(value, shape).unwrap_or(Parts::Whole)
}

/// The fields that an object sets: those that its sender means to own.
pub fn fields_of(value: &Value, shape: Shape) -> Result<Fields, ApplyError> {
    let mut fields = Fields::default();
    match parts(value, shape)? {
        Parts::Whole => fields.here = true,
        Parts::Fields(map) => {
            for (name, value) in map {
                let mut below =
                    fields_of(value, shape.field(name)).map_err(|error| error.below(name))?;
                // An empty structure is set to be empty.
                below.here |= value.as_object().is_some_and(Map::is_empty);
                fields.put(Step::field(name), below);
            }
        }
        Parts::Items(items) => {
            for (step, item) in items {
                let mut below = fields_of(item, shape.item())?;
                below.here = true;
                fields.put(step, below);
            }
        }
    }
    Ok(fields)
}

/// Every place in a stored object, lists and structures included.
pub fn places(value: &Value, shape: Shape) -> Fields {
    let mut fields = Fields::place();
    match stored(value, shape) {
        Parts::Whole => {}
        Parts::Fields(map) => {
            for (name, value) in map {
                fields.put(Step::field(name), places(value, shape.field(name)));
            }
        }
        Parts::Items(items) => {
            for (step, item) in items {
                fields.put(step, places(item, shape.item()));
            }
        }
    }
    fields
}

/// In what two versions of an object differ.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// New, or of another value.
    pub set: Fields,
    pub gone: Fields,
}

pub fn difference(old: &Value, new: &Value, shape: Shape) -> Difference {
    if old == new {
        return Difference::default();
    }
    let mut difference = Difference::default();
    let mut child =
        |step: Step, old: Option<&Value>, new: Option<&Value>, shape: Shape| match (old, new) {
            (Some(old), Some(new)) => {
                let below = self::difference(old, new, shape);
                difference.set.put(step.clone(), below.set);
                difference.gone.put(step, below.gone);
            }
            (None, Some(new)) => difference.set.put(step, places(new, shape)),
            (Some(old), None) => difference.gone.put(step, places(old, shape)),
            (None, None) => {}
        };
    match (stored(old, shape), stored(new, shape)) {
        (Parts::Fields(old), Parts::Fields(new)) => {
            for (name, value) in old {
                child(
                    Step::field(name),
                    Some(value),
                    new.get(name),
                    shape.field(name),
                );
            }
            for (name, value) in new.iter().filter(|(name, _)| !old.contains_key(*name)) {
                child(Step::field(name), None, Some(value), shape.field(name));
            }
        }
        (Parts::Items(old), Parts::Items(new)) => {
            let (before, after) = (places_of(&old), places_of(&new));
            for (step, item) in &old {
                let now = after.get(step).map(|at| new[*at].1);
                child(step.clone(), Some(item), now, shape.item());
            }
            for (step, item) in &new {
                if !before.contains_key(step) {
                    child(step.clone(), None, Some(item), shape.item());
                }
            }
        }
        _ => {
            difference.set = places(new, shape);
            difference.gone = places(old, shape);
            difference.gone.here = false;
        }
    }
    difference
}

/// `live` with what `config` sets.
pub fn merge(live: &Value, config: &Value, shape: Shape) -> Result<Value, ApplyError> {
    Ok(match (stored(live, shape), parts(config, shape)?) {
        (Parts::Fields(live), Parts::Fields(config)) => {
            let mut merged = live.clone();
            for (name, value) in config {
                let value = match live.get(name) {
                    Some(live) => {
                        merge(live, value, shape.field(name)).map_err(|error| error.below(name))?
                    }
                    None => value.clone(),
                };
                merged.insert(name.clone(), value);
            }
            Value::Object(merged)
        }
        (Parts::Items(live), Parts::Items(config)) => Value::Array(items(&live, &config, shape)?),
        _ => config.clone(),
    })
}

/// The items of the configuration in its order, those only the live list has where they were among them.
fn items(
    live: &[(Step, &Value)],
    config: &[(Step, &Value)],
    shape: Shape,
) -> Result<Vec<Value>, ApplyError> {
    let (was, wanted) = (places_of(live), places_of(config));
    let mut others = live
        .iter()
        .enumerate()
        .filter(|(_, (step, _))| !wanted.contains_key(step))
        .peekable();
    let mut merged = Vec::with_capacity(live.len() + config.len());
    for (step, item) in config {
        let Some(&at) = was.get(step) else {
            merged.push((*item).clone());
            continue;
        };
        while let Some((_, (_, other))) = others.next_if(|(other, _)| *other < at) {
            merged.push((*other).clone());
        }
        merged.push(merge(live[at].1, item, shape.item())?);
    }
    merged.extend(others.map(|(_, (_, other))| (*other).clone()));
    Ok(merged)
}

/// Removes from an object what is in `gone`, but for what is in `kept`. True when nothing of the value is left.
pub fn prune(value: &mut Value, shape: Shape, gone: &Fields, kept: &Fields) -> bool {
    let nothing = Fields::default();
    let keepers = |step: &Step| kept.below.get(step).unwrap_or(&nothing);
    // What no one else has anything of goes whole.
    let goes = |gone: &Fields, kept: &Fields| gone.here && kept.is_empty();
    let topology = shape.topology;
    match (value, topology) {
        (Value::Object(map), Topology::Fields) => {
            for (step, below) in &gone.below {
                let Some(name) = step.name() else { continue };
                let Some(child) = map.get_mut(name) else {
                    continue;
                };
                let kept = keepers(step);
                let is_leaf = !matches!(child, Value::Object(_) | Value::Array(_));
                let empty = if goes(below, kept) && (is_leaf || below.below.is_empty()) {
                    true
                } else if is_leaf {
                    false
                } else {
                    prune(child, shape.field(name), below, kept)
                };
                if empty && !kept.here {
                    map.shift_remove(name);
                }
            }
            map.is_empty()
        }
        (Value::Array(list), Topology::Items(_) | Topology::Values) => {
            let step_of = |item: &Value| match topology {
                Topology::Items(keys) => Step::item(item, keys).ok(),
                _ => Some(Step::value(item)),
            };
            list.retain_mut(|item| {
                let Some(step) = step_of(item) else {
                    return true;
                };
                let Some(below) = gone.below.get(&step) else {
                    return true;
                };
                let kept = keepers(&step);
                if goes(below, kept) {
                    return false;
                }
                let mut below = below.clone();
                if let Topology::Items(keys) = topology {
                    // Whoever else has a part of the item needs its name.
                    keys.iter().for_each(|key| below.forget(&[key.name]));
                }
                prune(item, shape.item(), &below, kept);
                true
            });
            list.is_empty()
        }
        _ => goes(gone, kept),
    }
}
