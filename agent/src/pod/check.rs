//! Asking a container once how it is, as probes do, or telling it something, as hooks do.

mod grpc;
mod http;

use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container as ContainerSpec, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::runtime::{Runtime, RuntimeError};
use crate::slow;

/// The node's resolvers give up after about as long.
const LOOKUP: Duration = Duration::from_secs(30);

/// What a single try came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Success,
    /// A success of which people should know.
    Warning(String),
    Failure(String),
    /// It could not be tried, which says nothing of the container.
    Unknown(String),
}

/// On whose behalf a container is asked; it is told so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    Probe,
    Hook,
}

impl Asker {
    fn user_agent(self) -> &'static str {
        match self {
            Asker::Probe => "kube-probe/1.34",
            Asker::Hook => "kube-lifecycle/1.34",
        }
    }
}

/// How a container is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Check {
    Exec(Vec<String>),
    Tcp {
        host: String,
        port: u16,
    },
    Http(Box<http::Get>),
    Grpc {
        host: String,
        port: u16,
        service: String,
    },
}

impl Check {
    /// What a probe of a container asks, whose pod has this address.
    pub(super) fn of(
        probe: &Probe,
        spec: &ContainerSpec,
        address: IpAddr,
        asker: Asker,
    ) -> Result<Check, String> {
        let host = |named: &Option<String>| match named {
            Some(host) if !host.is_empty() => host.clone(),
            _ => address.to_string(),
        };
        if let Some(exec) = &probe.exec {
            return Ok(Check::Exec(exec.command.clone().unwrap_or_default()));
        }
        if let Some(get) = &probe.http_get {
            let at = at(&host(&get.host), port(&get.port, spec)?);
            let get = http::Get::of(get, &at, asker)?;
            return Ok(Check::Http(Box::new(get)));
        }
        if let Some(tcp) = &probe.tcp_socket {
            return Ok(Check::Tcp {
                host: host(&tcp.host),
                port: port(&tcp.port, spec)?,
            });
        }
        if let Some(grpc) = &probe.grpc {
            return Ok(Check::Grpc {
                host: address.to_string(),
                port: port(&IntOrString::Int(grpc.port), spec)?,
                service: grpc.service.clone().unwrap_or_default(),
            });
        }
        Err("missing probe handler".to_owned())
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
                let dialled = tokio::time::timeout(timeout, dial(host, *port)).await;
                match dialled {
                    Ok(Ok(_)) => Answer::Success,
                    Ok(Err(why)) => Answer::Failure(why),
                    Err(_) => Answer::Failure(format!("dial tcp {}: i/o timeout", at(host, *port))),
                }
            }
            Check::Http(get) => get.try_once(timeout).await,
            Check::Grpc {
                host,
                port,
                service,
            } => grpc::try_once(&at(host, *port), service, timeout).await,
        }
    }
}

/// The addresses of a host, which most probes and hooks name by its address.
async fn resolve(host: &str, port: u16) -> std::io::Result<Vec<SocketAddr>> {
    static LOOKUPS: Semaphore = Semaphore::const_new(slow::PLACES);
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![(address, port).into()]);
    }
    let name = host.to_owned();
    let lookup = move || Ok((name.as_str(), port).to_socket_addrs()?.collect());
    let found = slow::within(LOOKUP, &LOOKUPS, lookup).await;
    found.unwrap_or_else(|| Err(std::io::ErrorKind::TimedOut.into()))
}

/// Connects; a failure is worded as people know it from upstream.
async fn dial(host: &str, port: u16) -> Result<TcpStream, String> {
    let connected = async { TcpStream::connect(&*resolve(host, port).await?).await };
    connected.await.map_err(|error| {
        let why = match error.kind() {
            std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
            std::io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
            _ => error.to_string(),
        };
        format!("dial tcp {}: {why}", at(host, port))
    })
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

#[cfg(test)]
mod tests;
