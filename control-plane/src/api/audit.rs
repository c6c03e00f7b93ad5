//! The audit log: who asked for what, and what became of it, as one `Event` of `audit.k8s.io/v1` a line, at the level
//! `Metadata`: no bodies, so nothing of what Secrets hold. Off unless a file is named, as upstream has it.
//!
//! A request leaves one event, when its answer begins (`ResponseStarted` where that goes on: watches and streams) or is
//! complete.

mod file;
mod policy;

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use http::{Method, Uri, header};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::error::ApiError;
use super::request::{self, Query, ResourceRequest, Target};
use crate::admission::Warnings;
use crate::auth::User;
use file::File;
pub use policy::{Policy, PolicyError};

/// Events that wait for the disk; then requests wait, too.
const WAITING: usize = 1024;

/// Where a request came from. It travels with a request as an extension.
#[derive(Clone, Copy)]
pub struct Source(pub IpAddr);

/// Where events go, and which.
pub struct Config {
    pub path: PathBuf,
    /// None: every request.
    pub policy: Option<PathBuf>,
    /// So many bytes make a file full.
    pub size: u64,
    /// So many full files are kept; 0: all.
    pub backups: usize,
}

/// Why there is no audit log.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error("cannot write the audit log {path}: {source}; see --audit-log-path")]
    Log { path: PathBuf, source: io::Error },
    #[error("cannot use the audit policy {path}: {source}; see --audit-policy-file")]
    Policy { path: PathBuf, source: PolicyError },
}

/// An open audit log.
pub struct Log {
    /// None: every request.
    policy: Option<Policy>,
    lines: mpsc::Sender<String>,
}

impl Log {
    /// Opens the file, and starts the thread that writes to it.
    pub fn open(config: Config) -> Result<Self, AuditError> {
        let policy = config.policy.map(|path| {
            let text = std::fs::read_to_string(&path).map_err(PolicyError::Unreadable);
            let read = text.and_then(|text| Policy::parse(&text));
            read.map_err(|source| AuditError::Policy { path, source })
        });
        let policy = policy.transpose()?;
        let path = config.path;
        let file = File::open(&path, config.size, config.backups);
        let mut file = file.map_err(|source| AuditError::Log { path, source })?;
        let (lines, mut waiting) = mpsc::channel::<String>(WAITING);
        std::thread::spawn(move || {
            while let Some(line) = waiting.blocking_recv() {
                if let Err(error) = file.write(&line) {
                    tracing::error!(%error, event = line, "the audit log cannot be written");
                }
            }
        });
        Ok(Log { policy, lines })
    }

    /// Takes note of a request and its answer, if the policy wants that.
    pub async fn record(&self, asked: Asked, seen: &Seen, answer: Result<u16, &ApiError>) {
        let policy = self.policy.as_ref();
        if policy.is_some_and(|policy| !policy.wants(&asked, seen.user.as_ref())) {
            return;
        }
        let line = asked.event(seen, answer, Timestamp::now()).to_string() + "\n";
        // It fails when the thread has panicked, which is in the server's own log.
        let _ = self.lines.send(line).await;
    }
}

/// What the pipeline finds out about a request on its way.
#[derive(Default)]
pub struct Seen {
    /// Who sent it.
    pub caller: Option<User>,
    /// Who it counts as: the caller, or whom that impersonates.
    pub user: Option<User>,
    /// What is remarked on it.
    pub warnings: std::sync::Arc<Warnings>,
}

/// A request as it came.
pub struct Asked {
    id: String,
    uri: Uri,
    verb: String,
    /// None: a path that is no object's.
    target: Option<ResourceRequest>,
    agent: String,
    source: Option<IpAddr>,
    received: Timestamp,
}

impl Asked {
    pub fn of<B>(request: &http::Request<B>, id: &str) -> Self {
        let (method, uri) = (request.method(), request.uri());
        let target = match request::target(method, uri, &Query::of(uri)) {
            Some(Target::Resource(target)) => Some(target),
            _ => None,
        };
        let agent = request.headers().get(header::USER_AGENT);
        Asked {
            id: id.to_owned(),
            uri: uri.clone(),
            verb: verb(method, target.as_ref()),
            target,
            agent: agent
                .map(|text| String::from_utf8_lossy(text.as_bytes()).into_owned())
                .unwrap_or_default(),
            source: request.extensions().get::<Source>().map(|source| source.0),
            received: Timestamp::now(),
        }
    }

    fn goes_on(&self) -> bool {
        self.target.as_ref().is_some_and(|target| {
            let streams = ["attach", "exec", "log", "portforward", "proxy"];
            target.verb == "watch" || streams.contains(&target.subresource.as_str())
        })
    }

    fn event(&self, seen: &Seen, answer: Result<u16, &ApiError>, now: Timestamp) -> Value {
        let caller = seen.caller.as_ref();
        let mut event = json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata", "auditID": self.id,
            "stage": if self.goes_on() && answer.is_ok() { "ResponseStarted" } else { "ResponseComplete" },
            "requestURI": self.uri.path_and_query().map_or("/", |both| both.as_str()),
            "verb": self.verb,
            "user": caller.map_or_else(|| json!({}), user),
            "sourceIPs": self.source.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "userAgent": self.agent,
            "responseStatus": match answer {
                Ok(code) => json!({"metadata": {}, "code": code}),
                Err(error) => json!({
                    "metadata": {}, "status": "Failure", "message": error.message, "reason": error.reason,
                    "code": error.code.as_u16(),
                }),
            },
            "requestReceivedTimestamp": time(self.received),
            "stageTimestamp": time(now),
            "annotations": seen.warnings.audited(),
        });
        if let Some(one) = seen.user.as_ref().filter(|one| Some(*one) != caller) {
            event["impersonatedUser"] = user(one);
        }
        if let Some(target) = &self.target {
            event["objectRef"] = json!({
                "resource": target.resource, "namespace": target.namespace, "name": target.name,
                "apiGroup": target.group, "apiVersion": target.version, "subresource": target.subresource,
            });
            if let Value::Object(reference) = &mut event["objectRef"] {
                reference.retain(|_, value| value != "");
            }
        }
        event
    }
}

fn verb(method: &Method, target: Option<&ResourceRequest>) -> String {
    let of_path = || method.as_str().to_ascii_lowercase();
    target.map_or_else(of_path, |target| target.verb.to_owned())
}

fn user(user: &User) -> Value {
    json!({"username": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra})
}

fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}
