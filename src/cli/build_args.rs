//! Flags of `image build` that docker's users know, beside those of [`crate::args`].

use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// How to build, and what to do with the image.
#[derive(Debug, Clone, Default, Args)]
pub struct BuildFlags {
    /// Run every step, whatever is in the cache
    #[arg(long)]
    pub no_cache: bool,
    /// Run every step of these stages, whatever is in the cache
    #[arg(long, value_name = "STAGE", value_delimiter = ',', conflicts_with = "no_cache")]
    pub no_cache_filter: Vec<String>,
    /// Ask registries what names of images mean, whatever the store has
    #[arg(long)]
    pub pull: bool,
    /// Ask for steps in a cache of other machines: type=registry,ref=NAME or type=local,src=DIR
    #[arg(long, value_name = "NAME|type=..")]
    pub cache_from: Vec<String>,
    /// Write a cache for other machines: type=registry,ref=NAME or type=local,dest=DIR, with mode=min|max
    #[arg(long, value_name = "NAME|type=..")]
    pub cache_to: Vec<String>,
    /// A label of the image
    #[arg(long, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    /// An annotation of the image's manifest
    #[arg(long, value_name = "KEY=VALUE")]
    pub annotation: Vec<String>,
    /// Where to put the image: type=image|oci|docker|tar|local,.. or a directory; `-` is a tar of its files to
    /// standard output [default: the store]
    #[arg(long, short = 'o', value_name = "DIR|type=..,dest=..")]
    pub output: Vec<String>,
    /// Push the image to the registries of its names
    #[arg(long)]
    pub push: bool,
    /// Keep the image in the store: what happens anyway without --output
    #[arg(long, conflicts_with = "push")]
    pub load: bool,
    /// Write the image's id, the digest of its config, to a file
    #[arg(long, value_name = "FILE")]
    pub iidfile: Option<PathBuf>,
    /// Write the image's digests and names to a file, as JSON
    #[arg(long, value_name = "FILE")]
    pub metadata_file: Option<PathBuf>,
    /// How to say what happens: lines that change, plain lines, or how it ended
    #[arg(long, value_enum, default_value_t = Progress::Auto, value_name = "FORM")]
    pub progress: Progress,
}

/// How to say what happens, as docker names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Progress {
    /// What fits standard error
    #[default]
    Auto,
    /// A line an event
    Plain,
    /// Lines that change
    Tty,
    /// One line at the end
    Quiet,
}
