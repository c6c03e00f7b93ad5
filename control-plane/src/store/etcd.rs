//! The store in an etcd cluster. Revisions are etcd's own (`mod_revision`), so several API servers agree on them.

mod watch;

use std::error::Error as _;
use std::path::PathBuf;
use std::time::Duration;

use etcd_client::{
    Certificate, Client, CompactionOptions, Compare, CompareOp, ConnectOptions, GetOptions,
    Identity, KeyValue, KvClient, ResponseHeader, TlsOptions, Txn, TxnOp, TxnOpResponse,
    WatchClient,
};
use futures::stream::BoxStream;

use super::{Entry, Expect, Range, Revision, Store, StoreError, Watched, Write};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// etcd's servers have no limit on what they send; a full list may be large.
const LARGEST_ANSWER: usize = i32::MAX as usize;

/// Where etcd is, and how to prove to it who we are.
#[derive(Clone, Debug, Default)]
pub struct EtcdConfig {
    /// `https://host:port`, several for a cluster.
    pub endpoints: Vec<String>,
    /// The authority of etcd's certificates, PEM.
    pub ca_file: Option<PathBuf>,
    /// Our own certificate and its key, PEM; both or none.
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
}

/// Why etcd cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{path}: {source}")]
    File {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("--etcd-certfile and --etcd-keyfile go together; one of them is missing")]
    HalfIdentity,
    #[error(
        "etcd at {endpoints}: {}; check --etcd-endpoints, the TLS files, and that etcd runs",
        root_cause(error)
    )]
    Unreachable {
        endpoints: String,
        /// Not its source: its own text is the nested values of every layer.
        error: Box<etcd_client::Error>,
    },
}

/// What went wrong, without the names of the layers that it went through.
fn root_cause(error: &etcd_client::Error) -> String {
    let etcd_client::Error::GRpcStatus(status) = error else {
        return error.to_string();
    };
    let mut cause = status.source();
    while let Some(next) = cause.and_then(std::error::Error::source) {
        cause = Some(next);
    }
    cause.map_or_else(|| status.message().to_owned(), ToString::to_string)
}

/// A client of an etcd cluster. It connects again by itself.
pub struct Etcd {
    kv: KvClient,
    watch: WatchClient,
    /// Whether the server's answer to a request for progress can be trusted.
    progress: bool,
    /// The newest revision that a reader asked for: watches prove that they have reached it.
    wanted: tokio::sync::watch::Sender<Revision>,
}

impl Etcd {
    /// Connects, and makes sure that etcd answers.
    pub async fn connect(config: &EtcdConfig) -> Result<Self, ConnectError> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_timeout(REQUEST_TIMEOUT)
            .with_keep_alive(KEEP_ALIVE, CONNECT_TIMEOUT)
            .with_require_leader(true);
        if let Some(tls) = tls(config)? {
            options = options.with_tls(tls);
        }
        let unreachable = |error| ConnectError::Unreachable {
            endpoints: config.endpoints.join(","),
            error: Box::new(error),
        };
        let mut client = Client::connect(&config.endpoints, Some(options))
            .await
            .map_err(unreachable)?;
        let status = client.status().await.map_err(unreachable)?;
        Ok(Self {
            kv: client
                .kv_client()
                .max_decoding_message_size(LARGEST_ANSWER)
                .max_encoding_message_size(LARGEST_ANSWER),
            watch: client
                .watch_client()
                .max_decoding_message_size(LARGEST_ANSWER),
            progress: watch::progress_is_sound(status.version()),
            wanted: tokio::sync::watch::Sender::new(Revision(0)),
        })
    }

    /// An error for a revision outside of the kept history. etcd's word is law, except that it has no revision 0.
    async fn check(&self, at: Revision) -> Result<(), StoreError> {
        if at == Revision(0) {
            let oldest = Revision(1);
            return Err(StoreError::Compacted { asked: at, oldest });
        }
        let options = GetOptions::new()
            .with_count_only()
            .with_revision(number(at));
        match self.kv.clone().get("/", Some(options)).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.refused(at, error).await),
        }
    }

    /// What etcd's refusal of a read at `asked` means.
    async fn refused(&self, asked: Revision, error: etcd_client::Error) -> StoreError {
        let text = error.to_string();
        let Ok(current) = self.revision().await else {
            return unavailable(error);
        };
        if text.contains("required revision has been compacted") {
            // etcd does not say what the oldest is; the present is kept for certain.
            StoreError::Compacted {
                asked,
                oldest: current,
            }
        } else if text.contains("required revision is a future revision") {
            StoreError::Future { asked, current }
        } else {
            unavailable(error)
        }
    }
}

#[async_trait::async_trait]
impl Store for Etcd {
    async fn get(&self, key: &str) -> Result<(Option<Entry>, Revision), StoreError> {
        let mut answer = self.kv.clone().get(key, None).await.map_err(unavailable)?;
        let found = answer.take_kvs().pop().map(entry).transpose()?;
        Ok((found, revision(answer.header())))
    }

    async fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        at: Option<Revision>,
    ) -> Result<Range, StoreError> {
        let mut options = GetOptions::new().with_limit(i64::try_from(limit).unwrap_or(i64::MAX));
        if let Some(at) = at {
            if at == Revision(0) {
                self.check(at).await?;
            }
            options = options.with_revision(number(at));
        }
        let first = match after {
            // The least key that is greater.
            Some(after) if after >= prefix => format!("{after}\0"),
            _ => prefix.to_owned(),
        };
        options = options.with_range(range_end(prefix));
        let mut answer = match (self.kv.clone().get(first, Some(options)).await, at) {
            (Ok(answer), _) => answer,
            (Err(error), Some(at)) => return Err(self.refused(at, error).await),
            (Err(error), None) => return Err(unavailable(error)),
        };
        let entries: Vec<Entry> = answer
            .take_kvs()
            .into_iter()
            .map(entry)
            .collect::<Result<_, _>>()?;
        let count = u64::try_from(answer.count()).unwrap_or(0);
        Ok(Range {
            remaining: count.saturating_sub(entries.len() as u64),
            revision: at.unwrap_or_else(|| revision(answer.header())),
            entries,
        })
    }

    async fn commit(&self, writes: Vec<Write>) -> Result<Revision, StoreError> {
        let operation = |write: &Write| match &write.value {
            Some(value) => TxnOp::put(write.key.as_str(), value.clone(), None),
            None => TxnOp::delete(write.key.as_str(), None),
        };
        let look = |write: &Write| TxnOp::get(write.key.as_str(), None);
        let transaction = Txn::new()
            .when(writes.iter().flat_map(compares).collect::<Vec<_>>())
            .and_then(writes.iter().map(operation).collect::<Vec<_>>())
            .or_else(writes.iter().map(look).collect::<Vec<_>>());
        let answer = self
            .kv
            .clone()
            .txn(transaction)
            .await
            .map_err(unavailable)?;
        if answer.succeeded() {
            return Ok(revision(answer.header()));
        }
        for (write, found) in writes.into_iter().zip(answer.op_responses()) {
            let current = match found {
                TxnOpResponse::Get(mut get) => get.take_kvs().pop().map(entry).transpose()?,
                _ => None,
            };
            if !write.expect.is_met_by(current.as_ref()) {
                let key = write.key;
                return Err(StoreError::Conflict { key, current });
            }
        }
        Err(StoreError::Failed(
            "etcd refused a write and what it found is as it was to be".to_owned(),
        ))
    }

    async fn watch(
        &self,
        prefix: &str,
        after: Revision,
    ) -> Result<BoxStream<'static, Result<Watched, StoreError>>, StoreError> {
        // A watch that etcd refuses says so only later, and one that starts at the compacted revision itself is not
        // refused but may lack that revision's deletion.
        self.check(after).await?;
        let wanted = self.progress.then(|| self.wanted.subscribe());
        watch::start(self.watch.clone(), prefix, after, wanted).await
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        let options = GetOptions::new().with_count_only();
        let answer = self
            .kv
            .clone()
            .get("/", Some(options))
            .await
            .map_err(unavailable)?;
        let current = revision(answer.header());
        self.wanted.send_if_modified(|wanted| {
            let newer = current > *wanted;
            *wanted = current.max(*wanted);
            newer
        });
        Ok(current)
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.check(revision).await?;
        let options = CompactionOptions::new();
        match self
            .kv
            .clone()
            .compact(number(revision), Some(options))
            .await
        {
            Ok(_) => Ok(()),
            // Another API server was here first: history is as short as was asked for.
            Err(error)
                if error
                    .to_string()
                    .contains("required revision has been compacted") =>
            {
                Ok(())
            }
            Err(error) => Err(unavailable(error)),
        }
    }
}

fn tls(config: &EtcdConfig) -> Result<Option<TlsOptions>, ConnectError> {
    let read = |path: &PathBuf| {
        std::fs::read(path).map_err(|source| ConnectError::File {
            path: path.clone(),
            source,
        })
    };
    let identity = match (&config.cert_file, &config.key_file) {
        (Some(certificate), Some(key)) => Some(Identity::from_pem(read(certificate)?, read(key)?)),
        (None, None) => None,
        _ => return Err(ConnectError::HalfIdentity),
    };
    if config.ca_file.is_none() && identity.is_none() {
        return Ok(None);
    }
    let mut tls = TlsOptions::new();
    if let Some(ca) = &config.ca_file {
        tls = tls.ca_certificate(Certificate::from_pem(read(ca)?));
    }
    if let Some(identity) = identity {
        tls = tls.identity(identity);
    }
    Ok(Some(tls))
}

fn compares(write: &Write) -> Vec<Compare> {
    let key = write.key.as_str();
    match write.expect {
        Expect::Absent => vec![Compare::version(key, CompareOp::Equal, 0)],
        // An absent key has the modification revision 0, which is nobody's expectation.
        Expect::Modified(revision) => vec![
            Compare::version(key, CompareOp::Greater, 0),
            Compare::mod_revision(key, CompareOp::Equal, number(revision)),
        ],
    }
}

/// The first key after all that start with `prefix`. Prefixes are text, so their last byte can be raised.
fn range_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    match end.last_mut() {
        Some(last) => *last += 1,
        None => end.push(0),
    }
    end
}

/// etcd's number for a revision; those that it cannot have are in the future.
fn number(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

fn from_number(number: i64) -> Revision {
    Revision(u64::try_from(number).unwrap_or(0))
}

fn revision(header: Option<&ResponseHeader>) -> Revision {
    from_number(header.map_or(0, ResponseHeader::revision))
}

fn entry(kv: KeyValue) -> Result<Entry, StoreError> {
    let (created, modified) = (
        from_number(kv.create_revision()),
        from_number(kv.mod_revision()),
    );
    let (key, value) = kv.into_key_value();
    Ok(Entry {
        key: String::from_utf8(key)
            .map_err(|e| StoreError::Failed(format!("a key is not text: {e}")))?,
        value: value.into(),
        created,
        modified,
    })
}

fn unavailable(error: etcd_client::Error) -> StoreError {
    StoreError::Unavailable(format!("etcd: {error}"))
}
