//! `underpass top`: what a running proxy does now, by worker, cluster and backend.

mod draw;
mod model;
mod signals;

#[cfg(test)]
mod tests;

use std::io::{self, IsTerminal};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use ratatui::layout::Rect;
use ratatui::widgets::Widget;
use underpass_command::Client;
use underpass_command::api::{TOP_SIZE_MAX, Top};

use self::model::{App, View};
use self::signals::Signals;
use super::{Failure, Target, print};

/// How long a key or a resize is waited for before newer numbers are looked for.
const KEY_WAIT: Duration = Duration::from_millis(100);
/// The text of `--once` where the output is no terminal.
const TEXT_WIDTH: u16 = 120;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// What to show first
    #[arg(long, value_enum, default_value_t)]
    view: View,
    /// Seconds between two looks
    #[arg(long, short, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    /// The most clusters, and backends, to look at: the busiest
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=i64::from(TOP_SIZE_MAX)))]
    limit: u32,
    /// Print one frame as text, and end
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    target: Target,
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    let client = options.target.client();
    let interval = Duration::from_secs(options.interval);
    let mut app = App::new(options.view);
    // Before anything is drawn: what is wrong from the start is told in plain text.
    app.take(Ok(client.top(options.limit).map_err(Failure::runtime)?));
    if options.once {
        thread::sleep(interval);
        app.take(Ok(client.top(options.limit).map_err(Failure::runtime)?));
        return print(&text(&app));
    }
    if !io::stdout().is_terminal() {
        return Err(Failure::usage("the output is no terminal; use --once to get one frame as text"));
    }
    // Before any other thread is there, which would take them.
    let signals = Signals::hold().map_err(Failure::runtime)?;
    let answers = look(client, options.limit, interval);
    // It gives the terminal back when the program panics, too.
    let mut terminal = ratatui::try_init().map_err(Failure::runtime)?;
    let outcome = show(&mut terminal, &mut app, &answers, &signals);
    let restored = ratatui::try_restore();
    if let Ok(Some(signal)) = outcome {
        // Of a terminal that has gone nothing can be restored.
        return signals.end_by(signal).map_err(Failure::runtime);
    }
    restored.map_err(Failure::runtime)?;
    outcome.map(drop).map_err(Failure::runtime)
}

/// Asks again and again on a thread of its own, so that keys work while the proxy is slow to answer.
fn look(client: Client, limit: u32, interval: Duration) -> Receiver<Result<Top, String>> {
    let (sender, answers) = sync_channel(1);
    thread::spawn(move || {
        loop {
            thread::sleep(interval);
            let answer = client.top(limit).map_err(|error| error.to_string());
            if sender.send(answer).is_err() {
                return; // the screen is closed
            }
        }
    });
    answers
}

/// Shows until its user has enough of it, or a signal comes; which one.
fn show(
    terminal: &mut ratatui::DefaultTerminal,
    app: &mut App,
    answers: &Receiver<Result<Top, String>>,
    signals: &Signals,
) -> io::Result<Option<Signal>> {
    let mut changed = true;
    while !app.ended {
        if let Some(signal) = signals.come()? {
            return Ok(Some(signal));
        }
        if changed {
            terminal.draw(|frame| frame.render_widget(&*app, frame.area()))?;
        }
        changed = false;
        if event::poll(KEY_WAIT)? {
            match event::read()? {
                Event::Key(key) if key.kind != KeyEventKind::Release => app.key(key.code, key.modifiers),
                _ => {}
            }
            changed = true; // after a resize, too
        }
        while let Ok(answer) = answers.try_recv() {
            app.take(answer);
            changed = true;
        }
    }
    Ok(None)
}

/// The whole screen as text, as high as the table is.
fn text(app: &App) -> String {
    let width = match ratatui::crossterm::terminal::size() {
        Ok((width, _)) if io::stdout().is_terminal() => width,
        _ => TEXT_WIDTH,
    };
    let rows = match app.view {
        View::Steering => app.newest.as_ref().map_or(0, |top| top.steering.matrix.len() + 3),
        _ => app.rows().len(),
    };
    let height = u16::try_from(rows).unwrap_or(u16::MAX).saturating_add(draw::FRAME_HEIGHT).min(2000);
    let area = Rect::new(0, 0, width, height);
    let mut buffer = Buffer::empty(area);
    app.render(area, &mut buffer);
    // Without the last line, which tells what keys do.
    (0..height - 1).fold(String::new(), |mut text, y| {
        let line: String = (0..width).map(|x| buffer[(x, y)].symbol()).collect();
        text.push_str(line.trim_end());
        text.push('\n');
        text
    })
}
