//! CSIDriver: what a storage driver needs of the cluster.

use k8s_openapi::api::storage::v1::CSIDriver;
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, age,
    kind::carry_generation,
    print,
    validate::{NameRule, Path, immutable, names, one_of},
};

const MODES: &[&str] = &["Ephemeral", "Persistent"];
const GROUP_POLICIES: &[&str] = &["File", "None", "ReadWriteOnceWithFSType"];
const SHORTEST_TOKEN: i64 = 600;
const LONGEST_TOKEN: i64 = 1 << 32;
/// The least time between two reports of what a node can attach, in seconds.
const SHORTEST_PERIOD: i64 = 10;
const MAX_NAME: usize = 63;

/// What is wrong with the name of a driver.
pub(super) fn name(name: &str, _prefix: bool) -> Vec<String> {
    let mut errors = Vec::new();
    if name.len() > MAX_NAME {
        errors.push(names::too_long(MAX_NAME));
    }
    errors.extend(names::dns1123_subdomain(&name.to_lowercase(), false));
    errors
}

const fn boolean(name: &'static str, description: &'static str) -> Column {
    Column {
        kind: "boolean",
        ..Column::text(name, description)
    }
}

impl Strategy for CSIDriver {
    const SINGULAR: &'static str = "csidriver";
    const NAMESPACED: bool = false;
    const RETURNS_DELETED_OBJECT: bool = true;
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        boolean("AttachRequired", "Whether volumes are attached to nodes."),
        boolean(
            "PodInfoOnMount",
            "Whether the driver hears which pod mounts.",
        ),
        boolean(
            "StorageCapacity",
            "Whether the scheduler looks at capacities.",
        ),
        Column::text("TokenRequests", "For whom the driver gets tokens of pods."),
        boolean(
            "RequiresRepublish",
            "Whether mounts are asked for again and again.",
        ),
        Column::text("Modes", "The lives that volumes of the driver may have."),
        Column::AGE,
    ];
    const NAME_RULE: NameRule = name;

    fn row(&self, now: i64) -> Vec<Value> {
        let spec = &self.spec;
        let tokens = spec.token_requests.as_ref().map(|requests| {
            let audiences: Vec<_> = requests.iter().map(|r| r.audience.as_str()).collect();
            audiences.join(",")
        });
        let modes = spec.volume_lifecycle_modes.as_deref().unwrap_or_default();
        vec![
            json!(print::name(&self.metadata)),
            json!(spec.attach_required.unwrap_or(true)),
            json!(spec.pod_info_on_mount.unwrap_or_default()),
            json!(spec.storage_capacity.unwrap_or_default()),
            json!(tokens.as_deref().unwrap_or("<unset>")),
            json!(spec.requires_republish.unwrap_or_default()),
            json!(print::or_none(Some(&modes.join(",")))),
            json!(age::of(&self.metadata, now)),
        ]
    }

    fn set_defaults(&mut self) {
        let spec = &mut self.spec;
        spec.attach_required.get_or_insert(true);
        spec.pod_info_on_mount.get_or_insert(false);
        spec.storage_capacity.get_or_insert(false);
        spec.requires_republish.get_or_insert(false);
        spec.se_linux_mount.get_or_insert(false);
        spec.fs_group_policy
            .get_or_insert_with(|| "ReadWriteOnceWithFSType".to_owned());
        let modes = spec.volume_lifecycle_modes.get_or_insert_default();
        if modes.is_empty() {
            modes.push("Persistent".to_owned());
        }
    }

    fn prepare_update(&mut self, old: &Self) {
        let changed = self.spec != old.spec;
        carry_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn validate(&self, old: Option<&Self>) -> Vec<FieldError> {
        let path = Path::new("spec");
        let spec = &self.spec;
        let mut errors = Vec::new();
        for (index, mode) in spec.volume_lifecycle_modes.iter().flatten().enumerate() {
            let path = path.child("volumeLifecycleModes").index(index);
            errors.extend(one_of(&path, Some(mode), MODES));
        }
        errors.extend(one_of(
            &path.child("fsGroupPolicy"),
            spec.fs_group_policy.as_deref(),
            GROUP_POLICIES,
        ));
        errors.extend(tokens(&path.child("tokenRequests"), self));
        if let Some(seconds) = spec.node_allocatable_update_period_seconds
            && seconds < SHORTEST_PERIOD
        {
            errors.push(path.child("nodeAllocatableUpdatePeriodSeconds").invalid(
                seconds,
                format!("must be greater than or equal to {SHORTEST_PERIOD} seconds"),
            ));
        }
        if let Some(old) = old {
            errors.extend(immutable(
                &path.child("attachRequired"),
                &spec.attach_required,
                &old.spec.attach_required,
            ));
            errors.extend(immutable(
                &path.child("volumeLifecycleModes"),
                &spec.volume_lifecycle_modes,
                &old.spec.volume_lifecycle_modes,
            ));
        }
        errors
    }
}

fn tokens(path: &Path, driver: &CSIDriver) -> Vec<FieldError> {
    let (mut errors, mut seen) = (Vec::new(), Vec::new());
    for (index, request) in driver.spec.token_requests.iter().flatten().enumerate() {
        let path = path.index(index);
        if seen.contains(&&request.audience) {
            let path = path.child("audience");
            errors.push(path.duplicate(request.audience.as_str()));
        }
        seen.push(&request.audience);
        let at = path.child("expirationSeconds");
        match request.expiration_seconds {
            Some(seconds) if seconds < SHORTEST_TOKEN => {
                errors.push(at.invalid(seconds, "may not specify a duration less than 10 minutes"))
            }
            Some(seconds) if seconds > LONGEST_TOKEN => errors.push(at.invalid(
                seconds,
                "may not specify a duration larger than 2^32 seconds",
            )),
            _ => {}
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn driver(value: Value) -> CSIDriver {
        let mut driver: CSIDriver = serde_json::from_value(value).unwrap();
        driver.set_defaults();
        driver
    }

    #[test]
    fn a_driver_that_says_nothing_is_an_ordinary_one() {
        let spec = serde_json::to_value(driver(json!({})).spec).unwrap();
        assert_eq!(
            spec,
            json!({
                "attachRequired": true, "podInfoOnMount": false, "storageCapacity": false,
                "requiresRepublish": false, "seLinuxMount": false, "fsGroupPolicy": "ReadWriteOnceWithFSType",
                "volumeLifecycleModes": ["Persistent"],
            })
        );
        assert_eq!(driver(json!({})).row(0)[4], "<unset>");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let odd = driver(json!({"spec": {
            "volumeLifecycleModes": ["Sometimes"], "fsGroupPolicy": "Any",
            "tokenRequests": [{"audience": "a", "expirationSeconds": 5}, {"audience": "a"}],
        }}));
        let texts = |errors: Vec<FieldError>| -> Vec<String> {
            errors.iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            texts(Strategy::validate(&odd, None)),
            [
                "spec.volumeLifecycleModes[0]: Unsupported value: \"Sometimes\": supported values: \"Ephemeral\", \"Persistent\"",
                "spec.fsGroupPolicy: Unsupported value: \"Any\": supported values: \"File\", \"None\", \"ReadWriteOnceWithFSType\"",
                "spec.tokenRequests[0].expirationSeconds: Invalid value: 5: may not specify a duration less than 10 minutes",
                "spec.tokenRequests[1].audience: Duplicate value: \"a\"",
            ]
        );
        let new = driver(json!({"spec": {"attachRequired": false}}));
        assert_eq!(
            texts(Strategy::validate(&new, Some(&driver(json!({}))))),
            ["spec.attachRequired: Invalid value: false: field is immutable"]
        );
    }
}
