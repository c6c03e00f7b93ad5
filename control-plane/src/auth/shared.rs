//! What API servers that share a store must have in common: the authority and the keys of service accounts' tokens. The
//! store remembers what the cluster has, and a server that has others says so instead of serving a second cluster on the
//! first one's objects.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::pki::Pki;
use crate::store::{Expect, Store, StoreError, Write};

/// Where the store remembers it.
const KEY: &str = "/registry/kernelet/authority";
/// How often it is tried anew when another server starts at the same time.
const ATTEMPTS: usize = 8;

/// What a cluster has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Common {
    /// SHA-256 of the authority's certificate.
    authority: String,
    /// The id of the key that signs service accounts' tokens.
    token_key: String,
}

/// Why a server cannot be one of the cluster's.
#[derive(Debug, thiserror::Error)]
pub enum SharedError {
    #[error(
        "the cluster in this etcd has another authority than this server: stop it, and copy pki/ca.crt, pki/ca.key, pki/sa*.key and join-token from the data directory of one of the cluster's servers in place of its own, then start it again. To give the cluster a new authority instead, stop all its servers and delete the key {KEY} from etcd"
    )]
    Authority,
    #[error(
        "service accounts' tokens of this cluster are signed with a key that this server does not have ({0}), so it would refuse them: copy pki/sa*.key from the data directory of one of the cluster's servers, then start it again"
    )]
    TokenKey(String),
    #[error("cannot see which authority the cluster has: {0}")]
    Store(#[from] StoreError),
    #[error("{KEY} in etcd is not what a server wrote: {0}")]
    Unreadable(serde_json::Error),
    #[error("the cluster's authority cannot be read: {0}")]
    Certificate(rustls_pki_types::pem::Error),
}

/// Makes sure that this server has what the cluster has. The first one says what that is.
pub async fn agree(store: &dyn Store, pki: &Pki) -> Result<(), SharedError> {
    let certificate = CertificateDer::from_pem_slice(pki.ca.certificate().as_bytes())
        .map_err(SharedError::Certificate)?;
    let mine = Common {
        authority: URL_SAFE_NO_PAD.encode(Sha256::digest(&certificate)),
        token_key: pki.token_keys.id().to_owned(),
    };
    let verifies = |id: &str| pki.token_keys.verifies(id);
    agree_on(store, &mine, verifies).await
}

async fn agree_on(
    store: &dyn Store,
    mine: &Common,
    verifies: impl Fn(&str) -> bool,
) -> Result<(), SharedError> {
    let bytes = serde_json::to_vec(mine).map_err(SharedError::Unreadable)?;
    let mut last = None;
    for _ in 0..ATTEMPTS {
        let (entry, _) = store.get(KEY).await?;
        let expect = match entry {
            None => Expect::Absent,
            Some(entry) => {
                let clusters: Common =
                    serde_json::from_slice(&entry.value).map_err(SharedError::Unreadable)?;
                if clusters == *mine {
                    return Ok(());
                }
                judge(&clusters, mine, &verifies)?;
                Expect::Modified(entry.modified)
            }
        };
        let write = Write::put(KEY, bytes.clone(), expect);
        match store.commit(vec![write]).await {
            Ok(_) => return Ok(()),
            Err(conflict @ StoreError::Conflict { .. }) => last = Some(conflict),
            Err(error) => return Err(error.into()),
        }
    }
    match last {
        Some(conflict) => Err(conflict.into()),
        None => Ok(()),
    }
}

/// Whether a server that has `mine` fits into a cluster that has `clusters`. Keys of tokens may be replaced one server after
/// another, as long as each one that starts still knows the one before.
fn judge(
    clusters: &Common,
    mine: &Common,
    verifies: impl Fn(&str) -> bool,
) -> Result<(), SharedError> {
    if clusters.authority != mine.authority {
        return Err(SharedError::Authority);
    }
    if !verifies(&clusters.token_key) {
        return Err(SharedError::TokenKey(clusters.token_key.clone()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::embedded::Embedded;

    #[tokio::test]
    async fn the_first_server_says_what_the_others_must_have() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("store.redb")).unwrap();
        let common = |authority: &str, token_key: &str| Common {
            authority: authority.to_owned(),
            token_key: token_key.to_owned(),
        };
        let agree = async |mine: Common, known: &[&str]| {
            let verifies = |id: &str| known.contains(&id);
            agree_on(&store, &mine, verifies).await
        };
        agree(common("a", "1"), &["1"]).await.unwrap();
        agree(common("a", "1"), &["1"]).await.unwrap();
        let other = agree(common("b", "1"), &["1"]).await;
        assert!(matches!(other, Err(SharedError::Authority)), "{other:?}");
        let lacking = agree(common("a", "2"), &["2"]).await;
        assert!(
            matches!(lacking, Err(SharedError::TokenKey(_))),
            "{lacking:?}"
        );

        // A new key is taken over by a server that still knows the old one; then one without the new one is refused.
        agree(common("a", "2"), &["2", "1"]).await.unwrap();
        let behind = agree(common("a", "1"), &["1"]).await;
        assert!(
            matches!(behind, Err(SharedError::TokenKey(_))),
            "{behind:?}"
        );
    }
}
