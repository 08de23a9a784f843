//! Ratios as bars on a logarithmic axis.
//!
//! ```text
//!                0.1    0.2     0.5     1      2      5
//!   put           |   |==|=======|======|                     0.31 (0.24 - 0.50)  goal <= 0.25 missed
//!                     ^ goal     ^ whiskers from the least round to the greatest
//! ```
//!
//! A bar begins at 1 (as good as the peer), so that twice and half are equally long. A goal that is not
//! for the ratio (but for Atoll's figure itself, or against another row) has no tick on the axis; it
//! colours the bar all the same, and stands beside it with what was reached.

use super::canvas::{Anchor, Canvas, FAINT, GREY, INK, MET, MISSED};
use super::scale::{Scale, tick_text};
use crate::goals::{Against, Verdict};
use crate::report::short;
use crate::results::Ratio;

/// One ratio.
pub(super) struct Bar {
    pub(super) label: String,
    pub(super) ratio: Ratio,
    pub(super) verdict: Option<Verdict>,
}

impl Bar {
    /// The goal's place on the axis.
    fn tick(&self) -> Option<f64> {
        let verdict = self.verdict.as_ref().filter(|verdict| verdict.against == Against::Peer);
        verdict.map(|verdict| verdict.bound.limit())
    }
}

/// Bars under a common heading.
pub(super) struct Section {
    pub(super) title: String,
    pub(super) bars: Vec<Bar>,
}

const WIDTH: f64 = 1100.0;
const PLOT: [f64; 2] = [270.0, 680.0];
const HEAD: f64 = 78.0;
const ROW: f64 = 22.0;
const FOOT: f64 = 34.0;

/// Draws all sections on one axis.
pub(super) fn figure(title: &str, hint: &str, sections: &[Section]) -> String {
    let rows: usize = sections.iter().map(|section| section.bars.len() + 1).sum();
    let bottom = HEAD + rows as f64 * ROW;
    let mut canvas = Canvas::new(WIDTH, bottom + FOOT);
    canvas.title((14.0, 26.0), title);
    let hint = format!("{hint}; green: goal met, red: missed, grey: no goal; black tick: the goal");
    canvas.text((14.0, 46.0), Anchor::Start, GREY, &hint);
    let bars = sections.iter().flat_map(|section| &section.bars);
    let values = bars.flat_map(|bar| [bar.ratio.min, bar.ratio.max, bar.tick().unwrap_or(1.0)]);
    // Half and twice are always there, to judge lengths by.
    let scale = Scale::log(values.chain([0.5, 2.0]), PLOT[0], PLOT[1]);
    for tick in scale.ticks() {
        let x = scale.at(tick);
        let (colour, width) = if tick == 1.0 { (INK, 1.2) } else { (FAINT, 1.0) };
        canvas.line((x, HEAD - 4.0), (x, bottom + 4.0), colour, width);
        for y in [HEAD - 9.0, bottom + 18.0] {
            canvas.text((x, y), Anchor::Middle, GREY, &tick_text(tick));
        }
    }
    let mut top = HEAD;
    for section in sections {
        canvas.text((14.0, top + 15.0), Anchor::Start, INK, &section.title);
        canvas.line((14.0, top + 20.0), (WIDTH - 14.0, top + 20.0), FAINT, 1.0);
        top += ROW;
        for bar in &section.bars {
            draw(&mut canvas, &scale, top, bar);
            top += ROW;
        }
    }
    canvas.finish()
}

fn draw(canvas: &mut Canvas, scale: &Scale, top: f64, bar: &Bar) {
    let Ratio { median, min, max } = bar.ratio;
    let colour = match bar.verdict.as_ref().and_then(Verdict::met) {
        Some(true) => MET,
        Some(false) => MISSED,
        None => GREY,
    };
    canvas.text((PLOT[0] - 10.0, top + 15.0), Anchor::End, INK, &bar.label);
    canvas.bar([scale.at(1.0), scale.at(median)], top + 4.0, ROW - 8.0, colour);
    let (left, right, middle) = (scale.at(min), scale.at(max), top + ROW / 2.0);
    canvas.line((left, middle), (right, middle), INK, 1.0);
    for x in [left, right] {
        canvas.line((x, middle - 3.0), (x, middle + 3.0), INK, 1.0);
    }
    let mut text = format!("{} ({} - {})", short(median), short(min), short(max));
    if let Some(tick) = bar.tick() {
        let x = scale.at(tick);
        canvas.line((x, top + 1.0), (x, top + ROW - 1.0), INK, 2.6);
    }
    if let Some(verdict) = &bar.verdict {
        text.push_str(&format!("; goal {}", verdict.text));
        match verdict.value {
            Some(_) if verdict.against == Against::Peer => {}
            Some(value) => text.push_str(&format!(": {}", short(value))),
            None => text.push_str(": not judged"),
        }
    }
    canvas.text((PLOT[1] + 12.0, top + 15.0), Anchor::Start, colour, &text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goals::Bound;

    #[test]
    fn a_goal_that_is_not_for_the_ratio_colours_the_bar_without_a_tick() {
        let verdict = Verdict {
            text: "<= 1.5 of own range".to_owned(),
            against: Against::Own { row: "range", keys: None },
            bound: Bound::AtMost(1.5),
            value: Some(8.0),
        };
        let ratio = Ratio { median: 0.5, min: 0.5, max: 0.5 };
        let bars = vec![Bar { label: "versions".to_owned(), ratio, verdict: Some(verdict) }];
        let text = figure("CPU", "lower", &[Section { title: "1 node".to_owned(), bars }]);
        assert!(text.contains(MISSED) && !text.contains(r#"stroke-width="2.6""#));
        assert!(text.contains("; goal &lt;= 1.5 of own range: 8.00<"));
    }

    #[test]
    fn bars_are_coloured_by_their_goal_and_none_is_left_out() {
        let bar = |label: &str, median: f64, goal: Option<Bound>| Bar {
            label: label.to_owned(),
            ratio: Ratio { median, min: median / 2.0, max: median * 2.0 },
            verdict: goal.map(|bound| Verdict {
                text: bound.to_string(),
                against: Against::Peer,
                bound,
                value: Some(median),
            }),
        };
        let bars = vec![
            bar("good", 0.2, Some(Bound::AtMost(0.25))),
            bar("bad", 3.0, Some(Bound::AtMost(0.25))),
            bar("free", 1.0, None),
        ];
        let text = figure("CPU", "lower", &[Section { title: "3 nodes".to_owned(), bars }]);
        let count = |what: &str| text.matches(what).count();
        // Each colour once for a bar and once for its text; grey is also what axes are written in.
        assert_eq!((count(MET), count(MISSED)), (2, 2));
        assert_eq!(count("<rect"), 1 + 3);
        // The goals' ticks, beside the axis and the whiskers.
        assert_eq!(count(r#"stroke-width="2.6""#), 2);
        assert!(text.contains(">3.00 (1.50 - 6.00); goal &lt;= 0.25<"));
    }
}
