//! The agent's own process, under the names that every Prometheus client library uses.

use std::fs;

/// Unit of the times in `/proc`; the kernel promises it to every 64-bit program.
const USER_HZ: f64 = 100.0;

/// What `/proc/self` says.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Process {
    pub(super) resident_bytes: u64,
    /// User and system time.
    pub(super) cpu_seconds: f64,
    pub(super) open_files: u64,
}

impl Process {
    /// `None` where `/proc` does not say.
    pub(super) fn read() -> Option<Self> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        let resident = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kilobytes = resident.split_whitespace().next()?.parse::<u64>().ok()?;
        Some(Self {
            resident_bytes: kilobytes * 1024,
            cpu_seconds: ticks(&stat)? as f64 / USER_HZ,
            open_files: fs::read_dir("/proc/self/fd").ok()?.count() as u64,
        })
    }
}

/// `utime` and `stime` of `/proc/PID/stat`. The second field is a name in brackets, which may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_times_are_found_whatever_the_process_is_called() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 5 6 7";
        assert_eq!(ticks(stat), Some(300));
        assert_eq!(ticks(""), None);
    }

    #[test]
    fn this_process_uses_memory() {
        let process = Process::read().unwrap();
        assert!(
            process.resident_bytes > 1 << 20 && process.open_files > 2,
            "{process:?}"
        );
    }
}
