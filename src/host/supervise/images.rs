//! Images of a host: brought in by digest, complete or not there.

use super::state::Supervisor;
use keelway_container::Image;
use keelway_deploy::protocol::{ImageReport, Refusal, RefusalKind, RegistryAccess};
use keelway_http::{Pem, Settings as HttpSettings};
use keelway_model::oci::{Descriptor, Manifest, media};
use keelway_model::{Bytes, Digest, Platform, PushedDigest};
use keelway_registry::{
    Client, Credentials, HostSettings, Problem, Progress, RegistryError, RegistrySettings, Retries, Stage,
};
use keelway_store::Store;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Kept free beyond what a pull needs.
const SPARE: u64 = 64 << 20;
/// Images that are kept from being brought in until they are recorded, at most.
const FRESH: usize = 4;
/// Unpacked bytes expected for each compressed one, for the look at the disk before a pull.
const UNPACKED: u64 = 4;

impl Supervisor {
    /// Whether the image can be run without a registry.
    pub(super) async fn has_image(&self, digest: Digest) -> Result<bool, Refusal> {
        let store = self.session().await?;
        blocking(move || Ok(is_complete(&store, digest))).await
    }

    /// Brings an image in, checked, and unpacks it.
    pub(super) async fn ensure_image(
        &self,
        image: &PushedDigest,
        access: RegistryAccess,
    ) -> Result<ImageReport, Refusal> {
        let digest = image.digest();
        let store = self.session().await?;
        self.keep_for_now(digest, store.clone());
        if self.has_image(digest).await? {
            self.publish(&store, image).await?;
            return Ok(ImageReport { local: true, fetched: Bytes(0) });
        }
        let client = client(image, access)?;
        let fetched = Arc::new(Fetched::default());
        let progress = {
            let fetched = Arc::clone(&fetched);
            Arc::new(move |p: Progress| fetched.note(&p))
        };
        let refused = |e: RegistryError| refusal(image, &e);
        let found = client
            .fetch_image(&store, &image.to_ref(), &Platform::host(), progress.clone())
            .await
            .map_err(refused)?;
        if found.descriptor.digest != digest {
            let text = format!("{image} is not the manifest of one image; push the image's own manifest");
            return Err(Refusal::new(RefusalKind::ImageDenied, text));
        }
        let packed: u64 = found.manifest.layers.iter().map(|l| l.size).sum();
        self.check_disk(packed.saturating_mul(1 + UNPACKED))?;
        client
            .fetch_layers(&store, image.repository(), &found.manifest, &found.config, progress)
            .await
            .map_err(refused)?;
        self.publish(&store, image).await?;
        Ok(ImageReport { local: false, fetched: Bytes(fetched.total()) })
    }

    /// Unpacks, then makes the image survive a crash of the machine.
    async fn publish(&self, store: &Store, image: &PushedDigest) -> Result<(), Refusal> {
        let (store, name, digest) = (store.clone(), image.to_ref(), image.digest());
        blocking(move || {
            Image::prepare(&store, digest).map_err(|e| unpack_refusal(&e))?;
            let size = store.blob_size(&digest).unwrap_or(0);
            let kind = manifest_type(&store, digest);
            let descriptor = Descriptor::new(kind, digest, size);
            store.set_reference(&name, &descriptor).map_err(|e| full_or_failed(e.to_string()))
        })
        .await
    }

    /// The store for one order: what it holds is let go of after it.
    async fn session(&self) -> Result<Store, Refusal> {
        let store = self.store.clone();
        blocking(move || store.session().map_err(|e| full_or_failed(e.to_string()))).await
    }

    /// An image is here before anything says that it is needed: the release is recorded next. So the last few that were
    /// brought in stay.
    fn keep_for_now(&self, image: Digest, store: Store) {
        let mut fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        fresh.retain(|(other, _)| *other != image);
        fresh.push_back((image, store));
        if fresh.len() > FRESH {
            fresh.pop_front();
        }
    }

    /// A release says now that the image is needed.
    pub(super) fn is_recorded(&self, image: Digest) {
        let mut fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        fresh.retain(|(other, _)| *other != image);
    }

    fn check_disk(&self, needed: u64) -> Result<(), Refusal> {
        let free = free_bytes(self.store.path()).map_err(full_or_failed)?;
        if free >= needed.saturating_add(SPARE) {
            return Ok(());
        }
        let text = format!(
            "the image needs about {} in {}, {} are free: make room there",
            Bytes(needed),
            self.store.path().display(),
            Bytes(free)
        );
        Err(Refusal::new(RefusalKind::DiskFull, text))
    }
}

/// Free space for us where `path` is.
pub(super) fn free_bytes(path: &Path) -> Result<u64, String> {
    let stat = nix::sys::statvfs::statvfs(path)
        .map_err(|e| format!("cannot ask how full {} is: {e}", path.display()))?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

/// Runs blocking work; a panic in it becomes an answer.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => {
            Err(Refusal::new(RefusalKind::Failed, format!("a bug in keelway on the host: {error}")))
        }
    }
}

/// Manifest, config and every layer, unpacked or as a blob.
fn is_complete(store: &Store, digest: Digest) -> bool {
    if !store.has_blob(&digest) {
        return false;
    }
    let Ok((manifest, _)) = Image::documents(store, digest) else { return false };
    // A layer that was unpacked may have lost its blob: then preparing tells, at no cost.
    manifest.layers.iter().all(|l| store.has_blob(&l.digest)) || Image::prepare(store, digest).is_ok()
}

fn manifest_type(store: &Store, digest: Digest) -> String {
    let manifest: Option<Manifest> =
        store.read_blob(&digest, 4 << 20).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    manifest.and_then(|m| m.media_type).unwrap_or_else(|| media::MANIFEST.to_owned())
}

fn client(image: &PushedDigest, access: RegistryAccess) -> Result<Client, Refusal> {
    let access = access.for_image(image);
    let registry = image.repository().registry().to_owned();
    let pems = |of: &str, texts: Vec<String>| -> Vec<Pem> {
        let pem = |(i, text): (usize, String)| Pem {
            origin: format!("certificate authority {} {of}", i + 1),
            text: text.into_bytes(),
        };
        texts.into_iter().enumerate().map(pem).collect()
    };
    let host = HostSettings {
        plain_http: access.plain_http,
        roots: pems("of the target's registry", access.roots),
        token_realms: access.token_realms,
    };
    let mut credentials = Credentials::default();
    if let Some(login) = access.login {
        let login =
            keelway_registry::docker_config::Login::Password { user: login.user, password: login.password.0 };
        credentials = credentials.with_login(&registry, login, "the deployer");
    }
    let settings = RegistrySettings {
        credentials,
        hosts: BTreeMap::from([(registry, host)]),
        retries: Retries::default(),
        ..RegistrySettings::default()
    };
    let bad = |e: keelway_http::SettingsError| Refusal::new(RefusalKind::ImageDenied, e.to_string());
    let extra_roots = pems("of the deploying machine", access.extra_roots);
    let http =
        keelway_http::Client::new(HttpSettings { extra_roots, ..HttpSettings::default() }).map_err(bad)?;
    Client::new(&http, settings).map_err(bad)
}

/// Bytes that came, over all blobs.
#[derive(Debug, Default)]
struct Fetched(Mutex<HashMap<Digest, u64>>);

impl Fetched {
    fn note(&self, p: &Progress) {
        if p.stage != Stage::Present {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(p.digest, p.done);
        }
    }
    fn total(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }
}

fn refusal(image: &PushedDigest, error: &RegistryError) -> Refusal {
    let kind = match error.problem() {
        Problem::Http(e) if e.is_transient() => RefusalKind::ImageUnavailable,
        Problem::Server { .. } => RefusalKind::ImageUnavailable,
        Problem::Store(e) => return full_or_failed(format!("cannot store {image}: {e}")),
        _ => RefusalKind::ImageDenied,
    };
    Refusal::new(kind, error.to_string())
}

fn unpack_refusal(error: &keelway_container::ImageError) -> Refusal {
    full_or_failed(error.to_string())
}

/// The store's errors come as text by now; what the system says of a full disk is in it.
fn full_or_failed(text: String) -> Refusal {
    let full = text.contains("No space left on device") || text.contains("Disk quota exceeded");
    Refusal::new(if full { RefusalKind::DiskFull } else { RefusalKind::Failed }, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelway_deploy::protocol::{Login, WireSecret};

    #[test]
    fn authorities_of_both_kinds_reach_the_client() {
        let image =
            PushedDigest::attested_by_registry("r.example.com/web".parse().unwrap(), Digest::of(b"x"));
        let none = || vec!["no certificate".to_owned()];
        let given = RegistryAccess { registry: "r.example.com".into(), ..RegistryAccess::default() };
        assert!(client(&image, given.clone()).is_ok());
        let of_all = client(&image, RegistryAccess { extra_roots: none(), ..given.clone() }).unwrap_err();
        assert!(of_all.message.contains("1 of the deploying machine"), "{of_all}");
        let of_one = client(&image, RegistryAccess { roots: none(), ..given }).unwrap_err();
        assert!(of_one.message.contains("1 of the target's registry"), "{of_one}");
    }

    #[tokio::test]
    async fn a_login_is_for_the_registry_it_was_given_for() {
        let login = Login { user: "u".into(), password: WireSecret("p".to_owned().into()) };
        let access = RegistryAccess {
            registry: "new.example.com".into(),
            login: Some(login),
            ..RegistryAccess::default()
        };
        for (repository, known) in [("new.example.com/web", true), ("old.example.com/web", false)] {
            let image = PushedDigest::attested_by_registry(
                repository.parse().unwrap(),
                Digest::of(repository.as_bytes()),
            );
            let client = client(&image, access.clone()).unwrap();
            for registry in ["new.example.com", "old.example.com"] {
                let has = client.login_for(registry).await.unwrap().is_some();
                assert_eq!(has, known && registry == "new.example.com", "{repository}: {registry}");
            }
        }
    }
}
