//! A certificate signing request says who sent it; only the server knows.

use serde_json::{Value, json};

use super::{Operation, Review};
use crate::auth::SAME_MACHINE;

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
        spec.shift_remove("uid");
        spec.shift_remove("extra");
        if review.user.same_machine {
            spec.insert("extra".to_owned(), json!({ SAME_MACHINE: ["true"] }));
        }
    }
}
