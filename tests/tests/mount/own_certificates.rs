//! Certificates of somebody else's authority, on both sides, beside those of the storage daemon's own.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tandem_tests::harness::{Finished, Lab, MountSpec, Storage, eventually};

use crate::support::assert_equal_and_unmount;

const SOON: Duration = Duration::from_secs(30);

/// An authority of somebody else, with its certificate in a file.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    file: PathBuf,
}

/// What is needed to be somebody.
struct Certified {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

impl Authority {
    fn new(lab: &Lab, name: &str) -> Authority {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let file = lab.path(&format!("{name}-ca.pem"));
        write(&file, &params.self_signed(&key).expect("signed").pem(), 0o644);
        Authority { issuer: Issuer::new(params, key), file }
    }

    /// `name` is a host name or an address. The other side is vouched for by `other`.
    fn certify(&self, lab: &Lab, name: &str, other: &Authority) -> Certified {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        let [cert, private] = ["cert", "key"].map(|what| lab.path(&format!("{name}-{what}.pem")));
        write(&cert, &certificate.pem(), 0o644);
        write(&private, &key.serialize_pem(), 0o600);
        Certified { ca: other.file.clone(), cert, key: private }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("plain text")
}

/// A storage daemon that shows a certificate of `servers`, and believes in those of `clients`.
fn storage(lab: &Lab, servers: &Authority, clients: &Authority) -> Storage {
    let shown = servers.certify(lab, "127.0.0.1", clients);
    let flags =
        ["--tls-cert", text(&shown.cert), "--tls-key", text(&shown.key), "--tls-client-ca", text(&clients.file)];
    Storage::start_with(lab, "storage", &flags)
}

fn tandem(lab: &Lab, storage: &Storage, words: &[&str]) -> Finished {
    let server = format!("127.0.0.1:{}", storage.port());
    lab.tandem(&[words, &["--server", &server]].concat())
}

fn options(certified: &Certified) -> String {
    format!("ca={},cert={},key={}", text(&certified.ca), text(&certified.cert), text(&certified.key))
}

#[test]
fn client_of_another_authority_mounts_by_the_name_that_was_given_a_role_and_is_cut_when_it_is_revoked() {
    let Some(lab) = Lab::new("own-certs") else { return };
    lab.allow_lost_peers();
    let (servers, clients) = (Authority::new(&lab, "servers"), Authority::new(&lab, "clients"));
    let storage = storage(&lab, &servers, &clients);
    let laptop = clients.certify(&lab, "laptop.example", &servers);
    let dir = lab.new_dir("folder");
    fs::write(dir.join("file"), "1").expect("written");
    let spec = MountSpec::new(&storage, "vol", &dir).options(&options(&laptop));
    // The name is vouched for; without a role it is nobody's.
    let refused = lab.mount_refused(&spec);
    assert!(refused.stderr.contains("does not know your certificate"), "{refused:#?}");

    tandem(&lab, &storage, &["grant", "laptop.example", "vol"]).expect_success("grant");
    let mount = lab.mount_with(&spec);
    mount.settle();
    assert_eq!(mount.status().security, "tls");
    let listed = tandem(&lab, &storage, &["clients"]).stdout;
    assert!(listed.contains("laptop.example") && listed.contains("vol:writer"), "{listed}");
    // The command uses the same files.
    let mut asked = lab.command("tandem");
    asked.args(["status", "--server", &format!("127.0.0.1:{}", storage.port())]);
    asked.env("TANDEM_CA", &laptop.ca).env("TANDEM_CERT", &laptop.cert).env("TANDEM_KEY", &laptop.key);
    let seen = tandem_tests::harness::run(&mut asked, SOON);
    assert!(seen.stdout.contains("vol"), "{seen:#?}");

    tandem(&lab, &storage, &["revoke", "laptop.example"]).expect_success("revoke");
    assert!(eventually(SOON, || mount.status().state == "offline"), "{:#?}", mount.status());
    fs::write(dir.join("after"), "2").expect("local work goes on");
    tandem(&lab, &storage, &["grant", "laptop.example", "vol", "--role", "writer"]).expect_success("grant");
    mount.settle();
    assert_equal_and_unmount(&mount, &storage, "vol");
}

#[test]
fn neither_side_takes_a_certificate_of_an_authority_that_it_was_not_told_of() {
    let Some(lab) = Lab::new("own-certs-other") else { return };
    lab.allow_lost_peers();
    let (servers, clients, others) =
        (Authority::new(&lab, "servers"), Authority::new(&lab, "clients"), Authority::new(&lab, "others"));
    let storage = storage(&lab, &servers, &clients);
    tandem(&lab, &storage, &["grant", "laptop.example", "vol"]).expect_success("grant");
    let dir = lab.new_dir("folder");
    let refused = |certified: &Certified| {
        lab.mount_refused(&MountSpec::new(&storage, "vol", &dir).options(&options(certified))).stderr
    };
    // The right name, vouched for by the wrong authority: a stranger, who hears so.
    let stranger = others.certify(&lab, "laptop.example", &servers);
    let said = refused(&stranger);
    assert!(said.contains("UnknownCA") || said.to_lowercase().contains("certificate"), "{said}");
    // The right client, which does not believe this storage daemon.
    let said = refused(&clients.certify(&lab, "laptop.example", &others));
    assert!(said.contains("not the storage daemon"), "{said}");
    // A name without a role, although its authority is the right one.
    let said = refused(&clients.certify(&lab, "other.example", &servers));
    assert!(said.contains("does not know your certificate"), "{said}");
    let exposed = clients.certify(&lab, "laptop.example", &servers);
    fs::set_permissions(&exposed.key, fs::Permissions::from_mode(0o644)).expect("chmod");
    assert!(refused(&exposed).contains("chmod 600"));
}

#[test]
fn client_that_joined_goes_on_beside_and_new_certificates_count_at_sighup() {
    let Some(lab) = Lab::new("own-certs-beside") else { return };
    lab.allow_lost_peers();
    let (servers, clients) = (Authority::new(&lab, "servers"), Authority::new(&lab, "clients"));
    let storage = storage(&lab, &servers, &clients);
    let server = format!("127.0.0.1:{}", storage.port());
    let token = tandem(&lab, &storage, &["invite", "joined", "--address", &server]).expect_success("invite").stdout;
    let token = token.split_whitespace().last().expect("a token").to_owned();
    lab.tandem(&["join", &server, &token]).expect_success("join");
    let joined = lab.mount(&storage, "joined", &lab.new_dir("joined"));
    joined.settle();
    assert_eq!(joined.status().security, "tls");

    // Another authority for clients takes the place of the first.
    let others = Authority::new(&lab, "others");
    fs::copy(&others.file, &clients.file).expect("replaced");
    storage.daemon().signal(libc::SIGHUP);
    assert!(eventually(SOON, || storage.daemon().log_text().contains("the configuration was read again")));
    tandem(&lab, &storage, &["grant", "new.example", "vol"]).expect_success("grant");
    let certified = others.certify(&lab, "new.example", &servers);
    let dir = lab.new_dir("folder");
    let mount = lab.mount_with(&MountSpec::new(&storage, "vol", &dir).options(&options(&certified)));
    fs::write(dir.join("file"), "1").expect("writable");
    assert_equal_and_unmount(&mount, &storage, "vol");
    let dir = joined.path().to_owned();
    fs::write(dir.join("file"), "2").expect("writable");
    assert_equal_and_unmount(&joined, &storage, "joined");
}
