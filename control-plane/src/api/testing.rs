//! A whole API server for tests, over an embedded store.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::apply::Manager;
use super::audit::Log;
use super::registry::{Call, Registry};
use super::{Api, KubeletClient, bootstrap, default_roles, index};
use crate::admission::service_ip::{Ranges, ServiceAddresses};
use crate::admission::{Admission, Warnings};
use crate::auth::pki::{Pki, PkiConfig};
use crate::auth::rbac::Policies;
use crate::auth::tokens::{Authority, Keys};
use crate::auth::{Authenticator, MASTERS, User};
use crate::resources;
use crate::store::Store;
use crate::store::cache::Cache;
use crate::store::embedded::Embedded;

/// The issuer of service accounts' tokens.
pub(crate) const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// The services' range.
pub(crate) const SERVICES: &str = "10.96.0.0/12";

/// Starts on what `dir` holds, with the system's objects in place.
pub(crate) async fn start(dir: &Path) -> (Arc<Api>, Pki) {
    start_with(dir, SERVICES).await
}

/// The same with the services in these ranges.
pub(crate) async fn start_with(dir: &Path, ranges: &str) -> (Arc<Api>, Pki) {
    let store: Arc<dyn Store> = Arc::new(Embedded::open(&dir.join("store")).expect("a store"));
    start_on(store, dir, ranges).await
}

/// The same on a store that other servers may have too; keys are in `dir`.
pub(crate) async fn start_on(store: Arc<dyn Store>, dir: &Path, ranges: &str) -> (Arc<Api>, Pki) {
    start_audited(store, dir, ranges, None).await
}

/// The same with an audit log.
pub(crate) async fn start_audited(
    store: Arc<dyn Store>,
    dir: &Path,
    ranges: &str,
    audit: Option<Log>,
) -> (Arc<Api>, Pki) {
    let ranges: Ranges = ranges.parse().expect("ranges");
    let config = PkiConfig {
        data_dir: dir.to_owned(),
        advertise: Ipv4Addr::LOCALHOST.into(),
        port: 6443,
        cluster_domain: "cluster.local".into(),
        hostname: String::new(),
    };
    let pki = Pki::open(&config, SystemTime::now()).expect("keys");
    let cache = Cache::start(store.clone(), index).await.expect("a cache");
    let addresses = ServiceAddresses::new(ranges.clone());
    addresses.follow(&cache).await.expect("services");
    let policies = Arc::new(Policies::default());
    let registry = Registry {
        admission: Admission::new(store.clone(), cache.clone(), addresses, policies.clone()),
        store,
        cache,
        policies,
    };
    let kubelet = KubeletClient::new(&pki.kubelet_client, pki.ca.certificate()).expect("a client");
    let advertised = "127.0.0.1:6443";
    let keys = Keys::open(&dir.join("pki")).expect("keys");
    let tokens = Arc::new(Authority::new(keys, ISSUER.to_owned()));
    let api = Api::new(
        registry,
        Authenticator::new(pki.join_token.clone(), tokens),
        kubelet,
        advertised.to_owned(),
        audit,
    );
    let servers = [advertised.parse().expect("an address")].into();
    bootstrap::ensure(&api.registry, &ranges, &servers)
        .await
        .expect("the system's objects");
    default_roles::ensure(&api.registry).await.expect("roles");
    let Registry {
        policies, cache, ..
    } = &api.registry;
    policies.follow(cache).await.expect("roles");
    // What a controller makes, and pods need.
    let kind = resources::find("", "v1", "serviceaccounts").expect("a kind");
    let user = User::authenticated("system:apiserver", [MASTERS.to_owned()]);
    let manager = Manager::server(kind);
    let warnings = Warnings::default();
    let call = Call {
        user: &user,
        kind,
        namespace: "default",
        dry_run: false,
        manager: &manager,
        warnings: &warnings,
    };
    let account = serde_json::json!({"metadata": {"name": "default"}});
    match api.registry.create(&call, account).await {
        Err(error) if error.reason != "AlreadyExists" => panic!("{error:?}"),
        _ => {}
    }
    (api, pki)
}
