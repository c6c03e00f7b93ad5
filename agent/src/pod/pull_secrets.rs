//! Logins for private registries, from the Secrets that a pod names (`imagePullSecrets`).

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use serde::Deserialize;

use super::spec::PodView;
use crate::runtime::{RegistryLogin, image};

/// The logins that fit the image, the most particular first. A Secret that cannot be read is among the second: as upstream,
/// the pull goes on without it.
pub(super) async fn logins(
    client: &Client,
    pod: &PodView,
    image: &str,
) -> (Vec<RegistryLogin>, Vec<String>) {
    let (mut found, mut unread) = (Vec::new(), Vec::new());
    let api = Api::<Secret>::namespaced(client.clone(), &pod.id.namespace);
    for reference in pod.spec().image_pull_secrets.iter().flatten() {
        let read = api.get(&reference.name).await;
        match read.map(|secret| entries(&secret)) {
            Ok(Some(entries)) => found.extend(entries),
            Ok(None) | Err(_) => unread.push(reference.name.clone()),
        }
    }
    (fitting(found, image), unread)
}

/// One registry's login, and the place that it is for as the Secret has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    place: String,
    username: String,
    password: String,
}

#[derive(Deserialize)]
struct DockerConfig {
    auths: BTreeMap<String, Auth>,
}

#[derive(Deserialize)]
struct Auth {
    username: Option<String>,
    password: Option<String>,
    /// `username:password` in base64.
    auth: Option<String>,
}

/// What a Secret of type `kubernetes.io/dockerconfigjson` or `kubernetes.io/dockercfg` holds; `None` when it is no such.
fn entries(secret: &Secret) -> Option<Vec<Entry>> {
    let data = secret.data.as_ref()?;
    let auths = match (data.get(".dockerconfigjson"), data.get(".dockercfg")) {
        (Some(config), _) => {
            serde_json::from_slice::<DockerConfig>(&config.0)
                .ok()?
                .auths
        }
        (None, Some(auths)) => serde_json::from_slice(&auths.0).ok()?,
        (None, None) => return None,
    };
    let all = auths.into_iter().filter_map(|(place, auth)| {
        let (username, password) = login(auth)?;
        Some(Entry {
            place,
            username,
            password,
        })
    });
    Some(all.collect())
}

fn login(auth: Auth) -> Option<(String, String)> {
    if let (Some(username), Some(password)) = (auth.username, auth.password) {
        return Some((username, password));
    }
    let text = String::from_utf8(BASE64_STANDARD.decode(auth.auth?).ok()?).ok()?;
    let (username, password) = text.split_once(':')?;
    Some((username.to_owned(), password.to_owned()))
}

/// Those whose place the image lies in, the longest first.
fn fitting(entries: Vec<Entry>, image: &str) -> Vec<RegistryLogin> {
    let Ok(image) = image::normalize(image) else {
        return Vec::new();
    };
    let mut fitting: Vec<Entry> = entries
        .into_iter()
        .filter(|entry| holds(&entry.place, &image))
        .collect();
    fitting.sort_by_key(|entry| std::cmp::Reverse(place(&entry.place).1.len()));
    let logins = fitting.into_iter().map(|entry| RegistryLogin {
        username: entry.username,
        password: entry.password,
    });
    logins.collect()
}

/// Host and path of what stands before a login, such as `https://index.docker.io/v1/` or `registry.example.com/team`.
fn place(text: &str) -> (&str, &str) {
    let bare = text
        .trim_start_matches("https://")
        .trim_start_matches("http://")
        .trim_end_matches('/');
    let bare = bare
        .strip_suffix("/v1")
        .or(bare.strip_suffix("/v2"))
        .unwrap_or(bare);
    let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
    match host {
        "index.docker.io" | "registry-1.docker.io" => ("docker.io", path),
        _ => (host, path),
    }
}

/// Whether the image, in its full form, lies in the place. A part of the place's host may be `*`.
fn holds(text: &str, image: &str) -> bool {
    let (host, path) = place(text);
    let Some((image_host, image_path)) = image.split_once('/') else {
        return false;
    };
    let same_host = host.split('.').count() == image_host.split('.').count()
        && host
            .split('.')
            .zip(image_host.split('.'))
            .all(|(wanted, part)| wanted == "*" || wanted == part);
    let below = image_path
        .strip_prefix(path)
        .is_some_and(|rest| path.is_empty() || rest.starts_with(['/', ':', '@']));
    same_host && below
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    fn secret(key: &str, text: &str) -> Secret {
        Secret {
            data: Some([(key.to_owned(), ByteString(text.into()))].into()),
            ..Secret::default()
        }
    }

    #[test]
    fn both_forms_of_secret_and_of_login_are_read() {
        let plain = r#"{"r.example": {"username": "u", "password": "p"}}"#;
        // u:p:q
        let coded = r#"{"auths": {"r.example": {"auth": "dTpwOnE="}, "other": {}}}"#;
        let entry = |password: &str| Entry {
            place: "r.example".into(),
            username: "u".into(),
            password: password.into(),
        };
        assert_eq!(
            entries(&secret(".dockercfg", plain)),
            Some(vec![entry("p")])
        );
        assert_eq!(
            entries(&secret(".dockerconfigjson", coded)),
            Some(vec![entry("p:q")])
        );
        for (key, text) in [
            (".dockerconfigjson", "{}"),
            (".dockercfg", "no"),
            ("a", "b"),
        ] {
            assert_eq!(entries(&secret(key, text)), None, "{key}");
        }
    }

    #[test]
    fn a_login_is_for_what_lies_in_its_place() {
        for (place, image, fits) in [
            ("r.example", "r.example/a:1", true),
            ("https://r.example/v2/", "r.example/a:1", true),
            ("r.example:5000", "r.example/a:1", false),
            ("r.example:5000", "r.example:5000/a:1", true),
            ("r.example/team", "r.example/team/a:1", true),
            ("r.example/team", "r.example/teams/a:1", false),
            ("*.example", "r.example/a:1", true),
            ("*.example", "a.r.example/a:1", false),
            ("https://index.docker.io/v1/", "backend:v1", true),
            ("docker.io", "backend:v1", true),
            ("r.example", "backend:v1", false),
        ] {
            let image = image::normalize(image).unwrap();
            assert_eq!(holds(place, &image), fits, "{place} {image}");
        }
    }

    #[test]
    fn the_most_particular_login_comes_first() {
        let entry = |place: &str| Entry {
            place: place.into(),
            username: place.into(),
            password: String::new(),
        };
        let all = ["r.example", "r.example/team/app", "r.example/team", "x.y"].map(entry);
        let order: Vec<String> = fitting(all.into(), "r.example/team/app:1")
            .into_iter()
            .map(|login| login.username)
            .collect();
        assert_eq!(order, ["r.example/team/app", "r.example/team", "r.example"]);
    }
}
