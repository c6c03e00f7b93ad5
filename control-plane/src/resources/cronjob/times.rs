//! When a schedule's next time is, and which ones were missed.
//!
//! Where clocks are put forward, times that there are not that day are left out; where they are put back, an hour's times
//! come twice, as with upstream's library.

use k8s_openapi::jiff::civil::{Date, DateTime};
use k8s_openapi::jiff::tz::TimeZone;
use k8s_openapi::jiff::{Span, Timestamp};

use super::schedule::{Fields, Schedule, When};

const MINUTE: i64 = 60;
/// A day that does not come within so many years does not come: the 29th of February does, the 30th does not.
const YEARS: i64 = 9;
/// More missed times than this are not counted.
pub(crate) const MANY: usize = 100;

/// The last time of a schedule that has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) at: Timestamp,
    /// More than [`MANY`] came since the start.
    pub(crate) too_many: bool,
}

impl Schedule {
    /// The first time after `now`; `None` when there is none. What comes every so often is counted from `start`. `local` is
    /// whose times these are, unless the schedule says it itself.
    pub(crate) fn next(
        &self,
        start: Timestamp,
        now: Timestamp,
        local: &TimeZone,
    ) -> Option<Timestamp> {
        match &self.when {
            When::Every(seconds) => {
                later(start, i64::from(*seconds), passed(start, now, *seconds) + 1)
            }
            When::At(fields) => fields.next(now, self.zone.as_ref().unwrap_or(local)),
        }
    }

    /// The last time after `start` that is not after `now`.
    pub(crate) fn due(&self, start: Timestamp, now: Timestamp, local: &TimeZone) -> Option<Due> {
        match &self.when {
            When::Every(seconds) => {
                let times = passed(start, now, *seconds);
                let at = later(start, i64::from(*seconds), times).filter(|_| times > 0)?;
                let too_many = usize::try_from(times).is_ok_and(|times| times > MANY);
                Some(Due { at, too_many })
            }
            When::At(fields) => fields.due(start, now, self.zone.as_ref().unwrap_or(local)),
        }
    }
}

/// How many times have come since `start`.
fn passed(start: Timestamp, now: Timestamp, seconds: u32) -> i64 {
    let gone = now.as_second().saturating_sub(start.as_second());
    gone.max(0) / i64::from(seconds.max(1))
}

impl Fields {
    fn due(&self, start: Timestamp, now: Timestamp, zone: &TimeZone) -> Option<Due> {
        let next = |after| self.next(after, zone).filter(|at| *at <= now);
        let mut last = None;
        for _ in 0..=MANY {
            match next(last.unwrap_or(start)) {
                None => {
                    return last.map(|at| Due {
                        at,
                        too_many: false,
                    });
                }
                some => last = some,
            }
        }
        // Times are not counted one by one from the start of a year to its end: the last one is looked for from the end.
        let mut back = MINUTE;
        loop {
            let from = now.as_second().saturating_sub(back);
            let from = Timestamp::from_second(from).unwrap_or(start).max(start);
            if let Some(mut at) = next(from) {
                while let Some(later) = next(at) {
                    at = later;
                }
                return Some(Due { at, too_many: true });
            }
            if from == start {
                return None;
            }
            back = back.saturating_mul(2);
        }
    }

    /// Whether some moment fits; a field of commas alone names no number.
    fn fits_any(&self) -> bool {
        let days = match self.either_day {
            true => self.days | self.weekdays,
            false => self.days.min(self.weekdays),
        };
        [self.minutes, self.hours, days, self.months]
            .iter()
            .all(|bits| *bits != 0)
    }

    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        if !self.fits_any() {
            return None;
        }
        let whole = after.as_second().div_euclid(MINUTE) * MINUTE;
        let mut at = Timestamp::from_second(whole + MINUTE).ok()?;
        let last = zone.to_datetime(after).date();
        let last = last.checked_add(Span::new().years(YEARS)).ok()?;
        loop {
            let local = zone.to_datetime(at);
            let date = local.date();
            if date > last {
                return None;
            }
            let step = if !has(self.months, date.month()) {
                let next = date
                    .first_of_month()
                    .checked_add(Span::new().months(1))
                    .ok()?;
                begin(next, zone)?
            } else if !self.is_day(date) {
                begin(date.tomorrow().ok()?, zone)?
            } else if !has(self.hours, local.hour()) {
                later(at, MINUTE, 60 - i64::from(local.minute()))?
            } else if !has(self.minutes, local.minute()) {
                later(at, MINUTE, 1)?
            } else {
                return Some(at);
            };
            at = step.max(later(at, MINUTE, 1)?);
        }
    }

    fn is_day(&self, date: Date) -> bool {
        let of_month = has(self.days, date.day());
        let of_week = has(self.weekdays, date.weekday().to_sunday_zero_offset());
        if self.either_day {
            of_month || of_week
        } else {
            of_month && of_week
        }
    }
}

fn has(bits: u64, number: i8) -> bool {
    bits & (1 << number) != 0
}

fn later(at: Timestamp, seconds: i64, times: i64) -> Option<Timestamp> {
    let all = seconds.checked_mul(times)?;
    Timestamp::from_second(at.as_second().checked_add(all)?).ok()
}

/// The first moment of a day.
fn begin(date: Date, zone: &TimeZone) -> Option<Timestamp> {
    let midnight: DateTime = date.to_datetime(Default::default());
    zone.to_ambiguous_timestamp(midnight).compatible().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::schedule::parse;
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn next(schedule: &str, after: &str) -> Option<String> {
        let schedule = parse(schedule).unwrap();
        schedule
            .next(at(after), at(after), &TimeZone::UTC)
            .map(|at| at.to_string())
    }

    #[test]
    fn the_next_time_is_the_first_that_fits_all_fields() {
        for (schedule, after, then) in [
            ("* * * * *", "2026-03-01T10:00:00Z", "2026-03-01T10:01:00Z"),
            (
                "*/5 * * * *",
                "2026-03-01T10:04:59Z",
                "2026-03-01T10:05:00Z",
            ),
            ("30 2 * * *", "2026-03-01T02:30:00Z", "2026-03-02T02:30:00Z"),
            ("0 0 29 2 *", "2026-03-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            (
                "0 0 * * mon",
                "2026-03-01T00:00:00Z",
                "2026-03-02T00:00:00Z",
            ),
            // Either is enough: the 13th, or a Friday.
            (
                "0 0 13 * fri",
                "2026-03-01T00:00:00Z",
                "2026-03-06T00:00:00Z",
            ),
            (
                "0 0 */2 * fri",
                "2026-03-01T00:00:00Z",
                "2026-03-03T00:00:00Z",
            ),
            ("@monthly", "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"),
            (
                "@every 90s",
                "2026-03-01T10:00:00.5Z",
                "2026-03-01T10:01:30Z",
            ),
        ] {
            assert_eq!(next(schedule, after).as_deref(), Some(then), "{schedule}");
        }
        assert_eq!(next("0 0 30 2 *", "2026-03-01T00:00:00Z"), None);
    }

    #[test]
    fn clocks_are_put_forward_and_back() {
        let Ok(zone) = TimeZone::get("Europe/Berlin") else {
            panic!("there is a database of time zones");
        };
        let schedule = parse("30 2 * * *").unwrap();
        let times = |after: &str| {
            let next = |after| schedule.next(after, after, &zone).unwrap();
            let first = next(at(after));
            (first.to_string(), next(first).to_string())
        };
        // At 02:00 on the 29th of March it is 03:00.
        let told = (
            String::from("2026-03-28T01:30:00Z"),
            String::from("2026-03-30T00:30:00Z"),
        );
        assert_eq!(times("2026-03-27T12:00:00Z"), told);
        // At 03:00 on the 25th of October it is 02:00.
        let told = (
            String::from("2026-10-25T00:30:00Z"),
            String::from("2026-10-25T01:30:00Z"),
        );
        assert_eq!(times("2026-10-24T12:00:00Z"), told);
    }

    #[test]
    fn what_comes_every_so_often_is_counted_from_its_start() {
        let (start, now) = (at("2026-03-01T12:00:00Z"), at("2026-03-01T12:50:00Z"));
        let schedule = parse("@every 20m").unwrap();
        let next = schedule.next(start, now, &TimeZone::UTC);
        assert_eq!(next, Some(at("2026-03-01T13:00:00Z")));
        let due = |now| schedule.due(start, now, &TimeZone::UTC);
        assert_eq!(due(now).map(|due| due.at), Some(at("2026-03-01T12:40:00Z")));
        assert_eq!(due(at("2026-03-01T12:19:59Z")), None);
        let late = due(at("2026-04-01T12:19:59Z")).unwrap();
        assert_eq!((late.at, late.too_many), (at("2026-04-01T12:00:00Z"), true));
    }

    #[test]
    fn a_schedule_without_a_moment_has_none() {
        for never in [
            ", * * * *",
            "* , * * *",
            "* * , * *",
            "* * , * ,",
            "* * * , *",
        ] {
            assert_eq!(next(never, "2026-03-01T00:00:00Z"), None, "{never}");
        }
    }

    #[test]
    fn the_last_of_many_missed_times_is_found() {
        let schedule = parse("* * 1 1 *").unwrap();
        let due = schedule.due(
            at("2025-06-01T00:00:00Z"),
            at("2026-11-01T00:00:00Z"),
            &TimeZone::UTC,
        );
        let last = at("2026-01-01T23:59:00Z");
        assert_eq!(
            due,
            Some(Due {
                at: last,
                too_many: true
            })
        );
    }

    proptest! {
        #[test]
        fn no_time_is_left_out(minute in 0_u32..60, step in 1_u32..30, hour in 0_u32..24, start in 1_700_000_000_i64..1_800_000_000, ahead in 1_i64..500_000) {
            let schedule = parse(&format!("{minute}/{step} {hour} * * *")).unwrap();
            let start = Timestamp::from_second(start).unwrap();
            let now = later(start, ahead, 1).unwrap();
            let fits = |at: &i64| {
                let local = TimeZone::UTC.to_datetime(Timestamp::from_second(*at).unwrap());
                let (h, m) = (u32::try_from(local.hour()).unwrap(), u32::try_from(local.minute()).unwrap());
                at % MINUTE == 0 && h == hour && m >= minute && (m - minute) % step == 0
            };
            let (from, to) = (start.as_second(), now.as_second());
            let last = (from + 1..=to).rev().find(fits);
            let due = schedule.due(start, now, &TimeZone::UTC);
            prop_assert_eq!(due.map(|due| due.at.as_second()), last);
            let first = (from + 1..).find(fits);
            prop_assert_eq!(schedule.next(start, start, &TimeZone::UTC).map(|at| at.as_second()), first);
        }
    }
}
