//! IPAddress: an address and who has it. It is stored; this control plane keeps the addresses of Services in the Services
//! themselves.

use k8s_openapi::api::networking::v1::IPAddress;
use serde_json::{Value, json};

use super::{
    Column, FieldError, Strategy, age,
    kind::carry_generation,
    print,
    validate::{self, NameRule, Path, immutable, names},
};

impl Strategy for IPAddress {
    const SINGULAR: &'static str = "ipaddress";
    const SHORT_NAMES: &'static [&'static str] = &["ip"];
    const NAMESPACED: bool = false;
    const COLUMNS: &'static [Column] = &[
        Column::NAME,
        Column::text("ParentRef", "Who has the address."),
        Column::AGE,
    ];
    const NAME_RULE: NameRule = address;

    fn row(&self, now: i64) -> Vec<Value> {
        let parent = self.spec.clone().unwrap_or_default().parent_ref;
        let mut text = parent.resource.clone();
        for (mark, part) in [
            (".", parent.group.as_deref()),
            ("/", parent.namespace.as_deref()),
            ("/", Some(parent.name.as_str())),
        ] {
            if let Some(part) = part.filter(|part| !part.is_empty()) {
                text.push_str(mark);
                text.push_str(part);
            }
        }
        vec![
            json!(print::name(&self.metadata)),
            json!(text),
            json!(age::of(&self.metadata, now)),
        ]
    }

    fn prepare_create(&mut self) {
        self.metadata.generation = Some(1);
    }

    fn prepare_update(&mut self, old: &Self) {
        let changed = self.spec != old.spec;
        carry_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn validate(&self, old: Option<&Self>) -> Vec<FieldError> {
        let path = Path::new("spec").child("parentRef");
        let parent = self.spec.clone().unwrap_or_default().parent_ref;
        let mut errors = Vec::new();
        if let Some(group) = parent.group.as_deref().filter(|group| !group.is_empty()) {
            let at = path.child("group");
            errors.extend(at.invalid_all(group, names::dns1123_subdomain(group, false)));
        }
        for (field, text, needed) in [
            ("resource", parent.resource.as_str(), true),
            ("name", parent.name.as_str(), true),
            (
                "namespace",
                parent.namespace.as_deref().unwrap_or_default(),
                false,
            ),
        ] {
            let at = path.child(field);
            match text {
                "" if needed => errors.push(at.required("")),
                "" => {}
                text => errors.extend(at.invalid_all(text, names::path_segment(text, false))),
            }
        }
        if let Some(old) = old {
            let was = old.spec.clone().unwrap_or_default().parent_ref;
            errors.extend(immutable(&path, &parent, &was));
        }
        errors
    }
}

/// An address in the one form that it has: two objects never mean the same.
fn address(name: &str, _prefix: bool) -> Vec<String> {
    let wrong = validate::ip(&Path::root(), name).map(|error| error.detail);
    let canonical = name.parse::<std::net::IpAddr>().map(|ip| ip.to_string());
    let odd = canonical.ok().filter(|canonical| canonical != name);
    let odd = odd.map(|canonical| format!("must be in canonical form (\"{canonical}\")"));
    wrong.into_iter().chain(odd).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_an_address() {
        assert!(address("10.0.0.1", false).is_empty() && address("fd00::1", false).is_empty());
        assert_eq!(
            address("FD00::1", false),
            ["must be in canonical form (\"fd00::1\")"]
        );
        assert_eq!(
            address("web", false),
            ["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"]
        );
    }

    #[test]
    fn an_address_belongs_to_somebody() {
        let address = |parent: Value| -> IPAddress {
            serde_json::from_value(
                json!({"metadata": {"name": "10.0.0.1"}, "spec": {"parentRef": parent}}),
            )
            .unwrap()
        };
        let of = address(json!({"resource": "services", "namespace": "a", "name": "web"}));
        assert_eq!(of.row(0), ["10.0.0.1", "services/a/web", "<unknown>"]);
        let errors = Strategy::validate(&address(json!({})), Some(&of));
        let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            errors[..2],
            [
                "spec.parentRef.resource: Required value",
                "spec.parentRef.name: Required value"
            ]
        );
        assert!(errors[2].ends_with("field is immutable"));
    }
}
