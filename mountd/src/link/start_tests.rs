//! Every start that is possible, and every refusal with its ways on.

use tandem_proto::{Chain, Epoch, Position, Seq, Uuid};

use super::{Decided, Init, Start, StartFacts, StartRefused, decide};
use crate::{
    link::client::Described,
    state::{Fenced, MountState},
};

const CLIENT: Uuid = Uuid([1; 16]);

fn described() -> Described {
    Described {
        exists: true,
        volume_id: Uuid([2; 16]),
        replica_id: Uuid([3; 16]),
        holder_id: CLIENT,
        holder: "me".into(),
        ..Default::default()
    }
}

fn known() -> MountState {
    MountState {
        volume: "v".into(),
        volume_id: Uuid([2; 16]).to_string(),
        replica_id: Uuid([3; 16]).to_string(),
        backing_identity: "aa".into(),
        ..Default::default()
    }
}

struct Case {
    state: MountState,
    described: Result<Described, String>,
    empty: bool,
    marked: bool,
    init: Option<Init>,
    floor: Option<Position>,
    half_pulled: bool,
    takeover: bool,
    look_only: bool,
}

fn run(case: Case) -> Result<Start, StartRefused> {
    decided(case).map(|decided| decided.start)
}

fn decided(case: Case) -> Result<Decided, StartRefused> {
    decide(&StartFacts {
        floor: case.floor,
        half_pulled: case.half_pulled,
        takeover: case.takeover,
        look_only: case.look_only,
        elsewhere: None,
        state: &case.state,
        client_id: CLIENT,
        backing_identity: &[0xaa],
        backing_empty: case.empty,
        root_marked: case.marked,
        described: case.described.as_ref().map_err(Clone::clone),
        init: case.init,
        volume: "v",
        server: "localhost:7440",
    })
}

fn case() -> Case {
    Case {
        state: known(),
        described: Ok(described()),
        empty: false,
        marked: false,
        init: None,
        floor: None,
        half_pulled: false,
        takeover: false,
        look_only: false,
    }
}

fn refused(case: Case, words: &[&str]) {
    let message = run(case).expect_err("refused").to_string();
    for word in words {
        assert!(message.contains(word), "{word:?} is missing: {message}");
    }
}

#[test]
fn a_known_folder_resumes_also_without_its_server() {
    assert_eq!(run(case()), Ok(Start::Resume));
    assert_eq!(run(Case { described: Err("x".into()), ..case() }), Ok(Start::Resume));
}

#[test]
fn an_empty_or_unknown_folder_never_wipes_a_volume() {
    let unknown = MountState::default;
    refused(Case { state: unknown(), ..case() }, &["init=push", "init=pull"]);
    refused(Case { state: unknown(), empty: true, ..case() }, &["init=pull"]);
    refused(Case { empty: true, ..case() }, &["init=pull", "init=push"]);
    refused(Case { state: MountState { backing_identity: "bb".into(), ..known() }, ..case() }, &["init=push"]);
    assert_eq!(run(Case { empty: true, marked: true, ..case() }), Ok(Start::Resume));
}

#[test]
fn new_and_empty_volumes_are_synced_to() {
    let state = MountState::default;
    let none = Described::default();
    assert_eq!(run(Case { state: state(), described: Ok(none.clone()), ..case() }), Ok(Start::FirstSync));
    let empty = Described { empty: true, ..described() };
    assert_eq!(run(Case { state: state(), described: Ok(empty), empty: true, ..case() }), Ok(Start::FirstSync));
    refused(Case { described: Ok(none.clone()), ..case() }, &["gone", "init=push"]);
    assert_eq!(run(Case { described: Ok(none), init: Some(Init::Push), ..case() }), Ok(Start::FirstSync));
}

#[test]
fn other_replicas_and_other_writers_are_refused() {
    refused(Case { described: Ok(Described { replica_id: Uuid([9; 16]), ..described() }), ..case() }, &["not the one"]);
    let taken = Described { holder_id: Uuid([9; 16]), holder: "them".into(), ..described() };
    refused(Case { described: Ok(taken), ..case() }, &["them", "taken over"]);
    assert_eq!(run(Case { init: Some(Init::Push), ..case() }), Ok(Start::Push));
}

#[test]
fn pull_needs_something_to_pull() {
    assert_eq!(
        run(Case { init: Some(Init::Pull), empty: true, state: MountState::default(), ..case() }),
        Ok(Start::Pull)
    );
    refused(
        Case { init: Some(Init::Pull), described: Ok(Described::default()), state: MountState::default(), ..case() },
        &["nothing to pull"],
    );
    refused(
        Case { init: Some(Init::Pull), described: Err("no answer".into()), state: MountState::default(), ..case() },
        &["no answer"],
    );
}

fn at(epoch: u64, seq: u64) -> Position {
    Position { epoch: Epoch(epoch), seq: Seq(seq), chain: Chain([epoch as u8 ^ seq as u8; 16]) }
}

fn taken() -> Described {
    Described {
        holder_id: Uuid([9; 16]),
        holder: "them".into(),
        holder_since_ns: 1_795_238_269_000_000_000,
        holder_connected: true,
        position: at(4, 10),
        ..described()
    }
}

#[test]
fn who_is_connected_is_only_ended_by_a_takeover_and_is_named_with_the_time() {
    let since = "2026-11-21 05:17:49 UTC";
    for init in [Init::Push, Init::Pull] {
        let empty = init == Init::Pull;
        let case = || Case { init: Some(init), empty, state: MountState::default(), described: Ok(taken()), ..case() };
        refused(case(), &["them", since, "connected now", "takeover"]);
        let taking = decided(Case { takeover: true, ..case() }).expect("somebody decided");
        assert!(taking.takeover && taking.succeed);
        let left = Described { holder_connected: false, ..taken() };
        let succeeding = decided(Case { described: Ok(left), ..case() }).expect("nobody is disturbed");
        assert!(!succeeding.takeover && succeeding.succeed);
    }
    refused(
        Case { state: MountState::default(), described: Ok(taken()), ..case() },
        &["them", since, "init=push,takeover"],
    );
}

#[test]
fn takeover_alone_needs_the_state_that_the_replica_holds() {
    let case = |floor, takeover| Case { described: Ok(taken()), floor: Some(floor), takeover, ..case() };
    refused(case(at(4, 9), true), &["needs a folder that holds the replica's state", "4:10", "4:9", "init=pull"]);
    refused(case(at(4, 10), false), &["-o takeover goes on"]);
    let decided = decided(case(at(4, 10), true)).expect("nothing was changed since");
    assert_eq!((decided.start, decided.takeover, decided.have), (Start::Resume, true, Some(at(4, 10))));
}

#[test]
fn who_only_looks_may_mount_what_was_taken_over() {
    let decided = decided(Case { described: Ok(taken()), look_only: true, ..case() }).expect("read-only");
    assert_eq!(decided.start, Start::Fenced);
    assert!(decided.why.contains("them") && decided.why.contains("tandem divergence"), "{}", decided.why);
}

#[test]
fn a_fenced_mount_stays_fenced_until_somebody_decides() {
    let fenced = || MountState { fenced: Some(Fenced { reason: "by them".into(), since_ns: 1 }), ..known() };
    let case = || Case { state: fenced(), described: Ok(taken()), ..case() };
    for case in
        [case(), Case { described: Err("no answer".into()), ..case() }, Case { init: Some(Init::Pull), ..case() }]
    {
        let decided = decided(case).expect("it is served");
        assert_eq!((decided.start, decided.why.as_str()), (Start::Fenced, "by them"));
    }
    assert_eq!(run(Case { init: Some(Init::Pull), empty: true, takeover: true, ..case() }), Ok(Start::Pull));
    assert_eq!(run(Case { init: Some(Init::Push), takeover: true, ..case() }), Ok(Start::Push));
    refused(Case { takeover: true, floor: Some(at(3, 1)), ..case() }, &["needs a folder"]);
}

#[test]
fn init_pull_in_fstab_fills_once_and_then_resumes() {
    let pull = |case: Case| run(Case { init: Some(Init::Pull), ..case });
    assert_eq!(pull(Case { state: MountState::default(), empty: true, ..case() }), Ok(Start::Pull));
    assert_eq!(pull(Case { half_pulled: true, ..case() }), Ok(Start::Pull));
    assert_eq!(pull(case()), Ok(Start::Resume));
    assert_eq!(pull(Case { described: Err("no answer".into()), ..case() }), Ok(Start::Resume));
    // Emptied through the mount: what was removed must not come back.
    assert_eq!(pull(Case { empty: true, marked: true, ..case() }), Ok(Start::Resume));
    assert_eq!(pull(Case { empty: true, ..case() }), Ok(Start::Pull));
    refused(Case { init: Some(Init::Pull), state: MountState::default(), ..case() }, &["not empty"]);
}

#[test]
fn a_filled_folder_goes_on_from_the_position_that_it_was_filled_with() {
    let state = || MountState { pulled: Some(crate::state::position_text(&at(4, 10))), ..known() };
    let left = Described { holder_connected: false, ..taken() };
    let first = decided(Case { state: state(), described: Ok(left), ..case() }).expect("filled");
    assert_eq!((first.start, first.have, first.succeed), (Start::Pull, Some(at(4, 10)), true));
    assert_eq!(run(Case { state: state(), described: Err("no answer".into()), ..case() }), Ok(Start::Pull));
}

#[test]
fn an_older_replica_and_a_copy_of_the_clients_state_are_refused() {
    let older =
        |floor| Case { described: Ok(Described { position: at(4, 10), ..described() }), floor: Some(floor), ..case() };
    refused(older(at(4, 11)), &["older", "4:10", "4:11", "init=push", "init=pull"]);
    refused(older(at(5, 0)), &["older"]);
    refused(older(Position { chain: Chain([0xee; 16]), ..at(4, 10) }), &["another history"]);
    assert_eq!(run(older(at(4, 10))), Ok(Start::Resume));
    assert_eq!(run(older(at(3, 999))), Ok(Start::Resume));
    let state = MountState { runs: vec![Uuid([7; 16]).to_string()], ..known() };
    let copy = Described { holder_run: Uuid([8; 16]), ..described() };
    refused(Case { state, described: Ok(copy), ..case() }, &["taken over", "init=push"]);
}
