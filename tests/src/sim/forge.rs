//! Ops that nobody did: a batch of another history, whole and consistent in itself, under the numbers of one that was sent.

use tandem_proto::{Chain, Seq, convert, pb};

/// The batch as another history would have it; `None` if there is nothing in it that could be another way.
pub fn forged(batch: &pb::Batch) -> Option<pb::Batch> {
    let mut batch = batch.clone();
    let other = batch.ops.iter_mut().find(|op| !op.changes.is_empty())?;
    other.changes.clear();
    let mut chain = Chain::from_slice(&batch.chain_before)?;
    let (mut seq, mut scratch) = (Seq(batch.first_seq), Vec::new());
    for op in &batch.ops {
        chain = convert::chain_after(&chain, seq, op, &mut scratch);
        seq = seq.next();
    }
    batch.chain_after = bytes::Bytes::copy_from_slice(&chain.0);
    Some(batch)
}
