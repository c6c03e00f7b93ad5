//! Which events are told as they are, which raise the count of an earlier one, which are told together, and which are not
//! told at all, so that an object in trouble does not fill the API. Pure. The numbers are those of upstream's clients.

use std::collections::VecDeque;

use jiff::{SignedDuration, Timestamp};

/// So many different messages for the same reason are told together.
const SIMILAR: usize = 10;

/// Messages further apart than this are not similar any more.
const WINDOW: SignedDuration = SignedDuration::from_mins(10);

/// So many events one object may have at once,
const BURST: u32 = 25;

/// and then one in each of these.
const REFILL: SignedDuration = SignedDuration::from_mins(5);

/// What is remembered of either kind; the oldest is forgotten first.
const REMEMBERED: usize = 1024;

/// Whether something is as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Normal,
    Warning,
}

/// The object that something happened to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// As in `Pod`, of the core group.
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

impl Subject {
    /// A Node, as Events name it: upstream's kubelet gives the name for the uid, and so `kubectl describe` finds them.
    pub fn node(name: &str) -> Subject {
        Subject {
            kind: "Node",
            namespace: "default".to_owned(),
            name: name.to_owned(),
            uid: name.to_owned(),
        }
    }
}

/// Something that happened to an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) subject: Subject,
    /// Which part of it.
    pub(super) field_path: Option<String>,
    pub(super) kind: Kind,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// What to do about an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    /// What to tell, which may stand for several.
    pub(super) entry: Entry,
    /// Name of the event that told it before, and how many times it happened by now.
    pub(super) again: Option<(String, i32)>,
    key: Key,
}

/// What makes two entries one event.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Key {
    Same(Entry),
    Similar(Group),
}

/// What similar entries have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    subject: Subject,
    reason: &'static str,
}

struct Messages {
    different: Vec<String>,
    last: Timestamp,
}

/// How many events an object may still have.
struct Bucket {
    left: u32,
    since: Timestamp,
}

/// Remembers what was told.
#[derive(Default)]
pub(super) struct Correlator {
    buckets: Recent<Subject, Bucket>,
    sent: Recent<Key, (String, i32)>,
    similar: Recent<Group, Messages>,
}

impl Correlator {
    /// How to tell of an entry; `None` if its object had too many lately.
    pub(super) fn tell(&mut self, entry: Entry, now: Timestamp) -> Option<Told> {
        self.take(&entry.subject, now)
            .then(|| self.group(entry, now))
    }

    fn take(&mut self, subject: &Subject, now: Timestamp) -> bool {
        let Some(bucket) = self.buckets.used(subject) else {
            let left = BURST - 1;
            let bucket = Bucket { left, since: now };
            self.buckets.put(subject.clone(), bucket);
            return true;
        };
        while bucket.left < BURST && now.duration_since(bucket.since) >= REFILL {
            bucket.left += 1;
            bucket.since += REFILL;
        }
        if bucket.left == BURST {
            bucket.since = now;
        }
        let may = bucket.left > 0;
        bucket.left -= u32::from(may);
        may
    }

    fn group(&mut self, entry: Entry, now: Timestamp) -> Told {
        let group = Group {
            subject: entry.subject.clone(),
            reason: entry.reason,
        };
        let (key, entry) = if self.is_one_of_many(&group, &entry.message, now) {
            let message = format!("(combined from similar events): {}", entry.message);
            (Key::Similar(group), Entry { message, ..entry })
        } else {
            (Key::Same(entry.clone()), entry)
        };
        let again = self.sent.used(&key).map(|(name, count)| {
            *count = count.saturating_add(1);
            (name.clone(), *count)
        });
        Told { entry, again, key }
    }

    /// Notes that an entry was told by a new event of this name.
    pub(super) fn sent(&mut self, told: Told, name: String) {
        self.sent.put(told.key, (name, 1));
    }

    fn is_one_of_many(&mut self, group: &Group, message: &str, now: Timestamp) -> bool {
        let Some(messages) = self.similar.used(group) else {
            let messages = Messages {
                different: vec![message.to_owned()],
                last: now,
            };
            self.similar.put(group.clone(), messages);
            return false;
        };
        if now.duration_since(messages.last) > WINDOW {
            messages.different.clear();
        }
        messages.last = now;
        if messages.different.iter().any(|known| known == message) {
            return false;
        }
        if messages.different.len() + 1 >= SIMILAR {
            return true;
        }
        messages.different.push(message.to_owned());
        false
    }
}

/// A small map that forgets what was not used for longest.
struct Recent<K, V>(VecDeque<(K, V)>);

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Recent(VecDeque::new())
    }
}

impl<K: PartialEq, V> Recent<K, V> {
    fn used(&mut self, key: &K) -> Option<&mut V> {
        let at = self.0.iter().position(|(known, _)| known == key)?;
        let entry = self.0.remove(at)?;
        self.0.push_back(entry);
        self.0.back_mut().map(|(_, value)| value)
    }

    fn put(&mut self, key: K, value: V) {
        self.0.retain(|(known, _)| *known != key);
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back((key, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(pod: &str, message: &str) -> Entry {
        Entry {
            subject: Subject {
                kind: "Pod",
                uid: pod.into(),
                namespace: "d".into(),
                name: pod.into(),
            },
            field_path: None,
            kind: Kind::Warning,
            reason: "Unhealthy",
            message: message.into(),
        }
    }

    /// Tells it, and has it sent if it is new.
    fn tell(correlator: &mut Correlator, entry: Entry, second: i64) -> Told {
        let now = Timestamp::from_second(second).unwrap();
        let told = correlator.tell(entry, now).expect("not too many");
        if told.again.is_none() {
            let name = format!("event-{}", told.entry.message);
            correlator.sent(told.clone(), name);
        }
        told
    }

    #[test]
    fn what_happens_again_raises_a_count() {
        let mut correlator = Correlator::default();
        assert_eq!(tell(&mut correlator, entry("a", "x"), 0).again, None);
        let again = tell(&mut correlator, entry("a", "x"), 1).again;
        assert_eq!(again, Some(("event-x".into(), 2)));
        assert_eq!(tell(&mut correlator, entry("b", "x"), 1).again, None);
    }

    #[test]
    fn the_tenth_different_message_within_ten_minutes_is_told_with_those_that_follow() {
        let mut correlator = Correlator::default();
        for n in 1..10 {
            let told = tell(&mut correlator, entry("a", &n.to_string()), n);
            assert_eq!(told.entry.message, n.to_string());
        }
        let tenth = tell(&mut correlator, entry("a", "10"), 10);
        assert_eq!(tenth.entry.message, "(combined from similar events): 10");
        let next = tell(&mut correlator, entry("a", "11"), 11);
        let name = format!("event-{}", tenth.entry.message);
        assert_eq!(next.again, Some((name, 2)));
        let known = tell(&mut correlator, entry("a", "3"), 12);
        assert_eq!(known.again, Some(("event-3".into(), 2)));
        let late = tell(&mut correlator, entry("a", "12"), 12 + 601);
        assert_eq!(late.entry.message, "12");
    }

    #[test]
    fn an_object_has_so_many_events_and_then_one_every_five_minutes() {
        let mut correlator = Correlator::default();
        let mut told = |second: i64| {
            let now = Timestamp::from_second(second).unwrap();
            correlator.tell(entry("a", "x"), now).is_some()
        };
        assert_eq!((0..100).filter(|_| told(0)).count(), BURST as usize);
        assert!(!told(299));
        assert!(told(300));
        assert!(!told(301));
        assert_eq!((0..100).filter(|_| told(1_000_000)).count(), BURST as usize);
        let now = Timestamp::from_second(0).unwrap();
        assert!(correlator.tell(entry("b", "x"), now).is_some());
    }

    #[test]
    fn the_oldest_is_forgotten_first() {
        let mut recent = Recent::default();
        for key in 0..REMEMBERED {
            recent.put(key, ());
        }
        assert!(recent.used(&0).is_some());
        recent.put(REMEMBERED, ());
        assert!(recent.used(&0).is_some(), "it was used since");
        assert!(recent.used(&1).is_none());
        assert_eq!(recent.0.len(), REMEMBERED);
    }
}
