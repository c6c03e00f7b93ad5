//! CertificateSigningRequests: nodes' are approved or denied by the signers' rules; what is approved is signed, and old ones
//! are removed.

mod decide;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, PostParams};
use tracing::{info, warn};

use self::decide::{Step, condition, decide, request_of};
use super::Context;
use super::cache::Key;
use super::driver::{Result, queue};
use crate::auth::NODE_USER_PREFIX;
use crate::auth::csr::{Names, Refusal, SigningRequest};

/// Signs a request that was approved; gives the certificate's PEM. [`crate::auth::csr::sign_csr`] with the cluster's CA.
pub type Signer = Arc<
    dyn Fn(&SigningRequest<'_>, SystemTime) -> std::result::Result<String, Refusal> + Send + Sync,
>;

const WORKERS: usize = 4;

/// Registers with the caches; the returned future works until shutdown.
pub(super) fn start(context: &Context) -> impl Future<Output = ()> + use<> {
    let (keys, wakeups) = queue();
    let queue = keys.clone();
    context.caches.csrs.on_change(move |_, new| {
        if let Some(csr) = new {
            queue.add(Key::of(&**csr));
        }
    });
    let (queue, caches) = (keys, context.caches.clone());
    context.caches.nodes.on_change(move |old, new| {
        // A serving certificate may have waited for the node's addresses.
        let Some(node) = new.filter(|new| old.is_none_or(|old| addresses(old) != addresses(new)))
        else {
            return;
        };
        let user = format!("{NODE_USER_PREFIX}{}", Key::of(&**node).name);
        for csr in caches
            .csrs
            .list()
            .into_iter()
            .filter(|csr| csr.spec.username.as_ref() == Some(&user))
        {
            queue.add(Key::of(&*csr));
        }
    });
    context
        .clone()
        .drive("certificates", wakeups, WORKERS, reconcile)
}

fn addresses(node: &k8s_openapi::api::core::v1::Node) -> Vec<String> {
    let addresses = node
        .status
        .iter()
        .flat_map(|status| status.addresses.iter().flatten());
    addresses.map(|address| address.address.clone()).collect()
}

async fn reconcile(context: &Context, key: &Key) -> Result<Option<Duration>> {
    let Some(csr) = context.caches.csrs.get(key) else {
        return Ok(None);
    };
    let asking = csr
        .spec
        .username
        .as_deref()
        .and_then(|user| user.strip_prefix(NODE_USER_PREFIX));
    let node = asking.and_then(|name| context.caches.nodes.get(&Key::new("", name)));
    let own = node.as_deref().map(addresses).unwrap_or_default();
    let nodes = context.caches.nodes.list();
    let others = nodes
        .iter()
        .filter(|other| other.metadata.name.as_deref() != asking)
        .flat_map(|other| {
            other
                .metadata
                .name
                .clone()
                .into_iter()
                .chain(addresses(other))
        })
        .collect::<Vec<_>>();
    let names = Names {
        own: &own,
        others: &others,
        reserved: &context.config.reserved,
    };
    let now = Timestamp::now();
    let api: Api<CertificateSigningRequest> = Api::all(context.client.clone());
    match decide(&csr, &names, now) {
        Step::Wait(delay) => Ok(Some(delay)),
        Step::Remove => {
            api.delete(&key.name, &DeleteParams::default()).await?;
            Ok(None)
        }
        Step::Deny(reason) => {
            info!(request = key.name, reason, "certificate denied");
            judge(&api, &csr, condition("Denied", "NotAllowed", reason, now)).await?;
            Ok(None)
        }
        Step::Approve => {
            let message = "Auto approving kubelet certificate".to_owned();
            let approved = judge(
                &api,
                &csr,
                condition("Approved", "AutoApproved", message, now),
            )
            .await?;
            sign(context, &api, approved, now).await
        }
        Step::Sign => sign(context, &api, (*csr).clone(), now).await,
    }
}

async fn judge(
    api: &Api<CertificateSigningRequest>,
    csr: &CertificateSigningRequest,
    verdict: k8s_openapi::api::certificates::v1::CertificateSigningRequestCondition,
) -> Result<CertificateSigningRequest> {
    let mut csr = csr.clone();
    csr.status
        .get_or_insert_default()
        .conditions
        .get_or_insert_default()
        .push(verdict);
    let name = csr.metadata.name.clone().unwrap_or_default();
    Ok(api
        .replace_subresource("approval", &name, &PostParams::default(), &csr)
        .await?)
}

async fn sign(
    context: &Context,
    api: &Api<CertificateSigningRequest>,
    mut csr: CertificateSigningRequest,
    now: Timestamp,
) -> Result<Option<Duration>> {
    let pem = String::from_utf8_lossy(&csr.spec.request.0).into_owned();
    let outcome = (context.config.signer)(&request_of(&csr, &pem), SystemTime::now());
    let status = csr.status.get_or_insert_default();
    match outcome {
        Ok(certificate) => status.certificate = Some(ByteString(certificate.into_bytes())),
        Err(refusal) => {
            warn!(request = csr.metadata.name, %refusal, "an approved certificate cannot be signed");
            let failed = condition(
                "Failed",
                "SignerValidationFailure",
                refusal.to_string(),
                now,
            );
            status.conditions.get_or_insert_default().push(failed);
        }
    }
    let name = csr.metadata.name.clone().unwrap_or_default();
    api.replace_status(&name, &PostParams::default(), &csr)
        .await?;
    Ok(None)
}
