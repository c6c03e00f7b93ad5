//! Who set which fields of an object that the registry is about to store.

use serde_json::Value;

use super::apply::{self, Operation as By, Part, Writer};
use super::error::ApiError;
use super::meta;
use super::patching::schema_of;
use super::registry::Call;

/// Notes who set which fields. An apply has done so already.
pub(super) fn track(call: &Call<'_>, old: Option<&Value>, new: &mut Value) -> Result<(), ApiError> {
    if call.manager.operation == By::Apply {
        return Ok(());
    }
    let writer = Writer {
        manager: call.manager,
        part: Part::Whole,
        now: &meta::rfc3339(meta::now()),
    };
    apply::track(old, new, writer, schema_of(call.kind))
        .map_err(|error| ApiError::bad_request(error.to_string()))
}

/// The same for a new object that admission changed: what admission sets is nobody's, so that whoever applies the object later
/// does not take it away.
pub(super) fn track_as_sent(
    call: &Call<'_>,
    mut sent: Value,
    object: &mut Value,
) -> Result<(), ApiError> {
    if call.manager.operation == By::Apply {
        return Ok(());
    }
    (call.kind.prepare_create)(&mut sent);
    track(call, None, &mut sent)?;
    let owners = meta::of(&mut sent).shift_remove("managedFields");
    if let Some(owners) = owners {
        meta::of(object).insert("managedFields".to_owned(), owners);
    }
    Ok(())
}
