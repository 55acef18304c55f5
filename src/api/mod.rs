//! The admin service: authenticate, decode, propose or read, encode.
