//! Measures making and unpacking a layer: `cargo run --release -p keelway-store --example throughput -- DIR STORE`.
//! DIR is copied into a snapshot first; STORE is made and may be removed afterwards.
#![allow(clippy::explicit_write, clippy::unwrap_used, reason = "a measuring tool for people at a terminal")]

use keelway_model::clock::SystemClock;
use keelway_store::{Compression, KeyRules, Store, keep_everything};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let (from, at) = (&args[1], Path::new(&args[2]));
    let open = |name: &str| Store::open(&at.join(name), Arc::new(SystemClock)).unwrap();
    let store = open("one");
    let upper = store.begin().unwrap();
    let target = upper.fs().join("data");
    assert!(std::process::Command::new("cp").args(["-a", from]).arg(&target).status().unwrap().success());
    let timed = |what: &str, bytes: u64, began: Instant| {
        let took = began.elapsed();
        writeln!(
            std::io::stdout(),
            "{what:24} {took:>10.2?} {:>8.0} MB/s",
            bytes as f64 / 1e6 / took.as_secs_f64()
        )
        .unwrap();
    };
    let began = Instant::now();
    let id = upper.freeze().unwrap();
    timed("freeze", 0, began);
    let began = Instant::now();
    let plain = store.layer_of(&id, Compression::None).unwrap();
    let size = plain.descriptor.size;
    timed("layer, plain", size, began);
    let began = Instant::now();
    let gzip = store.layer_of(&id, Compression::Gzip).unwrap();
    timed("layer, gzip", size, began);
    writeln!(std::io::stdout(), "{:24} {} of {} bytes", "compressed", gzip.descriptor.size, size).unwrap();
    for (name, layer) in [("unpack, plain", &plain), ("unpack, gzip", &gzip)] {
        let other = open(name);
        other.put_blob(&store.read_blob(&layer.descriptor.digest, u64::MAX).unwrap()).unwrap();
        let began = Instant::now();
        other.unpack(&layer.descriptor, &layer.diff_id).unwrap();
        timed(name, size, began);
    }
    let view = store.view(&[id]).unwrap();
    let rules = KeyRules { filter: &keep_everything, owner: None, mode: None };
    for what in ["content key, cold", "content key, remembered"] {
        let began = Instant::now();
        store.content_digest(&view, &"data".into(), &rules).unwrap();
        timed(what, size, began);
    }
    let began = Instant::now();
    for _ in 0..100 {
        store.begin().unwrap().freeze().unwrap();
    }
    writeln!(std::io::stdout(), "{:24} {:>10.2?} each", "begin and freeze, empty", began.elapsed() / 100)
        .unwrap();
    let began = Instant::now();
    store.sync().unwrap();
    timed("sync", 0, began);
}
