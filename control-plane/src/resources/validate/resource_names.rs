//! Names of resources: what containers may ask for, what limits and quotas may be about.

use super::names;
use crate::resources::quantity::Quantity;

const OF_CONTAINERS: &[&str] = &["cpu", "memory", "ephemeral-storage"];
/// What only whole numbers make sense of.
const COUNTED: &[&str] = &[
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];
const SUMMED: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
];

/// What is wrong with a name that a container asks for.
pub fn of_container(name: &str) -> Vec<String> {
    let known = OF_CONTAINERS.contains(&name) || name.starts_with("hugepages-");
    checked(name, known, "must be a standard resource for containers")
}

/// What is wrong with a name that a quota is about.
pub fn of_quota(name: &str) -> Vec<String> {
    let pages = name.strip_prefix("requests.").unwrap_or(name);
    let known = SUMMED.contains(&name) || COUNTED.contains(&name);
    let known = known || pages.starts_with("hugepages-");
    checked(name, known, "must be a standard resource for quota")
}

/// What is wrong with a name of any resource.
pub fn of_any(name: &str) -> Vec<String> {
    let known = SUMMED.contains(&name) || COUNTED.contains(&name) || name == "storage";
    let known = known || name.starts_with("hugepages-");
    checked(
        name,
        known,
        "must be a standard resource type or fully qualified",
    )
}

/// Whether there can only be a whole number of it.
pub fn is_counted(name: &str) -> bool {
    COUNTED.contains(&name)
}

/// The size of the pages, in bytes, of a resource that is memory in huge pages.
pub fn huge_page_size(name: &str) -> Option<i64> {
    let size: Quantity = name.strip_prefix("hugepages-")?.parse().ok()?;
    (size.is_whole() && size.ceil() > 0).then(|| size.ceil())
}

/// Whether more may be promised of it than there is: then a limit may be above the request.
pub fn may_be_overcommitted(name: &str) -> bool {
    !is_extended(name) && !name.starts_with("hugepages-")
}

/// Whether it is one of a cluster's own making, such as `example.com/gpu`.
pub fn is_extended(name: &str) -> bool {
    let native = |name: &str| !name.contains('/') || name.contains("kubernetes.io/");
    !native(name) && !name.starts_with("requests.")
}

fn checked(name: &str, known: bool, otherwise: &str) -> Vec<String> {
    let mut errors = names::qualified(name);
    if errors.is_empty() && !known && !name.contains('/') {
        errors.push(otherwise.to_owned());
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_has_its_names() {
        for name in ["cpu", "hugepages-2Mi", "example.com/gpu"] {
            assert!(of_container(name).is_empty(), "{name}");
        }
        assert_eq!(
            of_container("pods"),
            ["must be a standard resource for containers"]
        );
        for name in [
            "cpu",
            "requests.cpu",
            "pods",
            "count/jobs.batch",
            "requests.example.com/gpu",
            "requests.hugepages-2Mi",
            "gold.storageclass.storage.k8s.io/requests.storage",
        ] {
            assert_eq!(of_quota(name), Vec::<String>::new(), "{name}");
        }
        assert_eq!(of_quota("cpus"), ["must be a standard resource for quota"]);
        assert_eq!(
            of_any("disk"),
            ["must be a standard resource type or fully qualified"]
        );
        assert!(of_any("storage").is_empty());
        assert!(is_extended("example.com/gpu") && !is_extended("requests.example.com/gpu"));
        assert!(!is_extended("cpu") && !is_extended("kubernetes.io/x"));
    }
}
