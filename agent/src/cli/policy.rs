//! `kernelet policy show`.

use clap::Subcommand;

use super::table::table;
use super::{Ask, CliError};
use crate::introspection::{PolicyDirection, ShowPolicyReply, ShowPolicyRequest};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Which network policies select a pod of this node, what they allow, and the map entries that say so
    Show(Args),
}

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// A pod of this node: [NAMESPACE/]NAME
    pod: String,
    #[command(flatten)]
    ask: Ask,
}

pub(super) fn run(Command::Show(args): &Command) -> Result<String, CliError> {
    let (namespace, name) = args.pod.split_once('/').unwrap_or(("default", &args.pod));
    let request = ShowPolicyRequest {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    args.ask.render(
        async |mut client| Ok(client.show_policy(request).await?.into_inner()),
        show,
    )
}

fn show(reply: &ShowPolicyReply) -> String {
    let mut text = format!("{} {}\n", reply.pod, reply.addresses.join(","));
    for (name, direction) in [("Ingress", &reply.ingress), ("Egress", &reply.egress)] {
        let direction = direction.clone().unwrap_or_default();
        text += &format!("\n{name}: {}\n", state(&direction));
        if direction.rules.is_empty() {
            continue;
        }
        let rows = direction.rules.into_iter().map(|rule| match rule.number {
            0 => [
                rule.policy,
                String::new(),
                "nobody".to_owned(),
                String::new(),
            ],
            number => [rule.policy, number.to_string(), rule.peers, rule.ports],
        });
        text += &table(["POLICY", "RULE", "ALLOWS", "PORTS"], rows);
    }
    if !reply.entries.is_empty() {
        text += "\nMap entries\n";
        let rows = reply.entries.iter();
        let rows = rows.map(|row| [row.map.clone(), row.key.clone(), row.value.clone()]);
        text += &table(["MAP", "KEY", "VALUE"], rows);
    }
    for note in &reply.notes {
        text += &format!("\nnote: {note}\n");
    }
    text
}

fn state(direction: &PolicyDirection) -> &str {
    match &*direction.state {
        "open" => "not isolated, everything passes",
        "isolated" => "isolated, only what a rule allows passes",
        "pending" => "closed, as the pod's policies are not known yet",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::introspection::PolicyRule;

    #[test]
    fn each_direction_says_how_it_is_and_who_says_so() {
        let rule = |policy: &str, number| PolicyRule {
            policy: policy.into(),
            number,
            peers: "pods app=web in namespace shop".into(),
            ports: "80/TCP".into(),
        };
        let reply = ShowPolicyReply {
            pod: "shop/db".into(),
            addresses: vec!["10.244.1.5".into()],
            ingress: Some(PolicyDirection {
                state: "isolated".into(),
                rules: vec![rule("shop/deny", 0), rule("shop/web", 1)],
            }),
            egress: Some(PolicyDirection {
                state: "open".into(),
                rules: vec![],
            }),
            ..ShowPolicyReply::default()
        };
        assert_eq!(
            show(&reply),
            "shop/db 10.244.1.5\n\n\
             Ingress: isolated, only what a rule allows passes\n\
             POLICY      RULE   ALLOWS                           PORTS\n\
             shop/deny   -      nobody                           -\n\
             shop/web    1      pods app=web in namespace shop   80/TCP\n\n\
             Egress: not isolated, everything passes\n"
        );
    }
}
