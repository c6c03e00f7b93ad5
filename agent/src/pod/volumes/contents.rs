//! What is in volumes that have contents: ConfigMaps, Secrets, the downward API, tokens, alone or projected into one.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, ProjectedVolumeSource, Secret,
    ServiceAccountTokenProjection, Volume, VolumeProjection,
};
use kube::{Api, Client};

use super::VolumeError;
use super::atomic::{File, Files};
use super::token::{DEFAULT_SECONDS, Tokens, Wanted};
use crate::pod::env::{Context, field};
use crate::pod::resource_field;
use crate::pod::spec::PodView;

/// File mode where neither the volume nor the item names one.
const DEFAULT_MODE: i32 = 0o644;

/// Where contents come from.
pub(in crate::pod) struct Sources<'a> {
    pub(in crate::pod) client: &'a Client,
    pub(in crate::pod) tokens: &'a Tokens,
}

/// The files of a volume, and when they have to be looked at again at the latest.
#[derive(Debug, Default)]
pub(in crate::pod) struct Contents {
    pub(super) files: Files,
    pub(super) look_again: Option<Timestamp>,
}

/// Whether the volume is of files that have a source elsewhere.
pub(in crate::pod) fn has_contents(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

/// Whether the volume holds secrets, which no disk is to have.
pub(super) fn is_secret(volume: &Volume) -> bool {
    volume.secret.is_some() || volume.projected.is_some()
}

/// Reads what the volume is to hold; `None` for a volume of another kind.
pub(super) async fn read(
    sources: &Sources<'_>,
    context: &Context<'_>,
    volume: &Volume,
) -> Result<Option<Contents>, VolumeError> {
    let name = volume.name.as_str();
    let reader = Reader {
        sources,
        context,
        volume: name,
    };
    let files = if let Some(source) = &volume.config_map {
        let items = source.items.as_deref();
        reader
            .config_map(&source.name, items, source.optional, source.default_mode)
            .await?
    } else if let Some(source) = &volume.secret {
        let (secret, items) = (source.secret_name.as_deref(), source.items.as_deref());
        reader
            .secret(
                secret.unwrap_or_default(),
                items,
                source.optional,
                source.default_mode,
            )
            .await?
    } else if let Some(source) = &volume.downward_api {
        let items = source.items.as_deref().unwrap_or_default();
        downward(name, context, items, source.default_mode)?
    } else if let Some(source) = &volume.projected {
        return reader.projected(source).await.map(Some);
    } else {
        return Ok(None);
    };
    Ok(Some(Contents {
        files,
        look_again: None,
    }))
}

struct Reader<'a> {
    sources: &'a Sources<'a>,
    context: &'a Context<'a>,
    volume: &'a str,
}

impl Reader<'_> {
    async fn config_map(
        &self,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: Option<bool>,
        mode: Option<i32>,
    ) -> Result<Files, VolumeError> {
        let api = Api::<ConfigMap>::namespaced(
            self.sources.client.clone(),
            &self.context.pod.id.namespace,
        );
        let found = given(self.volume, "configmap", name, api.get_opt(name).await)?;
        let data = found.map(|map| {
            let binary = map.binary_data.unwrap_or_default().into_iter();
            let text = map.data.unwrap_or_default().into_iter();
            text.map(|(key, value)| (key, value.into_bytes()))
                .chain(binary.map(|(key, value)| (key, value.0)))
                .collect()
        });
        let data = required(self.volume, "configmap", name, optional, data)?;
        select(self.volume, data, items, optional, mode)
    }

    async fn secret(
        &self,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: Option<bool>,
        mode: Option<i32>,
    ) -> Result<Files, VolumeError> {
        let api =
            Api::<Secret>::namespaced(self.sources.client.clone(), &self.context.pod.id.namespace);
        let found = given(self.volume, "secret", name, api.get_opt(name).await)?;
        let data = found.map(|secret| {
            let data = secret.data.unwrap_or_default().into_iter();
            data.map(|(key, value)| (key, value.0)).collect()
        });
        let data = required(self.volume, "secret", name, optional, data)?;
        select(self.volume, data, items, optional, mode)
    }

    /// Of two sources with a file of the same path the later one counts.
    async fn projected(&self, volume: &ProjectedVolumeSource) -> Result<Contents, VolumeError> {
        let mode = volume.default_mode;
        let mut all = Contents::default();
        for source in volume.sources.iter().flatten() {
            let VolumeProjection {
                cluster_trust_bundle,
                config_map,
                downward_api,
                pod_certificate,
                secret,
                service_account_token,
            } = source;
            if cluster_trust_bundle.is_some() || pod_certificate.is_some() {
                return Err(refused(
                    self.volume,
                    "only the sources configMap, secret, downwardAPI and serviceAccountToken are supported on this node",
                ));
            }
            if let Some(source) = config_map {
                let items = source.items.as_deref();
                all.files.extend(
                    self.config_map(&source.name, items, source.optional, mode)
                        .await?,
                );
            }
            if let Some(source) = secret {
                let items = source.items.as_deref();
                all.files.extend(
                    self.secret(&source.name, items, source.optional, mode)
                        .await?,
                );
            }
            if let Some(source) = downward_api {
                let items = source.items.as_deref().unwrap_or_default();
                all.files
                    .extend(downward(self.volume, self.context, items, mode)?);
            }
            if let Some(source) = service_account_token {
                let replace_at = self.token(source, mode, &mut all.files).await?;
                let again = all
                    .look_again
                    .map_or(replace_at, |again| again.min(replace_at));
                all.look_again = Some(again);
            }
        }
        Ok(all)
    }

    /// Adds a token; says when it is to be replaced.
    async fn token(
        &self,
        source: &ServiceAccountTokenProjection,
        default_mode: Option<i32>,
        files: &mut Files,
    ) -> Result<Timestamp, VolumeError> {
        let pod = self.context.pod;
        let wanted = Wanted {
            uid: pod.id.uid.clone(),
            audience: source.audience.clone().unwrap_or_default(),
            seconds: source.expiration_seconds.unwrap_or(DEFAULT_SECONDS),
        };
        let token = self
            .sources
            .tokens
            .get(self.sources.client, pod, &wanted)
            .await;
        let token = token.map_err(|source| VolumeError::Token {
            volume: self.volume.to_owned(),
            account: pod.spec().service_account_name.clone().unwrap_or_default(),
            source: Box::new(source),
        })?;
        let owner = only_user(pod);
        let in_group = fs_group(pod).is_some();
        let file = File {
            bytes: token.text.into_bytes(),
            // Where it is known who reads it, nobody else does.
            mode: match owner.is_some() || in_group {
                true => 0o600,
                false => mode(default_mode.unwrap_or(DEFAULT_MODE)),
            },
            owner,
        };
        files.insert(inside(self.volume, &source.path)?, file);
        Ok(token.replace_at)
    }
}

/// The group that the pod's volumes are given to.
pub(super) fn fs_group(pod: &PodView) -> Option<u32> {
    let security = pod.spec().security_context.as_ref();
    let group = security.and_then(|security| security.fs_group);
    group.and_then(|group| u32::try_from(group).ok())
}

/// The user that all containers run as, if the spec says that of each.
fn only_user(pod: &PodView) -> Option<u32> {
    let of_pod = pod
        .spec()
        .security_context
        .as_ref()
        .and_then(|security| security.run_as_user);
    let mut users = pod.all_containers().map(|container| {
        let own = container
            .security_context
            .as_ref()
            .and_then(|security| security.run_as_user);
        own.or(of_pod)
    });
    let first = users.next()??;
    let same = users.all(|user| user == Some(first));
    same.then(|| u32::try_from(first).ok()).flatten()
}

type Data = BTreeMap<String, Vec<u8>>;

fn refused(volume: &str, reason: impl Into<String>) -> VolumeError {
    VolumeError::Refused {
        volume: volume.to_owned(),
        reason: reason.into(),
    }
}

fn given<T>(
    volume: &str,
    kind: &'static str,
    name: &str,
    found: Result<Option<T>, kube::Error>,
) -> Result<Option<T>, VolumeError> {
    found.map_err(|source| VolumeError::Read {
        volume: volume.to_owned(),
        kind,
        name: name.to_owned(),
        source: Box::new(source),
    })
}

fn required(
    volume: &str,
    kind: &'static str,
    name: &str,
    optional: Option<bool>,
    data: Option<Data>,
) -> Result<Data, VolumeError> {
    match data {
        Some(data) => Ok(data),
        None if optional == Some(true) => Ok(Data::new()),
        None => Err(VolumeError::NotFound {
            volume: volume.to_owned(),
            kind,
            name: name.to_owned(),
        }),
    }
}

fn file(bytes: Vec<u8>, mode: u32) -> File {
    File {
        bytes,
        mode,
        owner: None,
    }
}

fn select(
    volume: &str,
    data: Data,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    default_mode: Option<i32>,
) -> Result<Files, VolumeError> {
    let default = default_mode.unwrap_or(DEFAULT_MODE);
    // No items, like nothing said of them, are all keys.
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        let all = data.into_iter();
        return Ok(all
            .map(|(key, value)| (key.into(), file(value, mode(default))))
            .collect());
    };
    items
        .iter()
        .filter(|item| optional != Some(true) || data.contains_key(&item.key))
        .map(|item| {
            let value = data.get(&item.key).ok_or_else(|| {
                refused(volume, format!("references non-existent key: {}", item.key))
            })?;
            let mode = mode(item.mode.unwrap_or(default));
            Ok((inside(volume, &item.path)?, file(value.clone(), mode)))
        })
        .collect()
}

fn downward(
    volume: &str,
    context: &Context<'_>,
    items: &[DownwardAPIVolumeFile],
    default_mode: Option<i32>,
) -> Result<Files, VolumeError> {
    let default = default_mode.unwrap_or(DEFAULT_MODE);
    items
        .iter()
        .map(|item| {
            let value = match (&item.field_ref, &item.resource_field_ref) {
                (Some(source), _) => field(context, &source.field_path),
                (None, Some(source)) => {
                    resource_field::value(context.pod, None, context.allocatable, source)
                }
                (None, None) => None,
            };
            let value = value.ok_or_else(|| {
                refused(
                    volume,
                    format!("downward API item {:?} names no known field", item.path),
                )
            })?;
            let mode = mode(item.mode.unwrap_or(default));
            Ok((inside(volume, &item.path)?, file(value.into_bytes(), mode)))
        })
        .collect()
}

/// A path in the volume. Names that begin with two dots are the volume's own.
pub(super) fn inside(volume: &str, path: &str) -> Result<PathBuf, VolumeError> {
    let path = Path::new(path);
    let own = path.to_str().is_some_and(|text| text.starts_with(".."));
    let plain = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    if !own && path.components().all(plain) {
        return Ok(path.to_owned());
    }
    Err(refused(
        volume,
        format!("path {} must stay inside the volume", path.display()),
    ))
}

fn mode(mode: i32) -> u32 {
    mode.unsigned_abs() & 0o7777
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::testing::FakeApi;

    #[test]
    fn an_optional_source_may_lack_what_the_items_name() {
        let item = |key: &str| KeyToPath {
            key: key.into(),
            path: key.into(),
            mode: None,
        };
        let data = || Data::from([("there".to_owned(), b"text".to_vec())]);
        let items = [item("there"), item("absent")];
        let select = |optional| select("v", data(), Some(&items), optional, None);
        let files = select(Some(true)).unwrap();
        assert_eq!(
            files,
            Files::from([("there".into(), file(b"text".to_vec(), 0o644))])
        );
        let error = select(None).unwrap_err();
        assert!(error.to_string().contains("non-existent key: absent"));
    }

    #[tokio::test]
    async fn of_two_sources_with_the_same_file_the_later_one_counts() {
        let api = FakeApi::new();
        api.put_config_map("one", json!({"file": "of one", "own": "one's"}));
        api.put_config_map("two", json!({"file": "of two"}));
        let (client, tokens) = (api.client(), Tokens::default());
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {"containers": []}});
        let pod = PodView::new(serde_json::from_value(pod).unwrap()).unwrap();
        let context = Context {
            pod: &pod,
            node_name: "node-1",
            addresses: &[],
            host_addresses: &[],
            allocatable: &BTreeMap::new(),
        };
        let sources = Sources {
            client: &client,
            tokens: &tokens,
        };
        let [one, two] = ["one", "two"].map(|name| json!({"configMap": {"name": name}}));
        let token = json!({"serviceAccountToken": {"path": "file"}});
        let cases = [
            (json!([one, two]), "of two"),
            (json!([two, one]), "of one"),
            (json!([token, one]), "of one"),
            (json!([one, token]), "token-"),
        ];
        for (projected, begins) in cases {
            let volume = json!({"name": "v", "projected": {"sources": projected}});
            let volume: Volume = serde_json::from_value(volume).unwrap();
            let contents = read(&sources, &context, &volume).await.unwrap().unwrap();
            let names: Vec<_> = contents.files.keys().map(|path| path.as_path()).collect();
            assert_eq!(names, [Path::new("file"), Path::new("own")]);
            let text = String::from_utf8_lossy(&contents.files[Path::new("file")].bytes);
            assert!(text.starts_with(begins), "{volume:?}: {text}");
        }
    }

    #[test]
    fn no_path_leads_out_or_to_the_volumes_own_names() {
        for path in ["../x", "a/../b", "/etc", "..data", "..2020/x"] {
            assert!(inside("v", path).is_err(), "{path}");
        }
        for path in ["a", "a/b", "./a", ".hidden", "a/..b"] {
            assert!(inside("v", path).is_ok(), "{path}");
        }
    }

    #[test]
    fn a_token_is_for_one_user_where_all_containers_run_as_one() {
        let user = |spec: serde_json::Value| {
            let pod =
                json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec});
            only_user(&PodView::new(serde_json::from_value(pod).unwrap()).unwrap())
        };
        let as_user = |id: i64| json!({"name": "c", "securityContext": {"runAsUser": id}});
        let plain = json!({"name": "d"});
        assert_eq!(
            user(json!({"containers": [as_user(7), as_user(7)]})),
            Some(7)
        );
        assert_eq!(user(json!({"containers": [as_user(7), as_user(8)]})), None);
        assert_eq!(user(json!({"containers": [as_user(7), plain]})), None);
        let of_pod =
            json!({"containers": [plain, as_user(9)], "securityContext": {"runAsUser": 9}});
        assert_eq!(user(of_pod), Some(9));
    }
}
