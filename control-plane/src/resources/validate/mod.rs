//! The toolbox of validation: paths, errors, and the rules that several kinds share, worded as upstream words them.

mod address;
mod amount;
mod conditions;
pub mod labels;
pub mod metadata;
pub mod names;
pub mod resource_names;

use std::fmt;

use serde_json::Value;

use super::decode::DecodeError;
pub use address::{ip, is_plain, plain_ip};
pub use amount::{int_or_percent, is_zero};
pub use conditions::conditions;

/// What is wrong with a name; `prefix` says that it is only the beginning of one (`generateName`).
pub type NameRule = fn(name: &str, prefix: bool) -> Vec<String>;

/// One thing wrong with an object, worded as upstream words it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// `spec.ports[0].port`
    pub path: String,
    pub reason: FieldErrorReason,
    /// The offending value, where it helps the reader.
    pub value: Option<Value>,
    pub detail: String,
}

/// The `reason` of a `StatusCause`, as in upstream's `field.ErrorType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldErrorReason {
    Required,
    Invalid,
    Duplicate,
    NotFound,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    TypeInvalid,
}

impl FieldErrorReason {
    /// The `reason` of a `StatusCause`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::Duplicate => "FieldValueDuplicate",
            Self::NotFound => "FieldValueNotFound",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::Duplicate => "Duplicate value",
            Self::NotFound => "Not found",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
        }
    }
}

impl FieldError {
    /// The text without its path: what a `StatusCause` carries as `message`.
    pub fn body(&self) -> String {
        let mut text = self.reason.title().to_owned();
        if let Some(value) = &self.value {
            text.push_str(": ");
            text.push_str(&value.to_string());
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

impl From<DecodeError> for FieldError {
    fn from(error: DecodeError) -> Self {
        Self {
            path: error.path,
            reason: FieldErrorReason::TypeInvalid,
            value: None,
            detail: error.message,
        }
    }
}

/// Where in an object one is; makes the errors of that place.
#[derive(Clone, Debug)]
pub struct Path(String);

impl Path {
    pub fn new(root: &str) -> Self {
        Self(root.to_owned())
    }

    /// The object as a whole.
    pub fn root() -> Self {
        Self::new("")
    }

    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() {
            return Self::new(name);
        }
        Self(format!("{}.{name}", self.0))
    }

    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    /// An entry of a map.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }

    fn error(&self, reason: FieldErrorReason, value: Option<Value>, detail: String) -> FieldError {
        FieldError {
            path: self.0.clone(),
            reason,
            value,
            detail,
        }
    }

    pub fn required(&self, detail: &str) -> FieldError {
        self.error(FieldErrorReason::Required, None, detail.to_owned())
    }

    pub fn invalid(&self, value: impl Into<Value>, detail: impl Into<String>) -> FieldError {
        self.error(FieldErrorReason::Invalid, Some(value.into()), detail.into())
    }

    /// The same where the value would not help the reader.
    pub fn invalid_as_a_whole(&self, detail: impl Into<String>) -> FieldError {
        self.error(FieldErrorReason::Invalid, None, detail.into())
    }

    pub fn duplicate(&self, value: impl Into<Value>) -> FieldError {
        self.error(
            FieldErrorReason::Duplicate,
            Some(value.into()),
            String::new(),
        )
    }

    pub fn not_found(&self, value: impl Into<Value>) -> FieldError {
        self.error(
            FieldErrorReason::NotFound,
            Some(value.into()),
            String::new(),
        )
    }

    pub fn forbidden(&self, detail: impl Into<String>) -> FieldError {
        self.error(FieldErrorReason::Forbidden, None, detail.into())
    }

    pub fn too_long(&self, max: usize) -> FieldError {
        self.error(
            FieldErrorReason::TooLong,
            None,
            format!("may not be more than {max} bytes"),
        )
    }

    pub fn too_many(&self, actual: usize, max: usize) -> FieldError {
        self.error(
            FieldErrorReason::TooMany,
            Some(actual.into()),
            format!("must have at most {max} items"),
        )
    }

    pub fn unsupported(&self, value: &str, supported: &[&str]) -> FieldError {
        let mut supported: Vec<_> = supported.iter().map(|value| format!("{value:?}")).collect();
        supported.sort();
        let detail = format!("supported values: {}", supported.join(", "));
        self.error(FieldErrorReason::NotSupported, Some(value.into()), detail)
    }

    /// An `invalid` for each message.
    pub fn invalid_all(&self, value: &str, messages: Vec<String>) -> Vec<FieldError> {
        messages
            .into_iter()
            .map(|message| self.invalid(value, message))
            .collect()
    }
}

pub const FIELD_IS_IMMUTABLE: &str = "field is immutable";

/// An error unless `value` is one of `supported`. An absent value is `Required`.
pub fn one_of(path: &Path, value: Option<&str>, supported: &[&str]) -> Option<FieldError> {
    match value.unwrap_or_default() {
        "" => Some(path.required("")),
        value if supported.contains(&value) => None,
        value => Some(path.unsupported(value, supported)),
    }
}

pub fn not_negative(path: &Path, value: i64) -> Option<FieldError> {
    (value < 0).then(|| path.invalid(value, "must be greater than or equal to 0"))
}

/// An error for each of `fields` of the place that is negative.
pub fn none_negative<T: Into<i64> + Copy>(path: &Path, fields: &[(&str, T)]) -> Vec<FieldError> {
    let errors = fields.iter();
    errors
        .filter_map(|(field, value)| not_negative(&path.child(field), (*value).into()))
        .collect()
}

/// `collisionCount` of a workload's status: a count that only grows.
pub fn collisions(path: &Path, new: Option<i32>, old: Option<i32>) -> Vec<FieldError> {
    let (path, new) = (path.child("collisionCount"), new.unwrap_or_default());
    let mut errors: Vec<_> = not_negative(&path, new.into()).into_iter().collect();
    if new < old.unwrap_or_default() {
        errors.push(path.invalid(new, "cannot be decremented"));
    }
    errors
}

pub fn port_number(path: &Path, port: i32) -> Option<FieldError> {
    (!(1..=65_535).contains(&port))
        .then(|| path.invalid(port, "must be between 1 and 65535, inclusive"))
}

/// An error if the two differ.
pub fn immutable<T: PartialEq + serde::Serialize>(
    path: &Path,
    new: &T,
    old: &T,
) -> Option<FieldError> {
    (new != old).then(|| {
        let value = serde_json::to_value(new).unwrap_or(Value::Null);
        path.invalid(value, FIELD_IS_IMMUTABLE)
    })
}

/// The errors of a list's items whose key was there before.
pub fn duplicates<'a>(
    path: &Path,
    field: &str,
    keys: impl Iterator<Item = &'a str>,
) -> Vec<FieldError> {
    let mut seen = std::collections::HashSet::new();
    keys.enumerate()
        .filter(|(_, key)| !key.is_empty() && !seen.insert(*key))
        .map(|(index, key)| path.index(index).child(field).duplicate(key))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_as_upstream_words_them() {
        let port = Path::new("spec").child("ports").index(0).child("port");
        assert_eq!(
            port_number(&port, 70_000).unwrap().to_string(),
            "spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive"
        );
        assert_eq!(
            port.required("").to_string(),
            "spec.ports[0].port: Required value"
        );
        assert_eq!(
            Path::new("spec")
                .child("type")
                .unsupported("X", &["ClusterIP", "NodePort"])
                .to_string(),
            r#"spec.type: Unsupported value: "X": supported values: "ClusterIP", "NodePort""#
        );
        assert_eq!(
            port.duplicate("a").to_string(),
            r#"spec.ports[0].port: Duplicate value: "a""#
        );
        assert_eq!(
            port.too_long(63).to_string(),
            "spec.ports[0].port: Too long: may not be more than 63 bytes"
        );
    }

    #[test]
    fn duplicates_name_the_later_one() {
        let errors = duplicates(
            &Path::new("spec.ports"),
            "name",
            ["a", "", "b", "", "a"].into_iter(),
        );
        assert_eq!(errors.len(), 1);
        assert_eq!(
            errors[0].to_string(),
            r#"spec.ports[4].name: Duplicate value: "a""#
        );
    }
}
