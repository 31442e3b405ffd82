//! The `tandem` program as people and scripts see it, against daemons that only pretend.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
};

use tandem_proto::pb::{
    DivergenceHeader, DivergenceItem, DivergenceReply, DivergenceRequest, FileType, MountStatus, PauseReply,
    PauseRequest, ResumeReply, ResumeRequest, StatusReply, StatusRequest, UnmountReply, UnmountRequest, VerifyReply,
    VerifyRequest, WaitReply, WaitRequest, WatchRequest,
    admin_server::{Admin, AdminServer},
    divergence_reply::Body,
    mount_control_server::{MountControl, MountControlServer},
};
use tokio::{net::UnixListener, runtime::Runtime};
use tokio_stream::{Iter, wrappers::UnixListenerStream};
use tonic::{Request, Response, Status};

/// What a pretended mountd says, and what it was asked.
struct Script {
    mount: MountStatus,
    wait: WaitReply,
    unmount: UnmountReply,
    asked: Vec<String>,
}

#[derive(Clone)]
struct Pretended(Arc<Mutex<Script>>);

impl Pretended {
    fn note(&self, what: String) {
        self.0.lock().expect("not poisoned").asked.push(what);
    }

    fn asked(&self) -> Vec<String> {
        self.0.lock().expect("not poisoned").asked.clone()
    }

    fn reply(&self) -> StatusReply {
        let mount = self.0.lock().expect("not poisoned").mount.clone();
        StatusReply {
            daemon: "mountd".to_owned(),
            version: "1.2.3".to_owned(),
            pid: 42,
            mounts: vec![mount],
            ..Default::default()
        }
    }
}

#[tonic::async_trait]
impl Admin for Pretended {
    type WatchStream = Iter<std::vec::IntoIter<Result<StatusReply, Status>>>;

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        Ok(Response::new(self.reply()))
    }

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let mut changed = self.reply();
        changed.mounts[0].state = "paused".to_owned();
        let replies = vec![Ok(self.reply()), Ok(self.reply()), Ok(changed)];
        Ok(Response::new(tokio_stream::iter(replies)))
    }
}

#[tonic::async_trait]
impl MountControl for Pretended {
    async fn wait(&self, request: Request<WaitRequest>) -> Result<Response<WaitReply>, Status> {
        self.note(format!("wait {}", request.get_ref().timeout_ms));
        Ok(Response::new(self.0.lock().expect("not poisoned").wait.clone()))
    }

    async fn pause(&self, _: Request<PauseRequest>) -> Result<Response<PauseReply>, Status> {
        self.note("pause".to_owned());
        Ok(Response::new(PauseReply {}))
    }

    async fn resume(&self, _: Request<ResumeRequest>) -> Result<Response<ResumeReply>, Status> {
        self.note("resume".to_owned());
        Ok(Response::new(ResumeReply {}))
    }

    type DivergenceStream = Iter<std::vec::IntoIter<Result<DivergenceReply, Status>>>;

    async fn divergence(&self, _: Request<DivergenceRequest>) -> Result<Response<Self::DivergenceStream>, Status> {
        let header =
            DivergenceHeader { state: "fenced".to_owned(), replicated: "3:9".to_owned(), ..Default::default() };
        let path = |names: &[&'static str]| names.iter().map(|name| name.as_bytes().into()).collect();
        let there = DivergenceItem {
            path: path(&["a dir", "new"]),
            r#type: FileType::Regular.into(),
            size: 3,
            named: true,
            created: true,
            data: true,
            changed_bytes: 3,
            ..Default::default()
        };
        let gone = DivergenceItem { path: path(&["old"]), removed: true, ..Default::default() };
        let replies = vec![Body::Header(header), Body::Item(there), Body::Item(gone)];
        let replies: Vec<_> = replies.into_iter().map(|body| Ok(DivergenceReply { body: Some(body) })).collect();
        Ok(Response::new(tokio_stream::iter(replies)))
    }

    type VerifyStream = Iter<std::vec::IntoIter<Result<VerifyReply, Status>>>;

    async fn verify(&self, request: Request<VerifyRequest>) -> Result<Response<Self::VerifyStream>, Status> {
        let VerifyRequest { path, now } = request.into_inner();
        self.note(format!("verify {:?} now={now}", String::from_utf8_lossy(&path)));
        let under_way = VerifyReply { files_done: 1, ..Default::default() };
        let found = VerifyReply { found: "/x: it differs".to_owned(), ..Default::default() };
        let end = VerifyReply { done: true, files_done: 2, mismatches: 1, repaired: 1, ..Default::default() };
        Ok(Response::new(tokio_stream::iter(vec![Ok(under_way), Ok(found), Ok(end)])))
    }

    async fn unmount(&self, request: Request<UnmountRequest>) -> Result<Response<UnmountReply>, Status> {
        self.note(format!("unmount drain={}", request.get_ref().drain));
        let mut script = self.0.lock().expect("not poisoned");
        // Its socket is what the command waits for.
        let socket = script.asked.iter().find_map(|asked| asked.strip_prefix("socket ")).map(PathBuf::from);
        if let (true, Some(socket)) = (script.unmount.unmounted, socket) {
            std::fs::remove_file(socket).expect("socket");
        }
        script.asked.retain(|asked| !asked.starts_with("socket "));
        Ok(Response::new(script.unmount.clone()))
    }
}

/// A host with pretended daemons.
struct Host {
    dir: tempfile::TempDir,
    runtime: Runtime,
}

impl Host {
    fn new() -> Host {
        let host = Host {
            dir: tempfile::tempdir().expect("temporary directory"),
            runtime: Runtime::new().expect("tokio runtime"),
        };
        std::fs::create_dir(host.runtime_dir()).expect("runtime directory");
        host
    }

    fn runtime_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// A directory that serves as mountpoint.
    fn directory(&self, name: &str) -> PathBuf {
        let directory = self.dir.path().join(name);
        std::fs::create_dir_all(&directory).expect("directory");
        directory.canonicalize().expect("canonical")
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.runtime_dir().join(format!("mount-{name}.sock"))
    }

    fn serve(&self, mount: MountStatus) -> Pretended {
        let socket = self.socket(&mount.volume);
        let wait = WaitReply { reached: true, ..Default::default() };
        let unmount = UnmountReply { unmounted: true, ..Default::default() };
        let asked = vec![format!("socket {}", socket.display())];
        let pretended = Pretended(Arc::new(Mutex::new(Script { mount, wait, unmount, asked })));
        let server = tonic::transport::Server::builder()
            .add_service(AdminServer::new(pretended.clone()))
            .add_service(MountControlServer::new(pretended.clone()));
        let _guard = self.runtime.enter();
        let listener = UnixListener::bind(socket).expect("bind");
        self.runtime.spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        pretended
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tandem"));
        command.args(args).env("TANDEM_RUNTIME_DIR", self.runtime_dir());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("tandem runs")
    }
}

fn mount(volume: &str, mountpoint: &Path, state: &str) -> MountStatus {
    MountStatus {
        volume: volume.to_owned(),
        server: "127.0.0.1:7440".to_owned(),
        mountpoint: mountpoint.to_string_lossy().into_owned(),
        backing: mountpoint.to_string_lossy().into_owned(),
        state: state.to_owned(),
        lag_seconds: 0.004,
        fsync_mode: "local".to_owned(),
        cache_mode: "strict".to_owned(),
        epoch: 3,
        seq: 20,
        durable: 20,
        applied: 20,
        ..Default::default()
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("no signal")
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

#[test]
fn help_names_every_command_and_the_exit_codes() {
    let help = Host::new().run(&["--help"]);
    assert_eq!(code(&help), 0);
    for word in ["status", "watch", "wait", "umount", "pause", "resume", "Exit codes"] {
        assert!(out(&help).contains(word), "{word} is missing in: {}", out(&help));
    }
    assert_eq!(code(&Host::new().run(&["--version"])), 0);
}

#[test]
fn wrong_usage_ends_with_64() {
    let host = Host::new();
    let wrong: [&[&str]; 8] = [
        &[],
        &["nonsense"],
        &["status", "--nonsense"],
        &["wait", "--timeout", "soon"],
        &["umount"],
        &["umount", "--timeout", "3", "/x"],
        &["status", "--server", "host:0"],
        &["status", "--server", "192.0.2.1"],
    ];
    for args in wrong {
        let output = host.run(args);
        assert_eq!(code(&output), 64, "{args:?}: {}", err(&output));
        assert!(!err(&output).is_empty(), "{args:?}");
    }
}

#[test]
fn without_any_mount_everything_ends_with_3_and_says_so() {
    let host = Host::new();
    for args in [&["status"][..], &["wait"], &["watch"], &["pause"], &["resume"], &["umount", "/"], &["status", "/"]] {
        let output = host.run(args);
        assert_eq!(code(&output), 3, "{args:?}: {}", err(&output));
        assert!(err(&output).starts_with("tandem: "), "{args:?}: {}", err(&output));
    }
    let json = host.run(&["status", "--json"]);
    assert_eq!(code(&json), 3);
    let report: serde_json::Value = serde_json::from_str(&out(&json)).expect("JSON");
    assert_eq!((&report["version"], &report["exit_code"]), (&1.into(), &3.into()));
}

#[test]
fn a_missing_runtime_directory_and_left_over_sockets_are_no_mounts() {
    let host = Host::new();
    drop(std::os::unix::net::UnixListener::bind(host.socket("dead")).expect("bind"));
    assert_eq!(code(&host.run(&["status"])), 3);
    std::fs::remove_dir_all(host.runtime_dir()).expect("remove");
    assert_eq!(code(&host.run(&["status"])), 3);
}

#[test]
fn status_is_one_line_a_volume_and_the_worst_code_counts() {
    let host = Host::new();
    let (first, second) = (host.directory("first"), host.directory("second"));
    host.serve(mount("work", &first, "live"));
    let one = host.run(&["status"]);
    assert_eq!((code(&one), err(&one)), (0, String::new()));
    assert_eq!(out(&one), format!("work  {}  live  0 ops behind  4 ms  fsync=local\n", first.display()));

    let reason = "127.0.0.1:7440 does not answer; tried again in 1 s";
    host.serve(MountStatus { reason: reason.to_owned(), ops_behind: 1, ..mount("photos", &second, "offline") });
    let both = host.run(&["status"]);
    assert_eq!(code(&both), 2);
    assert!(out(&both).contains("  1 op behind"), "{}", out(&both));
    assert!(out(&both).contains(&format!("\n    {reason}\n")), "{}", out(&both));
    assert!(out(&both).ends_with("if it does not: tandem doctor\n"), "{}", out(&both));
    assert_eq!(code(&host.run(&["status", &first.to_string_lossy()])), 0);
}

#[test]
fn verbose_status_shows_what_is_left_out_of_the_line() {
    let host = Host::new();
    let dir = host.directory("work");
    let bypass = vec!["vim (pid 7)".to_owned()];
    host.serve(MountStatus { bypass, ..mount("work", &dir, "live") });
    let text = out(&host.run(&["status", "-v"]));
    for part in ["position    3:20, durable 20, applied 20", "bypassed by vim (pid 7)", "pid 42, version 1.2.3"] {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
}

#[test]
fn json_is_the_documented_contract() {
    let host = Host::new();
    let dir = host.directory("work");
    host.serve(MountStatus { lag_seconds: f64::NAN, ..mount("work", &dir, "lagging") });
    let report: serde_json::Value = serde_json::from_str(&out(&host.run(&["status", "--json"]))).expect("JSON");
    let mount = &report["mounts"][0];
    assert_eq!(report["exit_code"], 0);
    assert_eq!(mount["in_sync"], true);
    assert_eq!(mount["position"]["epoch"], 3);
    assert_eq!(mount["lag_seconds"], 0.0);
    assert_eq!(mount["progress"], serde_json::Value::Null);

    let documented = include_str!("../../docs/status-json.md");
    let fields = |value: &serde_json::Value| value.as_object().expect("object").keys().cloned().collect::<Vec<_>>();
    for field in fields(&report).into_iter().chain(fields(mount)) {
        assert!(documented.contains(&format!("`{field}`")), "docs/status-json.md does not describe {field}");
    }
}

#[test]
fn a_path_is_held_by_the_mount_with_the_longest_mountpoint() {
    let host = Host::new();
    let outer = host.directory("outer");
    let inner = host.directory("outer/inner");
    let deep = host.directory("outer/inner/a/b");
    let sibling = host.directory("outer/inner-not");
    let outer_mountd = host.serve(mount("outer", &outer, "live"));
    let inner_mountd = host.serve(mount("inner", &inner, "live"));
    assert_eq!(code(&host.run(&["wait", &deep.to_string_lossy()])), 0);
    assert!(inner_mountd.asked().contains(&"wait 0".to_owned()));
    assert!(!outer_mountd.asked().contains(&"wait 0".to_owned()));
    assert_eq!(code(&host.run(&["wait", "--timeout", "2.5", &sibling.to_string_lossy()])), 0);
    assert!(outer_mountd.asked().contains(&"wait 2500".to_owned()));
}

#[test]
fn wait_that_times_out_ends_with_1_and_says_what_lacks() {
    let host = Host::new();
    let dir = host.directory("work");
    let mountd = host.serve(mount("work", &dir, "catching-up"));
    mountd.0.lock().expect("not poisoned").wait =
        WaitReply { reached: false, seq: 20, applied: 13, reason: String::new() };
    let output = host.run(&["wait", "--timeout", "0", &dir.to_string_lossy()]);
    assert_eq!(code(&output), 1);
    assert!(err(&output).contains("lacks 7"), "{}", err(&output));
    assert!(mountd.asked().contains(&"wait 1".to_owned()), "no time at all is not no limit");
}

#[test]
fn umount_says_what_the_replica_lacks() {
    let host = Host::new();
    let dir = host.directory("work");
    let mountd = host.serve(mount("work", &dir, "offline"));
    mountd.0.lock().expect("not poisoned").unmount =
        UnmountReply { unmounted: true, ops_behind: 3, bytes_behind: 2048, ..Default::default() };
    let inside = host.directory("work/inside");
    assert_eq!(code(&host.run(&["umount", &inside.to_string_lossy()])), 64, "not a mountpoint");
    let output = host.run(&["umount", &dir.to_string_lossy()]);
    assert_eq!(code(&output), 1);
    assert!(out(&output).contains("lacks 3 operations, 2.0 KiB"), "{}", out(&output));
    assert_eq!(mountd.asked(), ["unmount drain=false"]);
}

#[test]
fn umount_that_fails_says_why_and_that_it_is_still_mounted() {
    let host = Host::new();
    let dir = host.directory("work");
    let mountd = host.serve(mount("work", &dir, "live"));
    let reason = "in use by bash (pid 9)".to_owned();
    mountd.0.lock().expect("not poisoned").unmount = UnmountReply { reason, ..Default::default() };
    let output = host.run(&["umount", "--drain", &dir.to_string_lossy()]);
    assert_eq!(code(&output), 1);
    assert!(err(&output).contains("still mounted: in use by bash (pid 9)"), "{}", err(&output));
}

#[test]
fn pause_and_resume_reach_every_mount() {
    let host = Host::new();
    let first = host.serve(mount("first", &host.directory("first"), "live"));
    let second = host.serve(mount("second", &host.directory("second"), "live"));
    assert_eq!(code(&host.run(&["pause"])), 0);
    assert_eq!(code(&host.run(&["resume", &host.directory("second").to_string_lossy()])), 0);
    assert!(first.asked().contains(&"pause".to_owned()) && !first.asked().contains(&"resume".to_owned()));
    assert!(second.asked().contains(&"resume".to_owned()));
}

#[test]
fn watch_prints_each_change_once_and_ends_with_its_daemon() {
    let host = Host::new();
    host.serve(mount("work", &host.directory("work"), "live"));
    let output = host.run(&["watch", "--json"]);
    assert_eq!(code(&output), 3);
    let states: Vec<_> = out(&output)
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON")["mounts"][0]["state"].clone())
        .collect();
    assert_eq!(states, ["live", "paused"]);
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let host = Host::new();
    for number in 0..20 {
        host.serve(mount(&format!("v{number}"), &host.directory(&format!("d{number}")), "live"));
    }
    let mut child =
        host.command(&["status", "-v"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("tandem runs");
    drop(child.stdout.take());
    let mut complaint = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut complaint).expect("UTF-8");
    assert_eq!(complaint, "");
    assert!(child.wait().expect("ends").code().is_some());
}

#[test]
fn a_daemon_that_hangs_does_not_answer() {
    let host = Host::new();
    host.serve(mount("work", &host.directory("work"), "live"));
    let hanging = std::os::unix::net::UnixListener::bind(host.socket("hangs")).expect("bind");
    let output = host.run(&["status"]);
    drop(hanging);
    assert_eq!(code(&output), 3);
    assert!(err(&output).contains("mount-hangs.sock  does not answer"), "{}", err(&output));
    assert!(out(&output).contains("live"), "the others are shown: {}", out(&output));
}

#[test]
fn divergence_lists_what_the_replica_does_not_have_and_exports_it() {
    let host = Host::new();
    let dir = host.directory("work");
    host.serve(mount("work", &dir, "fenced"));
    std::fs::create_dir(dir.join("a dir")).expect("mkdir");
    std::fs::write(dir.join("a dir/new"), "abc").expect("write");
    let place = dir.to_string_lossy().into_owned();
    let output = host.run(&["divergence", &place]);
    assert_eq!(code(&output), 1);
    for part in ["fenced", "up to 3:9", "created", "'a dir/new'", "removed", "2 paths differ"] {
        assert!(out(&output).contains(part), "{part:?} is missing in:\n{}", out(&output));
    }
    let json = out(&host.run(&["divergence", "--json", &place]));
    let paths = json.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON")["path"].clone());
    assert_eq!(paths.collect::<Vec<_>>(), ["a dir/new", "old"]);

    let export = host.directory("export");
    let exported = host.run(&["divergence", "--export", &export.to_string_lossy(), &place]);
    assert_eq!(code(&exported), 0, "{}", err(&exported));
    assert_eq!(std::fs::read(export.join("tree/a dir/new")).expect("copied"), b"abc");
    assert_eq!(std::fs::read_to_string(export.join("removed")).expect("written"), "old\n");
    let again = host.run(&["divergence", "--export", &export.to_string_lossy(), &place]);
    assert_eq!(code(&again), 64, "nothing is copied over something");
}
