//! Choosing a backend among those of a cluster: policies, weights, backups, slow start; who is ejected, who waits, and how
//! many retries are allowed. No clock, no randomness of its own: time and seed are arguments.
//!
//! | policy | chooses | a choice costs |
//! |---|---|---|
//! | `round-robin` | in turn, smoothly weighted | the number of backends |
//! | `least-loaded` | fewest under way for its weight; in turn among equals | the number of backends |
//! | `random` | by lot, weighted | a few draws |
//! | `power-of-two` | two by lot, the one with less under way for its weight | a few draws |
//! | `peak-ewma` | two by lot, the one that is expected to answer sooner | a few draws |
//! | `maglev` | by hash, the same one as long as it is available | a few looks at a table |
//!
//! Where most backends are not available, the last four look at all backends too. A change costs the number of backends of
//! its cluster, and nothing is allocated by a choice.
#![deny(clippy::disallowed_methods)]

mod budget;
mod draw;
mod ejection;
mod hash;
mod latency;
mod line;
mod lot;
mod maglev;
mod member;
mod turn;

#[cfg(test)]
mod tests;

use underpass_command::state::{Backend, Balance, Cluster, WhenAllDown};

pub use budget::RetryBudget;
pub(crate) use draw::SplitMix64;
pub use ejection::Outcomes;
pub use hash::{PUBLIC, siphash};
pub use latency::{FAILURE_US, Latency};
pub use line::Line;
use maglev::Maglev;
use member::{Member, Tier};

/// What a balancer asks about backends when it chooses.
pub trait View {
    /// Requests and tunnels under way there.
    fn active(&self, backend: u32) -> u32;

    /// How long an answer is expected to take, in microseconds; 0 if none has come yet.
    fn latency_us(&self, backend: u32) -> f64;
}

/// What is known of the request for which a backend is wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// Of what the cluster chooses by, where the request has it.
    pub hash: Option<u64>,
    /// What its sticky cookie says.
    pub sticky: Option<u64>,
    /// Backends that were tried in vain.
    pub tried: &'a [u32],
    /// The clock of the ejections and slow starts.
    pub now_ms: u64,
}

/// The outcome of a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The backend with this id.
    Backend(u32),
    /// Every backend that could be had has as many requests under way as it may.
    Full,
    /// None is available.
    Missing,
}

/// Chooses among a cluster's backends. They have ids, which mean nothing here.
#[derive(Clone, Debug)]
pub struct Balancer {
    policy: Balance,
    when_all_down: WhenAllDown,
    slow_start_ms: u64,
    members: Vec<Member>,
    weight_max: u16,
    /// Where turns begin: workers begin at different backends.
    start: usize,
    lot: SplitMix64,
    maglev: Maglev,
    /// A choice has been made; who comes from now on finds others that have the clients.
    begun: bool,
}

impl Balancer {
    /// A balancer without backends for a cluster. Those with different seeds begin at different backends and draw other lots.
    pub fn new(cluster: &Cluster, seed: u64) -> Self {
        let mut lot = SplitMix64::new(seed);
        Self {
            policy: cluster.balance,
            when_all_down: cluster.when_all_down,
            slow_start_ms: cluster.slow_start_ms,
            members: Vec::new(),
            weight_max: 0,
            start: lot.below(1 << 16) as usize,
            lot,
            maglev: Maglev::new(),
            begun: false,
        }
    }

    /// Takes other settings of the cluster. What is known of its backends stays.
    pub fn configure(&mut self, cluster: &Cluster) {
        self.policy = cluster.balance;
        self.when_all_down = cluster.when_all_down;
        self.slow_start_ms = cluster.slow_start_ms;
    }

    /// Adds a backend under an id that none has; `sticky` is what its sticky cookie calls it.
    pub fn add(&mut self, id: u32, backend: &Backend, sticky: u64, now_ms: u64) {
        debug_assert!(self.place(id).is_none(), "backend {id} is there already");
        let member = Member::new(id, backend, sticky, self.begun.then_some(now_ms));
        match self.members.iter_mut().find(|member| member.is_vacant()) {
            Some(vacant) => *vacant = member,
            None => self.members.push(member),
        }
        self.changed();
    }

    /// Takes other settings of a backend. What it has shown of itself stays.
    pub fn change(&mut self, id: u32, backend: &Backend, sticky: u64) {
        if let Some(place) = self.place(id) {
            self.members[place].configure(backend);
            self.members[place].sticky = sticky;
            self.changed();
        }
    }

    /// Removes a backend.
    pub fn remove(&mut self, id: u32) {
        if let Some(place) = self.place(id) {
            self.members[place] = Member::vacant();
            while self.members.last().is_some_and(Member::is_vacant) {
                self.members.pop();
            }
            self.changed();
        }
    }

    fn changed(&mut self) {
        self.weight_max = self.members.iter().map(|member| member.weight).max().unwrap_or(0);
        self.maglev.outdate();
    }

    fn place(&self, id: u32) -> Option<usize> {
        self.members.iter().position(|member| member.id == id && !member.is_vacant())
    }

    /// Enters what the health checks say of a backend; whether that is news. One that comes up begins slowly.
    pub fn set_up(&mut self, id: u32, up: bool, now_ms: u64) -> bool {
        self.place(id).is_some_and(|place| self.members[place].set_up(up, now_ms))
    }

    /// Whether a backend may be taken out: it is in, and not more than `percent_max` of all would be out then.
    pub fn may_eject(&self, id: u32, percent_max: u8, now_ms: u64) -> bool {
        let Some(place) = self.place(id) else { return false };
        let all = self.members.iter().filter(|member| !member.is_vacant()).count();
        let out = 1 + self.members.iter().filter(|member| member.is_ejected(now_ms)).count();
        !self.members[place].is_ejected(now_ms) && out * 100 <= all * usize::from(percent_max)
    }

    /// Takes a backend out for a while. One that comes back begins slowly.
    pub fn eject(&mut self, id: u32, until_ms: u64) {
        if let Some(place) = self.place(id) {
            self.members[place].eject(until_ms);
        }
    }

    /// Whether a backend may get new requests.
    pub fn is_available(&self, id: u32, now_ms: u64) -> bool {
        self.place(id).is_some_and(|place| self.members[place].is_available(now_ms))
    }

    /// Whether a client may stay with the backend that its sticky cookie names, even if it must be sent elsewhere once.
    pub fn may_keep(&self, sticky: u64, tried: &[u32], now_ms: u64) -> bool {
        self.members.iter().any(|member| {
            member.sticky == sticky && member.is_available(now_ms) && !tried.contains(&member.id)
        })
    }

    /// The backend for a request.
    ///
    /// Those that are available come first, backups only where no other is. Those that were tried in vain are chosen only if
    /// there is no other.
    #[inline]
    pub fn choose(&mut self, wanted: &Wanted<'_>, view: &impl View) -> Choice {
        self.begun = true;
        if self.policy == Balance::Maglev {
            self.maglev.advance(&self.members);
        }
        if let Some(id) = self.stuck(wanted, view) {
            return Choice::Backend(id);
        }
        for again in [false, true] {
            for tier in [Tier::Primary, Tier::Backup] {
                match self.choose_in(tier, again, wanted, view) {
                    Choice::Missing => {}
                    choice => return choice,
                }
            }
            if again || wanted.tried.is_empty() {
                break;
            }
        }
        if self.when_all_down == WhenAllDown::Answer {
            return Choice::Missing;
        }
        match self.choose_in(Tier::Whoever, false, wanted, view) {
            Choice::Missing if !wanted.tried.is_empty() => self.choose_in(Tier::Whoever, true, wanted, view),
            choice => choice,
        }
    }

    /// The backend that a cookie names, if it can be had.
    fn stuck(&self, wanted: &Wanted<'_>, view: &impl View) -> Option<u32> {
        let sticky = wanted.sticky?;
        let member = self.members.iter().find(|member| member.sticky == sticky && !member.is_vacant())?;
        let usable = member.is_available(wanted.now_ms)
            && !wanted.tried.contains(&member.id)
            && !member.is_full(|| view.active(member.id));
        usable.then_some(member.id)
    }

    fn choose_in(&mut self, tier: Tier, again: bool, wanted: &Wanted<'_>, view: &impl View) -> Choice {
        let in_question = |member: &Member| {
            member.serves(tier, wanted.now_ms) && (again || !wanted.tried.contains(&member.id))
        };
        let eligible = |member: &Member| in_question(member) && !member.is_full(|| view.active(member.id));
        match self.pick(tier, wanted, view, eligible) {
            Some(place) => Choice::Backend(self.members[place].id),
            None if self.members.iter().any(in_question) => Choice::Full,
            None => Choice::Missing,
        }
    }

    #[inline]
    fn pick(
        &mut self,
        tier: Tier,
        wanted: &Wanted<'_>,
        view: &impl View,
        eligible: impl Fn(&Member) -> bool,
    ) -> Option<usize> {
        let share = {
            let (slow_start_ms, now_ms) = (self.slow_start_ms, wanted.now_ms);
            move |member: &Member| member.share(slow_start_ms, now_ms)
        };
        let members = &mut self.members;
        let weight_max = u32::from(self.weight_max);
        match (self.policy, wanted.hash) {
            (Balance::RoundRobin, _) => turn::next(members, self.start, eligible, share),
            (Balance::LeastLoaded, _) => turn::least(members, self.start, view, eligible, share),
            (Balance::Maglev, Some(hash)) => self.pick_by_hash(tier, hash, wanted.now_ms, eligible),
            (Balance::Random | Balance::Maglev, _) => {
                lot::draw(members, &mut self.lot, weight_max, &eligible, &share)
            }
            (Balance::PowerOfTwo, _) => {
                lot::less_loaded_of_two(members, &mut self.lot, weight_max, view, eligible, share)
            }
            (Balance::PeakEwma, _) => {
                lot::sooner_of_two(members, &mut self.lot, weight_max, view, eligible, share)
            }
        }
    }

    /// By the table, as far as it goes. Members that begin slowly leave a part of their hashes to others, and get them back
    /// one after the other.
    fn pick_by_hash(
        &self,
        tier: Tier,
        hash: u64,
        now_ms: u64,
        eligible: impl Fn(&Member) -> bool,
    ) -> Option<usize> {
        let slow_start_ms = self.slow_start_ms;
        let warm = |member: &Member, hash: u64| {
            let part = hash::mix(hash ^ member.identity) % u64::from(member::WHOLE);
            part < u64::from(member.ramp(slow_start_ms, now_ms))
        };
        let by_table = match tier {
            Tier::Primary | Tier::Whoever => {
                self.maglev.find(hash, &self.members, |member, hash| eligible(member) && warm(member, hash))
            }
            Tier::Backup => None, // few, and seldom asked for: they have no table
        };
        // By the highest of the members' own hashes: as steady as a table, for the price of looking at all.
        by_table.or_else(|| {
            let of = |member: &Member| hash::mix(hash ^ member.identity);
            let eligible = self.members.iter().enumerate().filter(|(_, member)| eligible(member));
            eligible.max_by_key(|(_, member)| of(member)).map(|(place, _)| place)
        })
    }
}
