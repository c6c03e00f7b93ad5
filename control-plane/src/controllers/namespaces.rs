//! Namespaces that are deleted: empties them, kind by kind, then lets them go.
//!
//! ```text
//!  marked ──▶ pods deleted ──none left──▶ the rest deleted ──none left──▶ finalizer `kubernetes` removed ──▶ gone
//!              ▲      │                      ▲      │ some left: they stop with grace, or a finalizer holds them
//!              └──────┘                      └──────┘
//! ```
//! It goes only when a look that began a while after the mark has found nothing: what was let in just before it is written by then.
//!
//! Pods go first, so that none runs without the policies, quotas and secrets that were meant for it (CVE-2024-7598).

use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, NamespaceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, PostParams};

use super::Context;
use super::cache::Key;
use super::driver::{Result, queue};
use super::kinds::{ServedKind, served};

const WORKERS: usize = 4;
const FINALIZER: &str = "kubernetes";
/// What is left goes by itself; a pod's end wakes us anyhow.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// A request that was let in before the namespace was marked may write so long after it.
const SETTLES: Duration = Duration::from_secs(3);

/// Registers with the caches; the returned future works until shutdown.
pub(super) fn start(context: &Context) -> impl Future<Output = ()> + use<> {
    let (keys, wakeups) = queue();
    let queue = keys.clone();
    context.caches.namespaces.on_change(move |_, new| {
        if let Some(namespace) = new.filter(|namespace| is_going(namespace)) {
            queue.add(Key::of(&**namespace));
        }
    });
    let caches = context.caches.clone();
    context.caches.pods.on_change(move |old, new| {
        let (Some(pod), None) = (old, new) else {
            return;
        };
        let key = Key::new("", Key::of(&**pod).namespace);
        if caches
            .namespaces
            .get(&key)
            .is_some_and(|namespace| is_going(&namespace))
        {
            keys.add(key);
        }
    });
    context
        .clone()
        .drive("namespaces", wakeups, WORKERS, reconcile)
}

fn is_going(namespace: &Namespace) -> bool {
    namespace.metadata.deletion_timestamp.is_some()
}

/// How long until nothing new comes into the namespace; `None`: nothing does since before `now`.
fn unsettled(namespace: &Namespace, now: Timestamp) -> Option<Duration> {
    let marked = namespace.metadata.deletion_timestamp.as_ref()?.0;
    let passed = Duration::try_from(now.duration_since(marked)).unwrap_or_default();
    let left = SETTLES.saturating_sub(passed);
    (!left.is_zero()).then_some(left)
}

/// What is still there of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Left {
    plural: String,
    count: usize,
    finalizers: Vec<String>,
}

/// What the namespace's status says about what is left; empty: it can go.
fn conditions(left: &[Left], now: Timestamp) -> Vec<NamespaceCondition> {
    if left.is_empty() {
        return Vec::new();
    }
    let counts: Vec<String> = left
        .iter()
        .map(|left| format!("{} has {} resource instances", left.plural, left.count))
        .collect();
    let mut holding: Vec<String> = left
        .iter()
        .flat_map(|left| left.finalizers.iter().cloned())
        .collect();
    holding.sort();
    let total = holding.len();
    holding.dedup();
    let condition = |type_: &str, reason: &str, message: String| NamespaceCondition {
        type_: type_.into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_transition_time: Some(Time(now)),
    };
    let remaining = format!("Some resources are remaining: {}", counts.join(", "));
    let mut conditions = vec![condition(
        "NamespaceContentRemaining",
        "SomeResourcesRemain",
        remaining,
    )];
    if total > 0 {
        let message = format!(
            "Some content in the namespace has finalizers remaining: {}",
            holding.join(", ")
        );
        conditions.push(condition(
            "NamespaceFinalizersRemaining",
            "SomeFinalizersRemain",
            message,
        ));
    }
    conditions
}

/// The kinds that are to be emptied, those of each turn only when nothing of the turn before is left.
fn in_turn(kinds: Vec<ServedKind>) -> [Vec<ServedKind>; 2] {
    let held = kinds
        .into_iter()
        .filter(|kind| kind.namespaced && kind.can("list") && kind.can("delete"));
    let (pods, rest) = held.partition(|kind| kind.name() == "v1/Pod");
    [pods, rest]
}

async fn reconcile(context: &Context, key: &Key) -> Result<Option<Duration>> {
    let Some(namespace) = context.caches.namespaces.get(key).filter(|it| is_going(it)) else {
        return Ok(None);
    };
    let finalizers = namespace
        .spec
        .as_ref()
        .and_then(|spec| spec.finalizers.clone())
        .unwrap_or_default();
    if !finalizers.iter().any(|name| name == FINALIZER) {
        return Ok(None);
    }
    let unsettled = unsettled(&namespace, Timestamp::now());
    let mut left = Vec::new();
    for kinds in in_turn(served(&context.client).await?) {
        for kind in &kinds {
            left.extend(empty(context, &key.name, kind).await?);
        }
        if !left.is_empty() {
            break;
        }
    }
    let api: Api<Namespace> = Api::all(context.client.clone());
    let mut namespace = (*namespace).clone();
    if left.is_empty() {
        if unsettled.is_some() {
            return Ok(unsettled);
        }
        let spec = namespace.spec.get_or_insert_default();
        spec.finalizers = Some(
            finalizers
                .into_iter()
                .filter(|name| name != FINALIZER)
                .collect(),
        );
        api.replace_subresource("finalize", &key.name, &PostParams::default(), &namespace)
            .await?;
        return Ok(None);
    }
    let told = namespace
        .status
        .as_ref()
        .and_then(|status| status.conditions.clone())
        .unwrap_or_default();
    let conditions = conditions(&left, Timestamp::now());
    let texts = |conditions: &[NamespaceCondition]| -> Vec<Option<String>> {
        conditions
            .iter()
            .map(|condition| condition.message.clone())
            .collect()
    };
    if texts(&told) != texts(&conditions) {
        namespace.status = Some(NamespaceStatus {
            phase: Some("Terminating".into()),
            conditions: Some(conditions),
        });
        let written = api
            .replace_status(&key.name, &PostParams::default(), &namespace)
            .await?;
        context.caches.namespaces.wait_for(&written).await;
    }
    Ok(Some(LOOK_AGAIN))
}

/// Deletes all of one kind; gives what does not go at once.
async fn empty(context: &Context, namespace: &str, kind: &ServedKind) -> Result<Option<Left>> {
    let api: Api<DynamicObject> =
        Api::namespaced_with(context.client.clone(), namespace, &kind.resource);
    let objects = api.list_metadata(&ListParams::default()).await?.items;
    if objects.is_empty() {
        return Ok(None);
    }
    if kind.can("deletecollection")
        && objects
            .iter()
            .any(|object| object.metadata.deletion_timestamp.is_none())
    {
        api.delete_collection(&DeleteParams::background(), &ListParams::default())
            .await?;
    } else {
        for object in objects
            .iter()
            .filter(|object| object.metadata.deletion_timestamp.is_none())
        {
            let name = object.metadata.name.as_deref().unwrap_or_default();
            match api.delete(name, &DeleteParams::background()).await {
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                outcome => drop(outcome?),
            }
        }
    }
    let objects = api.list_metadata(&ListParams::default()).await?.items;
    let finalizers = objects
        .iter()
        .flat_map(|object| object.metadata.finalizers.iter().flatten().cloned())
        .collect();
    let plural = if kind.resource.group.is_empty() {
        kind.resource.plural.clone()
    } else {
        format!("{}.{}", kind.resource.plural, kind.resource.group)
    };
    Ok((!objects.is_empty()).then_some(Left {
        plural,
        count: objects.len(),
        finalizers,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::testing::at;

    fn kind(name: &str) -> ServedKind {
        let (api_version, kind) = name.rsplit_once('/').unwrap();
        ServedKind::namespaced(api_version, kind, &["list", "delete", "deletecollection"])
    }

    #[test]
    fn pods_go_before_what_was_meant_for_them() {
        let all = [
            "v1/ConfigMap",
            "v1/Pod",
            "metrics.k8s.io/v1beta1/Pod",
            "networking.k8s.io/v1/NetworkPolicy",
        ];
        let mut kinds: Vec<ServedKind> = all.map(kind).into();
        kinds.push(ServedKind::namespaced("v1", "Binding", &["create"]));
        let names = |kinds: &Vec<ServedKind>| -> Vec<String> {
            kinds.iter().map(ServedKind::name).collect()
        };
        let [first, rest] = in_turn(kinds);
        assert_eq!(names(&first), [all[1]]);
        assert_eq!(names(&rest), [all[0], all[2], all[3]]);
    }

    #[test]
    fn a_namespace_that_was_just_marked_is_looked_at_once_more() {
        let mut namespace = Namespace::default();
        namespace.metadata.deletion_timestamp = Some(Time(at(100)));
        let after = |second| unsettled(&namespace, at(second));
        assert_eq!(after(100), Some(SETTLES));
        assert_eq!(after(101), Some(SETTLES - Duration::from_secs(1)));
        assert_eq!(after(100 + SETTLES.as_secs() as i64), None);
        assert_eq!(after(90), Some(SETTLES), "a clock that was set back");
    }

    #[test]
    fn the_status_says_what_is_left_and_what_holds_it() {
        let left = [
            Left {
                plural: "pods".into(),
                count: 2,
                finalizers: vec![],
            },
            Left {
                plural: "widgets.example.com".into(),
                count: 1,
                finalizers: vec!["example.com/hold".into()],
            },
        ];
        let told: Vec<_> = conditions(&left, at(0))
            .into_iter()
            .map(|it| (it.type_, it.message.unwrap()))
            .collect();
        assert_eq!(told[0].0, "NamespaceContentRemaining");
        assert!(
            told[0]
                .1
                .contains("pods has 2 resource instances, widgets.example.com has 1"),
            "{}",
            told[0].1
        );
        assert_eq!(told[1].0, "NamespaceFinalizersRemaining");
        assert!(conditions(&[], at(0)).is_empty());
    }
}
