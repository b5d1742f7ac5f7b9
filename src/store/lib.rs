//! The content store: blobs, snapshots, layers, keys, references, cache index.
