//! The `token` subresource of service accounts: a new token for whom the request says, for as long as it says.

use axum::response::Response;
use http::StatusCode;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequestSpec};
use serde_json::{Map, Value, json};

use super::Api;
use super::access;
use super::error::ApiError;
use super::meta;
use super::present;
use super::registry::Registry;
use super::verbs::Input;
use crate::auth::tokens::{Claims, Object, Private};
use crate::auth::{self, Attributes, MASTERS, User};
use crate::resources::form::TOKEN_REQUEST;
use crate::resources::validate::Path;
use crate::resources::{self, FieldError};
use crate::store::cache::Freshness;

const GROUP: &str = "authentication.k8s.io";
const KIND: &str = "TokenRequest";
/// In seconds.
const DEFAULT: i64 = 3600;
const SHORTEST: i64 = 600;
const LONGEST: i64 = 1 << 32;
/// Who asks for this asks because of a pod's standard volume. Programs that never read their token anew get a year, and are
/// told of by `warnafter`.
const OF_PODS: i64 = 3607;
const YEAR: i64 = 365 * 24 * 3600;

/// POST of a `TokenRequest`.
pub async fn create(api: &Api, input: &Input<'_>) -> Result<Response, ApiError> {
    let body = input.form(&TOKEN_REQUEST)?;
    let (namespace, name) = (&input.request.namespace, &input.request.name);
    let mut spec = read(&body, namespace, name)?;
    let errors = errors(&spec);
    if !errors.is_empty() {
        return Err(ApiError::invalid(GROUP, KIND, "", &errors));
    }
    let account = get(&api.registry, "serviceaccounts", namespace, name).await?;
    let own = api.authenticator.tokens().audiences();
    if spec.audiences.is_empty() {
        spec.audiences.clone_from(&own);
    }
    let seconds = *spec.expiration_seconds.get_or_insert(DEFAULT);
    let mut private = Private {
        namespace: namespace.clone(),
        serviceaccount: reference(&account),
        ..Private::default()
    };
    bind(&api.registry, input.user, &own, &mut spec, &mut private).await?;
    let now = meta::now();
    let mut lifetime = seconds;
    let for_this_server = spec.audiences.iter().all(|audience| own.contains(audience));
    if private.pod.is_some() && seconds == OF_PODS && for_this_server {
        private.warnafter = Some(now + seconds);
        lifetime = YEAR;
    }
    let claims = Claims {
        aud: spec.audiences.clone(),
        exp: now + lifetime,
        iat: now,
        iss: String::new(),
        jti: uuid::Uuid::new_v4().to_string(),
        nbf: now,
        sub: auth::service_account(namespace, name),
        private,
    };
    let token = match input.call()?.dry_run {
        true => String::new(),
        false => api
            .authenticator
            .tokens()
            .issue(claims)
            .map_err(ApiError::internal)?,
    };
    let answer = json!({
        "kind": KIND,
        "apiVersion": format!("{GROUP}/v1"),
        "metadata": {"name": name, "namespace": namespace, "creationTimestamp": meta::rfc3339(now)},
        "spec": spec,
        "status": {"token": token, "expirationTimestamp": meta::rfc3339(now + seconds)},
    });
    Ok(present::value(StatusCode::CREATED, &answer))
}

fn read(body: &Value, namespace: &str, name: &str) -> Result<TokenRequestSpec, ApiError> {
    for (field, on_url) in [("name", name), ("namespace", namespace)] {
        let own = meta::text(body, field);
        if !own.is_empty() && own != on_url {
            return Err(ApiError::bad_request(format!(
                "the {field} of the token request ({own}) does not match the {field} on the URL ({on_url})"
            )));
        }
    }
    let spec = match &body["spec"] {
        Value::Null => json!({}),
        spec => spec.clone(),
    };
    serde_json::from_value(spec)
        .map_err(|error| ApiError::bad_request(format!("{KIND}: spec: {error}")))
}

fn errors(spec: &TokenRequestSpec) -> Vec<FieldError> {
    let path = Path::new("spec").child("expirationSeconds");
    match spec.expiration_seconds {
        Some(seconds) if seconds < SHORTEST => {
            vec![path.invalid(seconds, "may not specify a duration less than 10 minutes")]
        }
        Some(seconds) if seconds > LONGEST => {
            vec![path.invalid(
                seconds,
                "may not specify a duration larger than 2^32 seconds",
            )]
        }
        _ => Vec::new(),
    }
}

/// Puts what the token is to be bound to into its claims, and the uid into the spec. `own` are this server's audiences.
async fn bind(
    registry: &Registry,
    user: &User,
    own: &[String],
    spec: &mut TokenRequestSpec,
    private: &mut Private,
) -> Result<(), ApiError> {
    let node = auth::node_name(user).filter(|_| !user.is_in(MASTERS));
    let account = private.serviceaccount.name.clone();
    let Some(asked) = &mut spec.bound_object_ref else {
        return match node {
            Some(_) => Err(forbidden(
                &account,
                "node requested token not bound to a pod",
            )),
            None => Ok(()),
        };
    };
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let (version, kind, name) = (
        text(&asked.api_version),
        text(&asked.kind),
        text(&asked.name),
    );
    let (plural, namespace) = match (&version[..], &kind[..]) {
        ("v1" | "", "Pod") => ("pods", &private.namespace[..]),
        ("v1" | "", "Secret") => ("secrets", &private.namespace[..]),
        ("v1" | "", "Node") => ("nodes", ""),
        _ => {
            return Err(ApiError::bad_request(format!(
                "cannot bind token to object of type {version}, Kind={kind}"
            )));
        }
    };
    let object = get(registry, plural, namespace, &name).await?;
    if let Some(node) = node {
        may_have(node, asked, plural, &object).map_err(|why| forbidden(&account, &why))?;
        if let Err(why) = is_wanted(&user.name, &spec.audiences, own, &object)
            && !may_ask_for(registry, user, &spec.audiences, private).await?
        {
            return Err(forbidden(&account, &why));
        }
    }
    let found = reference(&object);
    let uid = text(&asked.uid);
    if !uid.is_empty() && uid != found.uid {
        let kind = resources::find("", "v1", plural).ok_or_else(ApiError::no_route)?;
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(ApiError::conflict(kind, &name, &why));
    }
    asked.uid = Some(found.uid.clone());
    match plural {
        "pods" => {
            if object["spec"]["serviceAccountName"].as_str() != Some(&account) {
                return Err(ApiError::bad_request(format!(
                    "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
                )));
            }
            private.node = node_of(registry, &object).await?;
            private.pod = Some(found);
        }
        "secrets" => private.secret = Some(found),
        _ => private.node = Some(found),
    }
    Ok(())
}

/// A node gets tokens of the pods that run on it, and of nobody else.
fn may_have(
    node: &str,
    asked: &BoundObjectReference,
    plural: &str,
    object: &Value,
) -> Result<(), String> {
    if plural != "pods" {
        return Err("node requested token not bound to a pod".to_owned());
    }
    if asked.uid.as_deref().unwrap_or_default().is_empty() {
        return Err("node requested token with a pod binding without a uid".to_owned());
    }
    if object["spec"]["nodeName"].as_str() != Some(node) {
        return Err("node requested token bound to a pod scheduled on a different node".to_owned());
    }
    Ok(())
}

/// A node asks for no other audience than its pod does (upstream's ServiceAccountNodeAudienceRestriction).
fn is_wanted(user: &str, audiences: &[String], own: &[String], pod: &Value) -> Result<(), String> {
    let [audience] = audiences else {
        return Err("node may only request 0 or 1 audiences".to_owned());
    };
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let sources = volumes.filter_map(|volume| volume["projected"]["sources"].as_array());
    let mut tokens = sources
        .flatten()
        .filter_map(|source| source["serviceAccountToken"].as_object());
    // A volume that names none means this server.
    let names = |token: &Map<String, Value>| match token.get("audience").and_then(Value::as_str) {
        None | Some("") => own.contains(audience),
        Some(named) => named == audience,
    };
    match tokens.any(names) {
        true => Ok(()),
        false => Err(format!(
            "audience {audience:?} not found in pod spec volume, {user} is not authorized to request tokens for this audience"
        )),
    }
}

/// Whether a role lets the node ask for the audience, whatever the pod says.
async fn may_ask_for(
    registry: &Registry,
    user: &User,
    audiences: &[String],
    of: &Private,
) -> Result<bool, ApiError> {
    let [audience] = audiences else {
        return Ok(false);
    };
    let attributes = Attributes {
        verb: "request-serviceaccounts-token-audience",
        resource: audience,
        namespace: &of.namespace,
        name: &of.serviceaccount.name,
        ..Attributes::default()
    };
    let refusal = access::refusal(registry, user, &attributes).await?;
    Ok(refusal.is_none())
}

fn forbidden(account: &str, why: &str) -> ApiError {
    ApiError::forbidden("", "serviceaccounts", account, why)
}

/// The pod's node, with its uid if it is there.
async fn node_of(registry: &Registry, pod: &Value) -> Result<Option<Object>, ApiError> {
    let name = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if name.is_empty() {
        return Ok(None);
    }
    match get(registry, "nodes", "", name).await {
        Ok(node) => Ok(Some(reference(&node))),
        Err(error) if error.reason == "NotFound" => Ok(Some(Object {
            name: name.to_owned(),
            uid: String::new(),
        })),
        Err(error) => Err(error),
    }
}

async fn get(
    registry: &Registry,
    plural: &str,
    namespace: &str,
    name: &str,
) -> Result<Value, ApiError> {
    let kind = resources::find("", "v1", plural).ok_or_else(ApiError::no_route)?;
    let object = registry
        .get(kind, namespace, name, Freshness::Latest)
        .await?;
    serde_json::from_slice(&object.json).map_err(ApiError::internal)
}

fn reference(object: &Value) -> Object {
    Object {
        name: meta::text(object, "name").to_owned(),
        uid: meta::text(object, "uid").to_owned(),
    }
}
