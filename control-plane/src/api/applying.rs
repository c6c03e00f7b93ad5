//! PATCH as server-side apply: from a request to the registry. And in whose name any write sets fields.

use axum::response::Response;
use http::{HeaderMap, StatusCode, header};
use serde_json::Value;

use super::access;
use super::apply::{self, ApplyError, Manager, Operation, Part, Writer};
use super::body::{self, FieldValidation};
use super::content::{self, Encoding};
use super::error::ApiError;
use super::meta;
use super::patching::schema_of;
use super::registry::{Registry, Through};
use super::request::{Query, ResourceRequest};
use super::verbs::Input;
use crate::auth::Attributes;
use crate::resources::validate::Path;
use crate::resources::{Kind, Subresource};

pub const CONTENT_TYPE: &str = "application/apply-patch+yaml";

/// How long the name of a manager may be, in bytes.
const NAME: usize = 128;

/// How often an apply that finds no object, and then somebody else's, begins anew.
const ATTEMPTS: usize = 3;

pub fn is_apply(headers: &HeaderMap) -> bool {
    content::content_type(headers) == CONTENT_TYPE
}

/// In whose name a request sets fields: what it says itself, else what its program calls itself.
pub fn manager(
    kind: &Kind,
    request: &ResourceRequest,
    query: &Query,
    headers: &HeaderMap,
) -> Result<Manager, ApiError> {
    let operation = if request.verb == "patch" && is_apply(headers) {
        Operation::Apply
    } else {
        Operation::Update
    };
    let said = query.get("fieldManager");
    let wrong = |error| Err(ApiError::invalid_options(request.options(), error));
    let field = Path::new("fieldManager");
    if said.len() > NAME {
        return wrong(field.too_long(NAME));
    }
    if let Some(odd) = said.chars().find(|c| c.is_control()) {
        let detail = format!("should only contain printable characters, found {odd:?}");
        return wrong(field.invalid(said, detail));
    }
    if operation == Operation::Apply && said.is_empty() {
        return wrong(field.required("is required for apply patch"));
    }
    if operation == Operation::Update && request.verb == "patch" && query.has("force") {
        return wrong(Path::new("force").forbidden("may not be specified for non-apply patch"));
    }
    let program = || {
        let agent = headers.get(header::USER_AGENT)?.to_str().ok()?;
        let name: String = agent.split('/').next()?.chars().take(NAME).collect();
        (!name.is_empty()).then_some(name)
    };
    let name = if said.is_empty() {
        program().unwrap_or_else(|| "unknown".to_owned())
    } else {
        said.to_owned()
    };
    Ok(Manager {
        name,
        operation,
        api_version: kind.api_version(),
        subresource: request.subresource.clone(),
    })
}

/// Applies the body to the object, which is made if there is none.
pub async fn apply(
    registry: &Registry,
    input: &Input<'_>,
    through: Through,
) -> Result<Response, ApiError> {
    let presenter = input.presenter()?;
    let config = configuration(input)?;
    let (call, name) = (input.call()?, &input.request.name);
    let part = match through {
        Through::Status => Part::Below(&["status"]),
        _ if input.kind.has(Subresource::Status) => Part::WithoutStatus,
        _ => Part::Whole,
    };
    let change = |live: &Value| applied(input, live, &config, part);
    for _ in 0..ATTEMPTS {
        match registry.update(&call, name, through, change).await {
            Err(error) if error.code == StatusCode::NOT_FOUND && through == Through::Main => {}
            outcome => return Ok(presenter.object(StatusCode::OK, outcome?)),
        }
        let uid = meta::text(&config, "uid");
        if !uid.is_empty() {
            let why = format!(
                "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            );
            return Err(ApiError::conflict(input.kind, name, &why));
        }
        may_create(registry, input).await?;
        let nothing = Value::Object(serde_json::Map::new());
        match registry.create(&call, change(&nothing)?).await {
            Err(error) if error.reason == "AlreadyExists" => {}
            outcome => return Ok(presenter.object(StatusCode::CREATED, outcome?)),
        }
    }
    Err(ApiError::modified(input.kind, name))
}

/// Who may patch what is there may not for that make what is not.
async fn may_create(registry: &Registry, input: &Input<'_>) -> Result<(), ApiError> {
    let request = input.request;
    let attributes = Attributes {
        verb: "create",
        group: &request.group,
        resource: &request.resource,
        namespace: &request.namespace,
        name: &request.name,
        ..Attributes::default()
    };
    match access::refusal(registry, input.user, &attributes).await? {
        None => Ok(()),
        Some(why) => Err(ApiError::forbidden(
            &request.group,
            &request.resource,
            &request.name,
            &why,
        )),
    }
}

/// What an object becomes when the request's manager applies a configuration of a part of it.
pub(super) fn applied(
    input: &Input<'_>,
    live: &Value,
    config: &Value,
    part: Part,
) -> Result<Value, ApiError> {
    let (kind, name) = (input.kind, &input.request.name);
    let writer = Writer {
        manager: &input.manager,
        part,
        now: &meta::rfc3339(meta::now()),
    };
    let force = input.query.flag("force");
    let applied = apply::apply(live, config, writer, force, schema_of(kind));
    let mut applied = applied.map_err(|error| match error {
        ApplyError::Conflicts(_) => ApiError::apply_conflict(kind, name, &error),
        _ => ApiError::bad_request(format!(
            "failed to create typed patch object ({}/{name}; {}, Kind={}): {error}",
            input.request.namespace,
            kind.api_version(),
            kind.kind
        )),
    })?;
    // These are no fields to own but conditions, whatever part is applied.
    for condition in ["resourceVersion", "uid"] {
        let said = meta::text(config, condition);
        if !said.is_empty() {
            meta::of(&mut applied).insert(condition.to_owned(), said.into());
        }
    }
    let decoded = body::typed(kind, applied, Vec::new(), FieldValidation::Ignore)?;
    input.check_place(&decoded.object)?;
    Ok(decoded.object)
}

/// What a request applies may not say who owns it.
pub(super) fn check_unowned(config: &Value) -> Result<(), ApiError> {
    let said = config["metadata"]["managedFields"].as_array();
    if said.is_some_and(|entries| !entries.is_empty()) {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    Ok(())
}

/// The configuration that a request applies. What it says is null it says nothing of.
pub(super) fn configuration(input: &Input<'_>) -> Result<Value, ApiError> {
    let mut config = body::parse(&input.body, Encoding::Yaml)?;
    check_unowned(&config)?;
    drop_nulls(&mut config);
    let decoded = body::typed(
        input.kind,
        config.clone(),
        Vec::new(),
        FieldValidation::Warn,
    )?;
    // An owner of a field that does not exist could never be rid of it.
    if let [first, ..] = decoded.warnings.as_slice() {
        return Err(ApiError::bad_request(format!(
            "failed to create typed patch object ({}/{}; {}, Kind={}): {first}: field not declared in schema",
            input.request.namespace,
            input.request.name,
            input.kind.api_version(),
            input.kind.kind
        )));
    }
    let named = meta::text(&config, "name");
    if !named.is_empty() {
        input.check_place(&config)?;
    }
    if named.is_empty() {
        meta::of(&mut config).insert("name".to_owned(), input.request.name.clone().into());
    }
    Ok(config)
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}
