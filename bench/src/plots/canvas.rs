//! Shapes as SVG text. Colours hold on white and on paper, and differ in lightness too, for who does
//! not see the hues.

use std::fmt::Write as _;

/// Where text stands beside its point.
#[derive(Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

pub(super) const INK: &str = "#1b1f24";
pub(super) const FAINT: &str = "#d5d9de";
pub(super) const GREY: &str = "#8b95a1";
pub(super) const MET: &str = "#2a9d6f";
pub(super) const MISSED: &str = "#c8452f";
/// Atoll and its peer.
pub(super) const SIDES: [&str; 2] = ["#1f5fbf", "#e08e1b"];

/// A picture that grows shape by shape.
pub(super) struct Canvas {
    width: f64,
    height: f64,
    body: String,
}

impl Canvas {
    pub(super) fn new(width: f64, height: f64) -> Canvas {
        Canvas { width, height, body: String::new() }
    }

    pub(super) fn bar(&mut self, x: [f64; 2], y: f64, height: f64, colour: &str) {
        let (left, width) = (x[0].min(x[1]), (x[1] - x[0]).abs());
        let _ = writeln!(
            self.body,
            r#"<rect x="{left:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill="{colour}"/>"#
        );
    }

    pub(super) fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: &str, width: f64) {
        let _ = writeln!(
            self.body,
            r#"<line x1="{:.1}" y1="{:.1}" x2="{:.1}" y2="{:.1}" stroke="{colour}" stroke-width="{width}"/>"#,
            from.0, from.1, to.0, to.1
        );
    }

    pub(super) fn path(&mut self, points: &[(f64, f64)], colour: &str) {
        let mut list = String::new();
        for (x, y) in points {
            let _ = write!(list, "{x:.1},{y:.1} ");
        }
        let list = list.trim_end();
        let _ = writeln!(
            self.body,
            r#"<polyline points="{list}" fill="none" stroke="{colour}" stroke-width="1.8"/>"#
        );
    }

    pub(super) fn dot(&mut self, at: (f64, f64), colour: &str) {
        let _ = writeln!(
            self.body,
            r#"<circle cx="{:.1}" cy="{:.1}" r="3.2" fill="{colour}"/>"#,
            at.0, at.1
        );
    }

    pub(super) fn text(&mut self, at: (f64, f64), anchor: Anchor, colour: &str, text: &str) {
        self.sized_text(at, anchor, colour, 12, text);
    }

    pub(super) fn title(&mut self, at: (f64, f64), text: &str) {
        self.sized_text(at, Anchor::Start, INK, 16, text);
    }

    fn sized_text(&mut self, at: (f64, f64), anchor: Anchor, colour: &str, size: u32, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let _ = writeln!(
            self.body,
            r#"<text x="{:.1}" y="{:.1}" text-anchor="{anchor}" fill="{colour}" font-size="{size}">{}</text>"#,
            at.0,
            at.1,
            escaped(text)
        );
    }

    /// The whole file.
    pub(super) fn finish(self) -> String {
        let Canvas { width, height, body } = self;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" font-family=\"Helvetica, Arial, sans-serif\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n"
        )
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_break_the_file() {
        let mut canvas = Canvas::new(10.0, 10.0);
        canvas.text((1.0, 2.0), Anchor::End, INK, "a <= 0.5 & b");
        let text = canvas.finish();
        assert!(text.contains(">a &lt;= 0.5 &amp; b</text>") && text.ends_with("</svg>\n"));
    }

    #[test]
    fn a_bar_may_be_drawn_from_either_end() {
        let mut canvas = Canvas::new(10.0, 10.0);
        canvas.bar([8.0, 3.0], 0.0, 1.0, INK);
        assert!(canvas.finish().contains(r#"x="3.0" y="0.0" width="5.0""#));
    }
}
