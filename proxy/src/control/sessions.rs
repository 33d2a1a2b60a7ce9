//! The sessions of all workers, for whoever asks: collected from those that answer in time.

use std::time::Duration;

use tokio::time::Instant;
use underpass_command::api::{PAGE_SIZE_MAX, SESSIONS_MAX, SessionEntry, SessionSelect, Sessions};

use super::commands::{Failure, Reply};
use super::link::{Source, Told};
use super::numbers::Waiting;
use super::supervisor::Supervisor;
use crate::ipc::ToWorker;

/// Until workers must have answered.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Questions that may be open at a time.
const OPEN_MAX: usize = 8;

/// A question that not every worker has answered yet.
#[derive(Debug)]
pub(super) struct Question {
    id: u64,
    waiting: Waiting,
    found: Sessions,
    pub(super) deadline: Instant,
    reply: Reply<Sessions>,
}

impl Supervisor {
    /// Asks every worker for its sessions: of one that drains, both processes.
    pub(super) fn ask_for_sessions(&mut self, select: &SessionSelect, reply: Reply<Sessions>) {
        // A caller that has gone does not wait for its answer.
        let cluster = match select.cluster.as_deref().map(|name| (name, self.registry.cluster(name))) {
            None => None,
            Some((_, Some(number))) => Some(number),
            Some((name, None)) => {
                let text = format!("there is no cluster \"{name}\"");
                let failure = Failure::new(404, text, "GET /v1/clusters lists all of them");
                return drop(reply.send(Err(failure)));
            }
        };
        let limit_max = u32::try_from(PAGE_SIZE_MAX).unwrap_or(u32::MAX);
        if !(1..=limit_max).contains(&select.limit) {
            let text = format!("limit={}: not from 1 to {limit_max}", select.limit);
            let failure = Failure::new(400, text, "those come first that have a request for longest");
            return drop(reply.send(Err(failure)));
        }
        if self.questions.len() >= OPEN_MAX {
            let failure = Failure::new(503, "too many ask for sessions", "try again in a moment");
            return drop(reply.send(Err(failure)));
        }
        self.next_command += 1;
        let id = self.next_command;
        let mut question = Question {
            id,
            waiting: Waiting::new(),
            found: Sessions::default(),
            deadline: Instant::now() + TIMEOUT,
            reply,
        };
        for (process, link) in self.processes() {
            let limit = select.limit.min(SESSIONS_MAX);
            let told = link.tell(vec![ToWorker::Sessions { id, limit, cluster }.into()]);
            match told {
                Told::Queued => drop(question.waiting.insert(process)),
                Told::Stuck => question.found.missing.push(process.number()),
                Told::Ended => {}
            }
        }
        self.questions.push(question);
        self.answer_questions();
    }

    /// Enters what a process has answered.
    pub(super) fn sessions_told(
        &mut self,
        process: Source,
        id: u64,
        total: u64,
        sessions: Vec<SessionEntry>,
    ) {
        let number = process.number();
        if let Some(question) = self.questions.iter_mut().find(|question| question.id == id)
            && question.waiting.remove(&process)
        {
            question.found.total += total;
            let sessions = sessions.into_iter().map(|session| SessionEntry { worker: number, ..session });
            question.found.sessions.extend(sessions);
        }
        self.answer_questions();
    }

    /// Notes that a process has ended: it has no sessions.
    pub(super) fn questions_void(&mut self, process: Source) {
        for question in &mut self.questions {
            question.waiting.remove(&process);
        }
        self.answer_questions();
    }

    /// Answers the questions that are complete or late.
    pub(super) fn answer_questions(&mut self) {
        let now = Instant::now();
        let (done, open): (Vec<_>, Vec<_>) = std::mem::take(&mut self.questions)
            .into_iter()
            .partition(|question| question.waiting.is_empty() || question.deadline <= now);
        self.questions = open;
        for mut question in done {
            question.found.missing.extend(question.waiting.iter().map(|process| process.number()));
            // A worker that drains has two processes.
            question.found.missing.sort_unstable();
            question.found.missing.dedup();
            question.found.sessions.sort_by_key(|session| std::cmp::Reverse(session.active_ms));
            drop(question.reply.send(Ok(question.found)));
        }
    }
}
