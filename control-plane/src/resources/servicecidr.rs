//! ServiceCIDR: a range that Services' addresses are to come from. It is stored; this control plane takes addresses from
//! the ranges that it is started with.

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{ServiceCIDR, ServiceCIDRStatus};
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, Subresource, age,
    kind::carry_generation,
    print,
    validate::{FIELD_IS_IMMUTABLE, Path},
};

impl Strategy for ServiceCIDR {
    const SINGULAR: &'static str = "servicecidr";
    const NAMESPACED: bool = false;
    const SUBRESOURCES: &'static [Subresource] = &[Subresource::Status];
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::text("CIDRs", "The ranges, one of each family."),
        Column::AGE,
    ];

    fn row(&self, now: i64) -> Vec<Value> {
        vec![
            json!(print::name(&self.metadata)),
            json!(cidrs(self).join(",")),
            json!(age::of(&self.metadata, now)),
        ]
    }

    fn prepare_create(&mut self) {
        self.metadata.generation = Some(1);
        self.status = Some(ServiceCIDRStatus::default());
    }

    fn prepare_update(&mut self, old: &Self) {
        self.status = old.status.clone();
        let changed = self.spec != old.spec;
        carry_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn prepare_status(&mut self, old: &Self) {
        self.spec = old.spec.clone();
        self.metadata.generation = old.metadata.generation;
    }

    fn validate(&self, old: Option<&Self>) -> Vec<FieldError> {
        let path = Path::new("spec").child("cidrs");
        let all = cidrs(self);
        if all.is_empty() {
            return vec![path.required("at least one CIDR required")];
        }
        if all.len() > 2 {
            return vec![path.invalid(json!(all), "may only hold up to 2 values")];
        }
        let mut errors = Vec::new();
        let mut families = Vec::new();
        for (index, text) in all.iter().enumerate() {
            let path = path.index(index);
            match text.parse::<IpNet>() {
                Err(_) => errors.push(path.invalid(
                    text.as_str(),
                    "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
                )),
                Ok(range) => {
                    let canonical = range.trunc().to_string();
                    if canonical != *text {
                        let why = format!("must be in canonical form (\"{canonical}\")");
                        errors.push(path.invalid(text.as_str(), why));
                    }
                    families.push(matches!(range, IpNet::V4(_)));
                }
            }
        }
        if let [a, b] = families[..]
            && a == b
        {
            errors.push(path.invalid(json!(all), "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64"));
        }
        if let Some(old) = old {
            errors.extend(changed(&path, all, cidrs(old)));
        }
        errors
    }
}

fn cidrs(of: &ServiceCIDR) -> &[String] {
    let cidrs = of.spec.as_ref().and_then(|spec| spec.cidrs.as_deref());
    cidrs.unwrap_or_default()
}

/// A range of the other family may come; nothing else changes.
fn changed(path: &Path, new: &[String], old: &[String]) -> Vec<FieldError> {
    if new.len() < old.len() {
        return vec![path.invalid(json!(new), FIELD_IS_IMMUTABLE)];
    }
    let pairs = new.iter().zip(old).enumerate();
    pairs
        .filter(|(_, (new, old))| new != old)
        .map(|(index, (new, _))| path.index(index).invalid(new.as_str(), FIELD_IS_IMMUTABLE))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(cidrs: Value) -> ServiceCIDR {
        serde_json::from_value(json!({"spec": {"cidrs": cidrs}})).unwrap()
    }

    fn texts(new: Value, old: Option<Value>) -> Vec<String> {
        let old = old.map(range);
        let errors = Strategy::validate(&range(new), old.as_ref());
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn there_is_one_range_a_family() {
        assert_eq!(
            texts(json!(["10.0.0.0/16", "fd00::/112"]), None),
            Vec::<String>::new()
        );
        assert_eq!(
            texts(json!([]), None),
            ["spec.cidrs: Required value: at least one CIDR required"]
        );
        assert_eq!(
            texts(json!(["10.0.0.1/16", "10.1.0.0/16"]), None),
            [
                "spec.cidrs[0]: Invalid value: \"10.0.0.1/16\": must be in canonical form (\"10.0.0.0/16\")",
                "spec.cidrs: Invalid value: [\"10.0.0.1/16\",\"10.1.0.0/16\"]: may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
            ]
        );
    }

    #[test]
    fn ranges_stay_and_a_second_may_come() {
        let one = json!(["10.0.0.0/16"]);
        let two = json!(["10.0.0.0/16", "fd00::/112"]);
        assert_eq!(texts(two.clone(), Some(one.clone())), Vec::<String>::new());
        assert_eq!(
            texts(one, Some(two)),
            ["spec.cidrs: Invalid value: [\"10.0.0.0/16\"]: field is immutable"]
        );
        assert_eq!(
            texts(json!(["10.1.0.0/16"]), Some(json!(["10.0.0.0/16"]))),
            ["spec.cidrs[0]: Invalid value: \"10.1.0.0/16\": field is immutable"]
        );
    }
}
