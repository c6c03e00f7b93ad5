//! What a start does about what is pinned already: decided here, purely, performed by `load` and `take_over`.
//!
//! ```text
//! <bpf-dir>/v2/SERVICES …              maps of this ABI version
//! <bpf-dir>/v2/links/kn_sock_release … links of the programs that end sockets' rows: each version ends its own
//! <bpf-dir>/links/kn_connect4 …        all other links; a version that takes over makes them run its programs
//! <bpf-dir>/v1/ …                      an earlier or later version that still serves, or one that was set aside
//! ```

use std::collections::BTreeMap;

use agent_ebpf::abi::ABI_VERSION;
use serde::Serialize;

/// How a map is made: what has to agree between those that share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Layout {
    /// `BPF_MAP_TYPE_*`
    pub kind: u32,
    /// In bytes.
    pub key: u32,
    /// In bytes.
    pub value: u32,
    /// Rows; for a ring, bytes.
    pub size: u32,
}

/// Maps by name.
pub type Layouts = BTreeMap<String, Layout>;

/// The directories below the BPF directory that hold maps, by name, with what they hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found(pub BTreeMap<String, Layouts>);

/// What is taken over from another directory of maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Carried {
    /// Its rows are as ours are.
    Same,
    /// They are of ABI version 1.
    V1,
    /// This program cannot read them.
    Nothing,
}

/// Another directory of maps, whose programs serve until ours take over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Source {
    /// Its name below the BPF directory.
    pub directory: String,
    pub carried: Carried,
}

/// A map that is pinned in our directory but made in another way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    pub map: String,
    pub pinned: Layout,
    pub wanted: Layout,
}

/// What a start does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Maps of ours are there, and are used on.
    pub adopt: bool,
    /// Maps of ours differ: their directory gets this name, and is another version from then on.
    pub set_aside: Option<String>,
    pub differences: Vec<Difference>,
    /// Where state comes from, in order: the first that has a row wins. If there is any, our programs are attached only
    /// when our tables are complete.
    pub sources: Vec<Source>,
}

/// Whether a directory of this name is one version's, or one that was set aside. Others below the same directory are not
/// ours to touch.
pub(super) fn is_version(name: &str) -> bool {
    let Some(rest) = name.strip_prefix('v') else {
        return false;
    };
    let (number, aside) = rest.split_once('-').unwrap_or((rest, "0"));
    let is_number = !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit());
    is_number && !aside.is_empty()
}

/// The directory of this version's maps.
pub fn own_directory() -> String {
    format!("v{ABI_VERSION}")
}

/// Decides on what was `found`, for maps that are to be as `wanted`.
pub(super) fn plan(found: &Found, wanted: &Layouts) -> Plan {
    let own = own_directory();
    let ours = found.0.get(&own);
    let differences: Vec<Difference> = ours
        .into_iter()
        .flatten()
        .filter_map(|(map, pinned)| {
            let wanted = wanted.get(map)?;
            (pinned != wanted).then(|| Difference {
                map: map.clone(),
                pinned: *pinned,
                wanted: *wanted,
            })
        })
        .collect();
    let free = |n: &u32| !found.0.contains_key(&format!("{own}-{n}"));
    let set_aside = (!differences.is_empty())
        .then(|| (0..).find(free))
        .flatten()
        .map(|n| format!("{own}-{n}"));
    let others = found.0.iter().filter(|(name, _)| **name != own);
    let aside = set_aside.iter().zip(ours);
    let sources = aside
        .chain(others)
        .map(|(name, maps)| Source {
            directory: name.clone(),
            carried: carried(name, maps, wanted),
        })
        .collect();
    Plan {
        adopt: ours.is_some() && set_aside.is_none(),
        set_aside,
        differences,
        sources,
    }
}

fn carried(directory: &str, maps: &Layouts, wanted: &Layouts) -> Carried {
    let own = own_directory();
    if directory == "v1" {
        return Carried::V1;
    }
    // The number of rows may differ, the rows may not.
    let row = |layout: &Layout| (layout.kind, layout.key, layout.value);
    let same = maps
        .iter()
        .all(|(name, pinned)| wanted.get(name).map(row) == Some(row(pinned)));
    // `v2-0` is one that was set aside; `v20` is another version, whatever its rows look like.
    let aside = directory
        .strip_prefix(&own)
        .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()));
    match aside && same {
        true => Carried::Same,
        false => Carried::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: Layout = Layout {
        kind: 1,
        key: 20,
        value: 56,
        size: 1024,
    };

    fn maps(layout: Layout) -> Layouts {
        [("SERVICES".to_owned(), layout)].into()
    }

    fn planned<const N: usize>(found: [(&str, Layouts); N]) -> Plan {
        let found = found.map(|(name, maps)| (name.to_owned(), maps));
        plan(&Found(found.into()), &maps(TABLE))
    }

    fn sources(plan: &Plan) -> Vec<(&str, Carried)> {
        let sources = plan.sources.iter();
        sources
            .map(|source| (source.directory.as_str(), source.carried))
            .collect()
    }

    #[test]
    fn only_directories_of_versions_are_ours() {
        for ours in ["v1", "v2", "v10", "v2-0", "v2-before"] {
            assert!(is_version(ours), "{ours}");
        }
        for other in ["links", "v", "vx", "v2x", "v2-", "tc", "cilium", "v-1", ""] {
            assert!(!is_version(other), "{other}");
        }
    }

    #[test]
    fn nothing_pinned_is_a_first_install() {
        let plan = planned([]);
        assert!(!plan.adopt && plan.set_aside.is_none() && plan.sources.is_empty());
    }

    #[test]
    fn maps_of_ours_are_adopted() {
        let plan = planned([("v2", maps(TABLE))]);
        assert!(plan.adopt && plan.set_aside.is_none() && plan.sources.is_empty());
    }

    #[test]
    fn other_versions_serve_until_ours_takes_over_and_give_what_can_be_read() {
        let plan = planned([
            ("v1", maps(Layout { key: 8, ..TABLE })),
            ("v3", maps(TABLE)),
        ]);
        assert!(!plan.adopt);
        assert_eq!(
            sources(&plan),
            [("v1", Carried::V1), ("v3", Carried::Nothing)]
        );
    }

    #[test]
    fn an_upgrade_that_was_broken_off_is_continued() {
        let plan = planned([("v1", Layouts::new()), ("v2", maps(TABLE))]);
        assert!(plan.adopt && plan.set_aside.is_none());
        assert_eq!(sources(&plan), [("v1", Carried::V1)]);
    }

    #[test]
    fn maps_of_another_size_are_set_aside_and_read() {
        let smaller = Layout { size: 4, ..TABLE };
        let plan = planned([("v2", maps(smaller)), ("v2-0", maps(TABLE))]);
        assert!(!plan.adopt);
        assert_eq!(plan.set_aside.as_deref(), Some("v2-1"));
        let difference = Difference {
            map: "SERVICES".into(),
            pinned: smaller,
            wanted: TABLE,
        };
        assert_eq!(plan.differences, [difference]);
        assert_eq!(
            sources(&plan),
            [("v2-1", Carried::Same), ("v2-0", Carried::Same)]
        );
    }

    #[test]
    fn maps_of_other_rows_are_set_aside_and_not_read() {
        let plan = planned([("v2", maps(Layout { value: 48, ..TABLE }))]);
        assert_eq!(sources(&plan), [("v2-0", Carried::Nothing)]);
    }
}
