//! PersistentVolumeClaim: a namespace's wish for storage.

use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimSpec, PersistentVolumeClaimStatus,
    TypedLocalObjectReference, TypedObjectReference,
};
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, Subresource, age,
    persistentvolume::{VOLUME_MODES, access_modes, short_modes, size},
    print,
    quantity::{self, Quantity},
    validate::{Path, labels, names, one_of},
};

const UNSET: &str = "<unset>";

impl Strategy for PersistentVolumeClaim {
    const SINGULAR: &'static str = "persistentvolumeclaim";
    const SHORT_NAMES: &'static [&'static str] = &["pvc"];
    const SUBRESOURCES: &'static [Subresource] = &[Subresource::Status];
    const RETURNS_DELETED_OBJECT: bool = true;
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::text("Status", "Whether the claim has a volume."),
        Column::text("Volume", "Which volume it has."),
        Column::text("Capacity", "How large that is."),
        Column::text("Access Modes", "How that can be mounted."),
        Column::text("StorageClass", "The class of volume that is claimed."),
        Column::text("VolumeAttributesClass", "The class of its attributes."),
        Column::AGE,
        Column::text("VolumeMode", "Whether it has a filesystem.").wide(),
    ];

    fn row(&self, now: i64) -> Vec<Value> {
        let spec = self.spec.clone().unwrap_or_default();
        let status = self.status.clone().unwrap_or_default();
        let phase = match self.metadata.deletion_timestamp {
            Some(_) => "Terminating",
            None => status.phase.as_deref().unwrap_or_default(),
        };
        // Only of a volume that the claim has can this be said.
        let volume = spec.volume_name.clone().unwrap_or_default();
        let bound = !volume.is_empty();
        let capacity = status.capacity.as_ref().filter(|_| bound);
        let capacity = capacity.and_then(|capacity| capacity.get("storage"));
        let modes = status.access_modes.as_ref().filter(|_| bound);
        vec![
            json!(print::name(&self.metadata)),
            json!(phase),
            json!(volume),
            json!(capacity.map_or("", |size| size.0.as_str())),
            json!(short_modes(modes)),
            json!(spec.storage_class_name.unwrap_or_default()),
            json!(
                spec.volume_attributes_class_name
                    .as_deref()
                    .unwrap_or(UNSET)
            ),
            json!(age::of(&self.metadata, now)),
            json!(spec.volume_mode.as_deref().unwrap_or(UNSET)),
        ]
    }

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        spec.volume_mode
            .get_or_insert_with(|| "Filesystem".to_owned());
        let resources = spec.resources.get_or_insert_default();
        quantity::canonicalize(resources.requests.as_mut());
        quantity::canonicalize(resources.limits.as_mut());
        same_source_in_both_fields(spec);
        if let Some(status) = &mut self.status {
            quantity::canonicalize(status.capacity.as_mut());
            quantity::canonicalize(status.allocated_resources.as_mut());
        }
    }

    fn prepare_create(&mut self) {
        self.status = Some(PersistentVolumeClaimStatus {
            phase: Some("Pending".to_owned()),
            ..PersistentVolumeClaimStatus::default()
        });
    }

    fn prepare_update(&mut self, old: &Self) {
        self.status = old.status.clone();
    }

    fn prepare_status(&mut self, old: &Self) {
        self.spec = old.spec.clone();
    }

    fn validate(&self, old: Option<&Self>) -> Vec<FieldError> {
        let path = Path::new("spec");
        let spec = self.spec.clone().unwrap_or_default();
        let mut errors = Vec::new();
        let at = path.child("accessModes");
        match spec.access_modes.as_deref().unwrap_or_default() {
            [] => errors.push(at.required("at least 1 access mode is required")),
            modes => errors.extend(access_modes(&at, modes)),
        }
        if let Some(selector) = &spec.selector {
            errors.extend(labels::selector(&path.child("selector"), selector));
        }
        let asked = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
        if asked.is_none_or(|asked| !asked.contains_key("storage")) {
            errors.push(path.child("resources").key("storage").required(""));
        }
        let at = path.child("resources").child("requests").key("storage");
        errors.extend(size(&at, asked));
        if let Some(class) = spec.storage_class_name.as_deref().filter(|c| !c.is_empty()) {
            let at = path.child("storageClassName");
            errors.extend(at.invalid_all(class, names::dns1123_subdomain(class, false)));
        }
        let at = path.child("volumeMode");
        errors.extend(one_of(&at, spec.volume_mode.as_deref(), VOLUME_MODES));
        errors.extend(source(&path, &spec));
        if let Some(old) = old {
            errors.extend(changed(&path, self, old));
        }
        errors
    }
}

/// Where the contents come from has two fields; the newer one can say more.
fn same_source_in_both_fields(spec: &mut PersistentVolumeClaimSpec) {
    match (&spec.data_source, &spec.data_source_ref) {
        (Some(source), None) => {
            spec.data_source_ref = Some(TypedObjectReference {
                api_group: source.api_group.clone(),
                kind: source.kind.clone(),
                name: source.name.clone(),
                namespace: None,
            });
        }
        (None, Some(source)) if source.namespace.as_deref().unwrap_or_default().is_empty() => {
            spec.data_source = Some(TypedLocalObjectReference {
                api_group: source.api_group.clone(),
                kind: source.kind.clone(),
                name: source.name.clone(),
            });
        }
        _ => {}
    }
}

fn source(path: &Path, spec: &PersistentVolumeClaimSpec) -> Vec<FieldError> {
    let old = spec.data_source.as_ref();
    let new = spec.data_source_ref.as_ref();
    let fields = [
        ("dataSource", old.map(|s| (&s.name, &s.kind, &s.api_group))),
        (
            "dataSourceRef",
            new.map(|s| (&s.name, &s.kind, &s.api_group)),
        ),
    ];
    let mut errors = Vec::new();
    for (field, source) in fields {
        let (path, Some((name, kind, group))) = (path.child(field), source) else {
            continue;
        };
        for (field, value) in [("name", name), ("kind", kind)] {
            if value.is_empty() {
                errors.push(path.child(field).required(""));
            }
        }
        let group = group.as_deref().unwrap_or_default();
        if group.is_empty() && kind != "PersistentVolumeClaim" {
            let why = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
            errors.push(path.invalid(kind.as_str(), why));
        }
    }
    if let (Some(old), Some(new)) = (old, new)
        && (&old.name, &old.kind, &old.api_group) != (&new.name, &new.kind, &new.api_group)
    {
        let why = "must match dataSourceRef";
        let value = serde_json::to_value(old).unwrap_or_default();
        errors.push(path.child("dataSource").invalid(value, why));
    }
    errors
}

/// A claim stays as it is, but for the volume that it gets once, the class that it had none of, and growing while it has a
/// volume.
fn changed(
    path: &Path,
    new: &PersistentVolumeClaim,
    old: &PersistentVolumeClaim,
) -> Vec<FieldError> {
    let (spec, was) = (
        new.spec.clone().unwrap_or_default(),
        old.spec.clone().unwrap_or_default(),
    );
    let mut same = spec.clone();
    if was.volume_name.as_deref().unwrap_or_default().is_empty() {
        same.volume_name.clone_from(&was.volume_name);
    }
    if was.storage_class_name.is_none() {
        same.storage_class_name = None;
    }
    let status = old.status.clone().unwrap_or_default();
    let bound = status.phase.as_deref() == Some("Bound");
    let asked = |spec: &PersistentVolumeClaimSpec| {
        let requests = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
        quantity::sums(requests).remove("storage")
    };
    let mut errors = Vec::new();
    if bound {
        same.volume_attributes_class_name
            .clone_from(&was.volume_attributes_class_name);
        let requests = was.resources.as_ref().and_then(|r| r.requests.clone());
        same.resources.get_or_insert_default().requests = requests;
        let has: Option<Quantity> = quantity::sums(status.capacity.as_ref()).remove("storage");
        if asked(&spec) < asked(&was) && (has.is_none() || asked(&spec) <= has) {
            let at = path.child("resources").child("requests").child("storage");
            errors.push(at.forbidden("field can not be less than status.capacity"));
        }
    }
    if same != was {
        errors.push(path.forbidden("spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims"));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(spec: Value, status: Value) -> PersistentVolumeClaim {
        let mut claim: PersistentVolumeClaim = serde_json::from_value(
            json!({"metadata": {"name": "c"}, "spec": spec, "status": status}),
        )
        .unwrap();
        claim.set_defaults();
        claim
    }

    fn texts(new: &PersistentVolumeClaim, old: Option<&PersistentVolumeClaim>) -> Vec<String> {
        let errors = Strategy::validate(new, old);
        errors.iter().map(ToString::to_string).collect()
    }

    fn plain(size: &str) -> Value {
        json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}})
    }

    const IMMUTABLE: &str = "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";

    #[test]
    fn a_claim_asks_for_a_size_and_a_mode() {
        assert_eq!(
            texts(&claim(plain("1Gi"), json!({})), None),
            Vec::<String>::new()
        );
        assert_eq!(
            texts(
                &claim(
                    json!({"dataSource": {"kind": "Pod", "name": "p"}}),
                    json!({})
                ),
                None
            ),
            [
                "spec.accessModes: Required value: at least 1 access mode is required",
                "spec.resources[storage]: Required value",
                "spec.dataSource: Invalid value: \"Pod\": must be 'PersistentVolumeClaim' when referencing the default apiGroup",
                "spec.dataSourceRef: Invalid value: \"Pod\": must be 'PersistentVolumeClaim' when referencing the default apiGroup",
            ]
        );
    }

    #[test]
    fn a_claim_gets_a_volume_once_and_a_class_if_it_has_none() {
        let old = claim(plain("1Gi"), json!({}));
        let mut bound = plain("1Gi");
        bound["volumeName"] = json!("v");
        bound["storageClassName"] = json!("fast");
        let bound = claim(bound, json!({}));
        assert_eq!(texts(&bound, Some(&old)), Vec::<String>::new());
        assert_eq!(texts(&old, Some(&bound)), [IMMUTABLE]);
    }

    #[test]
    fn a_claim_grows_while_it_has_a_volume() {
        let status = json!({"phase": "Bound", "capacity": {"storage": "2Gi"}});
        let (pending, has) = (
            claim(plain("2Gi"), json!({})),
            claim(plain("2Gi"), status.clone()),
        );
        let (more, less) = (
            claim(plain("3Gi"), status.clone()),
            claim(plain("1Gi"), status),
        );
        assert_eq!(texts(&more, Some(&pending)), [IMMUTABLE]);
        assert_eq!(texts(&more, Some(&has)), Vec::<String>::new());
        assert_eq!(
            texts(&less, Some(&has)),
            [
                "spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"
            ]
        );
    }

    #[test]
    fn the_row_tells_of_the_volume_that_there_is() {
        let mut spec = plain("1Gi");
        let status = json!({"phase": "Bound", "capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOnce"]});
        assert_eq!(claim(spec.clone(), status.clone()).row(0)[3], "");
        spec["volumeName"] = json!("v");
        assert_eq!(
            claim(spec, status).row(0),
            [
                "c",
                "Bound",
                "v",
                "2Gi",
                "RWO",
                "",
                "<unset>",
                "<unknown>",
                "Filesystem"
            ]
        );
    }
}
