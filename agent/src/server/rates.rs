//! How much of the CPU is used at the moment: what was used since somebody asked before.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use crate::pod::usage::{NodeUsage, Usage};

/// Over less than this a rate says little.
const LEAST: Duration = Duration::from_secs(1);

/// What was read last of whatever has an id, and the rate until then.
#[derive(Default)]
pub struct Rates(Mutex<HashMap<String, Sample>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sample {
    at: Timestamp,
    cpu: Duration,
    nano_cores: Option<u64>,
}

impl Rates {
    /// Billionths of a CPU, by a container's id, a pod's uid, or nothing for the node. Of what is seen for the first time there
    /// is none; of what is no more nothing is kept.
    pub(super) fn of(&self, usage: &NodeUsage) -> HashMap<String, u64> {
        let node = usage.node.iter().map(|usage| (String::new(), usage));
        let pods = usage.pods.iter().flat_map(|pod| {
            let containers = pod.containers.iter();
            let containers = containers.map(|(it, usage)| (it.id.clone(), usage));
            containers.chain([(pod.pod.uid.clone(), &pod.all)])
        });
        // The map is replaced as a whole.
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now: HashMap<String, Sample> = node
            .chain(pods)
            .map(|(id, usage)| {
                let sample = next(last.get(&id), usage);
                (id, sample)
            })
            .collect();
        last.clone_from(&now);
        let rated = now.into_iter();
        rated
            .filter_map(|(id, sample)| Some((id, sample.nano_cores?)))
            .collect()
    }
}

fn next(last: Option<&Sample>, usage: &Usage) -> Sample {
    let new = Sample {
        at: usage.at,
        cpu: usage.cpu,
        nano_cores: None,
    };
    let Some(last) = last else {
        return new;
    };
    match Duration::try_from(usage.at.duration_since(last.at)) {
        Ok(passed) if passed >= LEAST => {
            let used = usage.cpu.saturating_sub(last.cpu).as_nanos() * 1_000_000_000;
            Sample {
                nano_cores: u64::try_from(used / passed.as_nanos()).ok(),
                ..new
            }
        }
        _ => *last,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::stats::tests::usage;

    #[test]
    fn a_rate_is_of_the_time_since_it_was_asked_for() {
        let rates = Rates::default();
        let at = |seconds: i64, used_ms: u64| {
            let mut all = usage();
            let main = &mut all.pods[0].containers[0].1;
            main.at = Timestamp::from_second(seconds).unwrap();
            main.cpu = Duration::from_millis(used_ms);
            all
        };
        assert_eq!(rates.of(&at(10, 500)).get("c1"), None);
        assert_eq!(rates.of(&at(14, 2500))["c1"], 500_000_000);
        // Another one asks in the same second.
        assert_eq!(rates.of(&at(14, 2600))["c1"], 500_000_000);
        assert_eq!(rates.of(&at(16, 2500))["c1"], 0);
        let mut gone = at(18, 2500);
        gone.pods.clear();
        rates.of(&gone);
        assert_eq!(rates.of(&at(20, 2500)).get("c1"), None, "it is forgotten");
    }
}
