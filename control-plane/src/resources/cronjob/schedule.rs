//! Schedules in cron's five fields, as upstream's library reads them and complains of them.

use std::ops::RangeInclusive;

use k8s_openapi::jiff::tz::TimeZone;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ScheduleError {
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

/// When something happens.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Schedule {
    /// Whose times these are, where the text says it.
    pub(super) zone: Option<TimeZone>,
    pub(super) when: When,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum When {
    /// So many seconds after the last time; one at least.
    Every(u32),
    At(Fields),
}

/// A bit for each number that fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fields {
    pub(super) minutes: u64,
    pub(super) hours: u64,
    pub(super) days: u64,
    pub(super) months: u64,
    /// From Sunday on.
    pub(super) weekdays: u64,
    /// Days of the month and of the week: either is enough, unless one of them is any.
    pub(super) either_day: bool,
}

/// Reads a schedule.
pub(crate) fn parse(text: &str) -> Result<Schedule, ScheduleError> {
    let mut text = text;
    let mut zone = None;
    if text.is_empty() {
        return Err(ScheduleError::Empty);
    }
    if text.starts_with("TZ=") || text.starts_with("CRON_TZ=") {
        let (named, rest) = text.split_once(' ').unwrap_or((text, ""));
        let name = named.split_once('=').map_or("", |(_, zone)| zone);
        let found = TimeZone::get(name).map_err(|_| ScheduleError::Zone(name.to_owned()))?;
        (zone, text) = (Some(found), rest.trim());
    }
    let when = if text.starts_with('@') {
        descriptor(text)?
    } else {
        When::At(fields(text)?)
    };
    Ok(Schedule { zone, when })
}

fn fields(text: &str) -> Result<Fields, ScheduleError> {
    let parts: Vec<&str> = text.split_whitespace().collect();
    if parts.len() != FIELDS.len() {
        let parts = parts.into_iter().map(str::to_owned);
        return Err(ScheduleError::Fields(parts.collect()));
    }
    let mut found = [Matches::default(); FIELDS.len()];
    for ((part, field), found) in parts.into_iter().zip(&FIELDS).zip(&mut found) {
        for one in part.split(',').filter(|one| !one.is_empty()) {
            let more = range(one, field)?;
            found.numbers |= more.numbers;
            found.any |= more.any;
        }
    }
    let [minutes, hours, days, months, weekdays] = found;
    Ok(Fields {
        minutes: minutes.numbers,
        hours: hours.numbers,
        days: days.numbers,
        months: months.numbers,
        weekdays: weekdays.numbers,
        either_day: !days.any && !weekdays.any,
    })
}

fn descriptor(text: &str) -> Result<When, ScheduleError> {
    let at = match text {
        "@yearly" | "@annually" => "0 0 1 1 *",
        "@monthly" => "0 0 1 * *",
        "@weekly" => "0 0 * * 0",
        "@daily" | "@midnight" => "0 0 * * *",
        "@hourly" => "0 * * * *",
        _ => {
            let Some(duration) = text.strip_prefix("@every ") else {
                return Err(ScheduleError::Descriptor(text.to_owned()));
            };
            return match seconds(duration) {
                Some(seconds) => Ok(When::Every(seconds.max(1))),
                None => Err(ScheduleError::Duration(
                    text.to_owned(),
                    duration.to_owned(),
                )),
            };
        }
    };
    Ok(When::At(fields(at)?))
}

/// The whole seconds of a duration as Go writes it: `1h30m`, `-1.5s`, `0`. What is negative counts as none.
fn seconds(text: &str) -> Option<u32> {
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest.is_empty() {
        return None;
    }
    if rest == "0" {
        return Some(0);
    }
    let mut sum = 0.0;
    while !rest.is_empty() {
        let number = rest.len()
            - rest
                .trim_start_matches(|c: char| c.is_ascii_digit() || c == '.')
                .len();
        let (digits, after) = rest.split_at(number);
        let number: f64 = digits.parse().ok()?;
        // The longest first: `ms` is no `m`.
        let units = UNITS.iter().filter(|(unit, _)| after.starts_with(unit));
        let (unit, worth) = units.max_by_key(|(unit, _)| unit.len())?;
        sum += number * worth;
        rest = &after[unit.len()..];
    }
    // Longer than a century is as good as a century.
    Some(if text.starts_with('-') {
        0
    } else {
        sum.min(3e9) as u32
    })
}

/// Go's units, in seconds.
const UNITS: [(&str, f64); 8] = [
    ("ns", 1e-9),
    ("us", 1e-6),
    ("µs", 1e-6),
    ("μs", 1e-6),
    ("ms", 1e-3),
    ("s", 1.0),
    ("m", 60.0),
    ("h", 3600.0),
];

/// The numbers that a part of a field stands for.
#[derive(Clone, Copy, Default)]
struct Matches {
    numbers: u64,
    /// It leaves nothing out.
    any: bool,
}

/// `*`, `?`, `n`, `a-b`, and each of them with `/step`.
fn range(text: &str, field: &Field) -> Result<Matches, ScheduleError> {
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
    if step == 0 {
        return Err(ScheduleError::Step(own()));
    }
    let all = usize::try_from(step).unwrap_or(usize::MAX);
    let numbers = (start..=end).step_by(all).fold(0, |bits, n| bits | 1 << n);
    let any = matches!(first, "*" | "?") && step == 1;
    Ok(Matches { numbers, any })
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
            assert_eq!(parse(fine).err(), None, "{fine}");
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
            assert_eq!(parse(text).map_err(|e| e.to_string()), Err(why.to_owned()));
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text in "\\PC{0,40}") {
            let _ = parse(&text);
        }

        #[test]
        fn whatever_is_in_range_is_fine(minute in 0_u32..60, hour in 0_u32..24, day in 1_u32..32, month in 1_u32..13, weekday in 0_u32..7) {
            let schedule = format!("{minute} {hour} {day} {month} {weekday}");
            prop_assert!(parse(&schedule).is_ok());
        }
    }
}
