//! Real sockets: the proxy as a client and a backend see it.
