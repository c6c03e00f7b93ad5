//! ServiceAccount.

use k8s_openapi::api::core::v1::ServiceAccount;
use serde_json::{Value, json};

use super::{Column, Strategy, Subresource, age, print};

impl Strategy for ServiceAccount {
    const SINGULAR: &'static str = "serviceaccount";
    const SHORT_NAMES: &'static [&'static str] = &["sa"];
    const SUBRESOURCES: &'static [Subresource] = &[Subresource::Token];
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::text(
            "Secrets",
            "How many secrets pods with this account may use.",
        ),
        Column::AGE,
    ];

    fn row(&self, now: i64) -> Vec<Value> {
        let secrets = self.secrets.as_ref().map_or(0, Vec::len);
        vec![
            json!(print::name(&self.metadata)),
            json!(secrets),
            json!(age::of(&self.metadata, now)),
        ]
    }
}
