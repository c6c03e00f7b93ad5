//! Schedules in cron's five fields, as upstream's library reads them and complains of them.

use std::ops::RangeInclusive;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ScheduleError {
    #[error("empty spec string")]
    Empty,
    #[error("expected exactly 5 fields, found {}: [{}]", .0.len(), .0.join(" "))]
    Fields(Vec<String>),
    #[error("unrecognized descriptor: {0}")]
    Descriptor(String),
    #[error("failed to parse duration {0}: time: invalid duration {1:?}")]
    Duration(String, String),
    #[error("provided bad location {0}: unknown time zone {0}")]
    Zone(String),
    #[error("too many hyphens: {0}")]
    Hyphens(String),
    #[error("too many slashes: {0}")]
    Slashes(String),
    #[error("failed to parse int from {0}: strconv.Atoi: parsing {0:?}: invalid syntax")]
    Number(String),
    #[error("beginning of range ({0}) below minimum ({1}): {2}")]
    Below(u32, u32, String),
    #[error("end of range ({0}) above maximum ({1}): {2}")]
    Above(u32, u32, String),
    #[error("beginning of range ({0}) beyond end of range ({1}): {2}")]
    Order(u32, u32, String),
    #[error("step of range should be a positive number: {0}")]
    Step(String),
}

const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// What one of the five fields may hold. Names stand for the numbers from the first on.
struct Field {
    numbers: RangeInclusive<u32>,
    names: &'static [&'static str],
}

const FIELDS: [Field; 5] = [
    Field {
        numbers: 0..=59,
        names: &[],
    },
    Field {
        numbers: 0..=23,
        names: &[],
    },
    Field {
        numbers: 1..=31,
        names: &[],
    },
    Field {
        numbers: 1..=12,
        names: &MONTHS,
    },
    Field {
        numbers: 0..=6,
        names: &DAYS,
    },
];

/// Whether the text is a schedule.
pub(super) fn check(text: &str) -> Result<(), ScheduleError> {
    let mut text = text;
    if text.is_empty() {
        return Err(ScheduleError::Empty);
    }
    if text.starts_with("TZ=") || text.starts_with("CRON_TZ=") {
        let (zone, rest) = text.split_once(' ').unwrap_or((text, ""));
        let zone = zone.split_once('=').map_or("", |(_, zone)| zone);
        if k8s_openapi::jiff::tz::TimeZone::get(zone).is_err() {
            return Err(ScheduleError::Zone(zone.to_owned()));
        }
        text = rest.trim();
    }
    if text.starts_with('@') {
        return descriptor(text);
    }
    let parts: Vec<&str> = text.split_whitespace().collect();
    if parts.len() != FIELDS.len() {
        let parts = parts.into_iter().map(str::to_owned);
        return Err(ScheduleError::Fields(parts.collect()));
    }
    for (part, field) in parts.into_iter().zip(&FIELDS) {
        for one in part.split(',').filter(|one| !one.is_empty()) {
            range(one, field)?;
        }
    }
    Ok(())
}

fn descriptor(text: &str) -> Result<(), ScheduleError> {
    const KNOWN: [&str; 7] = [
        "@yearly",
        "@annually",
        "@monthly",
        "@weekly",
        "@daily",
        "@midnight",
        "@hourly",
    ];
    if KNOWN.contains(&text) {
        return Ok(());
    }
    match text.strip_prefix("@every ") {
        Some(duration) if is_duration(duration) => Ok(()),
        Some(duration) => Err(ScheduleError::Duration(
            text.to_owned(),
            duration.to_owned(),
        )),
        None => Err(ScheduleError::Descriptor(text.to_owned())),
    }
}

/// A duration as Go writes it: `1h30m`, `-1.5s`, `0`.
fn is_duration(text: &str) -> bool {
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return true;
    }
    while !rest.is_empty() {
        let number = rest.len()
            - rest
                .trim_start_matches(|c: char| c.is_ascii_digit() || c == '.')
                .len();
        let (digits, after) = rest.split_at(number);
        let is_number =
            digits.bytes().any(|byte| byte.is_ascii_digit()) && digits.matches('.').count() <= 1;
        let units = ["ns", "us", "µs", "μs", "ms", "s", "m", "h"];
        // The longest first: `ms` is no `m`.
        let unit = units.into_iter().filter(|unit| after.starts_with(unit));
        match unit.max_by_key(|unit| unit.len()) {
            Some(unit) if is_number => rest = &after[unit.len()..],
            _ => return false,
        }
    }
    !text.is_empty() && !text.ends_with(['-', '+'])
}

/// `*`, `?`, `n`, `a-b`, and each of them with `/step`.
fn range(text: &str, field: &Field) -> Result<(), ScheduleError> {
    let own = || text.to_owned();
    let mut steps = text.split('/');
    let (limits, step, more) = (steps.next().unwrap_or_default(), steps.next(), steps.next());
    let mut parts = limits.split('-');
    let (first, last) = (parts.next().unwrap_or_default(), parts.next());
    let (least, most) = (*field.numbers.start(), *field.numbers.end());
    let (start, mut end) = if matches!(first, "*" | "?") {
        (least, most)
    } else {
        let start = number(first, field)?;
        match (last, parts.next()) {
            (None, _) => (start, start),
            (Some(last), None) => (start, number(last, field)?),
            (Some(_), Some(_)) => return Err(ScheduleError::Hyphens(own())),
        }
    };
    let step = match (step, more) {
        (None, _) => 1,
        (Some(step), None) => plain_number(step)?,
        (Some(_), Some(_)) => return Err(ScheduleError::Slashes(own())),
    };
    // `n/step` goes on to the end.
    if text.contains('/') && last.is_none() {
        end = most;
    }
    if start < least {
        return Err(ScheduleError::Below(start, least, own()));
    }
    if end > most {
        return Err(ScheduleError::Above(end, most, own()));
    }
    if start > end {
        return Err(ScheduleError::Order(start, end, own()));
    }
    match step {
        0 => Err(ScheduleError::Step(own())),
        _ => Ok(()),
    }
}

fn number(text: &str, field: &Field) -> Result<u32, ScheduleError> {
    let name = text.to_ascii_lowercase();
    match field.names.iter().position(|known| *known == name) {
        // There are at most twelve.
        Some(place) => Ok(field.numbers.start() + u32::try_from(place).unwrap_or_default()),
        None => plain_number(text),
    }
}

fn plain_number(text: &str) -> Result<u32, ScheduleError> {
    text.parse()
        .map_err(|_| ScheduleError::Number(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn schedules_are_read_as_cron_does() {
        for fine in [
            "* * * * *",
            "*/5 0-23/2 1,15 JAN-mar ?",
            "0 0 31 12 sat",
            "5/10 * * * *",
            "@hourly",
            "@every 1h30m",
            "@every 1.5s",
            "TZ=UTC 0 0 * * *",
            "  0   0 * * *  ",
        ] {
            assert_eq!(check(fine), Ok(()), "{fine}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_as_upstream_does() {
        for (text, why) in [
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            (
                "5-3 * * * *",
                "beginning of range (5) beyond end of range (3): 5-3",
            ),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("1/2/3 * * * *", "too many slashes: 1/2/3"),
            (
                "*/0 * * * *",
                "step of range should be a positive number: */0",
            ),
            (
                "x * * * *",
                "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax",
            ),
            ("* * * * 7", "end of range (7) above maximum (6): 7"),
            ("@often", "unrecognized descriptor: @often"),
            (
                "@every day",
                "failed to parse duration @every day: time: invalid duration \"day\"",
            ),
            (
                "TZ=X/Y * * * * *",
                "provided bad location X/Y: unknown time zone X/Y",
            ),
        ] {
            assert_eq!(check(text).map_err(|e| e.to_string()), Err(why.to_owned()));
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text in "\\PC{0,40}") {
            let _ = check(&text);
        }

        #[test]
        fn whatever_is_in_range_is_fine(minute in 0_u32..60, hour in 0_u32..24, day in 1_u32..32, month in 1_u32..13, weekday in 0_u32..7) {
            let schedule = format!("{minute} {hour} {day} {month} {weekday}");
            prop_assert_eq!(check(&schedule), Ok(()));
        }
    }
}
