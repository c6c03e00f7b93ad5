//! Kernels of Debian's packages, unpacked below `target`: booted under qemu by a test, never installed.

use std::path::{Path, PathBuf};

use crate::cluster::target;
use crate::command::{command, output};
use crate::{Error, Result, debian, host};

/// The series that the programs are tried on, beside the kernel that runs here: the oldest and the newest that Debian 12
/// has.
pub const SERIES: [&str; 2] = ["6.1", "6.12"];

/// A kernel, ready to boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    pub image: PathBuf,
    /// `/lib/modules/RELEASE/kernel` of its package.
    pub modules: PathBuf,
}

/// The kernel of a series, if it was fetched.
pub fn find(series: &str) -> Option<Kernel> {
    let root = directory(series);
    let image = only_entry(&root.join("boot"), "vmlinuz-")?;
    let modules = only_entry(&root.join("lib/modules"), series)?.join("kernel");
    Some(Kernel { image, modules })
}

/// Fetches the newest kernel of a series for virtual machines.
pub fn fetch(series: &str) -> Result<()> {
    let names = output(command("apt-cache pkgnames").arg(format!("linux-image-{series}.")))?;
    let newest = newest(names.lines()).ok_or_else(|| {
        Error::Unexpected(format!(
            "Debian's archive has no linux-image-{series}.*-cloud-amd64; run `apt-get update`"
        ))
    })?;
    // Beside its place: what was unpacked in part is not taken for a kernel.
    let (place, part) = (directory(series), directory(&format!("{series}.part")));
    remove(&place)?;
    remove(&part)?;
    host::create_dir(&part)?;
    debian::fetch(newest, &part)?;
    std::fs::rename(&part, &place).map_err(|source| Error::File {
        path: place,
        source,
    })
}

fn remove(directory: &Path) -> Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(Error::File {
            path: directory.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

fn directory(series: &str) -> PathBuf {
    target().join("kernels").join(series)
}

/// The highest version among the packages of signed kernels for virtual machines.
fn newest<'a>(names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names
        .filter(|name| name.ends_with("-cloud-amd64"))
        .max_by_key(|name| {
            let numbers = name.split(|c: char| !c.is_ascii_digit());
            numbers
                .filter_map(|digits| digits.parse().ok())
                .collect::<Vec<u32>>()
        })
}

fn only_entry(directory: &Path, prefix: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(directory).ok()?;
    entries.flatten().find_map(|entry| {
        let name = entry.file_name();
        name.to_string_lossy()
            .starts_with(prefix)
            .then(|| entry.path())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_version_is_the_newest() {
        let names = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-57-cloud-amd64-unsigned",
            "linux-image-6.1.0-58-amd64",
        ];
        assert_eq!(newest(names.into_iter()), Some(names[1]));
        let names = [
            "linux-image-6.12.100+deb12-cloud-amd64",
            "linux-image-6.12.99+deb12-cloud-amd64",
        ];
        assert_eq!(newest(names.into_iter()), Some(names[0]));
        assert_eq!(newest([].into_iter()), None);
    }
}
