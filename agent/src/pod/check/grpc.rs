//! Asking by the health checking protocol of gRPC, `grpc.health.v1`, without TLS.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tonic::Code;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::{Answer, Asker};
use crate::chain::chain;

/// Asks the server at `at` how `service` is; an empty name stands for the server as a whole.
pub(super) async fn try_once(at: &str, service: &str, timeout: Duration) -> Answer {
    let deadline = Instant::now() + timeout;
    let endpoint = Endpoint::from_shared(format!("http://{at}"))
        .and_then(|endpoint| endpoint.user_agent(Asker::Probe.user_agent()));
    let endpoint = match endpoint {
        Ok(endpoint) => endpoint,
        Err(error) => return Answer::Unknown(chain(&error)),
    };
    let channel = match timeout_at(deadline, endpoint.connect()).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => {
            return Answer::Failure(format!(
                "error: failed to connect service at {at:?}: {}",
                chain(&error)
            ));
        }
        Err(_) => {
            return Answer::Failure(format!(
                "timeout: failed to connect service {at:?} within {timeout:?}: context deadline exceeded"
            ));
        }
    };
    let mut client = HealthClient::new(channel);
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    match timeout_at(deadline, client.check(request)).await {
        Err(_) => too_late(timeout),
        Ok(Err(status)) => match status.code() {
            Code::Unimplemented => Answer::Failure(format!(
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
                status.message()
            )),
            Code::DeadlineExceeded => too_late(timeout),
            code => Answer::Failure(format!(
                "error: health rpc probe failed: rpc error: code = {code:?} desc = {}",
                status.message()
            )),
        },
        Ok(Ok(reply)) => match reply.into_inner().status() {
            ServingStatus::Serving => Answer::Success,
            other => Answer::Failure(format!(
                "service unhealthy (responded with {:?})",
                other.as_str_name()
            )),
        },
    }
}

fn too_late(timeout: Duration) -> Answer {
    Answer::Failure(format!(
        "timeout: health rpc did not complete within {timeout:?}"
    ))
}
