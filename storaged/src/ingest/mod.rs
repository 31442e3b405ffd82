//! What comes in over the wire: the pure state machine that decides what is accepted ([`receiver`]), messages checked once
//! ([`incoming`]), the way back ([`outbox`]) and the gRPC service that drives them ([`service`]).

pub mod incoming;
pub mod outbox;
pub mod receiver;
pub mod refusal;
pub mod service;
