//! Events are news: after an hour they go.

use std::time::Duration;

use k8s_openapi::api::core::v1::Event;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ListParams, Preconditions, ResourceExt};
use tracing::warn;

use super::Context;

const PAGE: u32 = 500;
/// Looked through at least this often, and not more often than the other.
const SELDOMEST: Duration = Duration::from_secs(300);
const OFTENEST: Duration = Duration::from_secs(30);

/// The returned future works until shutdown.
pub(super) fn start(context: &Context) -> impl Future<Output = ()> + use<> {
    let context = context.clone();
    async move {
        // A start has better things to do than to look for old news.
        let mut pause = SELDOMEST;
        loop {
            tokio::select! {
                () = context.shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = match expire(&context).await {
                Ok(next) => next.clamp(OFTENEST, SELDOMEST),
                Err(error) => {
                    warn!(%error, "cannot look through the Events, trying again");
                    OFTENEST
                }
            };
        }
    }
}

/// How long until the Event expires; zero when it has.
fn left(event: &Event, ttl: Duration, now: Timestamp) -> Duration {
    let series = event
        .series
        .as_ref()
        .and_then(|series| series.last_observed_time.as_ref().map(|time| time.0));
    let last = series
        .or(event.last_timestamp.as_ref().map(|time| time.0))
        .or(event.event_time.as_ref().map(|time| time.0))
        .or(event
            .metadata
            .creation_timestamp
            .as_ref()
            .map(|time| time.0));
    let age = Duration::try_from(now.duration_since(last.unwrap_or(now))).unwrap_or_default();
    ttl.saturating_sub(age)
}

/// Deletes what has expired; gives the time until the next one will.
async fn expire(context: &Context) -> Result<Duration, kube::Error> {
    let all: Api<Event> = Api::all(context.client.clone());
    let now = Timestamp::now();
    let mut next = SELDOMEST;
    let mut page = ListParams::default().limit(PAGE);
    loop {
        let events = all.list(&page).await?;
        for event in &events.items {
            let left = left(event, context.config.event_ttl, now);
            if !left.is_zero() {
                next = next.min(left);
                continue;
            }
            let api: Api<Event> = Api::namespaced(
                context.client.clone(),
                &event.namespace().unwrap_or_default(),
            );
            // If it was repeated meanwhile, its version has changed and it stays.
            let same = Preconditions {
                uid: event.uid(),
                resource_version: event.resource_version(),
            };
            match api
                .delete(
                    &event.name_any(),
                    &DeleteParams::default().preconditions(same),
                )
                .await
            {
                Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
                outcome => drop(outcome?),
            }
        }
        match events.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(next),
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::controllers::testing::at;

    #[test]
    fn a_repeated_event_lives_on_from_its_last_time() {
        let mut event = Event::default();
        event.metadata.creation_timestamp = Some(Time(at(1000)));
        let ttl = Duration::from_secs(3600);
        assert_eq!(left(&event, ttl, at(1600)), Duration::from_secs(3000));
        assert_eq!(left(&event, ttl, at(4600)), Duration::ZERO);
        event.last_timestamp = Some(Time(at(4000)));
        assert_eq!(left(&event, ttl, at(4600)), Duration::from_secs(3000));
    }
}
