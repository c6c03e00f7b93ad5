//! The cluster addresses of a Service and their families: what may stand beside what, and what an update may change.

use k8s_openapi::api::core::v1::ServiceSpec;

use super::{Family, has_cluster_ip, is_headless};
use crate::resources::validate::{self, FieldError, Path};

const FAMILIES: &[&str] = &["IPv4", "IPv6"];
const POLICIES: &[&str] = &["PreferDualStack", "RequireDualStack", "SingleStack"];
const MAX_ADDRESSES: usize = 2;

/// What is wrong with `clusterIP`, `clusterIPs`, `ipFamilies` and `ipFamilyPolicy`, whether they were filled in already or
/// not.
pub fn errors(spec: &ServiceSpec) -> Vec<FieldError> {
    if !has_cluster_ip(spec) {
        return Vec::new();
    }
    let path = Path::new("spec");
    let ips = spec.cluster_ips.as_deref().unwrap_or_default();
    let mut errors: Vec<FieldError> = first_of_list(&path.child("clusterIPs"), spec)
        .into_iter()
        .collect();
    errors.extend(families(&path.child("ipFamilies"), spec));
    if let Some(policy) = &spec.ip_family_policy {
        let path = path.child("ipFamilyPolicy");
        errors.extend(validate::one_of(&path, Some(policy), POLICIES));
    }
    let path = path.child("clusterIPs");
    let malformed = malformed(&path, ips);
    if !malformed.is_empty() {
        // What follows would only confuse.
        errors.extend(malformed);
        return errors;
    }
    if ips.len() > MAX_ADDRESSES {
        errors.push(path.invalid(ips, "may only hold up to 2 values"));
    }
    let of = |ip: &String| Family::of_text(ip);
    if ips.len() > 1 && Family::ALL.iter().any(|family| count(ips, *family) > 1) {
        let detail = "may specify no more than one IP for each IP family";
        errors.push(path.invalid(ips, detail));
    }
    if !is_headless(spec) {
        let named = spec.ip_families.iter().flatten();
        for (index, (ip, family)) in ips.iter().zip(named).enumerate() {
            if of(ip).is_some_and(|actual| actual.as_str() != family) {
                let detail =
                    format!("expected an {family} value as indicated by `ipFamilies[{index}]`");
                errors.push(path.index(index).invalid(ip.as_str(), detail));
            }
        }
    }
    errors
}

fn count(ips: &[String], family: Family) -> usize {
    ips.iter()
        .filter(|ip| Family::of_text(ip) == Some(family))
        .count()
}

/// The singular field and the first of the plural are the same.
fn first_of_list(path: &Path, spec: &ServiceSpec) -> Option<FieldError> {
    let ips = spec.cluster_ips.as_deref().unwrap_or_default();
    match (spec.cluster_ip.as_deref().unwrap_or_default(), ips.first()) {
        ("", None) => None,
        ("", Some(_)) => Some(path.invalid(ips, "must be empty when `clusterIP` is not specified")),
        (_, None) => Some(path.required("")),
        (ip, Some(first)) => {
            (ip != first).then(|| path.invalid(ips, "first value must match `clusterIP`"))
        }
    }
}

fn families(path: &Path, spec: &ServiceSpec) -> Vec<FieldError> {
    let named = spec.ip_families.as_deref().unwrap_or_default();
    let mut errors = Vec::new();
    for (index, family) in named.iter().enumerate() {
        let path = path.index(index);
        errors.extend(validate::one_of(&path, Some(family), FAMILIES));
        if named[..index].contains(family) {
            errors.push(path.duplicate(family.as_str()));
        }
    }
    errors
}

/// `None` may stand alone.
fn malformed(path: &Path, ips: &[String]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, ip) in ips.iter().enumerate() {
        if index == 0 && ip == "None" {
            if ips.len() > 1 {
                errors.push(path.invalid(ips, "'None' must be the first and only value"));
            }
            continue;
        }
        errors.extend(validate::ip(&path.index(index), ip));
    }
    errors
}

/// The first address and family stay what they are; a second one comes and goes.
pub(super) fn update_errors(new: &ServiceSpec, old: &ServiceSpec) -> Vec<FieldError> {
    if !has_cluster_ip(new) || !has_cluster_ip(old) || is_headless(new) && is_headless(old) {
        return Vec::new();
    }
    let path = Path::new("spec");
    let single = new.ip_family_policy.as_deref() == Some("SingleStack");
    let mut errors = Vec::new();
    let lists = [
        (
            "clusterIPs",
            "clusterIP",
            &old.cluster_ips,
            &new.cluster_ips,
        ),
        ("ipFamilies", "ipFamily", &old.ip_families, &new.ip_families),
    ];
    for (field, one, old_list, new_list) in lists {
        if field == "ipFamilies" && is_headless(new) != is_headless(old) {
            continue;
        }
        let was = old_list.as_deref().unwrap_or_default();
        let is = new_list.as_deref().unwrap_or_default();
        if is.is_empty() && !was.is_empty() {
            let detail = format!("primary {one} can not be unset");
            errors.push(path.child(field).index(0).invalid(is, detail));
        }
        for (index, _) in was.iter().zip(is).enumerate().filter(|(_, (a, b))| a != b) {
            let path = path.child(field).index(index);
            errors.push(path.invalid(is, "may not change once set"));
        }
        if was.len() > is.len() && is.len() == 1 && !single {
            let detail = format!("must be set to 'SingleStack' when releasing the secondary {one}");
            let policy = new.ip_family_policy.as_deref().unwrap_or_default();
            errors.push(path.child("ipFamilyPolicy").invalid(policy, detail));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(mut value: Value) -> ServiceSpec {
        value["type"] = json!("ClusterIP");
        serde_json::from_value(value).unwrap()
    }

    fn texts(errors: &[FieldError]) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn addresses_and_families_go_together() {
        for (value, wanted) in [
            (json!({}), vec![]),
            (
                json!({ "clusterIP": "None", "clusterIPs": ["None"], "ipFamilies": ["IPv4", "IPv6"] }),
                vec![],
            ),
            (
                json!({ "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00::7"], "ipFamilies": ["IPv4", "IPv6"] }),
                vec![],
            ),
            (
                json!({ "clusterIPs": ["10.96.0.7"] }),
                vec![
                    r#"spec.clusterIPs: Invalid value: ["10.96.0.7"]: must be empty when `clusterIP` is not specified"#,
                ],
            ),
            (
                json!({ "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.8"] }),
                vec![
                    r#"spec.clusterIPs: Invalid value: ["10.96.0.8"]: first value must match `clusterIP`"#,
                ],
            ),
            (
                json!({ "ipFamilies": ["IPv4", "IPv4", "IPX"], "ipFamilyPolicy": "Both" }),
                vec![
                    r#"spec.ipFamilies[1]: Duplicate value: "IPv4""#,
                    r#"spec.ipFamilies[2]: Unsupported value: "IPX": supported values: "IPv4", "IPv6""#,
                    r#"spec.ipFamilyPolicy: Unsupported value: "Both": supported values: "PreferDualStack", "RequireDualStack", "SingleStack""#,
                ],
            ),
            (
                json!({ "clusterIP": "None", "clusterIPs": ["None", "10.96.0.7"] }),
                vec![
                    r#"spec.clusterIPs: Invalid value: ["None","10.96.0.7"]: 'None' must be the first and only value"#,
                ],
            ),
            (
                json!({ "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "10.96.0.8"] }),
                vec![
                    r#"spec.clusterIPs: Invalid value: ["10.96.0.7","10.96.0.8"]: may specify no more than one IP for each IP family"#,
                ],
            ),
            (
                json!({ "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "ipFamilies": ["IPv6"] }),
                vec![
                    r#"spec.clusterIPs[0]: Invalid value: "10.96.0.7": expected an IPv6 value as indicated by `ipFamilies[0]`"#,
                ],
            ),
            (
                json!({ "clusterIP": "::ffff:10.96.0.7", "clusterIPs": ["::ffff:10.96.0.7"] }),
                vec![
                    r#"spec.clusterIPs[0]: Invalid value: "::ffff:10.96.0.7": must not be an IPv4-mapped IPv6 address"#,
                ],
            ),
        ] {
            assert_eq!(texts(&errors(&spec(value.clone()))), wanted, "{value}");
        }
    }

    #[test]
    fn the_first_stays_and_the_second_comes_and_goes() {
        let of = |ips: &[&str], policy: &str| {
            let families: Vec<&str> = ips
                .iter()
                .map(|ip| Family::of_text(ip).unwrap().as_str())
                .collect();
            spec(
                json!({ "clusterIP": ips[0], "clusterIPs": ips, "ipFamilies": families, "ipFamilyPolicy": policy }),
            )
        };
        let (v4, v6) = ("10.96.0.7", "fd00::7");
        let dual = of(&[v4, v6], "RequireDualStack");
        let single = of(&[v4], "SingleStack");
        assert!(update_errors(&dual, &single).is_empty());
        assert!(update_errors(&single, &dual).is_empty());
        assert_eq!(
            texts(&update_errors(&of(&[v4], "PreferDualStack"), &dual)),
            [
                r#"spec.ipFamilyPolicy: Invalid value: "PreferDualStack": must be set to 'SingleStack' when releasing the secondary clusterIP"#,
                r#"spec.ipFamilyPolicy: Invalid value: "PreferDualStack": must be set to 'SingleStack' when releasing the secondary ipFamily"#,
            ]
        );
        assert_eq!(
            texts(&update_errors(&of(&[v6, v4], "RequireDualStack"), &dual)).len(),
            4,
            "each place of each list changed"
        );
        let headless =
            spec(json!({ "clusterIP": "None", "clusterIPs": ["None"], "ipFamilies": ["IPv6"] }));
        assert_eq!(
            texts(&update_errors(&headless, &single)),
            [r#"spec.clusterIPs[0]: Invalid value: ["None"]: may not change once set"#]
        );
    }
}
