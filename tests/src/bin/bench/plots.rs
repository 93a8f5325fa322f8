//! Plots of the results, as SVG.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::{
    backend::SVGBackend,
    chart::{ChartBuilder, ChartContext, SeriesLabelPosition},
    coord::{Shift, types::RangedCoordf64},
    drawing::{DrawingArea, IntoDrawingArea as _},
    element::{PathElement, Rectangle},
    prelude::Cartesian2d,
    series::LineSeries,
    style::{BLACK, Color as _, RGBColor, WHITE},
};

const SIZE: (u32, u32) = (960, 420);
/// Colours that differ in brightness too (Okabe and Ito's, which most people with a colour deficiency tell apart).
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(213, 94, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
    RGBColor(240, 228, 66),
];

/// What stands on a plot.
pub(crate) struct Plot<'a> {
    pub(crate) title: &'a str,
    pub(crate) y: &'a str,
    /// The groups along the axis.
    pub(crate) categories: Vec<String>,
    pub(crate) series: Vec<Series>,
    pub(crate) scale: Axis,
    /// A level to compare with.
    pub(crate) mark: Option<f64>,
}

/// The axis of the values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Axis {
    Linear,
    Logarithmic,
}

/// One series: a value for each category, and between what it lies.
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) values: Vec<Option<(f64, f64, f64)>>,
}

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

impl Plot<'_> {
    /// Draws a bar for each value.
    pub(crate) fn bars(&self, path: &Path) -> Result<()> {
        self.draw(path, SeriesLabelPosition::UpperRight, |chart| {
            let width = 0.8 / self.series.len() as f64;
            let floor = self.range().0;
            for (index, series) in self.series.iter().enumerate() {
                let colour = COLOURS[index % COLOURS.len()];
                let left = |category: usize| category as f64 - 0.4 + index as f64 * width;
                let bars = series.values.iter().enumerate().filter_map(|(category, value)| {
                    let (value, ..) = (*value)?;
                    let corners = [(left(category), floor), (left(category) + 0.9 * width, self.at(value))];
                    Some(Rectangle::new(corners, colour.filled()))
                });
                chart
                    .draw_series(bars)?
                    .label(&series.name)
                    .legend(move |(x, y)| Rectangle::new([(x, y - 4), (x + 12, y + 4)], colour.filled()));
                let whiskers = series.values.iter().enumerate().filter_map(|(category, value)| {
                    let (_, low, high) = (*value)?;
                    let x = left(category) + 0.45 * width;
                    Some(PathElement::new([(x, self.at(low)), (x, self.at(high))], BLACK.mix(0.6)))
                });
                chart.draw_series(whiskers)?;
            }
            Ok(())
        })
    }

    /// Draws a line for each series.
    pub(crate) fn lines(&self, path: &Path) -> Result<()> {
        // The lines rise towards the right.
        self.draw(path, SeriesLabelPosition::UpperLeft, |chart| {
            for (index, series) in self.series.iter().enumerate() {
                let style = COLOURS[index % COLOURS.len()].stroke_width(2);
                let points = series.values.iter().enumerate();
                let points =
                    points.filter_map(|(category, value)| Some((category as f64, self.at((*value)?.0))));
                chart
                    .draw_series(LineSeries::new(points, style))?
                    .label(&series.name)
                    .legend(move |(x, y)| PathElement::new([(x, y), (x + 12, y)], style));
            }
            Ok(())
        })
    }

    fn draw(
        &self,
        path: &Path,
        legend: SeriesLabelPosition,
        fill: impl FnOnce(&mut Chart<'_, '_>) -> std::result::Result<(), Failure>,
    ) -> Result<()> {
        let area = SVGBackend::new(path, SIZE).into_drawing_area();
        self.draw_on(&area, legend, fill).map_err(|error| anyhow!("{}: {error}", path.display()))
    }

    fn draw_on<'b>(
        &self,
        area: &DrawingArea<SVGBackend<'b>, Shift>,
        legend: SeriesLabelPosition,
        fill: impl FnOnce(&mut Chart<'_, 'b>) -> std::result::Result<(), Failure>,
    ) -> std::result::Result<(), Failure> {
        area.fill(&WHITE)?;
        let (low, high) = self.range();
        let last = self.categories.len() as f64 - 0.5;
        let mut chart = ChartBuilder::on(area)
            .caption(self.title, ("sans-serif", 18))
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d(-0.5..last, low..high)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(self.categories.len() * 2 + 1)
            .x_label_formatter(&|x| self.category(*x))
            .y_label_formatter(&|y| self.value(*y))
            .y_desc(self.y)
            .label_style(("sans-serif", 12))
            .draw()?;
        if let Some(mark) = self.mark {
            let ends = [(-0.5, self.at(mark)), (last, self.at(mark))];
            chart.draw_series([PathElement::new(ends, BLACK.stroke_width(1))])?;
        }
        fill(&mut chart)?;
        chart
            .configure_series_labels()
            .position(legend)
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.3))
            .label_font(("sans-serif", 12))
            .draw()?;
        area.present()?;
        Ok(())
    }

    /// The name of the category at a place on the axis, where there is one.
    fn category(&self, x: f64) -> String {
        let nearest = x.round();
        if nearest < 0.0 || (x - nearest).abs() > 0.01 {
            return String::new();
        }
        self.categories.get(nearest as usize).cloned().unwrap_or_default()
    }

    /// Where a value lies on the axis.
    fn at(&self, value: f64) -> f64 {
        match self.scale {
            Axis::Linear => value,
            Axis::Logarithmic => value.max(f64::MIN_POSITIVE).log10(),
        }
    }

    /// What to write at a place on the axis.
    fn value(&self, y: f64) -> String {
        let value = match self.scale {
            Axis::Linear => y,
            Axis::Logarithmic => 10_f64.powf(y),
        };
        if value >= 10.0 { format!("{value:.0}") } else { format!("{value:.2}") }
    }

    /// The ends of the axis.
    fn range(&self) -> (f64, f64) {
        let values = || self.series.iter().flat_map(|series| series.values.iter().flatten());
        let high = values().map(|(value, _, high)| value.max(*high)).fold(0.0, f64::max);
        match self.scale {
            Axis::Linear => (0.0, high * 1.15),
            Axis::Logarithmic => {
                let low =
                    values().map(|(value, ..)| *value).filter(|value| *value > 0.0).fold(high, f64::min);
                (self.at(low).floor(), self.at(high) + 0.4)
            }
        }
    }
}

/// Whatever plotters says; its errors differ by the backend.
type Failure = Box<dyn std::error::Error>;
