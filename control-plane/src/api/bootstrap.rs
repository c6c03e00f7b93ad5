//! What every cluster has from its first start: the system's namespaces and priority classes, the default roles, and the
//! service `kubernetes` with the API servers behind it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::apply::Manager;
use super::deletion::DeleteOptions;
use super::error::ApiError;
use super::peers::Peers;
use super::registry::{Call, Registry, Through};
use crate::admission::Warnings;
use crate::admission::service_ip::Ranges;
use crate::auth::{MASTERS, User};
use crate::resources::priorityclass;
use crate::resources::validate::is_plain;
use crate::resources::{self, Family, Kind};
use crate::store::cache::Freshness;

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
/// What somebody deleted or changed is as it should be again after this, as upstream.
const EVERY: Duration = Duration::from_secs(10);

/// The addresses of the stored service `kubernetes`; none before the first start. It keeps them whatever ranges the cluster
/// has later.
pub async fn stored_addresses(registry: &Registry) -> Result<BTreeSet<IpAddr>, ApiError> {
    let kind = kind("", "services")?;
    let read = registry.get(kind, "default", "kubernetes", Freshness::Latest);
    let service: Value = match read.await {
        Ok(object) => serde_json::from_slice(&object.json).map_err(ApiError::internal)?,
        Err(error) if error.reason == "NotFound" => return Ok(BTreeSet::new()),
        Err(error) => return Err(error),
    };
    let ips = service["spec"]["clusterIPs"].as_array();
    let ips = ips.into_iter().flatten().filter_map(Value::as_str);
    Ok(ips.filter_map(|ip| ip.parse().ok()).collect())
}

/// What no longer goes together since the ranges or the server's address changed, in words. `stored` are the addresses
/// that the service `kubernetes` was made with.
pub fn leftovers(stored: &BTreeSet<IpAddr>, ranges: &Ranges, advertised: IpAddr) -> Vec<String> {
    let (mut found, server) = (Vec::new(), Family::of(advertised));
    if let Some(address) = without_range(stored, ranges) {
        found.push(format!(
            "the service kubernetes keeps {address}, and --service-cidr has no range of its family any more: it is left as it is"
        ));
    }
    if !stored.is_empty() && !stored.iter().any(|ip| Family::of(*ip) == server) {
        found.push(format!(
            "the service kubernetes has no address of {}, as this server's address {advertised} is: pods do not reach it by the service; delete the service to have it made anew",
            server.as_str(),
        ));
    }
    found
}

/// One of the addresses whose family the cluster no longer gives out.
fn without_range<'a>(addresses: &'a BTreeSet<IpAddr>, ranges: &Ranges) -> Option<&'a IpAddr> {
    let mut addresses = addresses.iter();
    addresses.find(|address| ranges.of(Family::of(**address)).is_none())
}

/// Calls [`ensure`] again and again. `peers` is None where the store is this server's alone.
pub async fn keep(
    registry: &Registry,
    ranges: &Ranges,
    advertised: SocketAddr,
    mut peers: Option<&mut Peers>,
) {
    loop {
        tokio::time::sleep(EVERY).await;
        let servers = peers.as_deref_mut();
        if let Err(error) = keep_once(registry, ranges, advertised, servers).await {
            tracing::warn!(error = error.message, "cannot keep the system's objects");
        }
    }
}

/// One look at everything. A Lease of this server's is made once its namespace is there.
pub async fn keep_once(
    registry: &Registry,
    ranges: &Ranges,
    advertised: SocketAddr,
    peers: Option<&mut Peers>,
) -> Result<(), ApiError> {
    let Some(peers) = peers else {
        return ensure(registry, ranges, &[advertised].into()).await;
    };
    let servers = peers.look(registry, Instant::now()).await?;
    ensure(registry, ranges, &servers).await?;
    peers.renew(registry).await
}

/// What is left to the others when this server ends.
pub async fn leave(registry: &Registry, ranges: &Ranges, mut peers: Peers) -> Result<(), ApiError> {
    peers.leave(registry).await?;
    let servers = peers.others(registry, Instant::now()).await?;
    if servers.is_empty() {
        return Ok(());
    }
    ensure(registry, ranges, &servers).await
}

/// Makes what is missing and mends what names other addresses than `servers`. One that no other machine reaches is no
/// endpoint: the service `kubernetes` has none then. A service `kubernetes` of a family that `ranges` have no more stays as
/// it is, as no such service can be written.
pub async fn ensure(
    registry: &Registry,
    ranges: &Ranges,
    servers: &BTreeSet<SocketAddr>,
) -> Result<(), ApiError> {
    for name in NAMESPACES {
        ensure_object(
            registry,
            ("", "namespaces"),
            "",
            &json!({"metadata": {"name": name}}),
        )
        .await?;
    }
    for class in priorityclass::system() {
        let wanted = serde_json::to_value(class).map_err(ApiError::internal)?;
        let place = ("scheduling.k8s.io", "priorityclasses");
        ensure_object(registry, place, "", &wanted).await?;
    }
    let Some(first) = servers.first() else {
        return Ok(());
    };
    let (family, port) = (Family::of(first.ip()), first.port());
    let plain: Vec<IpAddr> = servers
        .iter()
        .map(SocketAddr::ip)
        .filter(|address| is_plain(*address))
        .collect();
    let (mut subsets, mut members) = (json!([]), json!([]));
    if !plain.is_empty() {
        let ports = [json!({"name": "https", "port": port, "protocol": "TCP"})];
        let addresses: Vec<Value> = plain.iter().map(|ip| json!({"ip": ip})).collect();
        subsets = json!([{"addresses": addresses, "ports": ports}]);
        let ready = |ip| json!({"addresses": [ip], "conditions": {"ready": true}});
        members = plain.iter().map(ready).collect();
    }
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let service = json!({
        "metadata": {"name": "kubernetes", "labels": labels},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": ranges.first_address().to_string(),
            "sessionAffinity": "None",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}],
        },
    });
    let endpoints = json!({
        "metadata": {"name": "kubernetes", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": subsets,
    });
    let slice = json!({
        "metadata": {"name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": family.as_str(),
        "endpoints": members,
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    });
    let stored = stored_addresses(registry).await?;
    if without_range(&stored, ranges).is_none() {
        ensure_object(registry, ("", "services"), "default", &service).await?;
    }
    ensure_object(registry, ("", "endpoints"), "default", &endpoints).await?;
    ensure_object(
        registry,
        ("discovery.k8s.io", "endpointslices"),
        "default",
        &slice,
    )
    .await
}

fn kind(group: &str, plural: &str) -> Result<&'static Kind, ApiError> {
    resources::find(group, "v1", plural).ok_or_else(ApiError::no_route)
}

/// Brings what the object is to say up to date; creates it if it is not there.
async fn ensure_object(
    registry: &Registry,
    (group, plural): (&str, &str),
    namespace: &str,
    wanted: &Value,
) -> Result<(), ApiError> {
    let kind = kind(group, plural)?;
    let user = User::authenticated("system:apiserver", [MASTERS.to_owned()]);
    let manager = Manager::server(kind);
    let warnings = Warnings::default();
    let call = Call {
        user: &user,
        kind,
        namespace,
        dry_run: false,
        manager: &manager,
        warnings: &warnings,
    };
    let name = wanted["metadata"]["name"].as_str().unwrap_or_default();
    let update = |old: &Value| {
        let mut new = old.clone();
        // A service's address stays what it was made with.
        let fields = wanted
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(field, _)| *field != "metadata");
        for (field, value) in fields {
            match (value, new.get_mut(field)) {
                (Value::Object(value), Some(Value::Object(there))) => {
                    there.extend(
                        value
                            .iter()
                            .filter(|(k, _)| *k != "clusterIP")
                            .map(|(k, v)| (k.clone(), v.clone())),
                    );
                }
                _ => new[field] = value.clone(),
            }
        }
        Ok((kind.decode)(new).map_err(ApiError::internal)?.0)
    };
    // First the update: a new service `kubernetes` would ask for the address that the present one has.
    match registry.update(&call, name, Through::Main, update).await {
        Ok(_) => return Ok(()),
        Err(error) if error.reason == "NotFound" => {}
        // The server's address may be of another family now, which a slice cannot become.
        Err(error) if error.reason == "Invalid" && plural == "endpointslices" => {
            let options = DeleteOptions::default();
            registry.delete(&call, name, &options).await?;
        }
        Err(error) => return Err(error),
    }
    let (object, _) = (kind.decode)(wanted.clone()).map_err(ApiError::internal)?;
    match registry.create(&call, object).await {
        // Another API server made it in between; what it lacks is mended at the next look.
        Err(error) if error.reason == "AlreadyExists" => Ok(()),
        outcome => outcome.map(drop),
    }
}
