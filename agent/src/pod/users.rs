//! Pods with users of their own (`hostUsers: false`, KEP-127): which of the node's ids they are, and how their volumes' files
//! are theirs.
//!
//! A pod's ids are written down beside its other files, and are given to nobody else before those go. On the disk, files
//! in volumes have the ids that the pod sees; mounts that are mapped make the two meet.
//!
//! <https://kubernetes.io/docs/concepts/workloads/pods/user-namespaces/>

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::core::v1::PodSpec;

use rustix::fs::{StatVfsMountFlags, statvfs};

use super::mounts;
use super::paths::Paths;
use super::spec::PodView;
use crate::network::namespaces::{IdRange, Namespace};
use crate::runtime::{BindMount, Users};

/// Why a pod's users cannot be told apart from the node's.
#[derive(Debug, thiserror::Error)]
pub(super) enum UsersError {
    #[error("hostUsers: false goes with none of hostNetwork, hostPID and hostIPC")]
    Shared,
    #[error("every range of user ids is some pod's; hostUsers: false needs one")]
    Exhausted,
    #[error("cannot read or write which ids a pod's users are, {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{} does not say which ids the pod's users are: {text:?}", path.display())]
    Unreadable { path: PathBuf, text: String },
    #[error(
        "cannot show {} under the ids of the pod's user namespace, for which its file system has to support mapped mounts: {source}",
        path.display()
    )]
    Mount { path: PathBuf, source: io::Error },
}

/// Whether a pod has users of its own.
pub(super) fn are_own(spec: &PodSpec) -> bool {
    spec.host_users == Some(false)
}

/// The same for a pod that may share nothing else with the node, either.
pub(super) fn check(spec: &PodSpec) -> Result<(), UsersError> {
    let shared = [spec.host_network, spec.host_pid, spec.host_ipc];
    match are_own(spec) && shared.contains(&Some(true)) {
        true => Err(UsersError::Shared),
        false => Ok(()),
    }
}

/// The ids of a pod's users, as they are written down; they are chosen before its namespaces are made.
pub(super) fn of(paths: &Paths, pod: &PodView) -> Result<Option<Users>, UsersError> {
    if !are_own(pod.spec()) {
        return Ok(None);
    }
    let uid = &pod.id.uid;
    let ids = give(paths, uid)?;
    let namespace = paths.pin(Namespace::User, uid);
    Ok(Some(Users { namespace, ids }))
}

/// Finds a pod's ids, or chooses them.
fn give(paths: &Paths, uid: &str) -> Result<IdRange, UsersError> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let own = paths.users(uid);
    if let Some(ids) = read(&own)? {
        return Ok(ids);
    }
    let failed = |source| UsersError::File {
        path: own.clone(),
        source,
    };
    let mut taken = BTreeSet::new();
    for entry in fs::read_dir(paths.pods()).map_err(failed)? {
        let other = entry.map_err(failed)?.file_name();
        taken.extend(read(&paths.users(&other.to_string_lossy()))?);
    }
    let ids = choose(&taken).ok_or(UsersError::Exhausted)?;
    write(&own, ids).map_err(failed)?;
    Ok(ids)
}

/// The lowest that are nobody's. The first of all are the node's own.
fn choose(taken: &BTreeSet<IdRange>) -> Option<IdRange> {
    let ranges = (1..u32::MAX / IdRange::SIZE).map(|at| IdRange {
        first: at * IdRange::SIZE,
    });
    let mut free = ranges.filter(|ids| !taken.contains(ids));
    free.next()
}

fn read(path: &Path) -> Result<Option<IdRange>, UsersError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            let path = path.to_owned();
            return Err(UsersError::File { path, source });
        }
    };
    match text.trim().parse() {
        Ok(first) => Ok(Some(IdRange { first })),
        Err(_) => Err(UsersError::Unreadable {
            path: path.to_owned(),
            text,
        }),
    }
}

/// Whole, and on the disk: what is forgotten could be given again.
fn write(path: &Path, ids: IdRange) -> io::Result<()> {
    let directory = path.parent().unwrap_or(path);
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    writeln!(file, "{}", ids.first)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    fs::File::open(directory)?.sync_all()
}

/// Shows each of a container's mounts under its own ids, but for those that are as they should be: of images, the layers are
/// mapped, and the memory that the pod's containers share is anybody's.
pub(super) fn map(
    list: &mut [BindMount],
    paths: &Paths,
    uid: &str,
    container: &str,
    users: &Users,
) -> Result<(), UsersError> {
    let shared = paths.shm(uid);
    for (at, mount) in list.iter_mut().enumerate() {
        let failed = |source| UsersError::Mount {
            path: mount.source.clone(),
            source,
        };
        let flags = statvfs(&mount.source)
            .map_err(|errno| failed(errno.into()))?
            .f_flag;
        let is_of_image = mount.no_exec;
        if mount.source != shared && !is_of_image {
            let target = paths.mounts(uid).join(format!("mapped-{container}-{at}"));
            mounts::mapped(&mount.source, &target, &users.namespace).map_err(failed)?;
            mount.source = target;
        }
        // What is barred where the mount comes from, nobody of another user namespace may allow.
        mount.read_only |= flags.contains(StatVfsMountFlags::RDONLY);
        mount.no_exec |= flags.contains(StatVfsMountFlags::NOEXEC);
        mount.no_suid |= flags.contains(StatVfsMountFlags::NOSUID);
        mount.no_dev |= flags.contains(StatVfsMountFlags::NODEV);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn nobody_has_what_is_chosen(taken in proptest::collection::btree_set(1_u32..40, 0..40)) {
            let range = |at| IdRange { first: at << 16 };
            let all: BTreeSet<IdRange> = taken.iter().copied().map(range).collect();
            let ids = choose(&all).unwrap();
            prop_assert!(!all.contains(&ids));
            prop_assert!(ids.first >= IdRange::SIZE && ids.first.is_multiple_of(IdRange::SIZE));
            prop_assert!((1..ids.first >> 16).all(|at| taken.contains(&at)));
        }
    }

    #[test]
    fn there_is_an_end_to_ids_and_the_last_is_nobodys() {
        let all = (1..1 << 16).map(|at| IdRange { first: at << 16 });
        let mut taken: BTreeSet<IdRange> = all.collect();
        assert_eq!(choose(&taken), None);
        let last = IdRange {
            first: 0xfffe << 16,
        };
        taken.remove(&last);
        assert_eq!(choose(&taken), Some(last));
    }

    #[test]
    fn a_pods_ids_are_its_own_as_long_as_its_directory_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path().into(), dir.path().into(), "/none".into());
        let mut given = Vec::new();
        for uid in ["a", "b", "c"] {
            fs::create_dir_all(paths.pod(uid)).unwrap();
            given.push(give(&paths, uid).unwrap());
        }
        // Another agent begins with nothing but these files.
        assert_eq!(give(&paths, "b").unwrap(), given[1]);
        assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), 3);
        fs::remove_dir_all(paths.pod("b")).unwrap();
        fs::create_dir_all(paths.pod("d")).unwrap();
        assert_eq!(give(&paths, "d").unwrap(), given[1]);
        // What cannot be read could be anybody's.
        fs::write(paths.users("a"), "").unwrap();
        fs::create_dir_all(paths.pod("e")).unwrap();
        assert!(matches!(
            give(&paths, "e"),
            Err(UsersError::Unreadable { .. })
        ));
    }

    #[test]
    fn who_shares_the_nodes_other_namespaces_has_its_users() {
        let spec = |field: &str, value: bool| -> PodSpec {
            let spec = serde_json::json!({"containers": [], "hostUsers": false, field: value});
            serde_json::from_value(spec).unwrap()
        };
        for field in ["hostNetwork", "hostPID", "hostIPC"] {
            assert!(check(&spec(field, true)).is_err(), "{field}");
            assert!(check(&spec(field, false)).is_ok(), "{field}");
        }
        let unasked = PodSpec {
            host_network: Some(true),
            ..PodSpec::default()
        };
        assert!(check(&unasked).is_ok() && !are_own(&unasked));
    }
}
