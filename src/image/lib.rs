//! A Dockerfile lowered to a sub-plan of cached steps; COPY and ADD; the image's config and manifest.
