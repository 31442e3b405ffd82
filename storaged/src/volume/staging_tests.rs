//! What a staging decides when a message comes is what its log says after a crash.

use bytes::Bytes;
use tandem_proto::{
    ids::InodeId,
    op::{Attr, NodeKind},
    pb::server_message::Body,
    stage::{Content, Listing, NodeState, NodeType, Stage, StageData, StageDir, StageEntry, StageNode},
};

use super::{Incoming, Rig, create, name};

#[test]
fn names_listed_behind_ops_that_wait_for_the_log_mean_the_same_after_a_crash() {
    let mut rig = Rig::new();
    rig.send(&[create(1)]);
    rig.core.flush(rig.now);
    rig.core.apply_some(rig.now, 9);
    rig.handle(Incoming::Begin { round: 1, full: true, s0: rig.sent });
    // The name means a new file from here on, and the listing, which was read later, says so too. Nothing is flushed between them.
    rig.send(&[create(1)]);
    let born = InodeId::new(&2_u64.to_be_bytes()).expect("short");
    let entry = StageEntry { name: name(1), node: Some((born, NodeType::Regular)), stamp: Some(1) };
    let (dir, listing) = (InodeId::ROOT, Listing::CompleteEnd);
    rig.handle(Incoming::Stage(Stage::Dir(StageDir { dir, listing, entries: vec![entry], born_since: None })));
    for answer in rig.listen() {
        let Body::NeedNodes(need) = answer else { continue };
        for id in need.ids.iter().map(|id| InodeId::new(id).expect("one that was listed")) {
            let data = Bytes::from(rig.states[&rig.sent.seq.0][&name(1)].clone());
            let attr = Attr { mode: 0o644, uid: 0, gid: 0, mtime: Default::default() };
            let size = data.len() as u64;
            let state = NodeState { kind: NodeKind::Regular, attr, xattrs: Vec::new(), size, content: Content::Whole };
            rig.handle(Incoming::Stage(Stage::Node(StageNode { id, state: Some(state) })));
            rig.handle(Incoming::Stage(Stage::Data(StageData { id, offset: 0, data })));
        }
    }
    // Published, and nothing of it is in the tree yet when the power goes.
    rig.tree.set_budget(Some(1));
    rig.handle(Incoming::Publish { round: 1, position: rig.sent });
    rig.tree.set_budget(None);
    rig.crash(1);
    assert_eq!(rig.core.replica().applied(), rig.sent);
    rig.check_tree();
}
