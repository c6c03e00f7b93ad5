//! StatefulSet.

use k8s_openapi::api::{
    apps::v1::{
        RollingUpdateStatefulSetStrategy, StatefulSet, StatefulSetSpec, StatefulSetStatus,
        StatefulSetUpdateStrategy,
    },
    core::v1::{PodTemplateSpec, Volume},
};
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, Subresource, age,
    kind::carry_generation,
    pod, print,
    validate::{self, NameRule, Path, int_or_percent, is_zero, labels, names, none_negative},
};

const ROLLING: &str = "RollingUpdate";
const ON_DELETE: &str = "OnDelete";
const ORDERED: &str = "OrderedReady";
const PARALLEL: &str = "Parallel";
const RETAIN: &str = "Retain";
const RETENTIONS: &[&str] = &["Delete", RETAIN];

impl Strategy for StatefulSet {
    const SINGULAR: &'static str = "statefulset";
    const SHORT_NAMES: &'static [&'static str] = &["sts"];
    const CATEGORIES: &'static [&'static str] = &["all"];
    const SUBRESOURCES: &'static [Subresource] = &[Subresource::Status, Subresource::Scale];
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::text("Ready", "Pods that are ready, of those wanted."),
        Column::AGE,
        Column::CONTAINERS,
        Column::IMAGES,
    ];
    // Pods are named after it.
    const NAME_RULE: NameRule = names::dns1123_label;

    fn row(&self, now: i64) -> Vec<Value> {
        let spec = self.spec.clone().unwrap_or_default();
        let pods = print::template(Some(&spec.template));
        let status = self.status.as_ref();
        let ready = status.and_then(|status| status.ready_replicas);
        vec![
            json!(print::name(&self.metadata)),
            json!(format!(
                "{}/{}",
                ready.unwrap_or_default(),
                spec.replicas.unwrap_or_default()
            )),
            json!(age::of(&self.metadata, now)),
            json!(pods.0),
            json!(pods.1),
        ]
    }

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        spec.replicas.get_or_insert(1);
        spec.revision_history_limit.get_or_insert(10);
        let text = |field: &mut Option<String>, default: &str| {
            if field.as_deref().unwrap_or_default().is_empty() {
                *field = Some(default.to_owned());
            }
        };
        text(&mut spec.pod_management_policy, ORDERED);
        let strategy = spec.update_strategy.get_or_insert_default();
        if strategy.type_.as_deref().unwrap_or_default().is_empty() {
            strategy.type_ = Some(ROLLING.to_owned());
            strategy.rolling_update.get_or_insert_default();
        }
        if strategy.type_.as_deref() == Some(ROLLING)
            && let Some(rolling) = &mut strategy.rolling_update
        {
            rolling.partition.get_or_insert(0);
        }
        let retention = spec
            .persistent_volume_claim_retention_policy
            .get_or_insert_default();
        text(&mut retention.when_deleted, RETAIN);
        text(&mut retention.when_scaled, RETAIN);
        pod::defaults::template(spec.template.spec.get_or_insert_default());
        for claim in spec.volume_claim_templates.iter_mut().flatten() {
            let wanted = claim.spec.get_or_insert_default();
            text(&mut wanted.volume_mode, "Filesystem");
            text(&mut claim.status.get_or_insert_default().phase, "Pending");
        }
    }

    fn prepare_create(&mut self) {
        self.metadata.generation = Some(1);
        self.status = Some(StatefulSetStatus::default());
    }

    fn prepare_update(&mut self, old: &Self) {
        self.status = old.status.clone();
        let changed = self.spec != old.spec;
        carry_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn prepare_status(&mut self, old: &Self) {
        self.spec = old.spec.clone();
        self.metadata.generation = old.metadata.generation;
    }

    fn validate(&self, old: Option<&Self>) -> Vec<FieldError> {
        let path = Path::new("spec");
        let spec = self.spec.clone().unwrap_or_default();
        let mut errors = spec_errors(&path, &spec);
        if let Some(old) = old.and_then(|old| old.spec.as_ref())
            && fixed(&spec) != fixed(old)
        {
            errors.push(path.forbidden("updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"));
        }
        let before = old.and_then(|old| old.status.as_ref());
        if let Some(status) = &self.status {
            errors.extend(status_errors(&Path::new("status"), status, before));
        }
        errors
    }
}

/// What stays as it was at creation.
fn fixed(spec: &StatefulSetSpec) -> StatefulSetSpec {
    StatefulSetSpec {
        replicas: None,
        ordinals: None,
        template: PodTemplateSpec::default(),
        update_strategy: None,
        revision_history_limit: None,
        persistent_volume_claim_retention_policy: None,
        min_ready_seconds: None,
        ..spec.clone()
    }
}

fn spec_errors(path: &Path, spec: &StatefulSetSpec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let management = path.child("podManagementPolicy");
    match spec.pod_management_policy.as_deref().unwrap_or_default() {
        "" => errors.push(management.required("")),
        ORDERED | PARALLEL => {}
        other => {
            errors.push(management.invalid(other, format!("must be '{ORDERED}' or '{PARALLEL}'")))
        }
    }
    let strategy = spec.update_strategy.clone().unwrap_or_default();
    errors.extend(update_strategy(&path.child("updateStrategy"), &strategy));
    if let Some(policy) = &spec.persistent_volume_claim_retention_policy {
        let path = path.child("persistentVolumeClaimRetentionPolicy");
        for (field, chosen) in [
            ("whenDeleted", &policy.when_deleted),
            ("whenScaled", &policy.when_scaled),
        ] {
            let chosen = chosen.as_deref().unwrap_or_default();
            if !RETENTIONS.contains(&chosen) {
                errors.push(path.child(field).unsupported(chosen, RETENTIONS));
            }
        }
    }
    let start = spec.ordinals.as_ref().and_then(|ordinals| ordinals.start);
    errors.extend(none_negative(
        path,
        &[
            ("replicas", spec.replicas.unwrap_or_default()),
            (
                "minReadySeconds",
                spec.min_ready_seconds.unwrap_or_default(),
            ),
            (
                "revisionHistoryLimit",
                spec.revision_history_limit.unwrap_or_default(),
            ),
            ("ordinals.start", start.unwrap_or_default()),
        ],
    ));
    if let Some(service) = spec.service_name.as_deref().filter(|name| !name.is_empty()) {
        errors.extend(
            path.child("serviceName")
                .invalid_all(service, names::dns1123_label(service, false)),
        );
    }
    let template = with_claims(spec);
    let labels = template.metadata.as_ref().and_then(|it| it.labels.as_ref());
    errors.extend(labels::workload_selector(path, &spec.selector, labels));
    errors.extend(pod::validate::endless_template(
        &path.child("template"),
        &template,
        "StatefulSet",
    ));
    let claims = spec.volume_claim_templates.as_deref().unwrap_or_default();
    let path = path.child("volumeClaimTemplates");
    for (index, claim) in claims.iter().enumerate() {
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        let path = path.index(index).child("metadata").child("name");
        match name {
            "" => errors.push(path.required("")),
            name => errors.extend(path.invalid_all(name, names::dns1123_label(name, false))),
        }
    }
    errors
}

/// The template as its pods will be: each claim is a volume, before one of the template's own of that name.
fn with_claims(spec: &StatefulSetSpec) -> PodTemplateSpec {
    let mut template = spec.template.clone();
    let claims = spec.volume_claim_templates.iter().flatten();
    let names: Vec<_> = claims
        .filter_map(|claim| claim.metadata.name.clone())
        .collect();
    if !names.is_empty() {
        let volumes = template
            .spec
            .get_or_insert_default()
            .volumes
            .get_or_insert_default();
        volumes.retain(|volume| !names.contains(&volume.name));
        volumes.extend(names.into_iter().map(|name| Volume {
            name,
            empty_dir: Some(Default::default()),
            ..Volume::default()
        }));
    }
    template
}

fn update_strategy(path: &Path, strategy: &StatefulSetUpdateStrategy) -> Vec<FieldError> {
    let rolling_path = path.child("rollingUpdate");
    match (
        strategy.type_.as_deref().unwrap_or_default(),
        &strategy.rolling_update,
    ) {
        ("", _) => vec![path.required("")],
        (ON_DELETE | ROLLING, None) => Vec::new(),
        (ON_DELETE, Some(rolling)) => vec![rolling_path.invalid(
            serde_json::to_value(rolling).unwrap_or_default(),
            format!("only allowed for updateStrategy '{ROLLING}'"),
        )],
        (ROLLING, Some(rolling)) => rolling_update(&rolling_path, rolling),
        _ => vec![path.invalid(
            serde_json::to_value(strategy).unwrap_or_default(),
            format!("must be '{ROLLING}' or '{ON_DELETE}'"),
        )],
    }
}

fn rolling_update(path: &Path, rolling: &RollingUpdateStatefulSetStrategy) -> Vec<FieldError> {
    let mut errors = none_negative(
        path,
        &[("partition", rolling.partition.unwrap_or_default())],
    );
    if let Some(amount) = &rolling.max_unavailable {
        let path = path.child("maxUnavailable");
        errors.extend(int_or_percent(&path, amount, Some(100)));
        if is_zero(amount) {
            let value = serde_json::to_value(amount).unwrap_or_default();
            errors.push(path.invalid(value, "cannot be 0"));
        }
    }
    errors
}

fn status_errors(
    path: &Path,
    status: &StatefulSetStatus,
    old: Option<&StatefulSetStatus>,
) -> Vec<FieldError> {
    let ready = status.ready_replicas.unwrap_or_default();
    let parts = [
        ("readyReplicas", ready),
        (
            "currentReplicas",
            status.current_replicas.unwrap_or_default(),
        ),
        (
            "updatedReplicas",
            status.updated_replicas.unwrap_or_default(),
        ),
        (
            "availableReplicas",
            status.available_replicas.unwrap_or_default(),
        ),
    ];
    let mut errors = none_negative(path, &[("replicas", status.replicas)]);
    errors.extend(none_negative(path, &parts));
    errors.extend(none_negative(
        path,
        &[(
            "observedGeneration",
            status.observed_generation.unwrap_or_default(),
        )],
    ));
    for (field, count) in parts {
        if count > status.replicas {
            errors.push(
                path.child(field)
                    .invalid(count, "cannot be greater than status.replicas"),
            );
        }
    }
    if parts[3].1 > ready {
        errors.push(
            path.child("availableReplicas")
                .invalid(parts[3].1, "cannot be greater than status.readyReplicas"),
        );
    }
    errors.extend(validate::collisions(
        path,
        status.collision_count,
        old.and_then(|old| old.collision_count),
    ));
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(change: impl FnOnce(&mut Value)) -> StatefulSet {
        let mut value = json!({
            "metadata": { "name": "db" },
            "spec": {
                "serviceName": "db",
                "selector": { "matchLabels": { "app": "db" } },
                "template": {
                    "metadata": { "labels": { "app": "db" } },
                    "spec": { "containers": [{
                        "name": "db", "image": "db:1", "volumeMounts": [{ "name": "data", "mountPath": "/data" }],
                    }] },
                },
                "volumeClaimTemplates": [{
                    "metadata": { "name": "data" },
                    "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } },
                }],
            },
        });
        change(&mut value);
        let mut set: StatefulSet = serde_json::from_value(value).unwrap();
        set.set_defaults();
        set
    }

    fn errors(new: &StatefulSet, old: Option<&StatefulSet>) -> Vec<String> {
        let errors = Strategy::validate(new, old);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_plain_set_gets_what_upstream_gives_it() {
        let set = set(|_| {});
        assert_eq!(errors(&set, None), Vec::<String>::new());
        let spec = serde_json::to_value(set.spec).unwrap();
        assert_eq!(spec["podManagementPolicy"], "OrderedReady");
        assert_eq!(
            spec["updateStrategy"],
            json!({ "type": "RollingUpdate", "rollingUpdate": { "partition": 0 } })
        );
        assert_eq!(
            spec["persistentVolumeClaimRetentionPolicy"],
            json!({ "whenDeleted": "Retain", "whenScaled": "Retain" })
        );
        assert_eq!(
            (&spec["replicas"], &spec["revisionHistoryLimit"]),
            (&json!(1), &json!(10))
        );
        let claim = &spec["volumeClaimTemplates"][0];
        assert_eq!(
            (&claim["spec"]["volumeMode"], &claim["status"]["phase"]),
            (&json!("Filesystem"), &json!("Pending"))
        );
        assert_eq!(
            spec["template"]["spec"].get("volumes"),
            None,
            "claims become volumes of pods, not of the template"
        );
    }

    #[test]
    fn only_some_fields_change_later() {
        let old = set(|_| {});
        let scaled = set(|set| {
            set["spec"]["replicas"] = json!(3);
            set["spec"]["ordinals"] = json!({ "start": 1 });
            set["spec"]["revisionHistoryLimit"] = json!(2);
        });
        assert_eq!(errors(&scaled, Some(&old)), Vec::<String>::new());
        let renamed = set(|set| set["spec"]["serviceName"] = json!("other"));
        assert_eq!(
            errors(&renamed, Some(&old)),
            [
                "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"
            ]
        );
    }

    #[test]
    fn policies_are_among_those_there_are() {
        let odd = set(|set| {
            set["spec"]["podManagementPolicy"] = json!("Random");
            set["spec"]["updateStrategy"] =
                json!({ "type": "OnDelete", "rollingUpdate": { "partition": 1 } });
            set["spec"]["persistentVolumeClaimRetentionPolicy"] = json!({ "whenScaled": "Keep" });
            set["spec"]["ordinals"] = json!({ "start": -1 });
        });
        assert_eq!(
            errors(&odd, None),
            [
                "spec.podManagementPolicy: Invalid value: \"Random\": must be 'OrderedReady' or 'Parallel'",
                "spec.updateStrategy.rollingUpdate: Invalid value: {\"partition\":1}: only allowed for updateStrategy 'RollingUpdate'",
                "spec.persistentVolumeClaimRetentionPolicy.whenScaled: Unsupported value: \"Keep\": supported values: \"Delete\", \"Retain\"",
                "spec.ordinals.start: Invalid value: -1: must be greater than or equal to 0",
            ]
        );
    }

    #[test]
    fn a_status_adds_up() {
        let odd = set(
            |set| set["status"] = json!({ "replicas": 1, "readyReplicas": 2, "availableReplicas": 1, "collisionCount": 1 }),
        );
        assert_eq!(
            errors(&odd, None),
            ["status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas"]
        );
        let later = set(|set| set["status"] = json!({ "replicas": 1 }));
        assert_eq!(
            errors(&later, Some(&odd)),
            ["status.collisionCount: Invalid value: 0: cannot be decremented"]
        );
    }
}
