//! keelway.yml text to a checked definition to a Plan.
