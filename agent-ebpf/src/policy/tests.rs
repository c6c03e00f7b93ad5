use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::abi::UDP;

const POD: LinkIndex = LinkIndex(7);
const WEB: RuleTable = RuleTable(16);
const FRIEND: Identity = Identity(3);
const CLIENT: Address = Address::v4([10, 0, 0, 9]);
const SERVER: Address = Address::v4([10, 0, 0, 1]);
const NODE: Address = Address::v4([10, 0, 0, 254]);

/// Tables in memory that do what a verdict says.
#[derive(Default)]
struct Fake {
    generation: u32,
    pod: Option<PodRow>,
    identities: Vec<IdentityRow>,
    /// With how many bits of each count.
    rules: BTreeSet<(RuleKey, u32)>,
    flows: RefCell<BTreeMap<FlowKey, FlowRow>>,
    now_ns: u64,
}

impl Tables for Fake {
    fn generation(&self) -> u32 {
        self.generation
    }
    fn pod(&self, link: LinkIndex) -> Option<PodRow> {
        self.pod.filter(|row| row.link == link)
    }
    fn identity(&self, address: &Address) -> Option<IdentityRow> {
        let rows = self.identities.iter();
        rows.filter(|row| covers(&row.prefix, row.bits, address))
            .max_by_key(|row| row.bits)
            .copied()
    }
    fn allows(&self, key: &RuleKey) -> bool {
        self.rules.iter().any(|(rule, bits)| {
            let (rule, key) = (bytes(rule), bytes(key));
            (0..*bits as usize)
                .all(|bit| rule[bit / 8] >> (7 - bit % 8) & 1 == key[bit / 8] >> (7 - bit % 8) & 1)
        })
    }
    fn flow(&self, key: &FlowKey) -> Option<FlowRow> {
        self.flows.borrow().get(key).copied()
    }
    fn remember(&self, key: &FlowKey, row: &FlowRow) {
        self.flows.borrow_mut().insert(*key, *row);
    }
    fn forget(&self, key: &FlowKey) {
        self.flows.borrow_mut().remove(key);
    }
    fn now_ns(&self) -> u64 {
        self.now_ns
    }
}

fn bytes(key: &RuleKey) -> Vec<u8> {
    [&key.table[..], &key.identity, &[key.protocol], &key.port].concat()
}

impl Fake {
    /// A pod with these rules, which lets [`FRIEND`] connect to TCP port 80 where it is isolated with [`WEB`].
    fn new(ingress: RuleTable, egress: RuleTable) -> Self {
        let rules = PodRules { ingress, egress };
        let row = |prefix, identity| IdentityRow {
            prefix,
            bits: 128,
            since: 0,
            now: identity,
            before: identity,
        };
        Self {
            pod: Some(PodRow {
                link: POD,
                since: 0,
                now: rules,
                before: rules,
            }),
            identities: vec![row(CLIENT, FRIEND), row(NODE, Identity(Identity::NODE))],
            rules: [(RuleKey::new(WEB, FRIEND, TCP, [0, 80]), RuleKey::BITS)].into(),
            ..Self::default()
        }
    }

    fn meets(&self, direction: Direction, packet: Packet) -> bool {
        decide(self, POD, direction, &packet).is_ok()
    }

    fn comes(&self, packet: Packet) -> bool {
        self.meets(Direction::Ingress, packet)
    }

    fn leaves(&self, packet: Packet) -> bool {
        self.meets(Direction::Egress, packet)
    }
}

fn packet(from: (Address, u16), to: (Address, u16), protocol: u8, opens: bool) -> Packet {
    Packet {
        source: from.0,
        destination: to.0,
        source_port: from.1.to_be_bytes(),
        destination_port: to.1.to_be_bytes(),
        identification: 0,
        about: Conversation::NONE,
        kind: Kind::Ports,
        protocol,
        opens,
        is_first_fragment: false,
        from_node: false,
    }
}

const ASKS: (Address, u16) = (CLIENT, 4000);
const WEBS: (Address, u16) = (SERVER, 80);

#[test]
fn a_pod_that_no_policy_selects_talks_to_anybody_and_leaves_no_trace() {
    let fake = Fake::new(RuleTable::OPEN, RuleTable::OPEN);
    assert!(fake.comes(packet((NODE, 1), (SERVER, 1), UDP, false)));
    assert!(fake.leaves(packet(WEBS, ASKS, TCP, true)));
    assert!(fake.flows.borrow().is_empty());
    let without_row = Fake::default();
    assert!(without_row.comes(packet(ASKS, WEBS, TCP, true)));
}

#[test]
fn an_isolated_pod_hears_whom_a_rule_names_and_answers() {
    let fake = Fake::new(WEB, RuleTable::CLOSED);
    assert!(!fake.leaves(packet(WEBS, ASKS, TCP, false)), "nobody asked");
    assert!(fake.comes(packet(ASKS, WEBS, TCP, true)));
    assert!(fake.leaves(packet(WEBS, ASKS, TCP, false)));
    assert!(fake.comes(packet(ASKS, WEBS, TCP, false)));
    assert!(!fake.leaves(packet(WEBS, ASKS, TCP, true)), "asks itself");
    assert!(!fake.comes(packet(ASKS, (SERVER, 81), TCP, true)));
    assert!(!fake.comes(packet(ASKS, WEBS, UDP, false)));
    let stranger = (Address::v4([10, 0, 0, 10]), 4000);
    assert!(!fake.comes(packet(stranger, WEBS, TCP, true)));
}

#[test]
fn the_node_and_the_pod_itself_are_always_heard() {
    let fake = Fake::new(RuleTable::CLOSED, RuleTable::CLOSED);
    assert!(fake.comes(packet((NODE, 1), WEBS, TCP, true)));
    assert!(fake.leaves(packet(WEBS, (NODE, 1), TCP, true)));
    let mut probe = packet((Address::v4([10, 9, 9, 9]), 1), WEBS, TCP, true);
    assert!(!fake.comes(probe));
    probe.from_node = true;
    assert!(fake.comes(probe));
    probe.kind = Kind::Neighbours;
    probe.from_node = false;
    assert!(fake.leaves(probe));
    assert!(fake.leaves(packet((SERVER, 1), (SERVER, 2), UDP, false)));
}

#[test]
fn a_reply_to_an_unrestricted_direction_is_no_new_connection() {
    let fake = Fake::new(RuleTable::CLOSED, RuleTable::OPEN);
    assert!(!fake.comes(packet(ASKS, WEBS, UDP, false)));
    assert!(fake.leaves(packet(WEBS, ASKS, UDP, false)));
    assert!(fake.comes(packet(ASKS, WEBS, UDP, false)));
    assert!(!fake.comes(packet(ASKS, (SERVER, 81), UDP, false)));
}

#[test]
fn a_connection_outlives_its_rule_and_datagrams_do_not() {
    let mut fake = Fake::new(WEB, RuleTable::OPEN);
    fake.rules.insert((
        RuleKey::new(WEB, FRIEND, UDP, [0, 0]),
        RuleKey::PROTOCOL_BITS,
    ));
    assert!(fake.comes(packet(ASKS, WEBS, TCP, true)));
    assert!(fake.comes(packet(ASKS, WEBS, UDP, false)));
    fake.rules.clear();
    fake.generation = 1;
    assert!(fake.comes(packet(ASKS, WEBS, TCP, false)));
    assert!(!fake.comes(packet(ASKS, WEBS, TCP, true)));
    assert!(
        fake.leaves(packet(WEBS, ASKS, UDP, false)),
        "an answer on its way"
    );
    // The pod asks, too, so that its own datagrams are no answers any more.
    fake.flows.borrow_mut().retain(|key, _| key.protocol == TCP);
    assert!(!fake.comes(packet(ASKS, WEBS, UDP, false)));
}

#[test]
fn a_refused_datagram_ends_its_conversation() {
    let mut fake = Fake::new(WEB, RuleTable::CLOSED);
    fake.rules.insert((
        RuleKey::new(WEB, FRIEND, UDP, [0, 0]),
        RuleKey::PROTOCOL_BITS,
    ));
    assert!(fake.comes(packet(ASKS, WEBS, UDP, false)));
    assert!(fake.leaves(packet(WEBS, ASKS, UDP, false)));
    fake.rules.clear();
    fake.generation = 1;
    assert!(!fake.comes(packet(ASKS, WEBS, UDP, false)));
    assert!(!fake.leaves(packet(WEBS, ASKS, UDP, false)));
}

#[test]
fn silence_ends_a_conversation_without_connection() {
    let mut fake = Fake::new(WEB, RuleTable::OPEN);
    assert!(fake.leaves(packet(WEBS, ASKS, UDP, false)));
    assert!(fake.leaves(packet((SERVER, 81), ASKS, TCP, true)));
    fake.now_ns = IDLE_NS - 1;
    assert!(fake.comes(packet(ASKS, WEBS, UDP, false)), "and is seen");
    fake.now_ns = 2 * IDLE_NS - 2;
    assert!(fake.comes(packet(ASKS, WEBS, UDP, false)));
    fake.now_ns = 3 * IDLE_NS;
    assert!(!fake.comes(packet(ASKS, WEBS, UDP, false)));
    assert!(fake.comes(packet(ASKS, (SERVER, 81), TCP, false)));
}

#[test]
fn fragments_go_with_their_first() {
    let fake = Fake::new(WEB, RuleTable::OPEN);
    let mut first = packet(ASKS, WEBS, TCP, true);
    (first.is_first_fragment, first.identification) = (true, 77);
    let later = |identification| Packet {
        kind: Kind::LaterFragment,
        source_port: [0; 2],
        destination_port: [0; 2],
        is_first_fragment: false,
        identification,
        ..first
    };
    assert!(!fake.comes(later(77)));
    assert!(fake.comes(first));
    assert!(fake.comes(later(77)));
    assert!(!fake.comes(later(78)));
    let mut out = later(78);
    (out.source, out.destination) = (SERVER, CLIENT);
    assert!(fake.leaves(out), "this direction is not isolated");
}

#[test]
fn an_error_about_an_allowed_conversation_belongs_to_it() {
    let fake = Fake::new(WEB, RuleTable::OPEN);
    let router = Address::v4([192, 0, 2, 1]);
    let error = |source_port: u16| Packet {
        kind: Kind::Error,
        about: Conversation {
            source: SERVER,
            destination: CLIENT,
            source_port: source_port.to_be_bytes(),
            destination_port: 4000_u16.to_be_bytes(),
            protocol: UDP,
        },
        ..packet((router, 0), (SERVER, 0), 1, false)
    };
    assert!(!fake.comes(error(80)));
    assert!(fake.leaves(packet(WEBS, ASKS, UDP, false)));
    assert!(fake.comes(error(80)));
    assert!(!fake.comes(error(81)));
}

#[test]
fn one_write_changes_all() {
    let mut fake = Fake::new(RuleTable::OPEN, RuleTable::OPEN);
    let pod = fake.pod.as_mut().unwrap();
    (pod.since, pod.now.ingress) = (1, WEB);
    fake.identities[0] = IdentityRow {
        since: 1,
        now: Identity::ANY,
        before: FRIEND,
        ..fake.identities[0]
    };
    assert!(fake.comes(packet(ASKS, WEBS, TCP, true)));
    fake.generation = 1;
    assert!(!fake.comes(packet(ASKS, WEBS, TCP, true)));
    fake.identities[0].since = 2;
    assert!(fake.comes(packet(ASKS, WEBS, TCP, true)));
}

#[test]
fn a_pod_whose_policies_are_unknown_is_closed_and_says_so() {
    let fake = Fake::new(RuleTable::PENDING, RuleTable::PENDING);
    let refused = decide(
        &fake,
        POD,
        Direction::Ingress,
        &packet(ASKS, WEBS, TCP, true),
    );
    assert_eq!(refused, Err(Refusal::Pending));
    assert!(fake.comes(packet((NODE, 1), WEBS, TCP, true)));
}

proptest! {
    #[test]
    fn a_prefix_covers_what_begins_like_it(prefix: [u8; 16], address: [u8; 16], bits in 0..129u32, same in 0..129u32) {
        // The two have the first `same` bits in common, at least.
        let mask = if same == 0 { 0 } else { u128::MAX << (128 - same) };
        let (a, b) = (u128::from_be_bytes(prefix), u128::from_be_bytes(address));
        let b = (a & mask) | (b & !mask);
        let expected = (a ^ b).leading_zeros() >= bits;
        prop_assert_eq!(covers(&a.to_be_bytes().into(), bits, &b.to_be_bytes().into()), expected);
    }
}

#[test]
fn a_flood_is_recorded_in_part_and_the_next_window_begins_anew() {
    let mut window = Window::default();
    let start = 7 * WINDOW_NS;
    let recorded = |window: &mut Window, from: u64, count: u64| {
        let admitted = (0..count).filter(|n| window.admits(from + n));
        admitted.count() as u64
    };
    assert_eq!(recorded(&mut window, start, 5 * MOST_RECORDS), MOST_RECORDS);
    let next = start + WINDOW_NS;
    assert_eq!(
        recorded(&mut window, next, MOST_RECORDS / 2),
        MOST_RECORDS / 2
    );
}
