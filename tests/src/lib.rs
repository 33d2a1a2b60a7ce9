//! What the end-to-end tests share: ports, network namespaces, peers, a running proxy.
#![forbid(unsafe_code)]
