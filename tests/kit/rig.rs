//! The rig: three hosts, a registry, a deployer and a load generator, each in namespaces of its own.
