//! The plot in the docs, drawn from the simulation. `KERNELET_UPDATE_PLOT=1 cargo test plot` writes it anew.

use std::fmt::Write as _;
use std::path::Path;

use super::assertions::{comfort, everybody_busy, overload, recovery, settled, throttled};
use super::*;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/locality-feedback.svg");
const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 812.0;
/// Seconds over which a percentile of the middle panel is taken.
const WINDOW: f64 = 2.0;

impl Strategy {
    const ALL: [Strategy; 4] = [
        Strategy::Local,
        Strategy::Random,
        Strategy::LeastConnections,
        Strategy::Feedback,
    ];

    fn name(self) -> &'static str {
        match self {
            Strategy::Local => "always local",
            Strategy::Random => "evenly at random",
            Strategy::LeastConnections => "least connections",
            Strategy::Feedback => "with feedback",
        }
    }

    /// Colours that people with any colour vision tell apart (Okabe and Ito).
    fn colour(self) -> &'static str {
        match self {
            Strategy::Local => "#d55e00",
            Strategy::Random => "#e69f00",
            Strategy::LeastConnections => "#009e73",
            Strategy::Feedback => "#0072b2",
        }
    }

    fn stroke(self) -> f64 {
        if self == Strategy::Feedback { 2.6 } else { 1.6 }
    }
}

/// A rectangle of the drawing that holds values.
struct Panel {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    across: Range<f64>,
    up: Range<f64>,
}

impl Panel {
    fn x(&self, value: f64) -> f64 {
        let part = (value - self.across.start) / (self.across.end - self.across.start);
        self.left + part.clamp(0.0, 1.0) * (self.right - self.left)
    }

    fn y(&self, value: f64) -> f64 {
        let part = (value - self.up.start) / (self.up.end - self.up.start);
        self.bottom - part.clamp(0.0, 1.0) * (self.bottom - self.top)
    }

    fn line(&self, svg: &mut String, points: &[(f64, f64)], strategy: Strategy) {
        let points: Vec<String> = points
            .iter()
            .map(|(x, y)| format!("{:.1},{:.1}", self.x(*x), self.y(*y)))
            .collect();
        let (colour, width) = (strategy.colour(), strategy.stroke());
        add(
            svg,
            &format!(
                r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-linejoin="round"/>"#,
                points.join(" ")
            ),
        );
    }

    fn rule(&self, svg: &mut String, at: f64, label: &str) {
        let (left, right, y) = (self.left, self.right, self.y(at));
        add(
            svg,
            &format!(
                r##"<line x1="{left:.1}" y1="{y:.1}" x2="{right:.1}" y2="{y:.1}" stroke="#e4e7eb"/>"##
            ),
        );
        text(svg, left - 8.0, y + 4.0, "end", "tick", label);
    }

    fn upright(&self, svg: &mut String, at: f64, label: &str) {
        let (x, top, bottom) = (self.x(at), self.top, self.bottom);
        add(
            svg,
            &format!(
                r##"<line x1="{x:.1}" y1="{top:.1}" x2="{x:.1}" y2="{bottom:.1}" stroke="#e4e7eb"/>"##
            ),
        );
        text(svg, x, bottom + 17.0, "middle", "tick", label);
    }

    /// The time in which the local backend is slow.
    fn shade(&self, svg: &mut String, when: &Range<f64>) {
        let (from, to) = (self.x(when.start), self.x(when.end));
        add(
            svg,
            &format!(
                r##"<rect x="{from:.1}" y="{:.1}" width="{:.1}" height="{:.1}" fill="#f3f0e8"/>"##,
                self.top,
                to - from,
                self.bottom - self.top
            ),
        );
    }
}

fn add(svg: &mut String, element: &str) {
    svg.push_str(element);
    svg.push('\n');
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, class: &str, text: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(
        svg,
        r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" class="{class}">{text}</text>"#
    );
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 0.999 => format!("{:.0} ms", s * 1e3),
        s => format!("{s:.0} s"),
    }
}

/// Powers of ten between 10 ms and 100 s, as the axes of latencies are marked.
const DECADES: [f64; 5] = [0.01, 0.1, 1.0, 10.0, 100.0];

fn plot() -> String {
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif" role="img">
<title>Locality with feedback, simulated</title>
<style>.head{{font-size:17px;font-weight:600;fill:#1f2933}}.say{{font-size:12.5px;fill:#52606d}}.tick{{font-size:11.5px;fill:#7b8794}}.key{{font-size:12.5px;fill:#323f4b}}</style>
<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#ffffff"/>
"##
    );
    text(
        &mut svg,
        30.0,
        36.0,
        "start",
        "head",
        "All clients are on the node whose backend is throttled for a while",
    );
    text(
        &mut svg,
        30.0,
        56.0,
        "start",
        "say",
        "Simulated: four nodes with a backend each, 4 workers of 10 ms; 200 connections a second",
    );
    legend(&mut svg, 82.0);
    over_time(&mut svg);
    by_scenario(&mut svg);
    svg.push_str("</svg>\n");
    svg
}

fn legend(svg: &mut String, y: f64) {
    let mut x = 30.0;
    for strategy in Strategy::ALL {
        let (colour, width) = (strategy.colour(), strategy.stroke() + 1.0);
        add(
            svg,
            &format!(
                r#"<line x1="{x:.1}" y1="{y:.1}" x2="{:.1}" y2="{y:.1}" stroke="{colour}" stroke-width="{width}" stroke-linecap="round"/>"#,
                x + 22.0
            ),
        );
        text(svg, x + 30.0, y + 4.0, "start", "key", strategy.name());
        x += 165.0;
    }
}

/// The share and the latencies while the local backend is slow and after.
fn over_time(svg: &mut String) {
    let scenario = recovery();
    let (left, right, across) = (90.0, WIDTH - 30.0, 0.0..scenario.seconds);
    let slow = scenario
        .slow
        .as_ref()
        .map_or(0.0..0.0, |(when, _)| when.clone());
    let share = Panel {
        left,
        right,
        top: 125.0,
        bottom: 255.0,
        across: across.clone(),
        up: 0.0..1.0,
    };
    let latency = Panel {
        left,
        right,
        top: 312.0,
        bottom: 487.0,
        across,
        up: -2.0..2.0,
    };
    for panel in [&share, &latency] {
        panel.shade(svg, &slow);
        for at in [0.0, 30.0, 60.0, 90.0, 120.0, 150.0] {
            panel.upright(svg, at, &format!("{at:.0} s"));
        }
    }
    for at in [0.0, 0.5, 1.0] {
        share.rule(svg, at, &format!("{:.0} %", at * 100.0));
    }
    for at in DECADES {
        latency.rule(svg, at.log10(), &duration(at));
    }
    text(
        svg,
        left,
        share.top - 9.0,
        "start",
        "key",
        "New connections that stay on the node",
    );
    text(
        svg,
        left,
        latency.top - 9.0,
        "start",
        "key",
        "99th percentile of the latency",
    );
    let middle = share.x(slow.start) + 8.0;
    text(
        svg,
        middle,
        share.top + 16.0,
        "start",
        "say",
        "local backend slower by a factor of 8",
    );
    for strategy in Strategy::ALL {
        let outcome = scenario.run(strategy);
        let windows = (0..).map(|window| f64::from(window) * WINDOW);
        let windows = windows.take_while(|from| from + WINDOW <= scenario.seconds);
        let points: Vec<(f64, f64)> = windows
            .map(|from| (from, outcome.percentile(99.0, from..from + WINDOW)))
            .map(|(from, p99)| (from + WINDOW / 2.0, p99.log10()))
            .collect();
        latency.line(svg, &points, strategy);
        let shares: Vec<(f64, f64)> = (1..)
            .zip(outcome.shares.iter().step_by(5))
            .map(|(look, share)| (f64::from(look) * TICK * 5.0, *share))
            .collect();
        share.line(svg, &shares, strategy);
    }
}

/// What each strategy comes to once it has settled, scenario by scenario.
fn by_scenario(svg: &mut String) {
    let panel = Panel {
        left: 250.0,
        right: WIDTH - 150.0,
        top: 582.0,
        bottom: 772.0,
        across: -2.0..2.0,
        up: 0.0..1.0,
    };
    text(
        svg,
        30.0,
        542.0,
        "start",
        "head",
        "Once settled: 99th percentile of the latency",
    );
    text(
        svg,
        WIDTH - 30.0,
        564.0,
        "end",
        "say",
        "stays, with feedback",
    );
    for at in DECADES {
        panel.upright(svg, at.log10(), &duration(at));
    }
    let rows = [
        ("comfort", comfort()),
        ("twice what one backend can do", overload()),
        ("local backend throttled", throttled()),
        ("every node busy to nine tenths", everybody_busy()),
    ];
    for (row, (name, scenario)) in (0..).zip(&rows) {
        let y = panel.top + 26.0 + f64::from(row) * 46.0;
        text(svg, panel.left - 20.0, y + 4.0, "end", "key", name);
        for (place, strategy) in (0..).zip(Strategy::ALL) {
            let outcome = scenario.run(strategy);
            let p99 = outcome.percentile(99.0, settled(scenario));
            let (x, colour) = (panel.x(p99.log10()), strategy.colour());
            let y = y + (f64::from(place) - 1.5) * 8.0;
            let size = strategy.stroke() * 1.6 + 2.0;
            add(
                svg,
                &format!(
                    r##"<circle cx="{x:.1}" cy="{y:.1}" r="{size:.1}" fill="{colour}" fill-opacity="0.85" stroke="#ffffff" stroke-width="1"/>"##
                ),
            );
            if strategy == Strategy::Feedback {
                let stays = outcome.locality(settled(scenario)) * 100.0;
                let label = format!("{stays:.0} %");
                text(svg, WIDTH - 30.0, y - 8.0, "end", "key", &label);
            }
        }
    }
}

#[test]
fn the_plot_in_the_docs_shows_what_the_simulation_says() {
    let svg = plot();
    if std::env::var_os("KERNELET_UPDATE_PLOT").is_some() {
        std::fs::write(FILE, &svg).unwrap();
    }
    let kept = std::fs::read_to_string(Path::new(FILE)).unwrap_or_default();
    let hint = "KERNELET_UPDATE_PLOT=1 cargo test --package kernelet --lib plot";
    assert!(
        kept == svg,
        "{FILE} shows something else; write it anew: {hint}"
    );
}
