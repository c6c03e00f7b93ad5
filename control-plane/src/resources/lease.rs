//! Lease: a holder's sign of life.

use k8s_openapi::api::coordination::v1::Lease;
use serde_json::{Value, json};

use super::{Column, FieldError, Strategy, age, print, validate::Path};

impl Strategy for Lease {
    const SINGULAR: &'static str = "lease";
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::text("Holder", "Who holds the lease."),
        Column::AGE,
    ];

    fn row(&self, now: i64) -> Vec<Value> {
        let holder = self
            .spec
            .as_ref()
            .and_then(|spec| spec.holder_identity.clone())
            .unwrap_or_default();
        vec![
            json!(print::name(&self.metadata)),
            json!(holder),
            json!(age::of(&self.metadata, now)),
        ]
    }

    fn validate(&self, _old: Option<&Self>) -> Vec<FieldError> {
        let path = Path::new("spec");
        let Some(spec) = &self.spec else {
            return Vec::new();
        };
        let mut errors = Vec::new();
        if let Some(seconds) = spec.lease_duration_seconds.filter(|&seconds| seconds <= 0) {
            errors.push(
                path.child("leaseDurationSeconds")
                    .invalid(seconds, "must be greater than 0"),
            );
        }
        if let Some(count) = spec.lease_transitions.filter(|&count| count < 0) {
            errors.push(
                path.child("leaseTransitions")
                    .invalid(count, "must be greater than or equal to 0"),
            );
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_lasts_a_while() {
        let lease: Lease = serde_json::from_value(
            json!({ "spec": { "leaseDurationSeconds": 0, "leaseTransitions": -1 } }),
        )
        .unwrap();
        let errors: Vec<_> = Strategy::validate(&lease, None)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            errors,
            [
                "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
                "spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0",
            ]
        );
    }
}
