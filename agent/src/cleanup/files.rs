//! The part of it that is files: mounts, pins, directories.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::{Places, Residue, tree};

/// What is mounted below an agent's directories, the innermost first.
pub(super) fn mounts(places: &Places) -> io::Result<Vec<Residue>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let pods = places.root_dir.join("pods");
    let found = mounts_below(&text, &[&places.run_dir, &pods]);
    Ok(found.into_iter().map(Residue::Mount).collect())
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
        let entry = entry?;
        // Of a link to a directory only the link is a pin.
        match entry.file_type()?.is_dir() {
            true => collect(&entry.path(), found)?,
            false => found.push(entry.path()),
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
    let pods = places.root_dir.join("pods");
    if places.all {
        found.push(places.root_dir.clone());
    } else if fs::read_dir(&pods).is_ok_and(|mut entries| entries.next().is_none()) {
        found.push(pods);
    }
    // The last: while it is there, what is found may be of an agent that ran pods.
    found.push(places.run_dir.clone());
    let there = |path: &PathBuf| path.try_exists();
    let mut directories = Vec::new();
    for path in found {
        if there(&path)? {
            directories.push(Residue::Directory(path));
        }
    }
    Ok(directories)
}

/// Removes a directory with all in it. Refuses while anything is mounted in it, which would lose its content, too.
pub(super) fn remove_directory(path: &Path) -> io::Result<()> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    if let Some(mounted) = mounts_below(&text, &[path]).first() {
        let why = format!("{} is still mounted", mounted.display());
        return Err(io::Error::other(why));
    }
    tree::remove(path)
}

/// Removes a link to a directory that is gone: an agent could not make the directory anew.
pub(super) fn remove_dangling(link: &Path) -> io::Result<()> {
    match link.is_symlink() && !link.try_exists()? {
        true => absent_is_fine(fs::remove_file(link)),
        false => Ok(()),
    }
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use rustix::mount::mount_bind;

    use super::super::testing::places_in;
    use super::*;
    use crate::testing::root_or_skip;

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
    fn mounts_are_found_whatever_the_directory_is_called() {
        if !root_or_skip("mounting needs root") {
            return;
        }
        let home = tempfile::Builder::new().prefix("kn-cf").tempdir().unwrap();
        let (real, link) = (home.path().join("real"), home.path().join("link"));
        let point = real.join("mounts/volume");
        let outside = home.path().join("outside");
        fs::create_dir_all(&point).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        std::os::unix::fs::symlink("real", &link).unwrap();
        mount_bind(&outside, &point).unwrap();
        let places = Places {
            run_dir: link.clone(),
            ..places_in(home.path())
        };
        let places = places.resolved().unwrap();
        let found = mounts(&places).unwrap();
        let refused = remove_directory(&places.run_dir);
        let kept = outside.join("kept").exists();
        unmount_whole(&point).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].to_string(), format!("mount {}", point.display()));
        assert!(refused.is_err() && kept);

        remove_directory(&places.run_dir).unwrap();
        remove_dangling(&link).unwrap();
        assert!(!real.exists() && !link.is_symlink());
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
