//! Real registries: Debian's docker-registry plain, with TLS, with htpasswd, behind a token server.
