//! ResourceQuota: how much the objects of a namespace may take together.

pub mod scopes;
pub mod usage;

use k8s_openapi::api::core::v1::{ResourceQuota, ResourceQuotaStatus};
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, Subresource, age, print,
    quantity::{self, Amounts, Quantity},
    validate::{FIELD_IS_IMMUTABLE, Path, resource_names},
};

impl Strategy for ResourceQuota {
    const SINGULAR: &'static str = "resourcequota";
    const SHORT_NAMES: &'static [&'static str] = &["quota"];
    const SUBRESOURCES: &'static [Subresource] = &[Subresource::Status];
    const RETURNS_DELETED_OBJECT: bool = true;
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::text("Request", "What is used, of how much there may be."),
        Column::text("Limit", "The same of containers' limits."),
        Column::AGE,
    ];

    fn row(&self, now: i64) -> Vec<Value> {
        let status = self.status.clone().unwrap_or_default();
        let (mut requests, mut limits) = (Vec::new(), Vec::new());
        for (name, hard) in status.hard.iter().flatten() {
            let used = status.used.as_ref().and_then(|used| used.get(name));
            let used = used.map_or("0", |used| used.0.as_str());
            let column = match name.starts_with("limits.") {
                true => &mut limits,
                false => &mut requests,
            };
            column.push(format!("{name}: {used}/{}", hard.0));
        }
        vec![
            json!(print::name(&self.metadata)),
            json!(requests.join(", ")),
            json!(limits.join(", ")),
            json!(age::of(&self.metadata, now)),
        ]
    }

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        quantity::canonicalize(spec.hard.as_mut());
        if let Some(status) = &mut self.status {
            quantity::canonicalize(status.hard.as_mut());
            quantity::canonicalize(status.used.as_mut());
        }
    }

    fn prepare_create(&mut self) {
        self.status = Some(ResourceQuotaStatus::default());
    }

    fn prepare_update(&mut self, old: &Self) {
        self.status = old.status.clone();
    }

    fn prepare_status(&mut self, old: &Self) {
        self.spec = old.spec.clone();
    }

    fn validate(&self, old: Option<&Self>) -> Vec<FieldError> {
        let path = Path::new("spec");
        let spec = self.spec.clone().unwrap_or_default();
        let mut errors = amounts(&path.child("hard"), spec.hard.as_ref());
        errors.extend(scopes::errors(&path, &spec));
        let status = self.status.clone().unwrap_or_default();
        let at = Path::new("status");
        errors.extend(amounts(&at.child("hard"), status.hard.as_ref()));
        errors.extend(amounts(&at.child("used"), status.used.as_ref()));
        if let Some(old) = old {
            let sorted = |scopes: &Option<Vec<String>>| {
                let mut scopes = scopes.clone().unwrap_or_default();
                scopes.sort();
                scopes.dedup();
                scopes
            };
            let old = old.spec.clone().unwrap_or_default();
            if sorted(&spec.scopes) != sorted(&old.scopes) {
                let path = path.child("scopes");
                errors.push(path.invalid(json!(spec.scopes), FIELD_IS_IMMUTABLE));
            }
        }
        errors
    }
}

fn amounts(path: &Path, amounts: Option<&Amounts>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (name, amount) in amounts.into_iter().flatten() {
        let path = path.key(name);
        errors.extend(path.invalid_all(name, resource_names::of_quota(name)));
        let counted = resource_names::is_counted(name) || name.starts_with("count/");
        let whole = amount.0.parse::<Quantity>().map_or(true, |q| q.is_whole());
        if counted && !whole {
            errors.push(path.invalid(amount.0.as_str(), "must be an integer"));
        }
    }
    errors.extend(quantity::errors(path, amounts));
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(value: Value) -> ResourceQuota {
        let mut quota: ResourceQuota = serde_json::from_value(value).unwrap();
        quota.set_defaults();
        quota
    }

    #[test]
    fn what_is_counted_is_whole_and_known() {
        let quota = quota(json!({"spec": {"hard": {
            "pods": "1500m", "cpus": "1", "requests.cpu": "1500m", "memory": "-1", "count/jobs.batch": "0.5",
        }}}));
        let errors = Strategy::validate(&quota, None);
        let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            errors,
            [
                "spec.hard[count/jobs.batch]: Invalid value: \"500m\": must be an integer",
                "spec.hard[cpus]: Invalid value: \"cpus\": must be a standard resource for quota",
                "spec.hard[pods]: Invalid value: \"1500m\": must be an integer",
                "spec.hard[memory]: Invalid value: \"-1\": must be greater than or equal to 0",
            ]
        );
    }

    #[test]
    fn the_scopes_stay() {
        let with =
            |scopes: Value| quota(json!({"spec": {"hard": {"pods": "1"}, "scopes": scopes}}));
        let (old, same) = (with(json!(["BestEffort"])), with(json!(["BestEffort"])));
        assert_eq!(Strategy::validate(&same, Some(&old)), []);
        let errors = Strategy::validate(&with(json!(["NotBestEffort"])), Some(&old));
        assert_eq!(
            errors[0].to_string(),
            "spec.scopes: Invalid value: [\"NotBestEffort\"]: field is immutable"
        );
    }

    #[test]
    fn the_row_tells_requests_from_limits() {
        let quota = quota(json!({"metadata": {"name": "q"}, "status": {
            "hard": {"pods": "10", "requests.cpu": "2", "limits.cpu": "4"},
            "used": {"pods": "3", "limits.cpu": "500m"},
        }}));
        assert_eq!(
            quota.row(0),
            [
                "q",
                "pods: 3/10, requests.cpu: 0/2",
                "limits.cpu: 500m/4",
                "<unknown>"
            ]
        );
    }
}
