//! The operator's commands and their output.
