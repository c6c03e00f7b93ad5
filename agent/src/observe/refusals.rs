//! How often a refusal is worth a line in the log. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::cluster::ObjectKey;

/// Between two lines about one service and reason.
const QUIET: Duration = Duration::from_secs(10);
/// Services that are kept in mind. Whoever comes when it is full makes the others be forgotten.
const MOST: usize = 4096;

/// What has been said of which service.
#[derive(Debug, Default)]
pub(super) struct Refusals(BTreeMap<(Option<ObjectKey>, &'static str), Said>);

#[derive(Debug)]
struct Said {
    at: Instant,
    /// Refusals since.
    more: u64,
}

impl Refusals {
    /// Notes one. Gives how many a line about it stands for, itself included; `None` when it is too early for a line.
    pub(super) fn note(
        &mut self,
        service: Option<ObjectKey>,
        reason: &'static str,
        now: Instant,
    ) -> Option<u64> {
        let key = (service, reason);
        if let Some(said) = self.0.get_mut(&key) {
            said.more += 1;
            if now.saturating_duration_since(said.at) < QUIET {
                return None;
            }
            said.at = now;
            return Some(std::mem::take(&mut said.more));
        }
        if self.0.len() >= MOST {
            self.0.clear();
        }
        self.0.insert(key, Said { at: now, more: 0 });
        Some(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_said_at_once_and_the_rest_in_one_line() {
        let (mut refusals, start) = (Refusals::default(), Instant::now());
        let service = |name: &str| Some(ObjectKey::new("shop", name));
        let mut at = |name, seconds| {
            refusals.note(
                service(name),
                "no-backend",
                start + Duration::from_secs(seconds),
            )
        };
        assert_eq!(at("web", 0), Some(1));
        assert_eq!(at("web", 1), None);
        assert_eq!(at("db", 1), Some(1), "another service has its own line");
        assert_eq!(at("web", 9), None);
        assert_eq!(at("web", 10), Some(3));
        assert_eq!(at("web", 11), None);
        assert_eq!(
            refusals.note(service("web"), "hole", start),
            Some(1),
            "another reason"
        );
    }
}
