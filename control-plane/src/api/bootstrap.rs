//! What every cluster has from its first start: the system's namespaces, and the service `kubernetes` with this server
//! behind it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::{Value, json};

use super::deletion::DeleteOptions;
use super::error::ApiError;
use super::registry::{Call, Registry, Through};
use crate::auth::{MASTERS, User};
use crate::resources::validate::is_plain;
use crate::resources::{self, Family};

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
/// What somebody deleted or changed is as it should be again after this, as upstream.
const EVERY: Duration = Duration::from_secs(10);

/// Calls [`ensure`] again and again.
pub async fn keep(registry: &Registry, service_ip: IpAddr, advertised: SocketAddr) {
    loop {
        tokio::time::sleep(EVERY).await;
        if let Err(error) = ensure(registry, service_ip, advertised).await {
            tracing::warn!(error = error.message, "cannot keep the system's objects");
        }
    }
}

/// Makes what is missing and mends what names another address than `advertised`. One that no other machine reaches is no
/// endpoint: the service `kubernetes` has none then.
pub async fn ensure(
    registry: &Registry,
    service_ip: IpAddr,
    advertised: SocketAddr,
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
    let (address, port) = (advertised.ip(), advertised.port());
    let (mut subsets, mut members) = (json!([]), json!([]));
    if is_plain(address) {
        let ports = [json!({"name": "https", "port": port, "protocol": "TCP"})];
        subsets = json!([{"addresses": [{"ip": address}], "ports": ports}]);
        members = json!([{"addresses": [address], "conditions": {"ready": true}}]);
    }
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let service = json!({
        "metadata": {"name": "kubernetes", "labels": labels},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": service_ip.to_string(),
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
        "addressType": Family::of(address).as_str(),
        "endpoints": members,
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    });
    ensure_object(registry, ("", "services"), "default", &service).await?;
    ensure_object(registry, ("", "endpoints"), "default", &endpoints).await?;
    ensure_object(
        registry,
        ("discovery.k8s.io", "endpointslices"),
        "default",
        &slice,
    )
    .await
}

/// Brings what the object is to say up to date; creates it if it is not there.
async fn ensure_object(
    registry: &Registry,
    (group, plural): (&str, &str),
    namespace: &str,
    wanted: &Value,
) -> Result<(), ApiError> {
    let kind = resources::find(group, "v1", plural).ok_or_else(ApiError::no_route)?;
    let user = User::authenticated("system:apiserver", [MASTERS.to_owned()]);
    let call = Call {
        user: &user,
        kind,
        namespace,
        dry_run: false,
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
    registry.create(&call, object).await.map(|_| ())
}
