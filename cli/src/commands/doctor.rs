//! `tandem doctor`: looks at what a mount or a storage daemon of this host needs, and says what to do where something is missing.
//!
//! It changes nothing. With `--bundle` what it found, the status and the ends of the logs go into one text file for whoever helps;
//! secrets are never read.

use std::{
    fs,
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use tandem_proto::pb::{MountStatus, StatusRequest, admin_client::AdminClient};
use tandem_runtime::{
    connect::{DEFAULT_PORT, ServerAddress},
    dirs,
};

use crate::{
    exit::{Exit, Failure},
    json::Report,
    mounts::{Found, select},
    output::say,
    render, when,
};

/// Oldest kernel whose FUSE has what a mount needs at full speed (`docs/OPERATIONS.md`).
const KERNEL_MIN: (u32, u32) = (5, 15);
/// Less room than this is worth a word.
const ROOM_MIN_BYTES: u64 = 1 << 30;
/// A live mount that is less behind is on its way.
const LAG_MIN_SECONDS: f64 = 5.0;
/// A certificate is renewed long before.
const CERTIFICATE_MIN_SECONDS: f64 = 7.0 * 86_400.0;
/// Clocks that differ by more make displays of lag wrong.
const CLOCK_MAX_SECONDS: f64 = 2.0;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// What of each log goes into the bundle.
const LOG_TAIL_BYTES: u64 = 64 << 10;

/// Options of `tandem doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit code 0: nothing to do, 1: something is worth a look, 2: something is in the way.

Examples:
  tandem doctor
  tandem doctor --bundle /tmp/tandem.txt     for a report of a problem; read it before you send it")]
pub struct Args {
    /// Writes what was found, the status and the ends of the logs to this file. File names are in it, secrets and contents are not.
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
    /// A storage daemon to be looked at as well. Default: that of each mount, and port 7440 of this host if somebody listens there.
    #[arg(long, value_name = "HOST[:PORT]")]
    server: Option<ServerAddress>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Grade {
    Good,
    Look,
    Bad,
}

impl Grade {
    fn word(self) -> &'static str {
        match self {
            Grade::Good => "ok  ",
            Grade::Look => "LOOK",
            Grade::Bad => "BAD ",
        }
    }
}

/// One thing that was looked at: what it is, and what to do.
#[derive(Debug)]
struct Finding {
    grade: Grade,
    text: String,
    remedy: String,
}

fn good(text: impl Into<String>) -> Finding {
    Finding { grade: Grade::Good, text: text.into(), remedy: String::new() }
}

fn look(text: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { grade: Grade::Look, text: text.into(), remedy: remedy.into() }
}

fn bad(text: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { grade: Grade::Bad, text: text.into(), remedy: remedy.into() }
}

/// Runs it.
pub async fn run(args: Args) -> Result<Exit, Failure> {
    let mut findings = vec![kernel(&read("/proc/sys/kernel/osrelease"))];
    findings.extend(fuse());
    findings.push(directory("runtime directory", &dirs::runtime_dir()));
    findings.push(directory("state directory", &dirs::state_dir()));
    let found = select(&[]).await.unwrap_or_default();
    findings.extend(mounts(&found));
    let mut servers: Vec<ServerAddress> = args.server.iter().cloned().collect();
    servers.extend(found.mounts.iter().filter_map(|mount| mount.status.server.parse().ok()));
    servers.dedup();
    let asked = !servers.is_empty();
    if !asked {
        servers.push(ServerAddress::new("localhost", DEFAULT_PORT));
    }
    for server in &servers {
        findings.extend(storage(server, asked).await);
    }
    let mut text = String::new();
    for Finding { grade, text: what, remedy } in &findings {
        text.push_str(&format!("{}  {what}\n", grade.word()));
        if !remedy.is_empty() {
            text.push_str(&format!("      -> {remedy}\n"));
        }
    }
    say(&text)?;
    if let Some(path) = &args.bundle {
        let written = fs::write(path, bundle(&text, &found))
            .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o600)));
        written.map_err(|error| Failure::new(Exit::NoAnswer, format!("{}: {error}", path.display())))?;
        say(&format!("written to {}: read it before you send it\n", path.display()))?;
    }
    Ok(match findings.iter().map(|finding| finding.grade).max() {
        Some(Grade::Bad) => Exit::Unreachable,
        Some(Grade::Look) => Exit::Behind,
        _ => Exit::InSync,
    })
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= KERNEL_MIN => good(format!("kernel {release}")),
        (Some(_), Some(_)) => look(
            format!("kernel {release} is older than {}.{}", KERNEL_MIN.0, KERNEL_MIN.1),
            "mounts work from 4.20 on, slower; a newer kernel is worth it",
        ),
        _ => look(format!("kernel {release:?} is not known"), ""),
    }
}

fn fuse() -> Vec<Finding> {
    let device = match fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => good("/dev/fuse can be opened"),
        Err(error) => bad(
            format!("/dev/fuse cannot be opened: {error}"),
            "modprobe fuse; in a container give it the device: --device /dev/fuse --cap-add SYS_ADMIN",
        ),
    };
    let mut findings = vec![device];
    if rustix::process::geteuid().is_root() {
        findings.push(good("as root: mounts need no helper, and all users may enter"));
        return findings;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let helper = std::env::split_paths(&path).map(|dir| dir.join("fusermount3")).find(|path| path.exists());
    findings.push(match helper {
        None => bad("fusermount3 is missing, which mounts for users who are not root", "apt install fuse3"),
        Some(helper) => match fs::metadata(&helper).map(|is| is.permissions().mode() & 0o4000 != 0) {
            Ok(true) => good(format!("{} may mount", helper.display())),
            _ => bad(format!("{} is not setuid root", helper.display()), format!("chmod u+s {}", helper.display())),
        },
    });
    let allowed = read("/etc/fuse.conf").lines().any(|line| line.trim() == "user_allow_other");
    findings.push(match allowed {
        true => good("/etc/fuse.conf allows allow_other"),
        false => look(
            "/etc/fuse.conf does not allow allow_other: only you can enter your mounts",
            "if others must: add the line user_allow_other to /etc/fuse.conf, and mount with -o allow_other",
        ),
    });
    findings
}

fn directory(what: &str, path: &Path) -> Finding {
    let shown = path.display();
    let existing = path.ancestors().find(|at| at.exists()).unwrap_or(Path::new("/"));
    if rustix::fs::access(existing, rustix::fs::Access::WRITE_OK).is_err() {
        return bad(
            format!("{what} {shown} cannot be written"),
            "run as the user who owns it, or name another (--state, --runtime, TANDEM_STATE_DIR, TANDEM_RUNTIME_DIR)",
        );
    }
    match rustix::fs::statvfs(existing).map(|fs| fs.f_bavail.saturating_mul(fs.f_frsize)) {
        Ok(room) if room < ROOM_MIN_BYTES => {
            look(format!("{what} {shown}: only {} are free", render::bytes(room)), "make room on that file system")
        }
        Ok(room) => good(format!("{what} {shown}, {} free", render::bytes(room))),
        Err(error) => look(format!("{what} {shown}: {error}"), ""),
    }
}

fn mounts(found: &Found) -> Vec<Finding> {
    let mut findings = Vec::new();
    for silent in &found.silent {
        findings.push(bad(format!("{} does not answer", silent.place.display()), silent.reason.clone()));
    }
    for mount in &found.mounts {
        let status = &mount.status;
        let shown = format!("{} on {} is {}", status.volume, status.mountpoint, status.state);
        findings.push(match Exit::of_mount(status) {
            Exit::InSync => good(shown),
            // Somebody works on it right now.
            Exit::Behind if status.state == "live" && status.lag_seconds < LAG_MIN_SECONDS => good(shown),
            Exit::Behind => look(format!("{shown}, {} ops behind", status.ops_behind), status.reason.clone()),
            _ => bad(shown, status.reason.clone()),
        });
        if mount.daemon.version != env!("CARGO_PKG_VERSION") {
            let (theirs, ours) = (&mount.daemon.version, env!("CARGO_PKG_VERSION"));
            let text = format!("the daemon of {} is of version {theirs}, this command of {ours}", status.mountpoint);
            findings.push(look(text, "mount it again with the new version"));
        }
        if status.suspect_cells > 0 {
            let text = format!("the disk under {} failed to write {} cells", status.backing, status.suspect_cells);
            findings.push(bad(text, "look at its log (dmesg, smartctl), and replace it"));
        }
        if !status.bypass.is_empty() {
            let text = format!("these processes bypass {}: {}", status.mountpoint, status.bypass.join(", "));
            findings.push(look(text, "restart them: what they write is not seen before the next walk"));
        }
        findings.push(directory(&format!("backing directory of {}", status.mountpoint), Path::new(&status.mountpoint)));
        findings.extend(certificate(status));
    }
    if found.mounts.is_empty() && found.silent.is_empty() {
        findings.push(good("no mount of this user runs here"));
    }
    findings
}

/// The certificate of a mount that connects with one.
fn certificate(status: &MountStatus) -> Option<Finding> {
    if status.identity_expires_s == 0 {
        return None;
    }
    let left = (status.identity_expires_s - when::now_ns() / 1_000_000_000) as f64;
    let shown = format!("certificate of {} for {}", status.mountpoint, status.server);
    Some(match left {
        left if left <= 0.0 => bad(
            format!("{shown} has expired"),
            "run `tandem invite` on the storage host and `tandem join` here again; look at both clocks",
        ),
        left if left < CERTIFICATE_MIN_SECONDS => look(
            format!("{shown} expires in {}", render::seconds(left)),
            "it is renewed by itself while the mount is connected: see why it is not",
        ),
        left => good(format!("{shown}, good for {}", render::seconds(left))),
    })
}

/// `asked`: it must be there.
async fn storage(server: &ServerAddress, asked: bool) -> Vec<Finding> {
    let nobody = |why: String| {
        let taken = || std::net::TcpStream::connect((server.host.as_str(), server.port)).is_ok();
        vec![match asked {
            true => bad(format!("storage daemon {server}: {why}"), "start tandem-storaged there, or see its log"),
            false if taken() => look(
                format!("somebody else listens on {server}, where storage daemons do by default"),
                "if one is to run here: tandem-storaged --listen ADDRESS:PORT with a port that is free",
            ),
            false => good(format!("no storage daemon on {server}, and its port is free")),
        }]
    };
    if let Err(error) = server.may_connect() {
        return vec![look(error.to_string(), "")];
    }
    let begin = when::now_ns();
    let channel = match server.connect(ANSWER_TIMEOUT, None).await {
        Ok(channel) => channel,
        Err(error) => return nobody(crate::mounts::with_causes(&error)),
    };
    let mut client = AdminClient::with_interceptor(channel, server.credentials());
    let reply = match tokio::time::timeout(ANSWER_TIMEOUT, client.status(StatusRequest::default())).await {
        Err(_) => return nobody("no answer in time".to_owned()),
        Ok(Err(status)) => return nobody(tandem_runtime::failure::said(&status)),
        Ok(Ok(reply)) => reply.into_inner(),
    };
    let end = when::now_ns();
    let mut findings = Vec::new();
    let ill: Vec<_> = reply.volumes.iter().filter(|volume| Exit::of_volume(volume) == Exit::Unreachable).collect();
    for volume in ill {
        let text = format!("storage daemon {server}: volume {} is {}", volume.volume, volume.state);
        findings.push(bad(text, volume.reason.clone()));
    }
    if reply.version != env!("CARGO_PKG_VERSION") {
        let text = format!("storage daemon {server} is of version {}", reply.version);
        findings.push(look(text, format!("this command is of {}: upgrade the older one", env!("CARGO_PKG_VERSION"))));
    } else {
        let (version, volumes) = (&reply.version, reply.volumes.len());
        findings.push(good(format!("storage daemon {server}, version {version}, volumes: {volumes}")));
    }
    if reply.now_ns != 0 {
        findings.push(clock(server, begin, reply.now_ns, end));
    }
    if server.is_loopback() {
        let here = reply.volumes.iter().map(|volume| Path::new(&volume.directory)).filter(|path| path.is_dir());
        // They lie beside each other.
        findings.extend(here.filter_map(Path::parent).next().map(|path| directory("storage directory", path)));
    }
    findings
}

/// The clock of a storage daemon, asked between two looks at ours.
fn clock(server: &ServerAddress, begin: i64, theirs: i64, end: i64) -> Finding {
    let (early, late) = ((theirs - end) as f64 / 1e9, (begin - theirs) as f64 / 1e9);
    let remedy = "let both hosts keep time (systemd-timesyncd, chrony): displays of lag and history are wrong otherwise; no promise rests on it";
    match (early, late) {
        (ahead, _) if ahead > CLOCK_MAX_SECONDS => {
            look(format!("the clock of {server} is {} ahead of this one", render::seconds(ahead)), remedy)
        }
        (_, behind) if behind > CLOCK_MAX_SECONDS => {
            look(format!("the clock of {server} is {} behind this one", render::seconds(behind)), remedy)
        }
        _ => good(format!("the clock of {server} agrees with this one")),
    }
}

fn bundle(findings: &str, found: &Found) -> String {
    let mut text = format!("tandem {} at {}\n\n{findings}\n", env!("CARGO_PKG_VERSION"), when::shown(when::now_ns()));
    text.push_str("== status\n");
    text.push_str(&Report::of_mounts(found, super::status::worst(found)).pretty());
    text.push_str("\n== mounts\n");
    let ours = |line: &&str| line.contains("fuse") || line.contains("tandem");
    for line in read("/proc/self/mountinfo").lines().filter(ours) {
        text.push_str(line);
        text.push('\n');
    }
    for mount in &found.mounts {
        let log = Path::new(&mount.status.state_dir).join("mountd.log");
        text.push_str(&format!("\n== the end of {}\n", log.display()));
        text.push_str(&tail(&log).unwrap_or_else(|error| format!("{error}\n")));
    }
    text
}

fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = fs::File::open(path)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(LOG_TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use tandem_proto::pb::MountStatus;

    use super::{Grade, certificate, clock, kernel};

    #[test]
    fn clocks_and_certificates_that_are_off_are_told() {
        let server = tandem_runtime::connect::ServerAddress::new("far", 1);
        let second = 1_000_000_000;
        assert_eq!(clock(&server, 0, 5, 10).grade, Grade::Good);
        assert!(clock(&server, 0, 9 * second, second).text.ends_with("8.0 s ahead of this one"));
        assert!(clock(&server, 9 * second, second, 10 * second).text.ends_with("8.0 s behind this one"));
        let mut status = MountStatus::default();
        assert!(certificate(&status).is_none());
        status.identity_expires_s = 1;
        assert_eq!(certificate(&status).map(|found| found.grade), Some(Grade::Bad));
        status.identity_expires_s = i64::MAX / 2_000_000_000;
        assert_eq!(certificate(&status).map(|found| found.grade), Some(Grade::Good));
    }

    #[test]
    fn kernels_are_graded_by_their_numbers() {
        assert_eq!(kernel("6.1.0-30-amd64").grade, Grade::Good);
        assert_eq!(kernel("5.10.0").grade, Grade::Look);
        assert_eq!(kernel("6.12+deb13").grade, Grade::Good);
        assert_eq!(kernel("").grade, Grade::Look);
    }
}
