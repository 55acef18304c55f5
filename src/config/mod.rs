//! Node-local configuration: the file as written, and the checked value.
