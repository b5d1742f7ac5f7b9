//! Real git servers: https with a test authority, loopback http, ssh; private repositories.
