//! `--link`: into an empty root, whatever lies below, and with a key that says so.

use super::*;

fn base(rig: &Rig, extra: &str, passwd: &str) -> Chain {
    rig.on(&[], |r| {
        put(r, "etc/passwd", passwd);
        put(r, "etc/group", "g:x:9:\n");
        put(r, "usr/lib/keep", extra);
        r.symlink(b"usr/lib", b"lib").unwrap();
        put(r, "tmp/old", "O");
        r.set_mode(b"tmp", 0o1777).unwrap();
        put(r, "dir/x", "X");
    })
}

fn linked(sources: &[&str], dest: &str) -> CopyOp {
    CopyOp { link: true, ..copy_op(sources, dest) }
}

#[test]
fn a_link_follows_nothing_of_what_is_below() {
    let rig = Rig::new();
    let below = base(&rig, "K", "");
    let tree = MemTree::with(&[("f", "F"), ("d/g", "G")]);
    let onto = |op: CopyOp| {
        let made = after(&rig, &op, &[], &tree, "").unwrap();
        assert_eq!(made.snapshots.len(), 1);
        dump(&rig.store, &crate::link(&below, &made))
    };
    let has = |lines: &[String], want: &str| assert!(lines.iter().any(|l| l == want), "{want}\n{lines:#?}");
    let lines = onto(linked(&["f"], "/lib/f"));
    has(&lines, "lib d 755 0:0");
    has(&lines, "lib/f f 644 0:0 F");
    has(&lines, "usr/lib/keep f 644 0:0 K");
    assert!(
        !lines.iter().any(|l| l.starts_with("usr/lib/f")),
        "the link of the base is replaced, not followed"
    );
    let lines = onto(linked(&["f"], "/tmp/"));
    has(&lines, "tmp d 755 0:0");
    has(&lines, "tmp/old f 644 0:0 O");
    has(&lines, "tmp/f f 644 0:0 F");
    let lines = onto(linked(&["f"], "/dir"));
    has(&lines, "dir f 644 0:0 F");
    let lines = onto(CopyOp { chmod: Some(mode("go=,u+x")), ..linked(&["d", "f"], "/n/m/") });
    has(&lines, "n/m/g f 700 0:0 G");
    let inline = CopyOp { from: CopyFrom::Inline(vec![("i".into(), "I".into())]), ..linked(&[], "/tmp/i") };
    has(&onto(inline), "tmp/i f 644 0:0 I");
}

#[test]
fn the_key_of_a_link_knows_no_base() {
    let rig = Rig::new();
    let tree = MemTree::with(&[("f", "F")]);
    let other = rig.on(&[], |r| put(r, "f", "F"));
    let bob = "bob:x:7:7::/:/\n";
    let of = |op: &CopyOp, inputs: &[&Chain]| key_of(&rig, op, inputs, &tree, "").digest;
    let plain = linked(&["f"], "/f");
    let one = of(&plain, &[]);
    assert_ne!(one, of(&copy_op(&["f"], "/f"), &[&base(&rig, "1", bob)]));
    assert_ne!(one, of(&copy_op(&["f"], "/f"), &[&rig.empty()]));
    // What it copies from is no base: a chain that looks the same must not stand for one.
    assert_eq!(key_of(&rig, &plain, &[], &tree, "").step(), None);
    // An owner by number needs no files; one by name needs two of them, and of those the numbers.
    let owned = |who: &str| CopyOp { chown: Some(UserSpec(who.into())), ..linked(&["f"], "/f") };
    let by_number = of(&owned("7:9"), &[]);
    assert_ne!(one, by_number);
    for (extra, passwd) in [("1", bob), ("2", "eve:x:8:8::/:/\nbob:x:7:70::/home:/sh\n")] {
        assert_eq!(by_number, of(&owned("bob:g"), &[&base(&rig, extra, passwd)]), "{extra}");
    }
    assert_ne!(by_number, of(&owned("bob:g"), &[&base(&rig, "1", "bob:x:8:8::/:/\n")]));
    let from = CopyOp { from: CopyFrom::Stage, ..owned("bob:g") };
    assert_eq!(
        of(&from, &[&other, &base(&rig, "1", bob)]),
        of(&from, &[&rig.on(&[&other], |r| put(r, "log", "")), &base(&rig, "2", bob)])
    );
    let made = after(&rig, &owned("bob:g"), &[&base(&rig, "1", bob)], &tree, "").unwrap();
    assert_eq!(dump(&rig.store, &made), ["f f 644 7:9 F"]);
    let missing = after(&rig, &owned("eve"), &[&base(&rig, "1", bob)], &tree, "").unwrap_err();
    assert!(missing.contains("the user \"eve\" is not in /etc/passwd"), "{missing}");
    // What stands on a link stands on what is below it too.
    let made = after(&rig, &plain, &[], &tree, "").unwrap();
    let (a, b) = (base(&rig, "1", bob), base(&rig, "2", bob));
    assert_ne!(crate::link(&a, &made).key, crate::link(&b, &made).key);
    assert_ne!(crate::link(&a, &made).key, a.key);
}

#[test]
fn an_overlay_takes_no_directory_twice() {
    let rig = Rig::new();
    let tree = MemTree::with(&[("f", "F")]);
    let made = after(&rig, &linked(&["f"], "/f"), &[], &tree, "").unwrap();
    let below = base(&rig, "K", "");
    let twice =
        crate::link(&crate::link(&crate::link(&below, &made), &rig.on(&[], |r| put(r, "f", "G"))), &made);
    let dirs = rig.store.lowers(&twice.snapshots);
    assert_eq!((twice.snapshots.len(), dirs.len()), (4, 3));
    assert_eq!(dirs[2], rig.store.snapshot_dir(&made.snapshots[0]), "the highest place counts");
    assert!(dump(&rig.store, &twice).contains(&"f f 644 0:0 F".to_owned()));
}
