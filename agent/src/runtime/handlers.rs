//! What containerd can run containers with: the runtimes of its configuration, as its CRI half tells them.

use k8s_cri::v1::StatusRequest;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use prost::Message;
use prost_types::Any;
use serde::Deserialize;
use std::collections::BTreeMap;
use tonic::transport::Channel;

use super::RuntimeError;
use super::rpc::failed;

/// Type of the options of [`Handler::ONE_BY_ONE`].
const OPTIONS_TYPE: &str = "containerd.runc.v1.Options";

/// A configured runtime.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handler {
    /// By which a RuntimeClass names it.
    pub name: String,
    /// Which shim it is, as `io.containerd.runc.v2`.
    pub kind: String,
    /// The program that the shim runs; empty for the shim's own choice.
    pub binary: String,
    /// Where that program keeps its state; empty for the shim's own choice.
    pub root: String,
}

/// The options of that shim, as far as a handler has them.
#[derive(Clone, PartialEq, Message)]
struct RuncOptions {
    #[prost(string, tag = "6")]
    binary_name: String,
    #[prost(string, tag = "7")]
    root: String,
}

impl Handler {
    /// The shim that makes a container of each, with whatever program takes an OCI bundle. Others make a pod of a machine,
    /// and have to be told of it as a whole.
    pub const ONE_BY_ONE: &'static str = "io.containerd.runc.v2";

    pub fn is_one_by_one(&self) -> bool {
        self.kind == Self::ONE_BY_ONE
    }

    /// What the shim is told.
    pub(super) fn options(&self) -> Option<Any> {
        let options = RuncOptions {
            binary_name: self.binary.clone(),
            root: self.root.clone(),
        };
        (options != RuncOptions::default()).then(|| Any {
            type_url: OPTIONS_TYPE.to_owned(),
            value: options.encode_to_vec(),
        })
    }
}

#[derive(Deserialize)]
struct Config {
    containerd: Containerd,
}

#[derive(Deserialize)]
struct Containerd {
    runtimes: BTreeMap<String, Configured>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Configured {
    runtime_type: String,
    #[serde(default)]
    options: Option<Options>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Options {
    binary_name: String,
    root: String,
}

/// Reads the configuration as containerd shows it.
fn parse(text: &str) -> Result<Vec<Handler>, serde_json::Error> {
    let config: Config = serde_json::from_str(text)?;
    let all = config.containerd.runtimes.into_iter();
    let all = all.map(|(name, configured)| {
        let options = configured.options.unwrap_or_default();
        Handler {
            name,
            kind: configured.runtime_type,
            binary: options.binary_name,
            root: options.root,
        }
    });
    Ok(all.collect())
}

/// The handlers that there are, by name.
pub(super) async fn list(channel: &Channel) -> Result<Vec<Handler>, RuntimeError> {
    let action = "ask for the configured runtimes";
    let message = StatusRequest { verbose: true };
    let answer = RuntimeServiceClient::new(channel.clone())
        .status(message)
        .await
        .map_err(|status| failed(action, &status))?;
    let info = answer.into_inner().info;
    let config = info.get("config").map_or("{}", String::as_str);
    parse(config).map_err(|error| RuntimeError::Failed {
        action: action.to_owned(),
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containerds_configuration_is_understood() {
        let text = r#"{"containerd": {"defaultRuntimeName": "runc", "runtimes": {
            "runc": {"runtimeType": "io.containerd.runc.v2", "options": null},
            "crun": {"runtimeType": "io.containerd.runc.v2", "options": {"BinaryName": "/usr/bin/crun", "SystemdCgroup": true}},
            "kata": {"runtimeType": "io.containerd.kata.v2"}}}, "other": 1}"#;
        let found = parse(text).unwrap();
        let names: Vec<_> = found.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["crun", "kata", "runc"]);
        assert_eq!(found[0].binary, "/usr/bin/crun");
        assert!(found[0].is_one_by_one() && !found[1].is_one_by_one());
        assert_eq!(found[2].options(), None);
        let told = found[0].options().unwrap();
        let options = RuncOptions::decode(&*told.value).unwrap();
        assert_eq!(options.binary_name, "/usr/bin/crun");
        assert!(parse("{}").is_err());
    }
}
