//! Processes that outlive their starter, known by pid and start time so that a reused pid is never mistaken for them.

use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The kernel's `USER_HZ`, in which it tells programs of time, whatever its own clock.
const TICKS_PER_SECOND: u32 = 100;

/// A process that was started once. It may have ended since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    /// Start time in clock ticks since boot, from `/proc/PID/stat`.
    started: u64,
    /// Where its output goes.
    pub log: PathBuf,
}

impl Process {
    /// Starts a program in a cgroup and a network namespace, in a process group of its own, with its output appended to `log`.
    pub fn spawn(program: &Command, netns: &Path, cgroup: &Path, log: &Path) -> Result<Process> {
        let failed = |source| Error::System {
            what: format!("starting {}", program.get_program().to_string_lossy()),
            source,
        };
        let output: File = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .map_err(failed)?;
        let errors = output.try_clone().map_err(failed)?;
        let mut wrapped = Command::new("sh");
        wrapped
            .arg("-c")
            .arg("echo $$ > \"$0\" && netns=$1 && shift && exec nsenter --net=\"$netns\" \"$@\"")
            .arg(cgroup.join("cgroup.procs"))
            .arg(netns)
            .arg(program.get_program())
            .args(program.get_args())
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0);
        for (name, value) in program.get_envs() {
            if let Some(value) = value {
                wrapped.env(name, value);
            }
        }
        let child = wrapped.spawn().map_err(failed)?;
        let pid = child.id() as i32;
        let stat = stat(pid).ok_or_else(|| failed(std::io::Error::other("it ended at once")))?;
        Ok(Process {
            pid,
            started: stat.started,
            log: log.to_owned(),
        })
    }

    /// Whether it still runs, or a thread of it does: until the last has ended, its files and sockets are open.
    pub fn alive(&self) -> bool {
        stat(self.pid).is_some_and(|it| it.started == self.started && !it.is_over())
    }

    /// Sends a signal, if it still runs.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if !self.alive() {
            return Ok(());
        }
        let pid = Pid::from_raw(self.pid)
            .ok_or_else(|| Error::Unexpected(format!("{} is no pid", self.pid)))?;
        match kill_process(pid, signal) {
            Err(error) if error != rustix::io::Errno::SRCH => Err(Error::System {
                what: format!("signalling process {}", self.pid),
                source: error.into(),
            }),
            _ => Ok(()),
        }
    }

    /// Ends it: SIGTERM, and SIGKILL when it has not gone after `grace`.
    pub fn stop(&self, grace: Duration) -> Result<()> {
        self.signal(Signal::TERM)?;
        if !self.wait(grace) {
            self.signal(Signal::KILL)?;
            self.wait(Duration::from_secs(5));
        }
        Ok(())
    }

    /// Waits until it has gone; false when it has not within `limit`.
    pub fn wait(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.alive() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        true
    }

    /// Processor time that it has spent, its children's apart; `None` when it has gone.
    pub fn processor_time(&self) -> Option<Duration> {
        let ticks = stat(self.pid)?.ticks;
        Some(Duration::from_secs(ticks) / TICKS_PER_SECOND)
    }

    /// Resident memory in bytes; `None` when it has gone.
    pub fn resident(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
        Some(kilobytes * 1024)
    }
}

/// What `/proc/PID/stat` says of a process.
struct Stat {
    state: char,
    /// Processor time, in clock ticks.
    ticks: u64,
    threads: u64,
    /// In clock ticks since boot.
    started: u64,
}

impl Stat {
    /// The first thread is a zombie as soon as it has ended itself, whatever the others do.
    fn is_over(&self) -> bool {
        self.state == 'Z' && self.threads <= 1
    }
}

fn stat(pid: i32) -> Option<Stat> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, parentheses too.
    let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        ticks: fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?,
        threads: fields.get(17)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive_and_a_namesake_is_not() {
        let pid = std::process::id() as i32;
        let started = stat(pid).unwrap().started;
        let me = Process {
            pid,
            started,
            log: PathBuf::new(),
        };
        assert!(me.alive());
        assert!(me.resident().unwrap() > 0);
        assert!(
            !Process {
                started: started + 1,
                ..me
            }
            .alive()
        );
    }
}
