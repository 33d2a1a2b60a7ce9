//! What a flow carries, and how its bytes are to be moved.

use underpass_command::state::{RedirectMode, Settings};

use crate::metrics::Counter;

/// What a flow carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The body of a request, from a client that may send its next request at any time.
    Request,
    /// The body of a response, from a backend that has nothing more to say then.
    Response,
    /// One direction of a tunnel.
    Tunnel,
    /// One direction of a TCP connection.
    Tcp,
}

/// How the bytes of a flow are to be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What was configured.
    pub mode: RedirectMode,
    /// In mode auto, the smallest rest worth a splice.
    pub splice_size_min: u64,
    /// In mode auto, the smallest rest worth a redirection by the kernel.
    pub sockmap_size_min: u64,
    /// In mode auto, the largest body that is redirected by the kernel.
    pub sockmap_size_max: u64,
}

impl Policy {
    /// The policy of a mode that asks for no thresholds: any but auto.
    pub fn fixed(mode: RedirectMode) -> Self {
        Self { mode, splice_size_min: 0, sockmap_size_min: 0, sockmap_size_max: 0 }
    }

    /// The policy of a mode, with the thresholds that are configured.
    pub fn new(mode: RedirectMode, settings: &Settings) -> Self {
        let Settings { splice_size_min, sockmap_size_min, sockmap_size_max, .. } = *settings;
        Self { mode, splice_size_min, sockmap_size_min, sockmap_size_max }
    }
}

impl Kind {
    pub(super) fn copied(self) -> Counter {
        match self {
            Self::Request => Counter::BytesRequestCopied,
            Self::Response => Counter::BytesResponseCopied,
            Self::Tunnel => Counter::BytesTunnelCopied,
            Self::Tcp => Counter::BytesTcpCopied,
        }
    }

    pub(super) fn spliced(self) -> Counter {
        match self {
            Self::Request => Counter::BytesRequestSpliced,
            Self::Response => Counter::BytesResponseSpliced,
            Self::Tunnel => Counter::BytesTunnelSpliced,
            Self::Tcp => Counter::BytesTcpSpliced,
        }
    }

    pub(super) fn redirected(self) -> Counter {
        match self {
            Self::Request => Counter::BytesRequestRedirected,
            Self::Response => Counter::BytesResponseRedirected,
            Self::Tunnel => Counter::BytesTunnelRedirected,
            Self::Tcp => Counter::BytesTcpRedirected,
        }
    }
}
