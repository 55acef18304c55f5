//! Record data: the wire and presentation forms of each type.
