//! The bounded load generator and its book of requests.
