//! What runs on a target host: replicas, the balancer, fencing.
