//! What a node may run short of, and how thresholds for that are written. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::node::status::scaled;
use crate::pod::spec::amount;

/// An eviction signal, in the order in which their thresholds are acted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    MemoryAvailable,
    NodefsAvailable,
    NodefsInodesFree,
    ImagefsAvailable,
    ImagefsInodesFree,
    PidAvailable,
}

impl Signal {
    /// All of them.
    pub const ALL: [Signal; 6] = [
        Signal::MemoryAvailable,
        Signal::NodefsAvailable,
        Signal::NodefsInodesFree,
        Signal::ImagefsAvailable,
        Signal::ImagefsInodesFree,
        Signal::PidAvailable,
    ];

    /// Its name in a kubelet's configuration.
    pub fn name(self) -> &'static str {
        match self {
            Signal::MemoryAvailable => "memory.available",
            Signal::NodefsAvailable => "nodefs.available",
            Signal::NodefsInodesFree => "nodefs.inodesFree",
            Signal::ImagefsAvailable => "imagefs.available",
            Signal::ImagefsInodesFree => "imagefs.inodesFree",
            Signal::PidAvailable => "pid.available",
        }
    }

    /// The resource that is short, as messages name it.
    pub fn resource(self) -> &'static str {
        match self {
            Signal::MemoryAvailable => "memory",
            Signal::NodefsAvailable | Signal::ImagefsAvailable => "ephemeral-storage",
            Signal::NodefsInodesFree | Signal::ImagefsInodesFree => "inodes",
            Signal::PidAvailable => "pids",
        }
    }

    /// The condition of the node that it stands behind.
    pub fn pressure(self) -> Pressure {
        match self {
            Signal::MemoryAvailable => Pressure::Memory,
            Signal::PidAvailable => Pressure::Pid,
            _ => Pressure::Disk,
        }
    }
}

impl FromStr for Signal {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Signal::ALL.into_iter().find(|signal| signal.name() == name);
        found.ok_or_else(|| {
            let known = Signal::ALL.map(Signal::name).join(", ");
            format!("{name:?} is no eviction signal; there are {known}")
        })
    }
}

/// A condition of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    Memory,
    Disk,
    Pid,
}

/// How much of something: bytes, inodes or processes, or a share of all that there is.
#[derive(Clone, Debug, PartialEq)]
pub enum Amount {
    Absolute(u64),
    Percent(f64),
}

impl Amount {
    /// The amount where there is so much in all.
    pub fn of(&self, capacity: u64) -> u64 {
        match self {
            Amount::Absolute(amount) => *amount,
            Amount::Percent(percent) => (capacity as f64 * percent / 100.0) as u64,
        }
    }
}

impl FromStr for Amount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = match text.strip_suffix('%') {
            Some(percent) => percent.parse().ok().filter(|percent| *percent <= 100.0),
            None => amount(&Quantity(text.to_owned())),
        };
        match number.filter(|number: &f64| *number >= 0.0) {
            None => Err(format!("{text:?} is neither a quantity nor a percentage")),
            Some(percent) if text.ends_with('%') => Ok(Amount::Percent(percent)),
            Some(number) => Ok(Amount::Absolute(number as u64)),
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Amount::Absolute(amount) => out.write_str(&quantity(*amount)),
            Amount::Percent(percent) => write!(out, "{percent}%"),
        }
    }
}

/// A number as the API writes it in powers of two: with the largest suffix that needs no fraction.
pub fn quantity(number: u64) -> String {
    scaled(number, 1024, &["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"])
}

/// A value for each of some signals, as flags have them.
#[derive(Clone, Debug, PartialEq)]
pub struct BySignal<T>(pub BTreeMap<Signal, T>);

impl<T> Default for BySignal<T> {
    fn default() -> Self {
        BySignal(BTreeMap::new())
    }
}

impl<T: Clone> BySignal<T> {
    pub fn get(&self, signal: Signal) -> Option<T> {
        self.0.get(&signal).cloned()
    }
}

impl<T: fmt::Display> BySignal<T> {
    /// As an object of a kubelet's configuration.
    pub fn to_json(&self) -> serde_json::Value {
        let pairs = self.0.iter();
        pairs
            .map(|(signal, value)| (signal.name().to_owned(), value.to_string().into()))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }
}

fn pairs<T>(
    text: &str,
    between: char,
    value: impl Fn(&str) -> Result<T, String>,
) -> Result<BySignal<T>, String> {
    let mut found = BTreeMap::new();
    for pair in text
        .split(',')
        .map(str::trim)
        .filter(|pair| !pair.is_empty())
    {
        let (signal, text) = pair
            .split_once(between)
            .ok_or_else(|| format!("{pair:?} is not SIGNAL{between}VALUE"))?;
        let signal: Signal = signal.trim().parse()?;
        if found.insert(signal, value(text.trim())?).is_some() {
            return Err(format!("{} is there twice", signal.name()));
        }
    }
    Ok(BySignal(found))
}

/// `memory.available<100Mi,nodefs.available<10%`
pub fn thresholds(text: &str) -> Result<BySignal<Amount>, String> {
    pairs(text, '<', str::parse)
}

/// `imagefs.available=2Gi`
pub fn reclaims(text: &str) -> Result<BySignal<Amount>, String> {
    pairs(text, '=', str::parse)
}

/// `memory.available=1m30s`
pub fn graces(text: &str) -> Result<BySignal<GoDuration>, String> {
    pairs(text, '=', str::parse)
}

/// A time as Go writes it: `1m30s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoDuration(pub SignedDuration);

impl FromStr for GoDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |why: String| format!("{text:?} is no time such as 1m30s: {why}");
        if text == "0" {
            return Ok(GoDuration(SignedDuration::ZERO));
        }
        let parsed: SignedDuration = text
            .parse()
            .map_err(|error: jiff::Error| bad(error.to_string()))?;
        match parsed.is_negative() {
            false => Ok(GoDuration(parsed)),
            true => Err(bad("it is negative".to_owned())),
        }
    }
}

impl fmt::Display for GoDuration {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        match (hours, minutes) {
            (0, 0) => write!(out, "{seconds}s"),
            (0, _) => write!(out, "{minutes}m{seconds}s"),
            _ => write!(out, "{hours}h{minutes}m{seconds}s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_read_as_the_kubelet_reads_them() {
        let read = thresholds("memory.available<1.5Gi, nodefs.available<10%").unwrap();
        assert_eq!(
            read.get(Signal::MemoryAvailable),
            Some(Amount::Absolute(3 << 29))
        );
        assert_eq!(
            read.get(Signal::NodefsAvailable),
            Some(Amount::Percent(10.0))
        );
        assert_eq!(read.get(Signal::PidAvailable), None);
        assert_eq!(
            read.to_json(),
            serde_json::json!({"memory.available": "1536Mi", "nodefs.available": "10%"})
        );
        assert_eq!(thresholds("").unwrap(), BySignal::default());
        for (text, why) in [
            ("memory.available", "is not SIGNAL<VALUE"),
            ("memory<1Gi", "is no eviction signal"),
            (
                "memory.available<lots",
                "neither a quantity nor a percentage",
            ),
            (
                "nodefs.available<101%",
                "neither a quantity nor a percentage",
            ),
            ("pid.available<1,pid.available<2", "is there twice"),
        ] {
            let error = thresholds(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn times_are_read_and_written_as_go_does() {
        for text in ["1m30s", "5m0s", "2h0m1s", "0s"] {
            let time: GoDuration = text.parse().unwrap();
            assert_eq!(time.to_string(), text);
        }
        assert_eq!("90s".parse::<GoDuration>().unwrap().to_string(), "1m30s");
        assert!("-1s".parse::<GoDuration>().is_err());
        let graces = graces("memory.available=1m30s").unwrap();
        assert_eq!(
            graces.get(Signal::MemoryAvailable),
            Some(GoDuration(SignedDuration::from_secs(90)))
        );
    }

    #[test]
    fn amounts_are_shares_or_numbers() {
        assert_eq!(Amount::Percent(15.0).of(1000), 150);
        assert_eq!(Amount::Absolute(7).of(1000), 7);
        assert_eq!(
            (quantity(100 << 20), quantity(1025), quantity(0)),
            ("100Mi".into(), "1025".into(), "0".into())
        );
    }
}
