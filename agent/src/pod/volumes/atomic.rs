//! A volume's files, changed all at once: whoever reads them sees the old ones or the new ones, never some of each.
//!
//! ```text
//! VOLUME/..2026_01_02_03_04_05.6789   the files
//! VOLUME/..data                       a link to that directory: replacing it is the change
//! VOLUME/NAME                         a link to ..data/NAME, for each name at the top
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};

use jiff::Timestamp;

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";
const NEW_LINK: &str = "..link_tmp";

/// A file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct File {
    pub(super) bytes: Vec<u8>,
    /// Permission bits, as in `chmod`.
    pub(super) mode: u32,
    /// Whose it is; root's where nobody is named.
    pub(super) owner: Option<u32>,
}

/// Files by their path in the volume.
pub(super) type Files = BTreeMap<PathBuf, File>;

/// Makes `files` the contents of the volume at `root`; says whether anything changed. With a `group` they are its, and it may
/// read them. `now` names the new directory.
pub(super) fn write(
    root: &Path,
    files: &Files,
    group: Option<u32>,
    now: Timestamp,
) -> io::Result<bool> {
    fs::create_dir_all(root)?;
    let mut files = files.clone();
    if group.is_some() {
        files.values_mut().for_each(|file| file.mode |= 0o440);
    }
    if let Some(group) = group {
        give(root, group)?;
    }
    let old = fs::read_link(root.join(DATA)).ok();
    if old
        .as_ref()
        .is_some_and(|old| holds(&root.join(old), &files))
    {
        // A crash may have come between the change and the links.
        link(root, &files)?;
        clean(root, &files, old.as_deref())?;
        return Ok(false);
    }
    let new = name(now);
    let directory = root.join(&new);
    let written = make_directory(&directory, group).and_then(|()| {
        let mut all = files.iter();
        all.try_for_each(|(path, file)| write_file(&directory, path, file, group))
    });
    if let Err(error) = written {
        // Where the disk is full, each further try would take of what little there is.
        let _ = fs::remove_dir_all(&directory);
        return Err(error);
    }
    replace_link(root, Path::new(&new), DATA, NEW_DATA)?;
    link(root, &files)?;
    clean(root, &files, Some(Path::new(&new)))?;
    Ok(true)
}

/// A name that no earlier directory has.
fn name(now: Timestamp) -> OsString {
    let time = now.strftime("..%Y_%m_%d_%H_%M_%S");
    format!(
        "{time}.{:09}{:04x}",
        now.subsec_nanosecond(),
        rand::random::<u16>()
    )
    .into()
}

fn make_directory(path: &Path, group: Option<u32>) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o755).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    group.map_or(Ok(()), |group| give(path, group))
}

/// Gives a directory to the group: what is made in it will be the group's, too.
fn give(directory: &Path, group: u32) -> io::Result<()> {
    chown(directory, None, Some(group))?;
    let mode = fs::metadata(directory)?.permissions().mode() | 0o2550;
    fs::set_permissions(directory, fs::Permissions::from_mode(mode))
}

fn write_file(root: &Path, path: &Path, file: &File, group: Option<u32>) -> io::Result<()> {
    let mut parent = root.to_owned();
    let mut parts = path.components().peekable();
    while let Some(part) = parts.next() {
        let Component::Normal(part) = part else {
            continue;
        };
        let next = parent.join(part);
        if parts.peek().is_none() {
            fs::write(&next, &file.bytes)?;
            chown(&next, file.owner, group)?;
            fs::set_permissions(&next, fs::Permissions::from_mode(file.mode))?;
        } else if !next.is_dir() {
            make_directory(&next, group)?;
        }
        parent = next;
    }
    Ok(())
}

/// Whether the directory holds these files and no others.
fn holds(directory: &Path, files: &Files) -> bool {
    let mut found = BTreeSet::new();
    list(directory, Path::new(""), &mut found).is_ok()
        && found == files.keys().map(|path| plain(path)).collect()
        && files.iter().all(|(path, file)| {
            let path = directory.join(path);
            let mode = fs::metadata(&path).map(|metadata| metadata.permissions().mode() & 0o7777);
            mode.is_ok_and(|mode| mode == file.mode)
                && fs::read(&path).is_ok_and(|bytes| bytes == file.bytes)
        })
}

fn list(directory: &Path, below: &Path, found: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            list(&entry.path(), &path, found)?;
        } else {
            found.insert(path);
        }
    }
    Ok(())
}

/// The path without `.` in it.
fn plain(path: &Path) -> PathBuf {
    let parts = path
        .components()
        .filter(|part| matches!(part, Component::Normal(_)));
    parts.collect()
}

/// The names at the top of the volume.
fn tops(files: &Files) -> BTreeSet<OsString> {
    let firsts = files.keys().filter_map(|path| {
        plain(path)
            .components()
            .next()
            .map(|part| part.as_os_str().to_owned())
    });
    firsts.collect()
}

fn link(root: &Path, files: &Files) -> io::Result<()> {
    for name in tops(files) {
        let target = Path::new(DATA).join(&name);
        let path = root.join(&name);
        if fs::read_link(&path).is_ok_and(|known| known == target) {
            continue;
        }
        // Earlier versions of this program left a directory here.
        if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
            fs::remove_dir_all(&path)?;
        }
        replace_link(root, &target, &name, NEW_LINK)?;
    }
    Ok(())
}

/// Puts a link in place of whatever file or link has the name.
fn replace_link(root: &Path, target: &Path, name: impl AsRef<Path>, new: &str) -> io::Result<()> {
    let fresh = root.join(new);
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(target, &fresh)?;
    fs::rename(&fresh, root.join(name))
}

/// Removes what the volume has beside the present files.
fn clean(root: &Path, files: &Files, present: Option<&Path>) -> io::Result<()> {
    let tops = tops(files);
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == DATA
            || present.is_some_and(|present| present == Path::new(&name))
            || tops.contains(&name)
        {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn files(all: &[(&str, &str)]) -> Files {
        let file = |text: &str| File {
            bytes: text.into(),
            mode: 0o644,
            owner: None,
        };
        all.iter()
            .map(|(path, text)| (path.into(), file(text)))
            .collect()
    }

    fn put(root: &Path, all: &[(&str, &str)]) -> bool {
        write(root, &files(all), None, Timestamp::now()).unwrap()
    }

    fn names(root: &Path) -> BTreeSet<String> {
        let entries = fs::read_dir(root).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn files_come_change_and_go() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("v");
        assert!(put(&root, &[("a", "1"), ("dir/b", "2"), ("dir/c", "3")]));
        assert!(!put(&root, &[("a", "1"), ("dir/b", "2"), ("dir/c", "3")]));
        let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
        assert_eq!(
            (read("a"), read("dir/b"), read("dir/c")),
            ("1".into(), "2".into(), "3".into())
        );
        assert_eq!(
            fs::read_link(root.join("a")).unwrap(),
            Path::new("..data/a")
        );
        assert!(put(&root, &[("dir/b", "4"), ("e", "")]));
        assert_eq!((read("dir/b"), read("e")), ("4".into(), String::new()));
        let left = names(&root);
        assert_eq!(left.len(), 4, "{left:?}");
        assert!(!left.contains("a") && !root.join("dir/c").exists());
        assert!(put(&root, &[]));
        assert_eq!(names(&root).len(), 2);
    }

    #[test]
    fn what_an_earlier_version_wrote_becomes_links() {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("dir")).unwrap();
        for path in ["a", "dir/b", "gone"] {
            fs::write(home.path().join(path), "old").unwrap();
        }
        assert!(put(home.path(), &[("a", "new"), ("dir/b", "new")]));
        for path in ["a", "dir/b"] {
            assert_eq!(fs::read_to_string(home.path().join(path)).unwrap(), "new");
        }
        assert!(!home.path().join("gone").exists());
    }

    #[test]
    fn a_crash_between_the_steps_is_made_up_for() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path();
        put(root, &[("a", "1")]);
        // After the change, before the links; and what an earlier try left.
        fs::remove_file(root.join("a")).unwrap();
        fs::create_dir(root.join("..2020_01_01_00_00_00.1")).unwrap();
        symlink("nowhere", root.join(NEW_DATA)).unwrap();
        assert!(!put(root, &[("a", "1")]));
        assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "1");
        assert_eq!(names(root).len(), 3);
    }

    #[test]
    fn a_reader_sees_all_of_one_version() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().to_owned();
        put(&root, &[("a", "0"), ("b", "0")]);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut seen = 0;
                while !done.load(Ordering::Relaxed) || seen == 0 {
                    let now = root.join(fs::read_link(root.join(DATA)).unwrap());
                    let both = (fs::read(now.join("a")), fs::read(now.join("b")));
                    // The directory may go while it is read, but never differ in itself.
                    if let (Ok(a), Ok(b)) = both {
                        assert_eq!(a, b);
                        seen += 1;
                    }
                }
            });
            for version in 1..200 {
                let text = version.to_string();
                put(&root, &[("a", &text), ("b", &text)]);
            }
            done.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn files_are_their_owners_and_the_pods_group_reads_them() {
        if !crate::testing::root_or_skip("giving files away needs root") {
            return;
        }
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("v");
        let file = File {
            bytes: b"text".to_vec(),
            mode: 0o400,
            owner: Some(1234),
        };
        let one = Files::from([("dir/key".into(), file)]);
        assert!(write(&root, &one, Some(3000), Timestamp::now()).unwrap());
        assert!(!write(&root, &one, Some(3000), Timestamp::now()).unwrap());
        let key = fs::metadata(root.join("dir/key")).unwrap();
        assert_eq!((key.uid(), key.gid(), key.mode()), (1234, 3000, 0o100_440));
        for directory in ["", "dir"] {
            let metadata = fs::metadata(root.join(directory)).unwrap();
            assert_eq!(
                (metadata.gid(), metadata.mode()),
                (3000, 0o42_755),
                "{directory}"
            );
        }
        assert_eq!(fs::metadata(home.path()).unwrap().gid(), 0);
        // Other rights are another version.
        assert!(
            write(
                &root,
                &Files::from([(
                    "dir/key".into(),
                    File {
                        bytes: b"text".to_vec(),
                        mode: 0o444,
                        owner: None
                    }
                )]),
                None,
                Timestamp::now()
            )
            .unwrap()
        );
    }
}
