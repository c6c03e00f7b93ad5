//! Bodies in Kubernetes' protobuf encoding, read into the JSON that they stand for.
//!
//! Such a body is four magic bytes and an envelope that names the kind and holds the message. The messages are
//! described by `proto/`, with upstream's numbers and names; nothing is ever answered in this encoding.

mod json;
#[cfg(test)]
mod tests;

use std::sync::LazyLock;

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use serde_json::Value;

const MAGIC: &[u8] = b"k8s\0";
const META: &str = "k8s.io.apimachinery.pkg.apis.meta.v1";

/// Why a body is not an object in Kubernetes' protobuf encoding.
#[derive(Debug, thiserror::Error)]
pub enum ProtobufError {
    #[error(
        "the body does not begin with the four bytes \"k8s\\0\" of Kubernetes' protobuf encoding"
    )]
    NoMagic,
    #[error("the envelope of the body: {0}")]
    Envelope(prost::DecodeError),
    #[error("the envelope holds {0}, which is not read here")]
    Content(String),
    #[error(
        "no kind \"{kind}\" is known in version \"{api_version}\" in protobuf; send it as application/json"
    )]
    UnknownKind { api_version: String, kind: String },
    #[error("{kind}: {source}")]
    Malformed {
        kind: String,
        source: prost::DecodeError,
    },
    #[error("{kind}: {field}: {why}")]
    Field {
        kind: String,
        field: String,
        why: String,
    },
}

/// `k8s.io.apimachinery.pkg.runtime.Unknown`.
#[derive(Clone, PartialEq, Message)]
struct Envelope {
    #[prost(message, optional, tag = "1")]
    type_meta: Option<TypeMeta>,
    #[prost(bytes = "bytes", tag = "2")]
    raw: bytes::Bytes,
    #[prost(string, tag = "3")]
    content_encoding: String,
    #[prost(string, tag = "4")]
    content_type: String,
}

#[derive(Clone, PartialEq, Message)]
struct TypeMeta {
    #[prost(string, tag = "1")]
    api_version: String,
    #[prost(string, tag = "2")]
    kind: String,
}

static SCHEMA: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let compiled: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kubernetes.bin"));
    #[expect(
        clippy::expect_used,
        reason = "the build wrote it, and every test reads it"
    )]
    DescriptorPool::decode(compiled).expect("the schema was compiled with this program")
});

/// The message of a kind. What every group has, such as `DeleteOptions`, is described once for all.
fn message(api_version: &str, kind: &str) -> Option<MessageDescriptor> {
    let (group, version) = api_version.split_once('/').unwrap_or(("core", api_version));
    let group = group.split('.').next().unwrap_or_default();
    SCHEMA
        .get_message_by_name(&format!("k8s.io.api.{group}.{version}.{kind}"))
        .or_else(|| SCHEMA.get_message_by_name(&format!("{META}.{kind}")))
}

/// Reads a body. The kind and version that the envelope names are in the object.
pub fn parse(body: &[u8]) -> Result<Value, ProtobufError> {
    let envelope = body.strip_prefix(MAGIC).ok_or(ProtobufError::NoMagic)?;
    let envelope = Envelope::decode(envelope).map_err(ProtobufError::Envelope)?;
    for content in [envelope.content_encoding, envelope.content_type] {
        if !content.is_empty() {
            return Err(ProtobufError::Content(content));
        }
    }
    let TypeMeta { api_version, kind } = envelope.type_meta.unwrap_or_default();
    let Some(descriptor) = message(&api_version, &kind) else {
        return Err(ProtobufError::UnknownKind { api_version, kind });
    };
    let message = DynamicMessage::decode(descriptor, envelope.raw).map_err(|source| {
        ProtobufError::Malformed {
            kind: kind.clone(),
            source,
        }
    })?;
    let mut object = json::object(message).map_err(|error| ProtobufError::Field {
        kind: kind.clone(),
        field: error.field,
        why: error.why,
    })?;
    object.insert("apiVersion".to_owned(), Value::String(api_version));
    object.insert("kind".to_owned(), Value::String(kind));
    Ok(Value::Object(object))
}
