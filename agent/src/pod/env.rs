//! A container's environment and command line: values from the pod, from ConfigMaps and Secrets, and `$(VAR)`.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVarSource, Secret};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{Api, Client};

use super::resource_field;
use super::spec::PodView;
use crate::runtime::PodRef;

/// Why an environment cannot be made. The text goes into the container's status.
#[derive(Debug, thiserror::Error)]
pub(super) enum EnvError {
    #[error("{kind} \"{name}\" not found")]
    NotFound { kind: &'static str, name: String },
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey {
        kind: &'static str,
        namespace: String,
        name: String,
        key: String,
    },
    #[error("cannot read {kind} \"{name}\": {source}")]
    Read {
        kind: &'static str,
        name: String,
        source: Box<kube::Error>,
    },
    #[error("env {name}: {reason}")]
    Unsupported { name: String, reason: String },
}

/// What the environment draws from, besides the API.
pub(super) struct Context<'a> {
    pub(super) pod: &'a PodView,
    pub(super) node_name: &'a str,
    pub(super) addresses: &'a [IpAddr],
    pub(super) host_addresses: &'a [IpAddr],
    /// What the node gives its pods, by resource.
    pub(super) allocatable: &'a BTreeMap<String, Quantity>,
}

impl EnvError {
    /// The API server gave no answer that would count.
    fn is_silence(&self) -> bool {
        match self {
            EnvError::Read { source, .. } => {
                !matches!(&**source, kube::Error::Api(status) if status.code < 500)
            }
            _ => false,
        }
    }
}

/// What a ConfigMap or Secret says, by key; `None` of one that does not exist.
type Values = Option<BTreeMap<String, String>>;
/// The values of what one pod uses, by kind and name.
type Read = BTreeMap<(&'static str, String), Values>;

/// What ConfigMaps and Secrets said when containers were started last, by the uid of the pod. While the API server is away, a
/// container restarts with that.
#[derive(Default)]
pub(super) struct LastRead(Mutex<HashMap<String, Read>>);

impl LastRead {
    fn put(&self, uid: &str, key: (&'static str, String), values: Values) {
        self.lock()
            .entry(uid.to_owned())
            .or_default()
            .insert(key, values);
    }

    fn get(&self, uid: &str, key: &(&'static str, String)) -> Option<Values> {
        self.lock().get(uid)?.get(key).cloned()
    }

    /// The pod is gone.
    pub(super) fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Read>> {
        // Each change is one call that cannot stop half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The values of the ConfigMaps and Secrets that one container uses, each read once.
struct Sources<'a> {
    client: &'a Client,
    last: &'a LastRead,
    pod: &'a PodRef,
    read: Read,
}

const CONFIG_MAP: &str = "configmap";
const SECRET: &str = "secret";

impl Sources<'_> {
    async fn get(
        &mut self,
        kind: &'static str,
        name: &str,
    ) -> Result<Option<&BTreeMap<String, String>>, EnvError> {
        let key = (kind, name.to_owned());
        if !self.read.contains_key(&key) {
            let (last, uid) = (self.last, &self.pod.uid);
            let values = match read(self.client, &self.pod.namespace, kind, name).await {
                Ok(values) => {
                    last.put(uid, key.clone(), values.clone());
                    values
                }
                Err(error) if error.is_silence() => last.get(uid, &key).ok_or(error)?,
                Err(error) => return Err(error),
            };
            self.read.insert(key.clone(), values);
        }
        Ok(self.read.get(&key).and_then(Option::as_ref))
    }

    /// One value; `None` only where it is optional and absent.
    async fn value(
        &mut self,
        kind: &'static str,
        name: &str,
        key: &str,
        optional: bool,
    ) -> Result<Option<String>, EnvError> {
        let namespace = self.pod.namespace.clone();
        match self.get(kind, name).await? {
            None if optional => Ok(None),
            None => Err(EnvError::NotFound {
                kind,
                name: name.to_owned(),
            }),
            Some(values) => match values.get(key) {
                None if !optional => Err(EnvError::NoKey {
                    kind,
                    namespace,
                    name: name.to_owned(),
                    key: key.to_owned(),
                }),
                value => Ok(value.cloned()),
            },
        }
    }
}

async fn read(
    client: &Client,
    namespace: &str,
    kind: &'static str,
    name: &str,
) -> Result<Option<BTreeMap<String, String>>, EnvError> {
    let fail = |source| EnvError::Read {
        kind,
        name: name.to_owned(),
        source: Box::new(source),
    };
    if kind == CONFIG_MAP {
        let found = Api::<ConfigMap>::namespaced(client.clone(), namespace)
            .get_opt(name)
            .await;
        return Ok(found.map_err(fail)?.map(|map| map.data.unwrap_or_default()));
    }
    let found = Api::<Secret>::namespaced(client.clone(), namespace)
        .get_opt(name)
        .await;
    Ok(found.map_err(fail)?.map(|secret| {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        secret
            .data
            .unwrap_or_default()
            .into_iter()
            .map(|(key, value)| (key, text(value.0)))
            .collect()
    }))
}

/// The environment of a container: `services`, then what its spec names, in that order. A later name hides an earlier one.
pub(super) async fn resolve(
    client: &Client,
    last: &LastRead,
    context: &Context<'_>,
    services: Vec<(String, String)>,
    container: &Container,
) -> Result<Vec<(String, String)>, EnvError> {
    let mut sources = Sources {
        client,
        last,
        pod: &context.pod.id,
        read: BTreeMap::new(),
    };
    let mut env = services;
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let wanted = [
            from.config_map_ref
                .as_ref()
                .map(|r| (CONFIG_MAP, r.name.as_str(), r.optional)),
            from.secret_ref
                .as_ref()
                .map(|r| (SECRET, r.name.as_str(), r.optional)),
        ];
        for (kind, name, optional) in wanted.into_iter().flatten() {
            match sources.get(kind, name).await? {
                Some(values) => env.extend(
                    values
                        .iter()
                        .map(|(key, value)| (format!("{prefix}{key}"), value.clone())),
                ),
                None if optional == Some(true) => {}
                None => {
                    return Err(EnvError::NotFound {
                        kind,
                        name: name.to_owned(),
                    });
                }
            }
        }
    }
    for var in container.env.iter().flatten() {
        let value = match (&var.value, &var.value_from) {
            (_, Some(source)) => {
                match from_source(&mut sources, context, container, &var.name, source).await? {
                    Some(value) => value,
                    None => continue,
                }
            }
            (Some(text), None) => expand(text, &env),
            (None, None) => String::new(),
        };
        env.push((var.name.clone(), value));
    }
    Ok(env)
}

async fn from_source(
    sources: &mut Sources<'_>,
    context: &Context<'_>,
    container: &Container,
    name: &str,
    source: &EnvVarSource,
) -> Result<Option<String>, EnvError> {
    let unsupported = |reason: String| EnvError::Unsupported {
        name: name.to_owned(),
        reason,
    };
    if let Some(field) = &source.field_ref {
        return self::field(context, &field.field_path)
            .map(Some)
            .ok_or_else(|| unsupported(format!("field {:?} is not known", field.field_path)));
    }
    if let Some(field) = &source.resource_field_ref {
        let (pod, node) = (context.pod, context.allocatable);
        return resource_field::value(pod, Some(container), node, field)
            .map(Some)
            .ok_or_else(|| unsupported(format!("resource {:?} is not known", field.resource)));
    }
    if let Some(key) = &source.config_map_key_ref {
        return sources
            .value(CONFIG_MAP, &key.name, &key.key, key.optional == Some(true))
            .await;
    }
    if let Some(key) = &source.secret_key_ref {
        return sources
            .value(SECRET, &key.name, &key.key, key.optional == Some(true))
            .await;
    }
    Err(unsupported("its source is not supported".into()))
}

/// The value of a downward-API field.
pub(super) fn field(context: &Context<'_>, path: &str) -> Option<String> {
    let pod = context.pod;
    let meta = &pod.object.metadata;
    let list = |addresses: &[IpAddr]| {
        let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        texts.join(",")
    };
    let first = |addresses: &[IpAddr]| {
        addresses
            .first()
            .map(ToString::to_string)
            .unwrap_or_default()
    };
    let key = |prefix: &str| {
        path.strip_prefix(prefix)?
            .strip_prefix("['")?
            .strip_suffix("']")
    };
    let lines = |map: &Option<BTreeMap<String, String>>| {
        let lines: Vec<String> = map
            .iter()
            .flatten()
            .map(|(key, value)| format!("{key}={value:?}"))
            .collect();
        lines.join("\n")
    };
    Some(match path {
        "metadata.name" => pod.id.name.clone(),
        "metadata.namespace" => pod.id.namespace.clone(),
        "metadata.uid" => pod.id.uid.clone(),
        "metadata.labels" => lines(&meta.labels),
        "metadata.annotations" => lines(&meta.annotations),
        "spec.nodeName" => context.node_name.to_owned(),
        "spec.serviceAccountName" => pod.spec().service_account_name.clone().unwrap_or_default(),
        "status.podIP" => first(context.addresses),
        "status.podIPs" => list(context.addresses),
        "status.hostIP" => first(context.host_addresses),
        "status.hostIPs" => list(context.host_addresses),
        _ => {
            let (map, key) = match (key("metadata.labels"), key("metadata.annotations")) {
                (Some(key), _) => (&meta.labels, key),
                (None, Some(key)) => (&meta.annotations, key),
                (None, None) => return None,
            };
            map.as_ref()
                .and_then(|map| map.get(key))
                .cloned()
                .unwrap_or_default()
        }
    })
}

/// Replaces `$(NAME)` by the value of a variable defined so far. `$$` stands for one `$`; an unknown name stays as it is.
pub(super) fn expand(text: &str, env: &[(String, String)]) -> String {
    expanded(text, env, |_| {})
}

/// The same where each name has to be known; gives the first that is not.
pub(super) fn expand_all(text: &str, env: &[(String, String)]) -> Result<String, String> {
    let mut missing = None;
    let all = expanded(text, env, |name| {
        missing.get_or_insert_with(|| name.to_owned());
    });
    missing.map_or(Ok(all), Err)
}

fn expanded(text: &str, env: &[(String, String)], mut unknown: impl FnMut(&str)) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) =
            rest.strip_prefix('(').and_then(|rest| rest.split_once(')'))
        {
            match env.iter().rev().find(|(known, _)| known == name) {
                Some((_, value)) => out.push_str(value),
                None => {
                    unknown(name);
                    out.push_str(&format!("$({name})"));
                }
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::pod::testing::FakeApi;

    #[test]
    fn references_are_expanded_as_kubernetes_does() {
        let env = vec![
            ("A".to_owned(), "1".to_owned()),
            ("A".to_owned(), "2".to_owned()),
        ];
        for (text, result) in [
            ("x$(A)y", "x2y"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("$", "$"),
            ("$(A)$(A)", "22"),
        ] {
            let known = (!text.contains("(B")).then(|| result.to_owned());
            assert_eq!(expand_all(text, &env).ok(), known, "{text}");
            assert_eq!(expand(text, &env), result, "{text}");
        }
    }

    proptest! {
        #[test]
        fn text_without_references_stays(text in "[^$]*") {
            prop_assert_eq!(expand(&text, &[]), text);
        }
    }

    #[tokio::test]
    async fn without_the_api_a_restart_makes_do_with_what_was_said_last() {
        let api = FakeApi::new();
        api.put_config_map("settings", json!({"COLOUR": "blue"}));
        let object = json!({
            "metadata": {"name": "p", "namespace": "default", "uid": "u"},
            "spec": {"containers": [{"name": "c", "envFrom": [
                {"configMapRef": {"name": "settings"}}, {"configMapRef": {"name": "absent", "optional": true}},
            ]}]},
        });
        let pod = PodView::new(serde_json::from_value(object).unwrap()).unwrap();
        let context = Context {
            pod: &pod,
            node_name: "node-1",
            addresses: &[],
            host_addresses: &[],
            allocatable: &BTreeMap::new(),
        };
        let (client, last) = (api.client(), LastRead::default());
        let env = async || resolve(&client, &last, &context, vec![], &pod.containers()[0]).await;
        let blue = vec![("COLOUR".to_owned(), "blue".to_owned())];
        assert_eq!(env().await.unwrap(), blue);
        api.set_away(true);
        assert_eq!(env().await.unwrap(), blue);
        last.forget("u");
        let error = env().await.unwrap_err();
        assert!(error.is_silence(), "{error}");
        api.set_away(false);
        api.put_config_map("settings", json!({"COLOUR": "green"}));
        assert_eq!(env().await.unwrap()[0].1, "green");
    }
}
