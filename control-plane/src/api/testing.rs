//! A whole API server for tests, over an embedded store.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::registry::Registry;
use super::{Api, KubeletClient, bootstrap, index};
use crate::admission::Admission;
use crate::admission::service_ip::ServiceAddresses;
use crate::auth::Authenticator;
use crate::auth::pki::{Pki, PkiConfig};
use crate::store::Store;
use crate::store::cache::Cache;
use crate::store::embedded::Embedded;

/// Starts on what `dir` holds, with the system's objects in place.
pub(crate) async fn start(dir: &Path) -> (Arc<Api>, Pki) {
    let config = PkiConfig {
        data_dir: dir.to_owned(),
        advertise: Ipv4Addr::LOCALHOST.into(),
        port: 6443,
        service_ip: Ipv4Addr::new(10, 96, 0, 1).into(),
        cluster_domain: "cluster.local".into(),
        hostname: String::new(),
    };
    let pki = Pki::open(&config, SystemTime::now()).expect("keys");
    let store: Arc<dyn Store> = Arc::new(Embedded::open(&dir.join("store")).expect("a store"));
    let cache = Cache::start(store.clone(), index).await.expect("a cache");
    let addresses = ServiceAddresses::new("10.96.0.0/12".parse().expect("a range"));
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
        config.service_ip,
        advertised.parse().expect("an address"),
    )
    .await
    .expect("the system's objects");
    (api, pki)
}
