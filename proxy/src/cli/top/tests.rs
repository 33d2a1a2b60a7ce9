//! The screen, drawn from documents made here.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyModifiers};
use underpass_command::api::{
    Distribution, SteeringRow, SteeringStatus, TopBackend, TopCluster, TopWorker, Traffic, WorkerState,
};

use super::*;

/// What was counted after so many seconds of the same load.
fn after(seconds: u64) -> Top {
    let traffic = |per_second: u64| Traffic {
        requests: per_second * seconds,
        responses: [0, per_second * seconds, 0, 3 * seconds, 2 * seconds],
        bytes_in: per_second * 700 * seconds,
        bytes_out: per_second * 12_000 * seconds,
    };
    let spread = |usual_us: u64, per_second: u64| Distribution {
        sum_us: 0,
        buckets: [(usual_us, per_second * 98 * seconds), (usual_us * 20, per_second * 2 * seconds)].into(),
    };
    let worker = |index: u16, state, per_second| TopWorker {
        index,
        cpu: Some(index * 2),
        state,
        traffic: traffic(per_second),
        accepted: 5 * seconds,
        connections: 64,
        active: 12,
        fallbacks: 4 * seconds,
        total: spread(250, per_second),
    };
    let cluster = |name: &str, per_second| TopCluster {
        name: name.into(),
        traffic: traffic(per_second),
        retries: seconds,
        queue: 3,
        failures: 2 * seconds,
        total: spread(300, per_second),
        first_byte: spread(200, per_second),
    };
    let backend = |cluster: &str, address: &str, up, drain, per_second| TopBackend {
        cluster: cluster.into(),
        address: address.parse().expect("an address"),
        up,
        drain,
        traffic: traffic(per_second),
        active: 6,
        failures: 0,
        response: spread(180, per_second),
    };
    Top {
        version: "1.2.3".into(),
        uptime_ms: 3_600_000 + seconds * 1000,
        revision: 42,
        draining: false,
        workers: vec![
            worker(0, WorkerState::Running, 11_000),
            worker(1, WorkerState::Running, 9_500),
            worker(2, WorkerState::Waiting, 0),
        ],
        clusters_total: 10_000,
        clusters: vec![
            cluster("shop", 900),
            cluster("a-cluster-with-a-long-name", 19_000),
            cluster("quiet", 0),
        ],
        backends_total: 3,
        backends: vec![
            backend("shop", "10.0.0.7:8080", Some(true), false, 700),
            backend("shop", "10.0.0.8:8080", Some(false), false, 200),
            backend("a-cluster-with-a-long-name", "[2001:db8::15]:8080", None, true, 19_000),
        ],
        steering: SteeringStatus {
            active: true,
            matrix: vec![
                SteeringRow { cpu: 0, workers: vec![1200, 3, 0], kernel: 0 },
                SteeringRow { cpu: 2, workers: vec![7, 980, 0], kernel: 5 },
            ],
            outcomes: [("home".to_owned(), 2180), ("kernel".to_owned(), 5), ("other".to_owned(), 10)].into(),
            ..SteeringStatus::default()
        },
    }
}

fn app(view: View) -> App {
    let mut app = App::new(view);
    app.take(Ok(after(10)));
    app.take(Ok(after(12)));
    app
}

fn screen(app: &App, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal in memory");
    terminal.draw(|frame| frame.render_widget(app, frame.area())).expect("drawn");
    terminal.backend().to_string()
}

fn press(app: &mut App, codes: &[KeyCode]) {
    codes.iter().for_each(|code| app.key(*code, KeyModifiers::NONE));
}

/// The first column of the table, line by line.
fn firsts(app: &App) -> Vec<String> {
    app.rows().iter().map(|row| format!("{:?}", row[0])).collect()
}

#[test]
fn workers() {
    insta::assert_snapshot!(screen(&app(View::Workers), 80, 24));
}

#[test]
fn clusters() {
    insta::assert_snapshot!(screen(&app(View::Clusters), 80, 24));
}

#[test]
fn backends() {
    insta::assert_snapshot!(screen(&app(View::Backends), 80, 24));
}

#[test]
fn backends_on_a_wide_screen() {
    insta::assert_snapshot!(screen(&app(View::Backends), 120, 12));
}

#[test]
fn steering() {
    insta::assert_snapshot!(screen(&app(View::Steering), 80, 16));
}

#[test]
fn steering_with_more_workers_than_there_is_room_for() {
    let mut top = after(1);
    let workers = (0..64).map(|worker| worker * 3).collect();
    top.steering.matrix = vec![SteeringRow { cpu: 0, workers, kernel: 1 }];
    let mut app = App::new(View::Steering);
    app.take(Ok(top));
    insta::assert_snapshot!(screen(&app, 80, 12));
}

#[test]
fn before_the_first_answer_and_without_any() {
    let mut app = App::new(View::Workers);
    app.take(Err("admin socket /run/x: the proxy that made it is gone".into()));
    insta::assert_snapshot!(screen(&app, 80, 8));
}

#[test]
fn every_size_can_be_drawn() {
    for view in View::ALL.into_iter().chain([View::default()]) {
        for (width, height) in [(1, 1), (10, 3), (20, 6), (79, 7), (400, 200)] {
            screen(&app(view), width, height);
        }
    }
}

#[test]
fn one_frame_as_text_has_every_line_of_the_table() {
    let text = text(&app(View::Backends));
    for address in ["10.0.0.7:8080", "10.0.0.8:8080", "[2001:db8::15]:8080"] {
        assert!(text.contains(address), "{text}");
    }
    assert!(!text.contains("quit"), "{text}");
}

#[test]
fn keys_choose_view_order_and_pause() {
    let mut app = app(View::Workers);
    press(&mut app, &[KeyCode::Tab]);
    assert_eq!(app.view, View::Clusters);
    assert!(firsts(&app)[0].contains("a-cluster"), "the busiest first: {:?}", firsts(&app));
    press(&mut app, &[KeyCode::Char('r')]);
    assert!(firsts(&app)[0].contains("quiet"));
    press(&mut app, &[KeyCode::Char('S')]);
    assert_eq!(firsts(&app)[2], "Text(\"shop\")", "names in rising order");
    press(&mut app, &[KeyCode::Char('3'), KeyCode::Left, KeyCode::BackTab]);
    assert_eq!(app.view, View::Workers);
    press(&mut app, &[KeyCode::Char('p')]);
    app.take(Ok(after(20)));
    assert_eq!(app.newest.as_ref().map(|top| top.uptime_ms), Some(3_612_000));
    press(&mut app, &[KeyCode::Char(' ')]);
    app.take(Ok(after(20)));
    assert_eq!(app.newest.as_ref().map(|top| top.uptime_ms), Some(3_620_000));
}

#[test]
fn scrolling_stays_within_the_table() {
    let mut app = app(View::Clusters);
    press(&mut app, &[KeyCode::Up]);
    assert_eq!(app.first, 0);
    press(&mut app, &[KeyCode::PageDown]);
    assert_eq!(app.first, 2);
    press(&mut app, &[KeyCode::Home]);
    assert_eq!(app.first, 0);
}

#[test]
fn it_ends_by_key() {
    for (code, modifiers) in [
        (KeyCode::Char('q'), KeyModifiers::NONE),
        (KeyCode::Esc, KeyModifiers::NONE),
        (KeyCode::Char('c'), KeyModifiers::CONTROL),
    ] {
        let mut app = app(View::Workers);
        app.key(code, modifiers);
        assert!(app.ended);
    }
    let mut app = app(View::Workers);
    app.key(KeyCode::Char('c'), KeyModifiers::NONE);
    assert!(!app.ended);
}

/// A cluster that has just become one of the busiest has no rate yet, rather than one made of all its past.
#[test]
fn what_was_not_there_before_has_no_rate_yet() {
    let mut app = App::new(View::Clusters);
    let mut before = after(10);
    before.clusters.retain(|cluster| cluster.name != "shop");
    app.take(Ok(before));
    app.take(Ok(after(12)));
    let rows = app.rows();
    let shop = rows.iter().find(|row| format!("{:?}", row[0]).contains("shop")).expect("it is there");
    assert_eq!(format!("{:?}", shop[1]), "PerSecond(0.0)");
}
