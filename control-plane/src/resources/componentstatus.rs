//! ComponentStatus: whether a part of the control plane is well, deprecated and asked for all the same. It is not stored:
//! `api::components` says what there is.

use k8s_openapi::api::core::v1::ComponentStatus;
use serde_json::{Value, json};

use super::{Column, Strategy, print};

impl Strategy for ComponentStatus {
    const SINGULAR: &'static str = "componentstatus";
    const SHORT_NAMES: &'static [&'static str] = &["cs"];
    const NAMESPACED: bool = false;
    const COMPUTED: bool = true;
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::text("Status", "Whether the component is healthy."),
        Column::text("Message", "What it says of itself."),
        Column::text("Error", "What is wrong with it."),
    ];

    fn row(&self, _now: i64) -> Vec<Value> {
        let mut conditions = self.conditions.iter().flatten();
        let healthy = conditions.find(|condition| condition.type_ == "Healthy");
        let status = match healthy.map(|condition| &*condition.status) {
            Some("True") => "Healthy",
            Some("False") => "Unhealthy",
            _ => "Unknown",
        };
        let message = healthy.and_then(|condition| condition.message.as_deref());
        let error = healthy.and_then(|condition| condition.error.as_deref());
        vec![
            json!(print::name(&self.metadata)),
            json!(status),
            json!(message.unwrap_or_default()),
            json!(error.unwrap_or_default()),
        ]
    }
}
