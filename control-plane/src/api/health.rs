//! `/healthz`, `/livez` and `/readyz`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::response::{IntoResponse, Response};
use http::{StatusCode, Uri, header};
use tokio::sync::Mutex;

use super::Api;
use super::request::{self, Query};
use crate::store::Store;

/// How long the store's last answer is good.
const FRESH: Duration = Duration::from_secs(1);

/// What the process knows about itself.
#[derive(Debug, Default)]
pub struct Health {
    ready: AtomicBool,
    stopping: AtomicBool,
    elects: AtomicBool,
    /// What the store last answered, and when.
    store: Mutex<Option<(Instant, Result<(), &'static str>)>>,
}

impl Health {
    /// The objects that every cluster has are there, and the listener is open.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    /// No new requests, please.
    pub fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Scheduler and controllers run where their Leases are held, which may be elsewhere.
    pub fn set_elects(&self) {
        self.elects.store(true, Ordering::Relaxed);
    }

    pub(super) fn elects(&self) -> bool {
        self.elects.load(Ordering::Relaxed)
    }

    /// Whether the store answers. However many ask, it is asked once at a time.
    pub(super) async fn of_store(&self, store: &dyn Store) -> Result<(), &'static str> {
        let mut last = self.store.lock().await;
        if let Some((at, answer)) = *last
            && at.elapsed() < FRESH
        {
            return answer;
        }
        let answer = match store.revision().await {
            Ok(_) => Ok(()),
            Err(_) => Err("the store does not answer"),
        };
        *last = Some((Instant::now(), answer));
        answer
    }
}

/// One check: its name and what is wrong.
type Check = (&'static str, Result<(), &'static str>);

/// Answers one of the three paths. The store's check has upstream's name, which load balancers' checks exclude.
pub(super) async fn answer(api: &Api, uri: &Uri, query: &Query) -> Response {
    let path = uri.path();
    let store = api.health.of_store(&*api.registry.store).await;
    let mut checks: Vec<Check> = vec![("ping", Ok(())), ("etcd", store)];
    if path.starts_with("/readyz") {
        let ready = api.health.ready.load(Ordering::Relaxed);
        checks.push((
            "start",
            ready
                .then_some(())
                .ok_or("the server has not finished starting"),
        ));
        let stopping = api.health.stopping.load(Ordering::Relaxed);
        checks.push((
            "shutdown",
            (!stopping).then_some(()).ok_or("the server is stopping"),
        ));
    }
    if let Some(one) = path.splitn(3, '/').nth(2).filter(|one| !one.is_empty()) {
        checks.retain(|(name, _)| *name == one);
        if checks.is_empty() {
            return plain(StatusCode::NOT_FOUND, "404 page not found\n".to_owned());
        }
    }
    let excluded: Vec<String> = request::pairs(uri)
        .filter_map(|(name, value)| (name == "exclude").then_some(value))
        .collect();
    let is_excluded = |name: &str| excluded.iter().any(|one| one == name);
    for (_, result) in checks.iter_mut().filter(|(name, _)| is_excluded(name)) {
        *result = Ok(());
    }
    let healthy = checks.iter().all(|(_, result)| result.is_ok());
    if healthy && !query.has("verbose") {
        return plain(StatusCode::OK, "ok".to_owned());
    }
    let name = path
        .trim_start_matches('/')
        .split('/')
        .next()
        .unwrap_or_default();
    let mut text: String = checks
        .iter()
        .map(|(check, result)| match result {
            Ok(()) if is_excluded(check) => format!("[+]{check} excluded: ok\n"),
            Ok(()) => format!("[+]{check} ok\n"),
            Err(why) => format!("[-]{check} failed: {why}\n"),
        })
        .collect();
    text.push_str(&format!(
        "{name} check {}\n",
        if healthy { "passed" } else { "failed" }
    ));
    plain(
        if healthy {
            StatusCode::OK
        } else {
            StatusCode::INTERNAL_SERVER_ERROR
        },
        text,
    )
}

pub(super) fn plain(code: StatusCode, text: String) -> Response {
    (
        code,
        [(header::CONTENT_TYPE, "text/plain; charset=utf-8")],
        text,
    )
        .into_response()
}
