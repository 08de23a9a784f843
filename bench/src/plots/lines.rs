//! Figures over keys or time: panels side by side, a line for each system, all from zero upwards.

use super::canvas::{Anchor, Canvas, FAINT, GREY, INK, SIDES};
use super::scale::{Scale, tick_text};
use crate::goals::count;

/// One line.
pub(super) struct Series {
    pub(super) label: String,
    /// Which system: chooses the colour.
    pub(super) side: usize,
    pub(super) points: Vec<(f64, f64)>,
}

/// A level that is drawn through.
pub(super) struct Mark {
    pub(super) at: f64,
    pub(super) text: &'static str,
    /// Where the text stands: marks may be close to each other.
    pub(super) side: MarkSide,
}

/// Where a mark's text stands.
#[derive(Clone, Copy)]
pub(super) enum MarkSide {
    Above,
    Below,
}

/// One chart.
pub(super) struct Panel {
    pub(super) title: String,
    pub(super) x_label: &'static str,
    pub(super) y_label: String,
    /// Whether the horizontal axis is logarithmic, and counts things.
    pub(super) x_log: bool,
    pub(super) series: Vec<Series>,
    pub(super) marks: Vec<Mark>,
}

const PANEL: (f64, f64) = (350.0, 290.0);
const HEAD: f64 = 60.0;
/// Room around the axes of a panel: left, top, right, bottom.
const MARGIN: [f64; 4] = [58.0, 44.0, 18.0, 44.0];
/// Lines with so few points show them.
const DOTS_MAX: usize = 12;

/// Draws panels, `columns` of them in a row.
pub(super) fn figure(title: &str, columns: usize, panels: &[Panel]) -> String {
    let columns = columns.min(panels.len()).max(1);
    let rows = panels.len().div_ceil(columns);
    let mut canvas = Canvas::new(PANEL.0 * columns as f64 + 14.0, HEAD + PANEL.1 * rows as f64);
    canvas.title((14.0, 26.0), title);
    legend(&mut canvas, panels);
    for (n, panel) in panels.iter().enumerate() {
        let corner = (PANEL.0 * (n % columns) as f64, HEAD + PANEL.1 * (n / columns) as f64);
        draw(&mut canvas, corner, panel);
    }
    canvas.finish()
}

fn legend(canvas: &mut Canvas, panels: &[Panel]) {
    let mut x = 14.0;
    for (side, colour) in SIDES.iter().enumerate() {
        let mut all = panels.iter().flat_map(|panel| &panel.series);
        if let Some(series) = all.find(|series| series.side == side) {
            canvas.line((x, 44.0), (x + 22.0, 44.0), colour, 3.0);
            canvas.text((x + 28.0, 48.0), Anchor::Start, INK, &series.label);
            x += 130.0;
        }
    }
}

fn draw(canvas: &mut Canvas, corner: (f64, f64), panel: &Panel) {
    let (left, right) = (corner.0 + MARGIN[0], corner.0 + PANEL.0 - MARGIN[2]);
    let (top, bottom) = (corner.1 + MARGIN[1], corner.1 + PANEL.1 - MARGIN[3]);
    let points = || panel.series.iter().flat_map(|series| &series.points);
    let xs = points().map(|point| point.0);
    let x_scale =
        if panel.x_log { Scale::log(xs, left, right) } else { Scale::linear(xs, left, right) };
    let ys = points().map(|point| point.1).chain(panel.marks.iter().map(|mark| mark.at));
    let y_scale = Scale::linear(ys, bottom, top);
    canvas.text((left, corner.1 + 16.0), Anchor::Start, INK, &panel.title);
    canvas.text((left, corner.1 + 33.0), Anchor::Start, GREY, &panel.y_label);
    for tick in y_scale.ticks() {
        let y = y_scale.at(tick);
        canvas.line((left, y), (right, y), FAINT, 1.0);
        canvas.text((left - 6.0, y + 4.0), Anchor::End, GREY, &tick_text(tick));
    }
    for tick in x_scale.ticks() {
        // Of a logarithmic axis the powers of ten are enough.
        if panel.x_log && tick.log10().fract().abs() > 1e-6 {
            continue;
        }
        let x = x_scale.at(tick);
        canvas.line((x, bottom), (x, bottom + 4.0), GREY, 1.0);
        let text = if panel.x_log { count(tick as u64) } else { tick_text(tick) };
        canvas.text((x, bottom + 18.0), Anchor::Middle, GREY, &text);
    }
    let middle = f64::midpoint(left, right);
    canvas.text((middle, bottom + 36.0), Anchor::Middle, GREY, panel.x_label);
    for mark in &panel.marks {
        let y = y_scale.at(mark.at);
        canvas.line((left, y), (right, y), INK, 1.2);
        let below = match mark.side {
            MarkSide::Above => -4.0,
            MarkSide::Below => 13.0,
        };
        canvas.text((right, y + below), Anchor::End, INK, mark.text);
    }
    for series in &panel.series {
        let colour = SIDES[series.side % SIDES.len()];
        let pixels: Vec<_> =
            series.points.iter().map(|&(x, y)| (x_scale.at(x), y_scale.at(y))).collect();
        canvas.path(&pixels, colour);
        if pixels.len() <= DOTS_MAX {
            pixels.iter().for_each(|&pixel| canvas.dot(pixel, colour));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(points: Vec<(f64, f64)>, x_log: bool) -> Panel {
        Panel {
            title: "put".to_owned(),
            x_label: "keys",
            y_label: "µs".to_owned(),
            x_log,
            series: vec![Series { label: "atoll".to_owned(), side: 0, points }],
            marks: vec![Mark { at: 1.5, text: "goal", side: MarkSide::Above }],
        }
    }

    #[test]
    fn few_points_are_dots_and_many_are_only_a_line() {
        let few = vec![(1e4, 1.0), (1e6, 1.2), (1e7, 1.3)];
        let many = (0..100).map(|n| (f64::from(n), 1.0)).collect();
        let text = figure("growth", 3, &[panel(few, true), panel(many, false)]);
        assert_eq!(text.matches("<circle").count(), 3);
        assert_eq!(text.matches("<polyline").count(), 2);
        for tick in [">10k<", ">100k<", ">1M<", ">10M<"] {
            assert_eq!(text.matches(tick).count(), 1, "{tick}");
        }
    }

    #[test]
    fn panels_stand_in_rows() {
        let panels: Vec<_> = (0..4).map(|_| panel(vec![(1.0, 1.0)], false)).collect();
        let text = figure("growth", 3, &panels);
        let (width, height) = (3.0 * PANEL.0 + 14.0, HEAD + 2.0 * PANEL.1);
        assert!(text.contains(&format!("viewBox=\"0 0 {width} {height}\"")));
    }
}
