//! The node's devices, which privileged containers get.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use oci_spec::OciSpecError;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType, Spec};
use rustix::fs::{major, minor};

use super::RuntimeError;

/// Directories of `/dev` that a container has for itself, and the console, which is its terminal.
const OWN: [&str; 5] = ["pts", "shm", "fd", "mqueue", "console"];

/// Adds the nodes of all devices that are below `directory`, as which the container will see them in `/dev`.
pub(super) fn add(spec: &mut Spec, directory: &Path) -> Result<(), RuntimeError> {
    let mut found = Vec::new();
    collect(directory, Path::new("/dev"), &mut found)
        .map_err(|error| RuntimeError::Config(format!("no valid OCI spec: {error}")))?;
    if let Some(linux) = spec.linux_mut() {
        linux.set_devices(Some(found));
    }
    Ok(())
}

/// What vanishes meanwhile, or cannot be read, is not there.
fn collect(
    directory: &Path,
    seen_as: &Path,
    found: &mut Vec<LinuxDevice>,
) -> Result<(), OciSpecError> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let is_own = name.to_str().is_some_and(|name| OWN.contains(&name));
        // Of a link, what it leads to is there under its own name.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        let (kind, path) = (metadata.file_type(), seen_as.join(&name));
        if is_own {
            continue;
        }
        if kind.is_dir() {
            collect(&entry.path(), &path, found)?;
            continue;
        }
        let of = match (kind.is_char_device(), kind.is_block_device()) {
            (true, _) => LinuxDeviceType::C,
            (_, true) => LinuxDeviceType::B,
            _ => continue,
        };
        found.push(
            LinuxDeviceBuilder::default()
                .path(path)
                .typ(of)
                .major(i64::from(major(metadata.rdev())))
                .minor(i64::from(minor(metadata.rdev())))
                .file_mode(metadata.mode() & 0o7777)
                .uid(metadata.uid())
                .gid(metadata.gid())
                .build()?,
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_devices_are_found_but_for_what_is_each_containers_own() {
        let mut spec = Spec::default();
        add(&mut spec, Path::new("/dev")).unwrap();
        let devices = spec.linux().as_ref().unwrap().devices().clone().unwrap();
        let named = |path: &str| devices.iter().find(|it| it.path() == Path::new(path));
        let null = named("/dev/null").unwrap();
        assert_eq!(
            (null.typ(), null.major(), null.minor(), null.file_mode()),
            (LinuxDeviceType::C, 1, 3, Some(0o666))
        );
        let is_own = |it: &LinuxDevice| it.path().starts_with("/dev/pts");
        assert!(!devices.iter().any(is_own) && named("/dev/console").is_none());
    }
}
