//! What this kernel can do, found before anything is loaded.
//!
//! Facts are gathered by reading and trying; what follows from them is decided by [`judge`], a pure function.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported};

use super::sockets::can_close_sockets;
use super::sys;

/// The oldest kernel that has all that the programs need.
const OLDEST: Release = Release(5, 15);

const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_BPF: u32 = 39;

/// Something needed is missing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    #[error("Linux {found} is too old: the service programs need {OLDEST} or newer")]
    KernelTooOld { found: Release },
    #[error("cannot tell the kernel's version from {text:?}")]
    KernelUnknown { text: String },
    #[error("not allowed to load BPF programs: run as root, or with CAP_BPF and CAP_NET_ADMIN")]
    NotAllowed,
    #[error(
        "no cgroup v2 hierarchy is mounted: mount one (`mount -t cgroup2 none DIR`) or name one with --cgroup-root"
    )]
    NoCgroup2,
    #[error("{} is not a cgroup v2 directory", path.display())]
    NotCgroup2 { path: PathBuf },
}

/// Major and minor version of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release(pub u32, pub u32);

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// One finding, for `kernelet status`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Feature {
    pub name: &'static str,
    pub available: bool,
    pub detail: String,
}

/// All that is needed is there; this is what was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    pub features: Vec<Feature>,
    /// cgroup v2 directory that the programs attach to.
    pub cgroup: PathBuf,
    /// The programs can choose the error of a refused connect.
    pub set_retval: bool,
    /// Packet programs are attached by links of their own, not as filters.
    pub tcx: bool,
    /// Packet programs can hand packets to a pod, and on to other nodes, past the node's routes.
    pub fast_paths: bool,
}

/// Name of the feature that an administrator may switch off.
const FAST_PATHS: &str = "pod fast path";

impl Probe {
    /// Notes that the node's administrator wants pods' packets to go by the node's routes.
    pub fn without_fast_paths(&mut self) {
        self.fast_paths = false;
        for feature in self.features.iter_mut().filter(|it| it.name == FAST_PATHS) {
            feature.available = false;
            feature.detail =
                "switched off by --pod-fast-path=false: pods' packets go by the node's routes"
                    .to_owned();
        }
    }

    /// Whether the feature of this name was found.
    pub fn has(&self, name: &str) -> bool {
        let found = self.features.iter().find(|feature| feature.name == name);
        found.is_some_and(|feature| feature.available)
    }
}

/// What was read and tried.
#[derive(Clone, Debug)]
struct Facts {
    /// `/proc/sys/kernel/osrelease`
    release: String,
    /// `/proc/self/mounts`
    mounts: String,
    /// `/proc/self/status`
    status: String,
    btf: bool,
    set_retval: bool,
    sock_destroy: bool,
    tcx: bool,
    fast_paths: bool,
    jit: bool,
    /// `--cgroup-root`, and whether it is a cgroup v2 directory.
    chosen: Option<(PathBuf, bool)>,
}

/// Looks at the kernel. `cgroup` overrides the cgroup v2 directory found among the mounts.
pub fn probe(cgroup: Option<&Path>) -> Result<Probe, ProbeError> {
    let text = |path| fs::read_to_string(path).unwrap_or_default();
    let helper = BpfHelper::BPF_FUNC_set_retval;
    judge(&Facts {
        release: text("/proc/sys/kernel/osrelease"),
        mounts: text("/proc/self/mounts"),
        status: text("/proc/self/status"),
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        set_retval: is_helper_supported(ProgramType::CgroupSockAddr, helper).unwrap_or(false),
        sock_destroy: can_close_sockets(),
        tcx: sys::has_tcx(),
        fast_paths: [
            BpfHelper::BPF_FUNC_redirect_peer,
            BpfHelper::BPF_FUNC_fib_lookup,
        ]
        .into_iter()
        .all(|it| is_helper_supported(ProgramType::SchedClassifier, it).unwrap_or(false)),
        jit: text("/proc/sys/net/core/bpf_jit_enable").trim() != "0",
        // Every cgroup v2 directory has this file, and no other directory does.
        chosen: cgroup.map(|path| {
            (
                path.to_owned(),
                path.join("cgroup.procs").exists() && is_cgroup2(path),
            )
        }),
    })
}

fn is_cgroup2(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|found| found.f_type == libc::CGROUP2_SUPER_MAGIC)
}

fn judge(facts: &Facts) -> Result<Probe, ProbeError> {
    let release = parse_release(&facts.release).ok_or_else(|| ProbeError::KernelUnknown {
        text: facts.release.trim().to_owned(),
    })?;
    if release < OLDEST {
        return Err(ProbeError::KernelTooOld { found: release });
    }
    let capable = |bit: u32| effective_capabilities(&facts.status) >> bit & 1 == 1;
    let allowed = capable(CAP_SYS_ADMIN) || capable(CAP_BPF) && capable(CAP_NET_ADMIN);
    if !allowed {
        return Err(ProbeError::NotAllowed);
    }
    let cgroup = match &facts.chosen {
        Some((path, true)) => path.clone(),
        Some((path, false)) => return Err(ProbeError::NotCgroup2 { path: path.clone() }),
        None => cgroup2_mount(&facts.mounts).ok_or(ProbeError::NoCgroup2)?,
    };
    let found = |name, available, yes: &str, no: &str| Feature {
        name,
        available,
        detail: if available { yes } else { no }.to_owned(),
    };
    let bpffs = mount_of(&facts.mounts, "bpf");
    let features = vec![
        found(
            "kernel",
            true,
            &format!("Linux {}", facts.release.trim()),
            "",
        ),
        found("cgroup v2", true, &cgroup.display().to_string(), ""),
        found(
            "bpf file system",
            bpffs.is_some(),
            &bpffs
                .map(|path| path.display().to_string())
                .unwrap_or_default(),
            "not mounted: it is mounted at start",
        ),
        found(
            "BTF",
            facts.btf,
            "the kernel describes its types",
            "not needed by these programs",
        ),
        found(
            "bpf_set_retval",
            facts.set_retval,
            "a service without backends refuses with ECONNREFUSED",
            "older than Linux 5.18: a service without backends refuses with EPERM",
        ),
        found(
            "sock_destroy",
            facts.sock_destroy,
            "sockets to a backend that is gone are closed at once",
            "no CONFIG_INET_DIAG_DESTROY, or no modules tcp_diag and udp_diag: sockets to a backend that is gone wait for \
             their own timeout",
        ),
        found(
            "JIT",
            facts.jit,
            "the programs run as machine code",
            "the programs are interpreted: set net.core.bpf_jit_enable to 1",
        ),
        found(
            "TCX",
            facts.tcx,
            "packet programs are links of their own",
            "older than Linux 6.6: packet programs are filters of the clsact qdisc",
        ),
        found(
            FAST_PATHS,
            facts.fast_paths,
            "pods' packets go to pods and out of the node past the node's routes, and past its netfilter rules",
            "the kernel has no bpf_redirect_peer: pods' packets go by the node's routes",
        ),
    ];
    Ok(Probe {
        features,
        cgroup,
        set_retval: facts.set_retval,
        tcx: facts.tcx,
        fast_paths: facts.fast_paths,
    })
}

fn parse_release(text: &str) -> Option<Release> {
    let mut numbers = text.trim().split(|c: char| !c.is_ascii_digit());
    Some(Release(
        numbers.next()?.parse().ok()?,
        numbers.next()?.parse().ok()?,
    ))
}

fn effective_capabilities(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0)
}

fn cgroup2_mount(mounts: &str) -> Option<PathBuf> {
    mount_of(mounts, "cgroup2")
}

/// The first mount point of a file system of type `kind` in the text of `/proc/self/mounts`.
fn mount_of(mounts: &str, kind: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let point = fields.nth(1)?;
        (fields.next()? == kind).then(|| PathBuf::from(point))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "proc /proc proc rw 0 0\n\
        cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
        cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
        bpf /sys/fs/bpf bpf rw 0 0\n";

    fn facts() -> Facts {
        Facts {
            release: "6.1.0-18-cloud-amd64\n".to_owned(),
            mounts: HYBRID.to_owned(),
            status: "Name:\tx\nCapEff:\t000001ffffffffff\n".to_owned(),
            btf: true,
            set_retval: true,
            sock_destroy: true,
            tcx: true,
            fast_paths: true,
            jit: true,
            chosen: None,
        }
    }

    #[test]
    fn a_hybrid_host_attaches_below_its_unified_mount() {
        let probe = judge(&facts()).unwrap();
        assert_eq!(probe.cgroup, Path::new("/sys/fs/cgroup/unified"));
        assert!(probe.set_retval);
        assert!(
            probe
                .features
                .iter()
                .all(|f| f.available && !f.detail.is_empty())
        );
    }

    #[test]
    fn a_kernel_older_than_5_15_is_refused_by_name() {
        let error = judge(&Facts {
            release: "5.14.21".to_owned(),
            ..facts()
        })
        .unwrap_err();
        assert_eq!(
            error,
            ProbeError::KernelTooOld {
                found: Release(5, 14)
            }
        );
        assert_eq!(
            error.to_string(),
            "Linux 5.14 is too old: the service programs need 5.15 or newer"
        );
        assert!(
            judge(&Facts {
                release: "5.15.0-91-generic".to_owned(),
                ..facts()
            })
            .is_ok()
        );
        assert!(
            judge(&Facts {
                release: "6.1".to_owned(),
                ..facts()
            })
            .is_ok()
        );
    }

    #[test]
    fn a_missing_hierarchy_or_right_is_refused() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n".to_owned();
        assert_eq!(
            judge(&Facts { mounts, ..facts() }).unwrap_err(),
            ProbeError::NoCgroup2
        );
        let status = "CapEff:\t0000000000001000\n".to_owned();
        assert_eq!(
            judge(&Facts { status, ..facts() }).unwrap_err(),
            ProbeError::NotAllowed
        );
        let status = "CapEff:\t0000008000001000\n".to_owned();
        assert!(
            judge(&Facts { status, ..facts() }).is_ok(),
            "CAP_BPF and CAP_NET_ADMIN are enough"
        );
        let path = PathBuf::from("/tmp");
        let chosen = Some((path.clone(), false));
        assert_eq!(
            judge(&Facts { chosen, ..facts() }).unwrap_err(),
            ProbeError::NotCgroup2 { path }
        );
    }

    #[test]
    fn without_set_retval_the_probe_says_what_clients_see() {
        let probe = judge(&Facts {
            set_retval: false,
            ..facts()
        })
        .unwrap();
        let feature = probe
            .features
            .iter()
            .find(|f| f.name == "bpf_set_retval")
            .unwrap();
        assert!(!feature.available && feature.detail.contains("EPERM"));
    }
}
