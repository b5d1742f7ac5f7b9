//! Exports read back: by our own importer, by the tar crate, from the disk.

use super::*;
use crate::form::{Form, in_form};
use crate::testing::{Rig, dump, put};
use crate::{assemble, import};
use keelway_disk::{NodeKind, Root};
use keelway_model::oci::{History, ImageConfig, Manifest};
use keelway_model::plan::{AssembleOp, Chain, ImageOutput};
use keelway_model::{Platform, Timestamp};
use keelway_store::Compression;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, symlink};

fn platform() -> Platform {
    "linux/amd64".parse().unwrap()
}

/// Two layers: the second deletes, replaces, and hides what was in a directory.
fn chain(rig: &Rig) -> Chain {
    let one = rig.on(&[], |r| {
        put(r, "gone", "1");
        put(r, "kept", "1");
        put(r, "d/below", "1");
        put(r, "o/below", "1");
        r.hard_link(b"kept", b"same").unwrap();
        r.symlink(b"/etc/passwd", b"link").unwrap();
        r.set_owner(b"kept", 7, 8).unwrap();
        r.set_mode(b"kept", 0o4750).unwrap();
    });
    rig.on(&[&one], |r| {
        r.mknod(b"gone", NodeKind::Device { character: true, major: 0, minor: 0 }, 0).unwrap();
        put(r, "d/new", "two");
        put(r, "o/new", "two");
        r.set_xattr(b"o", b"trusted.overlay.opaque", b"y").unwrap();
        r.set_mode(b"d", 0o555).unwrap();
    })
}

fn image(rig: &Rig) -> ImageOutput {
    let layer = |n: &str| History { created_by: Some(n.into()), ..History::default() };
    let op = AssembleOp {
        config: Box::new(ImageConfig::scratch(platform())),
        base: None,
        history: vec![layer("one"), layer("two")],
    };
    assemble(&rig.store, &op, &chain(rig), Timestamp(0)).unwrap()
}

const FILES: [&str; 5] = ["d/below", "d/new", "kept", "o/new", "same"];

#[test]
fn a_tar_has_the_files_as_they_look() {
    let rig = Rig::new();
    let chain = chain(&rig);
    let bytes = tar(&rig.store, &chain, Vec::new()).unwrap();
    assert_eq!(bytes, tar(&rig.store, &chain, Vec::new()).unwrap());
    let mut found = Vec::new();
    for entry in ::tar::Archive::new(&bytes[..]).entries().unwrap() {
        let entry = entry.unwrap();
        let (header, path) = (entry.header(), entry.path().unwrap().display().to_string());
        assert_eq!(header.mtime().unwrap(), 315_619_200, "{path}");
        let link = entry.link_name().unwrap().map(|l| l.display().to_string()).unwrap_or_default();
        let (mode, uid) = (header.mode().unwrap(), header.uid().unwrap());
        found.push(format!("{path} {:?} {mode:o} {uid} {link}", header.entry_type()));
    }
    assert_eq!(
        found,
        [
            "d/ Directory 555 0 ",
            "d/below Regular 644 0 ",
            "d/new Regular 644 0 ",
            "kept Regular 4750 7 ",
            "link Symlink 777 0 /etc/passwd",
            "o/ Directory 755 0 ",
            "o/new Regular 644 0 ",
            "same Link 4750 7 kept",
        ]
        .map(str::to_owned)
    );
}

#[test]
fn a_directory_gets_the_files_and_no_link_is_followed() {
    let rig = Rig::new();
    let chain = chain(&rig);
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let (out, victim) = (dir.path().join("a/out"), dir.path().join("victim"));
    directory(&rig.store, &chain, true, &out).unwrap();
    for file in FILES {
        assert!(out.join(file).is_file(), "{file}");
    }
    assert!(!out.join("gone").exists() && !out.join("o/below").exists());
    let kept = fs::metadata(out.join("kept")).unwrap();
    assert_eq!((kept.mode() & 0o7777, kept.uid(), kept.gid(), kept.nlink()), (0o4750, 7, 8, 2));
    assert_eq!(fs::read_link(out.join("link")).unwrap().to_str(), Some("/etc/passwd"));
    assert_eq!(fs::metadata(out.join("d")).unwrap().mode() & 0o7777, 0o555);
    // Once more, over what is there, as somebody who owns nothing; files of others stay, links are replaced.
    fs::write(out.join("mine"), "m").unwrap();
    fs::write(&victim, "v").unwrap();
    fs::remove_file(out.join("o/new")).unwrap();
    symlink(&victim, out.join("o/new")).unwrap();
    directory(&rig.store, &chain, false, &out).unwrap();
    assert_eq!(fs::read(&victim).unwrap(), b"v");
    assert_eq!(fs::read(out.join("o/new")).unwrap(), b"two");
    assert_eq!(fs::read(out.join("mine")).unwrap(), b"m");
    let kept = fs::metadata(out.join("kept")).unwrap();
    assert_eq!((kept.mode() & 0o7777, kept.uid()), (0o750, 0), "no bits that act for another");
    // A link or a file where a directory must be, a directory where a file must be.
    for spoil in [0, 1, 2] {
        let out = dir.path().join(format!("spoiled{spoil}"));
        fs::create_dir(&out).unwrap();
        match spoil {
            0 => symlink(dir.path(), out.join("d")).unwrap(),
            1 => fs::write(out.join("d"), "").unwrap(),
            _ => fs::create_dir(out.join("kept")).unwrap(),
        }
        let e = directory(&rig.store, &chain, true, &out).unwrap_err();
        assert!(matches!(e, ExportError::Refused { .. }), "{e}");
    }
    assert!(!dir.path().join("new").exists(), "nothing was written through the link");
}

#[test]
fn layouts_and_archives_hold_the_image_under_its_names() {
    let rig = Rig::new();
    let image = image(&rig);
    let names: Vec<ImageRef> = ["a/b:1", "c"].map(|n| n.parse().unwrap()).into();
    let bytes = archive(&rig.store, &image.manifest, &names, Archive::Docker, Vec::new()).unwrap();
    assert_eq!(bytes, archive(&rig.store, &image.manifest, &names, Archive::Docker, Vec::new()).unwrap());
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let unpacked = dir.path().join("unpacked");
    ::tar::Archive::new(&bytes[..]).unpack(&unpacked).unwrap();
    let list: serde_json::Value =
        serde_json::from_slice(&fs::read(unpacked.join("manifest.json")).unwrap()).unwrap();
    assert_eq!(list[0]["RepoTags"], serde_json::json!(["docker.io/a/b:1", "docker.io/library/c:latest"]));
    assert!(unpacked.join(list[0]["Config"].as_str().unwrap()).is_file());
    let written = dir.path().join("layout");
    layout(&rig.store, &image.manifest, &names, &written).unwrap();
    for layout in [&unpacked, &written] {
        let other = Rig::new();
        let name = "x".parse().unwrap();
        let found = import::oci_layout(&other.store, layout, Some("1"), &name, &platform()).unwrap();
        assert_eq!(found.digest, image.manifest.digest);
    }
    // A second image beside it: what has its name gives way, the rest stays. A damaged blob is written anew.
    let blob = written.join(blob_path(&image.manifest.digest));
    let size = fs::metadata(&blob).unwrap().len();
    fs::write(&blob, vec![b' '; size as usize]).unwrap();
    let form = Form { annotations: [("k".to_owned(), "v".to_owned())].into(), ..Form::default() };
    let other = in_form(&rig.store, &image, &form).unwrap();
    layout(&rig.store, &other, &names[1..], &written).unwrap();
    layout(&rig.store, &image.manifest, &names[..1], &written).unwrap();
    assert_eq!(Digest::of(&fs::read(&blob).unwrap()), image.manifest.digest);
    let index: Index = serde_json::from_slice(&fs::read(written.join("index.json")).unwrap()).unwrap();
    let tags: Vec<_> = index.manifests.iter().map(|m| (&m.annotations[REF_NAME][..], m.digest)).collect();
    assert_eq!(tags, [("latest", other.digest), ("1", image.manifest.digest)]);
    // What is no layout is left alone.
    let e = layout(&rig.store, &image.manifest, &[], dir.path()).unwrap_err();
    assert!(e.to_string().contains("no oci-layout"), "{e}");
}

#[test]
fn a_damaged_blob_is_not_exported() {
    let rig = Rig::new();
    let image = image(&rig);
    let (digest, size) = blobs_of(&rig.store, &image.manifest).unwrap().pop_first().unwrap();
    let path = rig.store.path().join(format!("blobs/sha256/{}/{}", &digest.hex()[..2], digest.hex()));
    fs::remove_file(&path).unwrap();
    fs::File::create(&path).unwrap().write_all(&vec![b'x'; size as usize]).unwrap();
    let failed = archive(&rig.store, &image.manifest, &[], Archive::Oci, Vec::new()).unwrap_err();
    assert!(failed.to_string().contains("damaged") || failed.to_string().contains("digest"), "{failed}");
}

#[test]
fn forms_change_how_and_never_what() {
    let rig = Rig::new();
    let image = image(&rig);
    let read = |d: &Descriptor| -> Manifest {
        serde_json::from_slice(&rig.store.read_blob(&d.digest, 1 << 20).unwrap()).unwrap()
    };
    let plain = read(&image.manifest);
    for (compression, docker, kind) in [
        (Some(Compression::Zstd), false, "application/vnd.oci.image.layer.v1.tar+zstd"),
        (Some(Compression::Zstd), true, "application/vnd.docker.image.rootfs.diff.tar.zstd"),
        (Some(Compression::None), false, "application/vnd.oci.image.layer.v1.tar"),
        (None, true, "application/vnd.docker.image.rootfs.diff.tar.gzip"),
    ] {
        let form = Form { compression, docker, ..Form::default() };
        let found = in_form(&rig.store, &image, &form).unwrap();
        let manifest = read(&found);
        assert_eq!(manifest.config.digest, plain.config.digest);
        assert!(manifest.layers.iter().all(|l| l.media_type == kind), "{manifest:?}");
        assert_eq!(manifest.media_type.as_deref(), Some(&found.media_type[..]));
        // It unpacks to the same, elsewhere.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        layout(&rig.store, &found, &[], &dir.path().join("l")).unwrap();
        let other = Rig::new();
        let name = "x".parse().unwrap();
        import::oci_layout(&other.store, &dir.path().join("l"), None, &name, &platform()).unwrap();
        let config: ImageConfig =
            serde_json::from_slice(&other.store.read_blob(&plain.config.digest, 1 << 20).unwrap()).unwrap();
        let op =
            keelway_model::plan::BaseOp { reference: None, manifest: Some(found), config: Box::new(config) };
        let unpacked = crate::base::unpack(&other.store, &op).unwrap();
        assert_eq!(dump(&other.store, &unpacked), dump(&rig.store, &image.chain));
    }
    // The layers of a base stay as they are, unless all are asked for.
    let based = ImageOutput { base_layers: 1, ..image.clone() };
    let zstd = Form { compression: Some(Compression::Zstd), ..Form::default() };
    let some = read(&in_form(&rig.store, &based, &zstd).unwrap());
    assert_eq!(some.layers[0], plain.layers[0]);
    assert!(some.layers[1].media_type.ends_with("+zstd"));
    let all = read(&in_form(&rig.store, &based, &Form { force: true, ..zstd }).unwrap());
    assert!(all.layers[0].media_type.ends_with("+zstd"));
    let both = Form { docker: true, annotations: [("k".into(), "v".into())].into(), ..Form::default() };
    assert!(in_form(&rig.store, &image, &both).is_err());
}

#[test]
fn a_layout_is_not_written_through_links() {
    let rig = Rig::new();
    let image = image(&rig);
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let (out, elsewhere) = (dir.path().join("out"), dir.path().join("elsewhere"));
    layout(&rig.store, &image.manifest, &[], &out).unwrap();
    fs::remove_dir_all(out.join("blobs")).unwrap();
    fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, out.join("blobs")).unwrap();
    let _ = layout(&rig.store, &image.manifest, &[], &out);
    assert!(Root::open(&elsewhere).unwrap().list(b"").unwrap().is_empty());
}
