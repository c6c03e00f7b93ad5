//! A controller of the user's, written with kube-rs and run twice under a leader election, as a service account that may do
//! what it needs and no more. It goes on when its leader dies and when the API server was away.

#![allow(clippy::unwrap_used, reason = "a scenario fails by panicking")]

mod election;
mod greeter;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Secret;
use kernelet_tests::alone::ControlPlane;
use kernelet_tests::cluster::target;
use kernelet_tests::command::output;
use kernelet_tests::scenario::eventually;
use kube::api::Api;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn a_controller_follows_its_objects_whoever_leads() {
    let runtime = Runtime::new().unwrap();
    let directory = target().join("scenarios/controller");
    let _ = std::fs::remove_dir_all(&directory);
    let address = Ipv4Addr::new(127, 77, 6, 2);
    let server = ControlPlane::start(&directory, address, &[]).unwrap();
    let kubectl = |line: &str| {
        let mut command = server.kubectl();
        output(command.args(line.split_whitespace())).unwrap_or_else(|error| panic!("{error}"))
    };
    kubectl("create serviceaccount greeter");
    for role in [
        "configmaps --verb=get,list,watch,create,patch --resource=configmaps",
        "secrets --verb=get,list,watch,create,patch --resource=secrets",
        "leases --verb=get,create,update --resource=leases.coordination.k8s.io",
        "events --verb=create,patch --resource=events.events.k8s.io",
        // Who sets an owner that blocks its deletion has to be able to set that owner's finalizers.
        "finalizers --verb=update --resource=configmaps/finalizers",
    ] {
        kubectl(&format!("create role {role}"));
        let name = role.split(' ').next().unwrap();
        kubectl(&format!(
            "create rolebinding {name} --role={name} --serviceaccount=default:greeter"
        ));
    }
    let token = kubectl("create token greeter");
    let client = runtime.block_on(client(&server.kubeconfig(), Some(token.trim())));
    let admin = runtime.block_on(self::client(&server.kubeconfig(), None));
    let secrets = Api::<Secret>::default_namespaced(admin.clone());
    let leases = Api::<Lease>::default_namespaced(admin);
    let greeting = |name: &str| -> BTreeMap<String, String> {
        let found = runtime.block_on(secrets.get_opt(name));
        let data = found.ok().flatten().and_then(|secret| secret.data);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let data = data.unwrap_or_default().into_iter();
        data.map(|(key, value)| (key, text(value.0))).collect()
    };
    let greeted = |name: &str, wanted: &str| {
        eventually(&format!("{name} is greeted"), PATIENCE, || {
            let found = greeting(name);
            match found.get("greeting") {
                Some(text) if text == wanted => Ok(found["by"].clone()),
                _ => Err(format!("{found:?}")),
            }
        })
    };

    // Some are there before anybody watches.
    for name in ["one", "two", "three"] {
        kubectl(&format!(
            "create configmap {name} --from-literal=whom={name}"
        ));
        kubectl(&format!("label configmap {name} greet=yes"));
    }
    let start = |name: &str| runtime.spawn(greeter::run(client.clone(), name.to_owned()));
    let mut running: BTreeMap<String, JoinHandle<()>> =
        ["a", "b"].map(|name| (name.to_owned(), start(name))).into();
    for name in ["one", "two", "three"] {
        greeted(name, &format!("hello {name}"));
    }
    kubectl("patch configmap two --type=merge -p {\"data\":{\"whom\":\"world\"}}");
    greeted("two", "hello world");
    kubectl("delete secret one");
    greeted("one", "hello one");
    eventually("an event tells of it", PATIENCE, || {
        let line = "get events --field-selector reason=Greeted,involvedObject.name=one -o name";
        match kubectl(line) {
            none if none.is_empty() => Err("none".to_owned()),
            _ => Ok(()),
        }
    });
    // Its leader dies without a word.
    let held = runtime.block_on(leases.get("greeter")).unwrap();
    let leader = election::holder(&held).unwrap().clone();
    running.remove(&leader).unwrap().abort();
    let follower = running.keys().next().unwrap().clone();
    kubectl("patch configmap one --type=merge -p {\"data\":{\"whom\":\"again\"}}");
    assert_eq!(greeted("one", "hello again"), follower);
    let held = runtime.block_on(leases.get("greeter")).unwrap();
    assert!(held.spec.unwrap().lease_transitions.unwrap() >= 1);

    // The API server is away for a while, and comes back with what it had.
    drop(server);
    let server = ControlPlane::start(&directory, address, &[]).unwrap();
    let kubectl = |line: &str| {
        let mut command = server.kubectl();
        output(command.args(line.split_whitespace())).unwrap_or_else(|error| panic!("{error}"))
    };
    kubectl("patch configmap two --type=merge -p {\"data\":{\"whom\":\"back\"}}");
    greeted("two", "hello back");
    // What it holds goes when it was told, and what that owned goes after it.
    kubectl("delete configmap two --timeout=120s");
    let farewells = kubectl("get configmap farewells -o jsonpath={.data.two}");
    assert_eq!(farewells, follower);
    eventually("the greeting goes, too", PATIENCE, || {
        let found = greeting("two");
        if found.is_empty() {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    });
}

/// A client, as the administrator or with a token in the administrator's place.
async fn client(kubeconfig: &Path, token: Option<&str>) -> Client {
    let file = Kubeconfig::read_from(kubeconfig).unwrap();
    let options = KubeConfigOptions::default();
    let mut config = Config::from_custom_kubeconfig(file, &options)
        .await
        .unwrap();
    if let Some(token) = token {
        config.auth_info = AuthInfo {
            token: Some(token.to_owned().into()),
            ..AuthInfo::default()
        };
    }
    Client::try_from(config).unwrap()
}
