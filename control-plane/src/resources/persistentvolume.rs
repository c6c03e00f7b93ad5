//! PersistentVolume: storage that outlives pods.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeSpec, PersistentVolumeStatus};
use serde_json::{Map, Value, json};

use super::{
    Column, FieldError, Strategy, Subresource, age, csidriver,
    pod::validate::node_selector,
    print,
    quantity::{self, Amounts, Quantity},
    validate::{FIELD_IS_IMMUTABLE, Path, immutable, names, one_of},
};

/// What the modes are called, and shortly.
const ACCESS_MODES: [(&str, &str); 4] = [
    ("ReadWriteOnce", "RWO"),
    ("ReadOnlyMany", "ROX"),
    ("ReadWriteMany", "RWX"),
    ("ReadWriteOncePod", "RWOP"),
];
pub(super) const VOLUME_MODES: &[&str] = &["Block", "Filesystem"];
const RECLAIM_POLICIES: &[&str] = &["Delete", "Recycle", "Retain"];
const UNSET: &str = "<unset>";

/// The fields of a spec that say nothing of where the volume is.
const NO_SOURCE: &[&str] = &[
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

/// `RWO,RWX`.
pub(super) fn short_modes(modes: Option<&Vec<String>>) -> String {
    let has = |mode: &str| modes.is_some_and(|modes| modes.iter().any(|one| one == mode));
    let short: Vec<_> = ACCESS_MODES
        .iter()
        .filter_map(|(mode, short)| has(mode).then_some(*short))
        .collect();
    short.join(",")
}

/// What is wrong with access modes that there are.
pub(super) fn access_modes(path: &Path, modes: &[String]) -> Vec<FieldError> {
    let known = ACCESS_MODES.map(|(mode, _)| mode);
    let mut errors: Vec<_> = modes
        .iter()
        .filter(|mode| !known.contains(&mode.as_str()))
        .map(|mode| path.unsupported(mode, &known))
        .collect();
    if modes.len() > 1 && modes.iter().any(|mode| mode == "ReadWriteOncePod") {
        errors.push(path.forbidden("may not use ReadWriteOncePod with other access modes"));
    }
    errors
}

/// The size among amounts, if it is none.
pub(super) fn size(path: &Path, amounts: Option<&Amounts>) -> Option<FieldError> {
    let text = amounts?.get("storage")?.0.as_str();
    match text.parse::<Quantity>() {
        Err(error) => Some(path.invalid(text, error.to_string())),
        Ok(size) if size <= Quantity::count(0) => {
            Some(path.invalid(text, "must be greater than zero"))
        }
        Ok(_) => None,
    }
}

impl Strategy for PersistentVolume {
    const SINGULAR: &'static str = "persistentvolume";
    const SHORT_NAMES: &'static [&'static str] = &["pv"];
    const NAMESPACED: bool = false;
    const RETURNS_DELETED_OBJECT: bool = true;
    const SUBRESOURCES: &'static [Subresource] = &[Subresource::Status];
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::text("Capacity", "How large it is."),
        Column::text("Access Modes", "How it can be mounted."),
        Column::text("Reclaim Policy", "What becomes of it when its claim goes."),
        Column::text("Status", "Whether it is claimed."),
        Column::text("Claim", "By whom it is claimed."),
        Column::text("StorageClass", "Its class."),
        Column::text("VolumeAttributesClass", "The class of its attributes."),
        Column::text("Reason", "Why it is in that status."),
        Column::AGE,
        Column::text("VolumeMode", "Whether it has a filesystem.").wide(),
    ];

    fn row(&self, now: i64) -> Vec<Value> {
        let spec = self.spec.clone().unwrap_or_default();
        let status = self.status.clone().unwrap_or_default();
        let claim = spec.claim_ref.as_ref().map(|claim| {
            let part = |text: &Option<String>| text.clone().unwrap_or_default();
            format!("{}/{}", part(&claim.namespace), part(&claim.name))
        });
        let capacity = spec.capacity.as_ref().and_then(|all| all.get("storage"));
        let phase = match self.metadata.deletion_timestamp {
            Some(_) => "Terminating",
            None => status.phase.as_deref().unwrap_or_default(),
        };
        vec![
            json!(print::name(&self.metadata)),
            json!(capacity.map_or("", |size| size.0.as_str())),
            json!(short_modes(spec.access_modes.as_ref())),
            json!(spec.persistent_volume_reclaim_policy.unwrap_or_default()),
            json!(phase),
            json!(claim.unwrap_or_default()),
            json!(spec.storage_class_name.unwrap_or_default()),
            json!(
                spec.volume_attributes_class_name
                    .as_deref()
                    .unwrap_or(UNSET)
            ),
            json!(status.reason.unwrap_or_default()),
            json!(age::of(&self.metadata, now)),
            json!(spec.volume_mode.as_deref().unwrap_or(UNSET)),
        ]
    }

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        spec.persistent_volume_reclaim_policy
            .get_or_insert_with(|| "Retain".to_owned());
        spec.volume_mode
            .get_or_insert_with(|| "Filesystem".to_owned());
        quantity::canonicalize(spec.capacity.as_mut());
        if let Some(path) = &mut spec.host_path {
            path.type_.get_or_insert_default();
        }
        if let Some(source) = &mut spec.iscsi {
            source
                .iscsi_interface
                .get_or_insert_with(|| "default".to_owned());
        }
    }

    fn prepare_create(&mut self) {
        self.status = Some(PersistentVolumeStatus {
            phase: Some("Pending".to_owned()),
            last_phase_transition_time: self.metadata.creation_timestamp.clone(),
            ..PersistentVolumeStatus::default()
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
            [] => errors.push(at.required("")),
            modes => errors.extend(access_modes(&at, modes)),
        }
        let at = path.child("capacity");
        let capacity = spec.capacity.as_ref();
        match capacity.map_or(0, |all| all.len()) {
            0 => errors.push(at.required("")),
            1 if capacity.is_some_and(|all| all.contains_key("storage")) => {
                errors.extend(size(&at.key("storage"), capacity));
            }
            _ => {
                let named: Vec<_> = capacity
                    .into_iter()
                    .flatten()
                    .map(|(n, _)| n.as_str())
                    .collect();
                errors.push(at.unsupported(&named.join(","), &["storage"]));
            }
        }
        let policy = spec.persistent_volume_reclaim_policy.as_deref();
        let at = path.child("persistentVolumeReclaimPolicy");
        errors.extend(one_of(&at, policy, RECLAIM_POLICIES));
        let at = path.child("volumeMode");
        errors.extend(one_of(&at, spec.volume_mode.as_deref(), VOLUME_MODES));
        if let Some(class) = spec.storage_class_name.as_deref().filter(|c| !c.is_empty()) {
            let at = path.child("storageClassName");
            errors.extend(at.invalid_all(class, names::dns1123_subdomain(class, false)));
        }
        if let Some(affinity) = &spec.node_affinity {
            let at = path.child("nodeAffinity").child("required");
            match &affinity.required {
                None => errors.push(at.required("must specify required node constraints")),
                Some(selector) => errors.extend(node_selector(&at, selector)),
            }
        }
        errors.extend(source(&path, &spec));
        if let Some(old) = old.and_then(|old| old.spec.as_ref()) {
            errors.extend(changed(&path, &spec, old));
        }
        errors
    }
}

/// Where the volume is: the fields of the spec that are no others.
fn sources(spec: &PersistentVolumeSpec) -> Map<String, Value> {
    let mut fields = match serde_json::to_value(spec) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    fields.retain(|field, _| !NO_SOURCE.contains(&field.as_str()));
    fields
}

fn source(path: &Path, spec: &PersistentVolumeSpec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let sources = sources(spec);
    if sources.is_empty() {
        return vec![path.required("must specify a volume type")];
    }
    for other in sources.keys().skip(1) {
        let why = "may not specify more than 1 volume type";
        errors.push(path.child(other).forbidden(why));
    }
    let needed = |path: Path, text: &str| text.is_empty().then(|| path.required(""));
    if let Some(source) = &spec.host_path {
        errors.extend(needed(path.child("hostPath").child("path"), &source.path));
        let recycled = spec.persistent_volume_reclaim_policy.as_deref() == Some("Recycle");
        if recycled && source.path.trim_end_matches('/').is_empty() && !source.path.is_empty() {
            let at = path.child("persistentVolumeReclaimPolicy");
            errors.push(at.forbidden("may not be 'recycle' for a hostPath mount of '/'"));
        }
    }
    if let Some(source) = &spec.nfs {
        let path = path.child("nfs");
        errors.extend(needed(path.child("server"), &source.server));
        errors.extend(needed(path.child("path"), &source.path));
        if !source.path.is_empty() && !source.path.starts_with('/') {
            let at = path.child("path");
            errors.push(at.invalid(source.path.as_str(), "must be an absolute path"));
        }
    }
    if let Some(source) = &spec.local {
        errors.extend(needed(path.child("local").child("path"), &source.path));
        if spec.node_affinity.is_none() {
            let at = path.child("nodeAffinity");
            errors.push(at.required("Local volume requires node affinity"));
        }
    }
    if let Some(source) = &spec.csi {
        let path = path.child("csi");
        let at = path.child("driver");
        match source.driver.as_str() {
            "" => errors.push(at.required("")),
            name => errors.extend(at.invalid_all(name, csidriver::name(name, false))),
        }
        errors.extend(needed(path.child("volumeHandle"), &source.volume_handle));
    }
    errors
}

/// What of a volume may not change.
fn changed(path: &Path, new: &PersistentVolumeSpec, old: &PersistentVolumeSpec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if sources(new) != sources(old) {
        let path = path.child("persistentvolumesource");
        errors.push(path.forbidden("spec.persistentvolumesource is immutable after creation"));
    }
    let at = path.child("volumeMode");
    errors.extend(immutable(&at, &new.volume_mode, &old.volume_mode));
    if old.node_affinity.is_some() && new.node_affinity != old.node_affinity {
        let value = serde_json::to_value(&new.node_affinity).unwrap_or_default();
        errors.push(
            path.child("nodeAffinity")
                .invalid(value, FIELD_IS_IMMUTABLE),
        );
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(spec: Value) -> PersistentVolume {
        let mut volume: PersistentVolume =
            serde_json::from_value(json!({"metadata": {"name": "v"}, "spec": spec})).unwrap();
        volume.set_defaults();
        volume
    }

    fn texts(new: Value, old: Option<Value>) -> Vec<String> {
        let old = old.map(volume);
        let errors = Strategy::validate(&volume(new), old.as_ref());
        errors.iter().map(ToString::to_string).collect()
    }

    fn plain() -> Value {
        json!({
            "capacity": {"storage": "5Gi"}, "accessModes": ["ReadWriteMany", "ReadWriteOnce"],
            "hostPath": {"path": "/srv"},
        })
    }

    #[test]
    fn a_volume_has_a_size_modes_and_one_place() {
        assert_eq!(texts(plain(), None), Vec::<String>::new());
        assert_eq!(
            texts(json!({}), None),
            [
                "spec.accessModes: Required value",
                "spec.capacity: Required value",
                "spec: Required value: must specify a volume type",
            ]
        );
        assert_eq!(
            texts(
                json!({
                    "capacity": {"storage": "0"}, "accessModes": ["Some", "ReadWriteOncePod"],
                    "local": {"path": "/a"}, "nfs": {"server": "", "path": "b"}, "volumeMode": "Tape",
                }),
                None
            ),
            [
                "spec.accessModes: Unsupported value: \"Some\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\"",
                "spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes",
                "spec.capacity[storage]: Invalid value: \"0\": must be greater than zero",
                "spec.volumeMode: Unsupported value: \"Tape\": supported values: \"Block\", \"Filesystem\"",
                "spec.nfs: Forbidden: may not specify more than 1 volume type",
                "spec.nfs.server: Required value",
                "spec.nfs.path: Invalid value: \"b\": must be an absolute path",
                "spec.nodeAffinity: Required value: Local volume requires node affinity",
            ]
        );
    }

    #[test]
    fn a_volume_stays_where_it_is() {
        let mut new = plain();
        new["hostPath"]["path"] = json!("/other");
        new["volumeMode"] = json!("Block");
        assert_eq!(
            texts(new, Some(plain())),
            [
                "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation",
                "spec.volumeMode: Invalid value: \"Block\": field is immutable",
            ]
        );
        let mut claimed = plain();
        claimed["claimRef"] = json!({"namespace": "a", "name": "b"});
        assert_eq!(texts(claimed, Some(plain())), Vec::<String>::new());
    }

    #[test]
    fn the_row_is_what_upstream_shows() {
        let mut volume = volume(plain());
        volume.prepare_create();
        assert_eq!(
            volume.row(0),
            [
                "v",
                "5Gi",
                "RWO,RWX",
                "Retain",
                "Pending",
                "",
                "",
                "<unset>",
                "",
                "<unknown>",
                "Filesystem"
            ]
        );
    }
}
