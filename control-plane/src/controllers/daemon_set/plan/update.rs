//! How pods of an old template give way to those of the present one. No I/O.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Picture, Place};

/// How many nodes may be without a pod, and how many may have two.
struct Limits {
    unavailable: usize,
    surge: usize,
}

/// None: pods are replaced when somebody deletes them.
fn limits(picture: &Picture<'_>) -> Option<Limits> {
    let strategy = picture.spec.update_strategy.as_ref()?;
    if strategy.type_.as_deref() != Some("RollingUpdate") {
        return None;
    }
    let rolling = strategy.rolling_update.clone().unwrap_or_default();
    let wanted = picture.wanted();
    let unavailable = amount(rolling.max_unavailable.as_ref(), wanted);
    let surge = amount(rolling.max_surge.as_ref(), wanted);
    Some(match (unavailable, surge) {
        (0, 0) => Limits {
            unavailable: 1,
            surge: 0,
        },
        (unavailable, surge) => Limits { unavailable, surge },
    })
}

/// A share of the nodes is rounded up.
fn amount(amount: Option<&IntOrString>, wanted: usize) -> usize {
    match amount {
        None => 0,
        Some(IntOrString::Int(number)) => usize::try_from(*number).unwrap_or_default(),
        Some(IntOrString::String(text)) => {
            let percent = text
                .strip_suffix('%')
                .and_then(|digits| digits.parse().ok());
            percent.map_or(0, |percent: usize| {
                wanted.saturating_mul(percent).div_ceil(100)
            })
        }
    }
}

/// The pods of a node that are old and new, if there is at most one of each.
struct Pair {
    old: Option<Arc<Pod>>,
    new: Option<Arc<Pod>>,
}

fn pair(picture: &Picture<'_>, pods: &[Arc<Pod>]) -> Option<Pair> {
    let mut pair = Pair {
        old: None,
        new: None,
    };
    let living = pods
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none());
    for pod in living {
        let slot = match picture.is_new(pod) {
            true => &mut pair.new,
            false => &mut pair.old,
        };
        if slot.replace(pod.clone()).is_some() {
            return None;
        }
    }
    Some(pair)
}

/// The next step of an update. Every node has what it should by now, but for the template.
pub(super) fn roll(picture: &Picture<'_>, delete: &mut Vec<Arc<Pod>>, missing: &mut Vec<String>) {
    let Some(limits) = limits(picture) else {
        return;
    };
    if limits.surge == 0 {
        replace(picture, limits.unavailable, delete);
    } else {
        double(picture, limits.surge, delete, missing);
    }
}

/// The old pod goes first.
fn replace(picture: &Picture<'_>, most: usize, delete: &mut Vec<Arc<Pod>>) {
    let mut unavailable = 0;
    let mut candidates = Vec::new();
    for (place, pods) in picture.nodes.values() {
        if *place == Place::Barred || pods.is_empty() && *place != Place::Wanted {
            continue;
        }
        match pair(picture, pods) {
            Some(Pair {
                old: None,
                new: Some(new),
            }) => unavailable += usize::from(!picture.is_available(&new)),
            Some(Pair {
                old: Some(old),
                new: None,
            }) if picture.is_available(&old) => candidates.push(old),
            // What serves nobody can be replaced at once.
            Some(Pair {
                old: Some(old),
                new: None,
            }) => {
                unavailable += 1;
                delete.push(old);
            }
            _ => unavailable += 1,
        }
    }
    candidates.truncate(most.saturating_sub(unavailable));
    delete.append(&mut candidates);
}

/// The new pod comes first.
fn double(
    picture: &Picture<'_>,
    most: usize,
    delete: &mut Vec<Arc<Pod>>,
    missing: &mut Vec<String>,
) {
    let mut doubled = 0;
    let mut candidates = Vec::new();
    for (node, (place, pods)) in &picture.nodes {
        if *place != Place::Wanted {
            continue;
        }
        match pair(picture, pods) {
            None => doubled += 1,
            Some(Pair { old: None, .. }) => {}
            Some(Pair {
                old: Some(old),
                new: None,
            }) if picture.is_available(&old) => candidates.push(node.clone()),
            Some(Pair {
                old: Some(_),
                new: None,
            }) => missing.push(node.clone()),
            Some(Pair {
                old: Some(old),
                new: Some(new),
            }) => match picture.is_available(&new) {
                true => delete.push(old),
                false => doubled += 1,
            },
        }
    }
    candidates.truncate(most.saturating_sub(doubled));
    missing.append(&mut candidates);
}

/// Those of a node's running pods, the oldest first, that are too many.
pub(super) fn surplus(picture: &Picture<'_>, running: Vec<Arc<Pod>>) -> Vec<Arc<Pod>> {
    let surges = limits(picture).is_some_and(|limits| limits.surge > 0);
    if running.len() <= 1 {
        return Vec::new();
    }
    if !surges {
        return running[1..].to_vec();
    }
    let (mut new, mut old): (Vec<_>, Vec<_>) =
        running.into_iter().partition(|pod| picture.is_new(pod));
    // The old one stays as long as it serves and the new one does not yet.
    let serves = old.first().is_some_and(|pod| picture.is_available(pod));
    let waits = new.first().is_none_or(|pod| !picture.is_available(pod));
    if serves && waits || new.is_empty() {
        old.remove(0);
    }
    if !new.is_empty() {
        new.remove(0);
    }
    [old, new].concat()
}
