//! The one HTTP client: trust roots, proxies, deadlines.
