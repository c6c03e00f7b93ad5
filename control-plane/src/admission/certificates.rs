//! A certificate signing request says who sent it; only the server knows. And none may make an administrator.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::{Operation, Review};
use crate::api::error::ApiError;
use crate::api::meta;
use crate::auth::SAME_MACHINE;
use crate::auth::csr::{CLIENT_SIGNER, Refusal, SigningRequest, asks_for_masters};

/// Writes the caller's identity into a new request, whatever the caller claimed.
pub(super) fn identify(review: &Review<'_>, object: &mut Value) {
    if review.operation != Operation::Create
        || !review.is("certificates.k8s.io", "certificatesigningrequests")
    {
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
        || !review.is("certificates.k8s.io", "certificatesigningrequests")
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
