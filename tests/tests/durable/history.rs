//! Whether a history of reads and writes is one that a store may have which loses nothing and never looks back. Pure.
//!
//! Times are those of the one process that recorded it, so what ended before something else began came before it. Revisions
//! are the store's word on the order of all writes; [`check`] holds the answers against times and against each other.

use std::collections::BTreeMap;

/// A revision of the store.
pub type Revision = u64;

/// What a client asked, when, and what it heard.
#[derive(Clone, Debug)]
pub struct Operation {
    pub began: u64,
    pub ended: u64,
    pub what: What,
}

#[derive(Clone, Debug)]
pub enum What {
    /// A write of a value, another for each write, on condition that the key was last written at `based_on`.
    Write {
        key: String,
        value: u64,
        based_on: Revision,
        outcome: Outcome,
    },
    /// What a consistent read found, of one key or of all: for each its revision and value. A list has a revision itself.
    Read {
        found: BTreeMap<String, (Revision, u64)>,
        list: Option<Revision>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Acknowledged(Revision),
    /// It certainly did not happen.
    Refused,
    /// It may have happened, or may yet.
    Unknown,
}

/// What a watch that was never told to list again told, in its order.
#[derive(Clone, Debug)]
pub struct Watched {
    pub who: String,
    /// The revision after which it began.
    pub after: Revision,
    pub events: Vec<(String, Revision, u64)>,
}

/// What must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// Two writes were acknowledged with one revision.
    SameRevision(Revision),
    /// A write was acknowledged although another came between it and the revision that it was based on.
    LostUpdate { key: String, between: Revision },
    /// A write has a revision that is not later than one that was acknowledged before it began.
    Backwards { revision: Revision, floor: Revision },
    /// A read that began after `floor` had been acknowledged or read found something older.
    Stale {
        key: String,
        found: Option<Revision>,
        floor: Revision,
    },
    /// A list is older than what was acknowledged or listed before it began.
    StaleList { found: Revision, floor: Revision },
    /// A revision of a key has a value that is not the one written there.
    WrongValue { key: String, revision: Revision },
    /// A value that nobody wrote, that was refused, or that was seen before it was written.
    Phantom { key: String, value: u64 },
    /// A watch told of a revision twice, or of an earlier one after a later.
    Disorder { who: String, revision: Revision },
    /// A watch went on past an acknowledged write without telling of it.
    Missed { who: String, revision: Revision },
}

/// Everything that is wrong with a history.
pub fn check(operations: &[Operation], watches: &[Watched]) -> Vec<Violation> {
    let mut wrong = Vec::new();
    let written = Written::of(operations, &mut wrong);
    written.check_updates(operations, &mut wrong);
    check_times(operations, &mut wrong);
    for operation in operations {
        if let What::Read { found, .. } = &operation.what {
            for (key, (revision, value)) in found {
                written.check_value(key, *revision, *value, operation.ended, &mut wrong);
            }
        }
    }
    for watch in watches {
        check_watch(watch, &written, &mut wrong);
    }
    wrong
}

/// What was written, as far as the writers know.
struct Written {
    /// Acknowledged: revision to key and value.
    at: BTreeMap<Revision, (String, u64)>,
    /// Each value, by key, that may be there: from when on.
    possible: BTreeMap<(String, u64), u64>,
}

impl Written {
    fn of(operations: &[Operation], wrong: &mut Vec<Violation>) -> Self {
        let (mut at, mut possible) = (BTreeMap::new(), BTreeMap::new());
        for operation in operations {
            let What::Write {
                key,
                value,
                outcome,
                ..
            } = &operation.what
            else {
                continue;
            };
            if *outcome != Outcome::Refused {
                possible.insert((key.clone(), *value), operation.began);
            }
            if let Outcome::Acknowledged(revision) = outcome
                && at.insert(*revision, (key.clone(), *value)).is_some()
            {
                wrong.push(Violation::SameRevision(*revision));
            }
        }
        Self { at, possible }
    }

    fn check_updates(&self, operations: &[Operation], wrong: &mut Vec<Violation>) {
        let mut keys: BTreeMap<&str, Vec<Revision>> = BTreeMap::new();
        for (revision, (key, _)) in &self.at {
            keys.entry(key).or_default().push(*revision);
        }
        for operation in operations {
            let What::Write {
                key,
                based_on,
                outcome: Outcome::Acknowledged(revision),
                ..
            } = &operation.what
            else {
                continue;
            };
            if revision <= based_on {
                let (revision, floor) = (*revision, *based_on);
                wrong.push(Violation::Backwards { revision, floor });
            }
            let others = keys.get(key.as_str()).map_or(&[][..], Vec::as_slice);
            let next = others.partition_point(|other| other <= based_on);
            if let Some(between) = others.get(next).filter(|other| *other < revision) {
                wrong.push(Violation::LostUpdate {
                    key: key.clone(),
                    between: *between,
                });
            }
        }
    }

    /// `seen` is when the value had been seen at the latest.
    fn check_value(
        &self,
        key: &str,
        revision: Revision,
        value: u64,
        seen: u64,
        wrong: &mut Vec<Violation>,
    ) {
        let key = key.to_owned();
        match self.at.get(&revision) {
            Some(written) if *written != (key.clone(), value) => {
                wrong.push(Violation::WrongValue { key, revision });
            }
            Some(_) => {}
            None => {
                let from = self.possible.get(&(key.clone(), value));
                if from.is_none_or(|from| *from > seen) {
                    wrong.push(Violation::Phantom { key, value });
                }
            }
        }
    }
}

/// What was known when something began: nothing that is answered may be older.
#[derive(Default)]
struct Floor {
    keys: BTreeMap<String, Revision>,
    written: Revision,
    listed: Revision,
}

impl Floor {
    fn rise(&mut self, what: &What) {
        let mut key_at = |key: &String, revision: Revision| {
            let floor = self.keys.entry(key.clone()).or_default();
            *floor = revision.max(*floor);
        };
        match what {
            What::Write {
                key,
                outcome: Outcome::Acknowledged(revision),
                ..
            } => {
                key_at(key, *revision);
                self.written = self.written.max(*revision);
            }
            What::Write { .. } => {}
            What::Read { found, list } => {
                for (key, (revision, _)) in found {
                    key_at(key, *revision);
                }
                self.listed = self.listed.max(list.unwrap_or(0));
            }
        }
    }
}

/// Goes through the history in time.
fn check_times(operations: &[Operation], wrong: &mut Vec<Violation>) {
    let mut begun: Vec<&Operation> = operations.iter().collect();
    begun.sort_by_key(|operation| operation.began);
    let mut ended: Vec<&Operation> = operations.iter().collect();
    ended.sort_by_key(|operation| operation.ended);
    let mut ended = ended.into_iter().peekable();
    let mut floor = Floor::default();
    for operation in begun {
        while let Some(before) = ended.next_if(|before| before.ended < operation.began) {
            floor.rise(&before.what);
        }
        match &operation.what {
            What::Write {
                outcome: Outcome::Acknowledged(revision),
                ..
            } if *revision <= floor.written => wrong.push(Violation::Backwards {
                revision: *revision,
                floor: floor.written,
            }),
            What::Write { .. } => {}
            What::Read { found, list } => {
                let known = floor
                    .keys
                    .iter()
                    .filter(|(key, _)| list.is_some() || found.contains_key(*key));
                for (key, floor) in known {
                    let found = found.get(key).map(|(revision, _)| *revision);
                    if found < Some(*floor) {
                        wrong.push(Violation::Stale {
                            key: key.clone(),
                            found,
                            floor: *floor,
                        });
                    }
                }
                let floor = floor.listed.max(floor.written);
                if let Some(found) = list.filter(|found| *found < floor) {
                    wrong.push(Violation::StaleList { found, floor });
                }
            }
        }
    }
}

fn check_watch(watch: &Watched, written: &Written, wrong: &mut Vec<Violation>) {
    let mut last = watch.after;
    for (key, revision, value) in &watch.events {
        if *revision <= last {
            let (who, revision) = (watch.who.clone(), *revision);
            wrong.push(Violation::Disorder { who, revision });
        }
        last = last.max(*revision);
        // Whether it was told too early is the readers' matter.
        written.check_value(key, *revision, *value, u64::MAX, wrong);
    }
    let told: Vec<Revision> = watch
        .events
        .iter()
        .map(|(_, revision, _)| *revision)
        .collect();
    let due = written
        .at
        .range(watch.after + 1..=last.max(watch.after + 1));
    for (revision, _) in due.filter(|(revision, _)| **revision <= last) {
        if !told.contains(revision) {
            let (who, revision) = (watch.who.clone(), *revision);
            wrong.push(Violation::Missed { who, revision });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(times: [u64; 2], key: &str, value: u64, based_on: u64, outcome: Outcome) -> Operation {
        let [began, ended] = times;
        let key = key.to_owned();
        let what = What::Write {
            key,
            value,
            based_on,
            outcome,
        };
        Operation { began, ended, what }
    }

    fn acked(times: [u64; 2], key: &str, value: u64, based_on: u64, revision: u64) -> Operation {
        write(times, key, value, based_on, Outcome::Acknowledged(revision))
    }

    fn read(times: [u64; 2], key: &str, revision: u64, value: u64) -> Operation {
        let [began, ended] = times;
        let found = [(key.to_owned(), (revision, value))].into();
        let what = What::Read { found, list: None };
        Operation { began, ended, what }
    }

    fn list(times: [u64; 2], revision: u64, found: &[(&str, u64, u64)]) -> Operation {
        let [began, ended] = times;
        let found = found.iter();
        let found = found.map(|(key, revision, value)| ((*key).to_owned(), (*revision, *value)));
        let what = What::Read {
            found: found.collect(),
            list: Some(revision),
        };
        Operation { began, ended, what }
    }

    fn watched(after: u64, events: &[(&str, u64, u64)]) -> Watched {
        let events = events.iter();
        let events = events.map(|(key, revision, value)| ((*key).to_owned(), *revision, *value));
        Watched {
            who: "w".to_owned(),
            after,
            events: events.collect(),
        }
    }

    /// Two keys, some writes at the same time, one whose outcome nobody heard, one refused.
    fn good() -> Vec<Operation> {
        vec![
            acked([0, 10], "a", 1, 0, 5),
            acked([0, 12], "b", 2, 0, 4),
            read([20, 30], "a", 5, 1),
            acked([25, 40], "a", 3, 5, 6),
            // It may see either.
            read([26, 41], "a", 6, 3),
            write([42, 50], "b", 4, 4, Outcome::Unknown),
            write([42, 50], "a", 5, 5, Outcome::Refused),
            list([60, 70], 9, &[("a", 6, 3), ("b", 8, 4)]),
            acked([75, 80], "b", 6, 8, 10),
            read([81, 85], "b", 10, 6),
        ]
    }

    const EVENTS: [(&str, u64, u64); 4] = [("a", 5, 1), ("a", 6, 3), ("b", 8, 4), ("b", 10, 6)];

    fn with(more: Operation) -> Vec<Violation> {
        let mut history = good();
        history.push(more);
        check(&history, &[])
    }

    #[test]
    fn a_good_history_is_good() {
        assert_eq!(
            check(&good(), &[watched(4, &EVENTS), watched(6, &EVENTS[2..3])]),
            []
        );
    }

    #[test]
    fn a_lost_write_is_found() {
        // The last state is from before the last acknowledged write.
        let found = with(list([90, 95], 12, &[("a", 6, 3), ("b", 8, 4)]));
        let key = "b".to_owned();
        let stale = Violation::Stale {
            key,
            found: Some(8),
            floor: 10,
        };
        assert_eq!(found, [stale]);
        // A key that was written and is not in the list at all.
        let found = with(list([90, 95], 12, &[("b", 10, 6)]));
        let key = "a".to_owned();
        let gone = Violation::Stale {
            key,
            found: None,
            floor: 6,
        };
        assert_eq!(found, [gone]);
    }

    #[test]
    fn a_stale_read_is_found_of_what_was_written_and_of_what_was_read() {
        let stale = |found, floor| Violation::Stale {
            key: "a".to_owned(),
            found: Some(found),
            floor,
        };
        assert_eq!(with(read([41, 45], "a", 5, 1)), [stale(5, 6)]);
        // The write of 6 has no answer yet, but a reader has seen it.
        let early = vec![
            acked([0, 1], "a", 1, 0, 5),
            acked([2, 100], "a", 2, 5, 6),
            read([10, 20], "a", 6, 2),
            read([30, 40], "a", 5, 1),
        ];
        assert_eq!(check(&early, &[]), [stale(5, 6)]);
        let older = list([90, 95], 7, &[("a", 6, 3), ("b", 10, 6)]);
        assert_eq!(
            with(older),
            [Violation::StaleList {
                found: 7,
                floor: 10
            }]
        );
    }

    #[test]
    fn revisions_that_do_not_grow_are_found() {
        assert_eq!(
            with(acked([90, 95], "c", 9, 0, 10)),
            [
                Violation::SameRevision(10),
                Violation::Backwards {
                    revision: 10,
                    floor: 10
                },
                // Which of the two it is nobody knows.
                Violation::WrongValue {
                    key: "b".to_owned(),
                    revision: 10
                },
            ]
        );
        let found = with(acked([90, 95], "c", 9, 0, 7));
        assert_eq!(
            found,
            [Violation::Backwards {
                revision: 7,
                floor: 10
            }]
        );
    }

    #[test]
    fn an_update_that_overwrites_another_is_found() {
        let found = with(acked([90, 95], "a", 9, 5, 11));
        let key = "a".to_owned();
        assert_eq!(found, [Violation::LostUpdate { key, between: 6 }]);
    }

    #[test]
    fn values_that_cannot_be_there_are_found() {
        let wrong = Violation::WrongValue {
            key: "a".to_owned(),
            revision: 6,
        };
        assert_eq!(with(read([90, 95], "a", 6, 1)), [wrong]);
        let phantom = |value| {
            [Violation::Phantom {
                key: "a".to_owned(),
                value,
            }]
        };
        assert_eq!(with(read([90, 95], "a", 11, 77)), phantom(77));
        assert_eq!(
            with(read([90, 95], "a", 11, 5)),
            phantom(5),
            "it was refused"
        );
        let mut early = good();
        early.push(write([96, 97], "a", 8, 6, Outcome::Unknown));
        early.push(read([90, 95], "a", 11, 8));
        assert_eq!(check(&early, &[]), phantom(8), "it was not written yet");
    }

    #[test]
    fn a_watch_that_misses_or_repeats_is_found() {
        let who = || "w".to_owned();
        let missed = |revision| Violation::Missed {
            who: who(),
            revision,
        };
        let disorder = |revision| Violation::Disorder {
            who: who(),
            revision,
        };
        let judge = |watch: Watched| check(&good(), &[watch]);
        assert_eq!(
            judge(watched(4, &[EVENTS[0], EVENTS[2], EVENTS[3]])),
            [missed(6)]
        );
        assert_eq!(judge(watched(3, &EVENTS)), [missed(4)]);
        assert_eq!(
            judge(watched(4, &[EVENTS[0], EVENTS[1], EVENTS[1]])),
            [disorder(6)]
        );
        assert_eq!(judge(watched(4, &[EVENTS[1], EVENTS[0]])), [disorder(5)]);
        assert_eq!(judge(watched(4, &[])), []);
    }
}
