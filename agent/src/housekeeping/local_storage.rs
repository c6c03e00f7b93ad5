//! Pods that use more of the node's disk than they may. Pure.

use std::collections::BTreeMap;

use crate::pod::spec::{PodView, amount, limit};

/// What a pod has on the node's disk, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodDisk {
    /// Each container's writable layer and logs, by name.
    pub containers: BTreeMap<String, u64>,
    /// The volumes that are on the disk, by name.
    pub volumes: BTreeMap<String, u64>,
    /// Files and directories of all that.
    pub inodes: u64,
}

impl PodDisk {
    pub fn total(&self) -> u64 {
        self.containers.values().chain(self.volumes.values()).sum()
    }
}

const RESOURCE: &str = "ephemeral-storage";

/// Whether a pod has a limit that somebody has to look after.
pub fn is_limited(pod: &PodView) -> bool {
    let mut volumes = pod.spec().volumes.iter().flatten();
    let mut containers = pod.all_containers();
    volumes.any(|volume| {
        let empty = volume.empty_dir.as_ref();
        empty.is_some_and(|empty| empty.size_limit.is_some())
    }) || containers.any(|container| limit(container, RESOURCE).is_some())
}

/// Why a pod has to go, in upstream's words.
pub fn exceeded(pod: &PodView, disk: &PodDisk) -> Option<String> {
    for volume in pod.spec().volumes.iter().flatten() {
        let size = volume
            .empty_dir
            .as_ref()
            .and_then(|empty| empty.size_limit.as_ref());
        let used = disk.volumes.get(&volume.name);
        if let (Some(size), Some(used)) = (size, used)
            && let Some(most) = amount(size).filter(|most| *most > 0.0)
            && *used as f64 > most
        {
            return Some(format!(
                "Usage of EmptyDir volume {:?} exceeds the limit {:?}. ",
                volume.name, size.0
            ));
        }
    }
    let mut containers = pod.all_containers();
    let together = pod.limits(RESOURCE);
    if containers.any(|container| limit(container, RESOURCE).is_some())
        && disk.total() as f64 > together
    {
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {}. ",
            super::signal::quantity(together as u64)
        ));
    }
    pod.all_containers().find_map(|container| {
        let used = *disk.containers.get(&container.name)?;
        let limits = container.resources.as_ref()?.limits.as_ref()?;
        let named = limits.get(RESOURCE)?;
        (used as f64 > amount(named)?).then(|| {
            format!(
                "Container {} exceeded its local ephemeral storage limit {:?}. ",
                container.name, named.0
            )
        })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(size_limit: Value, limits: [Value; 2]) -> PodView {
        let [a, b] = limits;
        let object = json!({
            "metadata": {"name": "p", "namespace": "d", "uid": "u"},
            "spec": {
                "volumes": [{"name": "cache", "emptyDir": size_limit}],
                "containers": [
                    {"name": "a", "resources": {"limits": a}}, {"name": "b", "resources": {"limits": b}},
                ],
            },
        });
        PodView::new(serde_json::from_value(object).unwrap()).unwrap()
    }

    fn disk(a: u64, b: u64, cache: u64) -> PodDisk {
        PodDisk {
            containers: [("a".to_owned(), a), ("b".to_owned(), b)].into(),
            volumes: [("cache".to_owned(), cache)].into(),
            inodes: 0,
        }
    }

    #[test]
    fn limits_of_volumes_containers_and_pods_are_kept() {
        let limit = |bytes: &str| json!({"ephemeral-storage": bytes});
        let free = pod(json!({}), [json!({}), json!({})]);
        assert!(!is_limited(&free));
        assert_eq!(exceeded(&free, &disk(1 << 40, 0, 1 << 40)), None);

        let volume = pod(json!({"sizeLimit": "1Ki"}), [json!({}), json!({})]);
        assert!(is_limited(&volume));
        assert_eq!(exceeded(&volume, &disk(0, 0, 1024)), None);
        assert_eq!(
            exceeded(&volume, &disk(0, 0, 1025)).unwrap(),
            "Usage of EmptyDir volume \"cache\" exceeds the limit \"1Ki\". "
        );

        let one = pod(json!({}), [limit("1Ki"), json!({})]);
        assert!(is_limited(&one));
        assert_eq!(exceeded(&one, &disk(1000, 24, 0)), None);
        let whole = "Pod ephemeral local storage usage exceeds the total limit of containers";
        assert_eq!(
            exceeded(&one, &disk(1000, 25, 0)).unwrap(),
            format!("{whole} 1Ki. "),
            "one limit is the pod's, as upstream"
        );

        let both = pod(json!({}), [limit("1Ki"), limit("1Ki")]);
        assert_eq!(exceeded(&both, &disk(1024, 1024, 0)), None);
        assert_eq!(
            exceeded(&both, &disk(1000, 1000, 49)).unwrap(),
            format!("{whole} 2Ki. ")
        );
        assert_eq!(
            exceeded(&both, &disk(1025, 0, 0)).unwrap(),
            "Container a exceeded its local ephemeral storage limit \"1Ki\". "
        );
    }
}
