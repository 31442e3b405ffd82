//! What the daemons wrote themselves and read again: the disk may have changed it.

use tandem_proto::{
    ids::InodeId,
    position::{Epoch, Position, Seq},
};
use tandem_storaged::{
    apply::Place,
    catalog::codec,
    index::recipe::{self, Header, Summary},
};

/// Records of the catalog.
pub fn catalog_seeds() -> Vec<Vec<u8>> {
    let position = Position { epoch: Epoch(1), seq: Seq(2), ..Position::default() };
    let meta = tandem_storaged::catalog::Meta { position, serial: 3, inodes: 4 };
    vec![codec::encode_meta(&meta)]
}

/// Reads a record as each of its kinds.
pub fn catalog(input: &[u8]) -> u64 {
    1 + u64::from(codec::decode_node(input).is_some()) + u64::from(codec::decode_meta(input).is_some())
}

/// Records of the content index.
pub fn index_seeds() -> Vec<Vec<u8>> {
    let chunk = recipe::Chunk { offset: 5, len: 6, digest: tandem_proto::Digest([7; 32]) };
    let id = InodeId::new(&[8; 12]).expect("an id");
    let place = Place { id, offset: 9, len: 10 };
    vec![recipe::encode_part(&[chunk, chunk]), recipe::encode_places(&[place])]
}

/// Reads a record as each of its kinds.
pub fn index(input: &[u8]) -> u64 {
    let found = [
        recipe::decode_part(input).is_some(),
        recipe::decode_places(input).is_some(),
        Header::decode(input).is_some(),
        Summary::decode(input).is_some(),
    ];
    1 + found.into_iter().filter(|found| *found).count() as u64
}
