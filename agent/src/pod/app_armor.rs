//! Which AppArmor profile confines a container, and what a node without AppArmor says of a pod that asks for one. Pure.
//!
//! <https://kubernetes.io/docs/tutorials/security/apparmor/>

use k8s_openapi::api::core::v1::{AppArmorProfile, Container};

use super::spec::PodView;

/// The reason of a pod that the node cannot confine, and upstream's words.
pub(super) const REASON: &str = "AppArmor";
pub(super) const WORDS: &str = "Cannot enforce AppArmor: AppArmor is not enabled on the host";

/// By which profiles were named before there was a field; the container's name follows.
const ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

/// A profile that a container asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Profile {
    Unconfined,
    /// That of the node's runtime.
    RuntimeDefault,
    /// One that somebody loaded on the node, by its name.
    Localhost(String),
}

/// The container's own word goes before its pod's, and a field before an annotation.
pub(super) fn of(pod: &PodView, container: &Container) -> Option<Profile> {
    let own = container.security_context.as_ref();
    let own = own.and_then(|context| context.app_armor_profile.as_ref());
    let of_pod = pod.spec().security_context.as_ref();
    let of_pod = of_pod.and_then(|context| context.app_armor_profile.as_ref());
    let noted = || {
        let annotations = pod.object.metadata.annotations.as_ref()?;
        from_annotation(annotations.get(&format!("{ANNOTATION}{}", container.name))?)
    };
    own.map(from_field)
        .or_else(noted)
        .or_else(|| of_pod.map(from_field))
}

fn from_field(profile: &AppArmorProfile) -> Profile {
    match (profile.type_.as_str(), &profile.localhost_profile) {
        ("Unconfined", _) => Profile::Unconfined,
        ("Localhost", Some(name)) => Profile::Localhost(name.clone()),
        _ => Profile::RuntimeDefault,
    }
}

fn from_annotation(text: &str) -> Option<Profile> {
    match (text, text.strip_prefix("localhost/")) {
        ("unconfined", _) => Some(Profile::Unconfined),
        ("runtime/default", _) => Some(Profile::RuntimeDefault),
        (_, Some(name)) => Some(Profile::Localhost(name.to_owned())),
        _ => None,
    }
}

/// Whether a container of the pod is to be confined.
pub(super) fn is_required(pod: &PodView) -> bool {
    let confines = |container| of(pod, container).is_some_and(|it| it != Profile::Unconfined);
    pod.every_container().any(confines)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(own: Value, of_pod: Value, annotation: Value) -> PodView {
        let context = |profile: Value| json!({"appArmorProfile": profile});
        let key = format!("{ANNOTATION}c");
        let object = json!({
            "metadata": {"name": "p", "namespace": "d", "uid": "u", "annotations": {key: annotation}},
            "spec": {
                "securityContext": context(of_pod),
                "containers": [{"name": "c", "securityContext": context(own)}],
            },
        });
        PodView::new(serde_json::from_value(object).unwrap()).unwrap()
    }

    #[test]
    fn who_is_nearer_the_container_is_heard() {
        let (default, free) = (
            json!({"type": "RuntimeDefault"}),
            json!({"type": "Unconfined"}),
        );
        let local = json!({"type": "Localhost", "localhostProfile": "own"});
        let named = Some(Profile::Localhost("own".into()));
        for (own, of_pod, noted, profile, required) in [
            (json!(null), json!(null), "", None, false),
            (
                json!(null),
                default.clone(),
                "",
                Some(Profile::RuntimeDefault),
                true,
            ),
            (
                free.clone(),
                default.clone(),
                "",
                Some(Profile::Unconfined),
                false,
            ),
            (
                local.clone(),
                free.clone(),
                "unconfined",
                named.clone(),
                true,
            ),
            (json!(null), json!(null), "localhost/own", named, true),
            (
                json!(null),
                default,
                "unconfined",
                Some(Profile::Unconfined),
                false,
            ),
            (
                json!(null),
                json!(null),
                "runtime/default",
                Some(Profile::RuntimeDefault),
                true,
            ),
        ] {
            let pod = pod(own, of_pod, json!(noted));
            assert_eq!(of(&pod, &pod.containers()[0]), profile);
            assert_eq!(is_required(&pod), required, "{profile:?}");
        }
    }
}
