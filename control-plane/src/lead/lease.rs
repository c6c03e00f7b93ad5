//! What a Lease says of its holder, and what one writes who takes, renews or gives it back. Pure.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::core::ObjectMeta;

use super::LEASE_DURATION;
use super::decide::Record;

pub fn now() -> MicroTime {
    MicroTime(Timestamp::now())
}

pub fn record(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    let seconds = spec
        .lease_duration_seconds
        .and_then(|s| u64::try_from(s).ok());
    Record {
        holder: spec.holder_identity.unwrap_or_default(),
        duration: seconds.map_or(LEASE_DURATION, Duration::from_secs),
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
    }
}

/// The Lease in the hands of `me`. A new holder is one more transition.
pub fn held(found: Option<Lease>, name: &str, me: &str, now: MicroTime) -> Lease {
    let mut lease = found.unwrap_or_else(|| Lease {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        spec: None,
    });
    let before = lease.spec.take();
    let is_new = before.is_none();
    let before = before.unwrap_or_default();
    let is_mine = before.holder_identity.as_deref() == Some(me);
    let transitions = before.lease_transitions.unwrap_or(0);
    lease.spec = Some(LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
        acquire_time: before
            .acquire_time
            .filter(|_| is_mine)
            .or_else(|| Some(now.clone())),
        renew_time: Some(now),
        lease_transitions: Some(match is_mine || is_new {
            true => transitions,
            false => transitions.saturating_add(1),
        }),
        ..before
    });
    lease
}

/// The Lease in nobody's hands, as upstream gives it back.
pub fn free(found: Lease, now: MicroTime) -> Lease {
    let before = found.spec.unwrap_or_default();
    Lease {
        spec: Some(LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(1),
            renew_time: Some(now),
            ..before
        }),
        ..found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(lease: &Lease) -> LeaseSpec {
        lease.spec.clone().unwrap()
    }

    #[test]
    fn a_lease_tells_who_holds_it_and_since_when() {
        let at = |second| MicroTime(Timestamp::from_second(second).unwrap());
        let first = held(None, "x", "a", at(1));
        assert_eq!(first.metadata.name.as_deref(), Some("x"));
        let renewed = held(Some(first.clone()), "x", "a", at(2));
        assert_eq!(spec(&renewed).acquire_time, Some(at(1)));
        assert_eq!(spec(&renewed).renew_time, Some(at(2)));
        assert_eq!(spec(&renewed).lease_transitions, Some(0));
        let taken = held(Some(renewed), "x", "b", at(20));
        assert_eq!(spec(&taken).acquire_time, Some(at(20)));
        assert_eq!(spec(&taken).lease_transitions, Some(1));
        assert_eq!(record(&taken).holder, "b");
        assert_eq!(record(&taken).duration, LEASE_DURATION);
        let given_back = free(taken, at(21));
        assert_eq!(record(&given_back).holder, "");
        let again = held(Some(given_back), "x", "a", at(22));
        assert_eq!(spec(&again).lease_transitions, Some(2));
        assert_eq!(record(&Lease::default()).duration, LEASE_DURATION);
    }
}
