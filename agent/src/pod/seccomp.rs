//! Which filter of system calls a container gets.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::Container;

use super::paths::Paths;
use super::spec::PodView;
use crate::runtime::Seccomp;

/// A profile of the node that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum SeccompError {
    #[error("cannot load seccomp profile {path:?}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("must set localhostProfile to a path below the node's directory of seccomp profiles")]
    Outside,
}

/// The container's own word goes before its pod's. Without one it is the runtime's default, as with a kubelet's
/// `seccompDefault`.
pub(super) fn of(
    pod: &PodView,
    container: &Container,
    paths: &Paths,
) -> Result<Seccomp, SeccompError> {
    let own = container.security_context.as_ref();
    let own = own.and_then(|context| context.seccomp_profile.as_ref());
    let of_pod = pod.spec().security_context.as_ref();
    let of_pod = of_pod.and_then(|context| context.seccomp_profile.as_ref());
    let Some(profile) = own.or(of_pod) else {
        return Ok(Seccomp::RuntimeDefault);
    };
    match (profile.type_.as_str(), &profile.localhost_profile) {
        ("Localhost", Some(name)) if is_below(name) => {
            let path = paths.seccomp_profile(name);
            let text = fs::read_to_string(&path);
            text.map(Seccomp::Profile)
                .map_err(|source| SeccompError::File { path, source })
        }
        ("Localhost", _) => Err(SeccompError::Outside),
        ("Unconfined", _) => Ok(Seccomp::Unconfined),
        _ => Ok(Seccomp::RuntimeDefault),
    }
}

fn is_below(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    !name.is_empty() && parts.all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn chosen(of_pod: Value, own: Value, paths: &Paths) -> Result<Seccomp, String> {
        let context = |profile: Value| match profile {
            Value::Null => json!({}),
            profile => json!({ "seccompProfile": profile }),
        };
        let object = json!({
            "metadata": {"name": "p", "namespace": "d", "uid": "u"},
            "spec": {
                "securityContext": context(of_pod),
                "containers": [{"name": "c", "securityContext": context(own)}],
            },
        });
        let pod = PodView::new(serde_json::from_value(object).unwrap()).unwrap();
        of(&pod, &pod.containers()[0], paths).map_err(|error| error.to_string())
    }

    #[test]
    fn the_containers_own_word_counts_and_silence_means_the_default() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::new(root.path().to_owned(), "/run/x".into(), "/".into());
        let (unconfined, default) = (
            json!({"type": "Unconfined"}),
            json!({"type": "RuntimeDefault"}),
        );
        for (of_pod, own, expected) in [
            (Value::Null, Value::Null, Seccomp::RuntimeDefault),
            (unconfined.clone(), Value::Null, Seccomp::Unconfined),
            (unconfined.clone(), default.clone(), Seccomp::RuntimeDefault),
            (default, unconfined, Seccomp::Unconfined),
        ] {
            assert_eq!(chosen(of_pod, own, &paths), Ok(expected));
        }
    }

    #[test]
    fn a_profile_of_the_node_is_read_from_its_directory_only() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::new(root.path().to_owned(), "/run/x".into(), "/".into());
        fs::create_dir_all(root.path().join("seccomp/a")).unwrap();
        fs::write(root.path().join("seccomp/a/b.json"), "{}").unwrap();
        fs::write(root.path().join("c.json"), "{}").unwrap();
        let local = |name: &str| {
            let profile = json!({"type": "Localhost", "localhostProfile": name});
            chosen(Value::Null, profile, &paths)
        };
        assert_eq!(local("a/b.json"), Ok(Seccomp::Profile("{}".to_owned())));
        let missing = local("gone.json").unwrap_err();
        assert!(
            missing.contains("seccomp/gone.json\": No such file"),
            "{missing}"
        );
        for outside in ["../c.json", "/c.json", "a/../../c.json", ""] {
            assert!(local(outside).is_err(), "{outside}");
        }
    }
}
