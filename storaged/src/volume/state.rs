//! The file `state` of a volume: who it is, and where its log begins.
//!
//! It is replaced as a whole, durably, at each checkpoint. What happened since is in the log. JSON, so that a person can read it.

use serde::{Deserialize, Serialize};
use tandem_proto::{
    chain::Chain,
    ids::Uuid,
    position::{Epoch, Position, Seq},
};

use crate::{apply::record::Writer, ingest::receiver::Durable, log::LogPos};

/// Name of the file.
pub const STATE_FILE: &str = "state";
/// Format of a volume's directory: tree, log, catalog and this file together.
pub const FORMAT: u32 = 1;

/// Who a volume is. Never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Made with the volume.
    pub volume_id: Uuid,
    /// Made with this copy of it.
    pub replica_id: Uuid,
}

/// What the file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Who.
    pub identity: Identity,
    /// Where writing stood at the checkpoint.
    pub durable: Durable,
    /// Unix time at which the writer attached.
    pub attached_ns: i64,
    /// Records before it are not needed.
    pub log_start: LogPos,
    /// The log was durable up to here.
    pub log_end: LogPos,
    /// It was repaired after damage (why, when): what it holds is no state that the folder ever had, until the next full
    /// resync is published.
    pub unproven: Option<String>,
}

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another version wrote it.
    #[error(
        "the volume has format {found}, and this storaged knows format {FORMAT}: upgrade tandem-storaged to the version that wrote it"
    )]
    Version {
        /// In the file.
        found: u32,
    },
    /// It is not what was written.
    #[error(
        "the file `state` of the volume is damaged: {0}. Restore it from a copy, or stop storaged and run \
         tandem-storaged check --repair"
    )]
    Damaged(String),
}

#[derive(Serialize, Deserialize)]
struct PositionFile {
    epoch: u64,
    seq: u64,
    chain: String,
}

#[derive(Serialize, Deserialize)]
struct WriterFile {
    client_id: String,
    run_id: String,
    name: String,
}

#[derive(Serialize, Deserialize)]
struct StateFile {
    format: u32,
    volume_id: String,
    replica_id: String,
    position: PositionFile,
    published_in_epoch: bool,
    empty: bool,
    holder: Option<WriterFile>,
    holder_since_ns: i64,
    log_start: LogPos,
    log_end: LogPos,
    /// Older versions, which do not know it, refuse a file that has it: its checksum does not fit then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unproven: Option<String>,
    /// crc32c of the file with this field being 0.
    crc32c: u32,
}

#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

impl State {
    /// The bytes of the file.
    pub fn encode(&self) -> Vec<u8> {
        let tip = &self.durable.tip;
        let mut file = StateFile {
            format: FORMAT,
            volume_id: self.identity.volume_id.to_string(),
            replica_id: self.identity.replica_id.to_string(),
            position: PositionFile { epoch: tip.epoch.0, seq: tip.seq.0, chain: Uuid(tip.chain.0).to_string() },
            published_in_epoch: self.durable.live,
            empty: self.durable.empty,
            holder: self.durable.writer.as_ref().map(|writer| WriterFile {
                client_id: writer.client_id.to_string(),
                run_id: writer.run_id.to_string(),
                name: writer.name.clone(),
            }),
            holder_since_ns: self.attached_ns,
            log_start: self.log_start,
            log_end: self.log_end,
            unproven: self.unproven.clone(),
            crc32c: 0,
        };
        file.crc32c = crc32c::crc32c(&file.text());
        file.text()
    }

    /// The reverse of [`Self::encode`].
    pub fn decode(bytes: &[u8]) -> Result<State, StateError> {
        let damaged = |problem: &str| StateError::Damaged(problem.to_owned());
        let FormatOnly { format } =
            serde_json::from_slice(bytes).map_err(|error| StateError::Damaged(error.to_string()))?;
        if format != FORMAT {
            return Err(StateError::Version { found: format });
        }
        let mut file: StateFile =
            serde_json::from_slice(bytes).map_err(|error| StateError::Damaged(error.to_string()))?;
        let crc = std::mem::take(&mut file.crc32c);
        if crc32c::crc32c(&file.text()) != crc {
            return Err(damaged("its checksum does not fit"));
        }
        let uuid = |text: &str| Uuid::from_hex(text).ok_or_else(|| damaged("an id is not one"));
        let writer = file.holder.map(|holder| {
            Ok::<_, StateError>(Writer {
                client_id: uuid(&holder.client_id)?,
                run_id: uuid(&holder.run_id)?,
                name: holder.name,
            })
        });
        let tip = Position {
            epoch: Epoch(file.position.epoch),
            seq: Seq(file.position.seq),
            chain: Chain(uuid(&file.position.chain)?.0),
        };
        Ok(State {
            identity: Identity { volume_id: uuid(&file.volume_id)?, replica_id: uuid(&file.replica_id)? },
            durable: Durable { tip, live: file.published_in_epoch, empty: file.empty, writer: writer.transpose()? },
            attached_ns: file.holder_since_ns,
            log_start: file.log_start,
            log_end: file.log_end,
            unproven: file.unproven,
        })
    }
}

impl StateFile {
    fn text(&self) -> Vec<u8> {
        // Serializing plain strings and numbers cannot fail; an empty file would be refused when it is read.
        serde_json::to_vec_pretty(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use tandem_proto::ids::Uuid;

    use super::{Identity, State, StateError};
    use crate::{apply::record::Writer, ingest::receiver::Durable, log::LogPos};

    fn state() -> State {
        State {
            identity: Identity { volume_id: Uuid([1; 16]), replica_id: Uuid([2; 16]) },
            durable: Durable {
                writer: Some(Writer { name: "me \"quoted\"\n".to_owned(), ..Default::default() }),
                live: true,
                ..Default::default()
            },
            attached_ns: 5,
            log_start: LogPos { segment: 3, offset: 4 },
            log_end: LogPos { segment: 4, offset: 0 },
            unproven: None,
        }
    }

    #[test]
    fn state_survives_its_file() {
        assert_eq!(State::decode(&state().encode()).expect("whole"), state());
        let repaired = State { unproven: Some("why".to_owned()), ..state() };
        assert_eq!(State::decode(&repaired.encode()).expect("whole"), repaired);
        assert!(!String::from_utf8_lossy(&state().encode()).contains("unproven"), "known to older versions");
    }

    #[test]
    fn a_changed_file_and_another_version_are_refused() {
        let text = String::from_utf8(state().encode()).expect("text");
        let changed = text.replace("\"segment\": 3", "\"segment\": 2");
        assert_ne!(changed, text);
        assert!(matches!(State::decode(changed.as_bytes()), Err(StateError::Damaged(_))));
        let newer = text.replace("\"format\": 1", "\"format\": 2");
        assert!(matches!(State::decode(newer.as_bytes()), Err(StateError::Version { found: 2 })));
        assert!(State::decode(b"").is_err());
    }
}
