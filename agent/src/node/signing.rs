//! Gets certificates from the API: posts a request and waits until it is decided.

use std::time::Duration;

use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::api::{Api, PostParams};
use tokio::time::{Instant, sleep};

use super::certificates::{KeyAndRequest, Outcome, outcome};

/// Until the request is looked at again, at first and at most: a machine decides at once, a person later.
const LOOK_INTERVAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    #[error("the certificate request {name} was refused: {why}")]
    Refused { name: String, why: String },
    #[error(
        "the certificate request {0} is still waiting; approve it with `kubectl certificate approve {0}` and try again"
    )]
    Undecided(String),
    #[error("the API server did not take the certificate request: {0}")]
    Api(#[from] kube::Error),
}

/// A certificate and its key, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    pub certificate_pem: String,
    pub key_pem: String,
}

/// Posts the request and waits for the certificate, no longer than `patience`.
pub async fn obtain(
    client: &kube::Client,
    made: KeyAndRequest,
    patience: Duration,
) -> Result<Pair, SigningError> {
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let mut request = api.create(&PostParams::default(), &made.request).await?;
    let name = request.metadata.name.clone().unwrap_or_default();
    let deadline = Instant::now() + patience;
    let mut pause = LOOK_INTERVAL.0;
    loop {
        match outcome(&request) {
            Outcome::Issued(certificate_pem) => {
                return Ok(Pair {
                    certificate_pem,
                    key_pem: made.key_pem,
                });
            }
            Outcome::Refused(why) => return Err(SigningError::Refused { name, why }),
            Outcome::Pending if Instant::now() >= deadline => {
                return Err(SigningError::Undecided(name));
            }
            Outcome::Pending => sleep(pause).await,
        }
        pause = (pause * 3 / 2).min(LOOK_INTERVAL.1);
        request = api.get(&name).await?;
    }
}
