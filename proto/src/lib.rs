//! The messages and services of `pontoon/v1/*.proto`, generated at build time.
//!
//! This crate holds no logic: conversions to and from domain values are in `pontoon::wire`.

/// Version 1 of the contracts.
pub mod v1 {
    #![allow(clippy::all, missing_docs)]
    tonic::include_proto!("pontoon.v1");
}

/// The encoded `FileDescriptorSet`, for the reflection service.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
