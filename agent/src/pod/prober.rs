//! Trying probes: a task for each, which tells the pod's worker what every try came to.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as ContainerSpec, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::task::AbortOnDropHandle;

use super::insecure;
use super::observed::ProbeId;
use super::probe::Rules;
use super::spec::Question;
use crate::chain::chain;
use crate::runtime::{Container, Runtime, RuntimeError};

/// Results that wait for the worker. When it is busy, probes wait for it.
const QUEUE: usize = 16;

/// What a single try of a probe came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Success,
    Failure(String),
    /// It could not be tried, which says nothing of the container.
    Unknown(String),
}

/// The running probes of a pod. They end with this.
pub(super) struct Probers {
    tasks: BTreeMap<ProbeId, AbortOnDropHandle<()>>,
    sender: mpsc::Sender<(ProbeId, Answer)>,
    answers: mpsc::Receiver<(ProbeId, Answer)>,
}

impl Probers {
    pub(super) fn new() -> Probers {
        let (sender, answers) = mpsc::channel(QUEUE);
        Probers {
            tasks: BTreeMap::new(),
            sender,
            answers,
        }
    }

    /// Makes the probes that run those that should. `address` is the pod's.
    pub(super) fn keep<'a>(
        &mut self,
        wanted: impl Iterator<Item = (ProbeId, &'a ContainerSpec, &'a Container)>,
        address: IpAddr,
        runtime: &Arc<dyn Runtime>,
    ) {
        let mut before = std::mem::take(&mut self.tasks);
        for (id, spec, container) in wanted {
            let task = match (before.remove(&id), id.question.of(spec)) {
                (Some(task), _) => task,
                (None, Some(probe)) => {
                    let rules = Rules::of(probe);
                    let wait = rules.first_wait(container.created_at, Timestamp::now());
                    let check = Check::of(probe, spec, address);
                    let runtime = runtime.clone();
                    let task = run(id.clone(), check, rules, wait, runtime, self.sender.clone());
                    AbortOnDropHandle::new(tokio::spawn(task))
                }
                (None, None) => continue,
            };
            self.tasks.insert(id, task);
        }
    }

    pub(super) fn stop(&mut self) {
        self.tasks.clear();
    }

    /// The next result of a probe that is still wanted. Cancel-safe: what is not given out stays queued.
    pub(super) async fn next(&mut self) -> (ProbeId, Answer) {
        loop {
            match self.answers.recv().await {
                Some((id, answer)) if self.tasks.contains_key(&id) => return (id, answer),
                Some(_) => {}
                // Not while this holds a sender.
                None => std::future::pending().await,
            }
        }
    }
}

async fn run(
    id: ProbeId,
    check: Result<Check, String>,
    rules: Rules,
    wait: Duration,
    runtime: Arc<dyn Runtime>,
    answers: mpsc::Sender<(ProbeId, Answer)>,
) {
    tokio::time::sleep(wait).await;
    let mut ticks = tokio::time::interval(rules.period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let answer = match &check {
            Ok(check) => check.try_once(&id.container, rules.timeout, &runtime).await,
            Err(reason) => Answer::Unknown(reason.clone()),
        };
        if answers.send((id.clone(), answer)).await.is_err() {
            return;
        }
    }
}

/// How a probe finds out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Check {
    Exec(Vec<String>),
    Tcp {
        host: String,
        port: u16,
    },
    Http {
        tls: bool,
        host: String,
        port: u16,
        path: String,
        headers: Vec<(String, String)>,
    },
}

impl Check {
    pub(super) fn of(
        probe: &Probe,
        spec: &ContainerSpec,
        address: IpAddr,
    ) -> Result<Check, String> {
        let host = |named: &Option<String>| match named {
            Some(host) if !host.is_empty() => host.clone(),
            _ => address.to_string(),
        };
        if let Some(exec) = &probe.exec {
            return Ok(Check::Exec(exec.command.clone().unwrap_or_default()));
        }
        if let Some(tcp) = &probe.tcp_socket {
            return Ok(Check::Tcp {
                host: host(&tcp.host),
                port: port(&tcp.port, spec)?,
            });
        }
        if let Some(get) = &probe.http_get {
            return Ok(Check::Http {
                tls: get.scheme.as_deref() == Some("HTTPS"),
                host: host(&get.host),
                port: port(&get.port, spec)?,
                path: path(get),
                headers: get
                    .http_headers
                    .iter()
                    .flatten()
                    .map(|header| (header.name.clone(), header.value.clone()))
                    .collect(),
            });
        }
        Err("the probe names nothing to do".to_owned())
    }

    pub(super) async fn try_once(
        &self,
        container: &str,
        timeout: Duration,
        runtime: &Arc<dyn Runtime>,
    ) -> Answer {
        match self {
            Check::Exec(command) => {
                let (runtime, container, command) =
                    (runtime.clone(), container.to_owned(), command.clone());
                // A task of its own, which cleans up behind the command even if the probe is stopped meanwhile.
                let exec = async move { runtime.exec(&container, &command, timeout).await };
                match tokio::spawn(exec).await {
                    Ok(Ok(result)) if result.code == 0 => Answer::Success,
                    Ok(Ok(result)) => Answer::Failure(result.output),
                    Ok(Err(error @ RuntimeError::ExecTimeout { .. })) => {
                        Answer::Failure(error.to_string())
                    }
                    Ok(Err(error)) => Answer::Unknown(error.to_string()),
                    Err(error) => Answer::Unknown(error.to_string()),
                }
            }
            Check::Tcp { host, port } => {
                let connected = TcpStream::connect((host.as_str(), *port));
                let failed =
                    |why: String| Answer::Failure(format!("dial tcp {}: {why}", at(host, *port)));
                match tokio::time::timeout(timeout, connected).await {
                    Ok(Ok(_)) => Answer::Success,
                    Ok(Err(error)) => failed(error.to_string()),
                    Err(_) => failed(format!("no answer within {timeout:?}")),
                }
            }
            Check::Http {
                tls,
                host,
                port,
                path,
                headers,
            } => {
                let scheme = if *tls { "https" } else { "http" };
                let failed = |why: String| {
                    let at = at(host, *port);
                    Answer::Failure(format!("Get \"{scheme}://{at}{path}\": {why}"))
                };
                let request = match request(host, *port, path, headers) {
                    Ok(request) => request,
                    Err(error) => return Answer::Unknown(error.to_string()),
                };
                match tokio::time::timeout(timeout, get(*tls, host, *port, request)).await {
                    // A redirection is an answer too; it is not followed.
                    Ok(Ok(200..400)) => Answer::Success,
                    Ok(Ok(code)) => {
                        Answer::Failure(format!("HTTP probe failed with statuscode: {code}"))
                    }
                    Ok(Err(error)) => failed(chain(&*error)),
                    Err(_) => failed(format!("no answer within {timeout:?}")),
                }
            }
        }
    }
}

/// The number of a port that is named by number or by name.
fn port(port: &IntOrString, spec: &ContainerSpec) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let mut ports = spec.ports.iter().flatten();
            let named = ports.find(|port| port.name.as_ref() == Some(name));
            named
                .map(|port| port.container_port)
                .or_else(|| name.parse().ok())
        }
    };
    number
        .and_then(|number| u16::try_from(number).ok())
        .filter(|number| *number != 0)
        .ok_or_else(|| format!("the container has no port {port:?}"))
}

/// Host and port as URLs have them: an IPv6 address in brackets.
fn at(host: &str, port: u16) -> String {
    match host.parse::<Ipv6Addr>() {
        Ok(address) => format!("[{address}]:{port}"),
        Err(_) => format!("{host}:{port}"),
    }
}

fn path(get: &HTTPGetAction) -> String {
    let path = get.path.as_deref().unwrap_or_default();
    format!("/{}", path.trim_start_matches('/'))
}

fn request(
    host: &str,
    port: u16,
    path: &str,
    headers: &[(String, String)],
) -> Result<Request<Empty<Bytes>>, http::Error> {
    let mut request = Request::get(path).body(Empty::new())?;
    let map = request.headers_mut();
    let host = HeaderValue::try_from(at(host, port))?;
    map.insert(header::HOST, host);
    map.insert(
        header::USER_AGENT,
        HeaderValue::from_static("kube-probe/1.34"),
    );
    map.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    map.insert(header::CONNECTION, HeaderValue::from_static("close"));
    for (name, value) in headers {
        let name = http::HeaderName::try_from(name)?;
        map.insert(name, HeaderValue::try_from(value)?);
    }
    Ok(request)
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The status code of the answer.
async fn get(
    tls: bool,
    host: &str,
    port: u16,
    request: Request<Empty<Bytes>>,
) -> Result<u16, BoxError> {
    let stream = TcpStream::connect((host, port)).await?;
    if tls {
        answer(insecure::connect(host, stream).await?, request).await
    } else {
        answer(stream, request).await
    }
}

async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<u16, BoxError> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // The connection is of no use after the answer's first line.
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    Ok(sender.send_request(request).await?.status().as_u16())
}

impl Question {
    /// The sentence of an event about a try.
    pub(super) fn tell(self, answer: &Answer) -> Option<String> {
        let word = match self {
            Question::Startup => "Startup",
            Question::Liveness => "Liveness",
            Question::Readiness => "Readiness",
        };
        match answer {
            Answer::Success => None,
            Answer::Failure(why) => Some(format!("{word} probe failed: {why}")),
            Answer::Unknown(why) => Some(format!(
                "{word} probe errored and resulted in unknown state: {why}"
            )),
        }
    }
}
