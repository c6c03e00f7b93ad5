//! The generic registry: create, read, update and delete for every kind, with the rules that hold for all of them.
//!
//! A new object is defaulted, admitted, prepared, validated, checked by the rest of admission and stored. A changed one is prepared before it is admitted, so
//! that admission judges only what would really change. What is particular to a kind is data and pure functions in its
//! [`Kind`]; nothing here asks which kind it serves.

use std::sync::Arc;

use serde_json::Value;

use super::apply::Manager;
use super::deletion::{self, DeleteOptions, Step};
use super::error::ApiError;
use super::meta;
use super::owners::{track, track_as_sent};
use super::stored::{bytes_of, key, object_of, read_error, set_version, storable, store_error};
use crate::admission::service_ip::Held;
use crate::admission::{Admission, Operation, Review, Warnings, reservations};
use crate::auth::User;
use crate::auth::rbac::Policies;
use crate::resources::Kind;
use crate::store::cache::{Cache, Freshness, Object};
use crate::store::{Expect, Revision, Store, StoreError, Write};

/// How often a write is tried anew when others keep changing the object in between.
const ATTEMPTS: usize = 16;

/// Objects, behind the rules of the API.
pub struct Registry {
    pub store: Arc<dyn Store>,
    pub cache: Arc<Cache>,
    pub admission: Admission,
    /// Who may do what.
    pub policies: Arc<Policies>,
}

/// Who asks for what kind of object, where.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    pub user: &'a User,
    pub kind: &'static Kind,
    /// Empty for cluster-scoped kinds.
    pub namespace: &'a str,
    /// Go all the way, but store nothing.
    pub dry_run: bool,
    /// In whose name fields are set.
    pub manager: &'a Manager,
    /// Takes what admission says to the client although it refuses nothing.
    pub warnings: &'a Warnings,
}

/// Which part of an object an update may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Through {
    /// The object itself: what its strategy lets through.
    Main,
    Status,
    /// A subresource that made the new object from the old one itself.
    Subresource(&'static str),
}

/// The subresource that puts a pod on a node.
pub const BINDING: &str = "binding";
/// The subresource that adds containers to a pod that runs.
pub const EPHEMERAL: &str = "ephemeralcontainers";
/// That which changes what its containers ask for.
pub const RESIZE: &str = "resize";

/// A write of an object.
struct Changed<'a> {
    name: &'a str,
    /// None: it is new.
    old: Option<&'a Value>,
    /// None: it goes.
    new: Option<&'a Value>,
    write: Write,
}

/// What a delete left.
pub enum Deleted {
    /// The object is gone; this was its last state.
    Gone(Value),
    /// It is marked, and goes when its grace is over and its finalizers are gone.
    Marked(Value),
}

impl Registry {
    /// The object as the cache holds it.
    pub async fn get(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        fresh: Freshness,
    ) -> Result<Arc<Object>, ApiError> {
        let (object, _) = self
            .cache
            .get(&key(kind, namespace, name), fresh)
            .await
            .map_err(read_error)?;
        object.ok_or_else(|| ApiError::not_found(kind, name))
    }

    /// The object as the store holds it at this moment.
    async fn read(&self, call: &Call<'_>, name: &str) -> Result<(Value, Revision), ApiError> {
        let key = key(call.kind, call.namespace, name);
        let (entry, _) = self.store.get(&key).await.map_err(store_error)?;
        let entry = entry.ok_or_else(|| ApiError::not_found(call.kind, name))?;
        Ok((object_of(call.kind, &entry)?, entry.modified))
    }

    /// Stores a new object; gives it as stored.
    pub async fn create(&self, call: &Call<'_>, object: Value) -> Result<Value, ApiError> {
        let more = if reservations::concern(call.kind) {
            ATTEMPTS
        } else {
            0
        };
        for _ in 0..more {
            if let Some(created) = self.try_create(call, object.clone()).await? {
                return Ok(created);
            }
        }
        let name = meta::text(&object, "name").to_owned();
        let created = self.try_create(call, object).await?;
        created.ok_or_else(|| ApiError::modified(call.kind, &name))
    }

    /// One attempt. None: another API server was faster to take what this one gave the object.
    async fn try_create(
        &self,
        call: &Call<'_>,
        mut object: Value,
    ) -> Result<Option<Value>, ApiError> {
        let kind = call.kind;
        if !meta::text(&object, "resourceVersion").is_empty() {
            return Err(ApiError::bad_request(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        let uid = uuid::Uuid::new_v4().to_string();
        meta::prepare_create(
            &mut object,
            call.namespace,
            uid,
            meta::now(),
            &meta::random_suffix(),
        );
        (kind.default)(&mut object);
        let review = self.review(call, Operation::Create, "");
        let sent = object.clone();
        let admitted = self.admission.admit(&review, &mut object, None).await?;
        let admission_changed_it = sent != object;
        (kind.prepare_create)(&mut object);
        if admission_changed_it {
            track_as_sent(call, sent, &mut object)?;
        } else {
            track(call, None, &mut object)?;
        }
        let name = meta::text(&object, "name").to_owned();
        let mut errors = (kind.validate)(&object, None);
        errors.extend(reservations::errors(kind, None, &object));
        if !errors.is_empty() {
            return Err(ApiError::invalid(kind.group, kind.kind, &name, &errors));
        }
        let bytes = storable(kind, &object)?;
        let checked = self.admission.check(&review, &object, None, &admitted);
        let charges = checked.await?;
        if call.dry_run {
            return self.pretend_create(call, &name, object).await.map(Some);
        }
        let key = key(kind, call.namespace, &name);
        let changed = Changed {
            name: &name,
            old: None,
            new: Some(&object),
            write: Write::put(key.as_str(), bytes, Expect::Absent),
        };
        match self.write(call, changed, admitted.held).await {
            Ok(revision) => {
                set_version(&mut object, revision);
                Ok(Some(object))
            }
            Err(StoreError::Conflict { key: other, .. }) => {
                charges.give_back(self.store.as_ref()).await;
                if other == key {
                    return Err(ApiError::already_exists(kind, &name));
                }
                self.lost(call, &name, &other).await?;
                Ok(None)
            }
            Err(other) => Err(store_error(other)),
        }
    }

    async fn pretend_create(
        &self,
        call: &Call<'_>,
        name: &str,
        object: Value,
    ) -> Result<Value, ApiError> {
        let (there, _) = self
            .store
            .get(&key(call.kind, call.namespace, name))
            .await
            .map_err(store_error)?;
        if there.is_some() {
            Err(ApiError::already_exists(call.kind, name))
        } else {
            Ok(object)
        }
    }

    /// Replaces an object by what `change` makes of it. `change` is called anew when somebody else was faster; a
    /// `resourceVersion` in what it gives must be the present one.
    pub async fn update(
        &self,
        call: &Call<'_>,
        name: &str,
        through: Through,
        mut change: impl FnMut(&Value) -> Result<Value, ApiError>,
    ) -> Result<Value, ApiError> {
        for _ in 0..ATTEMPTS {
            let (old, revision) = self.read(call, name).await?;
            let new = change(&old)?;
            if let Some(written) = self
                .replace(call, name, through, &old, new, revision)
                .await?
            {
                return Ok(written);
            }
        }
        Err(ApiError::modified(call.kind, name))
    }

    /// One attempt at an update. None: the object is no longer as `old`.
    async fn replace(
        &self,
        call: &Call<'_>,
        name: &str,
        through: Through,
        old: &Value,
        mut new: Value,
        revision: Revision,
    ) -> Result<Option<Value>, ApiError> {
        let kind = call.kind;
        let (asked_uid, uid) = (meta::text(&new, "uid"), meta::text(old, "uid"));
        if !asked_uid.is_empty() && asked_uid != uid {
            let why = format!(
                "Precondition failed: UID in precondition: {asked_uid}, UID in object meta: {uid}"
            );
            return Err(ApiError::conflict(kind, name, &why));
        }
        let asked = meta::text(&new, "resourceVersion");
        if !asked.is_empty() && asked != "0" && asked != meta::text(old, "resourceVersion") {
            return Err(ApiError::modified(kind, name));
        }
        (kind.default)(&mut new);
        meta::prepare_update(&mut new, old);
        match through {
            Through::Main => (kind.prepare_update)(&mut new, old),
            Through::Status => (kind.prepare_status)(&mut new, old),
            Through::Subresource(RESIZE) if new["spec"] != old["spec"] => {
                let generation = old["metadata"]["generation"].as_i64();
                new["metadata"]["generation"] =
                    serde_json::json!(generation.unwrap_or_default() + 1);
            }
            Through::Subresource(_) => {}
        }
        let subresource = match through {
            Through::Main => "",
            Through::Status => "status",
            Through::Subresource(name) => name,
        };
        let review = self.review(call, Operation::Update, subresource);
        let admitted = self.admission.admit(&review, &mut new, Some(old)).await?;
        track(call, Some(old), &mut new)?;
        // A binding changes what an update may not, a pod's node. So does what adds containers or resizes them. Each has
        // checked that itself; the rest must still be as an update may leave it.
        let checked: &[&str] = match through {
            Through::Subresource(BINDING) => &["nodeName"],
            Through::Subresource(EPHEMERAL) => &["ephemeralContainers"],
            Through::Subresource(RESIZE) => &["containers", "initContainers"],
            _ => &[],
        };
        let adjusted = (!checked.is_empty()).then(|| {
            let mut adjusted = old.clone();
            for field in checked {
                if let Some(value) = new["spec"].get(*field) {
                    adjusted["spec"][*field] = value.clone();
                }
            }
            adjusted
        });
        let mut errors = (kind.validate)(&new, Some(adjusted.as_ref().unwrap_or(old)));
        errors.extend(reservations::errors(kind, Some(old), &new));
        if !errors.is_empty() {
            return Err(ApiError::invalid(kind.group, kind.kind, name, &errors));
        }
        set_version(&mut new, revision);
        if new == *old {
            return Ok(Some(new));
        }
        let checked = self.admission.check(&review, &new, Some(old), &admitted);
        let charges = checked.await?;
        if call.dry_run {
            return Ok(Some(new));
        }
        let key = key(kind, call.namespace, name);
        let goes = deletion::is_finished(kind, &new);
        let write = if goes {
            Write::delete(key.as_str(), revision)
        } else {
            let bytes = storable(kind, &new)?;
            Write::put(key.as_str(), bytes, Expect::Modified(revision))
        };
        let changed = Changed {
            name,
            old: Some(old),
            new: (!goes).then_some(&new),
            write,
        };
        match self.write(call, changed, admitted.held).await {
            Ok(revision) => {
                set_version(&mut new, revision);
                Ok(Some(new))
            }
            Err(StoreError::Conflict { key: other, .. }) => {
                charges.give_back(self.store.as_ref()).await;
                if other != key {
                    self.lost(call, name, &other).await?;
                }
                Ok(None)
            }
            Err(other) => Err(store_error(other)),
        }
    }

    /// Writes, with the reservations that go with it, and settles what the write holds. All happen even if the request is
    /// dropped in between: an address must not be free again while a stored Service has it.
    async fn write(
        &self,
        call: &Call<'_>,
        changed: Changed<'_>,
        held: Held,
    ) -> Result<Revision, StoreError> {
        let store = self.store.clone();
        let holder = reservations::holder(call.namespace, changed.name);
        let (old, new) = (changed.old, changed.new);
        let reserved = reservations::writes(&*store, call.kind, &holder, old, new).await?;
        let writes = [vec![changed.write], reserved].concat();
        let written = tokio::spawn(async move {
            let outcome = store.commit(writes).await;
            match &outcome {
                Err(StoreError::Conflict { .. }) => drop(held),
                // An error may hide a write that happened.
                Ok(_) | Err(_) => held.keep(),
            }
            outcome
        });
        written
            .await
            .unwrap_or_else(|error| Err(StoreError::Failed(error.to_string())))
    }

    /// Another API server holds `key` of the reservations. An error where no other thing does instead.
    async fn lost(&self, call: &Call<'_>, name: &str, key: &str) -> Result<(), ApiError> {
        if let Some(range) = reservations::pod_range(key) {
            let why = format!("the pod range {range} is another node's");
            return Err(ApiError::conflict(call.kind, name, &why));
        }
        self.admission.lost(key).await.map_err(store_error)
    }

    /// Deletes an object, or marks it for those who must act first.
    pub async fn delete(
        &self,
        call: &Call<'_>,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<Deleted, ApiError> {
        let kind = call.kind;
        for _ in 0..ATTEMPTS {
            let (mut old, revision) = self.read(call, name).await?;
            check_preconditions(kind, name, &old, options)?;
            let review = self.review(call, Operation::Delete, "");
            let admitted = self.admission.admit(&review, &mut old, None).await?;
            let key = key(kind, call.namespace, name);
            let (outcome, next) = match deletion::decide(kind, &old, options, meta::now()) {
                Step::Nothing => return Ok(Deleted::Marked(old)),
                Step::Remove if call.dry_run => return Ok(Deleted::Gone(old)),
                // What cannot be read back must not be stored: it would break every list that holds it.
                Step::Mark(next) if (kind.decode)(next.clone()).is_err() => {
                    return Err(ApiError::internal(format!(
                        "{name} marked for deletion would be no {}",
                        kind.kind
                    )));
                }
                Step::Mark(next) if call.dry_run => return Ok(Deleted::Marked(next)),
                Step::Remove => {
                    let changed = Changed {
                        name,
                        old: Some(&old),
                        new: None,
                        write: Write::delete(key, revision),
                    };
                    (self.write(call, changed, admitted.held).await, None)
                }
                Step::Mark(next) => (
                    self.store
                        .put(&key, bytes_of(kind, &next)?, Expect::Modified(revision))
                        .await,
                    Some(next),
                ),
            };
            match (outcome, next) {
                (Ok(revision), None) => {
                    set_version(&mut old, revision);
                    return Ok(Deleted::Gone(old));
                }
                (Ok(revision), Some(mut next)) => {
                    set_version(&mut next, revision);
                    return Ok(Deleted::Marked(next));
                }
                (Err(StoreError::Conflict { .. }), _) => {}
                (Err(other), _) => return Err(store_error(other)),
            }
        }
        Err(ApiError::modified(kind, name))
    }

    fn review<'a>(
        &self,
        call: &Call<'a>,
        operation: Operation,
        subresource: &'static str,
    ) -> Review<'a> {
        Review {
            user: call.user,
            kind: call.kind,
            namespace: call.namespace,
            operation,
            subresource,
            dry_run: call.dry_run,
            warnings: call.warnings,
        }
    }
}

pub(super) fn check_preconditions(
    kind: &Kind,
    name: &str,
    object: &Value,
    options: &DeleteOptions,
) -> Result<(), ApiError> {
    for (asked, field, title) in [
        (&options.uid, "uid", "UID"),
        (
            &options.resource_version,
            "resourceVersion",
            "ResourceVersion",
        ),
    ] {
        let actual = meta::text(object, field);
        if let Some(asked) = asked
            && asked != actual
        {
            let why = format!(
                "Precondition failed: {title} in precondition: {asked}, {title} in object meta: {actual}"
            );
            return Err(ApiError::conflict(kind, name, &why));
        }
    }
    Ok(())
}
