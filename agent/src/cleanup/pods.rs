//! Which pods an agent ran here, and their cgroups.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Places, Residue};
use crate::runtime::cgroup;

/// The classes of pods that have a cgroup of their own.
const CLASSES: [&str; 2] = ["burstable", "besteffort"];

/// Whether an agent has run pods here since the node started or was cleaned up, and not just routed services.
pub(super) fn ran(places: &Places) -> bool {
    // The data of pods stay after a clean-up; the run directory does not.
    let signs = [places.root_dir.join("pods"), places.run_dir.join("netns")];
    places.run_dir.exists() && signs.iter().any(|sign| sign.exists())
}

/// The UIDs of the pods that an agent ran here, by its directories.
pub(super) fn uids(places: &Places) -> BTreeSet<String> {
    if !ran(places) {
        return BTreeSet::new();
    }
    let directories = [
        places.root_dir.join("pods"),
        places.run_dir.join("netns"),
        places.run_dir.join("mounts"),
    ];
    directories.iter().flat_map(|path| names(path)).collect()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.collect()
}

/// The cgroups of our pods. Upstream's kubelet calls its own the same, so only those of pods that an agent ran are ours.
pub(super) fn cgroups(places: &Places, ours: &BTreeSet<String>) -> Vec<Residue> {
    if ours.is_empty() && !ran(places) {
        return Vec::new();
    }
    let parent = &places.cgroup_parent;
    let below = parent.strip_prefix("/").unwrap_or(parent).join("kubepods");
    cgroup::mounted()
        .into_iter()
        .flat_map(|hierarchy| own(&hierarchy.mount.join(&below), ours))
        .map(Residue::Cgroup)
        .collect()
}

/// What is ours of `kubepods`: the whole, unless there are pods of others in it.
fn own(kubepods: &Path, ours: &BTreeSet<String>) -> Vec<PathBuf> {
    if !kubepods.is_dir() {
        return Vec::new();
    }
    let classes = CLASSES.map(|class| kubepods.join(class));
    let pods = [kubepods].into_iter().chain(classes.iter().map(|it| &**it));
    let pods = pods.flat_map(|class| {
        let named = names(class).into_iter().map(|name| class.join(name));
        named.filter(|path| path.is_dir() && !classes.contains(path))
    });
    let is_ours = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.and_then(|name| name.strip_prefix("pod"))
            .is_some_and(|uid| ours.contains(uid))
    };
    let (own, others): (Vec<_>, Vec<_>) = pods.partition(is_ours);
    match others.is_empty() {
        true => vec![kubepods.to_owned()],
        false => own,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::places_in;
    use super::*;

    #[test]
    fn a_node_that_only_routed_services_has_had_no_pods() {
        let home = tempfile::tempdir().unwrap();
        let places = places_in(home.path());
        fs::create_dir_all(&places.run_dir).unwrap();
        fs::create_dir_all(&places.root_dir).unwrap();
        assert!(!ran(&places));
        fs::create_dir_all(places.root_dir.join("pods")).unwrap();
        assert!(ran(&places));
        fs::remove_dir(&places.run_dir).unwrap();
        assert!(!ran(&places), "it was cleaned up, and its data were kept");
    }

    #[test]
    fn cgroups_of_other_pods_are_left_alone() {
        let home = tempfile::tempdir().unwrap();
        let places = places_in(home.path());
        fs::create_dir_all(places.root_dir.join("pods/a")).unwrap();
        fs::create_dir_all(places.run_dir.join("netns/b")).unwrap();
        let ours = uids(&places);
        let kubepods = home.path().join("kubepods");
        for pod in ["poda/x", "burstable/podb", "besteffort"] {
            fs::create_dir_all(kubepods.join(pod)).unwrap();
        }
        assert_eq!(own(&kubepods, &ours), vec![kubepods.clone()]);
        fs::create_dir_all(kubepods.join("besteffort/podc")).unwrap();
        let mut found = own(&kubepods, &ours);
        found.sort();
        assert_eq!(
            found,
            ["burstable/podb", "poda"].map(|name| kubepods.join(name))
        );
        assert!(own(&home.path().join("none"), &ours).is_empty());
    }
}
