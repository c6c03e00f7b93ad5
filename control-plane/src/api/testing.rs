//! A whole API server for tests, over an embedded store.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::registry::Registry;
use super::{Api, KubeletClient, bootstrap, index};
use crate::admission::Admission;
use crate::admission::service_ip::{Ranges, ServiceAddresses};
use crate::auth::Authenticator;
use crate::auth::pki::{Pki, PkiConfig};
use crate::store::Store;
use crate::store::cache::Cache;
use crate::store::embedded::Embedded;

/// The services' range.
pub(crate) const SERVICES: &str = "10.96.0.0/12";

/// Starts on what `dir` holds, with the system's objects in place.
pub(crate) async fn start(dir: &Path) -> (Arc<Api>, Pki) {
    start_with(dir, SERVICES).await
}

/// The same with the services in these ranges.
pub(crate) async fn start_with(dir: &Path, ranges: &str) -> (Arc<Api>, Pki) {
    let ranges: Ranges = ranges.parse().expect("ranges");
    let config = PkiConfig {
        data_dir: dir.to_owned(),
        advertise: Ipv4Addr::LOCALHOST.into(),
        port: 6443,
        cluster_domain: "cluster.local".into(),
        hostname: String::new(),
    };
    let pki = Pki::open(&config, SystemTime::now()).expect("keys");
    let store: Arc<dyn Store> = Arc::new(Embedded::open(&dir.join("store")).expect("a store"));
    let cache = Cache::start(store.clone(), index).await.expect("a cache");
    let addresses = ServiceAddresses::new(ranges.clone());
    addresses.follow(&cache).await.expect("services");
    let registry = Registry {
        admission: Admission::new(store.clone(), addresses),
        store,
        cache,
    };
    let kubelet = KubeletClient::new(&pki.kubelet_client, pki.ca.certificate()).expect("a client");
    let advertised = "127.0.0.1:6443";
    let api = Api::new(
        registry,
        Authenticator::new(pki.join_token.clone()),
        kubelet,
        advertised.to_owned(),
    );
    bootstrap::ensure(
        &api.registry,
        &ranges,
        advertised.parse().expect("an address"),
    )
    .await
    .expect("the system's objects");
    (api, pki)
}
