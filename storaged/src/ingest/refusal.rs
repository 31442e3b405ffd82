//! Why a writer is refused: typed, with what was expected and what was found.

use tandem_proto::{Invalid, pb};

pub use tandem_proto::pb::refused::Reason;

/// A refusal as it is sent. The stream ends after it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What kind.
    pub reason: Reason,
    /// What happened, to which object, what to do.
    pub message: String,
    /// What would have been accepted.
    pub expected: String,
    /// What came.
    pub found: String,
    /// The client may try again by itself.
    pub retry: bool,
}

impl Refusal {
    /// A refusal that a retry does not help.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Refusal { reason, message: message.into(), expected: String::new(), found: String::new(), retry: false }
    }

    /// With what was expected and what was found.
    pub fn of(mut self, expected: impl ToString, found: impl ToString) -> Self {
        (self.expected, self.found) = (expected.to_string(), found.to_string());
        self
    }

    /// Lets the client try again by itself.
    pub fn retry(mut self) -> Self {
        self.retry = true;
        self
    }

    /// Storage cannot serve now.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Reason::Unavailable, message).retry()
    }
}

impl From<Invalid> for Refusal {
    fn from(invalid: Invalid) -> Self {
        Refusal::new(Reason::BadRequest, format!("the message cannot be used: {invalid}"))
    }
}

impl From<Refusal> for pb::ServerMessage {
    fn from(refusal: Refusal) -> Self {
        let refused = pb::Refused {
            reason: refusal.reason.into(),
            message: refusal.message,
            expected: refusal.expected,
            found: refusal.found,
            retry: refusal.retry,
        };
        pb::ServerMessage { body: Some(pb::server_message::Body::Refused(refused)) }
    }
}
