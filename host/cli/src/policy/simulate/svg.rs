//! What was offered over time, as a picture: one chart per resource, with what others left behind it.

use std::path::Path;

use jiff::{Timestamp, tz::TimeZone};
use plotters::prelude::*;

use super::{plot, sums::Period};

const WIDTH: u32 = 1000;
const CHART: u32 = 320;
const OFFERED: RGBColor = RGBColor(0x1f, 0x77, 0xb4);
const AVAILABLE: RGBColor = RGBColor(0xd0, 0xd0, 0xd0);

/// Writes the charts of `resources` below each other.
pub(super) fn write(
    file: &Path,
    periods: &[Period],
    resources: &[String],
    nodes: usize,
    zone: &TimeZone,
) -> Result<(), String> {
    let rows = u32::try_from(resources.len()).unwrap_or(1).max(1);
    let root = SVGBackend::new(file, (WIDTH, CHART * rows)).into_drawing_area();
    root.fill(&WHITE).map_err(|error| error.to_string())?;
    for (area, resource) in root.split_evenly((resources.len().max(1), 1)).iter().zip(resources) {
        chart(area, periods, resource, nodes, zone).map_err(|error| error.to_string())?;
    }
    root.present().map_err(|error| error.to_string())
}

fn chart<B: DrawingBackend>(
    area: &DrawingArea<B, plotters::coord::Shift>,
    periods: &[Period],
    resource: &str,
    nodes: usize,
    zone: &TimeZone,
) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
    let from = periods.first().map_or(0, |period| period.from);
    let until = periods.last().map_or(1, |period| period.until);
    let offered = steps(periods, |period| period.offered.get(resource));
    let offered: Vec<(i64, f64)> = offered.map(|(at, amount)| (at, plot::units(resource, amount))).collect();
    let available = steps(periods, |period| period.available.get(resource));
    let available: Vec<(i64, f64)> =
        available.map(|(at, amount)| (at, plot::units(resource, amount))).collect();
    let most = offered.iter().chain(&available).map(|(_, amount)| *amount).fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(format!("{} of {nodes} nodes", plot::name_with_unit(resource)), ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(32)
        .y_label_area_size(64)
        .build_cartesian_2d(from..until, 0.0..most * 1.05)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_labels(8)
        .x_label_formatter(&|at| label(*at, zone))
        .y_label_formatter(&|amount| plot::number(*amount))
        .draw()?;
    chart
        .draw_series(AreaSeries::new(available, 0.0, AVAILABLE.mix(0.6)))?
        .label("left by others")
        .legend(|(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], AVAILABLE.filled()));
    chart
        .draw_series(AreaSeries::new(offered, 0.0, OFFERED.mix(0.5)).border_style(OFFERED.stroke_width(1)))?
        .label("offered")
        .legend(|(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], OFFERED.filled()));
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .draw()
}

/// Corners of a line that goes in steps.
fn steps<'p>(
    periods: &'p [Period],
    amount: impl Fn(&'p Period) -> Option<&'p i64> + 'p,
) -> impl Iterator<Item = (i64, i64)> + 'p {
    periods.iter().flat_map(move |period| {
        let amount = amount(period).copied().unwrap_or(0);
        [(period.from, amount), (period.until, amount)]
    })
}

fn label(unix: i64, zone: &TimeZone) -> String {
    let at = Timestamp::from_second(unix).unwrap_or(Timestamp::MAX);
    at.to_zoned(zone.clone()).strftime("%a %m-%d %H:%M").to_string()
}
