//! Levels and versions of the Pod Security Standards, and the labels of namespaces that name them.

use std::collections::BTreeMap;
use std::fmt;

use crate::resources::FieldError;
use crate::resources::validate::Path;

const PREFIX: &str = "pod-security.kubernetes.io/";

/// How much a pod may do; each level forbids what the one before it does, and more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Privileged,
    Baseline,
    Restricted,
}

/// Which Kubernetes' rules hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    /// `v1.N`
    Minor(u32),
    Latest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standard {
    pub(super) level: Level,
    pub(super) version: Version,
}

/// What a namespace asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) enforce: Standard,
    pub(super) audit: Standard,
    pub(super) warn: Standard,
}

impl fmt::Display for Standard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        match self.version {
            Version::Latest => write!(f, "{level}:latest"),
            Version::Minor(minor) => write!(f, "{level}:v1.{minor}"),
        }
    }
}

fn level(text: &str) -> Option<Level> {
    match text {
        "privileged" => Some(Level::Privileged),
        "baseline" => Some(Level::Baseline),
        "restricted" => Some(Level::Restricted),
        _ => None,
    }
}

fn version(text: &str) -> Option<Version> {
    if text == "latest" {
        return Some(Version::Latest);
    }
    let minor = text.strip_prefix("v1.")?;
    let canonical = minor == "0" || !minor.starts_with('0');
    let digits = minor.bytes().all(|byte| byte.is_ascii_digit());
    (canonical && digits).then(|| minor.parse().ok().map(Version::Minor))?
}

impl Policy {
    /// What the labels of a namespace say, and what is wrong with them. Without labels everything is allowed; what cannot be
    /// read enforces the most, and tells nothing.
    pub(super) fn of(labels: &BTreeMap<String, String>) -> (Self, Vec<FieldError>) {
        let mut errors = Vec::new();
        let mut standard = |mode: &str, unknown: Level| {
            let path = |key: &str| Path::new("metadata").child("labels").key(key);
            let key = format!("{PREFIX}{mode}");
            let level = match labels.get(&key) {
                None => Level::Privileged,
                Some(text) => level(text).unwrap_or_else(|| {
                    let why = "must be one of privileged, baseline, restricted";
                    errors.push(path(&key).invalid(text.as_str(), why));
                    unknown
                }),
            };
            let key = format!("{key}-version");
            let version = match labels.get(&key) {
                None => Version::Latest,
                Some(text) => version(text).unwrap_or_else(|| {
                    let why = "must be \"latest\" or \"v1.x\"";
                    errors.push(path(&key).invalid(text.as_str(), why));
                    Version::Latest
                }),
            };
            Standard { level, version }
        };
        let enforce = standard("enforce", Level::Restricted);
        let audit = standard("audit", Level::Privileged);
        let warn = standard("warn", Level::Privileged);
        let enforced = labels.get(&format!("{PREFIX}enforce"));
        let enforced = enforced.and_then(|text| level(text));
        let policy = Policy {
            enforce,
            audit,
            warn: match (enforced, labels.contains_key(&format!("{PREFIX}warn"))) {
                (Some(_), false) => with_enforced(warn, enforce),
                _ => warn,
            },
        };
        (policy, errors)
    }
}

/// Where nothing is said of warnings, they are about what is enforced: of a workload somebody shall hear that its pods will be
/// refused.
fn with_enforced(warn: Standard, enforce: Standard) -> Standard {
    if enforce.level > warn.level {
        enforce
    } else {
        warn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(labels: &[(&str, &str)]) -> (Policy, Vec<String>) {
        let labels = labels
            .iter()
            .map(|(key, value)| (format!("{PREFIX}{key}"), (*value).to_owned()))
            .collect();
        let (policy, errors) = Policy::of(&labels);
        (policy, errors.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn labels_say_what_holds() {
        let (policy, errors) = of(&[("enforce", "baseline"), ("enforce-version", "v1.20")]);
        assert_eq!(errors, Vec::<String>::new());
        assert_eq!(policy.enforce.to_string(), "baseline:v1.20");
        assert_eq!(policy.audit.to_string(), "privileged:latest");
        assert_eq!(policy.warn, policy.enforce);
        let (policy, _) = of(&[("enforce", "restricted"), ("warn", "baseline")]);
        assert_eq!(policy.warn.to_string(), "baseline:latest");
        assert_eq!(of(&[]).0.enforce.level, Level::Privileged);
    }

    #[test]
    fn what_cannot_be_read_enforces_the_most() {
        let (policy, errors) = of(&[("enforce", "strict"), ("warn-version", "1.20")]);
        assert_eq!(policy.enforce.level, Level::Restricted);
        assert_eq!(
            errors,
            [
                "metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"strict\": must be one of privileged, baseline, restricted",
                "metadata.labels[pod-security.kubernetes.io/warn-version]: Invalid value: \"1.20\": must be \"latest\" or \"v1.x\"",
            ]
        );
        assert_eq!(version("v1.05"), None);
        assert!(Version::Minor(40) < Version::Latest);
    }
}
