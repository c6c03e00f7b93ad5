//! In which order pods end when the node shuts down, and how long each may take. Pure.

use std::fmt;
use std::str::FromStr;

use jiff::SignedDuration;

use crate::housekeeping::signal::GoDuration;
use crate::pod::spec::SYSTEM_CRITICAL;

/// How long pods from a priority on may take, up to the next step's
/// (`shutdownGracePeriodByPodPriority`, KEP-2712).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub priority: i32,
    pub grace: SignedDuration,
}

/// Steps as they are given on the command line: `0=20s,2000000000=10s`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steps(pub Vec<Step>);

impl FromStr for Steps {
    type Err = String;

    fn from_str(text: &str) -> Result<Steps, String> {
        let step = |pair: &str| {
            let (priority, grace) = pair
                .split_once('=')
                .ok_or_else(|| format!("{pair:?} is not of the form PRIORITY=TIME"))?;
            let priority = priority
                .trim()
                .parse()
                .map_err(|error| format!("{priority:?} is no priority: {error}"))?;
            let grace = grace.trim().parse::<GoDuration>()?.0;
            Ok(Step { priority, grace })
        };
        let pairs = text.split(',').filter(|pair| !pair.trim().is_empty());
        let mut steps = pairs.map(step).collect::<Result<Vec<Step>, String>>()?;
        steps.sort_by_key(|step| step.priority);
        Ok(Steps(steps))
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(out, "{comma}{}={}", step.priority, GoDuration(step.grace))?;
        }
        Ok(())
    }
}

impl Steps {
    /// All pods together have `all`, of which `critical` is kept for those that are critical to the system.
    pub fn of(all: SignedDuration, critical: SignedDuration) -> Result<Steps, String> {
        for (name, time) in [("", all), ("-critical-pods", critical)] {
            if !time.is_zero() && time < SignedDuration::from_secs(1) {
                return Err(format!(
                    "--shutdown-grace-period{name} must be either zero or otherwise >= 1 sec"
                ));
            }
        }
        if critical > all {
            return Err(
                "--shutdown-grace-period-critical-pods must be <= --shutdown-grace-period".into(),
            );
        }
        let step = |priority, grace| Step { priority, grace };
        Ok(Steps(match all.is_zero() {
            true => Vec::new(),
            false => vec![step(0, all - critical), step(SYSTEM_CRITICAL, critical)],
        }))
    }

    /// What all of them take at most.
    pub fn total(&self) -> SignedDuration {
        let graces = self.0.iter().map(|step| step.grace);
        graces.fold(SignedDuration::ZERO, SignedDuration::saturating_add)
    }
}

/// A pod that has to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaver {
    pub uid: String,
    pub priority: i32,
    /// What it asks for.
    pub grace: SignedDuration,
}

/// Pods that end at the same time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The next group is not waited with for longer.
    pub grace: SignedDuration,
    /// Each with the time that it has.
    pub pods: Vec<(String, SignedDuration)>,
}

/// The groups, the first to end first. A pod is in that of the highest step that is not above its priority, or in the
/// lowest. Where there is nobody, nothing is waited for.
pub fn groups(steps: &Steps, pods: &[Leaver]) -> Vec<Group> {
    let groups = steps.0.iter().enumerate().map(|(at, step)| {
        let above = steps.0.get(at + 1).map(|next| next.priority);
        let here = |pod: &&Leaver| {
            (at == 0 || pod.priority >= step.priority)
                && above.is_none_or(|above| pod.priority < above)
        };
        let pods = pods.iter().filter(here);
        Group {
            grace: step.grace,
            pods: pods
                .map(|pod| (pod.uid.clone(), pod.grace.min(step.grace)))
                .collect(),
        }
    });
    groups.filter(|group| !group.pods.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(seconds: i64) -> SignedDuration {
        SignedDuration::from_secs(seconds)
    }

    fn pod(uid: &str, priority: i32, grace: i64) -> Leaver {
        Leaver {
            uid: uid.into(),
            priority,
            grace: seconds(grace),
        }
    }

    #[test]
    fn critical_pods_end_last_and_have_their_own_time() {
        let steps = Steps::of(seconds(30), seconds(10)).unwrap();
        assert_eq!(steps.to_string(), "0=20s,2000000000=10s");
        assert_eq!(steps.total(), seconds(30));
        let pods = [
            pod("critical", SYSTEM_CRITICAL + 1000, 60),
            pod("low", -5, 60),
            pod("quick", 7, 2),
        ];
        let of = |grace, pods: &[(&str, i64)]| Group {
            grace: seconds(grace),
            pods: pods
                .iter()
                .map(|(uid, s)| ((*uid).into(), seconds(*s)))
                .collect(),
        };
        assert_eq!(
            groups(&steps, &pods),
            [
                of(20, &[("low", 20), ("quick", 2)]),
                of(10, &[("critical", 10)])
            ]
        );
        assert_eq!(groups(&steps, &pods[..1]), [of(10, &[("critical", 10)])]);
    }

    #[test]
    fn without_a_period_nothing_is_waited_for_and_nonsense_is_refused() {
        assert_eq!(Steps::of(seconds(0), seconds(0)), Ok(Steps::default()));
        assert!(Steps::of(seconds(5), seconds(6)).is_err());
        assert!(Steps::of(SignedDuration::from_millis(5), seconds(0)).is_err());
        assert!("5".parse::<Steps>().is_err());
        let read: Steps = "100=10s, -1=1m0s".parse().unwrap();
        assert_eq!(read.to_string(), "-1=1m0s,100=10s");
    }

    proptest! {
        #[test]
        fn every_pod_ends_once_and_none_before_a_lesser_one(
            steps in prop::collection::btree_map(-10..10, 1..60i64, 1..5),
            pods in prop::collection::vec((-20..20, 0..90i64), 0..20),
        ) {
            let steps = steps.into_iter().map(|(priority, grace)| Step { priority, grace: seconds(grace) });
            let steps = Steps(steps.collect());
            let pods: Vec<Leaver> = pods.iter().enumerate()
                .map(|(at, (priority, grace))| pod(&at.to_string(), *priority, *grace)).collect();
            let groups = groups(&steps, &pods);
            let priority = |uid: &String| pods[uid.parse::<usize>().unwrap()].priority;
            let order: Vec<Vec<i32>> = groups.iter()
                .map(|group| group.pods.iter().map(|(uid, _)| priority(uid)).collect()).collect();
            prop_assert_eq!(order.iter().map(Vec::len).sum::<usize>(), pods.len());
            for pair in order.windows(2) {
                prop_assert!(pair[0].iter().max() < pair[1].iter().min());
            }
            for group in &groups {
                prop_assert!(group.pods.iter().all(|(_, grace)| *grace <= group.grace));
            }
        }
    }
}
