//! `Policy` of `audit.k8s.io/v1`: which requests leave an event. The first rule that fits a request decides.

use serde::Deserialize;

use super::Asked;
use crate::api::request::ResourceRequest;
use crate::auth::User;

/// Why a text is no policy that is kept here.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error(transparent)]
    Unreadable(std::io::Error),
    #[error("{0}")]
    Syntax(String),
    #[error("it is a {0}, not a Policy of audit.k8s.io/v1")]
    Kind(String),
    #[error("rules[{0}].level: bodies are not recorded here; say None or Metadata")]
    Level(usize),
}

/// A policy, read.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    api_version: String,
    kind: String,
    #[serde(default, rename = "metadata")]
    _metadata: serde_json::Value,
    #[serde(default)]
    rules: Vec<Rule>,
    /// There is one stage here.
    #[serde(default, rename = "omitStages")]
    _omit_stages: Vec<String>,
    #[serde(default, rename = "omitManagedFields")]
    _omit_managed_fields: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Level {
    None,
    Metadata,
    Request,
    RequestResponse,
}

/// What is empty fits every request.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    level: Level,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    user_groups: Vec<String>,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    resources: Vec<Resources>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default, rename = "nonResourceURLs")]
    paths: Vec<String>,
    #[serde(default, rename = "omitStages")]
    _omit_stages: Vec<String>,
    #[serde(default, rename = "omitManagedFields")]
    _omit_managed_fields: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Resources {
    #[serde(default)]
    group: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
}

impl Policy {
    pub fn parse(yaml: &str) -> Result<Self, PolicyError> {
        let policy: Policy =
            serde_saphyr::from_str(yaml).map_err(|error| PolicyError::Syntax(error.to_string()))?;
        if (&*policy.api_version, &*policy.kind) != ("audit.k8s.io/v1", "Policy") {
            let what = format!("{} of {}", policy.kind, policy.api_version);
            return Err(PolicyError::Kind(what));
        }
        let more = |rule: &Rule| matches!(rule.level, Level::Request | Level::RequestResponse);
        match policy.rules.iter().position(more) {
            Some(index) => Err(PolicyError::Level(index)),
            None => Ok(policy),
        }
    }

    /// Whether the request leaves an event.
    pub fn wants(&self, asked: &Asked, user: Option<&User>) -> bool {
        let rule = self.rules.iter().find(|rule| rule.fits(asked, user));
        rule.is_some_and(|rule| rule.level == Level::Metadata)
    }
}

impl Rule {
    fn fits(&self, asked: &Asked, user: Option<&User>) -> bool {
        let has = |all: &[String], one: &str| all.is_empty() || all.iter().any(|each| each == one);
        let name = user.map_or("", |user| &user.name);
        let groups = user.map_or(&[][..], |user| &user.groups);
        let in_group = self.user_groups.iter().any(|group| groups.contains(group));
        if !has(&self.users, name)
            || !(self.user_groups.is_empty() || in_group)
            || !has(&self.verbs, &asked.verb)
        {
            return false;
        }
        match &asked.target {
            Some(target) => {
                let named = self.resources.iter().any(|one| one.fits(target));
                self.paths.is_empty()
                    && has(&self.namespaces, &target.namespace)
                    && (self.resources.is_empty() || named)
            }
            None => {
                let of_objects = !self.resources.is_empty() || !self.namespaces.is_empty();
                !of_objects && (self.paths.is_empty() || self.has_path(asked.uri.path()))
            }
        }
    }

    fn has_path(&self, path: &str) -> bool {
        self.paths.iter().any(|one| match one.strip_suffix('*') {
            Some(prefix) => path.starts_with(prefix),
            None => one == path,
        })
    }
}

impl Resources {
    fn fits(&self, target: &ResourceRequest) -> bool {
        let named = || self.resource_names.contains(&target.name);
        self.group == target.group
            && (self.resources.is_empty()
                || self.resources.iter().any(|one| is_resource(one, target)))
            && (self.resource_names.is_empty() || named())
    }
}

/// `pods`, `pods/log`, `pods/*`, `*/status`, `*`.
fn is_resource(pattern: &str, target: &ResourceRequest) -> bool {
    if pattern == "*" {
        return true;
    }
    let (resource, subresource) = pattern.split_once('/').unwrap_or((pattern, ""));
    let resource_fits = resource == "*" || resource == target.resource;
    resource_fits && (subresource == "*" || subresource == target.subresource)
}
