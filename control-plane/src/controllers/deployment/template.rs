//! Pod templates: when two are the same, and the short stable name of one.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::Value;

pub(super) const HASH_LABEL: &str = "pod-template-hash";

/// Upstream's alphabet: no vowels and no digits that look like them, so that no word comes out by accident.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// Whether two templates are the same but for the hash label and for what is absent in one and empty in the other.
pub(in crate::controllers) fn same(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    normal(a) == normal(b)
}

/// Names a template within its Deployment; `collisions` moves it to another name when the first was taken.
pub(in crate::controllers) fn hash(template: &PodTemplateSpec, collisions: i32) -> String {
    let text = format!("{}{collisions}", normal(template));
    let mut hash = fnv1a(text.as_bytes());
    let mut name = String::new();
    while hash > 0 {
        name.push(char::from(ALPHABET[(hash % 27) as usize]));
        hash /= 27;
    }
    name
}

/// FNV-1a folded to 48 bits: ten letters at most.
fn fnv1a(bytes: &[u8]) -> u64 {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash >> 48) ^ (hash & 0x0000_ffff_ffff_ffff)
}

fn normal(template: &PodTemplateSpec) -> Value {
    let mut template = template.clone();
    if let Some(labels) = template
        .metadata
        .as_mut()
        .and_then(|meta| meta.labels.as_mut())
    {
        labels.remove(HASH_LABEL);
    }
    // A template has no field that JSON cannot hold.
    let mut value = serde_json::to_value(&template).unwrap_or_default();
    drop_empty(&mut value);
    value
}

/// Also sorts the fields, so that one template has one text.
fn drop_empty(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| {
                drop_empty(field);
                !is_empty(field)
            });
            fields.sort_keys();
        }
        Value::Array(items) => items.iter_mut().for_each(drop_empty),
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn template(image: &str) -> PodTemplateSpec {
        PodTemplateSpec {
            metadata: Some(ObjectMeta {
                labels: Some([("app".to_owned(), "web".to_owned())].into()),
                ..ObjectMeta::default()
            }),
            spec: Some(PodSpec {
                containers: vec![Container {
                    name: "c".into(),
                    image: Some(image.into()),
                    ..Container::default()
                }],
                ..PodSpec::default()
            }),
        }
    }

    #[test]
    fn the_hash_label_and_empty_fields_make_no_difference() {
        let mut other = template("a");
        other
            .metadata
            .as_mut()
            .unwrap()
            .labels
            .as_mut()
            .unwrap()
            .insert(HASH_LABEL.into(), "xyz".into());
        other.spec.as_mut().unwrap().containers[0].resources =
            Some(ResourceRequirements::default());
        assert!(same(&template("a"), &other));
        assert_eq!(hash(&template("a"), 0), hash(&other, 0));
        assert!(!same(&template("a"), &template("b")));
    }

    #[test]
    fn a_name_is_stable_short_and_moves_with_the_collision_count() {
        // Stored objects carry it: a change here would not break them, but would surprise.
        let name = hash(&template("a"), 0);
        assert_eq!(name, hash(&template("a"), 0));
        assert!(
            name.len() <= 11 && name.bytes().all(|letter| ALPHABET.contains(&letter)),
            "{name}"
        );
        assert_ne!(name, hash(&template("a"), 1));
        assert_ne!(name, hash(&template("b"), 0));
    }
}
