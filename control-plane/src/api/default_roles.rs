//! The default roles and bindings, kept in the store: what is missing is made, what was taken from them is given back.

use futures::future::try_join_all;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::apply::Manager;
use super::deletion::DeleteOptions;
use super::error::ApiError;
use super::registry::{Call, Registry, Through};
use crate::admission::Warnings;
use crate::auth::User;
use crate::auth::rbac::repair::{self, Repair};
use crate::auth::rbac::{self, defaults};
use crate::resources::{self, Strategy};
use crate::store::cache::Freshness;

const ATTEMPTS: usize = 8;

/// Brings all of them up to date, at once, so that they share flushes of the store. Namespaces are there by now.
pub async fn ensure(registry: &Registry) -> Result<(), ApiError> {
    let roles = defaults::cluster_roles();
    let bindings = defaults::cluster_role_bindings();
    let local = defaults::local_roles();
    let roles = roles.iter().map(|wanted| {
        ensure_one(registry, wanted, |there, wanted: &ClusterRole| {
            repair::cluster_role(there, wanted).map_or(Repair::Nothing, Repair::Update)
        })
    });
    let bindings = bindings
        .iter()
        .map(|wanted| ensure_one::<ClusterRoleBinding>(registry, wanted, repair::cluster_binding));
    let local = local.iter().map(async |(role, binding)| {
        ensure_one(registry, role, |there, wanted: &Role| {
            repair::role(there, wanted).map_or(Repair::Nothing, Repair::Update)
        })
        .await?;
        ensure_one::<RoleBinding>(registry, binding, repair::binding).await
    });
    futures::try_join!(
        try_join_all(roles),
        try_join_all(bindings),
        try_join_all(local)
    )?;
    Ok(())
}

/// Tries anew where another API server changes the same at the same time.
async fn ensure_one<T>(
    registry: &Registry,
    wanted: &T,
    decide: impl Fn(&T, &T) -> Repair<T>,
) -> Result<(), ApiError>
where
    T: Strategy + Serialize + DeserializeOwned,
{
    let mut outcome = Ok(());
    for _ in 0..ATTEMPTS {
        outcome = try_one(registry, wanted, &decide).await;
        match &outcome {
            Err(error) if ["AlreadyExists", "Conflict"].contains(&error.reason) => {}
            _ => break,
        }
    }
    outcome
}

async fn try_one<T>(
    registry: &Registry,
    wanted: &T,
    decide: impl Fn(&T, &T) -> Repair<T>,
) -> Result<(), ApiError>
where
    T: Strategy + Serialize + DeserializeOwned,
{
    let kind =
        resources::find(rbac::GROUP, "v1", T::URL_PATH_SEGMENT).ok_or_else(ApiError::no_route)?;
    let user = User::api_server();
    let metadata = wanted.metadata();
    let manager = Manager::server(kind);
    let warnings = Warnings::default();
    let call = Call {
        user: &user,
        kind,
        namespace: metadata.namespace.as_deref().unwrap_or_default(),
        dry_run: false,
        manager: &manager,
        warnings: &warnings,
    };
    let name = metadata.name.as_deref().unwrap_or_default();
    let read = registry.get(kind, call.namespace, name, Freshness::Latest);
    let there: Option<T> = match read.await {
        Ok(object) => Some(serde_json::from_slice(&object.json).map_err(ApiError::internal)?),
        Err(error) if error.reason == "NotFound" => None,
        Err(error) => return Err(error),
    };
    match there.map(|there| decide(&there, wanted)) {
        Some(Repair::Nothing) => return Ok(()),
        Some(Repair::Update(new)) => {
            let new = serde_json::to_value(new).map_err(ApiError::internal)?;
            let changed = |_: &Value| Ok(new.clone());
            registry.update(&call, name, Through::Main, changed).await?;
            return Ok(());
        }
        Some(Repair::Replace) => {
            registry
                .delete(&call, name, &DeleteOptions::default())
                .await?;
        }
        None => {}
    }
    let new = serde_json::to_value(wanted).map_err(ApiError::internal)?;
    registry.create(&call, new).await.map(|_| ())
}
