//! The rules for `metadata` that hold for every kind: what the server sets, what an update carries over.

use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use rand::Rng;
use serde_json::{Map, Value, json};

/// The finalizers that `propagationPolicy` asks for.
pub const FOREGROUND: &str = "foregroundDeletion";
pub const ORPHAN: &str = "orphan";

/// A string in `metadata`, empty when it is not there.
pub fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

/// `metadata` as a map, made when it is missing.
pub fn of(object: &mut Value) -> &mut Map<String, Value> {
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    match &mut object["metadata"] {
        Value::Object(map) => map,
        // The line above made it an object.
        _ => unreachable!("metadata is an object"),
    }
}

pub fn is_terminating(object: &Value) -> bool {
    !text(object, "deletionTimestamp").is_empty()
}

pub fn finalizers(object: &Value) -> Vec<String> {
    object["metadata"]["finalizers"]
        .as_array()
        .map(|all| {
            all.iter()
                .filter_map(|f| f.as_str().map(str::to_owned))
                .collect()
        })
        .unwrap_or_default()
}

pub fn set_finalizers(object: &mut Value, finalizers: &[String]) {
    if finalizers.is_empty() {
        of(object).shift_remove("finalizers");
    } else {
        of(object).insert("finalizers".to_owned(), json!(finalizers));
    }
}

/// Seconds since the Unix epoch.
pub fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

/// `2026-01-02T03:04:05Z`, as `metav1.Time` writes it. `seconds` since the Unix epoch; what is before that counts as the
/// epoch, and what is later than the year 9999, which no client could read, as the last second that has a name.
pub fn rfc3339(seconds: i64) -> String {
    Timestamp::from_second(seconds.max(0))
        .unwrap_or(Timestamp::MAX)
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}

/// Five random letters in the alphabet that upstream uses (no vowels, nothing that looks like another).
pub fn random_suffix() -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut rng = rand::rng();
    (0..5)
        .map(|_| char::from(LETTERS[rng.random_range(0..LETTERS.len())]))
        .collect()
}

/// What the server sets on a new object. `suffix` completes a `generateName`.
pub fn prepare_create(object: &mut Value, namespace: &str, uid: String, now: i64, suffix: &str) {
    let metadata = of(object);
    for field in [
        "resourceVersion",
        "selfLink",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
    ] {
        metadata.shift_remove(field);
    }
    let named = metadata
        .get("name")
        .and_then(Value::as_str)
        .is_some_and(|n| !n.is_empty());
    if !named
        && let Some(base) = metadata
            .get("generateName")
            .and_then(Value::as_str)
            .filter(|b| !b.is_empty())
    {
        // A name is at most 63 characters where it matters most; the suffix must fit.
        let base: String = base.chars().take(58).collect();
        metadata.insert("name".to_owned(), json!(format!("{base}{suffix}")));
    }
    if namespace.is_empty() {
        metadata.shift_remove("namespace");
    } else {
        metadata.insert("namespace".to_owned(), json!(namespace));
    }
    metadata.insert("uid".to_owned(), json!(uid));
    metadata.insert("creationTimestamp".to_owned(), json!(rfc3339(now)));
}

/// Carries over from `old` what no update may change.
pub fn prepare_update(new: &mut Value, old: &Value) {
    let metadata = of(new);
    metadata.shift_remove("selfLink");
    // What a client leaves out means "as it is"; what it sets must be the same, which validation checks.
    for field in ["uid", "namespace"] {
        let missing = metadata.get(field).is_none_or(|v| v.is_null() || v == "");
        if missing && let Some(value) = old["metadata"].get(field) {
            metadata.insert(field.to_owned(), value.clone());
        }
    }
    for field in [
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "creationTimestamp",
        "generateName",
    ] {
        match old["metadata"].get(field) {
            Some(value) => metadata.insert(field.to_owned(), value.clone()),
            None => metadata.shift_remove(field),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_object_gets_what_the_server_owns() {
        let mut object =
            json!({"metadata": {"generateName": "web-", "resourceVersion": "7", "uid": "mine"}});
        prepare_create(&mut object, "default", "u-1".into(), 0, "abcde");
        assert_eq!(
            object["metadata"],
            json!({"generateName": "web-", "uid": "u-1", "name": "web-abcde", "namespace": "default", "creationTimestamp": "1970-01-01T00:00:00Z"})
        );
    }

    #[test]
    fn every_number_of_seconds_is_a_time_that_clients_can_read() {
        for seconds in [i64::MIN, -1, 0, 253_402_300_800, 300_000_000_000, i64::MAX] {
            let text = rfc3339(seconds);
            assert!(text.parse::<Timestamp>().is_ok(), "{seconds}: {text:?}");
            assert_eq!(text.len(), "2026-01-02T03:04:05Z".len());
        }
    }

    #[test]
    fn an_update_keeps_what_it_may_not_change() {
        let old = json!({"metadata": {"name": "a", "namespace": "n", "uid": "u", "creationTimestamp": "t", "generation": 3, "deletionTimestamp": "d"}});
        let mut new = json!({"metadata": {"name": "a", "generation": 9, "labels": {"x": "y"}}});
        prepare_update(&mut new, &old);
        assert_eq!(new["metadata"]["generation"], 3);
        assert_eq!(new["metadata"]["deletionTimestamp"], "d");
        assert_eq!(new["metadata"]["uid"], "u");
    }
}
