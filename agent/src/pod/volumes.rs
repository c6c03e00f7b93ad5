//! Volumes that are files and directories of the node: emptyDir, hostPath, and those with contents that have a source
//! elsewhere, which follow it.

mod atomic;
mod contents;
mod token;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Volume, VolumeMount};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use rustix::mount::MountFlags;
use tokio::sync::Semaphore;

use super::env::{self, Context};
use super::mounts::Missing;
use super::paths::Paths;
use super::spec::{PodView, amount};
use super::{host_path, image_volumes, mounts, resources};
use crate::runtime::{BindMount, Propagation};
use crate::slow;

pub(super) use contents::{Contents as ReadContents, Sources, has_contents};
use contents::{fs_group, inside};
use token::TokenError;
pub(super) use token::Tokens;

/// Why a volume cannot be made. The text goes into the container's status.
#[derive(Debug, thiserror::Error)]
pub(super) enum VolumeError {
    #[error("volume \"{volume}\": {kind} \"{name}\" not found")]
    NotFound {
        volume: String,
        kind: &'static str,
        name: String,
    },
    #[error("volume \"{volume}\": {reason}")]
    Refused { volume: String, reason: String },
    #[error("volume \"{volume}\": cannot read {kind} \"{name}\": {source}")]
    Read {
        volume: String,
        kind: &'static str,
        name: String,
        source: Box<kube::Error>,
    },
    #[error("volume \"{volume}\": no token of service account \"{account}\": {source}")]
    Token {
        volume: String,
        account: String,
        source: Box<TokenError>,
    },
    #[error("volume \"{volume}\": cannot write {}: {source}", path.display())]
    Write {
        volume: String,
        path: PathBuf,
        source: io::Error,
    },
}

impl VolumeError {
    /// What an Event says of it, as upstream.
    pub(super) fn told(&self) -> String {
        let text = self.to_string();
        // No volume's name has a quotation mark.
        let rest = text.strip_prefix("volume ").unwrap_or(&text);
        let rest = rest.replacen("\": ", "\" : ", 1);
        format!("MountVolume.SetUp failed for volume {rest}")
    }
}

/// Contents are looked at again after this, as upstream; up to a quarter later, so that not all pods' are at once.
const LOOK_AGAIN: SignedDuration = SignedDuration::from_secs(60);
/// What is at a path is told within this, or its file system is taken not to answer.
const HOST_PATH: Duration = Duration::from_secs(10);

/// Where a volume of the pod `uid` is on the node.
pub(super) fn path(paths: &Paths, uid: &str, volume: &Volume) -> PathBuf {
    match (&volume.host_path, &volume.empty_dir) {
        (Some(host), _) => PathBuf::from(&host.path),
        (_, Some(empty)) if in_memory(empty) => {
            paths.mounts(uid).join(format!("memory-{}", volume.name))
        }
        _ if volume.image.is_some() => image_volumes::path(paths, uid, &volume.name),
        _ if contents::is_secret(volume) => {
            paths.mounts(uid).join(format!("secret-{}", volume.name))
        }
        _ => paths.volumes(uid).join(&volume.name),
    }
}

/// Of what a directory is made that begins empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Medium {
    Disk,
    Memory,
    /// Pages of this size, in bytes; without one, of the size that the pod's containers may have.
    HugePages(Option<u64>),
}

impl Medium {
    fn of(empty: &EmptyDirVolumeSource) -> Option<Medium> {
        match empty.medium.as_deref().unwrap_or_default() {
            "" => Some(Medium::Disk),
            "Memory" => Some(Medium::Memory),
            "HugePages" => Some(Medium::HugePages(None)),
            other => {
                let size = other.strip_prefix("HugePages-")?.to_owned();
                let size = amount(&Quantity(size)).filter(|bytes| *bytes > 0.0)?;
                Some(Medium::HugePages(Some(size as u64)))
            }
        }
    }
}

/// The size of the pages that a pod has a directory of, in bytes, or why it cannot have one.
fn page_size(asked: Option<u64>, sizes: &BTreeSet<u64>) -> Result<u64, String> {
    match (asked, sizes.len()) {
        (Some(size), _) if sizes.contains(&size) => Ok(size),
        (None, 1) => Ok(sizes.iter().copied().next().unwrap_or_default()),
        (None, 2..) => Err(
            "medium \"HugePages\" is for pods with huge pages of one size; name the size".into(),
        ),
        _ => Err("no container of the pod has a limit of huge pages of that size".into()),
    }
}

fn in_memory(empty: &EmptyDirVolumeSource) -> bool {
    Medium::of(empty).is_some_and(|medium| medium != Medium::Disk)
}

/// Makes a volume. Says when its contents have to be looked at again; `None` if they never change.
pub(super) async fn prepare(
    sources: &Sources<'_>,
    context: &Context<'_>,
    paths: &Paths,
    volume: &Volume,
) -> Result<Option<Timestamp>, VolumeError> {
    let name = &volume.name;
    let path = path(paths, &context.pod.id.uid, volume);
    let write = |source| VolumeError::Write {
        volume: name.clone(),
        path: path.clone(),
        source,
    };
    let refuse = |reason: String| VolumeError::Refused {
        volume: name.clone(),
        reason,
    };
    if let Some(host) = &volume.host_path {
        static CHECKS: Semaphore = Semaphore::const_new(slow::PLACES);
        let kind = host.type_.clone().unwrap_or_default();
        let checked = path.clone();
        let check = move || host_path::check(&checked, &kind);
        let found = slow::within(HOST_PATH, &CHECKS, check).await;
        let why = match found {
            Some(Ok(())) => return Ok(None),
            Some(Err(error)) => error.to_string(),
            None => "its file system does not answer".to_owned(),
        };
        return Err(refuse(format!("hostPath {}: {why}", path.display())));
    }
    if volume.image.is_some() {
        // Mounted for the first container that has it: until then the image may be on its way.
        return Ok(None);
    }
    let group = fs_group(context.pod);
    if let Some(empty) = &volume.empty_dir {
        let made = match Medium::of(empty) {
            None => {
                let medium = empty.medium.as_deref().unwrap_or_default();
                return Err(refuse(format!("unknown storage medium {medium:?}")));
            }
            Some(Medium::HugePages(asked)) => {
                let sizes = resources::huge_page_sizes(context.pod);
                let size = page_size(asked, &sizes);
                let size = size.map_err(|why| refuse(format!("emptyDir: {why}")))?;
                mounts::huge_pages(&path, size, size_limit(empty))
            }
            Some(Medium::Memory) => {
                let flags = MountFlags::NOSUID | MountFlags::NODEV;
                let size = memory_size(context.pod, context.allocatable, empty);
                mounts::memory(&path, size, EMPTY_DIR_MODE, flags)
            }
            Some(Medium::Disk) => empty_dir(&path),
        };
        return made
            .and_then(|()| match group {
                // What is in it is the containers' own, made by the group already.
                Some(group) => give_to_group(&path, group, 0o660),
                None => Ok(()),
            })
            .map(|()| None)
            .map_err(write);
    }
    let contents = read(sources, context, volume).await?;
    self::write(context.pod, paths, volume, &contents).map(Some)
}

/// Reads what a volume with contents is to hold.
pub(super) async fn read(
    sources: &Sources<'_>,
    context: &Context<'_>,
    volume: &Volume,
) -> Result<ReadContents, VolumeError> {
    let contents = contents::read(sources, context, volume).await?;
    contents.ok_or_else(|| VolumeError::Refused {
        volume: volume.name.clone(),
        reason: "only emptyDir, hostPath, configMap, secret, downwardAPI, projected and image volumes are supported on this node".into(),
    })
}

/// Writes what was read, where that is not there yet; says when to look again.
pub(super) fn write(
    pod: &PodView,
    paths: &Paths,
    volume: &Volume,
    contents: &ReadContents,
) -> Result<Timestamp, VolumeError> {
    let path = path(paths, &pod.id.uid, volume);
    let failed = |source| VolumeError::Write {
        volume: volume.name.clone(),
        path: path.clone(),
        source,
    };
    if contents::is_secret(volume) {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mounts::memory(&path, None, 0o755, flags).map_err(failed)?;
    }
    let now = Timestamp::now();
    atomic::write(&path, &contents.files, fs_group(pod), now).map_err(failed)?;
    let usual = look_again(&pod.id.uid, now);
    Ok(contents.look_again.map_or(usual, |at| at.min(usual)))
}

/// When the contents of the pod's volumes are looked at again.
pub(super) fn look_again(uid: &str, now: Timestamp) -> Timestamp {
    let spread = uid.bytes().fold(0_u8, u8::wrapping_add);
    let later = LOOK_AGAIN / 4 * i32::from(spread) / 256;
    now.checked_add(LOOK_AGAIN + later)
        .unwrap_or(Timestamp::MAX)
}

/// Gives a directory to the pod's `fsGroup`, which gets the rights `mode`, as upstream does. What is made in it will be the
/// group's, too.
fn give_to_group(path: &Path, group: u32, mode: u32) -> io::Result<()> {
    chown(path, None, Some(group))?;
    let mode = fs::metadata(path)?.permissions().mode() | mode | 0o2110;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Whoever a container runs as may use a directory that begins empty.
const EMPTY_DIR_MODE: u32 = 0o777;

/// How much may be in a directory in memory, in bytes.
/// The bytes of a directory in memory: what is in it counts as its pod's memory, so that it has no more than the pod, and the
/// pod no more than the node gives pods.
fn memory_size(
    pod: &PodView,
    allocatable: &BTreeMap<String, Quantity>,
    empty: &EmptyDirVolumeSource,
) -> Option<u64> {
    let bytes = |amount: f64| amount as u64;
    let node = allocatable.get("memory").and_then(amount).map(bytes);
    let own = resources::of_pod(pod).memory_limit;
    let own = own.and_then(|limit| u64::try_from(limit).ok());
    [size_limit(empty), own, node].into_iter().flatten().min()
}

fn size_limit(empty: &EmptyDirVolumeSource) -> Option<u64> {
    let limit = empty.size_limit.as_ref().and_then(amount);
    limit.map(|bytes| bytes as u64).filter(|bytes| *bytes > 0)
}

fn empty_dir(path: &Path) -> io::Result<()> {
    if !path.exists() {
        fs::create_dir_all(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(EMPTY_DIR_MODE))?;
    }
    Ok(())
}

/// What a container mounts of the volume at `root`. A part of it is mounted at `pin` first, which pins it: whatever becomes
/// of the name in the volume, the container gets this and nothing else.
pub(super) fn bind(
    volume: &Volume,
    root: &Path,
    mount: &VolumeMount,
    sub_path: Option<&str>,
    pin: PathBuf,
) -> Result<BindMount, VolumeError> {
    let name = &volume.name;
    let is_image = volume.image.is_some();
    let missing = if is_image {
        Missing::Refused
    } else {
        Missing::Made
    };
    let source = match sub_path.filter(|path| !path.is_empty()) {
        None => root.to_owned(),
        Some(path) => {
            let path = inside(name, path)?;
            mounts::sub_path(root, &path, &pin, missing).map_err(|error| VolumeError::Refused {
                volume: name.clone(),
                reason: format!("subPath {}: {error}", path.display()),
            })?;
            pin
        }
    };
    let propagation = match mount.mount_propagation.as_deref() {
        Some("HostToContainer") => Propagation::FromNode,
        Some("Bidirectional") => Propagation::Both,
        _ => Propagation::None,
    };
    if propagation > Propagation::None && propagation > mounts::peers(&source).unwrap_or_default() {
        return Err(VolumeError::Refused {
            volume: name.clone(),
            reason: format!(
                "mountPropagation: {} is on a mount that the node does not share",
                root.display()
            ),
        });
    }
    let writable = volume.host_path.is_some() || volume.empty_dir.is_some();
    Ok(BindMount {
        source,
        destination: mount.mount_path.clone().into(),
        read_only: mount.read_only == Some(true) || !writable,
        is_recursive: is_recursive(mount),
        no_exec: is_image,
        propagation,
        ..BindMount::default()
    })
}

/// Whether what is mounted below a read-only mount is read-only, too: this node can always see to that.
pub(super) fn is_recursive(mount: &VolumeMount) -> bool {
    let asked = mount.recursive_read_only.as_deref();
    matches!(asked, Some("Enabled" | "IfPossible"))
}

/// The part of a volume that a mount is of. In `subPathExpr` each variable has to be known.
pub(super) fn sub_path(
    mount: &VolumeMount,
    env: &[(String, String)],
) -> Result<Option<String>, VolumeError> {
    let expression = mount.sub_path_expr.as_deref().unwrap_or_default();
    if expression.is_empty() {
        return Ok(mount.sub_path.clone());
    }
    let path = env::expand_all(expression, env).map_err(|missing| VolumeError::Refused {
        volume: mount.name.clone(),
        reason: format!("subPathExpr {expression}: missing value for {missing:?}"),
    })?;
    Ok(Some(path))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_directory_in_memory_has_no_more_than_its_pod_and_the_node() {
        let pod = |limits: serde_json::Value| {
            let containers = json!([{"name": "a", "resources": {"limits": limits}}]);
            let object = json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"}, "spec": {"containers": containers}});
            PodView::new(serde_json::from_value(object).unwrap()).unwrap()
        };
        let node = |memory: &str| BTreeMap::from([("memory".to_owned(), Quantity(memory.into()))]);
        let empty = |limit: Option<&str>| EmptyDirVolumeSource {
            size_limit: limit.map(|limit| Quantity(limit.into())),
            ..EmptyDirVolumeSource::default()
        };
        let (free, bound) = (pod(json!({})), pod(json!({"memory": "64Mi"})));
        let size = |pod, memory, limit| memory_size(pod, &node(memory), &empty(limit));
        assert_eq!(size(&free, "1Gi", None), Some(1 << 30));
        assert_eq!(size(&free, "1Gi", Some("2Gi")), Some(1 << 30));
        assert_eq!(size(&bound, "1Gi", None), Some(64 << 20));
        assert_eq!(size(&bound, "1Gi", Some("1Mi")), Some(1 << 20));
        assert_eq!(memory_size(&free, &BTreeMap::new(), &empty(None)), None);
    }

    #[test]
    fn a_directory_of_huge_pages_has_a_size_that_the_pod_may_have() {
        let medium = |name: &str| {
            Medium::of(&EmptyDirVolumeSource {
                medium: Some(name.to_owned()),
                size_limit: None,
            })
        };
        assert_eq!(medium(""), Some(Medium::Disk));
        assert_eq!(medium("HugePages"), Some(Medium::HugePages(None)));
        assert_eq!(
            medium("HugePages-2Mi"),
            Some(Medium::HugePages(Some(2 << 20)))
        );
        assert_eq!(medium("HugePages-x"), None);
        assert_eq!(medium("Tape"), None);
        let (none, one) = (BTreeSet::new(), BTreeSet::from([2 << 20]));
        let two = BTreeSet::from([2 << 20, 1 << 30]);
        assert_eq!(page_size(None, &one), Ok(2 << 20));
        assert_eq!(page_size(Some(1 << 30), &two), Ok(1 << 30));
        assert!(page_size(None, &two).unwrap_err().contains("name the size"));
        for (asked, sizes) in [(None, &none), (Some(1 << 30), &one)] {
            assert!(page_size(asked, sizes).is_err());
        }
    }
}
