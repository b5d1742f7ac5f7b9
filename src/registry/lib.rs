//! OCI distribution: the client, and docker's credential config.
