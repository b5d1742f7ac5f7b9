//! Composition: pin, plan, run. Performs every Op.
