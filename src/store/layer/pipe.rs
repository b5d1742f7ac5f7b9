//! From a stream of tar bytes to a blob: hashed, cut into blocks, compressed, in order.
//!
//! A gzip layer is a sequence of members, one for each 1 MiB of tar, so its bytes depend on the tar alone
//! and blocks can be compressed side by side. Memory is bounded by the channels: about 16 blocks.

use super::{Compression, Layer};
use crate::blob::BlobWriter;
use crate::error::StoreError;
use crate::open::Store;
use keelway_model::oci::Descriptor;
use keelway_model::{Digest, Hasher};
use libdeflater::{CompressionLvl, Compressor};
use std::io::{self, Read, Write};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Plain bytes in a gzip member. Part of the format: another value gives other digests.
const MEMBER: usize = 1 << 20;

/// libdeflate's level, likewise part of the format: 280 MB/s on two cores, and smaller than zlib's 1.
const LEVEL: i32 = 1;

/// Threads that compress.
const WORKERS: usize = 2;

/// Blocks waiting at each place.
const QUEUE: usize = 4;

/// Where the plain bytes go.
pub(super) struct Blocks {
    block: Vec<u8>,
    filled: usize,
    sink: Sink,
}

enum Sink {
    Plain(BlobWriter),
    Gzip {
        hasher: Hasher,
        jobs: SyncSender<Job>,
        order: SyncSender<Receiver<Member>>,
        spare: Receiver<Vec<u8>>,
    },
}

type Member = io::Result<Vec<u8>>;

struct Job {
    block: Vec<u8>,
    length: usize,
    reply: SyncSender<Member>,
}

fn stopped() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the writer of the blob stopped")
}

impl Blocks {
    fn new(sink: Sink) -> Self {
        Self { block: vec![0; MEMBER], filled: 0, sink }
    }

    /// Adds bytes.
    pub(super) fn put(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let n = bytes.len().min(MEMBER - self.filled);
            self.block[self.filled..self.filled + n].copy_from_slice(&bytes[..n]);
            self.advance(n)?;
            bytes = &bytes[n..];
        }
        Ok(())
    }

    /// Adds at most `length` bytes from a reader, without a buffer between; returns how many there were.
    pub(super) fn take(&mut self, from: &mut dyn Read, length: u64) -> io::Result<u64> {
        let mut done = 0;
        while done < length {
            let room = (MEMBER - self.filled).min(usize::try_from(length - done).unwrap_or(usize::MAX));
            match from.read(&mut self.block[self.filled..self.filled + room]) {
                Ok(0) => break,
                Ok(n) => {
                    self.advance(n)?;
                    done += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    /// Adds all of a reader.
    pub(super) fn copy(&mut self, from: &mut dyn Read) -> io::Result<()> {
        self.take(from, u64::MAX).map(|_| ())
    }

    fn advance(&mut self, n: usize) -> io::Result<()> {
        self.filled += n;
        if self.filled == MEMBER { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        let length = std::mem::take(&mut self.filled);
        if length == 0 {
            return Ok(());
        }
        match &mut self.sink {
            Sink::Plain(blob) => blob.write_all(&self.block[..length]),
            Sink::Gzip { hasher, jobs, order, spare } => {
                hasher.update(&self.block[..length]);
                let next = spare.try_recv().unwrap_or_else(|_| vec![0; MEMBER]);
                let block = std::mem::replace(&mut self.block, next);
                let (reply, member) = sync_channel(1);
                order.send(member).map_err(|_| stopped())?;
                jobs.send(Job { block, length, reply }).map_err(|_| stopped())
            }
        }
    }
}

/// Runs `produce` into a new blob and commits it.
pub(super) fn run(
    store: &Store,
    compression: Compression,
    produce: impl FnOnce(&mut Blocks) -> Result<(), StoreError>,
) -> Result<Layer, StoreError> {
    let blob = store.blob_writer()?;
    let failed = StoreError::io("write", store.run_dir());
    let (diff_id, blob) = match compression {
        Compression::None => {
            let mut blocks = Blocks::new(Sink::Plain(blob));
            produce(&mut blocks)?;
            blocks.flush().map_err(failed)?;
            let Sink::Plain(blob) = blocks.sink else { unreachable!("it was made plain") };
            (None, blob)
        }
        Compression::Gzip => {
            let (diff_id, blob) = gzip(blob, produce, failed)?;
            (Some(diff_id), blob)
        }
    };
    let (digest, size) = blob.commit(None)?;
    let descriptor = Descriptor::new(compression.media_type(), digest, size);
    Ok(Layer { diff_id: diff_id.unwrap_or(digest), descriptor })
}

fn gzip(
    mut blob: BlobWriter,
    produce: impl FnOnce(&mut Blocks) -> Result<(), StoreError>,
    failed: impl FnOnce(io::Error) -> StoreError,
) -> Result<(Digest, BlobWriter), StoreError> {
    let (jobs, todo) = sync_channel::<Job>(QUEUE);
    let (order, members) = sync_channel::<Receiver<Member>>(QUEUE);
    let (give_back, spare) = sync_channel::<Vec<u8>>(2 * QUEUE);
    let todo = Mutex::new(todo);
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| compress(&todo, &give_back));
        }
        let collector = scope.spawn(move || -> io::Result<BlobWriter> {
            for member in members {
                blob.write_all(&member.recv().map_err(|_| stopped())??)?;
            }
            Ok(blob)
        });
        let mut blocks = Blocks::new(Sink::Gzip { hasher: Hasher::new(), jobs, order, spare });
        let produced = produce(&mut blocks);
        let flushed = blocks.flush();
        let Sink::Gzip { hasher, jobs, order, .. } = blocks.sink else { unreachable!("it was made gzip") };
        // Closed before the threads are waited for, so that they end.
        drop((jobs, order));
        let written = collector.join().unwrap_or_else(|_| Err(stopped()));
        // What stopped the collector is the cause of what then stopped the producer.
        match written.and_then(|blob| flushed.map(|()| blob)) {
            Ok(blob) => produced.map(|()| (hasher.finish(), blob)),
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => produced.and(Err(failed(e))),
            Err(e) => Err(failed(e)),
        }
    })
}

fn compress(todo: &Mutex<Receiver<Job>>, give_back: &SyncSender<Vec<u8>>) {
    // Not `fastest()`, which is 0 and stores.
    let mut compressor = Compressor::new(CompressionLvl::new(LEVEL).unwrap_or_default());
    loop {
        let next = todo.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).recv();
        let Ok(Job { block, length, reply }) = next else { return };
        let mut out = vec![0; compressor.gzip_compress_bound(length)];
        let member = compressor.gzip_compress(&block[..length], &mut out).map_err(io::Error::other);
        // Nobody may be waiting any more; then there is nothing to do with the answer.
        let _ = reply.send(member.map(|n| {
            out.truncate(n);
            out
        }));
        let _ = give_back.try_send(block);
    }
}
