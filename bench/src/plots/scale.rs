//! Values to pixels, and the round numbers that are written beside an axis.

/// What a round number on an axis begins with.
const ROUND: [f64; 3] = [1.0, 2.0, 5.0];
/// Room for what floating point adds to round numbers.
const NEARLY: f64 = 1.0 + 1e-9;

/// An axis: values from `low` to `high` stand at pixels from `from` to `to`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    log: bool,
}

impl Scale {
    /// An axis from 0 to a round number that is not below any value.
    pub(super) fn linear(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Scale {
        let greatest = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
        let greatest = if greatest > 0.0 { greatest } else { 1.0 };
        let step = step(greatest);
        let high = (greatest / step / NEARLY).ceil() * step;
        Scale { low: 0.0, high, from, to, log: false }
    }

    /// A logarithmic axis that holds all values above 0, from one round number to another.
    pub(super) fn log(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Scale {
        let fit: Vec<f64> = values.filter(|value| value.is_finite() && *value > 0.0).collect();
        let least = fit.iter().copied().reduce(f64::min).unwrap_or(1.0);
        let greatest = fit.iter().copied().reduce(f64::max).unwrap_or(10.0);
        let high = rounds(greatest).find(|round| round * NEARLY >= greatest).unwrap_or(greatest);
        let below = rounds(least).take_while(|round| *round <= least * NEARLY).last();
        // A single value still needs an axis of some length.
        let low = below.filter(|low| *low < high).unwrap_or(least / 2.0);
        Scale { low, high, from, to, log: true }
    }

    /// The pixel of a value; what is outside stands at the end.
    pub(super) fn at(&self, value: f64) -> f64 {
        let part = if self.log {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.from + part.clamp(0.0, 1.0) * (self.to - self.from)
    }

    /// Round numbers on the axis, in order.
    pub(super) fn ticks(&self) -> Vec<f64> {
        if self.log {
            let from = rounds(self.low).skip_while(|round| round * NEARLY < self.low);
            return from.take_while(|round| *round <= self.high * NEARLY).collect();
        }
        let step = step(self.high);
        (0..=(self.high / step).round() as u32).map(|n| f64::from(n) * step).collect()
    }
}

/// Round numbers from the power of ten that is not above `value` on.
fn rounds(value: f64) -> impl Iterator<Item = f64> {
    let first = (value * NEARLY).log10().floor() as i32;
    (first..).flat_map(|power| ROUND.map(|round| round * 10_f64.powi(power)))
}

/// A round number that goes four to ten times into `high`.
fn step(high: f64) -> f64 {
    rounds(high / 100.0).find(|round| high / round <= 8.0).unwrap_or(high)
}

/// A tick's number, without superfluous digits.
pub(super) fn tick_text(tick: f64) -> String {
    let digits = format!("{tick:.6}");
    digits.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(scale: &Scale) -> Vec<String> {
        scale.ticks().into_iter().map(tick_text).collect()
    }

    #[test]
    fn a_linear_axis_begins_at_zero_and_ends_above_the_greatest() {
        let scale = Scale::linear([3.0, 7.3].into_iter(), 100.0, 200.0);
        assert_eq!(texts(&scale), ["0", "1", "2", "3", "4", "5", "6", "7", "8"]);
        assert_eq!((scale.at(0.0), scale.at(4.0), scale.at(8.0)), (100.0, 150.0, 200.0));
        assert_eq!(texts(&Scale::linear([0.3].into_iter(), 0.0, 1.0)).last(), Some(&"0.3".into()));
    }

    #[test]
    fn an_axis_may_run_upwards() {
        let scale = Scale::linear([10.0].into_iter(), 300.0, 0.0);
        assert!(scale.at(10.0) < scale.at(1.0));
    }

    #[test]
    fn a_logarithmic_axis_ends_at_round_numbers_and_holds_everything() {
        let scale = Scale::log([0.07, 3.0, 1.0].into_iter(), 0.0, 100.0);
        assert_eq!(texts(&scale), ["0.05", "0.1", "0.2", "0.5", "1", "2", "5"]);
        assert_eq!((scale.at(0.05), scale.at(5.0)), (0.0, 100.0));
        assert!((scale.at(0.5) - 50.0).abs() < 1e-9);
    }

    #[test]
    fn what_cannot_be_shown_stands_at_the_end() {
        let scale = Scale::log([0.0, f64::INFINITY, 0.5, 2.0].into_iter(), 0.0, 100.0);
        assert_eq!((scale.at(0.0), scale.at(f64::INFINITY)), (0.0, 100.0));
    }

    #[test]
    fn an_axis_of_one_value_or_none_has_a_length() {
        for values in [vec![], vec![1.0], vec![0.2]] {
            let log = Scale::log(values.iter().copied(), 0.0, 1.0);
            let linear = Scale::linear(values.iter().copied(), 0.0, 1.0);
            for scale in [log, linear] {
                assert!(scale.low < scale.high && scale.ticks().len() > 1, "{values:?} {scale:?}");
            }
        }
    }
}
