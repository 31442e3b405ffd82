//! What a failed call means to people. gRPC says "h2 protocol error: error reading a body from connection" when somebody was killed.

use std::error::Error;

use tonic::Status;

/// The innermost error says what happened ("connection refused"); the outer ones say "transport error".
pub fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// What was answered instead of a reply, or what happened to the connection.
pub fn said(status: &Status) -> String {
    match (status.source(), status.message()) {
        (Some(source), _) => format!("the connection broke ({})", root_cause(source)),
        (None, "") => status.code().description().to_owned(),
        (None, message) => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tonic::Status;

    use super::said;

    #[test]
    fn an_answer_is_told_as_it_is_and_a_connection_by_what_happened_to_it() {
        assert_eq!(said(&Status::not_found("no volume vol")), "no volume vol");
        assert_eq!(said(&Status::unavailable("")), "The service is currently unavailable");
        let cut = io::Error::new(io::ErrorKind::ConnectionReset, "connection reset by peer");
        let status = Status::from_error(Box::new(cut));
        assert_eq!(said(&status), "the connection broke (connection reset by peer)");
    }
}
