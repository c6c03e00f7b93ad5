//! What volumes may say that are made of files: which keys become which files, with which modes, alone or projected into one.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, ProjectedVolumeSource, ServiceAccountTokenProjection, Volume,
};

use crate::resources::validate::{FieldError, Path};

/// Seconds that a token may be good, as upstream.
const SHORTEST_TOKEN: i64 = 10 * 60;
const LONGEST_TOKEN: i64 = 1 << 32;

/// The errors of the volume at `path`.
pub(super) fn errors(path: &Path, volume: &Volume) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if let Some(source) = &volume.config_map {
        let path = path.child("configMap");
        errors.extend(mode(&path.child("defaultMode"), source.default_mode));
        errors.extend(items(&path, source.items.as_deref()));
    }
    if let Some(source) = &volume.secret {
        let path = path.child("secret");
        errors.extend(mode(&path.child("defaultMode"), source.default_mode));
        errors.extend(items(&path, source.items.as_deref()));
    }
    if let Some(source) = &volume.downward_api {
        let path = path.child("downwardAPI");
        errors.extend(mode(&path.child("defaultMode"), source.default_mode));
        let files = source.items.iter().flatten();
        errors.extend(files.flat_map(|file| downward(&path, file)));
    }
    if let Some(source) = &volume.projected {
        errors.extend(projected(&path.child("projected"), source));
    }
    errors
}

/// Of two sources that name the same file one is too many. Files that are named after keys are not known here: on the node,
/// the later source has them.
fn projected(path: &Path, volume: &ProjectedVolumeSource) -> Vec<FieldError> {
    let mut errors: Vec<_> = mode(&path.child("defaultMode"), volume.default_mode)
        .into_iter()
        .collect();
    let mut seen = HashSet::new();
    let mut conflict = |file: &str, who: &str| {
        let is_new = file.is_empty() || seen.insert(file.to_owned());
        (!is_new).then(|| path.invalid(who, "conflicting duplicate paths"))
    };
    for (index, source) in volume.sources.iter().flatten().enumerate() {
        let at = path.child("sources").index(index);
        let named = [
            (
                "secret",
                source.secret.as_ref().map(|it| (&it.name, &it.items)),
            ),
            (
                "configMap",
                source.config_map.as_ref().map(|it| (&it.name, &it.items)),
            ),
        ];
        for (kind, source) in named {
            let Some((name, keys)) = source else { continue };
            let at = at.child(kind);
            if name.is_empty() {
                errors.push(at.child("name").required(""));
            }
            errors.extend(items(&at, keys.as_deref()));
            let keys = keys.iter().flatten();
            errors.extend(keys.filter_map(|key| conflict(&key.path, name)));
        }
        if let Some(source) = &source.downward_api {
            for file in source.items.iter().flatten() {
                errors.extend(downward(&at.child("downwardAPI"), file));
                errors.extend(conflict(&file.path, &file.path));
            }
        }
        if let Some(source) = &source.service_account_token {
            errors.extend(token(path, &at.child("serviceAccountToken"), source));
        }
        let kinds = [
            source.secret.is_some(),
            source.config_map.is_some(),
            source.downward_api.is_some(),
            source.service_account_token.is_some(),
            source.cluster_trust_bundle.is_some(),
            source.pod_certificate.is_some(),
        ];
        if kinds.into_iter().filter(|kind| *kind).count() > 1 {
            errors.push(at.forbidden("may not specify more than 1 volume type"));
        }
    }
    errors
}

/// Upstream finds fault with a token's file at the volume, and does not compare it with others.
fn token(volume: &Path, path: &Path, source: &ServiceAccountTokenProjection) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let seconds = source.expiration_seconds.unwrap_or(SHORTEST_TOKEN);
    let detail = match seconds {
        ..SHORTEST_TOKEN => Some("may not specify a duration less than 10 minutes"),
        LONGEST_TOKEN.. if seconds > LONGEST_TOKEN => {
            Some("may not specify a duration larger than 2^32 seconds")
        }
        _ => None,
    };
    let at = path.child("expirationSeconds");
    errors.extend(detail.map(|detail| at.invalid(seconds, detail)));
    errors.extend(file(&volume.child("path"), &source.path));
    errors
}

fn items(path: &Path, items: Option<&[KeyToPath]>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, item) in items.into_iter().flatten().enumerate() {
        let path = path.child("items").index(index);
        if item.key.is_empty() {
            errors.push(path.child("key").required(""));
        }
        errors.extend(file(&path.child("path"), &item.path));
        errors.extend(mode(&path.child("mode"), item.mode));
    }
    errors
}

fn downward(path: &Path, item: &DownwardAPIVolumeFile) -> Vec<FieldError> {
    let mut errors = file(&path.child("path"), &item.path);
    match (&item.field_ref, &item.resource_field_ref) {
        (Some(_), Some(_)) => errors.push(path.invalid(
            "resource",
            "fieldRef and resourceFieldRef can not be specified simultaneously",
        )),
        (None, None) => {
            errors.push(path.required("one of fieldRef and resourceFieldRef is required"));
        }
        _ => {}
    }
    errors.extend(mode(&path.child("mode"), item.mode));
    errors
}

/// The path of a file inside a volume, which keeps names for itself that begin with two dots.
fn file(path: &Path, file: &str) -> Vec<FieldError> {
    if file.is_empty() {
        return vec![path.required("")];
    }
    let mut errors = Vec::new();
    if file.starts_with('/') {
        errors.push(path.invalid(file, "must be a relative path"));
    }
    if file.split('/').any(|part| part == "..") {
        errors.push(path.invalid(file, "must not contain '..'"));
    }
    if file.starts_with("..") && !file.starts_with("../") {
        errors.push(path.invalid(file, "must not start with '..'"));
    }
    errors
}

fn mode(path: &Path, mode: Option<i32>) -> Option<FieldError> {
    let mode = mode.filter(|mode| !(0..=0o777).contains(mode))?;
    let detail = "must be a number between 0 and 0777 (octal), both inclusive";
    Some(path.invalid(mode, detail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn told(volume: Value) -> Vec<String> {
        let volume: Volume = serde_json::from_value(volume).unwrap();
        let errors = errors(&Path::new("v"), &volume);
        errors.iter().map(ToString::to_string).collect()
    }

    fn sources(sources: Value) -> Vec<String> {
        told(json!({ "name": "v", "projected": { "sources": sources } }))
    }

    #[test]
    fn two_sources_of_a_projected_volume_have_no_file_in_common() {
        let item = |path: &str| json!([{ "key": "k", "path": path }]);
        let name = json!({ "fieldPath": "metadata.name" });
        let conflict =
            |who: &str| format!("v.projected: Invalid value: {who:?}: conflicting duplicate paths");
        let errors = sources(json!([
            { "secret": { "name": "s", "items": item("a/file") } },
            { "configMap": { "name": "m", "items": item("a/file") } },
            { "downwardAPI": { "items": [{ "path": "a/file", "fieldRef": name }] } },
            { "secret": { "name": "t", "items": item("b") } },
            { "secret": { "name": "u", "items": item("b") } },
        ]));
        assert_eq!(errors, [conflict("m"), conflict("a/file"), conflict("u")]);
        // Which keys there are is known later, and a token's file upstream does not look at.
        let unknown = sources(json!([
            { "configMap": { "name": "m" } },
            { "configMap": { "name": "n" } },
            { "secret": { "name": "s", "items": item("token") } },
            { "serviceAccountToken": { "path": "token", "expirationSeconds": 600 } },
        ]));
        assert_eq!(unknown, Vec::<String>::new());
    }

    #[test]
    fn files_stay_inside_their_volume() {
        let errors = told(
            json!({ "name": "v", "configMap": { "name": "m", "defaultMode": 0o1000, "items": [
            { "key": "", "path": "" },
            { "key": "k", "path": "/etc", "mode": -1 },
            { "key": "k", "path": "a/../b" },
            { "key": "k", "path": "..data" },
            { "key": "k", "path": "a/..b", "mode": 0o777 },
        ] } }),
        );
        let octal = "must be a number between 0 and 0777 (octal), both inclusive";
        assert_eq!(
            errors,
            [
                format!("v.configMap.defaultMode: Invalid value: 512: {octal}"),
                "v.configMap.items[0].key: Required value".into(),
                "v.configMap.items[0].path: Required value".into(),
                "v.configMap.items[1].path: Invalid value: \"/etc\": must be a relative path"
                    .into(),
                format!("v.configMap.items[1].mode: Invalid value: -1: {octal}"),
                "v.configMap.items[2].path: Invalid value: \"a/../b\": must not contain '..'"
                    .into(),
                "v.configMap.items[3].path: Invalid value: \"..data\": must not start with '..'"
                    .into(),
            ]
        );
    }

    #[test]
    fn a_source_is_one_and_whole() {
        let field = json!({ "fieldPath": "metadata.name" });
        let resource = json!({ "resource": "limits.cpu" });
        let errors = sources(json!([
            { "secret": {}, "configMap": { "name": "m" } },
            { "downwardAPI": { "items": [{ "path": "x" }, { "path": "y", "fieldRef": field, "resourceFieldRef": resource }] } },
            { "serviceAccountToken": { "path": "", "expirationSeconds": 599 } },
            { "serviceAccountToken": { "path": "t", "expirationSeconds": (1_i64 << 32) + 1 } },
        ]));
        let at = "v.projected.sources";
        assert_eq!(
            errors,
            [
                format!("{at}[0].secret.name: Required value"),
                format!("{at}[0]: Forbidden: may not specify more than 1 volume type"),
                format!(
                    "{at}[1].downwardAPI: Required value: one of fieldRef and resourceFieldRef is required"
                ),
                format!(
                    "{at}[1].downwardAPI: Invalid value: \"resource\": fieldRef and resourceFieldRef can not be specified simultaneously"
                ),
                format!(
                    "{at}[2].serviceAccountToken.expirationSeconds: Invalid value: 599: may not specify a duration less than 10 minutes"
                ),
                "v.projected.path: Required value".into(),
                format!(
                    "{at}[3].serviceAccountToken.expirationSeconds: Invalid value: 4294967297: may not specify a duration larger than 2^32 seconds"
                ),
            ]
        );
    }
}
