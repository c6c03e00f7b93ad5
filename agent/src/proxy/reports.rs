//! What people are told about services that cannot be served as they stand: a log line and an Event when something new is
//! wrong, and nothing when it stays so.

use std::collections::HashMap;

use tracing::warn;

use crate::cluster::{Ignored, ObjectKey};
use crate::events::{Events, Kind, Subject};

/// Who was told what.
pub(super) struct Reports {
    events: Option<Events>,
    told: HashMap<ObjectKey, Vec<Ignored>>,
}

impl Reports {
    /// Without `events` there are log lines only.
    pub(super) fn new(events: Option<Events>) -> Self {
        let told = HashMap::new();
        Self { events, told }
    }

    /// Tells what is wrong with a service now, as far as that is news.
    pub(super) fn tell(
        &mut self,
        service: &ObjectKey,
        uid: Option<uuid::Uuid>,
        wrong: Vec<Ignored>,
    ) {
        let before = match wrong.is_empty() {
            true => self.told.remove(service),
            false => self.told.insert(service.clone(), wrong.clone()),
        };
        for ignored in news(before.as_deref().unwrap_or_default(), &wrong) {
            let message = ignored.to_string();
            let reason = ignored.why.event();
            warn!(%service, reason, message, "a part of the service is left out");
            let Some(events) = &self.events else { continue };
            let (kind, name) = match service.pod_name() {
                Some(pod) => ("Pod", pod),
                None => ("Service", &*service.name),
            };
            let subject = Subject {
                kind,
                namespace: service.namespace.to_string(),
                name: name.to_owned(),
                uid: uid.map(|uid| uid.to_string()).unwrap_or_default(),
            };
            events.send(subject, None, Kind::Warning, reason, message);
        }
    }
}

/// What was not said before. That there is more or less of the same is no news.
fn news<'a>(before: &[Ignored], now: &'a [Ignored]) -> Vec<&'a Ignored> {
    let is_known = |new: &&Ignored| {
        let mut known = before.iter();
        known.any(|old| (old.why, &old.what) == (new.why, &new.what))
    };
    now.iter().filter(|new| !is_known(new)).collect()
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;
    use crate::cluster::Why;

    #[test]
    fn only_what_is_new_is_told() {
        let (port, address) = (
            Ignored::one(Why::Port, 0),
            Ignored::one(Why::ServiceAddress, "::1"),
        );
        let more = Ignored {
            count: 7,
            ..port.clone()
        };
        assert_eq!(news(&[], from_ref(&port)), [&port]);
        assert!(news(from_ref(&port), from_ref(&more)).is_empty());
        assert_eq!(news(&[more], &[port.clone(), address.clone()]), [&address]);
        assert!(news(&[port], &[]).is_empty());
    }
}
