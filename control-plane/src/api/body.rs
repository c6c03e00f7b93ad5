//! From a request's bytes to an object of the kind that its path names.

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::Value;

use super::content::Encoding;
use super::error::ApiError;
use super::protobuf;
use super::request::{Query, ResourceRequest};
use crate::resources::form::Form;
use crate::resources::validate::Path;
use crate::resources::{Decode, Kind, duplicate_fields};

/// No request carries more than this, in bytes.
pub const LIMIT: usize = 3 * 1024 * 1024;

/// No object consists of more values than this (objects, lists and what is in them). An empty object takes two bytes in a
/// request and a kilobyte as a container of a pod.
const VALUES: usize = 50_000;

/// `fieldValidation`: what to do about fields that the kind does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

impl FieldValidation {
    pub fn of(request: &ResourceRequest, query: &Query) -> Result<Self, ApiError> {
        match query.get("fieldValidation") {
            "" | "Warn" => Ok(FieldValidation::Warn),
            "Strict" => Ok(FieldValidation::Strict),
            "Ignore" => Ok(FieldValidation::Ignore),
            other => {
                let wrong = Path::new("fieldValidation")
                    .unsupported(other, &["", "Ignore", "Strict", "Warn"]);
                Err(ApiError::invalid_options(request.options(), wrong))
            }
        }
    }
}

/// A decoded object and what its sender should be told about it.
#[derive(Debug)]
pub struct Decoded {
    pub object: Value,
    /// Texts for `Warning` headers.
    pub warnings: Vec<String>,
}

/// Reads a whole body, up to [`LIMIT`].
pub async fn read(body: axum::body::Body) -> Result<Bytes, ApiError> {
    match Limited::new(body, LIMIT).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::too_large(LIMIT)),
        Err(error) => Err(ApiError::bad_request(format!(
            "the body of the request could not be read: {error}"
        ))),
    }
}

/// Parses JSON, YAML or protobuf, whatever it holds.
pub fn parse(bytes: &[u8], encoding: Encoding) -> Result<Value, ApiError> {
    match encoding {
        Encoding::Json => serde_json::from_slice(bytes).map_err(|e| {
            ApiError::bad_request(format!(
                "the object provided is unrecognized (must be of type JSON): {e}"
            ))
        }),
        Encoding::Yaml => {
            let text = std::str::from_utf8(bytes)
                .map_err(|_| ApiError::bad_request("the body of the request is not UTF-8"))?;
            serde_saphyr::from_str(text)
                .map_err(|e| ApiError::bad_request(format!("error converting YAML to JSON: {e}")))
        }
        Encoding::Protobuf => {
            protobuf::parse(bytes).map_err(|e| ApiError::bad_request(e.to_string()))
        }
    }
}

/// Reads `bytes` as an object of `kind`.
pub fn object(
    kind: &Kind,
    bytes: &[u8],
    encoding: Encoding,
    validation: FieldValidation,
) -> Result<Decoded, ApiError> {
    let value = parse(bytes, encoding)?;
    let duplicates = repeated(bytes, encoding, validation);
    typed(kind, value, duplicates, validation)
}

/// The same for a value that is parsed already (a patched object).
pub fn typed(
    kind: &Kind,
    value: Value,
    duplicates: Vec<String>,
    validation: FieldValidation,
) -> Result<Decoded, ApiError> {
    check_kind(kind, &value)?;
    checked(
        (kind.kind, kind.version, kind.decode),
        value,
        duplicates,
        validation,
    )
}

/// Reads `bytes` as what nobody stores.
pub fn form(
    form: &Form,
    bytes: &[u8],
    encoding: Encoding,
    validation: FieldValidation,
) -> Result<Decoded, ApiError> {
    let mut value = parse(bytes, encoding)?;
    let Value::Object(fields) = &mut value else {
        return Err(not_an_object(&value));
    };
    let expected = form.api_version();
    let text = |field: &str| {
        fields
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let (kind, version) = (text("kind"), text("apiVersion"));
    let right_version = ["", &expected].contains(&version) || Some(version) == form.formerly;
    if !["", form.kind].contains(&kind) || !right_version {
        return Err(ApiError::bad_request(format!(
            "the body of the request is of kind {kind:?} and apiVersion {version:?}, which does not match {expected} {}",
            form.kind
        )));
    }
    fields.shift_remove("apiVersion");
    // It is the server's to say, and clients send it half filled: kubectl a token that expires at no time.
    fields.shift_remove("status");
    let duplicates = repeated(bytes, encoding, validation);
    checked(
        (form.kind, form.version, form.decode),
        value,
        duplicates,
        validation,
    )
}

/// The fields that a body names more than once, where somebody wants to know.
fn repeated(bytes: &[u8], encoding: Encoding, validation: FieldValidation) -> Vec<String> {
    match (encoding, validation) {
        (_, FieldValidation::Ignore) | (Encoding::Yaml | Encoding::Protobuf, _) => Vec::new(),
        (Encoding::Json, _) => duplicate_fields(bytes),
    }
}

/// Checks the size of a value and the types of its fields, and does about the fields that should not be there what the client
/// wishes.
fn checked(
    (kind, version, decode): (&str, &str, Decode),
    value: Value,
    duplicates: Vec<String>,
    validation: FieldValidation,
) -> Result<Decoded, ApiError> {
    if values(&value) > VALUES {
        let mut error = ApiError::too_large(VALUES);
        error.message =
            format!("Request entity too large: the object has more than {VALUES} values");
        return Err(error);
    }
    let cannot = |why: &dyn std::fmt::Display| {
        ApiError::bad_request(format!(
            "{kind} in version \"{version}\" cannot be handled as a {kind}: {why}"
        ))
    };
    let (object, unknown) = decode(value).map_err(|e| cannot(&e))?;
    let problems: Vec<String> = unknown
        .iter()
        .map(|path| format!("unknown field \"{path}\""))
        .chain(
            duplicates
                .iter()
                .map(|path| format!("duplicate field \"{path}\"")),
        )
        .collect();
    match validation {
        FieldValidation::Strict if !problems.is_empty() => Err(cannot(&format_args!(
            "strict decoding error: {}",
            problems.join(", ")
        ))),
        FieldValidation::Ignore => Ok(Decoded {
            object,
            warnings: Vec::new(),
        }),
        _ => Ok(Decoded {
            object,
            warnings: problems,
        }),
    }
}

/// How many values a value consists of.
fn values(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(values).sum(),
        Value::Object(fields) => fields.values().map(values).sum(),
        _ => 0,
    }
}

fn check_kind(kind: &Kind, value: &Value) -> Result<(), ApiError> {
    let Value::Object(map) = value else {
        return Err(not_an_object(value));
    };
    let text = |field: &str| map.get(field).and_then(Value::as_str).unwrap_or_default();
    let (given_kind, given_version) = (text("kind"), text("apiVersion"));
    let expected = kind.api_version();
    if !given_kind.is_empty() && given_kind != kind.kind {
        return Err(ApiError::bad_request(format!(
            "{given_kind} in version \"{}\" cannot be handled as a {}: the request's path is for {}",
            given_version.rsplit('/').next().unwrap_or_default(),
            kind.kind,
            kind.qualified_plural(),
        )));
    }
    if !given_version.is_empty() && given_version != expected {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({given_version}) does not match the expected API version ({expected})"
        )));
    }
    Ok(())
}

fn not_an_object(value: &Value) -> ApiError {
    ApiError::bad_request(format!(
        "the body of the request is not an object but {}",
        type_name(value)
    ))
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources;

    fn config_map(
        text: &str,
        encoding: Encoding,
        validation: FieldValidation,
    ) -> Result<Decoded, String> {
        let kind = resources::find("", "v1", "configmaps").expect("a kind");
        object(kind, text.as_bytes(), encoding, validation).map_err(|e| e.message)
    }

    #[test]
    fn unknown_fields_warn_or_refuse_as_the_client_wishes() {
        let text = r#"{"metadata":{"name":"a"},"data":{},"foo":1}"#;
        let warned = config_map(text, Encoding::Json, FieldValidation::Warn).expect("decodes");
        assert_eq!(warned.warnings, ["unknown field \"foo\""]);
        assert!(warned.object.get("foo").is_none());
        assert_eq!(
            config_map(text, Encoding::Json, FieldValidation::Strict).map(|d| d.object),
            Err("ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"foo\"".into())
        );
        assert!(
            config_map(text, Encoding::Json, FieldValidation::Ignore)
                .expect("decodes")
                .warnings
                .is_empty()
        );
    }

    #[test]
    fn a_field_written_twice_is_noticed() {
        let text = r#"{"metadata":{"name":"a","name":"b"}}"#;
        let warned = config_map(text, Encoding::Json, FieldValidation::Warn).expect("decodes");
        assert_eq!(warned.warnings, ["duplicate field \"metadata.name\""]);
    }

    #[test]
    fn what_is_not_such_an_object_is_refused() {
        for text in [
            "",
            "[]",
            "3",
            "{",
            r#"{"kind":"Pod"}"#,
            r#"{"apiVersion":"v2"}"#,
            r#"{"data":{"a":1}}"#,
        ] {
            assert!(
                config_map(text, Encoding::Json, FieldValidation::Ignore).is_err(),
                "{text}"
            );
        }
    }

    #[test]
    fn an_object_of_too_many_values_is_refused() {
        let kind = resources::find("", "v1", "pods").expect("a kind");
        let text = format!(
            r#"{{"spec":{{"containers":[{}{{}}]}}}}"#,
            "{},".repeat(VALUES)
        );
        let refused = object(kind, text.as_bytes(), Encoding::Json, FieldValidation::Warn);
        assert_eq!(
            refused
                .map(|_| ())
                .map_err(|e| (e.code.as_u16(), e.message)),
            Err((
                413,
                "Request entity too large: the object has more than 50000 values".to_owned()
            ))
        );
    }

    #[test]
    fn yaml_is_read_too() {
        let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata:\n  k: \"1\"\n";
        let decoded = config_map(yaml, Encoding::Yaml, FieldValidation::Strict).expect("decodes");
        assert_eq!(decoded.object["data"]["k"], "1");
    }
}
