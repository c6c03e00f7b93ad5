//! The machines of a cluster, and the programs that run on them.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::host::{self, create_dir, netns_path};
use crate::process::Process;
use crate::{Error, Result};

/// How long a part may take until it answers.
pub(super) const START_LIMIT: Duration = Duration::from_secs(30);

/// What a node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    ControlPlane,
    Worker,
}

/// A long-running program of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Program {
    ControlPlane,
    Containerd,
    Agent,
}

impl Program {
    /// The name of its executable and of its log.
    pub fn name(self) -> &'static str {
        match self {
            Program::ControlPlane => "kernelet-control-plane",
            Program::Containerd => "containerd",
            Program::Agent => "kernelet",
        }
    }
}

/// One machine of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub name: String,
    pub role: Role,
    pub address: Ipv4Addr,
    /// In a cluster with IPv6.
    #[serde(default)]
    pub address_v6: Option<Ipv6Addr>,
    /// Its network namespace, by `ip netns` name.
    pub netns: String,
    /// Its cgroup, from the root of every hierarchy, without a leading slash.
    pub cgroup: String,
    /// Sockets and pins.
    pub run_directory: PathBuf,
    /// Data and logs.
    pub directory: PathBuf,
    /// The programs that were started, whether or not they still run.
    pub processes: BTreeMap<Program, Process>,
}

impl Node {
    /// A command that will run in the node's network namespace.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        let mut net = std::ffi::OsString::from("--net=");
        net.push(netns_path(&self.netns));
        command.arg(net).arg(program);
        command
    }

    /// Runs `work` on a thread in the node's network namespace.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        host::in_netns(&netns_path(&self.netns), work)
    }

    /// Runs `work` on a thread in the network namespace of one of its pods.
    pub fn inside_pod<T: Send>(&self, uid: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
        host::in_netns(&self.agent_run_directory().join("netns").join(uid), work)
    }

    /// The socket of its containerd.
    pub fn containerd_socket(&self) -> PathBuf {
        self.run_directory.join("containerd.sock")
    }

    /// The directory of the agent's sockets and pins.
    pub fn agent_run_directory(&self) -> PathBuf {
        self.run_directory.join("kernelet")
    }

    /// Where its containerd looks for network plugins, `bin`, and for which to use, `net.d`: Kernelet's pods need none.
    pub fn cni_directory(&self) -> PathBuf {
        self.directory.join("cni")
    }

    pub(super) fn root_directory(&self) -> PathBuf {
        self.directory.join("kernelet")
    }

    pub(super) fn log(&self, program: &str) -> PathBuf {
        self.directory.join(format!("{program}.log"))
    }

    /// Where its long-running programs are, and what they start outside of pods.
    pub fn system_cgroup(&self) -> Result<PathBuf> {
        Ok(host::cgroup2_mount()?.join(&self.cgroup).join("system"))
    }

    pub(super) fn spawn(&mut self, program: Program, command: &Command) -> Result<()> {
        let cgroup = self.system_cgroup()?;
        create_dir(&cgroup)?;
        let process = Process::spawn(
            command,
            &netns_path(&self.netns),
            &cgroup,
            &self.log(program.name()),
        )?;
        self.processes.insert(program, process);
        Ok(())
    }

    /// Waits until `ready` says yes; a program that ended before is an error that shows its last words.
    pub(super) fn await_start(
        &self,
        program: Program,
        mut ready: impl FnMut() -> bool,
    ) -> Result<()> {
        let log = self.log(program.name());
        let deadline = Instant::now() + START_LIMIT;
        while !ready() {
            let alive = self.processes.get(&program).is_some_and(Process::alive);
            if !alive {
                return Err(Error::Unexpected(format!(
                    "{} on {} ended: {}",
                    program.name(),
                    self.name,
                    last_line(&log)
                )));
            }
            if Instant::now() > deadline {
                return Err(Error::Timeout {
                    what: format!("the start of {} on {}", program.name(), self.name),
                    seconds: START_LIMIT.as_secs(),
                    hint: format!("see {}", log.display()),
                });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

fn last_line(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines()
        .next_back()
        .unwrap_or("it said nothing")
        .to_owned()
}
