//! Indexes of a job's pods as text: `1,3-5,7`.

use std::collections::BTreeSet;

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

/// The text of a set of indexes: three or more in a row are an interval.
pub fn write(indexes: &BTreeSet<i32>) -> String {
    let mut runs: Vec<(i32, i32)> = Vec::new();
    for &index in indexes {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == index => *last = index,
            _ => runs.push((index, index)),
        }
    }
    let text = |(first, last): &(i32, i32)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    };
    runs.iter().map(text).collect::<Vec<_>>().join(",")
}

/// The same, read; what cannot be read is empty.
pub fn read(text: &str, completions: i32) -> BTreeSet<i32> {
    let intervals = parse(text, completions).unwrap_or_default();
    intervals
        .into_iter()
        .flat_map(|(first, last)| first..=last)
        .collect()
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

    proptest! {
        #[test]
        fn intervals_are_sets(a: BTreeSet<u8>, b: BTreeSet<u8>) {
            let [a, b] = [a, b].map(|set| set.into_iter().map(i32::from).collect::<BTreeSet<_>>());
            let read = |set| parse(&write(set), 256).unwrap();
            prop_assert_eq!(&super::read(&write(&a), 256), &a);
            prop_assert_eq!(count(&read(&a)), i32::try_from(a.len()).unwrap());
            prop_assert_eq!(overlap(&read(&a), &read(&b)), a.intersection(&b).next().copied());
        }
    }
}
