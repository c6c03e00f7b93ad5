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
                plain(&cell)
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

/// Text for one line of a terminal: names that users and processes choose may hold what would control it.
pub(super) fn plain(text: &str) -> String {
    let shown = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().map(shown).collect()
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

/// A short time, in the unit that suits it.
pub(super) fn time(seconds: f64) -> String {
    match seconds {
        _ if seconds < 0.001 => format!("{:.0}us", seconds * 1e6),
        _ if seconds < 1.0 => format!("{:.1}ms", seconds * 1e3),
        _ if seconds < 60.0 => format!("{seconds:.1}s"),
        _ => age(seconds as u64),
    }
}

/// A number of bytes, in the unit that suits it.
pub(super) fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (count as f64, 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{count}B"),
        _ => format!("{value:.1}{}", units[unit]),
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
    fn a_name_cannot_control_the_terminal() {
        let text = table(["NAME"], [["a\x1b[2Jb\u{9b}1mc\nd\te".into()]]);
        assert_eq!(text, "NAME\na\u{fffd}[2Jb\u{fffd}1mc\u{fffd}d\u{fffd}e\n");
    }

    #[test]
    fn times_and_sizes_have_the_unit_that_suits_them() {
        assert_eq!(
            [0.000_042, 0.0123, 5.0, 75.0].map(time),
            ["42us", "12.3ms", "5.0s", "1m15s"]
        );
        assert_eq!(
            [0, 1023, 1536, 3 << 30].map(bytes),
            ["0B", "1023B", "1.5KiB", "3.0GiB"]
        );
    }

    #[test]
    fn ages_have_two_units() {
        assert_eq!(
            [59, 61, 3700, 90_000].map(age),
            ["59s", "1m1s", "1h1m", "1d1h"]
        );
    }
}
