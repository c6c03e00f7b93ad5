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
