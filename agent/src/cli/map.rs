//! `kernelet map list | dump`.

use clap::Subcommand;
use futures::TryStreamExt;

use super::table::table;
use super::{Ask, CliError};
use crate::introspection::{DumpMapRequest, ListMapsReply, ListMapsRequest, MapRow};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the maps and how full they are
    List(Ask),
    /// Print every row of one map
    Dump {
        /// The map, for example SERVICES
        name: String,
        #[command(flatten)]
        ask: Ask,
    },
}

pub(super) fn run(command: &Command) -> Result<String, CliError> {
    match command {
        Command::List(ask) => ask.render(
            async |mut client| Ok(client.list_maps(ListMapsRequest {}).await?.into_inner()),
            list,
        ),
        Command::Dump { name, ask } => {
            let request = DumpMapRequest {
                name: name.to_uppercase(),
            };
            ask.render(
                async |mut client| {
                    client
                        .dump_map(request)
                        .await?
                        .into_inner()
                        .try_collect::<Vec<_>>()
                        .await
                },
                |rows| dump(rows),
            )
        }
    }
}

fn list(reply: &ListMapsReply) -> String {
    let rows = reply.maps.iter().map(|map| {
        [
            map.name.clone(),
            map.kind.clone(),
            map.entries.to_string(),
            map.max_entries.to_string(),
            map.pin.clone(),
        ]
    });
    table(["NAME", "TYPE", "ENTRIES", "MAX", "PIN"], rows)
}

fn dump(rows: &[MapRow]) -> String {
    table(
        ["KEY", "VALUE"],
        rows.iter().map(|row| [row.key.clone(), row.value.clone()]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_shows_raw_bytes_as_hexadecimal() {
        let row = MapRow {
            map: "M".into(),
            raw_key: vec![10, 0xff],
            ..MapRow::default()
        };
        assert_eq!(serde_json::to_value(row).unwrap()["raw_key"], "0aff");
    }
}
