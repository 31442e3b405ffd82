//! The page, the metrics, and what is inside the mount: what people and monitoring see.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
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

/// `promtool check metrics`, where it is installed.
fn check_with_promtool(metrics: &str) {
    let body = metrics.split_once("\r\n\r\n").expect("a body").1;
    // Chunks have their length before them, which is no metric.
    let is_length = |line: &str| !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_hexdigit());
    let body: String =
        body.lines().filter(|line| !line.is_empty() && !is_length(line)).map(|line| format!("{line}\n")).collect();
    let spawned = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = spawned else {
        eprintln!("SKIPPED promtool check metrics: it is not installed (apt install prometheus)");
        return;
    };
    promtool.stdin.take().expect("piped").write_all(body.as_bytes()).expect("it reads");
    let said = promtool.wait_with_output().expect("it ends");
    assert!(said.status.success() && said.stderr.is_empty(), "{}", String::from_utf8_lossy(&said.stderr));
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
        check_with_promtool(&metrics);
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
    let mut shows = |expression: &str| {
        let shown = eventually(LIMIT, || browser.eval(expression) == true);
        assert!(shown, "{expression}: the page says {}", browser.eval("document.body.innerText"));
    };
    shows("document.querySelector('.state')?.textContent === 'live'");
    shows("document.title.includes('vol live')");
    for number in 0..50 {
        fs::write(mount.path().join(format!("file{number}")), vec![7; 20_000]).expect("writable");
    }
    // The plot of throughput is not flat any more.
    shows(
        "new Set((document.querySelector('svg.plot path').getAttribute('d') || '').split(/[ML]/).map(p => p.split(' ')[1])).size > 2",
    );
    storage.kill();
    let killed = Instant::now();
    shows("document.querySelector('.state').textContent === 'offline'");
    eprintln!("the outage was visible after {} ms", killed.elapsed().as_millis());
    shows("document.getElementById('events').textContent.includes('offline')");
    storage.restart();
    shows("document.querySelector('.state').textContent === 'live'");
    assert_eq!(browser.errors(), Vec::<String>::new());
}
