//! The verbs: from a request's parameters and body to the registry, and from there to an answer.

use axum::response::Response;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use http::{HeaderMap, StatusCode};
use serde_json::Value;

use super::apply::Manager;
use super::applying;
use super::body::{self, Decoded, FieldValidation};
use super::content;
use super::deletion::{self, DeleteOptions};
use super::error::ApiError;
use super::list::{self, Selection};
use super::meta;
use super::options::ListOptions;
use super::patching;
use super::present::{self, Presenter};
use super::registry::{Call, Deleted, Registry, Through};
use super::request::{Query, ResourceRequest};
use super::table::Include;
use super::watch;
use crate::admission::Warnings;
use crate::auth::{self, User};
use crate::resources::validate::Path;
use crate::resources::{Kind, form::Form};
use crate::store::Revision;
use crate::store::cache::Freshness;

/// How many objects of a collection are deleted at once.
const DELETIONS: usize = 32;

/// A request for objects with everything that came with it.
pub struct Input<'a> {
    pub user: &'a User,
    pub kind: &'static Kind,
    pub request: &'a ResourceRequest,
    pub query: &'a Query,
    pub headers: &'a HeaderMap,
    pub body: Bytes,
    /// In whose name fields are set.
    pub manager: Manager,
    /// What admission says to the client although it refuses nothing.
    pub warnings: &'a Warnings,
}

impl<'a> Input<'a> {
    pub fn call(&self) -> Result<Call<'_>, ApiError> {
        let dry_run = match self.query.get("dryRun") {
            "" => false,
            "All" => true,
            other => {
                let wrong = Path::new("dryRun").unsupported(other, &["All"]);
                return Err(ApiError::invalid_options(self.request.options(), wrong));
            }
        };
        Ok(Call {
            user: self.user,
            kind: self.kind,
            namespace: &self.request.namespace,
            dry_run,
            manager: &self.manager,
            warnings: self.warnings,
        })
    }

    pub fn presenter(&self) -> Result<Presenter, ApiError> {
        Ok(Presenter {
            kind: self.kind,
            shape: content::shape(self.headers)?,
            include: Include::parse(self.query.get("includeObject")),
        })
    }

    fn selection(&self) -> Result<Selection, ApiError> {
        let mut options = ListOptions::parse(self.query)?;
        if !self.request.name.is_empty() {
            // A watch of one object, asked for in the old way.
            options.fields = options.fields.and("metadata.name", &self.request.name);
        }
        let selection = Selection {
            kind: self.kind,
            namespace: self.request.namespace.clone(),
            options,
        };
        selection.check()?;
        Ok(selection)
    }

    /// The body as an object of the kind, for this place.
    fn object(&self) -> Result<Decoded, ApiError> {
        let validation = FieldValidation::of(self.request, self.query)?;
        let decoded = body::object(
            self.kind,
            &self.body,
            content::encoding(self.headers)?,
            validation,
        )?;
        self.check_place(&decoded.object)?;
        Ok(decoded)
    }

    /// The body as something that nobody stores. What its sender should be told of it goes to the warnings.
    pub(super) fn form(&self, form: &Form) -> Result<Value, ApiError> {
        content::require_json(self.headers)?;
        let encoding = content::encoding(self.headers)?;
        let validation = FieldValidation::of(self.request, self.query)?;
        let decoded = body::form(form, &self.body, encoding, validation)?;
        let warnings = decoded.warnings.into_iter();
        warnings.for_each(|text| self.warnings.add(text));
        Ok(decoded.object)
    }

    pub(super) fn check_place(&self, object: &Value) -> Result<(), ApiError> {
        let namespace = meta::text(object, "namespace");
        if !namespace.is_empty() && namespace != self.request.namespace {
            return Err(ApiError::bad_request(format!(
                "the namespace of the provided object does not match the namespace sent on the request ({namespace} != {})",
                self.request.namespace
            )));
        }
        let (name, asked) = (meta::text(object, "name"), &self.request.name);
        if !asked.is_empty() && name != asked {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({asked})"
            )));
        }
        Ok(())
    }
}

pub async fn get(registry: &Registry, input: &Input<'_>) -> Result<Response, ApiError> {
    let presenter = input.presenter()?;
    let freshness = match input
        .query
        .number::<u64>("resourceVersion")
        .map_err(ApiError::bad_request)?
    {
        None => Freshness::Latest,
        Some(0) => Freshness::Any,
        Some(revision) => Freshness::NotOlderThan(Revision(revision)),
    };
    let object = registry
        .get(
            input.kind,
            &input.request.namespace,
            &input.request.name,
            freshness,
        )
        .await?;
    let is_node = auth::node_name(input.user).is_some() || input.user.is_in(auth::BOOTSTRAPPERS);
    if input.kind.private_to_node && is_node {
        check_own(input, &object.json)?;
    }
    presenter.stored(&object.json)
}

/// Of what is some node's own, a node sees what is its own.
fn check_own(input: &Input<'_>, json: &[u8]) -> Result<(), ApiError> {
    let object: Value = serde_json::from_slice(json).map_err(ApiError::internal)?;
    if auth::node_may_touch(input.user, &object) {
        return Ok(());
    }
    let why = format!("it does not belong to \"{}\"", input.user.name);
    Err(ApiError::forbidden(
        input.kind.group,
        input.kind.plural,
        &input.request.name,
        &why,
    ))
}

pub async fn list(registry: &Registry, input: &Input<'_>) -> Result<Response, ApiError> {
    let presenter = input.presenter()?;
    let (items, meta) = list::list(registry, &input.selection()?).await?;
    presenter.list(&items, &meta)
}

pub async fn watch(registry: &Registry, input: &Input<'_>) -> Result<Response, ApiError> {
    watch::watch(registry, input.selection()?, input.presenter()?).await
}

pub async fn create(registry: &Registry, input: &Input<'_>) -> Result<Response, ApiError> {
    let presenter = input.presenter()?;
    let decoded = input.object()?;
    let created = registry.create(&input.call()?, decoded.object).await?;
    let mut response = presenter.object(StatusCode::CREATED, created);
    present::warn(&mut response, &decoded.warnings);
    Ok(response)
}

/// PUT of the object or of its status.
pub async fn update(
    registry: &Registry,
    input: &Input<'_>,
    through: Through,
) -> Result<Response, ApiError> {
    let presenter = input.presenter()?;
    let decoded = input.object()?;
    let updated = registry
        .update(&input.call()?, &input.request.name, through, |_| {
            Ok(decoded.object.clone())
        })
        .await?;
    let mut response = presenter.object(StatusCode::OK, updated);
    present::warn(&mut response, &decoded.warnings);
    Ok(response)
}

/// PATCH of the object or of its status.
pub async fn patch(
    registry: &Registry,
    input: &Input<'_>,
    through: Through,
) -> Result<Response, ApiError> {
    if applying::is_apply(input.headers) {
        return applying::apply(registry, input, through).await;
    }
    let presenter = input.presenter()?;
    let validation = FieldValidation::of(input.request, input.query)?;
    let patch = patching::patch_of(input.headers, &input.body)?;
    let mut warnings = Vec::new();
    let patched = registry
        .update(&input.call()?, &input.request.name, through, |old| {
            let new = patching::apply(&patch, Some(input.kind), old)?;
            let decoded = body::typed(input.kind, new, Vec::new(), validation)?;
            input.check_place(&decoded.object)?;
            warnings = decoded.warnings;
            Ok(decoded.object)
        })
        .await?;
    let mut response = presenter.object(StatusCode::OK, patched);
    present::warn(&mut response, &warnings);
    Ok(response)
}

pub async fn delete(registry: &Registry, input: &Input<'_>) -> Result<Response, ApiError> {
    let presenter = input.presenter()?;
    let options = delete_options(input)?;
    let mut call = input.call()?;
    call.dry_run |= options.dry_run;
    let name = &input.request.name;
    let mut response = match registry.delete(&call, name, &options).await? {
        Deleted::Marked(object) => presenter.object(StatusCode::OK, object),
        Deleted::Gone(object) if input.kind.returns_deleted_object => {
            presenter.object(StatusCode::OK, object)
        }
        Deleted::Gone(object) => {
            present::success(StatusCode::OK, input.kind, name, meta::text(&object, "uid"))
        }
    };
    let warning = input.kind.orphans_warning;
    let warning = warning.filter(|_| options.propagation.is_none());
    present::warn(&mut response, &Vec::from_iter(warning.map(str::to_owned)));
    Ok(response)
}

/// Deletes what a list would show; gives what it deleted, as a list.
pub async fn delete_collection(
    registry: &Registry,
    input: &Input<'_>,
) -> Result<Response, ApiError> {
    let presenter = input.presenter()?;
    let options = delete_options(input)?;
    let mut call = input.call()?;
    call.dry_run |= options.dry_run;
    let (items, meta) = list::list(registry, &input.selection()?).await?;
    // Several at once share a flush of the store. All of it has to be done before the request runs out of time.
    stream::iter(items.clone())
        .map(|item| delete_item(registry, call, item, &options))
        .buffer_unordered(DELETIONS)
        .try_collect::<()>()
        .await?;
    presenter.list(&items, &meta)
}

async fn delete_item(
    registry: &Registry,
    call: Call<'_>,
    item: Bytes,
    options: &DeleteOptions,
) -> Result<(), ApiError> {
    let object: Value = serde_json::from_slice(&item).map_err(ApiError::internal)?;
    let call = Call {
        namespace: meta::text(&object, "namespace"),
        ..call
    };
    let name = meta::text(&object, "name");
    match registry.delete(&call, name, options).await {
        Ok(_) => Ok(()),
        // Somebody else was faster; that is what was wanted.
        Err(error) if error.code == StatusCode::NOT_FOUND => Ok(()),
        Err(error) => Err(error),
    }
}

/// `DeleteOptions` from the body if there is one; what the query says counts where the body is silent.
fn delete_options(input: &Input<'_>) -> Result<DeleteOptions, ApiError> {
    let body = if input.body.is_empty() {
        Value::Null
    } else {
        body::parse(&input.body, content::encoding(input.headers)?)?
    };
    let mut options = DeleteOptions::from_body(&body)?;
    if options.grace.is_none() {
        options.grace = input
            .query
            .number("gracePeriodSeconds")
            .map_err(ApiError::bad_request)?;
    }
    if options.propagation.is_none() && input.query.has("propagationPolicy") {
        let text = input.query.get("propagationPolicy");
        options.propagation = Some(deletion::propagation(text)?);
    }
    if options.propagation.is_none() && input.query.has("orphanDependents") {
        let orphan = input.query.flag("orphanDependents");
        options.propagation = Some(if orphan {
            deletion::Propagation::Orphan
        } else {
            deletion::Propagation::Background
        });
    }
    Ok(options)
}
