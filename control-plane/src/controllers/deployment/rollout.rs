//! How a Deployment moves its pods from the old ReplicaSets to the new one, and how it resizes them meanwhile. No I/O.

use k8s_openapi::api::apps::v1::Deployment;

use super::sets::{
    DESIRED_REPLICAS, MAX_REPLICAS, Set, Sets, max_surge, max_unavailable, replicas,
};

/// The number of pods the new set may have right now.
pub(super) fn new_set_size(
    deployment: &Deployment,
    sets: &Sets,
    current: i32,
    recreate: bool,
) -> i32 {
    let wanted = replicas(deployment);
    if recreate || current > wanted {
        return wanted;
    }
    let room = (wanted + max_surge(deployment) - sets.total()).max(0);
    current + room.min(wanted - current)
}

/// One step of a rolling update. Says whether a set was resized.
pub(super) fn roll(deployment: &Deployment, sets: &mut Sets) -> bool {
    let size = sets
        .new
        .as_ref()
        .map(|new| new_set_size(deployment, sets, new.replicas(), false));
    if let (Some(new), Some(size)) = (&mut sets.new, size)
        && new.replicas() != size
    {
        new.scale(size, deployment);
        return true;
    }
    shrink_old(deployment, sets)
}

/// Takes pods from the old sets: first those that serve nobody, then as many as the available ones allow.
fn shrink_old(deployment: &Deployment, sets: &mut Sets) -> bool {
    let least = replicas(deployment) - max_unavailable(deployment);
    let new_unavailable = sets
        .new
        .as_ref()
        .map_or(0, |new| new.replicas() - new.available());
    let mut spare = sets.total() - least - new_unavailable;
    let mut changed = false;
    for set in &mut sets.old {
        let sick = (set.replicas() - set.available()).clamp(0, spare.max(0));
        if sick > 0 {
            set.scale(set.replicas() - sick, deployment);
            spare -= sick;
            changed = true;
        }
    }
    let available: i32 = sets
        .all()
        .map(|set| set.available().min(set.replicas()))
        .sum();
    let mut surplus = (available - least).min(spare);
    for set in &mut sets.old {
        let take = set.replicas().clamp(0, surplus.max(0));
        if take > 0 {
            set.scale(set.replicas() - take, deployment);
            surplus -= take;
            changed = true;
        }
    }
    changed
}

/// Scales every old set to nothing. Says whether there was anything to scale.
pub(super) fn stop_old(deployment: &Deployment, sets: &mut Sets) -> bool {
    let mut changed = false;
    for set in sets.old.iter_mut().filter(|set| set.replicas() > 0) {
        set.scale(0, deployment);
        changed = true;
    }
    changed
}

/// Whether `spec.replicas` has changed since the sets were sized.
pub(super) fn is_resized(deployment: &Deployment, sets: &Sets) -> bool {
    let wanted = replicas(deployment);
    let mut active = sets.all().filter(|set| set.replicas() > 0);
    active.any(|set| {
        set.annotated_number(DESIRED_REPLICAS)
            .is_some_and(|noted| noted != wanted)
    })
}

/// Brings the sets to the Deployment's size without moving the rollout on: all in proportion if several have pods.
pub(super) fn resize(deployment: &Deployment, sets: &mut Sets, recreate: bool) {
    let wanted = replicas(deployment);
    let active: Vec<usize> = sets
        .all()
        .enumerate()
        .filter(|(_, set)| set.replicas() > 0)
        .map(|(index, _)| index)
        .collect();
    if active.len() <= 1 {
        // The active one, or else the newest.
        let lone = active.first().copied().or_else(|| newest(sets));
        if let Some(set) = lone.and_then(|index| sets.all_mut().nth(index))
            && set.replicas() != wanted
        {
            set.scale(wanted, deployment);
        }
        return;
    }
    if sets
        .new
        .as_ref()
        .is_some_and(|new| is_saturated(new, wanted))
    {
        stop_old(deployment, sets);
        return;
    }
    if !recreate {
        resize_in_proportion(deployment, sets);
    }
}

fn newest(sets: &Sets) -> Option<usize> {
    if sets.new.is_some() {
        Some(0)
    } else {
        sets.old.len().checked_sub(1)
    }
}

fn is_saturated(new: &Set, wanted: i32) -> bool {
    new.replicas() == wanted
        && new.annotated_number(DESIRED_REPLICAS) == Some(wanted)
        && new.available() == wanted
}

fn resize_in_proportion(deployment: &Deployment, sets: &mut Sets) {
    let wanted = replicas(deployment);
    let allowed = if wanted > 0 {
        wanted + max_surge(deployment)
    } else {
        0
    };
    let to_add = allowed - sets.total();
    let was = deployment
        .status
        .as_ref()
        .and_then(|status| status.replicas)
        .unwrap_or_default();
    let mut active: Vec<&mut Set> = sets.all_mut().filter(|set| set.replicas() > 0).collect();
    // The largest first; among equals growth goes to the youngest and loss to the oldest.
    active.sort_by(|a, b| {
        let by_age = if to_add > 0 {
            b.created().cmp(&a.created())
        } else {
            a.created().cmp(&b.created())
        };
        b.replicas().cmp(&a.replicas()).then(by_age)
    });
    let mut added = 0;
    let mut sizes: Vec<i32> = Vec::with_capacity(active.len());
    for set in &active {
        let share = share_of(set, wanted, max_surge(deployment), was);
        let left = to_add - added;
        let share = if to_add > 0 {
            share.clamp(0, left)
        } else {
            share.clamp(left, 0)
        };
        sizes.push(set.replicas() + share);
        added += share;
    }
    // What rounding left over goes to the largest.
    if let Some(first) = sizes.first_mut() {
        *first = (*first + to_add - added).max(0);
    }
    for (set, size) in active.into_iter().zip(sizes) {
        set.scale(size, deployment);
    }
}

/// By how much the set would grow if all grew alike.
fn share_of(set: &Set, wanted: i32, surge: i32, was: i32) -> i32 {
    let size = set.replicas();
    if wanted == 0 {
        return -size;
    }
    let sized_for = set
        .annotated_number(MAX_REPLICAS)
        .filter(|max| *max > 0)
        .unwrap_or(was.max(1));
    let target = f64::from(size) * f64::from(wanted + surge) / f64::from(sized_for);
    // Sizes are far below 2^31.
    #[allow(clippy::cast_possible_truncation)]
    let target = target.round() as i32;
    target - size
}

/// Names of old, empty sets beyond the history limit, the oldest revisions first.
pub(super) fn beyond_history(deployment: &Deployment, sets: &Sets) -> Vec<String> {
    let limit = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.revision_history_limit)
        .unwrap_or(10);
    let mut idle: Vec<&Set> = sets.old.iter().filter(|set| is_idle(set)).collect();
    idle.sort_by_key(|set| (set.revision(), set.created()));
    let surplus = idle
        .len()
        .saturating_sub(usize::try_from(limit).unwrap_or(0));
    idle.into_iter()
        .take(surplus)
        .map(|set| set.name().to_owned())
        .collect()
}

fn is_idle(set: &Set) -> bool {
    let seen = set.observed().observed_generation >= set.wanted.metadata.generation;
    seen && set.replicas() == 0
        && set.observed().replicas == 0
        && set.wanted.metadata.deletion_timestamp.is_none()
}
