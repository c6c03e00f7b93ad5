//! Plain tables: columns, no lines, as kubectl prints them.

use comfy_table::Table;
use comfy_table::presets::NOTHING;

/// A table with `header` and `rows`. A column is as wide as its widest cell; an empty cell shows a dash.
pub(super) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header);
    for row in rows {
        table.add_row(row.map(|cell| {
            if cell.is_empty() {
                "-".to_owned()
            } else {
                cell
            }
        }));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table
        .lines()
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect()
}

/// A duration as people say it, in at most two units.
pub(super) fn age(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{}s", seconds % 60),
        (0, _, _) => format!("{hours}h{minutes}m"),
        _ => format!("{days}d{hours}h"),
    }
}

/// A fraction as a percentage.
pub(super) fn percent(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_empty_cells_show() {
        let text = table(
            ["NAME", "NODE"],
            [["frontend".into(), "a".into()], ["b".into(), String::new()]],
        );
        assert_eq!(text, "NAME       NODE\nfrontend   a\nb          -\n");
    }

    #[test]
    fn ages_have_two_units() {
        assert_eq!(
            [59, 61, 3700, 90_000].map(age),
            ["59s", "1m1s", "1h1m", "1d1h"]
        );
    }
}
