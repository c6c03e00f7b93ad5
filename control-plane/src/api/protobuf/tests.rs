use proptest::prelude::*;
use prost::Message;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, Value as Field};
use serde_json::{Value, json};

use super::*;
use crate::resources;

/// What kubectl 1.32 sent for `create configmap conf --from-literal=k=v --from-file=bin`.
const CONFIG_MAP: &[u8] = b"k8s\0\n\x0f\n\x02v1\x12\x09ConfigMap\x12*\n\x14\n\x04conf\x12\0\x1a\0\"\0*\x002\x008\0B\0\x12\n\n\x03bin\x12\x03a\0b\x12\x06\n\x01k\x12\x01v\x1a\0\"\0";

/// The same for `create secret generic s --from-literal=p=q`.
const SECRET: &[u8] = b"k8s\0\n\x0c\n\x02v1\x12\x06Secret\x12\x1d\n\x11\n\x01s\x12\0\x1a\0\"\0*\x002\x008\0B\0\x12\x06\n\x01p\x12\x01q\x1a\0\x1a\0\"\0";

/// The same for `create deployment web --image=nginx:1 --replicas=0 --port=80`.
const DEPLOYMENT: &[u8] = b"k8s\0\n\x15\n\x07apps/v1\x12\nDeployment\x12\xba\x01\n\x1f\n\x03web\x12\0\x1a\0\"\0*\x002\x008\0B\0Z\n\n\x03app\x12\x03web\x12\x88\x01\x08\0\x12\x0c\n\n\n\x03app\x12\x03web\x1an\n\x1c\n\0\x12\0\x1a\0\"\0*\x002\x008\0B\0Z\n\n\x03app\x12\x03web\x12N\x120\n\x05nginx\x12\x07nginx:1*\x002\n\n\0\x10\0\x18P\"\0*\0B\0j\0r\0\x80\x01\0\x88\x01\0\x90\x01\0\xa2\x01\0\x1a\x002\0B\0J\0R\0X\0`\0h\0\x82\x01\0\x8a\x01\0\x9a\x01\0\xc2\x01\0\"\x02\n\0(\x008\0\x1a\x0c\x08\0\x10\0\x18\0 \0(\x008\0\x1a\0\"\0";

/// The same for `create service clusterip web --tcp=80:http`.
const SERVICE: &[u8] = b"k8s\0\n\r\n\x02v1\x12\x07Service\x12l\n\x1f\n\x03web\x12\0\x1a\0\"\0*\x002\x008\0B\0Z\n\n\x03app\x12\x03web\x12E\n\x1e\n\x0780-http\x12\x03TCP\x18P\"\n\x08\x01\x10\0\x1a\x04http(\0\x12\n\n\x03app\x12\x03web\x1a\0\"\x09ClusterIP:\0B\0R\0Z\0`\0h\0\x1a\x02\n\0\x1a\0\"\0";

/// The message of a kind, packed as a client does.
fn body(api_version: &str, kind: &str, raw: Vec<u8>) -> Vec<u8> {
    let envelope = Envelope {
        type_meta: Some(TypeMeta {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
        }),
        raw: raw.into(),
        ..Envelope::default()
    };
    [MAGIC, &envelope.encode_to_vec()].concat()
}

#[test]
fn what_kubectl_creates_is_read() {
    let read = |body: &[u8]| parse(body).unwrap();
    assert_eq!(
        read(CONFIG_MAP),
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": "conf" },
            "data": { "bin": "a\0b", "k": "v" },
        })
    );
    assert_eq!(
        read(SECRET),
        json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": { "name": "s" },
            "data": { "p": "cQ==" },
        })
    );
    assert_eq!(
        read(SERVICE),
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "web", "labels": { "app": "web" } },
            "spec": {
                "ports": [{ "name": "80-http", "protocol": "TCP", "port": 80, "targetPort": "http" }],
                "selector": { "app": "web" },
                "type": "ClusterIP",
            },
            "status": { "loadBalancer": {} },
        })
    );
}

#[test]
fn a_zero_is_kept_where_it_is_not_the_same_as_absent() {
    assert_eq!(
        parse(DEPLOYMENT).unwrap(),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": { "name": "web", "labels": { "app": "web" } },
            "spec": {
                "replicas": 0,
                "selector": { "matchLabels": { "app": "web" } },
                "strategy": {},
                "template": {
                    "metadata": { "labels": { "app": "web" } },
                    "spec": {
                        "containers": [{
                            "name": "nginx", "image": "nginx:1",
                            "ports": [{ "containerPort": 80 }],
                            "resources": {},
                        }],
                    },
                },
            },
            "status": {},
        })
    );
}

/// A message in which every field is set; messages that hold themselves end at the second time.
fn full(descriptor: &MessageDescriptor, outer: &[String]) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    match descriptor.name() {
        "Time" | "MicroTime" => message.set_field_by_name("seconds", Field::I64(1)),
        "Quantity" => message.set_field_by_name("string", Field::String("1".into())),
        "IntOrString" => message.set_field_by_name("intVal", Field::I32(1)),
        "FieldsV1" => message.set_field_by_name("Raw", Field::Bytes("{}".into())),
        "RawExtension" => message.set_field_by_name("raw", Field::Bytes("{}".into())),
        _ => {
            let outer = [outer, &[descriptor.full_name().to_owned()]].concat();
            for field in descriptor.fields() {
                let again = |kind: &Kind| {
                    let inner = kind.as_message().map(|m| m.full_name().to_owned());
                    inner.is_some_and(|name| outer.contains(&name))
                };
                if !again(&field.kind()) {
                    message.set_field(&field, full_field(&field, &outer));
                }
            }
        }
    }
    message
}

fn full_field(field: &FieldDescriptor, outer: &[String]) -> Field {
    let one = |kind: Kind| match kind {
        Kind::Bool => Field::Bool(true),
        Kind::Int32 => Field::I32(1),
        Kind::Int64 => Field::I64(1),
        Kind::String => Field::String("x".into()),
        Kind::Bytes => Field::Bytes("x".into()),
        Kind::Message(message) => Field::Message(full(&message, outer)),
        other => panic!("{}: {other:?} is not in use", field.full_name()),
    };
    if field.is_map() {
        let kind = field.kind();
        let entry = kind.as_message().unwrap();
        let value = one(entry.map_entry_value_field().kind());
        Field::Map([(MapKey::String("k".into()), value)].into())
    } else if field.is_list() {
        Field::List(vec![one(field.kind())])
    } else {
        one(field.kind())
    }
}

/// A kind's own fields are all in the schema under their own names, and with their own types.
#[test]
fn every_field_of_every_kind_reaches_its_type() {
    for kind in resources::kinds() {
        let descriptor = message(&kind.api_version(), kind.kind)
            .unwrap_or_else(|| panic!("{} is not described", kind.kind));
        let raw = full(&descriptor, &[]).encode_to_vec();
        let sent = parse(&body(&kind.api_version(), kind.kind, raw)).unwrap();
        let (mut decoded, unknown) =
            (kind.decode)(sent.clone()).unwrap_or_else(|error| panic!("{}: {error}", kind.kind));
        assert_eq!(unknown, Vec::<String>::new(), "{}", kind.kind);
        // An object within another says what it is; a message of its type need not.
        let claims = decoded.pointer_mut("/spec/volumeClaimTemplates");
        for claim in claims.and_then(Value::as_array_mut).into_iter().flatten() {
            let fields = claim.as_object_mut().unwrap();
            fields.retain(|name, _| name != "apiVersion" && name != "kind");
        }
        assert_eq!(decoded, sent, "{}", kind.kind);
    }
}

#[test]
fn bodies_that_are_no_objects_of_a_kind() {
    for kind in ["Scale", "Binding", "Eviction", "DeleteOptions"] {
        let version = match kind {
            "Scale" => "autoscaling/v1",
            "Eviction" => "policy/v1",
            "DeleteOptions" => "apps/v1",
            _ => "v1",
        };
        let raw = full(&message(version, kind).unwrap(), &[]).encode_to_vec();
        let sent = parse(&body(version, kind, raw)).unwrap();
        assert_eq!(sent["kind"], kind);
        if kind == "DeleteOptions" {
            assert_eq!(sent["preconditions"]["uid"], "x");
            assert_eq!(sent["gracePeriodSeconds"], 1);
        }
    }
}

#[test]
fn times_and_unset_times() {
    let time = |seconds: i64, nanos: i32| {
        let descriptor = message("v1", "ObjectMeta").unwrap();
        let field = descriptor.get_field_by_name("creationTimestamp").unwrap();
        let kind = field.kind();
        let mut time = DynamicMessage::new(kind.as_message().unwrap().clone());
        time.set_field_by_name("seconds", Field::I64(seconds));
        time.set_field_by_name("nanos", Field::I32(nanos));
        let mut metadata = DynamicMessage::new(descriptor);
        metadata.set_field(&field, Field::Message(time));
        parse(&body("v1", "ObjectMeta", metadata.encode_to_vec()))
            .map(|o| o["creationTimestamp"].clone())
            .map_err(|e| e.to_string())
    };
    assert_eq!(time(0, 0), Ok(Value::Null));
    assert_eq!(time(1_700_000_000, 0), Ok(json!("2023-11-14T22:13:20Z")));
    assert_eq!(time(1_700_000_000, 5), Ok(json!("2023-11-14T22:13:20Z")));
    let error = time(i64::MAX, 0).unwrap_err();
    assert!(
        error.starts_with("ObjectMeta: creationTimestamp: "),
        "{error}"
    );
}

#[test]
fn what_is_wrong_is_said() {
    let error = |body: &[u8]| parse(body).unwrap_err().to_string();
    assert!(error(b"").contains("does not begin"));
    assert!(error(b"{}").contains("does not begin"));
    assert!(error(b"k8s\0\xff").starts_with("the envelope of the body: "));
    assert_eq!(
        error(&body("example.com/v1", "Widget", Vec::new())),
        "no kind \"Widget\" is known in version \"example.com/v1\" in protobuf; send it as application/json"
    );
    assert!(error(&CONFIG_MAP[..CONFIG_MAP.len() - 20]).starts_with("the envelope"));
    let cut = error(&body("v1", "ConfigMap", b"\x0a\x7f".to_vec()));
    assert!(cut.starts_with("ConfigMap: "), "{cut}");
    let not_text = error(&body("v1", "ConfigMap", b"\x0a\x03\x0a\x01\xff".to_vec()));
    assert!(not_text.starts_with("ConfigMap: "), "{not_text}");
}

#[test]
fn groups_nested_without_end_are_refused() {
    let deep = vec![0xfb; 100_000];
    assert!(parse(&body("v1", "ConfigMap", deep)).is_err());
}

/// Bytes that are more often than not the keys and lengths of something.
fn plausible() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop_oneof![3 => 0u8..40, 1 => any::<u8>()], 0..200)
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(raw in plausible(), kind in 0..resources::kinds().len()) {
        let kind = &resources::kinds()[kind];
        let _ = parse(&raw);
        let _ = parse(&[MAGIC, &raw].concat());
        if let Ok(object) = parse(&body(&kind.api_version(), kind.kind, raw)) {
            prop_assert_eq!(&object["kind"], kind.kind);
            let _ = (kind.decode)(object);
        }
    }

    #[test]
    fn a_broken_deployment_is_read_or_refused(at in 0..DEPLOYMENT.len(), byte: u8) {
        let mut broken = DEPLOYMENT.to_vec();
        broken[at] = byte;
        let _ = parse(&broken);
    }
}
