//! Recorded layouts, and limits written into directories that look like them.

use super::group::Plan;
use super::*;
use keelway_model::limits::Io;
use keelway_model::{Bytes, Limits};
use proptest::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};

/// Debian 12 without systemd: controllers on v1, a v2 tree beside them.
const HYBRID: &str = "\
24 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 24 0:26 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
33 30 0:29 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
34 30 0:30 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
36 30 0:33 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio
35 30 0:31 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
36 30 0:32 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
/// systemd as PID 1: only v2.
const UNIFIED: &str = "\
25 1 254:0 / / rw,relatime - ext4 /dev/vda rw
29 25 0:25 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate
";

fn v1(path: &str) -> Option<Place> {
    Some(Place::V1(path.into()))
}

#[test]
fn hybrid_machines_use_v1_for_what_v1_has() {
    let layout = Layout::from_mountinfo(HYBRID.as_bytes(), |_| "hugetlb io\n".into());
    assert_eq!(layout.pids, v1("/sys/fs/cgroup/pids"));
    assert_eq!(layout.memory, v1("/sys/fs/cgroup/memory"));
    assert_eq!(layout.cpu, v1("/sys/fs/cgroup/cpu,cpuacct"));
    assert_eq!(layout.unified.as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
    assert_eq!(layout.io, v1("/sys/fs/cgroup/blkio"));
    assert_eq!(layout.places().len(), 4);
}

#[test]
fn a_controller_that_v1_lacks_comes_from_v2() {
    let table = HYBRID.replace("pids rw,relatime - cgroup cgroup rw,pids", "x rw - tmpfs x rw");
    let layout = Layout::from_mountinfo(table.as_bytes(), |_| "hugetlb pids".into());
    assert_eq!(layout.pids, Some(Place::V2("/sys/fs/cgroup/unified".into())));
}

#[test]
fn unified_machines() {
    let layout = Layout::from_mountinfo(UNIFIED.as_bytes(), |_| "cpuset cpu io memory pids\n".into());
    assert_eq!(layout.places(), [&Place::V2("/sys/fs/cgroup".into())]);
    let blank = UNIFIED.replace("/sys/fs/cgroup", "/sys/fs/c\\040group");
    let layout = Layout::from_mountinfo(blank.as_bytes(), |_| "pids".into());
    assert_eq!(layout.unified, Some(PathBuf::from("/sys/fs/c group")));
    assert_eq!(layout.memory, None);
}

/// A directory tree of plain files in which every group has the files of a v2 group. Files cannot appear by
/// themselves as in a real cgroup tree, so the group's directory is made first.
fn recorded_v2(base: &Path, extra: &[&str]) {
    let common = ["cgroup.procs", "cgroup.subtree_control", "pids.max", "memory.max", "cpu.max"];
    for dir in ["", "keelway", "keelway/run"] {
        fs::create_dir_all(base.join(dir)).unwrap();
        for file in common.iter().chain(extra) {
            fs::write(base.join(dir).join(file), "").unwrap();
        }
    }
}

fn plan(layout: Layout) -> Plan {
    Plan {
        layout,
        parent: "keelway/run".parse().unwrap(),
        name: "box".parse().unwrap(),
        limits: Limits {
            memory: Some(Bytes(1 << 20)),
            pids: Some(10),
            cpu_millis: Some(1500),
            ..Limits::default()
        },
        device: None,
        counted: false,
        foreign: false,
    }
}

fn read(path: PathBuf) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn v2_limits_go_into_the_right_files() {
    let base = tempfile::tempdir_in("/dev/shm").unwrap();
    recorded_v2(base.path(), &[]);
    let place = || Some(Place::V2(base.path().to_owned()));
    let layout = Layout {
        pids: place(),
        memory: place(),
        cpu: place(),
        io: place(),
        unified: Some(base.path().to_owned()),
    };
    let mut plan = plan(layout);
    plan.limits.io =
        Io { read: Some(Bytes(5 << 20)), write_ops: Some(300), weight: Some(50), ..Io::default() };
    plan.device = Some(super::device::Device { major: 254, minor: 16 });
    let dir = base.path().join("keelway/run/box");
    // What the kernel would make with the directory.
    fs::create_dir(&dir).unwrap();
    for file in [
        "cgroup.procs",
        "pids.max",
        "memory.max",
        "memory.swap.max",
        "memory.oom.group",
        "cpu.max",
        "io.max",
        "io.weight",
    ] {
        fs::write(dir.join(file), "").unwrap();
    }
    let mut group = plan.groups();
    assert!(plan.create().is_err(), "a group that exists belongs to someone else");
    plan.limit(&mut group).unwrap();
    enter(&group.doors().unwrap()).unwrap();
    for (file, content) in [
        ("pids.max", "11"),
        ("memory.max", "1048576"),
        ("memory.swap.max", "0"),
        ("memory.oom.group", "1"),
        ("cpu.max", "150000 100000"),
        ("io.max", "254:16 rbps=5242880 wiops=300"),
        ("io.weight", "50"),
        ("cgroup.procs", "0"),
    ] {
        assert_eq!(read(dir.join(file)), content, "{file}");
    }
    fs::write(dir.join("memory.events"), "low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\noom_group_kill 1\n")
        .unwrap();
    fs::write(dir.join("memory.peak"), "999424\n").unwrap();
    fs::write(dir.join("pids.events"), "max 5\n").unwrap();
    let usage = group.usage();
    assert_eq!((usage.oom_kills, usage.peak_memory, usage.pids_refused), (2, Some(Bytes(999_424)), 5));
}

#[test]
fn v2_controllers_are_handed_down_from_the_root() {
    let base = tempfile::tempdir_in("/dev/shm").unwrap();
    recorded_v2(base.path(), &[]);
    fs::write(base.path().join("cgroup.subtree_control"), "memory pids\n").unwrap();
    let place = Place::V2(base.path().to_owned());
    let wanted = [Controller::Pids, Controller::Memory, Controller::Cpu, Controller::Io];
    group::prepare_parents(&place, &"keelway/run".parse().unwrap(), &wanted).unwrap();
    assert_eq!(
        read(base.path().join("cgroup.subtree_control")),
        "+cpu +io",
        "what is there is not written again"
    );
    for dir in ["keelway", "keelway/run"] {
        assert_eq!(read(base.path().join(dir).join("cgroup.subtree_control")), "+pids +memory +cpu +io");
    }
}

#[test]
fn an_ordinary_user_gets_what_was_handed_to_it() {
    let v2 = Layout::from_mountinfo(b"30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", |_| {
        "cpu memory pids io".into()
    });
    let own = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/a.scope\n";
    let manager = "/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service";
    let given = v2.clone().usable(own, |dir| dir.starts_with(manager), |_| "memory pids".into());
    assert_eq!(given.pids, Some(Place::V2(manager.into())));
    assert_eq!(given.memory, Some(Place::V2(manager.into())));
    assert_eq!(given.cpu, None, "not handed down");
    assert_eq!(given.unified, Some(manager.into()));
    // Logged in by ssh: a scope of root's.
    let nothing =
        v2.clone().usable("0::/user.slice/user-1000.slice/session-1.scope\n", |_| false, |_| "pids".into());
    assert_eq!(nothing, Layout::default());
    // Root has everything, and a path of `..` leads nowhere.
    assert_eq!(v2.clone().usable("0::/", |_| true, |_| String::new()), v2);
    assert_eq!(
        v2.usable("0::/../../etc\n", |d| d.ends_with("etc") && d.to_str() == Some("/etc"), |_| "pids".into()),
        Layout::default()
    );
    let v1 = Layout::from_mountinfo(b"30 1 0:26 / /cg/pids rw - cgroup cgroup rw,pids\n", |_| String::new());
    assert_eq!(v1.usable("1:pids:/\n", |_| false, |_| String::new()), Layout::default());
}

#[test]
fn a_limit_without_its_controller_is_refused_by_name() {
    let mut plan = plan(Layout::default());
    let error = plan.create().unwrap_err().to_string();
    assert!(error.contains("cannot limit memory: this machine has no cgroup controller"), "{error}");
    // Processes are bounded by a resource limit where there is no controller.
    plan.limits = Limits { pids: Some(5), ..Limits::default() };
    plan.create().unwrap();
    plan.limits.io = Io { read: Some(Bytes(1)), ..Io::default() };
    let error = plan.create().unwrap_err().to_string();
    assert!(error.contains("cannot limit io: this machine has no cgroup controller"), "{error}");
}

#[test]
fn v1_bounds_traffic_by_a_file_each_and_says_what_it_does_not_bound() {
    let base = tempfile::tempdir_in("/dev/shm").unwrap();
    let layout = Layout { io: Some(Place::V1(base.path().to_owned())), ..Layout::default() };
    let mut plan = plan(layout);
    plan.limits = Limits {
        io: Io { write: Some(Bytes(1 << 20)), read_ops: Some(9), weight: Some(5000), ..Io::default() },
        ..Limits::default()
    };
    plan.device = Some(super::device::Device { major: 8, minor: 0 });
    let dir = base.path().join("keelway/run/box");
    fs::create_dir_all(&dir).unwrap();
    let files = ["throttle.write_bps_device", "throttle.read_iops_device", "bfq.weight"];
    for file in files {
        fs::write(dir.join(format!("blkio.{file}")), "").unwrap();
    }
    plan.limit(&mut plan.groups()).unwrap();
    for (file, content) in files.into_iter().zip(["8:0 1048576", "8:0 9", "1000"]) {
        assert_eq!(read(dir.join(format!("blkio.{file}"))), content, "{file}");
    }
    assert!(plan.warnings().unwrap().contains("direct io"));
    // A kernel whose schedulers know no weight.
    fs::remove_file(dir.join("blkio.bfq.weight")).unwrap();
    let error = plan.limit(&mut plan.groups()).unwrap_err().to_string();
    assert!(error.contains("cannot limit io by weight"), "{error}");
}

#[test]
fn io_on_v2_takes_the_memory_controller_along() {
    let base = tempfile::tempdir_in("/dev/shm").unwrap();
    recorded_v2(base.path(), &[]);
    let place = || Some(Place::V2(base.path().to_owned()));
    let layout = Layout { memory: place(), io: place(), ..Layout::default() };
    let mut plan = plan(layout);
    plan.limits = Limits { io: Io { weight: Some(10), ..Io::default() }, ..Limits::default() };
    // A group of plain files has no io.weight.
    assert!(plan.create().is_err());
    assert_eq!(read(base.path().join("keelway/run/cgroup.subtree_control")), "+memory +io");
}

#[test]
fn a_partition_stands_for_its_disk() {
    use super::device::{Device, whole};
    let sys = tempfile::tempdir_in("/dev/shm").unwrap();
    let disk = sys.path().join("devices/sda");
    fs::create_dir_all(disk.join("sda1")).unwrap();
    fs::write(disk.join("dev"), "8:0\n").unwrap();
    fs::write(disk.join("sda1/partition"), "1\n").unwrap();
    std::os::unix::fs::symlink("devices/sda", sys.path().join("8:0")).unwrap();
    std::os::unix::fs::symlink("devices/sda/sda1", sys.path().join("8:1")).unwrap();
    let of = |major, minor| whole(Device { major, minor }, sys.path()).map(|d| d.to_string());
    assert_eq!(of(8, 1).as_deref(), Some("8:0"));
    assert_eq!(of(8, 0).as_deref(), Some("8:0"));
    assert_eq!(of(0, 41), None, "tmpfs");
    assert!(super::disk_of(Path::new("/dev/shm")).unwrap_err().to_string().contains("is on no disk"));
}

#[test]
fn failed_creation_leaves_nothing() {
    // A place without the controller's files: the directory can be made, the limit cannot be written.
    let base = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut plan = plan(Layout { pids: Some(Place::V1(base.path().to_owned())), ..Layout::default() });
    plan.limits = Limits { pids: Some(3), ..Limits::default() };
    assert!(plan.create().unwrap_err().to_string().contains("pids.max"));
    assert!(!base.path().join("keelway/run/box").exists());
}

#[test]
fn names_stay_below_their_parent() {
    for bad in ["", "/", "..", "a/../b", "a//b", "/a", "a/", ".hidden", "a b", "a\n", &"x".repeat(201)] {
        assert!(bad.parse::<ParentName>().is_err(), "{bad:?}");
    }
    assert!("a/b".parse::<BoxName>().is_err());
    assert!("keelway/run-1".parse::<ParentName>().is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_mount_table(mut table in proptest::collection::vec(any::<u8>(), 0..400), at in 0usize..400) {
        Layout::from_mountinfo(&table, |_| String::new());
        // A real one with a piece of rubbish inside.
        let real = HYBRID.as_bytes();
        let at = at.min(real.len());
        table.splice(0..0, real[..at].iter().copied());
        table.extend(&real[at..]);
        Layout::from_mountinfo(&table, |_| "pids".into());
    }
}
