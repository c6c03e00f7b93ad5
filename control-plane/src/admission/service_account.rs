//! Every pod has a service account.

use serde_json::{Value, json};

use super::{Operation, Review};

/// Names the account `default` where a new pod names none.
pub(super) fn default(review: &Review<'_>, object: &mut Value) {
    if review.operation != Operation::Create
        || !review.is("", "pods")
        || !object["spec"].is_object()
    {
        return;
    }
    let spec = &mut object["spec"];
    let named = spec["serviceAccountName"]
        .as_str()
        .filter(|n| !n.is_empty());
    let name = named
        .or(spec["serviceAccount"].as_str())
        .filter(|n| !n.is_empty())
        .unwrap_or("default")
        .to_owned();
    spec["serviceAccountName"] = json!(name);
    // The deprecated twin mirrors it.
    spec["serviceAccount"] = json!(name);
}
