//! `kernelet map list | dump`.

use clap::Subcommand;
use futures::TryStreamExt;

use super::table::table;
use super::{Ask, CliError, digits};
use crate::introspection::{DumpMapRequest, ListMapsReply, ListMapsRequest, MapRow};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the maps and how full they are
    List(Ask),
    /// Print every row of one map
    Dump {
        /// The map, for example SERVICES
        name: String,
        /// Print the bytes, too, as hexadecimal; JSON always has them
        #[arg(long)]
        raw: bool,
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
        Command::Dump { name, raw, ask } => {
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
                |rows| dump(rows, *raw),
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

fn dump(rows: &[MapRow], raw: bool) -> String {
    if !raw {
        let rows = rows.iter().map(|row| [row.key.clone(), row.value.clone()]);
        return table(["KEY", "VALUE"], rows);
    }
    let header = ["KEY", "VALUE", "RAW KEY", "RAW VALUE"];
    let rows = rows.iter().map(|row| {
        [
            row.key.clone(),
            row.value.clone(),
            digits(&row.raw_key),
            digits(&row.raw_value),
        ]
    });
    table(header, rows)
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

    #[test]
    fn raw_bytes_stand_beside_what_they_mean() {
        let row = MapRow {
            key: "backend 1".into(),
            value: "10.0.0.1:80 TCP".into(),
            raw_key: vec![1, 0, 0, 0],
            raw_value: vec![0x0a],
            ..MapRow::default()
        };
        let text = dump(std::slice::from_ref(&row), true);
        assert!(
            text.ends_with("backend 1   10.0.0.1:80 TCP   01000000   0a\n"),
            "{text}"
        );
        assert!(!dump(&[row], false).contains("01000000"));
    }
}
