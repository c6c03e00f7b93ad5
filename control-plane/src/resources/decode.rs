//! From JSON to a kind's type: what is of the wrong type, what is unknown, what is written twice.

use std::{collections::HashSet, fmt};

use k8s_openapi::Resource;
use serde::{
    Deserialize, Serialize,
    de::{DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;

/// How many unknown or repeated fields are named; a document can hold millions.
const NAMED: usize = 100;

/// A value that is not of the kind's shape.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{message}", prefix(path))]
pub struct DecodeError {
    /// Empty for the object as a whole.
    pub path: String,
    pub message: String,
}

fn prefix(path: &str) -> String {
    if path.is_empty() {
        String::new()
    } else {
        format!("{path}: ")
    }
}

impl DecodeError {
    pub(super) fn of_the_whole(error: impl fmt::Display) -> Self {
        Self {
            path: String::new(),
            message: error.to_string(),
        }
    }
}

impl From<serde_path_to_error::Error<serde_json::Error>> for DecodeError {
    fn from(error: serde_path_to_error::Error<serde_json::Error>) -> Self {
        let path = match error.path().iter().len() {
            0 => String::new(),
            _ => error.path().to_string(),
        };
        Self {
            path,
            message: error.inner().to_string(),
        }
    }
}

/// Reads a value as `T`, saying at which path it does not fit.
pub(super) fn typed<'de, T: Deserialize<'de>>(value: &'de Value) -> Result<T, DecodeError> {
    Ok(serde_path_to_error::deserialize(value)?)
}

/// Reads a value as `T` and writes it back, so that only what `T` knows is left; gives the paths of what was dropped.
pub(super) fn decode<T>(value: Value) -> Result<(Value, Vec<String>), DecodeError>
where
    T: Resource + DeserializeOwned + Serialize,
{
    let mut unknown = Vec::new();
    let object: T = {
        let mut note = |path: serde_ignored::Path<'_>| {
            if unknown.len() < NAMED {
                unknown.push(render(&path));
            }
        };
        let ignoring = serde_ignored::Deserializer::new(&value, &mut note);
        serde_path_to_error::deserialize(ignoring)?
    };
    let clean = serde_json::to_value(&object).map_err(DecodeError::of_the_whole)?;
    Ok((clean, unknown))
}

/// Reads a value as one type and writes it as the other that `change` makes of it.
pub(super) fn convert<From, To>(value: &Value, change: fn(From) -> To) -> Result<Value, DecodeError>
where
    From: DeserializeOwned,
    To: Serialize,
{
    let from: From = typed(value)?;
    serde_json::to_value(change(from)).map_err(DecodeError::of_the_whole)
}

/// `spec.containers[0].foo`, as upstream writes paths.
fn render(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", render(parent)),
        Path::Map { parent, key } => join(&render(parent), key),
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => render(parent),
    }
}

fn join(parent: &str, key: &str) -> String {
    if parent.is_empty() {
        key.to_owned()
    } else {
        format!("{parent}.{key}")
    }
}

/// The paths of keys that a JSON document holds more than once within one object. What is not JSON has none.
pub fn duplicate_fields(json: &[u8]) -> Vec<String> {
    let mut duplicates = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let scan = Scan {
        place: &Place::Root,
        duplicates: &mut duplicates,
    };
    match scan.deserialize(&mut deserializer) {
        Ok(()) => duplicates,
        Err(_) => Vec::new(),
    }
}

/// Where in a document one is. It becomes text only for what is reported.
enum Place<'a> {
    Root,
    Key(&'a Place<'a>, &'a str),
    Index(&'a Place<'a>, usize),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Root => Ok(()),
            Place::Key(Place::Root, key) => f.write_str(key),
            Place::Key(parent, key) => write!(f, "{parent}.{key}"),
            Place::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

struct Scan<'a> {
    place: &'a Place<'a>,
    duplicates: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Scan<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Scan<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            let place = Place::Key(self.place, &key);
            if seen.contains(&key) && self.duplicates.len() < NAMED {
                self.duplicates.push(place.to_string());
            }
            map.next_value_seed(Scan {
                place: &place,
                duplicates: self.duplicates,
            })?;
            seen.insert(key);
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        for index in 0.. {
            let element = seq.next_element_seed(Scan {
                place: &Place::Index(self.place, index),
                duplicates: self.duplicates,
            })?;
            if element.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{Pod, Service};
    use serde_json::json;

    #[test]
    fn a_wrong_type_is_reported_with_its_path() {
        let error =
            decode::<Service>(json!({ "spec": { "ports": [{ "port": "eighty" }] } })).unwrap_err();
        assert_eq!(error.path, "spec.ports[0].port");
        assert_eq!(
            error.message,
            "invalid type: string \"eighty\", expected i32"
        );
    }

    #[test]
    fn unknown_fields_are_dropped_and_named() {
        let (pod, unknown) = decode::<Pod>(json!({
            "spec": { "foo": 1, "containers": [{ "name": "a", "imagee": "b" }] },
            "extra": {}
        }))
        .unwrap();
        assert_eq!(unknown, ["spec.foo", "spec.containers[0].imagee", "extra"]);
        assert_eq!(pod["spec"], json!({ "containers": [{ "name": "a" }] }));
    }

    #[test]
    fn another_kind_is_refused() {
        let error = decode::<Pod>(json!({ "kind": "Service" })).unwrap_err();
        assert_eq!(
            error.to_string(),
            "invalid value: string \"Service\", expected Pod"
        );
    }

    #[test]
    fn keys_written_twice_are_found_at_any_depth() {
        let json = br#"{"a": 1, "b": [{"c": 1, "c": {"d": null, "d": true}}], "a": 2.5}"#;
        assert_eq!(duplicate_fields(json), ["b[0].c", "b[0].c.d", "a"]);
        assert_eq!(duplicate_fields(b"not json"), Vec::<String>::new());
    }

    /// With a copy of the path for each element this takes minutes.
    #[test]
    fn a_long_path_to_many_elements_is_no_trouble() {
        let key = "k".repeat(1 << 20);
        let json = format!("{{\"{key}\": [{}0]}}", "0,".repeat(1 << 19));
        assert_eq!(duplicate_fields(json.as_bytes()), Vec::<String>::new());
        let json = format!("{{{}\"a\": 1}}", "\"a\": 1,".repeat(1 << 16));
        assert_eq!(duplicate_fields(json.as_bytes()).len(), NAMED);
    }
}
