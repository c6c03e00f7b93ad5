//! What the machine is.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::statvfs;

/// What does not change while the agent runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub cpus: usize,
    pub memory_bytes: u64,
    /// By the size of a page, in bytes, how many bytes the kernel has set aside for pages of that size.
    pub huge_pages: BTreeMap<u64, u64>,
    /// Size of the file system that the root directory is on.
    pub storage_bytes: u64,
    pub kernel_version: String,
    pub os_image: String,
    /// As Kubernetes (and Go) name it: amd64, arm64 …
    pub architecture: &'static str,
    pub machine_id: String,
    pub system_uuid: String,
    pub boot_id: String,
}

/// Where the kernel says what it has of huge pages.
pub(crate) const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages";

/// Something that the kernel did not tell.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}: {source}", path.display())]
pub struct FactsError {
    path: PathBuf,
    source: io::Error,
}

impl Facts {
    /// Reads them; `root_dir` says which file system counts.
    pub fn read(root_dir: &Path) -> Result<Self, FactsError> {
        let storage = storage(root_dir)?;
        let [memory_bytes] = meminfo(["MemTotal"])?;
        Ok(Facts {
            cpus: online(&read(ONLINE)?),
            memory_bytes,
            huge_pages: huge_pages(Path::new(HUGE_PAGES)),
            storage_bytes: storage.f_blocks.saturating_mul(storage.f_frsize),
            kernel_version: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            os_image: os_image(&fs::read_to_string("/etc/os-release").unwrap_or_default()),
            architecture: architecture(std::env::consts::ARCH),
            // Not every machine has these; they are for people and inventories.
            machine_id: line_or_empty("/etc/machine-id"),
            system_uuid: line_or_empty("/sys/class/dmi/id/product_uuid"),
            boot_id: line_or_empty("/proc/sys/kernel/random/boot_id"),
        })
    }
}

/// Which processors are in use.
pub const ONLINE: &str = "/sys/devices/system/cpu/online";

/// How many processors a list of ranges names: `0-3,6`. The agent itself may have fewer.
pub fn online(list: &str) -> usize {
    let count = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        Some((last + 1).saturating_sub(first))
    };
    list.trim()
        .split(',')
        .filter_map(count)
        .sum::<usize>()
        .max(1)
}

/// What the kernel has of huge pages, from a directory that has one for each size: `hugepages-2048kB`.
pub(crate) fn huge_pages(directory: &Path) -> BTreeMap<u64, u64> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let pages = entries.filter_map(|entry| {
        let name = entry.file_name();
        let size = name
            .to_str()?
            .strip_prefix("hugepages-")?
            .strip_suffix("kB")?;
        let size = size.parse::<u64>().ok()? * 1024;
        let count = fs::read_to_string(entry.path().join("nr_hugepages")).ok()?;
        Some((size, count.trim().parse::<u64>().ok()?.saturating_mul(size)))
    });
    pages.collect()
}

fn read(path: &str) -> Result<String, FactsError> {
    fs::read_to_string(path).map_err(|source| FactsError {
        path: path.into(),
        source,
    })
}

fn line_or_empty(path: &str) -> String {
    fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn storage(root_dir: &Path) -> Result<rustix::fs::StatVfs, FactsError> {
    statvfs(root_dir).map_err(|errno| FactsError {
        path: root_dir.to_owned(),
        source: errno.into(),
    })
}

/// Values of /proc/meminfo in bytes.
pub fn meminfo<const N: usize>(names: [&str; N]) -> Result<[u64; N], FactsError> {
    let path = "/proc/meminfo";
    let text = read(path)?;
    let mut values = [0; N];
    for (value, name) in values.iter_mut().zip(names) {
        *value = parse_meminfo(&text, name).ok_or_else(|| FactsError {
            path: path.into(),
            source: io::Error::new(io::ErrorKind::InvalidData, format!("no value for {name}")),
        })?;
    }
    Ok(values)
}

fn parse_meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// How many tasks there are, and how many there can be.
pub fn tasks() -> Result<(u64, u64), FactsError> {
    let most = |path| Ok(read(path)?.trim().parse().unwrap_or(u64::MAX));
    let (ids, threads) = (
        most("/proc/sys/kernel/pid_max")?,
        most("/proc/sys/kernel/threads-max")?,
    );
    Ok((parse_tasks(&read("/proc/loadavg")?), ids.min(threads)))
}

/// Number of tasks that exist, from /proc/loadavg (`0.1 0.2 0.3 running/all last`).
fn parse_tasks(loadavg: &str) -> u64 {
    let counts = loadavg.split_whitespace().nth(3);
    counts
        .and_then(|counts| counts.split_once('/')?.1.parse().ok())
        .unwrap_or(0)
}

/// `PRETTY_NAME` of os-release.
fn os_image(text: &str) -> String {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    value.map_or_else(
        || "Linux".to_owned(),
        |value| value.trim_matches(['"', '\'']).to_owned(),
    )
}

fn architecture(rust: &'static str) -> &'static str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_texts_are_understood() {
        let text = "MemTotal:       24579456 kB\nMemAvailable:   20000000 kB\nHugePages_Total: 0\n";
        assert_eq!(parse_meminfo(text, "MemTotal"), Some(24_579_456 * 1024));
        assert_eq!(parse_meminfo(text, "Mem"), None);
        assert_eq!(["0-3,6", "0", "0-1\n", ""].map(online), [5, 1, 2, 1]);
        assert_eq!(parse_tasks("0.52 0.58 0.59 3/467 12345\n"), 467);
        assert_eq!(
            os_image("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
            "Debian GNU/Linux 12 (bookworm)"
        );
        assert_eq!(os_image(""), "Linux");
    }

    #[test]
    fn huge_pages_are_counted_by_their_size() {
        let dir = tempfile::tempdir().unwrap();
        for (name, count) in [("hugepages-2048kB", "3\n"), ("hugepages-1048576kB", "0\n")] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("nr_hugepages"), count).unwrap();
        }
        let found = BTreeMap::from([(2 << 20, 6 << 20), (1 << 30, 0)]);
        assert_eq!(huge_pages(dir.path()), found);
        assert!(huge_pages(&dir.path().join("none")).is_empty());
    }

    #[test]
    fn this_machine_has_something_of_everything() {
        let facts = Facts::read(Path::new("/")).unwrap();
        assert!(
            facts.cpus > 0 && facts.memory_bytes > 0 && facts.storage_bytes > 0,
            "{facts:?}"
        );
        assert!(!facts.kernel_version.is_empty());
    }

    #[test]
    fn a_directory_that_does_not_exist_is_named() {
        let error = Facts::read(Path::new("/no/such/dir")).unwrap_err();
        assert!(
            error.to_string().starts_with("cannot read /no/such/dir: "),
            "{error}"
        );
    }
}
