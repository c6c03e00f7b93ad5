//! With which of the runtime's handlers the containers of a pod run: its RuntimeClass names one.
//!
//! <https://kubernetes.io/docs/concepts/containers/runtime-class/>

use k8s_openapi::api::node::v1::RuntimeClass;
use kube::Api;

use super::shared::Shared;
use super::spec::PodView;
use crate::runtime::{Handler, RuntimeError};

/// Why a pod cannot run as its class says. A class and a handler may come yet.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClassError {
    #[error("failed to get sandbox runtime: runtimeclass.node.k8s.io {0:?} not found")]
    NotFound(String),
    #[error("failed to get sandbox runtime: cannot read runtimeclass {name:?}: {source}")]
    Read {
        name: String,
        source: Box<kube::Error>,
    },
    #[error("failed to get sandbox runtime: no runtime for {0:?} is configured")]
    NotConfigured(String),
    #[error(
        "failed to get sandbox runtime: runtime {handler:?} is of type {kind}, and this node makes containers one by one, as {} does",
        Handler::ONE_BY_ONE
    )]
    Unsupported { handler: String, kind: String },
    #[error("failed to get sandbox runtime: {0}")]
    Runtime(#[from] RuntimeError),
}

/// The handler of a pod's class; `None` where the pod is content with the default.
pub(super) async fn handler(shared: &Shared, pod: &PodView) -> Result<Option<Handler>, ClassError> {
    let name = pod.spec().runtime_class_name.clone().unwrap_or_default();
    if name.is_empty() {
        return Ok(None);
    }
    let classes = Api::<RuntimeClass>::all(shared.client.clone());
    let class = match classes.get_opt(&name).await {
        Ok(Some(class)) => class,
        Ok(None) => return Err(ClassError::NotFound(name)),
        Err(source) => {
            let source = Box::new(source);
            return Err(ClassError::Read { name, source });
        }
    };
    choose(shared.runtime.handlers().await?, &class.handler).map(Some)
}

fn choose(configured: Vec<Handler>, name: &str) -> Result<Handler, ClassError> {
    let mut configured = configured.into_iter();
    let found = configured.find(|handler| handler.name == name);
    let found = found.ok_or_else(|| ClassError::NotConfigured(name.to_owned()))?;
    match found.is_one_by_one() {
        true => Ok(found),
        false => Err(ClassError::Unsupported {
            handler: found.name,
            kind: found.kind,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handler_is_one_that_is_configured_and_makes_single_containers() {
        let handler = |name: &str, kind: &str| Handler {
            name: name.into(),
            kind: kind.into(),
            ..Handler::default()
        };
        let all = vec![
            handler("runc", "io.containerd.runc.v2"),
            handler("kata", "io.containerd.kata.v2"),
        ];
        assert_eq!(choose(all.clone(), "runc").unwrap(), all[0]);
        let error = choose(all.clone(), "x").unwrap_err().to_string();
        assert_eq!(
            error,
            "failed to get sandbox runtime: no runtime for \"x\" is configured"
        );
        let error = choose(all, "kata").unwrap_err().to_string();
        assert!(
            error.contains("is of type io.containerd.kata.v2"),
            "{error}"
        );
    }
}
