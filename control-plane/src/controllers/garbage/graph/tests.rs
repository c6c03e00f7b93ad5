//! Trees of owners, small ones and random ones.

use proptest::prelude::*;

use super::*;

fn thing(name: &str, owners: &[&str]) -> Thing {
    let owners = owners.iter().map(|uid| OwnerReference {
        uid: (*uid).to_owned(),
        name: (*uid).to_owned(),
        kind: "K".into(),
        api_version: "v1".into(),
        controller: None,
        block_owner_deletion: Some(true),
    });
    Thing {
        place: Place {
            api_version: "v1".into(),
            kind: "K".into(),
            namespace: "ns".into(),
            name: name.into(),
        },
        owners: owners.collect(),
        deleting: false,
        foreground: false,
        orphan: false,
    }
}

fn set(uids: &[&str]) -> BTreeSet<String> {
    uids.iter().map(|uid| (*uid).to_owned()).collect()
}

fn decide(graph: &Graph, uid: &str, absent: &[&str]) -> Action {
    graph.decide(
        uid,
        &absent.iter().map(|uid| (*uid).to_owned()).collect(),
        &HashSet::new(),
    )
}

/// A graph of no kind that is not listed.
fn whole() -> Graph {
    let mut graph = Graph::default();
    graph.follow(&HashSet::new(), []);
    graph
}

#[test]
fn nobody_is_let_go_before_all_dependents_are_known() {
    let kinds: HashSet<String> = ["batch/v1/Job", "x/v1/Gone"].map(Into::into).into();
    let mut graph = Graph::default();
    let mut held = |orphan| {
        let name = if orphan { "o" } else { "f" };
        let thing = Thing {
            deleting: true,
            orphan,
            foreground: !orphan,
            ..thing(name, &[])
        };
        graph.put(name, thing);
    };
    held(true);
    held(false);
    graph.put("d", thing("d", &["f"]));
    graph.put("lost", thing("lost", &["none"]));
    let answers = |graph: &Graph| ["o", "f"].map(|uid| decide(graph, uid, &[]));
    assert_eq!(answers(&graph), [Action::Wait, Action::Wait]);
    graph.follow(&kinds, kinds.clone());
    graph.listed("x/v1/Other");
    assert_eq!(answers(&graph), [Action::Wait, Action::Wait]);
    assert_eq!(
        decide(&graph, "d", &[]),
        Action::Delete { foreground: true },
        "it may have dependents of its own"
    );
    assert_eq!(
        decide(&graph, "lost", &["none"]),
        Action::Delete { foreground: false },
        "others go on"
    );
    graph.put("late", thing("late", &["o"]));
    graph.listed("batch/v1/Job");
    assert_eq!(answers(&graph), [Action::Wait, Action::Wait]);
    // It cannot be listed any more.
    graph.follow(&["batch/v1/Job".to_owned()].into(), []);
    assert_eq!(
        answers(&graph),
        [Action::Orphan(set(&["late"])), Action::Nothing]
    );
}

#[test]
fn a_dependent_goes_only_when_the_server_says_that_its_owner_is_gone() {
    let mut graph = whole();
    graph.put("o", thing("o", &[]));
    graph.put("d", thing("d", &["o"]));
    assert_eq!(decide(&graph, "d", &[]), Action::Nothing);
    assert_eq!(graph.remove("o"), set(&["d"]));
    assert!(matches!(decide(&graph, "d", &[]), Action::Verify(unknown) if unknown.len() == 1));
    assert_eq!(
        decide(&graph, "d", &["o"]),
        Action::Delete { foreground: false }
    );
}

#[test]
fn one_solid_owner_keeps_it_and_the_others_are_forgotten() {
    let mut graph = whole();
    graph.put("o", thing("o", &[]));
    graph.put("d", thing("d", &["o", "gone"]));
    assert_eq!(
        decide(&graph, "d", &["gone"]),
        Action::Disown(set(&["gone"]))
    );
}

#[test]
fn foreground_takes_the_leaves_first() {
    let mut graph = whole();
    graph.put("o", thing("o", &[]));
    graph.put("m", thing("m", &["o"]));
    graph.put("l", thing("l", &["m"]));
    let going = Thing {
        deleting: true,
        foreground: true,
        ..thing("o", &[])
    };
    assert_eq!(graph.put("o", going), set(&["o", "m"]));
    assert_eq!(decide(&graph, "o", &[]), Action::Nothing);
    assert_eq!(
        decide(&graph, "m", &[]),
        Action::Delete { foreground: true }
    );
    graph.put(
        "m",
        Thing {
            deleting: true,
            foreground: true,
            ..thing("m", &["o"])
        },
    );
    assert_eq!(
        decide(&graph, "l", &[]),
        Action::Delete { foreground: false }
    );
    assert_eq!(graph.remove("l"), set(&["m"]));
    assert_eq!(decide(&graph, "m", &[]), Action::ReleaseForeground);
    assert_eq!(graph.remove("m"), set(&["o"]));
    assert_eq!(decide(&graph, "o", &[]), Action::ReleaseForeground);
}

#[test]
fn foreground_may_be_asked_for_later() {
    let mut graph = whole();
    graph.put("o", thing("o", &[]));
    graph.put("d", thing("d", &["o"]));
    let mut going = Thing {
        deleting: true,
        ..thing("o", &[])
    };
    graph.put("o", going.clone());
    assert_eq!(decide(&graph, "d", &[]), Action::Nothing);
    going.foreground = true;
    assert_eq!(graph.put("o", going), set(&["o", "d"]));
    assert_eq!(
        decide(&graph, "d", &[]),
        Action::Delete { foreground: false }
    );
}

#[test]
fn orphaning_frees_the_dependents() {
    let mut graph = whole();
    graph.put("d", thing("d", &["o"]));
    graph.put(
        "o",
        Thing {
            deleting: true,
            orphan: true,
            ..thing("o", &[])
        },
    );
    assert_eq!(decide(&graph, "o", &[]), Action::Orphan(set(&["d"])));
    graph.put("d", thing("d", &[]));
    assert_eq!(decide(&graph, "o", &[]), Action::Orphan(set(&[])));
}

#[test]
fn what_nobody_owns_is_nobodys_business() {
    let mut graph = whole();
    assert_eq!(graph.put("a", thing("a", &[])), set(&[]));
    assert_eq!(decide(&graph, "a", &[]), Action::Nothing);
}

proptest! {
    /// Only what hangs on the removed ones goes, and all of it.
    #[test]
    fn a_tree_falls_as_a_whole_and_nothing_else_does(parents in prop::collection::vec(any::<prop::sample::Index>(), 1..30), root in any::<prop::sample::Index>()) {
        let mut graph = whole();
        let uid = |n: usize| format!("u{n}");
        graph.put(&uid(0), thing("u0", &[]));
        let mut parent_of = vec![None];
        for (n, parent) in parents.iter().enumerate() {
            let n = n + 1;
            // One in three has no owner.
            let parent = (n % 3 != 0).then(|| parent.index(n));
            let owner = parent.map(uid);
            graph.put(&uid(n), thing(&uid(n), owner.as_deref().as_slice()));
            parent_of.push(parent);
        }
        let root = root.index(parent_of.len());
        let falls = |mut n: usize| loop {
            if n == root { return true; }
            match parent_of[n] { Some(parent) => n = parent, None => return false }
        };
        let mut absent = HashSet::from([uid(root)]);
        let mut work: Vec<String> = graph.remove(&uid(root)).into_iter().collect();
        while let Some(next) = work.pop() {
            if matches!(graph.decide(&next, &absent, &HashSet::new()), Action::Delete { .. }) {
                work.extend(graph.remove(&next));
                absent.insert(next);
            }
        }
        for n in 0..parent_of.len() {
            prop_assert_eq!(graph.get(&uid(n)).is_none(), falls(n), "{}", n);
        }
    }
}
