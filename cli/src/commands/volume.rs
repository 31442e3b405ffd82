//! `tandem volume`: lists, makes, renames and deletes the volumes of a storage daemon.

use std::io::{BufRead as _, IsTerminal as _};

use tandem_proto::{
    VolumeName,
    pb::{self, volumes_client::VolumesClient},
};

use crate::{
    commands::status,
    exit::{Exit, Failure},
    output::{complain, say},
    storage::{Connection, Which, connect},
};

/// Options of `tandem volume`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Lists them: as `tandem status --server`.
    List {
        #[command(flatten)]
        which: Which,
    },
    /// Makes an empty one.
    Create {
        /// Its name.
        volume: VolumeName,
        #[command(flatten)]
        which: Which,
    },
    /// Gives one another name. Its mounts have to be mounted again under that.
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
        Command::Create { volume, which } => {
            let request = pb::CreateVolumeRequest { volume: volume.to_string() };
            which.call(client(&which).await?.create(request)).await?;
            say(&format!("volume {volume} made\n"))?;
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
