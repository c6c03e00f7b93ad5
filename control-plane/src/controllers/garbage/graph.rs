//! Who owns whom, and what is to be done about an object whose owners go. No I/O.

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, HashSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

pub(super) const FOREGROUND: &str = "foregroundDeletion";
pub(super) const ORPHAN: &str = "orphan";

/// Enough to find an object in the API. The kind stands for group and version, too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Place {
    pub(super) api_version: String,
    pub(super) kind: String,
    /// Empty for a cluster-wide kind.
    pub(super) namespace: String,
    pub(super) name: String,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Thing {
    pub(super) place: Place,
    pub(super) owners: Vec<OwnerReference>,
    pub(super) deleting: bool,
    pub(super) foreground: bool,
    pub(super) orphan: bool,
}

impl Thing {
    pub(super) fn of(api_version: &str, kind: &str, meta: &ObjectMeta) -> Self {
        let held_by = |name: &str| {
            meta.finalizers
                .iter()
                .flatten()
                .any(|finalizer| finalizer == name)
        };
        Self {
            place: Place {
                api_version: api_version.into(),
                kind: kind.into(),
                namespace: meta.namespace.clone().unwrap_or_default(),
                name: meta.name.clone().unwrap_or_default(),
            },
            owners: meta.owner_references.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
            foreground: held_by(FOREGROUND),
            orphan: held_by(ORPHAN),
        }
    }

    fn waits_for_dependents(&self) -> bool {
        self.deleting && self.foreground
    }
}

/// An owner that the graph does not know: whether it exists, the API server has to say.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Unknown {
    pub(super) uid: String,
    pub(super) place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    /// Dependents may be missing here: ask again.
    Wait,
    /// Find out which of these exist, then ask again.
    Verify(BTreeSet<Unknown>),
    Delete {
        foreground: bool,
    },
    /// Take away the references to these owners, by uid.
    Disown(BTreeSet<String>),
    /// Take the references to it from its dependents, by uid, then its finalizer.
    Orphan(BTreeSet<String>),
    /// Nobody is left to wait for.
    ReleaseForeground,
}

#[derive(Debug, Default)]
pub(super) struct Graph {
    things: HashMap<String, Thing>,
    dependents: HashMap<String, HashSet<String>>,
    /// Kinds whose objects are not all in here yet; `None` before anybody knows which kinds there are.
    unlisted: Option<HashSet<String>>,
}

impl Graph {
    pub(super) fn get(&self, uid: &str) -> Option<&Thing> {
        self.things.get(uid)
    }

    /// Takes note of all kinds that are `served`, and of those among them that are followed from now on.
    pub(super) fn follow(
        &mut self,
        served: &HashSet<String>,
        new: impl IntoIterator<Item = String>,
    ) {
        let unlisted = self.unlisted.get_or_insert_default();
        // A kind that is gone will never be listed.
        unlisted.retain(|kind| served.contains(kind));
        unlisted.extend(new);
    }

    /// All objects of the kind are in here.
    pub(super) fn listed(&mut self, kind: &str) {
        if let Some(unlisted) = &mut self.unlisted {
            unlisted.remove(kind);
        }
    }

    /// Kinds that are followed and whose objects are not all in here.
    pub(super) fn unlisted(&self) -> Vec<&str> {
        let unlisted = self.unlisted.iter().flatten();
        unlisted.map(String::as_str).collect()
    }

    /// Whether each object's dependents are known.
    fn is_complete(&self) -> bool {
        self.unlisted.as_ref().is_some_and(HashSet::is_empty)
    }

    /// Takes the object in; gives the uids that have to be looked at.
    pub(super) fn put(&mut self, uid: &str, thing: Thing) -> BTreeSet<String> {
        let mut affected = BTreeSet::new();
        let old = self.things.insert(uid.to_owned(), thing.clone());
        if old.as_ref() == Some(&thing) {
            return affected;
        }
        let owners: HashSet<String> = thing.owners.iter().map(|owner| owner.uid.clone()).collect();
        for former in old
            .iter()
            .flat_map(|old| &old.owners)
            .filter(|owner| !owners.contains(&owner.uid))
        {
            self.unlink(&former.uid, uid);
            affected.insert(former.uid.clone());
        }
        for owner in &owners {
            self.dependents
                .entry(owner.clone())
                .or_default()
                .insert(uid.to_owned());
        }
        let is_news = |what: fn(&Thing) -> bool| what(&thing) && !old.as_ref().is_some_and(what);
        // Foreground may be asked for when the deletion is under way.
        if is_news(|thing| thing.deleting) || is_news(Thing::waits_for_dependents) {
            affected.extend(self.dependents.get(uid).into_iter().flatten().cloned());
        }
        if !thing.owners.is_empty() || thing.deleting {
            affected.insert(uid.to_owned());
        }
        affected
    }

    /// The object is gone; gives the uids that have to be looked at.
    pub(super) fn remove(&mut self, uid: &str) -> BTreeSet<String> {
        let Some(thing) = self.things.remove(uid) else {
            return BTreeSet::new();
        };
        let mut affected: BTreeSet<String> = self
            .dependents
            .get(uid)
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        for owner in &thing.owners {
            self.unlink(&owner.uid, uid);
            affected.insert(owner.uid.clone());
        }
        affected
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    fn dependents(&self, uid: &str) -> impl Iterator<Item = (&String, &Thing)> {
        let uids = self.dependents.get(uid).into_iter().flatten();
        uids.filter_map(|uid| Some((uid, self.things.get(uid)?)))
    }

    /// What is to be done about the object. `absent` are owners that the API server said do not exist, `present` those that do.
    pub(super) fn decide(
        &self,
        uid: &str,
        absent: &HashSet<String>,
        present: &HashSet<String>,
    ) -> Action {
        let Some(thing) = self.things.get(uid) else {
            return Action::Nothing;
        };
        if thing.deleting {
            return self.decide_deleting(uid, thing);
        }
        if thing.owners.is_empty() {
            return Action::Nothing;
        }
        let (mut solid, mut going) = (false, BTreeSet::new());
        let mut waiting = false;
        let mut unknown = BTreeSet::new();
        for owner in &thing.owners {
            match self.things.get(&owner.uid) {
                Some(known) if known.waits_for_dependents() => {
                    waiting = true;
                    going.insert(owner.uid.clone());
                }
                Some(_) => solid = true,
                None if present.contains(&owner.uid) => solid = true,
                None if absent.contains(&owner.uid) => {
                    going.insert(owner.uid.clone());
                }
                None => {
                    unknown.insert(Unknown {
                        uid: owner.uid.clone(),
                        place: place_of(owner, &thing.place.namespace),
                    });
                }
            }
        }
        if !unknown.is_empty() {
            return Action::Verify(unknown);
        }
        match (solid, going.is_empty()) {
            (true, true) => Action::Nothing,
            (true, false) => Action::Disown(going),
            (false, _) => Action::Delete {
                foreground: waiting
                    && (!self.is_complete() || self.dependents(uid).next().is_some()),
            },
        }
    }

    fn decide_deleting(&self, uid: &str, thing: &Thing) -> Action {
        if (thing.orphan || thing.foreground) && !self.is_complete() {
            return Action::Wait;
        }
        if thing.orphan {
            return Action::Orphan(self.dependents(uid).map(|(uid, _)| uid.clone()).collect());
        }
        if !thing.foreground {
            return Action::Nothing;
        }
        let blocks = |dependent: &Thing| {
            dependent
                .owners
                .iter()
                .any(|owner| owner.uid == uid && owner.block_owner_deletion == Some(true))
        };
        if self.dependents(uid).any(|(_, dependent)| blocks(dependent)) {
            // They are looked at themselves, and wake us when they are gone.
            return Action::Nothing;
        }
        Action::ReleaseForeground
    }
}

/// Where an owner is: in the dependent's namespace, unless its kind is cluster-wide, which only the server knows.
fn place_of(owner: &OwnerReference, namespace: &str) -> Place {
    Place {
        api_version: owner.api_version.clone(),
        kind: owner.kind.clone(),
        namespace: namespace.into(),
        name: owner.name.clone(),
    }
}
