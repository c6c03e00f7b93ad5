//! Indexes of a job's pods as text: `1,3-5,7`.

use std::fmt;

/// The intervals, in order and apart from each other. All are less than `completions`. The error is for people.
pub fn parse(text: &str, completions: i32) -> Result<Vec<(i32, i32)>, String> {
    let mut intervals: Vec<(i32, i32)> = Vec::new();
    if text.is_empty() {
        return Ok(intervals);
    }
    for part in text.split(',') {
        let (first, last) = interval(part, completions)?;
        if let Some((_, before)) = intervals.last()
            && *before >= first
        {
            return Err(not_increasing(*before, first));
        }
        intervals.push((first, last));
    }
    Ok(intervals)
}

fn not_increasing(previous: i32, current: i32) -> String {
    format!("non-increasing order, previous: {previous}, current: {current}")
}

fn interval(text: &str, completions: i32) -> Result<(i32, i32), String> {
    let index = |text: &str| {
        let index: i32 = text
            .parse()
            .map_err(|_| format!("cannot convert string to integer for index: {text:?}"))?;
        match index < completions {
            true => Ok(index),
            false => Err(format!("too large index: {text:?}")),
        }
    };
    let mut limits = text.split('-');
    match (
        limits.next().unwrap_or_default(),
        limits.next(),
        limits.next(),
    ) {
        (_, _, Some(_)) => Err(format!(
            "the fragment {text:?} violates the requirement that an index interval can have at most two parts separated by '-'"
        )),
        (first, None, _) => index(first).map(|first| (first, first)),
        (first, Some(last), None) => match (index(first)?, index(last)?) {
            (first, last) if first < last => Ok((first, last)),
            (first, last) => Err(not_increasing(first, last)),
        },
    }
}

/// A set of indexes, kept as its intervals: a few bytes of text can name billions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Indexes(Vec<(i32, i32)>);

impl Indexes {
    /// What the text names; nothing if it cannot be read.
    pub fn read(text: &str, completions: i32) -> Self {
        let mut all = Self::default();
        for (first, last) in parse(text, completions).unwrap_or_default() {
            all.push(first, last);
        }
        all
    }

    /// Adds an interval behind all others.
    fn push(&mut self, first: i32, last: i32) {
        match self.0.last_mut() {
            Some((_, end)) if *end + 1 == first => *end = last,
            _ => self.0.push((first, last)),
        }
    }

    pub fn insert(&mut self, index: i32) {
        if self.contains(index) {
            return;
        }
        let at = self.0.partition_point(|(_, last)| *last < index);
        let rest = self.0.split_off(at);
        self.push(index, index);
        for (first, last) in rest {
            self.push(first, last);
        }
    }

    pub fn contains(&self, index: i32) -> bool {
        let at = self.0.partition_point(|(_, last)| *last < index);
        self.0.get(at).is_some_and(|(first, _)| *first <= index)
    }

    pub fn len(&self) -> i32 {
        count(&self.0)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many indexes are in both.
    pub fn in_common(&self, other: &Self) -> i32 {
        let (mut a, mut b) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut common = 0;
        while let (Some(one), Some(two)) = (a.peek(), b.peek()) {
            let (first, last) = (one.0.max(two.0), one.1.min(two.1));
            if first <= last {
                common += last - first + 1;
            }
            if one.1 < two.1 {
                a.next();
            } else {
                b.next();
            }
        }
        common
    }
}

/// As it stands in a status: three or more in a row are an interval.
impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (first, last)) in self.0.iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            match last - first {
                0 => write!(f, "{comma}{first}")?,
                1 => write!(f, "{comma}{first},{last}")?,
                _ => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// How many indexes there are.
pub(super) fn count(intervals: &[(i32, i32)]) -> i32 {
    intervals.iter().map(|(first, last)| last - first + 1).sum()
}

/// The first index that is in both.
pub(super) fn overlap(a: &[(i32, i32)], b: &[(i32, i32)]) -> Option<i32> {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    while let (Some(one), Some(other)) = (a.peek(), b.peek()) {
        if one.0 <= other.1 && other.0 <= one.1 {
            return Some(one.0.max(other.0));
        }
        if one.0 <= other.0 {
            a.next();
        } else {
            b.next();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn what_is_wrong_is_said() {
        for (text, why) in [
            ("1-2-3", "the fragment \"1-2-3\" violates the requirement"),
            ("x", "cannot convert string to integer for index: \"x\""),
            ("10", "too large index: \"10\""),
            ("1,1", "non-increasing order, previous: 1, current: 1"),
            ("5-3", "non-increasing order, previous: 5, current: 3"),
            ("0-3,3", "non-increasing order, previous: 3, current: 3"),
        ] {
            let error = parse(text, 10).unwrap_err();
            assert!(error.starts_with(why), "{text}: {error}");
        }
        assert_eq!(parse("", 0), Ok(vec![]));
        assert_eq!(parse("0,2-4,9", 10), Ok(vec![(0, 0), (2, 4), (9, 9)]));
    }

    fn set(indexes: &BTreeSet<i32>) -> Indexes {
        let mut all = Indexes::default();
        // In another order than theirs.
        indexes.iter().rev().for_each(|index| all.insert(*index));
        all
    }

    #[test]
    fn a_few_bytes_are_a_few_bytes() {
        let all = Indexes::read("0-2147483645", i32::MAX);
        assert_eq!(
            (all.len(), all.to_string().as_str()),
            (i32::MAX - 1, "0-2147483645")
        );
        assert!(all.contains(7) && !all.contains(i32::MAX));
    }

    proptest! {
        #[test]
        fn intervals_are_sets(a: BTreeSet<u8>, b: BTreeSet<u8>) {
            let [a, b] = [a, b].map(|set| set.into_iter().map(i32::from).collect::<BTreeSet<_>>());
            let text = set(&a).to_string();
            let parsed = |set: &Indexes| parse(&set.to_string(), 256).unwrap();
            prop_assert_eq!(Indexes::read(&text, 256), set(&a));
            prop_assert_eq!(set(&a).len(), i32::try_from(a.len()).unwrap());
            prop_assert!((0..256).all(|index| set(&a).contains(index) == a.contains(&index)));
            let both: Vec<_> = a.intersection(&b).copied().collect();
            prop_assert_eq!(set(&a).in_common(&set(&b)), i32::try_from(both.len()).unwrap());
            prop_assert_eq!(overlap(&parsed(&set(&a)), &parsed(&set(&b))), both.first().copied());
        }
    }
}
