//! How long pods may take when the node shuts down, in a kubelet's words.

use clap::Args;

use crate::housekeeping::signal::GoDuration;
use crate::shutdown::Steps;

/// Times of a graceful node shutdown, each with the meaning that the field of a kubelet's configuration has.
#[derive(Args, Clone, Debug)]
pub struct ShutdownConfig {
    /// How long a shutdown of the machine waits for its pods to end, at most; 0 is not at all. Needs systemd-logind
    #[arg(
        long,
        env = "KERNELET_SHUTDOWN_GRACE_PERIOD",
        value_name = "TIME",
        default_value = "0"
    )]
    pub shutdown_grace_period: GoDuration,
    /// How much of that is for pods that are critical to the system, which end last
    #[arg(
        long,
        env = "KERNELET_SHUTDOWN_GRACE_PERIOD_CRITICAL_PODS",
        value_name = "TIME",
        default_value = "0"
    )]
    pub shutdown_grace_period_critical_pods: GoDuration,
    /// In the place of both, how long pods from each priority on have, up to the next one; the lowest end first
    #[arg(
        long,
        env = "KERNELET_SHUTDOWN_GRACE_PERIOD_BY_POD_PRIORITY",
        value_name = "PRIORITY=TIME,…",
        default_value = ""
    )]
    pub shutdown_grace_period_by_pod_priority: Steps,
}

impl ShutdownConfig {
    /// In which order pods end, and how long each may take; an error where the times make no sense together.
    pub fn steps(&self) -> Result<Steps, String> {
        let (all, critical) = (
            self.shutdown_grace_period.0,
            self.shutdown_grace_period_critical_pods.0,
        );
        match self.shutdown_grace_period_by_pod_priority.0.is_empty() {
            true => Steps::of(all, critical),
            false if all.is_zero() && critical.is_zero() => {
                Ok(self.shutdown_grace_period_by_pod_priority.clone())
            }
            false => Err(
                "--shutdown-grace-period-by-pod-priority takes the place of the other two: name one or the other".into(),
            ),
        }
    }
}
