//! `resourceFieldRef`: a container's requests and limits as numbers in variables and files. Pure, in whole numbers.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::spec::PodView;

/// Billionths: the smallest unit of a quantity.
const NANO: i128 = 1_000_000_000;

/// What `selector` says of the container that it names, or of `own`. A limit that is not set is what the node has to give
/// (`allocatable`), a request that is not set is 0. `None` for a resource or a container that is not known.
pub(super) fn value(
    pod: &PodView,
    own: Option<&Container>,
    allocatable: &BTreeMap<String, Quantity>,
    selector: &ResourceFieldSelector,
) -> Option<String> {
    let container = match selector
        .container_name
        .as_deref()
        .filter(|name| !name.is_empty())
    {
        Some(name) => pod.all_containers().find(|known| known.name == name)?,
        None => own?,
    };
    let (side, resource) = selector.resource.split_once('.')?;
    let known = matches!(resource, "cpu" | "memory" | "ephemeral-storage");
    if !known && !resource.starts_with("hugepages-") {
        return None;
    }
    let set = container.resources.as_ref();
    let get = |map: Option<&BTreeMap<String, Quantity>>| map?.get(resource).and_then(nano);
    let limit = get(set.and_then(|set| set.limits.as_ref()));
    let amount = match side {
        "limits" => limit
            .filter(|amount| *amount > 0)
            .or_else(|| get(Some(allocatable))),
        // As the API server fills it in: where only a limit is given, that.
        "requests" => get(set.and_then(|set| set.requests.as_ref())).or(limit),
        _ => return None,
    };
    // CPUs are counted in thousandths, everything else in whole units, both rounded up, and so is what comes out.
    let unit = if resource == "cpu" { NANO / 1000 } else { NANO };
    let units = |amount: i128| divide_up(amount, unit);
    let divisor = selector.divisor.as_ref().and_then(nano);
    let divisor = divisor.filter(|divisor| *divisor > 0).unwrap_or(NANO);
    Some(divide_up(units(amount.unwrap_or(0)), units(divisor)).to_string())
}

/// For numbers that are not negative, and a divisor that is positive.
fn divide_up(amount: i128, divisor: i128) -> i128 {
    (amount + divisor - 1) / divisor
}

/// A quantity such as `250m`, `1.5Gi` or `1e3` in billionths, rounded up; `None` for what is no quantity, or is negative.
fn nano(quantity: &Quantity) -> Option<i128> {
    let text = quantity.0.trim();
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    // More digits than any real quantity has would only overflow.
    if whole.len() + fraction.len() == 0 || whole.len() > 19 || fraction.len() > 9 {
        return None;
    }
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let (factor, divisor) = scale(suffix)?;
    let scaled = digits.checked_mul(factor)?;
    let divisor = divisor.checked_mul(10_i128.pow(u32::try_from(fraction.len()).ok()?))?;
    Some(divide_up(scaled, divisor))
}

/// What a suffix multiplies by, in billionths, as a fraction.
fn scale(suffix: &str) -> Option<(i128, i128)> {
    let binary = |power: u32| Some((NANO << (10 * power), 1));
    let decimal = |power: i32| {
        let size = 10_i128.checked_pow(power.unsigned_abs())?;
        if power < 0 {
            Some((NANO, size))
        } else {
            Some((NANO.checked_mul(size)?, 1))
        }
    };
    match suffix {
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        _ => decimal(suffix.strip_prefix(['e', 'E'])?.parse().ok()?),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;

    fn pod() -> PodView {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "default", "uid": "u"},
            "spec": {"containers": [
                {"name": "set", "resources": {
                    "requests": {"cpu": "250m", "memory": "64Mi"},
                    "limits": {"cpu": "1001m", "memory": "128Mi"},
                }},
                {"name": "bare"},
            ]},
        }))
        .unwrap();
        PodView::new(pod).unwrap()
    }

    fn read(container: &str, resource: &str, divisor: Option<&str>) -> Option<String> {
        let node = [
            ("cpu", "2"),
            ("memory", "8092Mi"),
            ("ephemeral-storage", "10Gi"),
        ];
        let node = node.map(|(name, amount)| (name.to_owned(), Quantity(amount.into())));
        let selector = ResourceFieldSelector {
            container_name: Some(container.into()),
            resource: resource.into(),
            divisor: divisor.map(|text| Quantity(text.into())),
        };
        value(&pod(), None, &BTreeMap::from(node), &selector)
    }

    #[test]
    fn amounts_are_counted_exactly_and_rounded_up() {
        for (resource, divisor, expected) in [
            ("limits.cpu", Some("1m"), "1001"),
            ("limits.cpu", None, "2"),
            ("limits.cpu", Some("0"), "2"),
            ("requests.cpu", None, "1"),
            ("requests.cpu", Some("1m"), "250"),
            ("limits.memory", None, "134217728"),
            ("requests.memory", Some("1Mi"), "64"),
            ("requests.memory", Some("1M"), "68"),
            ("requests.hugepages-2Mi", None, "0"),
        ] {
            let got = read("set", resource, divisor);
            assert_eq!(got.as_deref(), Some(expected), "{resource} / {divisor:?}");
        }
    }

    #[test]
    fn an_absent_limit_is_what_the_node_has_and_an_absent_request_nothing() {
        let bare = |resource, divisor| read("bare", resource, divisor);
        assert_eq!(bare("limits.cpu", None).as_deref(), Some("2"));
        assert_eq!(bare("limits.memory", Some("1Mi")).as_deref(), Some("8092"));
        assert_eq!(
            bare("limits.ephemeral-storage", Some("1Gi")).as_deref(),
            Some("10")
        );
        assert_eq!(bare("requests.cpu", Some("1m")).as_deref(), Some("0"));
        assert_eq!(bare("requests.memory", None).as_deref(), Some("0"));
    }

    #[test]
    fn what_is_not_known_has_no_value() {
        assert_eq!(read("nobody", "limits.cpu", None), None);
        assert_eq!(read("set", "limits.example.org/gpu", None), None);
        assert_eq!(read("set", "cpu", None), None);
    }

    #[test]
    fn quantities_are_read_in_every_notation() {
        for (text, value) in [
            ("250m", Some(NANO / 4)),
            ("1.5k", Some(1500 * NANO)),
            ("1e3", Some(1000 * NANO)),
            ("1E3", Some(1000 * NANO)),
            ("2E", Some(2_000_000_000_000_000_000 * NANO)),
            ("1e-3", Some(NANO / 1000)),
            ("0.1n", Some(1)),
            ("1Gi", Some((1 << 30) * NANO)),
            ("1x", None),
            ("", None),
            ("-1", None),
            ("1e99", None),
        ] {
            assert_eq!(nano(&Quantity(text.into())), value, "{text}");
        }
    }
}
