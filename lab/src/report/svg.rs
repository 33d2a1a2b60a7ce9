//! Plots as SVG, without scripts and without anything from elsewhere.

use std::fmt::Write as _;

/// Text that is safe within markup and quoted attributes.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

/// How values lie along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    /// From zero.
    Linear,
    Log,
}

/// An axis.
pub(super) struct Axis {
    pub(super) label: String,
    pub(super) scale: Scale,
    /// Where ticks stand; none: where they look good.
    pub(super) ticks: Option<Vec<f64>>,
    pub(super) format: fn(f64) -> String,
}

/// A measured point; an interval around it, if `low` and `high` differ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    /// Drawn as a cross: it broke a bound.
    pub(super) broken: bool,
}

/// One line of a plot.
pub(super) struct Line {
    pub(super) name: String,
    pub(super) style: Style,
    pub(super) dashed: bool,
    pub(super) points: Vec<Point>,
}

/// Colour and marker, so that lines can be told apart in print too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Style {
    pub(super) color: &'static str,
    pub(super) marker: Marker,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Marker {
    Circle,
    Square,
    Triangle,
    Diamond,
    Down,
}

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 330.0;
const LEFT: f64 = 68.0;
const RIGHT: f64 = 492.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 280.0;
const INK: &str = "#333";
const GRID: &str = "#ddd";

/// From values to places on the page.
struct Mapping {
    scale: Scale,
    min: f64,
    max: f64,
    from: f64,
    to: f64,
}

impl Mapping {
    fn new(scale: Scale, values: impl Iterator<Item = f64>, from: f64, to: f64) -> Option<Self> {
        let usable = |value: &f64| value.is_finite() && (scale == Scale::Linear || *value > 0.0);
        let (min, max) = values
            .filter(usable)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(min, max), value| (min.min(value), max.max(value)));
        if min > max {
            return None;
        }
        let (min, max) = match scale {
            Scale::Linear => (0.0, if max > 0.0 { max * 1.05 } else { 1.0 }),
            Scale::Log => (min / 1.15, max * 1.15),
        };
        Some(Self { scale, min, max, from, to })
    }

    fn at(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => (value - self.min) / (self.max - self.min),
            Scale::Log => (value.max(self.min) / self.min).ln() / (self.max / self.min).ln(),
        };
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }

    fn ticks(&self) -> Vec<f64> {
        let mut ticks = Vec::new();
        let decade = 10f64.powf(match self.scale {
            Scale::Linear => (self.max / 4.0).log10().floor(),
            Scale::Log => self.min.log10().floor(),
        });
        match self.scale {
            Scale::Linear => {
                let step = [1.0, 2.0, 5.0, 10.0]
                    .map(|factor| factor * decade)
                    .into_iter()
                    .find(|step| self.max / step <= 6.0)
                    .unwrap_or(decade * 10.0);
                let mut tick = 0.0;
                while tick <= self.max {
                    ticks.push(tick);
                    tick += step;
                }
            }
            Scale::Log => {
                // Over many decades the steps between them would be too close.
                let factors: &[f64] = match (self.max / self.min).log10() {
                    decades if decades > 3.0 => &[1.0],
                    decades if decades > 0.7 => &[1.0, 2.0, 5.0],
                    _ => &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0],
                };
                let mut decade = decade;
                while decade <= self.max {
                    ticks.extend(factors.iter().map(|factor| factor * decade));
                    decade *= 10.0;
                }
                ticks.retain(|tick| (self.min..=self.max).contains(tick));
            }
        }
        ticks
    }
}

/// Lines over two axes, with a legend.
pub(super) fn line_plot(title: &str, x_axis: &Axis, y_axis: &Axis, lines: &[Line]) -> String {
    let points = || lines.iter().flat_map(|line| &line.points);
    let x_map = Mapping::new(x_axis.scale, points().map(|point| point.x), LEFT, RIGHT);
    let y_map =
        Mapping::new(y_axis.scale, points().flat_map(|point| [point.y, point.low, point.high]), BOTTOM, TOP);
    let (Some(x_map), Some(y_map)) = (x_map, y_map) else { return String::new() };
    let mut svg = open(title, WIDTH, HEIGHT);
    axes(&mut svg, x_axis, &x_map, y_axis, &y_map);
    for line in lines {
        draw_line(&mut svg, line, &x_map, &y_map);
    }
    legend(&mut svg, lines);
    svg.push_str("</svg>\n");
    svg
}

fn open(title: &str, width: f64, height: f64) -> String {
    let title = escape(title);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{title}\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"12\" y=\"20\" font-weight=\"bold\" font-size=\"14\">{title}</text>\n"
    )
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, content: &str) {
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"11\">{}</text>",
        escape(content)
    );
}

fn rule(svg: &mut String, from: (f64, f64), to: (f64, f64), stroke: &str, more: &str) {
    let _ = writeln!(
        svg,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{stroke}\" {more}/>",
        from.0, from.1, to.0, to.1
    );
}

fn axes(svg: &mut String, x_axis: &Axis, x_map: &Mapping, y_axis: &Axis, y_map: &Mapping) {
    for tick in x_axis.ticks.clone().unwrap_or_else(|| x_map.ticks()) {
        let x = x_map.at(tick);
        rule(svg, (x, TOP), (x, BOTTOM), GRID, "");
        text(svg, x, BOTTOM + 15.0, "middle", &(x_axis.format)(tick));
    }
    for tick in y_axis.ticks.clone().unwrap_or_else(|| y_map.ticks()) {
        let y = y_map.at(tick);
        rule(svg, (LEFT, y), (RIGHT, y), GRID, "");
        text(svg, LEFT - 6.0, y + 4.0, "end", &(y_axis.format)(tick));
    }
    rule(svg, (LEFT, BOTTOM), (RIGHT, BOTTOM), INK, "");
    rule(svg, (LEFT, TOP), (LEFT, BOTTOM), INK, "");
    text(svg, (LEFT + RIGHT) / 2.0, BOTTOM + 36.0, "middle", &x_axis.label);
    let middle = (TOP + BOTTOM) / 2.0;
    let _ = writeln!(
        svg,
        "<text x=\"16\" y=\"{middle:.1}\" text-anchor=\"middle\" font-size=\"11\" transform=\"rotate(-90 16 {middle:.1})\">{}</text>",
        escape(&y_axis.label)
    );
}

fn draw_line(svg: &mut String, line: &Line, x_map: &Mapping, y_map: &Mapping) {
    let place = |point: &Point| (x_map.at(point.x), y_map.at(point.y));
    let path: Vec<String> = line.points.iter().map(place).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let dashes = if line.dashed { " stroke-dasharray=\"5 4\"" } else { "" };
    let color = line.style.color;
    let _ = writeln!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.6\"{dashes}/>",
        path.join(" ")
    );
    for point in &line.points {
        let (x, y) = place(point);
        if point.low < point.high {
            let (low, high) = (y_map.at(point.low), y_map.at(point.high));
            rule(svg, (x, low), (x, high), color, "stroke-width=\"1.2\"");
            for end in [low, high] {
                rule(svg, (x - 3.0, end), (x + 3.0, end), color, "stroke-width=\"1.2\"");
            }
        }
        if point.broken {
            for way in [1.0, -1.0] {
                rule(svg, (x - 4.0, y - 4.0 * way), (x + 4.0, y + 4.0 * way), color, "stroke-width=\"2\"");
            }
        } else {
            marker(svg, x, y, line.style, line.dashed);
        }
    }
}

fn marker(svg: &mut String, x: f64, y: f64, style: Style, hollow: bool) {
    let Style { color, marker } = style;
    let fill = if hollow { "white" } else { color };
    let corners: &[(f64, f64)] = match marker {
        Marker::Circle => {
            let _ = writeln!(
                svg,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.4\" fill=\"{fill}\" stroke=\"{color}\"/>"
            );
            return;
        }
        Marker::Square => &[(-3.0, -3.0), (3.0, -3.0), (3.0, 3.0), (-3.0, 3.0)],
        Marker::Triangle => &[(0.0, -4.2), (4.0, 3.0), (-4.0, 3.0)],
        Marker::Diamond => &[(0.0, -4.4), (4.4, 0.0), (0.0, 4.4), (-4.4, 0.0)],
        Marker::Down => &[(0.0, 4.2), (4.0, -3.0), (-4.0, -3.0)],
    };
    let corners: Vec<String> =
        corners.iter().map(|(right, down)| format!("{:.1},{:.1}", x + right, y + down)).collect();
    let _ = writeln!(svg, "<polygon points=\"{}\" fill=\"{fill}\" stroke=\"{color}\"/>", corners.join(" "));
}

fn legend(svg: &mut String, lines: &[Line]) {
    for (number, line) in lines.iter().enumerate() {
        let (x, y) = (RIGHT + 14.0, TOP + 10.0 + 17.0 * number as f64);
        let dashes = if line.dashed {
            "stroke-width=\"1.6\" stroke-dasharray=\"5 4\""
        } else {
            "stroke-width=\"1.6\""
        };
        rule(svg, (x, y), (x + 24.0, y), line.style.color, dashes);
        marker(svg, x + 12.0, y, line.style, line.dashed);
        text(svg, x + 30.0, y + 4.0, "start", &line.name);
    }
}

/// A ratio with its interval, for [`ratio_plot`].
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) style: Style,
    pub(super) median: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    /// The interval says something: it does not hold 1, and rounds were enough.
    pub(super) sure: bool,
}

/// Groups of ratios with their intervals around the line at 1.
pub(super) fn ratio_plot(title: &str, label: &str, groups: &[(String, Vec<Bar>)]) -> String {
    let bars = || groups.iter().flat_map(|(_, bars)| bars);
    let values = bars().flat_map(|bar| [bar.low, bar.high]).chain([0.8, 1.25]);
    let Some(map) = Mapping::new(Scale::Log, values, 138.0, WIDTH - 190.0) else { return String::new() };
    let rows = bars().count() + groups.len();
    if bars().next().is_none() {
        return String::new();
    }
    let bottom = TOP + 15.0 * rows as f64;
    let mut svg = open(title, WIDTH, bottom + 44.0);
    for tick in map.ticks() {
        let x = map.at(tick);
        rule(&mut svg, (x, TOP - 4.0), (x, bottom), GRID, "");
        text(&mut svg, x, bottom + 15.0, "middle", &super::text::short(tick));
    }
    rule(&mut svg, (map.at(1.0), TOP - 4.0), (map.at(1.0), bottom), INK, "stroke-width=\"1.4\"");
    text(&mut svg, (map.from + map.to) / 2.0, bottom + 34.0, "middle", label);
    let mut y = TOP + 8.0;
    for (group, bars) in groups {
        text(&mut svg, 12.0, y + 4.0, "start", group);
        for bar in bars {
            let (low, high) = (map.at(bar.low), map.at(bar.high));
            rule(&mut svg, (low, y), (high, y), bar.style.color, "stroke-width=\"2\"");
            marker(&mut svg, map.at(bar.median), y, bar.style, !bar.sure);
            let figures = format!(
                "{} {} [{}, {}]",
                bar.name,
                super::text::short(bar.median),
                super::text::short(bar.low),
                super::text::short(bar.high)
            );
            text(&mut svg, map.to + 10.0, y + 4.0, "start", &figures);
            y += 15.0;
        }
        y += 15.0;
    }
    svg.push_str("</svg>\n");
    svg
}

/// Counts by row and column; each row is shaded by its shares.
pub(super) fn heat_map(title: &str, rows: &[(String, Vec<u64>)], columns: &[String]) -> String {
    const CELL: (f64, f64) = (86.0, 34.0);
    const LABEL: f64 = 66.0;
    let width = (LABEL + CELL.0 * columns.len() as f64 + 12.0).max(220.0);
    let height = TOP + 20.0 + CELL.1 * rows.len() as f64 + 10.0;
    let mut svg = open(title, width, height);
    for (number, column) in columns.iter().enumerate() {
        text(&mut svg, LABEL + CELL.0 * (number as f64 + 0.5), TOP + 12.0, "middle", column);
    }
    for (row_number, (name, counts)) in rows.iter().enumerate() {
        let y = TOP + 20.0 + CELL.1 * row_number as f64;
        text(&mut svg, LABEL - 8.0, y + CELL.1 / 2.0 + 4.0, "end", name);
        let total = counts.iter().sum::<u64>().max(1) as f64;
        for (number, &count) in counts.iter().enumerate() {
            let share = count as f64 / total;
            let x = LABEL + CELL.0 * number as f64;
            let ink = if share > 0.55 { "white" } else { INK };
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"#0072b2\" fill-opacity=\"{:.3}\" stroke=\"#999\"/>\n\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"11\" fill=\"{ink}\">{count} ({:.0} %)</text>",
                CELL.0,
                CELL.1,
                share,
                x + CELL.0 / 2.0,
                y + CELL.1 / 2.0 + 4.0,
                share * 100.0
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(scale: Scale) -> Axis {
        Axis { label: "a < b".into(), scale, ticks: None, format: super::super::text::short }
    }

    fn line(name: &str, points: &[(f64, f64)]) -> Line {
        Line {
            name: name.into(),
            style: Style { color: "#000", marker: Marker::Diamond },
            dashed: false,
            points: points
                .iter()
                .map(|&(x, y)| Point { x, y, low: y, high: y * 1.1, broken: false })
                .collect(),
        }
    }

    #[test]
    fn a_plot_has_each_line_each_point_and_escapes() {
        let lines = [line("one & two", &[(1.0, 10.0), (2.0, 100.0)]), line("three", &[(1.0, 5.0)])];
        let svg = line_plot("title \"x\"", &axis(Scale::Linear), &axis(Scale::Log), &lines);
        assert_eq!(svg.matches("<polyline").count(), 2);
        // A marker for each point, and one in the legend for each line.
        assert_eq!(svg.matches("<polygon").count(), 3 + 2);
        for found in ["one &amp; two", "three", "a &lt; b", "title &quot;x&quot;"] {
            assert!(svg.contains(found), "{found}: {svg}");
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn nothing_to_show_is_no_plot() {
        assert_eq!(line_plot("t", &axis(Scale::Log), &axis(Scale::Log), &[line("l", &[])]), "");
        assert_eq!(
            line_plot("t", &axis(Scale::Log), &axis(Scale::Log), &[line("l", &[(0.0, f64::NAN)])]),
            ""
        );
        assert_eq!(ratio_plot("t", "l", &[]), "");
    }

    #[test]
    fn places_follow_the_scale() {
        let log = Mapping::new(Scale::Log, [1.0, 100.0].into_iter(), 0.0, 100.0).unwrap();
        assert!((log.at(10.0) - 50.0).abs() < 1e-9);
        assert!(log.ticks().contains(&10.0));
        let linear = Mapping::new(Scale::Linear, [3.0, 100.0].into_iter(), 0.0, 105.0).unwrap();
        assert!((linear.at(100.0) - 100.0).abs() < 1e-9 && linear.at(0.0).abs() < 1e-9);
        assert_eq!(linear.ticks(), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
    }

    #[test]
    fn a_heat_map_tells_counts_and_shares() {
        let rows = [("CPU 0".to_owned(), vec![75, 25]), ("CPU 1".to_owned(), vec![0, 0])];
        let svg = heat_map("cpu", &rows, &["worker 0".into(), "worker 1".into()]);
        for found in ["75 (75 %)", "25 (25 %)", "0 (0 %)", "CPU 1", "worker 1"] {
            assert!(svg.contains(found), "{found}");
        }
    }
}
