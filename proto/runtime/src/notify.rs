//! Tells the service manager how we are: ready after recovery, stopping. Without one nothing happens.

use std::{
    env,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
};

/// We serve.
pub fn ready(status: &str) {
    send(&format!("READY=1\nSTATUS={}\n", one_line(status)));
}

/// We read our configuration again; [`ready`] follows.
pub fn reloading() {
    send("RELOADING=1\n");
}

/// We end, in order.
pub fn stopping() {
    send("STOPPING=1\n");
}

fn one_line(status: &str) -> String {
    status.replace('\n', " ")
}

/// A lost notification is the manager's business: it has a time limit.
fn send(message: &str) {
    let Ok(name) = env::var("NOTIFY_SOCKET") else { return };
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&name),
    };
    if let (Ok(address), Ok(socket)) = (address, UnixDatagram::unbound()) {
        let _ = socket.send_to_addr(message.as_bytes(), &address);
    }
}
