//! The page, the metrics, and what is inside the mount: what people and monitoring see.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use tandem_tests::{
    browser::Browser,
    harness::{Lab, Mount, eventually, rpc},
};

const LIMIT: Duration = Duration::from_secs(60);

fn get(url: &str, path: &str, host: Option<&str>) -> (u16, String) {
    let address = url.trim_start_matches("http://").trim_end_matches('/');
    let mut stream = TcpStream::connect(address).expect("the page is served");
    let host = host.unwrap_or(address);
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("text");
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
    (code, answer)
}

fn page_of(mount: &Mount) -> String {
    rpc::mount_status(&mount.socket()).expect("it answers").web
}

/// Metrics out of an answer, through `promtool check metrics`.
fn check_metrics(metrics: &str) {
    let body = metrics.split_once("\r\n\r\n").expect("a body").1;
    // Chunks have their length before them, which is no metric.
    let is_length = |line: &str| !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_hexdigit());
    let body: String =
        body.lines().filter(|line| !line.is_empty() && !is_length(line)).map(|line| format!("{line}\n")).collect();
    promtool(&["check", "metrics"], &body);
}

/// Where it is installed, `promtool` must have nothing to say against it.
fn promtool(args: &[&str], input: &str) {
    let spawned =
        Command::new("promtool").args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let Ok(mut promtool) = spawned else {
        eprintln!("SKIPPED promtool {}: it is not installed (apt install prometheus)", args.join(" "));
        return;
    };
    promtool.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
    let said = promtool.wait_with_output().expect("it ends");
    assert!(said.status.success() && said.stderr.is_empty(), "{said:?}");
}

#[test]
fn example_rules_and_dashboard_are_sound_and_ask_for_metrics_that_there_are() {
    let monitoring = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/monitoring");
    let rules = fs::read_to_string(format!("{monitoring}/alerts.yml")).expect("the rules");
    promtool(&["check", "rules", &format!("{monitoring}/alerts.yml")], "");
    let dashboard = fs::read_to_string(format!("{monitoring}/grafana.json")).expect("the dashboard");
    let panels: serde_json::Value = serde_json::from_str(&dashboard).expect("JSON");
    assert!(panels["panels"].as_array().is_some_and(|panels| panels.len() > 3));
    let known = include_str!("../../../docs/METRICS.md");
    let mut asked = 0;
    for word in format!("{rules}\n{dashboard}").split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
        let name = word.strip_suffix("_bucket").unwrap_or(word);
        // The label of a group, and what a rule is called.
        if name.starts_with("tandem_") {
            assert!(known.contains(&format!("`{name}`")), "{name} is no metric");
            asked += 1;
        }
    }
    assert!(asked > 10, "{asked}");
}

#[test]
fn page_and_metrics_are_served_to_this_machine_only() {
    let Some(lab) = Lab::new("page") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    fs::write(mount.path().join("file"), "text").expect("writable");
    mount.settle();
    let storage_page = storage.status().expect("it answers").web;
    for url in [page_of(&mount), storage_page] {
        let (code, page) = get(&url, "/", None);
        assert!(code == 200 && page.contains("<title>TandemFS") && page.contains("default-src 'none'"), "{page}");
        assert_eq!(get(&url, "/api/state", None).0, 200);
        assert_eq!(get(&url, "/etc/passwd", None).0, 404);
        // A page of somebody else whose name was made to mean this machine.
        assert_eq!(get(&url, "/api/state", Some("evil.example")).0, 403);
        let (code, metrics) = get(&url, "/metrics", None);
        assert!(code == 200 && metrics.contains("tandem_build_info{"), "{metrics}");
        check_metrics(&metrics);
    }
    let (_, metrics) = get(&page_of(&mount), "/metrics", None);
    assert!(metrics.contains("tandem_fuse_op_duration_seconds_bucket{") && metrics.contains(r#"state="live"} 1"#));
}

#[test]
fn the_mount_says_how_it_is_inside_itself() {
    let Some(lab) = Lab::new("inside") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    fs::write(mount.path().join("file"), "text").expect("writable");
    mount.settle();
    let read = |name: &str| fs::read_to_string(mount.path().join(".tandem").join(name)).expect("it is there");
    assert!(read("status").contains("state: live\n"), "{}", read("status"));
    assert!(read("lag").trim().parse::<f64>().is_ok());
    let position = read("position");
    assert!(position.trim().split_once(':').is_some_and(|(epoch, seq)| epoch != "0" && seq != "0"), "{position}");
    let listed = fs::read_dir(mount.path()).expect("a directory").map(|entry| entry.expect("an entry").file_name());
    assert_eq!(listed.collect::<Vec<_>>(), ["file"], "it is not in listings");
    assert!(
        fs::write(mount.path().join(".tandem/new"), "").is_err()
            && fs::remove_dir(mount.path().join(".tandem")).is_err()
    );

    let file = mount.path().join("file");
    let mut value = [0; 64];
    let len = rustix::fs::getxattr(&file, "user.tandem.position", &mut value[..]).expect("an attribute");
    let position = String::from_utf8_lossy(&value[..len]).into_owned();
    assert!(position.split_once(':').is_some_and(|(_, seq)| seq.parse::<u64>().is_ok()), "{position}");
    assert_eq!(rustix::fs::listxattr(&file, &mut value[..]).expect("listed"), 0, "it is not listed");
    // One of the folder's own wins, and status says so.
    mount.unmount();
    fs::create_dir(mount.path().join(".tandem")).expect("an ordinary folder now");
    fs::write(mount.path().join(".tandem/status"), "mine").expect("writable");
    mount.start_again().expect("mounts");
    assert_eq!(read("status"), "mine");
    assert!(mount.status().own_inside);
}

#[test]
fn a_browser_shows_the_page_and_it_moves() {
    let Some(lab) = Lab::new("browser") else { return };
    let storage = lab.storage();
    let mount = lab.mount(&storage, "vol", &lab.new_dir("folder"));
    mount.settle();
    let Some(mut browser) = Browser::open("browser", &lab.path("profile"), &page_of(&mount)) else { return };
    let mut shows = |expression: &str| shows(&mut browser, expression);
    shows("document.querySelector('.state')?.textContent === 'live'");
    shows("document.title.includes('vol live')");
    for number in 0..50 {
        fs::write(mount.path().join(format!("file{number}")), vec![7; 20_000]).expect("writable");
    }
    // The plot of throughput is not flat any more.
    shows(
        "new Set((document.querySelector('svg.plot path').getAttribute('d') || '').split(/[ML]/).map(p => p.split(' ')[1])).size > 2",
    );
    // What was done is told by the storage daemon, also on the page of the mount.
    shows("document.body.innerText.includes('/file49')");
    storage.kill();
    let killed = Instant::now();
    shows("document.querySelector('.state').textContent === 'offline'");
    eprintln!("the outage was visible after {} ms", killed.elapsed().as_millis());
    shows("document.getElementById('events').textContent.includes('offline')");
    storage.restart();
    shows("document.querySelector('.state').textContent === 'live'");
    // On a phone nothing is cut off, in the dark nothing is lost.
    for (name, width, height, dark) in
        [("wide", 1100, 1500, false), ("dark", 1100, 1500, true), ("phone", 390, 2400, false)]
    {
        browser.look(width, height, dark);
        let fits = format!("document.documentElement.scrollWidth <= {width}");
        self::shows(&mut browser, &fits);
        // For people who want to see it.
        if let Some(dir) = std::env::var_os("TANDEM_PICTURES") {
            fs::write(std::path::Path::new(&dir).join(format!("{name}.png.base64")), browser.picture())
                .expect("writable");
        }
    }
    assert_eq!(browser.errors(), Vec::<String>::new());
}

fn shows(browser: &mut Browser, expression: &str) {
    let shown = eventually(LIMIT, || browser.eval(expression) == true);
    assert!(shown, "{expression}: the page says {}", browser.eval("document.body.innerText"));
}

#[test]
fn another_user_of_this_machine_has_the_metrics_and_needs_the_token_for_the_page() {
    let Some(lab) = Lab::new("page-user") else { return };
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED page-user: only root can be another user");
        return;
    }
    let storage = lab.storage();
    let url = storage.status().expect("it answers").web;
    let address = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
    let (host, port) = address.split_once(':').expect("a port");
    let ask = |path: &str| {
        let script = format!(
            "exec 3<>/dev/tcp/{host}/{port}; printf 'GET {path} HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' >&3; cat <&3"
        );
        let ran = Command::new("bash").args(["-c", &script]).current_dir("/").uid(65_534).output().expect("bash runs");
        String::from_utf8_lossy(&ran.stdout).into_owned()
    };
    assert!(ask("/metrics").starts_with("HTTP/1.1 200"), "{}", ask("/metrics"));
    let refused = ask("/api/state");
    assert!(refused.starts_with("HTTP/1.1 401") && refused.contains("web-PORT.token"), "{refused}");
    let token = fs::read_to_string(lab.runtime_dir().join(format!("web-{port}.token"))).expect("the token");
    let let_in = ask(&format!("/?token={}", token.trim()));
    assert!(let_in.starts_with("HTTP/1.1 303") && let_in.contains("tandem_token="), "{let_in}");
    // Who has joined is told to who may look.
    let server = format!("127.0.0.1:{}", storage.port());
    let invited = lab.tandem(&["invite", "vol", "--server", &server, "--address", &server]).expect_success("invite");
    let token = invited.stdout.split_whitespace().last().expect("a token").to_owned();
    lab.tandem(&["join", &server, &token, "--name", "me@test"]).expect_success("join");
    let (code, state) = get(&url, "/api/state", None);
    assert!(code == 200 && state.contains(r#""name":"me@test""#) && state.contains("vol (writer)"), "{state}");
}
