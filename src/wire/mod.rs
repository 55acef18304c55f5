//! Generated protobuf types and their conversions to domain values, one file per message family.

pub mod command;
