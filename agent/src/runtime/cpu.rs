//! How much CPU a cgroup gets, of what it may have: counters that the kernel keeps.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cgroup::Hierarchy;

/// Counters of one cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CpuCounters {
    pub used: Duration,
    /// In CPUs; `None` without a limit.
    pub limit: Option<f64>,
    /// Periods in which there was something to run.
    pub periods: u64,
    /// Periods in which the limit was used up.
    pub throttled: u64,
    /// Time for which that held up something.
    pub throttled_time: Duration,
    /// How long a period is.
    pub period: Duration,
    /// Time in which some task waited for a CPU. The kernel tells it in cgroup v2 only.
    pub stalled: Option<Duration>,
}

/// Where the counters of cgroups are, by hierarchy: one for both kinds in v2, and up to two in v1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CpuHierarchy {
    V1 { cpu: PathBuf, cpuacct: PathBuf },
    V2(PathBuf),
}

impl CpuHierarchy {
    /// Among those that are mounted. Where v1 divides the CPU, v2 does not.
    pub fn find(mounted: &[Hierarchy]) -> Option<Self> {
        let with = |controller| mounted.iter().find(|hierarchy| hierarchy.has(controller));
        match (with("cpu"), with("cpuacct")) {
            (Some(cpu), Some(cpuacct)) => Some(Self::V1 {
                cpu: cpu.mount.clone(),
                cpuacct: cpuacct.mount.clone(),
            }),
            _ => {
                let unified = mounted.iter().find(|hierarchy| hierarchy.is_unified())?;
                Some(Self::V2(unified.mount.clone()))
            }
        }
    }

    /// The cgroup's directory in which limits are; its children are those of the pod's containers.
    pub fn directory(&self, cgroup: &Path) -> PathBuf {
        let (Self::V1 { cpu: mount, .. } | Self::V2(mount)) = self;
        mount.join(cgroup.strip_prefix("/").unwrap_or(cgroup))
    }

    /// The counters of a cgroup; `None` when it is gone.
    pub fn read(&self, cgroup: &Path) -> Option<CpuCounters> {
        let directory = self.directory(cgroup);
        let read = |file: &str| fs::read_to_string(directory.join(file)).ok();
        match self {
            Self::V1 { cpuacct, .. } => {
                let usage = cpuacct.join(cgroup.strip_prefix("/").unwrap_or(cgroup));
                let usage = fs::read_to_string(usage.join("cpuacct.usage")).ok()?;
                let (quota, period) = (read("cpu.cfs_quota_us")?, read("cpu.cfs_period_us")?);
                v1(&read("cpu.stat")?, &usage, &quota, &period)
            }
            Self::V2(_) => {
                let pressure = read("cpu.pressure").unwrap_or_default();
                v2(
                    &read("cpu.stat")?,
                    &read("cpu.max").unwrap_or_default(),
                    &pressure,
                )
            }
        }
    }
}

fn v1(stat: &str, usage_ns: &str, quota_us: &str, period_us: &str) -> Option<CpuCounters> {
    let period: u64 = period_us.trim().parse().ok()?;
    Some(CpuCounters {
        used: Duration::from_nanos(usage_ns.trim().parse().ok()?),
        limit: limit(quota_us.trim(), period),
        periods: field(stat, "nr_periods").unwrap_or(0),
        throttled: field(stat, "nr_throttled").unwrap_or(0),
        throttled_time: Duration::from_nanos(field(stat, "throttled_time").unwrap_or(0)),
        period: Duration::from_micros(period),
        stalled: None,
    })
}

fn v2(stat: &str, max: &str, pressure: &str) -> Option<CpuCounters> {
    let (quota, period) = max.trim().split_once(' ').unwrap_or(("max", "100000"));
    let period: u64 = period.parse().ok()?;
    let some = pressure.lines().find(|line| line.starts_with("some "));
    let stalled = some.and_then(|line| line.rsplit_once("total=")?.1.trim().parse().ok());
    Some(CpuCounters {
        used: Duration::from_micros(field(stat, "usage_usec")?),
        limit: limit(quota, period),
        periods: field(stat, "nr_periods").unwrap_or(0),
        throttled: field(stat, "nr_throttled").unwrap_or(0),
        throttled_time: Duration::from_micros(field(stat, "throttled_usec").unwrap_or(0)),
        period: Duration::from_micros(period),
        stalled: stalled.map(Duration::from_micros),
    })
}

/// A quota of `max` or -1 is none.
fn limit(quota: &str, period: u64) -> Option<f64> {
    let quota: u64 = quota.parse().ok()?;
    Some(quota as f64 / period.max(1) as f64)
}

fn field(stat: &str, name: &str) -> Option<u64> {
    stat.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .and_then(|value| value.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_both_versions_are_read() {
        let stat = "nr_periods 40\nnr_throttled 30\nthrottled_time 123000\n";
        let old = v1(stat, "1500000000\n", "20000\n", "100000\n").unwrap();
        let stat =
            "usage_usec 1500000\nuser_usec 1\nnr_periods 40\nnr_throttled 30\nthrottled_usec 123\n";
        let pressure =
            "some avg10=0.00 avg60=0.00 avg300=0.00 total=2500000\nfull avg10=0.00 total=1\n";
        let new = v2(stat, "20000 100000\n", pressure).unwrap();
        let expected = CpuCounters {
            used: Duration::from_millis(1500),
            limit: Some(0.2),
            periods: 40,
            throttled: 30,
            throttled_time: Duration::from_micros(123),
            period: Duration::from_millis(100),
            stalled: None,
        };
        assert_eq!(old, expected);
        let stalled = Some(Duration::from_millis(2500));
        assert_eq!(
            new,
            CpuCounters {
                stalled,
                ..expected
            }
        );
    }

    #[test]
    fn without_a_limit_there_is_none() {
        assert_eq!(v1("", "0", "-1", "100000").unwrap().limit, None);
        assert_eq!(
            v2("usage_usec 0\n", "max 100000\n", "").unwrap().limit,
            None
        );
        assert_eq!(v2("", "max 100000", ""), None, "not a cgroup");
    }
}
