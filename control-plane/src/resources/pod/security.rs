//! What a pod and its containers may say of users, groups and confinement.

use k8s_openapi::api::core::v1::{AppArmorProfile, PodSpec, SeccompProfile};

use crate::resources::validate::{FieldError, Path};

const POLICIES: &[&str] = &["Merge", "Strict"];
const PROFILES: &[&str] = &["Localhost", "RuntimeDefault", "Unconfined"];
/// Bytes of the longest path that Linux takes, but one.
const LONGEST_PROFILE: usize = 4095;

pub(super) fn errors(path: &Path, spec: &PodSpec) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let at = path.child("securityContext");
    if let Some(security) = &spec.security_context {
        let ids = [
            ("runAsUser", security.run_as_user),
            ("runAsGroup", security.run_as_group),
            ("fsGroup", security.fs_group),
        ];
        errors.extend(
            ids.into_iter()
                .filter_map(|(field, id)| of_id(&at.child(field), id?)),
        );
        for (index, group) in security.supplemental_groups.iter().flatten().enumerate() {
            errors.extend(of_id(&at.child("supplementalGroups").index(index), *group));
        }
        let policy = security.supplemental_groups_policy.as_deref();
        let wrong = policy.filter(|policy| !POLICIES.contains(policy));
        let field = at.child("supplementalGroupsPolicy");
        errors.extend(wrong.map(|policy| field.unsupported(policy, POLICIES)));
        errors.extend(app_armor(&at, security.app_armor_profile.as_ref()));
        errors.extend(seccomp(&at, security.seccomp_profile.as_ref()));
    }
    let containers = spec
        .containers
        .iter()
        .map(|it| it.security_context.as_ref());
    let init = spec.init_containers.iter().flatten();
    let init = init.map(|it| it.security_context.as_ref());
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    let ephemeral = ephemeral.map(|it| it.security_context.as_ref());
    let all = containers.enumerate().map(|it| ("containers", it));
    let all = all.chain(init.enumerate().map(|it| ("initContainers", it)));
    let all = all.chain(ephemeral.enumerate().map(|it| ("ephemeralContainers", it)));
    for (list, (index, security)) in all {
        let Some(security) = security else { continue };
        let at = path.child(list).index(index).child("securityContext");
        let ids = [
            ("runAsUser", security.run_as_user),
            ("runAsGroup", security.run_as_group),
        ];
        errors.extend(
            ids.into_iter()
                .filter_map(|(field, id)| of_id(&at.child(field), id?)),
        );
        errors.extend(app_armor(&at, security.app_armor_profile.as_ref()));
        errors.extend(seccomp(&at, security.seccomp_profile.as_ref()));
    }
    errors.extend(of_users(path, spec));
    errors
}

fn of_id(path: &Path, id: i64) -> Option<FieldError> {
    let fits = (0..=i64::from(i32::MAX)).contains(&id);
    let detail = format!("must be between 0 and {}, inclusive", i32::MAX);
    (!fits).then(|| path.invalid(id, detail))
}

fn app_armor(path: &Path, profile: Option<&AppArmorProfile>) -> Vec<FieldError> {
    let path = path.child("appArmorProfile");
    let Some(profile) = profile else {
        return Vec::new();
    };
    let mut errors = of_profile(
        &path,
        ("AppArmor", "appArmorProfile"),
        &profile.type_,
        profile.localhost_profile.as_deref(),
    );
    if let Some(name) = profile.localhost_profile.as_deref() {
        let own = path.child("localhostProfile");
        if name.trim() != name {
            errors.push(own.invalid(name, "must not be padded with whitespace"));
        }
        if name.len() > LONGEST_PROFILE {
            let detail = format!("may not be more than {LONGEST_PROFILE} bytes");
            errors.push(own.invalid(name, detail));
        }
    }
    errors
}

fn seccomp(path: &Path, profile: Option<&SeccompProfile>) -> Vec<FieldError> {
    let names = ("seccomp", "seccompProfile");
    profile.map_or_else(Vec::new, |profile| {
        let file = profile.localhost_profile.as_deref();
        of_profile(&path.child(names.1), names, &profile.type_, file)
    })
}

/// A profile is one of the node's, by its name, or it has no name. `what` says of which kind, and in which field.
fn of_profile(
    path: &Path,
    (what, field): (&str, &str),
    kind: &str,
    name: Option<&str>,
) -> Vec<FieldError> {
    let own = path.child("localhostProfile");
    let error = match (kind, name) {
        ("", _) => path
            .child("type")
            .required(&format!("type is required when {field} is set")),
        ("Localhost", None | Some("")) => {
            own.required(&format!("must be set when {what} type is Localhost"))
        }
        ("Localhost", Some(_)) => return Vec::new(),
        (kind, _) if !PROFILES.contains(&kind) => path.child("type").unsupported(kind, PROFILES),
        (_, Some(name)) => own.invalid(
            name,
            format!("can only be set when {what} type is Localhost"),
        ),
        (_, None) => return Vec::new(),
    };
    vec![error]
}

/// Who has users of its own has namespaces of its own (KEP-127).
fn of_users(path: &Path, spec: &PodSpec) -> Vec<FieldError> {
    if spec.host_users != Some(false) {
        return Vec::new();
    }
    let shared = [
        ("hostNetwork", spec.host_network),
        ("hostPID", spec.host_pid),
        ("hostIPC", spec.host_ipc),
    ];
    let shared = shared.into_iter().filter(|(_, set)| *set == Some(true));
    shared
        .map(|(field, _)| path.child(field).forbidden("when `hostUsers` is false"))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn texts(spec: Value) -> Vec<String> {
        let spec = serde_json::from_value(spec).unwrap();
        let errors = errors(&Path::new("spec"), &spec);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ids_and_policies_are_among_those_there_are() {
        let fine = json!({"securityContext": {"runAsUser": 0, "supplementalGroups": [1],
            "supplementalGroupsPolicy": "Strict"}, "containers": [{"name": "a"}]});
        assert!(texts(fine).is_empty());
        let found = texts(json!({
            "securityContext": {"supplementalGroups": [1, -1], "supplementalGroupsPolicy": "Maybe"},
            "containers": [{"name": "a", "securityContext": {"runAsUser": 4_294_967_296_i64}}],
        }));
        assert_eq!(
            found,
            [
                "spec.securityContext.supplementalGroups[1]: Invalid value: -1: must be between 0 and 2147483647, inclusive",
                "spec.securityContext.supplementalGroupsPolicy: Unsupported value: \"Maybe\": supported values: \"Merge\", \"Strict\"",
                "spec.containers[0].securityContext.runAsUser: Invalid value: 4294967296: must be between 0 and 2147483647, inclusive",
            ]
        );
    }

    #[test]
    fn a_profile_of_the_node_has_a_name_and_no_other_has() {
        let of = |profile: Value| {
            texts(
                json!({"containers": [{"name": "a", "securityContext": {"appArmorProfile": profile}}]}),
            )
        };
        let at = "spec.containers[0].securityContext.appArmorProfile";
        assert!(of(json!({"type": "Localhost", "localhostProfile": "p"})).is_empty());
        assert!(of(json!({"type": "RuntimeDefault"})).is_empty());
        for (profile, text) in [
            (
                json!({"type": "Localhost"}),
                "localhostProfile: Required value: must be set when AppArmor type is Localhost",
            ),
            (
                json!({"type": "Localhost", "localhostProfile": " p"}),
                "localhostProfile: Invalid value: \" p\": must not be padded with whitespace",
            ),
            (
                json!({"type": "Unconfined", "localhostProfile": "p"}),
                "localhostProfile: Invalid value: \"p\": can only be set when AppArmor type is Localhost",
            ),
            (
                json!({"type": ""}),
                "type: Required value: type is required when appArmorProfile is set",
            ),
            (
                json!({"type": "Own"}),
                "type: Unsupported value: \"Own\": supported values: \"Localhost\", \"RuntimeDefault\", \"Unconfined\"",
            ),
        ] {
            assert_eq!(of(profile), [format!("{at}.{text}")]);
        }
        let seccomp = texts(
            json!({"securityContext": {"seccompProfile": {"type": "Localhost"}}, "containers": []}),
        );
        assert_eq!(
            seccomp,
            [
                "spec.securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost"
            ]
        );
    }

    #[test]
    fn users_of_its_own_need_namespaces_of_its_own() {
        let spec =
            json!({"hostUsers": false, "hostNetwork": true, "hostPID": false, "containers": []});
        assert_eq!(
            texts(spec),
            ["spec.hostNetwork: Forbidden: when `hostUsers` is false"]
        );
    }
}
