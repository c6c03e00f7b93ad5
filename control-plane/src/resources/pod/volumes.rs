//! What a pod's volumes may say.

use k8s_openapi::api::core::v1::Volume;
use serde_json::Value;

use super::containers::PULL_POLICIES;
use super::files;
use crate::resources::validate::{self, FieldError, Path, names};

pub(super) fn errors(path: &Path, volumes: &[Volume]) -> Vec<FieldError> {
    let mut errors: Vec<_> = volumes
        .iter()
        .enumerate()
        .flat_map(|(index, volume)| one(&path.index(index), volume))
        .collect();
    errors.extend(validate::duplicates(
        path,
        "name",
        volumes.iter().map(|volume| volume.name.as_str()),
    ));
    errors
}

fn one(path: &Path, volume: &Volume) -> Vec<FieldError> {
    let mut errors = Vec::new();
    match volume.name.as_str() {
        "" => errors.push(path.child("name").required("")),
        name => errors.extend(
            path.child("name")
                .invalid_all(name, names::dns1123_label(name, false)),
        ),
    }
    match sources(volume).as_slice() {
        [] => errors.push(path.required("must specify a volume type")),
        [_] => {}
        [_, others @ ..] => errors.extend(others.iter().map(|other| {
            path.child(other)
                .forbidden("may not specify more than 1 volume type")
        })),
    }
    let needed = [
        (
            "configMap",
            "name",
            volume
                .config_map
                .as_ref()
                .map(|source| source.name.as_str()),
        ),
        (
            "secret",
            "secretName",
            volume
                .secret
                .as_ref()
                .map(|source| source.secret_name.as_deref().unwrap_or_default()),
        ),
        (
            "hostPath",
            "path",
            volume.host_path.as_ref().map(|source| source.path.as_str()),
        ),
        (
            "persistentVolumeClaim",
            "claimName",
            volume
                .persistent_volume_claim
                .as_ref()
                .map(|source| source.claim_name.as_str()),
        ),
    ];
    for (source, field, value) in needed {
        if value == Some("") {
            errors.push(path.child(source).child(field).required(""));
        }
    }
    errors.extend(files::errors(path, volume));
    if let Some(image) = &volume.image {
        let policy = image.pull_policy.as_deref();
        let path = path.child("image").child("pullPolicy");
        errors.extend(validate::one_of(&path, policy, PULL_POLICIES));
    }
    errors
}

/// Pods name the images of their volumes; in templates somebody may yet put them in.
pub(super) fn unnamed_images(path: &Path, volumes: &[Volume]) -> Vec<FieldError> {
    let is_unnamed = |volume: &Volume| {
        let image = volume.image.as_ref();
        image.is_some_and(|it| it.reference.as_deref().unwrap_or_default().is_empty())
    };
    let indexed = volumes.iter().enumerate();
    indexed
        .filter(|(_, volume)| is_unnamed(volume))
        .map(|(index, _)| {
            let image = path.index(index).child("image");
            image.child("reference").required("")
        })
        .collect()
}

/// The fields, beside the name, that are set: a volume has one source.
fn sources(volume: &Volume) -> Vec<String> {
    match serde_json::to_value(volume) {
        Ok(Value::Object(fields)) => fields
            .into_iter()
            .map(|(field, _)| field)
            .filter(|field| field != "name")
            .collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_volume_has_a_name_and_one_source() {
        let volumes: Vec<Volume> = serde_json::from_value(json!([
            { "name": "a", "emptyDir": {} },
            { "name": "B", "configMap": {} },
            { "emptyDir": {}, "secret": { "secretName": "s" } },
            { "name": "a" },
            { "name": "c", "image": { "pullPolicy": "Often" } },
        ]))
        .unwrap();
        let paths: Vec<_> = errors(&Path::new("volumes"), &volumes)
            .into_iter()
            .map(|error| error.path)
            .collect();
        assert_eq!(
            paths,
            [
                "volumes[1].name",
                "volumes[1].configMap.name",
                "volumes[2].name",
                "volumes[2].secret",
                "volumes[3]",
                "volumes[4].image.pullPolicy",
                "volumes[3].name"
            ]
        );
        let unnamed = unnamed_images(&Path::new("volumes"), &volumes);
        let texts: Vec<_> = unnamed.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["volumes[4].image.reference: Required value"]);
    }
}
