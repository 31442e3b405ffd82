//! `tandem join`: redeems a token, and keeps the certificate that comes of it.

use std::{io::Read as _, path::PathBuf};

use tandem_runtime::{connect::ServerAddress, tls::Token};

use crate::{
    exit::{Exit, Failure},
    output::say,
};

/// Longest token that is read from standard input.
const TOKEN_MAX_BYTES: u64 = 4096;

/// Options of `tandem join`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tandem join storage.example TOKEN              the token is what `tandem invite` printed
  tandem join storage.example - < token          from standard input, so that no list of processes shows it")]
pub struct Args {
    /// Where the storage daemon is, if not where the token says, and the token that `tandem invite` printed there; `-` reads it from
    /// standard input, so that no list of processes shows it.
    #[arg(value_name = "[HOST[:PORT]] TOKEN", num_args = 1..=2, required = true)]
    words: Vec<String>,
    /// What this client is called there; default: USER@HOST.
    #[arg(long)]
    name: Option<String>,
    /// Where the certificate is kept; default: by address in the state directory, where mounts look for it.
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
}

fn usage(message: impl Into<String>) -> Failure {
    Failure::new(Exit::Usage, message)
}

fn token(text: &str) -> Result<Token, Failure> {
    if text != "-" {
        return text.parse().map_err(|error: tandem_runtime::tls::BadToken| usage(error.to_string()));
    }
    let mut text = String::new();
    std::io::stdin()
        .take(TOKEN_MAX_BYTES)
        .read_to_string(&mut text)
        .map_err(|error| usage(format!("the token cannot be read from standard input: {error}")))?;
    // `tandem invite` prints the whole command.
    let last = text.split_whitespace().last().unwrap_or_default();
    last.parse().map_err(|error: tandem_runtime::tls::BadToken| usage(error.to_string()))
}

/// USER@HOST.
fn own_name() -> String {
    let user = ["SUDO_USER", "USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{}@{host}", user.unwrap_or_else(|| rustix::process::geteuid().as_raw().to_string()))
}

/// Runs it.
pub async fn run(args: Args) -> Result<Exit, Failure> {
    let (server, token) = match args.words.as_slice() {
        [text] => (None, token(text)?),
        [server, text] => (Some(server.parse::<ServerAddress>().map_err(usage)?), token(text)?),
        _ => return Err(usage("expected [HOST[:PORT]] TOKEN")),
    };
    let mut server = server.unwrap_or_else(|| token.address.clone());
    server.identity = args.identity;
    let path = server.identity_path();
    let name = args.name.unwrap_or_else(own_name);
    let joined = tandem_enrol::join(&server, &token, &name, &path).await;
    let joined = joined.map_err(|error| Failure::new(Exit::NoAnswer, error.to_string()))?;
    say(&format!(
        "joined {server} as {}: {} of volume {}\nmount -t tandem {server}:/{} DIR\n",
        joined.client, joined.role, joined.volume, joined.volume
    ))?;
    Ok(Exit::InSync)
}
