//! What a node keeps back from its pods, and what that leaves them. Pure.
//!
//! <https://kubernetes.io/docs/tasks/administer-cluster/reserve-compute-resources/>

use std::str::FromStr;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::facts::Facts;
use crate::housekeeping::signal::{Amount, BySignal, Signal};
use crate::pod::spec::amount;
use crate::runtime::Resources;

/// What programs outside of pods are to have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserved {
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    pub storage_bytes: u64,
}

/// What is not for pods.
#[derive(Clone, Debug, PartialEq)]
pub struct KeptBack {
    pub reserved: Reserved,
    /// What hard eviction thresholds keep free.
    pub eviction: BySignal<Amount>,
    /// More pods than that are not for the node either.
    pub max_pods: u32,
}

impl FromStr for Reserved {
    type Err = String;

    /// `cpu=200m,memory=150Mi,ephemeral-storage=1Gi`
    fn from_str(text: &str) -> Result<Self, String> {
        let mut found = Reserved::default();
        let pairs = text.split(',').map(str::trim);
        for pair in pairs.filter(|pair| !pair.is_empty()) {
            let (name, value) = pair
                .split_once('=')
                .ok_or_else(|| format!("{pair:?} is not RESOURCE=QUANTITY"))?;
            let number = amount(&Quantity(value.to_owned()));
            let number = number
                .filter(|number| *number >= 0.0)
                .ok_or_else(|| format!("{value:?} is no quantity of {name}"))?;
            match name {
                "cpu" => found.cpu_millis = (number * 1000.0).ceil() as u64,
                "memory" => found.memory_bytes = number as u64,
                "ephemeral-storage" => found.storage_bytes = number as u64,
                other => {
                    return Err(format!(
                        "{other:?} cannot be reserved; cpu, memory and ephemeral-storage can"
                    ));
                }
            }
        }
        Ok(found)
    }
}

impl Reserved {
    /// Both together.
    pub fn and(self, other: Reserved) -> Reserved {
        Reserved {
            cpu_millis: self.cpu_millis.saturating_add(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
            storage_bytes: self.storage_bytes.saturating_add(other.storage_bytes),
        }
    }

    /// An error where the machine has less of something.
    pub fn check(&self, facts: &Facts) -> Result<(), String> {
        for (name, reserved, whole) in [
            ("cpu", self.cpu_millis, millis(facts)),
            ("memory", self.memory_bytes, facts.memory_bytes),
            ("ephemeral-storage", self.storage_bytes, facts.storage_bytes),
        ] {
            if reserved > whole {
                let unit = if name == "cpu" { "m" } else { "" };
                return Err(format!(
                    "--system-reserved and --kube-reserved keep {reserved}{unit} of {name} back, and the node has {whole}{unit}"
                ));
            }
        }
        Ok(())
    }

    /// What all pods together may use. Thresholds are not part of it: beyond them pods are evicted.
    pub fn left(&self, facts: &Facts) -> Resources {
        let memory = facts.memory_bytes.saturating_sub(self.memory_bytes);
        let millis = millis(facts).saturating_sub(self.cpu_millis);
        Resources {
            cpu_shares: (millis * 1024 / 1000).clamp(2, 262_144),
            cpu_quota_us: None,
            memory_limit: i64::try_from(memory).ok(),
        }
    }
}

fn millis(facts: &Facts) -> u64 {
    facts.cpus as u64 * 1000
}

impl KeptBack {
    /// What is there for `whole` of a resource once `reserved` and what the signal's threshold keeps are taken.
    pub fn from(&self, whole: u64, reserved: u64, signal: Signal) -> u64 {
        let kept = self.eviction.get(signal).map_or(0, |kept| kept.of(whole));
        whole.saturating_sub(reserved).saturating_sub(kept)
    }

    /// Cores that are for pods, as the API writes them.
    pub fn cpus(&self, facts: &Facts) -> String {
        match millis(facts).saturating_sub(self.reserved.cpu_millis) {
            left if left.is_multiple_of(1000) => (left / 1000).to_string(),
            left => format!("{left}m"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            cpus: 4,
            memory_bytes: 8 << 30,
            storage_bytes: 100 << 30,
            ..Facts::default()
        }
    }

    #[test]
    fn reservations_add_up_and_fit_the_machine() {
        let system: Reserved = "cpu=200m, memory=1Gi".parse().unwrap();
        let kube: Reserved = "cpu=1,ephemeral-storage=1G".parse().unwrap();
        let both = system.and(kube);
        assert_eq!(both.cpu_millis, 1200);
        assert_eq!(
            (both.memory_bytes, both.storage_bytes),
            (1 << 30, 1_000_000_000)
        );
        both.check(&facts()).unwrap();
        let left = both.left(&facts());
        assert_eq!((left.cpu_shares, left.memory_limit), (2867, Some(7 << 30)));
        let much: Reserved = "cpu=5".parse().unwrap();
        assert!(much.check(&facts()).unwrap_err().contains("5000m of cpu"));
        assert_eq!("".parse(), Ok(Reserved::default()));
        for wrong in ["cpu", "cpu=x", "pid=5", "cpu=-1"] {
            assert!(wrong.parse::<Reserved>().is_err(), "{wrong}");
        }
    }
}
