//! Master files (RFC 1035 section 5): text to records and back.
