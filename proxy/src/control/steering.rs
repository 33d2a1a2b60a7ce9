//! The supervisor's hold on the steering program. Without it the kernel spreads connections by its own hash.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use underpass_command::api::{Probe, SteeringStatus};
use underpass_command::state::SteeringPolicy;

use super::commands::Failure;
use super::sockets::ListenerSockets;

/// The steering program, or why there is none.
#[derive(Debug)]
pub(super) struct Steering {
    policy: SteeringPolicy,
    reason: Option<String>,
}

impl Steering {
    /// Loads the program and attaches it to each listener's group.
    pub(super) fn start(
        policy: SteeringPolicy,
        _cpus: &[Option<u16>],
        _generation: u32,
        _listeners: &[ListenerSockets],
    ) -> Self {
        Self { policy, reason: Some("this version has no steering program".into()) }
    }

    /// The map through which workers tell the program how they are.
    pub(super) fn slots(&self) -> Option<Arc<OwnedFd>> {
        None
    }

    /// Tells the program that a worker has no process.
    pub(super) fn worker_down(&self, _worker: usize) {}

    pub(super) fn set_policy(&mut self, policy: SteeringPolicy) -> Result<(), Failure> {
        if let Some(reason) = &self.reason
            && policy != SteeringPolicy::Off
        {
            let text = format!("steering policy \"{policy}\" cannot be had: {reason}");
            return Err(Failure::new(409, text, "the kernel's own hash stays in use"));
        }
        self.policy = policy;
        Ok(())
    }

    pub(super) fn status(&self) -> SteeringStatus {
        SteeringStatus {
            policy: self.policy,
            active: false,
            reason: self.reason.clone(),
            ..SteeringStatus::default()
        }
    }

    pub(super) fn probes(&self) -> &[Probe] {
        &[]
    }
}
