//! From a stream of tar bytes to a blob: hashed, cut into blocks, compressed, in order.
//!
//! A compressed layer is a sequence of gzip members or zstd frames, one for each 1 MiB of tar, so its bytes depend on the
//! tar alone and blocks can be compressed side by side. Memory is bounded by the channels: about 16 blocks. Most layers of
//! a build are smaller than one block: they need no thread, and get none.

use super::{Compression, Layer};
use crate::blob::BlobWriter;
use crate::error::StoreError;
use crate::open::Store;
use keelway_model::oci::Descriptor;
use keelway_model::{Digest, Hasher};
use libdeflater::{CompressionLvl, Compressor};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Plain bytes in a gzip member or zstd frame. Part of the format: another value gives other digests.
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
    Packed(Packed),
    /// Only hashed.
    Digest(Hasher),
}

/// The way of a compressed layer.
struct Packed {
    codec: Codec,
    /// Of the plain bytes.
    hasher: Hasher,
    to: Target,
}

/// How blocks are compressed.
#[derive(Clone, Copy)]
enum Codec {
    Gzip,
    Zstd,
}

/// Compresses blocks, one after the other.
enum Packer {
    Gzip(Compressor),
    Zstd,
}

impl Codec {
    fn packer(self) -> Packer {
        match self {
            // Not `fastest()`, which is 0 and stores.
            Self::Gzip => Packer::Gzip(Compressor::new(CompressionLvl::new(LEVEL).unwrap_or_default())),
            Self::Zstd => Packer::Zstd,
        }
    }
}

impl Packer {
    /// One gzip member or zstd frame.
    fn pack(&mut self, plain: &[u8]) -> Member {
        match self {
            Self::Gzip(compressor) => {
                let mut out = vec![0; compressor.gzip_compress_bound(plain.len())];
                let n = compressor.gzip_compress(plain, &mut out).map_err(io::Error::other)?;
                out.truncate(n);
                Ok(out)
            }
            // The one level that this library has.
            Self::Zstd => Ok(compress_to_vec(plain, CompressionLevel::Fastest)),
        }
    }
}

enum Target {
    /// No whole block yet.
    Here(BlobWriter),
    /// Blocks go through threads.
    Line(Line),
    /// The blob was lost with a thread.
    Lost,
}

/// Threads that compress, and one that writes what they give, in order.
struct Line {
    jobs: SyncSender<Job>,
    order: SyncSender<Receiver<Member>>,
    spare: Receiver<Vec<u8>>,
    collector: JoinHandle<io::Result<BlobWriter>>,
    workers: Vec<JoinHandle<()>>,
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
            Sink::Packed(packed) => packed.add(&mut self.block, length),
            Sink::Digest(hasher) => {
                hasher.update(&self.block[..length]);
                Ok(())
            }
        }
    }
}

impl Packed {
    /// Takes a block; only the last may be shorter than [`MEMBER`].
    fn add(&mut self, block: &mut Vec<u8>, length: usize) -> io::Result<()> {
        self.hasher.update(&block[..length]);
        if let Target::Here(blob) = &mut self.to
            && length < MEMBER
        {
            return blob.write_all(&self.codec.packer().pack(&block[..length])?);
        }
        if !matches!(self.to, Target::Line(_))
            && let Target::Here(blob) = std::mem::replace(&mut self.to, Target::Lost)
        {
            self.to = Target::Line(Line::start(blob, self.codec)?);
        }
        let Target::Line(line) = &self.to else { return Err(stopped()) };
        let next = line.spare.try_recv().unwrap_or_else(|_| vec![0; MEMBER]);
        let block = std::mem::replace(block, next);
        let (reply, member) = sync_channel(1);
        line.order.send(member).map_err(|_| stopped())?;
        line.jobs.send(Job { block, length, reply }).map_err(|_| stopped())
    }

    /// Waits until everything is written.
    fn finish(self) -> io::Result<(Digest, BlobWriter)> {
        let blob = match self.to {
            Target::Here(blob) => blob,
            Target::Line(line) => line.finish()?,
            Target::Lost => return Err(stopped()),
        };
        Ok((self.hasher.finish(), blob))
    }
}

impl Line {
    fn start(mut blob: BlobWriter, codec: Codec) -> io::Result<Self> {
        let (jobs, todo) = sync_channel::<Job>(QUEUE);
        let (order, members) = sync_channel::<Receiver<Member>>(QUEUE);
        let (give_back, spare) = sync_channel::<Vec<u8>>(2 * QUEUE);
        let todo = Arc::new(Mutex::new(todo));
        let thread = || std::thread::Builder::new().name("keelway-layer".into());
        let work = || {
            let (todo, give_back) = (Arc::clone(&todo), give_back.clone());
            thread().spawn(move || compress(codec, &todo, &give_back))
        };
        let workers = (0..WORKERS).map(|_| work()).collect::<Result<_, _>>()?;
        let collector = thread().spawn(move || {
            for member in members {
                blob.write_all(&member.recv().map_err(|_| stopped())??)?;
            }
            Ok(blob)
        })?;
        Ok(Self { jobs, order, spare, collector, workers })
    }

    fn finish(self) -> io::Result<BlobWriter> {
        // Closed before the threads are waited for, so that they end.
        drop((self.jobs, self.order));
        let written = self.collector.join().unwrap_or_else(|_| Err(stopped()));
        for worker in self.workers {
            // One that panicked gave the collector no answer.
            let _ = worker.join();
        }
        written
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
        Compression::Gzip => packed(blob, Codec::Gzip, produce, failed)?,
        Compression::Zstd => packed(blob, Codec::Zstd, produce, failed)?,
    };
    let (digest, size) = blob.commit(None)?;
    let descriptor = Descriptor::new(compression.media_type(), digest, size);
    Ok(Layer { diff_id: diff_id.unwrap_or(digest), descriptor })
}

/// The digest of what `produce` gives.
pub(super) fn digest(produce: impl FnOnce(&mut Blocks) -> io::Result<()>) -> io::Result<Digest> {
    let mut blocks = Blocks::new(Sink::Digest(Hasher::new()));
    produce(&mut blocks)?;
    blocks.flush()?;
    let Sink::Digest(hasher) = blocks.sink else { unreachable!("it was made to hash") };
    Ok(hasher.finish())
}

fn packed(
    blob: BlobWriter,
    codec: Codec,
    produce: impl FnOnce(&mut Blocks) -> Result<(), StoreError>,
    failed: impl FnOnce(io::Error) -> StoreError,
) -> Result<(Option<Digest>, BlobWriter), StoreError> {
    let packed = Packed { codec, hasher: Hasher::new(), to: Target::Here(blob) };
    let mut blocks = Blocks::new(Sink::Packed(packed));
    let produced = produce(&mut blocks);
    let flushed = blocks.flush();
    let Sink::Packed(packed) = blocks.sink else { unreachable!("it was made to compress") };
    // What stopped the collector is the cause of what then stopped the producer.
    match packed.finish().and_then(|done| flushed.map(|()| done)) {
        Ok((diff_id, blob)) => produced.map(|()| (Some(diff_id), blob)),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => produced.and(Err(failed(e))),
        Err(e) => Err(failed(e)),
    }
}

fn compress(codec: Codec, todo: &Mutex<Receiver<Job>>, give_back: &SyncSender<Vec<u8>>) {
    let mut packer = codec.packer();
    loop {
        let next = todo.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).recv();
        let Ok(Job { block, length, reply }) = next else { return };
        // Nobody may be waiting any more; then there is nothing to do with the answer.
        let _ = reply.send(packer.pack(&block[..length]));
        let _ = give_back.try_send(block);
    }
}
