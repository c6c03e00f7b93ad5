//! What clients send or get and nobody stores: reviews, scales, evictions, bindings, requests for tokens.

use std::borrow::Cow;
use std::fmt;

use k8s_openapi::Resource;
use k8s_openapi::api::authentication::v1::{SelfSubjectReview, TokenRequest, TokenReview};
use k8s_openapi::api::authorization::v1::{
    LocalSubjectAccessReview, SelfSubjectAccessReview, SelfSubjectRulesReview, SubjectAccessReview,
};
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::core::v1::Binding;
use k8s_openapi::api::policy::v1::Eviction;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Serialize, de::DeserializeOwned};

use super::{decode, kind::Decode};

/// A type of the API without objects, erased from its Rust type.
#[derive(Clone, Copy)]
pub struct Form {
    /// Empty for the core group.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    /// An older `apiVersion` that means the same.
    pub formerly: Option<&'static str>,
    pub decode: Decode,
    /// The name of the OpenAPI definition.
    pub definition: fn() -> Cow<'static, str>,
    /// Leaves the OpenAPI definition, and all that it refers to, in the generator; gives a reference to it.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
}

impl Form {
    const fn of<T: Resource + JsonSchema + Serialize + DeserializeOwned>() -> Self {
        Self {
            group: T::GROUP,
            version: T::VERSION,
            kind: T::KIND,
            formerly: None,
            decode: decode::decode::<T>,
            definition: T::schema_name,
            schema: |generator| generator.subschema_for::<T>(),
        }
    }

    /// `policy/v1`, or `v1` for the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

impl fmt::Debug for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.api_version(), self.kind)
    }
}

pub const SCALE: Form = Form::of::<Scale>();
pub const BINDING: Form = Form::of::<Binding>();
pub const TOKEN_REQUEST: Form = Form::of::<TokenRequest>();
pub const EVICTION: Form = Form {
    formerly: Some("policy/v1beta1"),
    ..Form::of::<Eviction>()
};
pub const SELF_SUBJECT_REVIEW: Form = Form::of::<SelfSubjectReview>();
pub const TOKEN_REVIEW: Form = Form::of::<TokenReview>();
pub const LOCAL_SUBJECT_ACCESS_REVIEW: Form = Form::of::<LocalSubjectAccessReview>();
pub const SELF_SUBJECT_ACCESS_REVIEW: Form = Form::of::<SelfSubjectAccessReview>();
pub const SELF_SUBJECT_RULES_REVIEW: Form = Form::of::<SelfSubjectRulesReview>();
pub const SUBJECT_ACCESS_REVIEW: Form = Form::of::<SubjectAccessReview>();
