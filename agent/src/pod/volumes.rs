//! Volumes that are files and directories of the node: emptyDir, hostPath, ConfigMap, Secret and the downward API.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, EmptyDirVolumeSource, KeyToPath, Secret, Volume,
};
use kube::{Api, Client};
use rustix::mount::MountFlags;

use super::env::{Context, field};
use super::files::write_if_changed;
use super::paths::Paths;
use super::spec::amount;
use super::{host_path, mounts, resource_field};
use crate::runtime::BindMount;

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
    #[error("volume \"{volume}\": cannot write {}: {source}", path.display())]
    Write {
        volume: String,
        path: PathBuf,
        source: io::Error,
    },
}

/// File mode where neither the volume nor the item names one.
const DEFAULT_MODE: i32 = 0o644;

/// Where a volume of the pod `uid` is on the node.
pub(super) fn path(paths: &Paths, uid: &str, volume: &Volume) -> PathBuf {
    match (&volume.host_path, &volume.empty_dir) {
        (Some(host), _) => PathBuf::from(&host.path),
        (_, Some(empty)) if in_memory(empty) => {
            paths.mounts(uid).join(format!("memory-{}", volume.name))
        }
        _ => paths.volumes(uid).join(&volume.name),
    }
}

fn in_memory(empty: &EmptyDirVolumeSource) -> bool {
    empty.medium.as_deref() == Some("Memory")
}

/// Makes a volume.
pub(super) async fn prepare(
    client: &Client,
    context: &Context<'_>,
    paths: &Paths,
    volume: &Volume,
) -> Result<(), VolumeError> {
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
    let security = context.pod.spec().security_context.as_ref();
    let group = security
        .and_then(|security| security.fs_group)
        .and_then(|group| u32::try_from(group).ok());
    if let Some(host) = &volume.host_path {
        let kind = host.type_.as_deref().unwrap_or_default();
        return host_path::check(&path, kind)
            .map_err(|error| refuse(format!("hostPath {}: {error}", path.display())));
    }
    if let Some(empty) = &volume.empty_dir {
        let medium = empty.medium.as_deref().unwrap_or_default();
        if !matches!(medium, "" | "Memory") {
            return Err(refuse(format!(
                "emptyDir medium {medium:?} is not supported on this node"
            )));
        }
        return empty_dir(&path, empty)
            .and_then(|()| match group {
                // What is in it is the containers' own, made by the group already.
                Some(group) => give_to_group(&path, group, 0o660),
                None => Ok(()),
            })
            .map_err(write);
    }
    let namespace = &context.pod.id.namespace;
    let files = if let Some(source) = &volume.config_map {
        let api = Api::<ConfigMap>::namespaced(client.clone(), namespace);
        let found = api.get_opt(&source.name).await;
        let data = given(name, "configmap", &source.name, found)?.map(|map| {
            let binary = map
                .binary_data
                .unwrap_or_default()
                .into_iter()
                .map(|(key, value)| (key, value.0));
            map.data
                .unwrap_or_default()
                .into_iter()
                .map(|(key, value)| (key, value.into_bytes()))
                .chain(binary)
                .collect()
        });
        let data = required(name, "configmap", &source.name, source.optional, data)?;
        let items = source.items.as_deref();
        select(name, data, items, source.optional, source.default_mode)?
    } else if let Some(source) = &volume.secret {
        let secret = source.secret_name.as_deref().unwrap_or_default();
        let api = Api::<Secret>::namespaced(client.clone(), namespace);
        let found = api.get_opt(secret).await;
        let data = given(name, "secret", secret, found)?.map(|found| {
            found
                .data
                .unwrap_or_default()
                .into_iter()
                .map(|(key, value)| (key, value.0))
                .collect()
        });
        let data = required(name, "secret", secret, source.optional, data)?;
        let items = source.items.as_deref();
        select(name, data, items, source.optional, source.default_mode)?
    } else if let Some(source) = &volume.downward_api {
        downward(
            name,
            context,
            source.items.as_deref().unwrap_or_default(),
            source.default_mode,
        )?
    } else {
        return Err(refuse(
            "only emptyDir, hostPath, configMap, secret and downwardAPI volumes are supported on this node".into(),
        ));
    };
    write_files(&path, files, group).map_err(write)
}

/// Gives a directory or file to the pod's `fsGroup`, which gets the rights `mode`, as upstream does. What is made in a
/// directory will be the group's, too.
fn give_to_group(path: &Path, group: u32, mode: u32) -> io::Result<()> {
    chown(path, None, Some(group))?;
    let metadata = fs::metadata(path)?;
    let directory = if metadata.is_dir() { 0o2110 } else { 0 };
    let mode = metadata.permissions().mode() | mode | directory;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn empty_dir(path: &Path, empty: &EmptyDirVolumeSource) -> io::Result<()> {
    // Whoever the container runs as may use it.
    const MODE: u32 = 0o777;
    if in_memory(empty) {
        let limit = empty.size_limit.as_ref().and_then(amount);
        let limit = limit.map(|bytes| bytes as u64).filter(|bytes| *bytes > 0);
        return mounts::memory(path, limit, MODE, MountFlags::NOSUID | MountFlags::NODEV);
    }
    if !path.exists() {
        fs::create_dir_all(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(MODE))?;
    }
    Ok(())
}

/// What a container mounts of the volume at `root`. A part of it is mounted at `pin` first, which pins it: whatever becomes
/// of the name in the volume, the container gets this and nothing else.
pub(super) fn bind(
    volume: &str,
    root: &Path,
    destination: &str,
    sub_path: Option<&str>,
    pin: PathBuf,
    read_only: bool,
) -> Result<BindMount, VolumeError> {
    let source = match sub_path.filter(|path| !path.is_empty()) {
        None => root.to_owned(),
        Some(path) => {
            let path = inside(volume, path)?;
            mounts::sub_path(root, &path, &pin).map_err(|error| VolumeError::Refused {
                volume: volume.to_owned(),
                reason: format!("subPath {}: {error}", path.display()),
            })?;
            pin
        }
    };
    Ok(BindMount {
        source,
        destination: destination.into(),
        read_only,
    })
}

type Data = BTreeMap<String, Vec<u8>>;

fn given<T>(
    volume: &str,
    kind: &'static str,
    name: &str,
    found: Result<Option<T>, kube::Error>,
) -> Result<Option<T>, VolumeError> {
    found.map_err(|source| VolumeError::Read {
        volume: volume.to_owned(),
        kind,
        name: name.to_owned(),
        source: Box::new(source),
    })
}

fn required(
    volume: &str,
    kind: &'static str,
    name: &str,
    optional: Option<bool>,
    data: Option<Data>,
) -> Result<Data, VolumeError> {
    match data {
        Some(data) => Ok(data),
        None if optional == Some(true) => Ok(Data::new()),
        None => Err(VolumeError::NotFound {
            volume: volume.to_owned(),
            kind,
            name: name.to_owned(),
        }),
    }
}

/// A file to write: path in the volume, contents, mode.
type FileToWrite = (PathBuf, Vec<u8>, u32);

fn select(
    volume: &str,
    data: Data,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    default_mode: Option<i32>,
) -> Result<Vec<FileToWrite>, VolumeError> {
    let default = default_mode.unwrap_or(DEFAULT_MODE);
    let Some(items) = items else {
        return Ok(data
            .into_iter()
            .map(|(key, value)| (key.into(), value, mode(default)))
            .collect());
    };
    items
        .iter()
        .filter(|item| optional != Some(true) || data.contains_key(&item.key))
        .map(|item| {
            let value = data.get(&item.key).ok_or_else(|| VolumeError::Refused {
                volume: volume.to_owned(),
                reason: format!("references non-existent key: {}", item.key),
            })?;
            Ok((
                inside(volume, &item.path)?,
                value.clone(),
                mode(item.mode.unwrap_or(default)),
            ))
        })
        .collect()
}

fn downward(
    volume: &str,
    context: &Context<'_>,
    items: &[DownwardAPIVolumeFile],
    default_mode: Option<i32>,
) -> Result<Vec<FileToWrite>, VolumeError> {
    let default = default_mode.unwrap_or(DEFAULT_MODE);
    items
        .iter()
        .map(|item| {
            let value = match (&item.field_ref, &item.resource_field_ref) {
                (Some(source), _) => field(context, &source.field_path),
                (None, Some(source)) => {
                    resource_field::value(context.pod, None, context.allocatable, source)
                }
                (None, None) => None,
            };
            let value = value.ok_or_else(|| VolumeError::Refused {
                volume: volume.to_owned(),
                reason: format!("downward API item {:?} names no known field", item.path),
            })?;
            Ok((
                inside(volume, &item.path)?,
                value.into_bytes(),
                mode(item.mode.unwrap_or(default)),
            ))
        })
        .collect()
}

fn inside(volume: &str, path: &str) -> Result<PathBuf, VolumeError> {
    let path = Path::new(path);
    if path
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
    {
        return Ok(path.to_owned());
    }
    Err(VolumeError::Refused {
        volume: volume.to_owned(),
        reason: format!("path {} must stay inside the volume", path.display()),
    })
}

fn mode(mode: i32) -> u32 {
    mode.unsigned_abs() & 0o7777
}

fn write_files(directory: &Path, files: Vec<FileToWrite>, group: Option<u32>) -> io::Result<()> {
    /// Containers mount these volumes read-only.
    const READ: u32 = 0o440;
    fs::create_dir_all(directory)?;
    for (path, bytes, mode) in files {
        let path = directory.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        write_if_changed(&path, &bytes)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        if let Some(group) = group {
            let within = path
                .ancestors()
                .take_while(|path| path.starts_with(directory));
            for path in within {
                give_to_group(path, group, READ)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_pods_group_reads_what_only_root_could() {
        if !crate::testing::root_or_skip("giving files away needs root") {
            return;
        }
        let home = tempfile::tempdir().unwrap();
        let volume = home.path().join("volume");
        let files = || vec![("dir/key".into(), b"text".to_vec(), 0o400)];
        for _ in 0..2 {
            write_files(&volume, files(), Some(3000)).unwrap();
            for (path, mode) in [("dir/key", 0o100_440), ("dir", 0o42_755), ("", 0o42_755)] {
                let metadata = fs::metadata(volume.join(path)).unwrap();
                assert_eq!((metadata.gid(), metadata.mode()), (3000, mode), "{path}");
            }
        }
        assert_eq!(fs::metadata(home.path()).unwrap().gid(), 0);
        write_files(&home.path().join("other"), files(), None).unwrap();
        let alone = fs::metadata(home.path().join("other/dir/key")).unwrap();
        assert_eq!((alone.gid(), alone.mode()), (0, 0o100_400));
    }

    #[test]
    fn an_optional_source_may_lack_what_the_items_name() {
        let item = |key: &str| KeyToPath {
            key: key.into(),
            path: key.into(),
            mode: None,
        };
        let data = || Data::from([("there".to_owned(), b"text".to_vec())]);
        let items = [item("there"), item("absent")];
        let select = |optional| select("v", data(), Some(&items), optional, None);
        let files = select(Some(true)).unwrap();
        assert_eq!(files, [("there".into(), b"text".to_vec(), 0o644)]);
        let error = select(None).unwrap_err();
        assert!(error.to_string().contains("non-existent key: absent"));
    }
}
