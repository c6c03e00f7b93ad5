//! Which families a Service has addresses of: what it says, what the cluster has, and what it had before. Pure.

use k8s_openapi::api::core::v1::ServiceSpec;
use serde_json::Value;

use super::ranges::Ranges;
use crate::resources::validate::Path;
use crate::resources::{Family, FieldError, service_address_errors};

const SINGLE: &str = "SingleStack";
const PREFER_DUAL: &str = "PreferDualStack";
const REQUIRE_DUAL: &str = "RequireDualStack";

/// Fills in `clusterIPs`, `ipFamilies` and `ipFamilyPolicy`, as far as that needs no address to be given out. Afterwards a
/// Service with addresses has as many families as it shall have addresses, in their order.
pub(super) fn settle(
    spec: &mut ServiceSpec,
    old: Option<&ServiceSpec>,
    ranges: &Ranges,
) -> Result<(), Vec<FieldError>> {
    if is_external(spec) || old.is_some_and(|old| stays_as_preferred(spec, old)) {
        return Ok(());
    }
    if old.is_none()
        && let (Some(ip), true) = (filled(spec.cluster_ip.as_ref()), ips(spec).is_empty())
    {
        spec.cluster_ips = Some(vec![ip.clone()]);
    }
    let free = is_headless(spec) && spec.selector.as_ref().is_none_or(|it| it.is_empty());
    if filled(spec.ip_family_policy.as_ref()).is_none() {
        let before = old.and_then(|old| filled(old.ip_family_policy.as_ref()));
        let default = if free { REQUIRE_DUAL } else { SINGLE };
        spec.ip_family_policy = Some(before.cloned().unwrap_or_else(|| default.to_owned()));
    }
    refuse(service_address_errors(spec))?;

    let mut errors = Vec::new();
    if let Some(old) = old {
        errors.extend(shrink(spec, old));
    }
    errors.extend(too_many_for_single(spec));
    errors.extend(infer_from_addresses(spec, ranges));
    refuse(errors)?;

    // Whoever writes the endpoints of such a service by hand may do so for any family.
    let limit = (!free).then_some(ranges);
    if let Some(ranges) = limit {
        refuse(not_in_cluster(spec, ranges))?;
    }
    let mut named: Vec<Family> = families(spec);
    if named.is_empty() {
        named.push(ranges.primary());
    }
    let can_be_dual = limit.is_none_or(Ranges::is_dual);
    if let ([only], true) = (&*named, can_be_dual && policy(spec) != SINGLE) {
        named.push(only.other());
    }
    let names = named.iter().map(|family| family.as_str().to_owned());
    spec.ip_families = Some(names.collect());
    Ok(())
}

fn refuse(errors: Vec<FieldError>) -> Result<(), Vec<FieldError>> {
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors)
    }
}

pub(super) fn is_external(spec: &ServiceSpec) -> bool {
    spec.type_.as_deref() == Some("ExternalName")
}

pub(super) fn is_headless(spec: &ServiceSpec) -> bool {
    spec.cluster_ip.as_deref() == Some("None")
}

fn filled(text: Option<&String>) -> Option<&String> {
    text.filter(|text| !text.is_empty())
}

fn ips(spec: &ServiceSpec) -> &[String] {
    spec.cluster_ips.as_deref().unwrap_or_default()
}

/// The families that are named, in their order. Names that are none were refused before.
pub(super) fn families(spec: &ServiceSpec) -> Vec<Family> {
    let named = spec.ip_families.iter().flatten();
    named.filter_map(|name| Family::named(name)).collect()
}

fn policy(spec: &ServiceSpec) -> &str {
    spec.ip_family_policy.as_deref().unwrap_or_default()
}

/// A Service that takes two families where it can have them keeps what it has when only the cluster changed.
fn stays_as_preferred(new: &ServiceSpec, old: &ServiceSpec) -> bool {
    (policy(new), policy(old)) == (PREFER_DUAL, PREFER_DUAL)
        && new.type_ == old.type_
        && new.cluster_ips == old.cluster_ips
        && new.ip_families == old.ip_families
}

/// Nobody has to name what goes: the policy says it. But who names less must also say the policy.
fn shrink(spec: &mut ServiceSpec, old: &ServiceSpec) -> Vec<FieldError> {
    let lists = [
        (&mut spec.cluster_ips, &old.cluster_ips, "cluster IP"),
        (&mut spec.ip_families, &old.ip_families, "IP family"),
    ];
    let policy = spec.ip_family_policy.clone().unwrap_or_default();
    let mut errors = Vec::new();
    for (list, was, what) in lists {
        let is_less = list.as_ref().is_some_and(|list| {
            !list.is_empty() && was.as_ref().is_some_and(|was| list.len() < was.len())
        });
        if policy != SINGLE && is_less {
            let detail = format!("must be 'SingleStack' to release the secondary {what}");
            let path = Path::new("spec").child("ipFamilyPolicy");
            errors.push(path.invalid(policy.as_str(), detail));
        }
        if policy == SINGLE
            && *list == *was
            && let Some(list) = list
        {
            list.truncate(1);
        }
    }
    errors
}

fn too_many_for_single(spec: &ServiceSpec) -> Vec<FieldError> {
    let lists = [
        (ips(spec).len(), "cluster IPs"),
        (families(spec).len(), "IP families"),
    ];
    let path = Path::new("spec").child("ipFamilyPolicy");
    let surplus = lists.into_iter().filter(|(count, _)| *count > 1);
    surplus
        .filter(|_| policy(spec) == SINGLE)
        .map(|(_, what)| {
            let detail = format!(
                "must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"
            );
            path.invalid(policy(spec), detail)
        })
        .collect()
}

/// An address whose family is not named names it.
fn infer_from_addresses(spec: &mut ServiceSpec, ranges: &Ranges) -> Vec<FieldError> {
    if is_headless(spec) {
        return Vec::new();
    }
    let mut named = spec.ip_families.clone().unwrap_or_default();
    let mut errors = Vec::new();
    for (index, ip) in ips(spec).iter().enumerate().skip(named.len()) {
        // That they are addresses was looked at before.
        let Some(family) = Family::of_text(ip) else {
            continue;
        };
        if ranges.of(family).is_none() {
            let path = Path::new("spec").child("clusterIPs").index(index);
            let detail = format!("{} is not configured on this cluster", family.as_str());
            errors.push(path.invalid(ips(spec), detail));
        }
        named.push(family.as_str().to_owned());
    }
    spec.ip_families = Some(named);
    errors
}

fn not_in_cluster(spec: &ServiceSpec, ranges: &Ranges) -> Vec<FieldError> {
    let path = Path::new("spec");
    let mut errors = Vec::new();
    if policy(spec) == REQUIRE_DUAL && !ranges.is_dual() {
        let detail = "this cluster is not configured for dual-stack services";
        errors.push(path.child("ipFamilyPolicy").invalid(policy(spec), detail));
    }
    for (index, family) in families(spec).into_iter().enumerate() {
        if ranges.of(family).is_none() {
            let path = path.child("ipFamilies").index(index);
            errors.push(path.invalid(family.as_str(), "not configured on this cluster"));
        }
    }
    errors
}

/// Puts what was settled into the object.
pub(super) fn write_back(spec: &ServiceSpec, into: &mut Value) {
    let lists = [
        ("clusterIPs", &spec.cluster_ips),
        ("ipFamilies", &spec.ip_families),
    ];
    let texts = [
        ("clusterIP", &spec.cluster_ip),
        ("ipFamilyPolicy", &spec.ip_family_policy),
    ];
    for (field, list) in lists {
        if let Some(list) = list {
            into[field] = list.as_slice().into();
        }
    }
    for (field, text) in texts {
        if let Some(text) = text {
            into[field] = text.as_str().into();
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const V4: &str = "10.96.0.0/12";
    const DUAL: &str = "10.96.0.0/12,fd00::/108";
    const DUAL_V6: &str = "fd00::/108,10.96.0.0/12";

    fn spec(mut value: Value) -> ServiceSpec {
        if value.get("type").is_none() {
            value["type"] = json!("ClusterIP");
        }
        serde_json::from_value(value).unwrap()
    }

    /// Policy and families, or what is wrong.
    fn settled(value: Value, old: Option<Value>, ranges: &str) -> Result<String, String> {
        let mut new = spec(value);
        let old = old.map(spec);
        settle(&mut new, old.as_ref(), &ranges.parse().unwrap()).map_err(|errors| {
            let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
            texts.join("; ")
        })?;
        Ok(format!(
            "{} {}",
            policy(&new),
            new.ip_families.clone().unwrap_or_default().join(",")
        ))
    }

    #[test]
    fn a_new_service_gets_what_it_asks_for_and_the_cluster_has() {
        let selects = json!({ "a": "b" });
        for (value, ranges, wanted) in [
            (json!({}), V4, "SingleStack IPv4"),
            (json!({}), DUAL, "SingleStack IPv4"),
            (json!({}), DUAL_V6, "SingleStack IPv6"),
            (
                json!({ "ipFamilyPolicy": "PreferDualStack" }),
                V4,
                "PreferDualStack IPv4",
            ),
            (
                json!({ "ipFamilyPolicy": "PreferDualStack" }),
                DUAL_V6,
                "PreferDualStack IPv6,IPv4",
            ),
            (
                json!({ "ipFamilyPolicy": "RequireDualStack" }),
                DUAL,
                "RequireDualStack IPv4,IPv6",
            ),
            (
                json!({ "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"] }),
                DUAL,
                "RequireDualStack IPv6,IPv4",
            ),
            (json!({ "ipFamilies": ["IPv6"] }), DUAL, "SingleStack IPv6"),
            (json!({ "clusterIP": "fd00::7" }), DUAL, "SingleStack IPv6"),
            (
                json!({ "clusterIP": "fd00::7", "clusterIPs": ["fd00::7", "10.96.0.7"], "ipFamilyPolicy": "PreferDualStack" }),
                DUAL,
                "PreferDualStack IPv6,IPv4",
            ),
            // Endpoints written by hand may be of any family, whatever the cluster has.
            (
                json!({ "clusterIP": "None" }),
                V4,
                "RequireDualStack IPv4,IPv6",
            ),
            (
                json!({ "clusterIP": "None", "ipFamilyPolicy": "SingleStack" }),
                V4,
                "SingleStack IPv4",
            ),
            (
                json!({ "clusterIP": "None", "selector": selects.clone() }),
                V4,
                "SingleStack IPv4",
            ),
            (
                json!({ "clusterIP": "None", "selector": selects, "ipFamilyPolicy": "PreferDualStack" }),
                DUAL,
                "PreferDualStack IPv4,IPv6",
            ),
        ] {
            assert_eq!(
                settled(value.clone(), None, ranges).as_deref(),
                Ok(wanted),
                "{value} {ranges}"
            );
        }
    }

    #[test]
    fn what_the_cluster_or_the_policy_does_not_have_is_refused() {
        for (value, ranges, wanted) in [
            (
                json!({ "ipFamilyPolicy": "RequireDualStack" }),
                V4,
                r#"spec.ipFamilyPolicy: Invalid value: "RequireDualStack": this cluster is not configured for dual-stack services"#,
            ),
            (
                json!({ "ipFamilies": ["IPv6"] }),
                V4,
                r#"spec.ipFamilies[0]: Invalid value: "IPv6": not configured on this cluster"#,
            ),
            (
                json!({ "clusterIP": "fd00::7" }),
                V4,
                r#"spec.clusterIPs[0]: Invalid value: ["fd00::7"]: IPv6 is not configured on this cluster"#,
            ),
            (
                json!({ "ipFamilies": ["IPv4", "IPv6"] }),
                DUAL,
                r#"spec.ipFamilyPolicy: Invalid value: "SingleStack": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified"#,
            ),
        ] {
            assert_eq!(
                settled(value.clone(), None, ranges),
                Err(wanted.to_owned()),
                "{value}"
            );
        }
    }

    #[test]
    fn an_update_grows_and_shrinks_by_its_policy() {
        let single = json!({
            "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
        });
        let dual = json!({
            "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00::7"], "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "PreferDualStack",
        });
        let with = |base: &Value, field: &str, value: Value| {
            let mut changed = base.clone();
            changed[field] = value;
            changed
        };
        let grown = with(&single, "ipFamilyPolicy", json!("PreferDualStack"));
        assert_eq!(
            settled(grown.clone(), Some(single.clone()), DUAL).as_deref(),
            Ok("PreferDualStack IPv4,IPv6")
        );
        let shrunk = with(&dual, "ipFamilyPolicy", json!("SingleStack"));
        assert_eq!(
            settled(shrunk, Some(dual.clone()), DUAL).as_deref(),
            Ok("SingleStack IPv4")
        );
        let unsaid = with(&dual, "ipFamilyPolicy", Value::Null);
        assert_eq!(
            settled(unsaid, Some(dual.clone()), DUAL).as_deref(),
            Ok("PreferDualStack IPv4,IPv6")
        );
        let less = with(&dual, "clusterIPs", json!(["10.96.0.7"]));
        assert_eq!(
            settled(less, Some(dual.clone()), DUAL),
            Err(r#"spec.ipFamilyPolicy: Invalid value: "PreferDualStack": must be 'SingleStack' to release the secondary cluster IP"#.into())
        );
        // The cluster got a second range, or lost it: whoever has what it preferred keeps that.
        assert_eq!(
            settled(grown.clone(), Some(grown), DUAL).as_deref(),
            Ok("PreferDualStack IPv4")
        );
        assert_eq!(
            settled(dual.clone(), Some(dual), V4).as_deref(),
            Ok("PreferDualStack IPv4,IPv6")
        );
    }

    #[test]
    fn a_service_that_was_a_name_starts_anew() {
        let name = json!({ "type": "ExternalName", "externalName": "x.y" });
        assert_eq!(
            settled(json!({}), Some(name), DUAL_V6).as_deref(),
            Ok("SingleStack IPv6")
        );
    }
}
