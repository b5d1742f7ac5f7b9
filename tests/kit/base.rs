//! Base images made from Debian's packages, as OCI layouts in a cache folder that outlives the run.
//!
//! No image registry is needed: `busybox` is one static binary, `python` a Debian made by mmdebstrap
//! (about a minute, then cached). The cache folder is `KEELWAY_BASES`, else `/var/cache/keelway/bases`.

use sha2::{Digest as _, Sha256};
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Which base image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// busybox-static with its applets.
    Busybox,
    /// Debian 12 with Python 3.
    Python,
}

impl Base {
    /// Folder and tag name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Busybox => "busybox",
            Self::Python => "python",
        }
    }
}

/// Where base images are kept between runs.
pub fn cache_dir() -> PathBuf {
    std::env::var_os("KEELWAY_BASES").map_or_else(|| PathBuf::from("/var/cache/keelway/bases"), PathBuf::from)
}

/// The OCI layout of a base image, made when the cache does not hold it. The image is tagged `latest` in
/// the layout.
pub fn oci_layout(base: Base) -> io::Result<PathBuf> {
    let cache = cache_dir();
    fs::create_dir_all(&cache)?;
    let lock = File::create(cache.join(format!("{}.lock", base.name())))?;
    lock.lock()?;
    let layout = cache.join(format!("{}-v2", base.name()));
    if layout.join("index.json").exists() {
        return Ok(layout);
    }
    let work = tempfile::Builder::new().prefix(".making-").tempdir_in(&cache)?;
    let tar = work.path().join("rootfs.tar");
    match base {
        Base::Busybox => busybox_tar(work.path(), &tar)?,
        Base::Python => run(Command::new("mmdebstrap").env("SOURCE_DATE_EPOCH", "1700000000").args([
            "--quiet",
            "--mode=root",
            "--variant=essential",
            "--include=python3",
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
            "bookworm",
            tar.to_str().expect("the cache path is UTF-8"),
        ]))?,
    }
    let made = work.path().join("layout");
    write_layout(&tar, &made, &["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"])?;
    fs::rename(&made, &layout)?;
    Ok(layout)
}

fn run(command: &mut Command) -> io::Result<()> {
    let out = command.stdin(Stdio::null()).output()?;
    if out.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&out.stderr);
    Err(io::Error::other(format!("{command:?} failed with {}:\n{text}", out.status)))
}

/// A root file system with busybox-static and a link for each applet.
pub fn busybox_rootfs(root: &Path) -> io::Result<()> {
    for dir in ["bin", "etc", "tmp", "root", "var", "usr/bin"] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    fs::set_permissions(root.join("bin/busybox"), fs::Permissions::from_mode(0o755))?;
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    )?;
    fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    let applets = Command::new("/bin/busybox").arg("--list").output()?;
    for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|a| *a != "busybox") {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
    }
    Ok(())
}

fn busybox_tar(work: &Path, tar: &Path) -> io::Result<()> {
    let root = work.join("root");
    busybox_rootfs(&root)?;
    run(Command::new("tar")
        .args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@1700000000", "-cf"])
        .arg(tar)
        .arg("-C")
        .arg(&root)
        .arg("."))
}

fn sha256_of(path: &Path) -> io::Result<(String, u64)> {
    let mut file = BufReader::new(File::open(path)?);
    let (mut hash, mut size, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            let hex = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
            return Ok((hex, size));
        }
        hash.update(&buffer[..n]);
        size += n as u64;
    }
}

/// Writes a one-layer OCI layout whose layer is the gzip of `tar`.
fn write_layout(tar: &Path, layout: &Path, env: &[&str]) -> io::Result<()> {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let (diff_id, _) = sha256_of(tar)?;
    let gz = layout.join("layer.gz");
    let status =
        Command::new("gzip").args(["-1", "-n", "-c"]).arg(tar).stdout(File::create(&gz)?).status()?;
    if !status.success() {
        return Err(io::Error::other("gzip failed"));
    }
    let (layer, layer_size) = sha256_of(&gz)?;
    fs::rename(&gz, blobs.join(&layer))?;
    let put = |value: &serde_json::Value| -> io::Result<(String, usize)> {
        let bytes = serde_json::to_vec(value)?;
        let hex: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
        File::create(blobs.join(&hex))?.write_all(&bytes)?;
        Ok((hex, bytes.len()))
    };
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let (config, config_size) = put(&serde_json::json!({
        "created": "2023-11-14T22:13:20Z", "architecture": architecture, "os": "linux",
        "config": {"Env": env, "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{diff_id}")]},
        "history": [{"created": "2023-11-14T22:13:20Z", "created_by": "made from Debian packages"}],
    }))?;
    let (manifest, manifest_size) = put(&serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": format!("sha256:{config}"), "size": config_size},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": format!("sha256:{layer}"), "size": layer_size}],
    }))?;
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": format!("sha256:{manifest}"), "size": manifest_size,
        "annotations": {"org.opencontainers.image.ref.name": "latest"},
    }]});
    fs::write(layout.join("index.json"), serde_json::to_vec(&index)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busybox_layout_is_read_by_skopeo() {
        let layout = oci_layout(Base::Busybox).unwrap();
        let out = Command::new("skopeo")
            .arg("inspect")
            .arg(format!("oci:{}:latest", layout.display()))
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
}
