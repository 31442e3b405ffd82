//! `tandem volume`: lists, makes, bounds, renames and deletes the volumes of a storage daemon.

use std::io::{BufRead as _, IsTerminal as _};

use tandem_proto::{
    VolumeName,
    pb::{self, volumes_client::VolumesClient},
};

use crate::{
    commands::{scrub, status},
    exit::{Exit, Failure},
    output::{complain, say},
    render::bytes,
    storage::{Connection, Which, connect},
};

/// Options of `tandem volume`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  tandem volume list                             on the storage host
  tandem volume set work --quota 100GiB          bounds what it takes; none lifts it
  tandem volume rename work projects             roles and mounts follow")]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Lists them: as `tandem status --server`.
    #[command(after_help = "Examples:
  tandem volume list                             the volumes of this host
  tandem volume list --server storage.example    of another one")]
    List {
        #[command(flatten)]
        which: Which,
    },
    /// Makes an empty one.
    #[command(after_help = "Examples:
  tandem volume create work --quota 100GiB       before its first mount")]
    Create {
        /// Its name.
        volume: VolumeName,
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        which: Which,
    },
    /// Says what one may hold.
    #[command(after_help = "Examples:
  tandem volume set work --quota 100GiB          nothing new is taken beyond it
  tandem volume set work --quota none            lifts it")]
    Set {
        /// Its name.
        volume: VolumeName,
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        which: Which,
    },
    /// Reads all of one from its disk, while it is used, and compares it with what the storage daemon read after the last operation on each
    /// file: damage is told, and its mount repairs it. Ends with code 2 if there was some.
    #[command(after_help = "Examples:
  tandem volume scrub work                       as fast as the disk is
  tandem volume scrub work --rate 50MiB          beside other work")]
    Scrub {
        /// Its name.
        volume: VolumeName,
        /// Bytes a second at most, as 100MiB; else as fast as the disk is.
        #[arg(long, value_name = "SIZE", value_parser = quota)]
        rate: Option<u64>,
        #[command(flatten)]
        which: Which,
    },
    /// Gives one another name. Its mounts have to be mounted again under that.
    #[command(after_help = "Examples:
  tandem volume rename work projects             roles follow; mount it under its new name then")]
    Rename {
        /// Its name.
        volume: VolumeName,
        /// Its name from then on.
        to: VolumeName,
        /// Also while it is mounted.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        which: Which,
    },
    /// Takes one away; its data is kept for some time on the storage host.
    #[command(after_help = "Examples:
  tandem volume delete work                      asks first, and says where its data is kept")]
    Delete {
        /// Its name.
        volume: VolumeName,
        /// Also while it is mounted.
        #[arg(long)]
        force: bool,
        /// Does not ask.
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        which: Which,
    },
}

/// What a volume may hold.
#[derive(Debug, clap::Args)]
struct Settings {
    /// Bytes that its replica may take, as 100GiB; none lifts the bound. Beyond it nothing new is taken.
    #[arg(long, value_name = "SIZE", value_parser = quota)]
    quota: Option<u64>,
    /// Devices and set-user-id bits in its tree on the storage host: keep, or deny, where they are in the catalog only. For what comes
    /// from then on.
    #[arg(long, value_name = "WHAT", value_parser = ["keep", "deny"])]
    special: Option<String>,
}

impl Settings {
    fn is_empty(&self) -> bool {
        self.quota.is_none() && self.special.is_none()
    }
}

/// A size with KiB, MiB, GiB or TiB behind it; none: 0.
fn quota(text: &str) -> Result<u64, String> {
    if text == "none" {
        return Ok(0);
    }
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "" | "B" => Some(1),
        "K" | "KiB" => Some(1u64 << 10),
        "M" | "MiB" => Some(1 << 20),
        "G" | "GiB" => Some(1 << 30),
        "T" | "TiB" => Some(1 << 40),
        _ => None,
    };
    let bytes = number.parse::<u64>().ok().zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
    bytes.filter(|bytes| *bytes > 0).ok_or_else(|| format!("{text}: write a size, as 100GiB, or none"))
}

/// Changes what a volume may hold, and says what it is then.
async fn set(volume: &VolumeName, settings: Settings, which: &Which) -> Result<(), Failure> {
    let request = pb::ConfigureVolumeRequest {
        volume: volume.to_string(),
        quota_bytes: settings.quota,
        special: settings.special.unwrap_or_default(),
    };
    let now = which.call(client(which).await?.configure(request)).await?;
    let quota = match now.quota_bytes {
        0 => "no quota".to_owned(),
        limit => format!("a quota of {}", bytes(limit)),
    };
    say(&format!("volume {volume} has {quota}; special files: {}\n", now.special))?;
    Ok(())
}

async fn client(which: &Which) -> Result<VolumesClient<Connection>, Failure> {
    Ok(VolumesClient::new(connect(which.server()).await?))
}

/// Whether a person wrote the volume's name.
fn confirmed(volume: &VolumeName) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new(Exit::Usage, "nobody can be asked here: say --yes if you mean it"));
    }
    complain(&format!("this takes volume {volume} and all roles for it away; write its name to go on:"));
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim() == volume.as_str())
}

/// Runs it.
pub async fn run(args: Args) -> Result<Exit, Failure> {
    match args.command {
        Command::List { which } => return status::of_volumes(which.server()).await,
        Command::Scrub { volume, rate, which } => return scrub::run(&volume, rate.unwrap_or(0), &which).await,
        Command::Set { volume, settings, which } => set(&volume, settings, &which).await?,
        Command::Create { volume, settings, which } => {
            let request = pb::CreateVolumeRequest { volume: volume.to_string() };
            which.call(client(&which).await?.create(request)).await?;
            say(&format!("volume {volume} made\n"))?;
            if !settings.is_empty() {
                set(&volume, settings, &which).await?;
            }
        }
        Command::Rename { volume, to, force, which } => {
            let request = pb::RenameVolumeRequest { volume: volume.to_string(), to: to.to_string(), force };
            which.call(client(&which).await?.rename(request)).await?;
            say(&format!("volume {volume} is {to} now\n"))?;
        }
        Command::Delete { volume, force, yes, which } => {
            if !yes && !confirmed(&volume)? {
                return Err(Failure::new(Exit::Behind, "nothing was deleted"));
            }
            let request = pb::DeleteVolumeRequest { volume: volume.to_string(), force };
            let reply = which.call(client(&which).await?.delete(request)).await?;
            say(&format!("volume {volume} deleted; its data is in {} for now\n", reply.kept))?;
        }
    }
    Ok(Exit::InSync)
}
