//! The part of it that is files: mounts, pins, directories.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::{Places, Residue};

/// What is mounted below an agent's directories, the innermost first.
pub(super) fn mounts(places: &Places) -> io::Result<Vec<Residue>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let pods = places.root_dir.join("pods");
    let found = mounts_below(&text, &[&places.run_dir, &pods]);
    Ok(found.into_iter().map(Residue::Mount).collect())
}

/// Whether an agent has run pods here, and not just routed services.
pub(super) fn pods_ran(places: &Places) -> bool {
    let signs = [places.root_dir.join("pods"), places.run_dir.join("netns")];
    signs.iter().any(|sign| sign.exists())
}

/// The mount points below the directories in the text of `/proc/self/mountinfo`, the innermost first, each once.
fn mounts_below(mountinfo: &str, directories: &[&Path]) -> Vec<PathBuf> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    let mut found: Vec<PathBuf> = points
        .map(|point| PathBuf::from(unescaped(point)))
        .filter(|point| {
            directories
                .iter()
                .any(|directory| point.starts_with(directory))
        })
        .collect();
    found.sort();
    found.dedup();
    found.reverse();
    found
}

/// The kernel writes white space and backslashes as three octal digits.
fn unescaped(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part
            .get(..3)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (code, part.get(3..)) {
            (Some(code), Some(rest)) => {
                plain.push(char::from(code));
                plain.push_str(rest);
            }
            _ => {
                plain.push('\\');
                plain.push_str(part);
            }
        }
    }
    plain
}

/// Takes away all that is mounted at `path`.
pub(super) fn unmount_whole(path: &Path) -> io::Result<()> {
    loop {
        match unmount(path, UnmountFlags::DETACH) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The pins below the BPF directory: the programs' links first, then the maps.
pub(super) fn pins(bpf_dir: &Path) -> io::Result<Vec<Residue>> {
    let mut found = Vec::new();
    if bpf_dir.try_exists()? {
        collect(bpf_dir, &mut found)?;
    }
    found.sort_by_key(|path| (!is_link(path), path.clone()));
    Ok(found.into_iter().map(Residue::Pin).collect())
}

fn collect(directory: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        match path.is_dir() {
            true => collect(&path, found)?,
            false => found.push(path),
        }
    }
    Ok(())
}

/// Links are in directories of that name; what else is pinned is a map.
pub(super) fn is_link(pin: &Path) -> bool {
    pin.parent().is_some_and(|parent| parent.ends_with("links"))
}

/// Removes a pin, and the directories that it leaves empty, up to `bpf_dir`.
pub(super) fn remove_pin(pin: &Path, bpf_dir: &Path) -> io::Result<()> {
    absent_is_fine(fs::remove_file(pin))?;
    for directory in pin
        .ancestors()
        .skip(1)
        .take_while(|path| path.starts_with(bpf_dir))
    {
        for empty in [directory.join("links"), directory.to_owned()] {
            // One that is not empty stays until its last pin goes.
            let _ = fs::remove_dir(empty);
        }
    }
    Ok(())
}

/// The directories that go.
pub(super) fn directories(places: &Places) -> io::Result<Vec<Residue>> {
    let mut found = Vec::new();
    for directory in [
        Some(&places.run_dir),
        places.all.then_some(&places.root_dir),
    ] {
        if let Some(path) = directory
            && path.try_exists()?
        {
            found.push(Residue::Directory(path.clone()));
        }
    }
    Ok(found)
}

/// Removes a directory with all in it. Refuses while anything is mounted in it, which would lose its content, too.
pub(super) fn remove_directory(path: &Path) -> io::Result<()> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    if let Some(mounted) = mounts_below(&text, &[path]).first() {
        let why = format!("{} is still mounted", mounted.display());
        return Err(io::Error::other(why));
    }
    absent_is_fine(fs::remove_dir_all(path))
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_ours_are_found_the_innermost_first() {
        let line = |point: &str| format!("36 35 98:0 / {point} rw - tmpfs none rw\n");
        let text: String = [
            "/",
            "/run",
            "/run/kernelet/mounts/a/shm",
            "/run/kernelet/mounts/a/shm",
            "/run/kernelet/mounts/a/shm/in\\040it",
            "/run/kernelet-other/x",
        ]
        .map(line)
        .concat();
        let found = mounts_below(&text, &[Path::new("/run/kernelet")]);
        let expected = [
            "/run/kernelet/mounts/a/shm/in it",
            "/run/kernelet/mounts/a/shm",
        ];
        assert_eq!(found, expected.map(PathBuf::from));
    }

    #[test]
    fn a_node_that_only_routed_services_has_had_no_pods() {
        let home = tempfile::tempdir().unwrap();
        let places = Places {
            run_dir: home.path().join("run"),
            root_dir: home.path().join("root"),
            bpf_dir: home.path().join("bpf"),
            cgroup_parent: "/".into(),
            containerd: home.path().join("containerd.sock"),
            all: false,
        };
        fs::create_dir_all(&places.run_dir).unwrap();
        fs::create_dir_all(&places.root_dir).unwrap();
        assert!(!pods_ran(&places));
        fs::create_dir_all(places.root_dir.join("pods")).unwrap();
        assert!(pods_ran(&places));
    }

    #[test]
    fn pins_go_with_the_directories_that_they_leave_empty() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("kernelet");
        let names = ["links/kn_connect4", "v2/SERVICES", "v2/links/kn_sock_ops"];
        for name in names {
            fs::create_dir_all(dir.join(name).parent().unwrap()).unwrap();
            fs::write(dir.join(name), "").unwrap();
        }
        let found = pins(&dir).unwrap();
        let text: Vec<String> = found.iter().map(ToString::to_string).collect();
        let at = |what: &str, name: &str| format!("BPF {what} {}", dir.join(name).display());
        assert_eq!(
            text,
            [
                at("program", names[0]),
                at("program", names[2]),
                at("map", names[1])
            ]
        );
        for residue in found {
            let Residue::Pin(path) = residue else {
                panic!("a pin");
            };
            remove_pin(&path, &dir).unwrap();
        }
        assert!(!dir.exists() && home.path().exists());
    }
}
