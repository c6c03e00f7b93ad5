//! A certificate signing request says who sent it; only the server knows. None may make an administrator, and each is approved
//! and signed by those who may for its signer.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::{Operation, Review};
use crate::api::error::ApiError;
use crate::api::meta;
use crate::auth::csr::{CLIENT_SIGNER, Refusal, SigningRequest, asks_for_masters};
use crate::auth::rbac::Policy;
use crate::auth::{self, Attributes, SAME_MACHINE};
use crate::resources::validate::Path;

const GROUP: &str = "certificates.k8s.io";

/// Writes the caller's identity into a new request, whatever the caller claimed.
pub(super) fn identify(review: &Review<'_>, object: &mut Value) {
    if review.operation != Operation::Create || !review.is(GROUP, "certificatesigningrequests") {
        return;
    }
    if let Some(spec) = object["spec"].as_object_mut() {
        spec.insert("username".to_owned(), json!(review.user.name));
        spec.insert("groups".to_owned(), json!(review.user.groups));
        spec.insert("uid".to_owned(), json!(review.user.uid));
        let mut extra = review.user.extra.clone();
        extra.remove(SAME_MACHINE);
        if review.user.same_machine {
            extra.insert(SAME_MACHINE.to_owned(), vec!["true".to_owned()]);
        }
        spec.insert("extra".to_owned(), json!(extra));
        for (field, empty) in [
            ("uid", review.user.uid.is_empty()),
            ("extra", extra.is_empty()),
        ] {
            if empty {
                spec.shift_remove(field);
            }
        }
    }
}

/// Refuses what upstream's admission plugin CertificateSubjectRestriction refuses.
pub(super) fn restrict(review: &Review<'_>, object: &Value) -> Result<(), ApiError> {
    let of_client = object["spec"]["signerName"] == CLIENT_SIGNER;
    if review.operation != Operation::Create
        || !review.is(GROUP, "certificatesigningrequests")
        || !of_client
    {
        return Ok(());
    }
    let request = object["spec"]["request"].as_str().unwrap_or_default();
    let pem = BASE64_STANDARD.decode(request).unwrap_or_default();
    let request = SigningRequest {
        pem: &String::from_utf8_lossy(&pem),
        signer: CLIENT_SIGNER,
        usages: &[],
        expiration_seconds: None,
    };
    if asks_for_masters(&request) {
        return Err(ApiError::forbidden(
            review.kind.group,
            review.kind.plural,
            meta::text(object, "name"),
            &Refusal::Masters.to_string(),
        ));
    }
    Ok(())
}

/// Refuses what upstream's admission plugins CertificateApproval and CertificateSigning refuse, and a verdict that goes through
/// `status`, where no right to approve is asked for.
pub(super) fn decide(
    review: &Review<'_>,
    object: &Value,
    old: Option<&Value>,
    policy: &Policy,
) -> Result<(), ApiError> {
    let (Operation::Update, Some(old)) = (review.operation, old) else {
        return Ok(());
    };
    if !review.is(GROUP, "certificatesigningrequests") {
        return Ok(());
    }
    let changes = |field: &str| object["status"][field] != old["status"][field];
    let verb = match review.subresource {
        "approval" => "approve",
        "status" if changes("certificate") || changes("conditions") => "sign",
        _ => return Ok(()),
    };
    let signer = old["spec"]["signerName"].as_str().unwrap_or_default();
    let name = meta::text(old, "name");
    if !may(review, verb, signer, policy) {
        let why = format!("user not permitted to {verb} requests with signerName {signer:?}");
        let (group, plural) = (review.kind.group, review.kind.plural);
        return Err(ApiError::forbidden(group, plural, name, &why));
    }
    let has = |object: &Value, kind: &str| {
        let mut conditions = object["status"]["conditions"].as_array().into_iter();
        conditions.any(|all| all.iter().any(|condition| condition["type"] == kind))
    };
    let verdict = ["Approved", "Denied"]
        .into_iter()
        .find(|kind| has(object, kind) && !has(old, kind));
    if let ("status", Some(kind)) = (review.subresource, verdict) {
        let path = Path::new("status").child("conditions");
        let error = path.forbidden(format!("updates may not add a condition of type {kind:?}"));
        return Err(ApiError::invalid(GROUP, review.kind.kind, name, &[error]));
    }
    Ok(())
}

/// Whether the user may do that for the signer, or for all of the signer's domain.
fn may(review: &Review<'_>, verb: &str, signer: &str, policy: &Policy) -> bool {
    let domain = signer.split('/').next().unwrap_or_default();
    [signer, &format!("{domain}/*")].into_iter().any(|name| {
        let attributes = Attributes {
            verb,
            group: GROUP,
            resource: "signers",
            name,
            ..Attributes::default()
        };
        auth::authorize(policy, review.user, &attributes).is_allowed()
    })
}
