//! Who has joined, and the invitations that are open. Each change is on the disk before it counts.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::{Mutex, RwLock};
use tandem_proto::volume::VolumeName;
use tandem_runtime::tls::{Fingerprint, SECRET_BYTES, now_s};

use super::{
    TrustError,
    ca::Issued,
    caller::{Member, Role},
    own,
    saved::{self, Saved, SavedCertificate, SavedClient, SavedInvitation},
};

/// Clients of one storage daemon.
const CLIENTS_MAX: usize = 10_000;
/// Invitations that are open at the same time.
const INVITATIONS_MAX: usize = 1000;
/// Certificates of one client: renewals happen at two thirds of a life, so two are good at once; some more for renewals that were lost.
const CERTIFICATES_MAX: usize = 8;
/// Volumes of one client.
const GRANTS_MAX: usize = 1000;
/// Of a client's name.
const NAME_MAX: usize = 64;

/// A change was refused.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The token is used, expired or made up: which of them is nobody's business.
    #[error(
        "this token is not good (any more): it was used, it expired, or it is not of this storage daemon; ask for a new one"
    )]
    BadToken,
    /// No such client.
    #[error("there is no client {0:?} here: `tandem clients` lists them")]
    NoClient(String),
    /// A bound.
    #[error("there are {1} {0} already, which is the bound: revoke some, or wait until they expire")]
    Full(&'static str, usize),
    /// The disk, or a certificate.
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// A client as it is listed.
#[derive(Clone, Debug)]
pub struct Listed {
    /// What it is called.
    pub name: String,
    /// Its roles.
    pub grants: BTreeMap<String, Role>,
    /// Unix time.
    pub joined_s: i64,
    /// Of its newest certificate.
    pub expires_s: i64,
    /// As its connections see it.
    pub member: Option<Arc<Member>>,
}

/// What a redeemed token gave.
#[derive(Debug)]
pub struct Redeemed {
    /// What the client is called.
    pub client: String,
    /// The volume.
    pub volume: String,
    /// The role.
    pub role: Role,
    /// Its certificate, if it had none.
    pub issued: Option<Issued>,
}

/// See the module.
pub struct Registry {
    path: PathBuf,
    saved: Mutex<Saved>,
    members: RwLock<HashMap<String, Arc<Member>>>,
    by_certificate: RwLock<HashMap<Fingerprint, Arc<Member>>>,
    /// Another authority vouches for clients.
    expects_named: AtomicBool,
}

fn grants(client: &SavedClient) -> BTreeMap<VolumeName, Role> {
    client.grants.iter().filter_map(|(name, role)| Some((name.parse().ok()?, *role))).collect()
}

/// What is kept of a secret.
fn digest(secret: &[u8]) -> String {
    Fingerprint::of(secret).to_string()
}

impl Registry {
    /// Reads the file.
    pub fn open(directory: &Path) -> Result<Registry, TrustError> {
        let path = saved::path(directory);
        let saved = Saved::load(&path)?;
        let (mut members, mut by_certificate) = (HashMap::new(), HashMap::new());
        for (name, client) in &saved.clients {
            let member = Arc::new(Member::new(name.clone(), client.named, grants(client)));
            for certificate in &client.certificates {
                if let Some(fingerprint) = Fingerprint::parse(&certificate.fingerprint) {
                    by_certificate.insert(fingerprint, member.clone());
                }
            }
            members.insert(name.clone(), member);
        }
        Ok(Registry {
            path,
            saved: Mutex::new(saved),
            members: RwLock::new(members),
            by_certificate: RwLock::new(by_certificate),
            expects_named: AtomicBool::new(false),
        })
    }

    /// The client that has this certificate.
    pub fn find(&self, fingerprint: &Fingerprint) -> Option<Arc<Member>> {
        self.by_certificate.read().get(fingerprint).cloned()
    }

    /// Whether another authority vouches for clients, so that who is not known yet can be given roles.
    pub fn expect_named(&self, expected: bool) {
        self.expects_named.store(expected, Ordering::Relaxed);
    }

    /// The client for which another authority vouches by this name. One that joined is not found so.
    pub fn find_named(&self, name: &str) -> Option<Arc<Member>> {
        // The file's lock is held while the disk is waited for, which a handshake must not.
        let member = self.members.read().get(name).cloned()?;
        member.named.then_some(member)
    }

    /// Gives a client a role instead of the one that it had. Who is not known is a name for which another authority vouches. Blocks on
    /// the disk.
    pub fn grant(&self, name: &str, volume: &VolumeName, role: Role) -> Result<(), RegistryError> {
        let mut saved = self.saved.lock();
        let mut next = saved.clone();
        if !next.clients.contains_key(name) {
            if !self.expects_named.load(Ordering::Relaxed) || !own::is_name(name) {
                return Err(RegistryError::NoClient(name.to_owned()));
            }
            if next.clients.len() >= CLIENTS_MAX {
                return Err(RegistryError::Full("clients", CLIENTS_MAX));
            }
            let client = SavedClient { joined_s: now_s(), grants: BTreeMap::new(), certificates: vec![], named: true };
            next.clients.insert(name.to_owned(), client);
        }
        let client = next.clients.get_mut(name).ok_or_else(|| RegistryError::NoClient(name.to_owned()))?;
        if client.grants.len() >= GRANTS_MAX && !client.grants.contains_key(volume.as_str()) {
            return Err(RegistryError::Full("volumes of this client", GRANTS_MAX));
        }
        let lowered = client.grants.insert(volume.to_string(), role).is_some_and(|had| had > role);
        let (granted, named) = (grants(client), client.named);
        next.store(&self.path)?;
        *saved = next;
        let mut members = self.members.write();
        let member = members
            .entry(name.to_owned())
            .or_insert_with(|| Arc::new(Member::new(name.to_owned(), named, BTreeMap::new())));
        // What is open under a higher role must not go on.
        member.set_grants(granted, lowered);
        Ok(())
    }

    /// Makes an invitation. Blocks on the disk.
    pub fn invite(
        &self,
        volume: &VolumeName,
        role: Role,
        ttl_s: i64,
    ) -> Result<([u8; SECRET_BYTES], i64), RegistryError> {
        let mut secret = [0; SECRET_BYTES];
        getrandom::fill(&mut secret).map_err(|error| TrustError::Tls(format!("no random numbers: {error}")))?;
        let mut saved = self.saved.lock();
        let mut next = saved.clone();
        next.invitations.retain(|_, invitation| invitation.expires_s > now_s());
        if next.invitations.len() >= INVITATIONS_MAX {
            return Err(RegistryError::Full("open invitations", INVITATIONS_MAX));
        }
        let expires_s = now_s() + ttl_s;
        next.invitations.insert(digest(&secret), SavedInvitation { volume: volume.to_string(), role, expires_s });
        next.store(&self.path)?;
        *saved = next;
        Ok((secret, expires_s))
    }

    /// Redeems an invitation, for a client that we know or for a new one, whose certificate `issue` makes. Blocks on the disk.
    pub fn redeem(
        &self,
        secret: &[u8],
        known: Option<&Arc<Member>>,
        name: &str,
        issue: impl FnOnce() -> Result<Issued, TrustError>,
    ) -> Result<Redeemed, RegistryError> {
        let mut saved = self.saved.lock();
        let key = digest(secret);
        let invitation = saved.invitations.get(&key).filter(|invitation| invitation.expires_s > now_s());
        let invitation = invitation.cloned().ok_or(RegistryError::BadToken)?;
        let mut next = saved.clone();
        next.invitations.remove(&key);
        let (client, issued) = match known {
            Some(member) => (member.name.clone(), None),
            None if next.clients.len() >= CLIENTS_MAX => return Err(RegistryError::Full("clients", CLIENTS_MAX)),
            None => {
                let (issued, name) = (issue()?, free_name(name, &next.clients));
                let client = SavedClient {
                    joined_s: now_s(),
                    grants: BTreeMap::new(),
                    certificates: vec![certificate(&issued)],
                    named: false,
                };
                next.clients.insert(name.clone(), client);
                (name, Some(issued))
            }
        };
        let entry = next.clients.get_mut(&client).ok_or(RegistryError::BadToken)?;
        let role =
            entry.grants.get(&invitation.volume).copied().map_or(invitation.role, |had| had.max(invitation.role));
        if entry.grants.len() >= GRANTS_MAX && !entry.grants.contains_key(&invitation.volume) {
            return Err(RegistryError::Full("volumes of this client", GRANTS_MAX));
        }
        entry.grants.insert(invitation.volume.clone(), role);
        let granted = grants(entry);
        next.store(&self.path)?;
        *saved = next;
        match (known, &issued) {
            (Some(member), _) => {
                member.set_grants(granted, false);
            }
            (None, issued) => {
                let member = Arc::new(Member::new(client.clone(), false, granted));
                self.members.write().insert(client.clone(), member.clone());
                if let Some(issued) = issued {
                    self.by_certificate.write().insert(issued.fingerprint, member);
                }
            }
        }
        Ok(Redeemed { client, volume: invitation.volume, role, issued })
    }

    /// Adds a certificate to a client. Blocks on the disk.
    pub fn renewed(&self, member: &Arc<Member>, issued: &Issued) -> Result<(), RegistryError> {
        let mut saved = self.saved.lock();
        let mut next = saved.clone();
        let missing = || RegistryError::NoClient(member.name.clone());
        let client = next.clients.get_mut(&member.name).ok_or_else(missing)?;
        // One that was revoked, and whose name was given again, is not this one.
        if !self.members.read().get(&member.name).is_some_and(|known| Arc::ptr_eq(known, member)) {
            return Err(missing());
        }
        client.certificates.push(certificate(issued));
        let (mut kept, mut gone) = (Vec::new(), Vec::new());
        let surplus = client.certificates.len().saturating_sub(CERTIFICATES_MAX);
        for (at, certificate) in client.certificates.drain(..).enumerate() {
            let old = at < surplus || certificate.expires_s <= now_s();
            if old { &mut gone } else { &mut kept }.push(certificate);
        }
        client.certificates = kept;
        next.store(&self.path)?;
        *saved = next;
        let mut known = self.by_certificate.write();
        for certificate in gone {
            Fingerprint::parse(&certificate.fingerprint).map(|fingerprint| known.remove(&fingerprint));
        }
        known.insert(issued.fingerprint, member.clone());
        Ok(())
    }

    /// Takes a role, or everything, from a client; its connections are cut once that is on the disk. How many. Blocks on the disk.
    pub fn revoke(&self, name: &str, volume: Option<&VolumeName>) -> Result<u32, RegistryError> {
        let mut saved = self.saved.lock();
        let mut next = saved.clone();
        let client = next.clients.get_mut(name).ok_or_else(|| RegistryError::NoClient(name.to_owned()))?;
        let left = match volume {
            Some(volume) => {
                client.grants.remove(volume.as_str());
                grants(client)
            }
            None => {
                next.clients.remove(name);
                BTreeMap::new()
            }
        };
        next.store(&self.path)?;
        *saved = next;
        if volume.is_none() {
            self.by_certificate.write().retain(|_, member| member.name != name);
        }
        let member = match volume {
            Some(_) => self.members.read().get(name).cloned(),
            None => self.members.write().remove(name),
        };
        Ok(member.map_or(0, |member| member.set_grants(left, true)))
    }

    /// Roles and invitations follow a volume to its new name; with none they are gone. Who had any is cut. Blocks on the disk.
    pub fn volume_is_now(&self, volume: &VolumeName, now: Option<&VolumeName>) -> Result<(), RegistryError> {
        let mut saved = self.saved.lock();
        let mut next = saved.clone();
        let mut changed = Vec::new();
        for (name, client) in &mut next.clients {
            if let Some(role) = client.grants.remove(volume.as_str()) {
                now.map(|now| client.grants.insert(now.to_string(), role));
                changed.push((name.clone(), grants(client)));
            }
        }
        match now {
            Some(now) => {
                let invitations = next.invitations.values_mut().filter(|one| one.volume == volume.as_str());
                invitations.for_each(|one| one.volume = now.to_string());
            }
            None => next.invitations.retain(|_, one| one.volume != volume.as_str()),
        }
        next.store(&self.path)?;
        *saved = next;
        let members = self.members.read();
        for (name, grants) in changed {
            members.get(&name).map(|member| member.set_grants(grants, true));
        }
        Ok(())
    }

    /// All clients by name.
    pub fn list(&self) -> Vec<Listed> {
        let saved = self.saved.lock();
        let members = self.members.read();
        let listed = |(name, client): (&String, &SavedClient)| Listed {
            name: name.clone(),
            grants: client.grants.clone(),
            joined_s: client.joined_s,
            expires_s: client.certificates.last().map_or(0, |certificate| certificate.expires_s),
            member: members.get(name).cloned(),
        };
        saved.clients.iter().map(listed).collect()
    }
}

fn certificate(issued: &Issued) -> SavedCertificate {
    SavedCertificate { fingerprint: issued.fingerprint.to_string(), expires_s: issued.expires_s }
}

/// A name as it was asked for, as far as it can be shown, and that nobody else has.
fn free_name(asked: &str, taken: &BTreeMap<String, SavedClient>) -> String {
    let fit = |c: &char| c.is_ascii_alphanumeric() || "@._-".contains(*c);
    let plain: String = asked.chars().filter(fit).take(NAME_MAX).collect();
    let plain = if plain.is_empty() { "client".to_owned() } else { plain };
    if !taken.contains_key(&plain) {
        return plain;
    }
    let numbered = (2..).map(|number| format!("{plain}-{number}"));
    numbered.into_iter().find(|name| !taken.contains_key(name)).unwrap_or(plain)
}

#[cfg(test)]
mod tests {
    use super::{Issued, Registry, RegistryError, Role, now_s};
    use tandem_runtime::tls::Fingerprint;

    fn issued(number: u8) -> Issued {
        let fingerprint = Fingerprint([number; 32]);
        Issued { certificate: vec![number], fingerprint, expires_s: now_s() + 100, renew_after_s: now_s() + 50 }
    }

    #[test]
    fn a_token_is_good_once_for_its_volume_and_lasts_over_a_restart() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let volume = "home".parse().expect("a name");
        let registry = Registry::open(dir.path()).expect("new");
        let (secret, _) = registry.invite(&volume, Role::Writer, 60).expect("invited");
        let (late, _) = registry.invite(&volume, Role::Writer, -1).expect("invited");
        let registry = Registry::open(dir.path()).expect("again");
        let redeem = |secret: &[u8]| registry.redeem(secret, None, "me@here\n<b>", || Ok(issued(1)));
        let redeemed = redeem(&secret).expect("good");
        assert_eq!((redeemed.client.as_str(), redeemed.role), ("me@hereb", Role::Writer));
        for bad in [&secret[..], &late, b"", &[0; 16]] {
            assert!(matches!(redeem(bad), Err(RegistryError::BadToken)));
        }
        let registry = Registry::open(dir.path()).expect("again");
        let member = registry.find(&issued(1).fingerprint).expect("known");
        assert_eq!(member.role(&volume), Some(Role::Writer));
        assert!(registry.find(&issued(2).fingerprint).is_none());
    }

    #[test]
    fn a_name_that_another_authority_vouches_for_has_roles_and_never_those_of_who_joined() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let volume = "home".parse().expect("a name");
        let registry = Registry::open(dir.path()).expect("new");
        let (secret, _) = registry.invite(&volume, Role::Admin, 60).expect("invited");
        registry.redeem(&secret, None, "joined", || Ok(issued(1))).expect("good");
        assert!(matches!(registry.grant("host.example", &volume, Role::Writer), Err(RegistryError::NoClient(_))));
        registry.expect_named(true);
        registry.grant("host.example", &volume, Role::Writer).expect("granted");
        assert!(matches!(registry.grant("no name", &volume, Role::Writer), Err(RegistryError::NoClient(_))));
        for registry in [&registry, &Registry::open(dir.path()).expect("again")] {
            let member = registry.find_named("host.example").expect("known");
            assert_eq!(member.role(&volume), Some(Role::Writer));
            assert!(registry.find_named("joined").is_none(), "a name is not enough to be somebody who joined");
        }
        let member = registry.find_named("host.example").expect("known");
        let (_open, cut) = member.connected(1).expect("connects");
        registry.grant("host.example", &volume, Role::Reader).expect("granted");
        assert!(cut.has_changed().expect("its member lives") && member.role(&volume) == Some(Role::Reader));
        // Who joins under a name that is taken gets another one.
        let (secret, _) = registry.invite(&volume, Role::Reader, 60).expect("invited");
        assert_eq!(
            registry.redeem(&secret, None, "host.example", || Ok(issued(2))).expect("good").client,
            "host.example-2"
        );
        assert_eq!(registry.revoke("host.example", None).expect("revoked"), 1);
        assert!(registry.find_named("host.example").is_none());
    }

    #[test]
    fn who_is_revoked_is_unknown_at_once_and_after_a_restart_also_by_its_renewed_certificate() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let volume = "home".parse().expect("a name");
        let registry = Registry::open(dir.path()).expect("new");
        let (secret, _) = registry.invite(&volume, Role::Reader, 60).expect("invited");
        registry.redeem(&secret, None, "a", || Ok(issued(1))).expect("good");
        let (second, _) = registry.invite(&volume, Role::Reader, 60).expect("invited");
        assert_eq!(registry.redeem(&second, None, "a", || Ok(issued(3))).expect("good").client, "a-2");
        let member = registry.find(&issued(1).fingerprint).expect("known");
        registry.renewed(&member, &issued(2)).expect("renewed");
        let (_open, mut cut) = member.connected(1).expect("connects");
        assert_eq!(registry.revoke("a", None).expect("revoked"), 1);
        assert!(cut.has_changed().expect("its member lives"));
        cut.mark_unchanged();
        for registry in [&registry, &Registry::open(dir.path()).expect("again")] {
            assert!(registry.find(&issued(1).fingerprint).is_none() && registry.find(&issued(2).fingerprint).is_none());
            assert!(registry.find(&issued(3).fingerprint).is_some());
        }
        assert!(member.role(&volume).is_none());
        assert!(registry.renewed(&member, &issued(4)).is_err());
        assert!(matches!(registry.revoke("a", None), Err(RegistryError::NoClient(_))));
    }
}
