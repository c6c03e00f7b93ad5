//! Pods from files of the node: read from time to time, and given an identity of their own.
//!
//! As upstream, such a pod is called after its node, and its uid follows from its file's content, so that another content is
//! another pod. It may not refer to objects of the API.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, Toleration, Volume};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::spec::{CONFIG_HASH, CONFIG_MIRROR, CONFIG_SOURCE, PodView, hex};

/// Why a file is no pod of the node.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum StaticError {
    #[error("it is no manifest of a Pod: {0}")]
    Unreadable(String),
    #[error("static pods may not reference {0}")]
    References(&'static str),
    #[error("a static pod may not have {0}")]
    Forbidden(&'static str),
    #[error("it has no metadata.name")]
    Nameless,
}

/// The pods of the files of a directory, in the order of the files' names.
pub(super) type Found = BTreeMap<PathBuf, PodView>;

/// Reads all files of a directory. Files that are no pods are told in the log and left out; one that was a pod when they were
/// read `before` stays that pod, as it may be in the middle of being written. A directory that cannot be read is `None`: it
/// says nothing of its pods.
pub(super) fn read(directory: &Path, node: &str, before: &Found) -> Option<Found> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => {
            tracing::warn!(%error, directory = %directory.display(), "cannot read the static pods");
            return None;
        }
    };
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| is_manifest(path))
        .collect();
    files.sort();
    let mut found = Found::new();
    for file in files {
        let pod = match fs::read_to_string(&file) {
            Ok(text) => parse(&text, &file, node),
            Err(error) => Err(StaticError::Unreadable(error.to_string())),
        };
        let pod = match (pod, before.get(&file)) {
            (Ok(pod), _) => pod,
            (Err(error), Some(known)) => {
                tracing::warn!(%error, file = %file.display(), "a static pod's file is no pod now; the pod stays");
                known.clone()
            }
            (Err(error), None) => {
                tracing::warn!(%error, file = %file.display(), "a file is left out");
                continue;
            }
        };
        let name = |pod: &PodView| (pod.id.namespace.clone(), pod.id.name.clone());
        if found.values().any(|known| name(known) == name(&pod)) {
            tracing::warn!(pod = pod.id.name, file = %file.display(), "another file has a static pod of this name");
        } else {
            found.insert(file, pod);
        }
    }
    Some(found)
}

/// Reads the directory again and again, after it was read `before`.
pub(super) async fn follow(
    directory: PathBuf,
    node: String,
    period: Duration,
    mut before: Found,
    pods: mpsc::Sender<Vec<PodView>>,
) {
    loop {
        tokio::time::sleep(period).await;
        let (directory, node, known) = (directory.clone(), node.clone(), before.clone());
        let found = tokio::task::spawn_blocking(move || read(&directory, &node, &known)).await;
        let Ok(Some(found)) = found else {
            continue;
        };
        let all = found.values().cloned().collect();
        before = found;
        if pods.send(all).await.is_err() {
            return;
        }
    }
}

fn is_manifest(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Hidden files are what editors leave. All others are tried, as upstream does.
    !name.starts_with('.') && path.is_file()
}

/// The pod of a file's text. Pure.
fn parse(text: &str, file: &Path, node: &str) -> Result<PodView, StaticError> {
    let unreadable = |error: String| StaticError::Unreadable(error);
    let value: Value =
        serde_saphyr::from_str(text).map_err(|error| unreadable(error.to_string()))?;
    if value["kind"] != "Pod" || value["apiVersion"] != "v1" {
        return Err(unreadable("kind and apiVersion are not Pod and v1".into()));
    }
    let mut pod: Pod =
        serde_json::from_value(value).map_err(|error| unreadable(error.to_string()))?;
    refuse(&pod)?;
    let meta = &mut pod.metadata;
    let name = meta.name.take().filter(|name| !name.is_empty());
    let name = name.ok_or(StaticError::Nameless)?;
    let uid = meta.uid.take().filter(|uid| !uid.is_empty());
    let uid = uid.unwrap_or_else(|| {
        let source = format!("host:{node}\nfile:{}\n{text}", file.display());
        hex(&Sha256::digest(source))[..32].to_owned()
    });
    meta.name = Some(format!("{name}-{node}"));
    meta.namespace.get_or_insert_with(|| "default".to_owned());
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert(CONFIG_HASH.to_owned(), uid.clone());
    annotations.insert(CONFIG_SOURCE.to_owned(), "file".to_owned());
    annotations.remove(CONFIG_MIRROR);
    meta.uid = Some(uid);
    // What the API says of a pod is said of its mirror.
    (
        meta.resource_version,
        meta.generation,
        meta.deletion_timestamp,
    ) = (None, None, None);
    pod.status = None;
    let spec = pod.spec.get_or_insert_default();
    spec.node_name = Some(node.to_owned());
    // It stays whatever the node is tainted with.
    spec.tolerations.get_or_insert_default().push(Toleration {
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        ..Toleration::default()
    });
    PodView::new(pod).ok_or(StaticError::Nameless)
}

/// What only the API could give it.
fn refuse(pod: &Pod) -> Result<(), StaticError> {
    let spec = pod.spec.clone().unwrap_or_default();
    if spec
        .ephemeral_containers
        .is_some_and(|list| !list.is_empty())
    {
        return Err(StaticError::Forbidden("ephemeral containers"));
    }
    let named = |name: &Option<String>| name.as_ref().is_some_and(|name| !name.is_empty());
    let volume = |has: fn(&Volume) -> bool| spec.volumes.iter().flatten().any(has);
    let init = spec.init_containers.iter().flatten();
    let containers: Vec<&Container> = init.chain(&spec.containers).collect();
    let environment = |kind: fn(&k8s_openapi::api::core::v1::EnvVarSource) -> bool| {
        let mut all = containers.iter().flat_map(|it| it.env.iter().flatten());
        all.any(|env| env.value_from.as_ref().is_some_and(kind))
    };
    let whole = |kind: fn(&k8s_openapi::api::core::v1::EnvFromSource) -> bool| {
        let mut all = containers
            .iter()
            .flat_map(|it| it.env_from.iter().flatten());
        all.any(kind)
    };
    let found = [
        (
            named(&spec.service_account_name) || named(&spec.service_account),
            "serviceaccounts",
        ),
        (
            volume(|it| it.config_map.is_some())
                || environment(|it| it.config_map_key_ref.is_some())
                || whole(|it| it.config_map_ref.is_some()),
            "configmaps",
        ),
        (
            volume(|it| it.secret.is_some())
                || environment(|it| it.secret_key_ref.is_some())
                || whole(|it| it.secret_ref.is_some())
                || spec
                    .image_pull_secrets
                    .as_ref()
                    .is_some_and(|list| !list.is_empty()),
            "secrets",
        ),
        (
            volume(|it| it.persistent_volume_claim.is_some()),
            "persistentvolumeclaims",
        ),
        (volume(|it| it.projected.is_some()), "projected volumes"),
        (
            spec.resource_claims
                .as_ref()
                .is_some_and(|list| !list.is_empty()),
            "resourceclaims",
        ),
    ];
    match found.into_iter().find(|(is_there, _)| *is_there) {
        Some((_, what)) => Err(StaticError::References(what)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n  - name: c\n    image: i:1\n";

    fn web(text: &str) -> Result<PodView, StaticError> {
        parse(text, Path::new("/manifests/web.yaml"), "node-1")
    }

    #[test]
    fn a_file_is_a_pod_of_the_node_and_another_content_another_pod() {
        let pod = web(WEB).unwrap();
        assert_eq!(pod.id.name, "web-node-1");
        assert_eq!(pod.id.namespace, "default");
        assert_eq!(pod.id.uid.len(), 32);
        assert!(pod.is_static());
        let annotations = pod.object.metadata.annotations.as_ref().unwrap();
        assert_eq!(annotations[CONFIG_HASH], pod.id.uid);
        assert_eq!(annotations[CONFIG_SOURCE], "file");
        assert_eq!(pod.spec().node_name.as_deref(), Some("node-1"));
        assert_eq!(web(WEB).unwrap(), pod);
        let other = web(&WEB.replace("i:1", "i:2")).unwrap();
        assert_ne!(other.id.uid, pod.id.uid);
        let elsewhere = parse(WEB, Path::new("/manifests/web.yaml"), "node-2");
        assert_ne!(elsewhere.unwrap().id.uid, pod.id.uid);
        let named = web(&WEB.replace("name: web", "name: web\n  uid: mine\n  namespace: other"));
        let named = named.unwrap().id;
        assert_eq!(
            (named.uid.as_str(), named.namespace.as_str()),
            ("mine", "other")
        );
        let json =
            r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"j"},"spec":{"containers":[]}}"#;
        assert_eq!(web(json).unwrap().id.name, "j-node-1");
    }

    #[test]
    fn what_needs_the_api_or_is_no_pod_is_left_out_with_the_reason() {
        let with = |more: &str| web(&format!("{WEB}{more}")).unwrap_err();
        let references = |what| StaticError::References(what);
        assert_eq!(
            with("  serviceAccountName: me\n"),
            references("serviceaccounts")
        );
        assert_eq!(
            with("  volumes:\n  - name: v\n    configMap: {name: m}\n"),
            references("configmaps")
        );
        assert_eq!(
            with("    envFrom:\n    - secretRef: {name: s}\n"),
            references("secrets")
        );
        assert!(matches!(web("a: ["), Err(StaticError::Unreadable(_))));
        assert!(matches!(
            web("kind: Service\napiVersion: v1"),
            Err(StaticError::Unreadable(_))
        ));
        assert_eq!(
            web(&WEB.replace("  name: web\n", "  labels: {}\n")).unwrap_err(),
            StaticError::Nameless
        );
    }

    #[test]
    fn of_a_directory_every_file_that_can_be_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("a.yaml", WEB),
            ("b.yaml", WEB),
            (".hidden.yaml", "x"),
            ("c.json", "not a pod"),
        ] {
            fs::write(dir.path().join(file), text).unwrap();
        }
        let other = WEB.replace("name: web", "name: other");
        fs::write(dir.path().join("d.yaml"), other).unwrap();
        let found = read(dir.path(), "n", &Found::new()).unwrap();
        let names = |found: &Found| -> Vec<String> {
            let names = found.values().map(|pod| pod.id.name.clone());
            names.collect()
        };
        assert_eq!(names(&found), ["web-n", "other-n"]);
        let absent = dir.path().join("absent");
        assert_eq!(read(&absent, "n", &Found::new()), None);

        // In the middle of being written; and gone.
        fs::write(dir.path().join("a.yaml"), "apiVersion: v1\nkind: Po").unwrap();
        fs::remove_file(dir.path().join("d.yaml")).unwrap();
        fs::remove_file(dir.path().join("b.yaml")).unwrap();
        let next = read(dir.path(), "n", &found).unwrap();
        assert_eq!(names(&next), ["web-n"]);
        assert_eq!(next.values().next(), found.values().next());
        fs::remove_file(dir.path().join("a.yaml")).unwrap();
        assert_eq!(read(dir.path(), "n", &next), Some(Found::new()));
    }
}
