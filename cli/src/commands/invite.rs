//! `tandem invite`: a one-time token for a client that is to join.

use std::time::Duration;

use tandem_proto::{VolumeName, pb};

use crate::{
    exit::{Exit, Failure},
    output::say,
    storage::Which,
};

/// Options of `tandem invite`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tandem invite work                             on the storage host: prints the line to type on the client
  tandem invite work --role reader --ttl 2h      for who only copies, redeemable for two hours")]
pub struct Args {
    /// The volume that the client may use; it need not exist yet.
    volume: VolumeName,
    /// What the client may do: reader (status, clone), writer (also mount), admin (also invite and revoke).
    #[arg(long, default_value = "writer")]
    role: RoleName,
    /// How long the token is good, at most 7d.
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = time)]
    ttl: Duration,
    /// How the client reaches this storage daemon; default: the host's name and its port.
    #[arg(long, value_name = "HOST[:PORT]")]
    address: Option<String>,
    #[command(flatten)]
    which: Which,
}

/// A role as it is written.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum RoleName {
    /// Status and copies.
    Reader,
    /// Also mounts.
    Writer,
    /// Also invites and revokes.
    Admin,
}

/// A number with s, m, h or d behind it.
fn time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text}: write a time, as 15m, 2h or 7d");
    let (number, unit) = text.split_at(text.len() - text.chars().next_back().map_or(0, char::len_utf8));
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err(wrong()),
    };
    let seconds = number.parse::<u32>().ok().and_then(|number| number.checked_mul(unit)).filter(|seconds| *seconds > 0);
    seconds.map(|seconds| Duration::from_secs(seconds.into())).ok_or_else(wrong)
}

/// Runs it.
pub async fn run(args: Args) -> Result<Exit, Failure> {
    let role = match args.role {
        RoleName::Reader => pb::Role::Reader,
        RoleName::Writer => pb::Role::Writer,
        RoleName::Admin => pb::Role::Admin,
    };
    let request = pb::InviteRequest {
        volume: args.volume.to_string(),
        role: role.into(),
        ttl_s: u32::try_from(args.ttl.as_secs()).unwrap_or(u32::MAX),
        address: args.address.unwrap_or_default(),
    };
    let mut client = args.which.trust().await?;
    let reply = args.which.call(client.invite(request)).await?;
    say(&format!("tandem join {} {}\n", reply.address, reply.token))?;
    Ok(Exit::InSync)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::time;

    #[test]
    fn times_as_people_write_them() {
        assert_eq!(time("15m"), Ok(Duration::from_secs(900)));
        assert_eq!(time("7d"), Ok(Duration::from_secs(7 * 24 * 3600)));
        for wrong in ["", "m", "0s", "15", "15x", "1é", "99999999d"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }
}
