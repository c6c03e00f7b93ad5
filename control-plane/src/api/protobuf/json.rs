//! From a message to the JSON that Kubernetes writes for it.

use base64::{Engine, engine::general_purpose::STANDARD};
use k8s_openapi::jiff::Timestamp;
use prost_reflect::{DynamicMessage, MapKey, ReflectMessage, Value as Field};
use serde_json::{Map, Value};

/// Messages whose fields JSON has in the object around them; each is only ever used so.
const INLINE: [&str; 6] = [
    "ephemeralContainerCommon",
    "handler",
    "ingressRuleValue",
    "localObjectReference",
    "persistentVolumeSource",
    "volumeSource",
];

/// A field that JSON has no form for.
#[derive(Debug)]
pub(super) struct FieldError {
    pub(super) field: String,
    pub(super) why: String,
}

impl FieldError {
    fn new(why: impl ToString) -> Self {
        FieldError {
            field: String::new(),
            why: why.to_string(),
        }
    }

    fn within(self, outer: &str) -> Self {
        let field = match self.field.as_str() {
            "" => outer.to_owned(),
            inner => format!("{outer}.{inner}"),
        };
        FieldError { field, ..self }
    }
}

/// A message as an object. What is absent, or zero where the schema does not tell the two apart, is left out.
pub(super) fn object(mut message: DynamicMessage) -> Result<Map<String, Value>, FieldError> {
    let mut object = Map::new();
    for (field, value) in message.take_fields() {
        let name = field.name();
        let value = json(value).map_err(|e| e.within(name))?;
        match value {
            Value::Null => {}
            Value::Object(inner) if INLINE.contains(&name) => object.extend(inner),
            value => {
                object.insert(name.to_owned(), value);
            }
        }
    }
    Ok(object)
}

fn json(value: Field) -> Result<Value, FieldError> {
    Ok(match value {
        Field::Bool(value) => value.into(),
        Field::I32(value) | Field::EnumNumber(value) => value.into(),
        Field::I64(value) => value.into(),
        Field::U32(value) => value.into(),
        Field::U64(value) => value.into(),
        Field::F32(value) => value.into(),
        Field::F64(value) => value.into(),
        Field::String(value) => value.into(),
        Field::Bytes(value) => STANDARD.encode(value).into(),
        Field::Message(value) => special(value)?,
        Field::List(values) => values.into_iter().map(json).collect::<Result<Value, _>>()?,
        Field::Map(entries) => {
            let entries = entries.into_iter().map(|(key, value)| {
                let key = text(key);
                let value = json(value).map_err(|e| e.within(&key))?;
                Ok((key, value))
            });
            Value::Object(entries.collect::<Result<_, _>>()?)
        }
    })
}

fn text(key: MapKey) -> String {
    match key {
        MapKey::Bool(key) => key.to_string(),
        MapKey::I32(key) => key.to_string(),
        MapKey::I64(key) => key.to_string(),
        MapKey::U32(key) => key.to_string(),
        MapKey::U64(key) => key.to_string(),
        MapKey::String(key) => key,
    }
}

/// A message inside another: an object, unless its type has a form of its own in JSON.
fn special(message: DynamicMessage) -> Result<Value, FieldError> {
    let descriptor = message.descriptor();
    let own = |name: &str| message.get_field_by_name(name);
    let number = |name: &str| own(name).and_then(|v| v.as_i64().or(v.as_i32().map(i64::from)));
    let string = |name: &str| own(name).and_then(|v| v.as_str().map(str::to_owned));
    match descriptor.name() {
        name @ ("Time" | "MicroTime") => {
            let seconds = number("seconds").unwrap_or_default();
            let nanos = number("nanos").unwrap_or_default();
            time(seconds, nanos, name == "MicroTime")
        }
        "Quantity" => Ok(match string("string").as_deref() {
            None | Some("") => "0".into(),
            Some(text) => text.into(),
        }),
        "IntOrString" => match number("type") {
            Some(1) => Ok(string("strVal").into()),
            Some(0) => Ok(number("intVal").into()),
            other => Err(FieldError::new(format_args!(
                "neither an integer nor a string but type {}",
                other.unwrap_or_default()
            ))),
        },
        "FieldsV1" => embedded(own("Raw").as_deref()),
        "RawExtension" => embedded(own("raw").as_deref()),
        "ExtraValue" => match own("items") {
            Some(items) => json(items.into_owned()),
            None => Ok(Value::Null),
        },
        _ => object(message).map(Value::Object),
    }
}

/// JSON within a message.
fn embedded(raw: Option<&Field>) -> Result<Value, FieldError> {
    match raw {
        Some(Field::Bytes(raw)) if !raw.is_empty() => {
            serde_json::from_slice(raw).map_err(FieldError::new)
        }
        _ => Ok(Value::Null),
    }
}

/// RFC 3339 in whole seconds or in microseconds; a time that was never set is null, as upstream's zero time is.
fn time(seconds: i64, nanos: i64, micro: bool) -> Result<Value, FieldError> {
    if (seconds, nanos) == (0, 0) {
        return Ok(Value::Null);
    }
    let nanos = i32::try_from(nanos).map_err(FieldError::new)?;
    let time = Timestamp::new(seconds, nanos).map_err(FieldError::new)?;
    let format = if micro {
        "%Y-%m-%dT%H:%M:%S%.6fZ"
    } else {
        "%Y-%m-%dT%H:%M:%SZ"
    };
    Ok(time.strftime(format).to_string().into())
}
