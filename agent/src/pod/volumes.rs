//! Volumes that are plain files and directories of the node: emptyDir, hostPath, ConfigMap, Secret and the downward API.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, HostPathVolumeSource, KeyToPath, Secret, Volume,
};
use kube::{Api, Client};

use super::env::{Context, field};
use super::sandbox::write_if_changed;
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

/// Makes a volume under `directory` and gives the path that containers mount.
pub(super) async fn prepare(
    client: &Client,
    context: &Context<'_>,
    directory: &Path,
    volume: &Volume,
) -> Result<PathBuf, VolumeError> {
    let name = &volume.name;
    if let Some(host) = &volume.host_path {
        return host_path(name, host);
    }
    let path = directory.join(name);
    let write = |source| VolumeError::Write {
        volume: name.clone(),
        path: path.clone(),
        source,
    };
    if volume.empty_dir.is_some() {
        if !path.exists() {
            fs::create_dir_all(&path).map_err(write)?;
            // Whoever the container runs as may use it.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).map_err(write)?;
        }
        return Ok(path);
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
        select(name, data, source.items.as_deref(), source.default_mode)?
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
        select(name, data, source.items.as_deref(), source.default_mode)?
    } else if let Some(source) = &volume.downward_api {
        downward(
            name,
            context,
            source.items.as_deref().unwrap_or_default(),
            source.default_mode,
        )?
    } else {
        return Err(VolumeError::Refused {
            volume: name.clone(),
            reason: "only emptyDir, hostPath, configMap, secret and downwardAPI volumes are supported on this node".into(),
        });
    };
    write_files(&path, files).map_err(write)?;
    Ok(path)
}

/// Where a volume mount's source is, below its volume.
pub(super) fn bind(
    volume: &str,
    root: &Path,
    destination: &str,
    sub_path: Option<&str>,
    read_only: bool,
) -> Result<BindMount, VolumeError> {
    let source = match sub_path.filter(|path| !path.is_empty()) {
        None => root.to_owned(),
        Some(path) => {
            let path = Path::new(path);
            let plain = path
                .components()
                .all(|part| matches!(part, std::path::Component::Normal(_)));
            if !plain {
                return Err(VolumeError::Refused {
                    volume: volume.to_owned(),
                    reason: format!("subPath {} must stay inside the volume", path.display()),
                });
            }
            let source = root.join(path);
            if !source.exists() {
                fs::create_dir_all(&source).map_err(|error| VolumeError::Write {
                    volume: volume.to_owned(),
                    path: source.clone(),
                    source: error,
                })?;
            }
            // A container may have put a link there that leads out of the volume.
            let (real, inside) = (fs::canonicalize(&source), fs::canonicalize(root));
            match (real, inside) {
                (Ok(real), Ok(inside)) if real.starts_with(&inside) => real,
                _ => {
                    return Err(VolumeError::Refused {
                        volume: volume.to_owned(),
                        reason: format!("subPath {} leads out of the volume", path.display()),
                    });
                }
            }
        }
    };
    Ok(BindMount {
        source,
        destination: destination.into(),
        read_only,
    })
}

fn host_path(volume: &str, host: &HostPathVolumeSource) -> Result<PathBuf, VolumeError> {
    let path = PathBuf::from(&host.path);
    let fail = |source| VolumeError::Write {
        volume: volume.to_owned(),
        path: path.clone(),
        source,
    };
    let refuse = |reason: String| VolumeError::Refused {
        volume: volume.to_owned(),
        reason,
    };
    let shown = path.display();
    match host.type_.as_deref().unwrap_or_default() {
        "DirectoryOrCreate" => fs::create_dir_all(&path).map_err(fail)?,
        "FileOrCreate" => {
            fs::File::options()
                .create(true)
                .append(true)
                .open(&path)
                .map_err(fail)?;
        }
        "Directory" if !path.is_dir() => {
            return Err(refuse(format!("hostPath {shown} is not a directory")));
        }
        "File" if !path.is_file() => return Err(refuse(format!("hostPath {shown} is not a file"))),
        "" | "Directory" | "File" | "Socket" | "CharDevice" | "BlockDevice" if !path.exists() => {
            return Err(refuse(format!("hostPath {shown} does not exist")));
        }
        "" | "Directory" | "File" | "Socket" | "CharDevice" | "BlockDevice" => {}
        other => return Err(refuse(format!("hostPath type {other:?} is not known"))),
    }
    Ok(path)
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
            let value = item
                .field_ref
                .as_ref()
                .and_then(|source| field(context, &source.field_path));
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
        .all(|part| matches!(part, std::path::Component::Normal(_)))
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

fn write_files(directory: &Path, files: Vec<FileToWrite>) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    for (path, bytes, mode) in files {
        let path = directory.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        write_if_changed(&path, &bytes)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}
