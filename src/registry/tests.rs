//! What the tests of this crate share: stores, images made by hand, clients, a registry out of a table.

mod faults;
mod fuzz;
mod logins;
mod real;

use crate::{Client, Credentials, HostSettings, RegistrySettings, Retries, docker_config};
use keelway_http::Pem;
use keelway_model::oci::{Descriptor, ImageConfig, Manifest, RootFs, media};
use keelway_model::{Digest, ImageRef, Platform, Repository};
use keelway_store::Store;
use keelway_tests::server::{Reply, Seen, Server};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A store on /dev/shm that goes with the test.
struct TestStore {
    store: Store,
    dir: tempfile::TempDir,
}

impl TestStore {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("registry-test-").tempdir_in("/dev/shm").unwrap();
        let store =
            Store::open(&dir.path().join("store"), Arc::new(keelway_model::clock::SystemClock)).unwrap();
        Self { store, dir }
    }

    /// Every file, without what never holds content.
    fn files(&self) -> BTreeSet<PathBuf> {
        fn walk(dir: &Path, out: &mut BTreeSet<PathBuf>) {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    walk(&entry.path(), out);
                } else {
                    out.insert(entry.path());
                }
            }
        }
        let mut out = BTreeSet::new();
        walk(self.dir.path(), &mut out);
        out
    }

    /// Waits until the store holds these files and no other.
    #[track_caller]
    fn settles_at(&self, before: &BTreeSet<PathBuf>) {
        let end = Instant::now() + Duration::from_secs(5);
        while self.files() != *before {
            assert!(
                Instant::now() < end,
                "left in the store: {:?}",
                self.files().difference(before).collect::<Vec<_>>()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A layer with one file of so many bytes that do not compress.
fn layer(seed: u8, size: usize) -> Vec<u8> {
    let mut state = u64::from(seed) + 1;
    let content: Vec<u8> = (0..size)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .collect();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(0);
    tar.append_data(&mut header, format!("file-{seed}"), &content[..]).unwrap();
    tar.into_inner().unwrap()
}

/// An image as bytes.
struct Image {
    layers: Vec<Vec<u8>>,
    config: Vec<u8>,
    manifest: Vec<u8>,
}

impl Image {
    fn new(layers: Vec<Vec<u8>>) -> Self {
        let mut config = ImageConfig::scratch(Platform::host());
        config.rootfs =
            RootFs { kind: "layers".into(), diff_ids: layers.iter().map(|l| Digest::of(l)).collect() };
        let config = serde_json::to_vec(&config).unwrap();
        let d = |kind: &str, bytes: &[u8]| Descriptor::new(kind, Digest::of(bytes), bytes.len() as u64);
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(media::MANIFEST.into()),
            config: d(media::CONFIG, &config),
            layers: layers.iter().map(|l| d(media::LAYER, l)).collect(),
            annotations: BTreeMap::new(),
            extra: BTreeMap::new(),
        };
        Self { layers, config, manifest: serde_json::to_vec(&manifest).unwrap() }
    }

    fn descriptor(&self) -> Descriptor {
        Descriptor::new(media::MANIFEST, Digest::of(&self.manifest), self.manifest.len() as u64)
    }

    fn put(&self, store: &Store) -> Descriptor {
        for bytes in self.layers.iter().chain([&self.config, &self.manifest]) {
            store.put_blob(bytes).unwrap();
        }
        self.descriptor()
    }

    /// A registry's answers for this image, as `/v2/<name>/..` and tag `t`.
    fn serve(&self, seen: &Seen) -> Reply {
        let path = seen.path_only();
        if path == "/v2/" {
            return Reply::status(200);
        }
        let Some((_, rest)) = path.split_once("/app/") else { return Reply::status(404) };
        let digest = self.descriptor().digest.to_string();
        if rest == "manifests/t" || rest == format!("manifests/{digest}") {
            let body = if seen.method == "HEAD" { Vec::new() } else { self.manifest.clone() };
            return Reply::bytes(body)
                .with("content-type", media::MANIFEST)
                .with("docker-content-digest", digest);
        }
        for bytes in self.layers.iter().chain([&self.config]) {
            if rest == format!("blobs/{}", Digest::of(bytes)) {
                return Reply::bytes(bytes.clone());
            }
        }
        Reply::status(404)
    }
}

/// A registry that serves an image, but for what `twist` answers itself.
fn registry_with(image: Image, twist: impl Fn(&Seen) -> Option<Reply> + Send + Sync + 'static) -> Server {
    Server::start(None, move |seen| twist(seen).unwrap_or_else(|| image.serve(seen))).unwrap()
}

fn http() -> keelway_http::Client {
    let deadlines = keelway_http::Deadlines {
        connect: Duration::from_secs(5),
        silence: Duration::from_millis(1000),
        total: Some(Duration::from_secs(60)),
    };
    let settings = keelway_http::Settings { system_roots: None, deadlines, ..Default::default() };
    keelway_http::Client::new(settings).unwrap()
}

fn client_with(credentials: Credentials, hosts: BTreeMap<String, HostSettings>) -> Client {
    let retries = Retries {
        attempts: 3,
        first_wait: Duration::from_millis(5),
        longest_wait: Duration::from_millis(20),
    };
    Client::new(
        &http(),
        RegistrySettings { credentials, hosts, retries, told_after: Duration::from_millis(30), parallel: 3 },
    )
    .unwrap()
}

fn client() -> Client {
    client_with(Credentials::default(), BTreeMap::new())
}

/// A client with a login for one registry, which is spoken to by TLS when a CA is given.
fn client_for(registry: &str, login: Option<(&str, &str)>, ca: Option<&Path>) -> Client {
    let credentials = login.map_or_else(Credentials::default, |(name, password)| {
        let text = keelway_tests::registry::User { name, password }.docker_config(registry);
        docker_config::load(&text, "/home/me/.docker/config.json").unwrap()
    });
    let roots = |ca: &Path| vec![Pem { origin: "test-ca".into(), text: std::fs::read(ca).unwrap() }];
    let hosts =
        ca.map(|ca| (registry.to_owned(), HostSettings { roots: roots(ca), ..HostSettings::default() }));
    client_with(credentials, hosts.into_iter().collect())
}

fn repository(host: &str) -> Repository {
    format!("{host}/shop/app").parse().unwrap()
}

fn tagged(host: &str) -> ImageRef {
    format!("{host}/shop/app:t").parse().unwrap()
}

/// Fetches the whole image `t` of a registry.
async fn pull(client: &Client, store: &Store, host: &str) -> Result<crate::Resolved, crate::RegistryError> {
    let got = client.fetch_image(store, &tagged(host), &Platform::host(), crate::silent()).await?;
    client.fetch_layers(store, &repository(host), &got.manifest, &got.config, crate::silent()).await?;
    Ok(got)
}
