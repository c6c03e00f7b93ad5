//! `kernelet service list | show`.

use clap::Subcommand;

use super::table::{percent, table, time};
use super::{Ask, CliError};
use crate::introspection::{
    Announcement, Backend, Ejection, Indirect, ListServicesReply, ListServicesRequest, Service,
    ServiceDetail, ShowServiceReply, ShowServiceRequest, SourceRanges,
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the service addresses in the maps
    List {
        /// Only this namespace
        #[arg(short, long)]
        namespace: Option<String>,
        #[command(flatten)]
        ask: Ask,
    },
    /// Explain one service: its addresses, backends, and the map entries behind them
    Show {
        name: String,
        #[arg(short, long, default_value = "default")]
        namespace: String,
        #[command(flatten)]
        ask: Ask,
    },
}

pub(super) fn run(command: &Command) -> Result<String, CliError> {
    match command {
        Command::List { namespace, ask } => {
            let request = ListServicesRequest {
                namespace: namespace.clone().unwrap_or_default(),
            };
            ask.render(
                async |mut client| Ok(client.list_services(request).await?.into_inner()),
                list,
            )
        }
        Command::Show {
            name,
            namespace,
            ask,
        } => {
            let request = ShowServiceRequest {
                namespace: namespace.clone(),
                name: name.clone(),
            };
            ask.render(
                async |mut client| Ok(client.show_service(request).await?.into_inner()),
                |reply| show(&format!("{namespace}/{name}"), reply),
            )
        }
    }
}

fn list(reply: &ListServicesReply) -> String {
    let header = [
        "NAMESPACE",
        "NAME",
        "PORT",
        "KIND",
        "ADDRESS",
        "LOCAL",
        "ZONE",
        "READY",
        "LEAVING",
        "STAYS",
        "POLICY",
        "REFUSED",
    ];
    let rows = reply.services.iter().map(|service| {
        [
            service.namespace.clone(),
            service.name.clone(),
            service.port_name.clone(),
            kind(service),
            format!("{}/{}", service.address, service.protocol),
            service.local.to_string(),
            service.zone.to_string(),
            service.ready.to_string(),
            service.terminating.to_string(),
            stays(service),
            service.policy.clone(),
            service.refused.to_string(),
        ]
    });
    table(header, rows)
}

/// What the address is, and from where it is dialled if not by a socket on the node.
fn kind(service: &Service) -> String {
    match service.outside {
        true => format!("{} from outside", service.kind),
        false => service.kind.clone(),
    }
}

/// The share of new connections that stay on the node; nothing where there is no backend to stay with, or a Maglev table
/// says who has which client.
fn stays(service: &Service) -> String {
    if service.local == 0 || service.maglev > 0 {
        String::new()
    } else {
        percent(service.local_share)
    }
}

fn show(name: &str, reply: &ShowServiceReply) -> String {
    let mut text = String::new();
    for note in &reply.notes {
        text += &format!("Note: {note}\n");
    }
    for announcement in &reply.announcements {
        text += &announced(announcement);
    }
    for ServiceDetail {
        service,
        backends,
        entries,
        feedback,
    } in &reply.ports
    {
        let Some(service) = service else { continue };
        if !text.is_empty() {
            text += "\n";
        }
        text += &head(name, service);
        if let Some(feedback) = feedback {
            text += &format!("Feedback:   {}\n", feedback.explanation);
        }
        for backend in backends {
            if let Some(ejection) = &backend.ejection {
                text += &ejected(&backend.address, ejection);
            }
        }
        text += "\nBackends\n";
        text += &self::backends(backends);
        text += "\nMap entries\n";
        let rows = entries
            .iter()
            .map(|row| [row.map.clone(), row.key.clone(), row.value.clone()]);
        text += &table(["MAP", "KEY", "VALUE"], rows);
    }
    text
}

fn announced(announcement: &Announcement) -> String {
    let Announcement {
        address,
        node,
        reason,
    } = announcement;
    if node.is_empty() {
        format!("Announced:  {address} by nobody: {reason}\n")
    } else {
        format!("Announced:  {address} by {node}\n")
    }
}

fn head(name: &str, service: &Service) -> String {
    let port = if service.port_name.is_empty() {
        String::new()
    } else {
        format!(", port {}", service.port_name)
    };
    let Service {
        address,
        protocol,
        policy,
        local,
        zone,
        ready,
        terminating,
        refused,
        id,
        generation,
        ..
    } = service;
    let stays = match (service.maglev, *local) {
        (1.., _) => "each goes where the Maglev table says, on every node the same".to_owned(),
        (0, 0) => "no backend on this node".to_owned(),
        (0, _) => format!("{} stay on this node", stays(service)),
    };
    let kind = kind(service);
    let text = format!(
        "Service:    {name}{port}\n\
         Address:    {address}/{protocol}, {kind}\n\
         Policy:     {policy}; of new connections {stays}\n\
         Ready:      {ready}: {local} on this node, {zone} in its zone; {terminating} leaving\n\
         Refused:    {refused} for want of a backend\n\
         Table:      service {id}, generation {generation}\n"
    );
    text + &outside(service)
}

/// What only clients outside meet.
fn outside(service: &Service) -> String {
    let mut text = String::new();
    if service.maglev > 0 {
        text += &format!("Maglev:     {} entries\n", service.maglev);
    }
    if let Some(SourceRanges { ranges }) = &service.source_ranges {
        let who = match &ranges[..] {
            [] => "nobody".to_owned(),
            ranges => ranges.join(", "),
        };
        text += &format!("Let in:     {who}\n");
    }
    if service.direct_return {
        text += "Answers:    go from the backend's node to the client (dsr)\n";
    }
    for Indirect { address, reason } in &service.indirect {
        text += &format!("            but through this node from {address}: {reason}\n");
    }
    text
}

fn ejected(address: &str, ejection: &Ejection) -> String {
    let Ejection {
        reason,
        seconds_left,
        times,
    } = ejection;
    format!("Ejected:    {address} for another {seconds_left:.0} s, time {times}: {reason}\n")
}

fn backends(backends: &[Backend]) -> String {
    let header = [
        "ID", "ADDRESS", "NODE", "ZONE", "POD", "STATE", "LOCAL", "SHARE", "OPENS", "ACTIVE",
        "FAILED", "P50", "P99",
    ];
    let rows = backends.iter().map(|backend| {
        [
            backend.id.to_string(),
            backend.address.clone(),
            backend.node.clone(),
            backend.zone.clone(),
            backend.pod.clone(),
            backend.state.clone(),
            if backend.local { "yes" } else { "no" }.to_owned(),
            percent(backend.share),
            backend.opens.to_string(),
            backend.active.to_string(),
            backend.failures.to_string(),
            backend.handshake_p50_seconds.map(time).unwrap_or_default(),
            backend.handshake_p99_seconds.map(time).unwrap_or_default(),
        ]
    });
    table(header, rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::introspection::{Feedback, MapRow};

    fn service() -> Service {
        Service {
            namespace: "default".into(),
            name: "backend".into(),
            port_name: "http".into(),
            address: "10.96.0.7:80".into(),
            protocol: "TCP".into(),
            local: 1,
            zone: 0,
            ready: 2,
            terminating: 0,
            local_share: 0.99,
            policy: "prefer node".into(),
            id: 3,
            generation: 2,
            refused: 0,
            kind: "ClusterIP".into(),
            ..Service::default()
        }
    }

    #[test]
    fn what_clients_outside_meet_is_said() {
        let outside = Service {
            kind: "LoadBalancer".into(),
            outside: true,
            address: "203.0.113.1:80".into(),
            source_ranges: Some(SourceRanges {
                ranges: vec!["10.0.0.0/8".into(), "192.0.2.0/24".into()],
            }),
            direct_return: true,
            indirect: vec![Indirect {
                address: "10.244.3.7:80".into(),
                reason: "node b shares no link with this one".into(),
            }],
            maglev: 1021,
            ..service()
        };
        let text = head("default/backend", &outside);
        for part in [
            "Address:    203.0.113.1:80/TCP, LoadBalancer from outside\n",
            "of new connections each goes where the Maglev table says",
            "Maglev:     1021 entries\n",
            "Let in:     10.0.0.0/8, 192.0.2.0/24\n",
            "Answers:    go from the backend's node to the client (dsr)\n            \
             but through this node from 10.244.3.7:80: node b shares no link with this one\n",
        ] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
        let shut = Service {
            source_ranges: Some(SourceRanges::default()),
            ..outside
        };
        assert!(head("default/backend", &shut).contains("Let in:     nobody\n"));
    }

    #[test]
    fn a_list_has_a_line_for_each_address() {
        let text = list(&ListServicesReply {
            services: vec![
                service(),
                Service {
                    local: 0,
                    ..service()
                },
            ],
        });
        let cells: Vec<Vec<&str>> = text
            .lines()
            .map(|line| {
                line.split("   ")
                    .map(str::trim)
                    .filter(|c| !c.is_empty())
                    .collect()
            })
            .collect();
        assert_eq!(
            cells[1],
            [
                "default",
                "backend",
                "http",
                "ClusterIP",
                "10.96.0.7:80/TCP",
                "1",
                "0",
                "2",
                "0",
                "99.0%",
                "prefer node",
                "0"
            ]
        );
        assert_eq!(cells[2][9], "-");
    }

    #[test]
    fn show_explains_down_to_the_map_entries() {
        let backend = Backend {
            id: 9,
            address: "10.244.1.5:8080".into(),
            pod: "default/backend-x".into(),
            share: 0.99,
            ..Backend::default()
        };
        let entry = MapRow {
            map: "SERVICES".into(),
            key: "10.96.0.7:80 TCP".into(),
            value: "service 3".into(),
            ..MapRow::default()
        };
        let out = Backend {
            address: "10.244.2.6:8080".into(),
            ejection: Some(Ejection {
                reason: "3 connections failed in a row".into(),
                seconds_left: 3.9,
                times: 2,
            }),
            ..Backend::default()
        };
        let feedback = Feedback {
            explanation: "20.0 % of new connections stay on the node".into(),
            ..Feedback::default()
        };
        let detail = ServiceDetail {
            service: Some(service()),
            backends: vec![backend, out],
            entries: vec![entry],
            feedback: Some(feedback),
        };
        let reply = ShowServiceReply {
            ports: vec![detail],
            notes: vec!["SCTP ports are not translated".into()],
            announcements: vec![
                Announcement {
                    address: "192.0.2.10".into(),
                    node: "worker-2".into(),
                    reason: String::new(),
                },
                Announcement {
                    address: "192.0.2.11".into(),
                    node: String::new(),
                    reason: "no node has a ready endpoint".into(),
                },
            ],
        };
        let text = show("default/backend", &reply);
        for part in [
            "Note: SCTP ports are not translated\nAnnounced:  192.0.2.10 by worker-2\nAnnounced:  192.0.2.11 by nobody: no node has a ready endpoint\n\nService:    default/backend, port http\nAddress:    10.96.0.7:80/TCP, ClusterIP\n",
            "99.0% stay on this node",
            "10.244.1.5:8080   -      -      default/backend-x",
            "SERVICES   10.96.0.7:80 TCP   service 3\n",
            "Feedback:   20.0 % of new connections stay on the node\n",
            "Ejected:    10.244.2.6:8080 for another 4 s, time 2: 3 connections failed in a row\n",
        ] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
    }
}
