//! What was measured, as JSON, as a terminal table and as a page.

use std::fmt::Write as _;

use anyhow::Result;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};
#[cfg(not(target_family = "wasm"))]
use {
    crate::table::with_header,
    anyhow::{Context, bail},
    comfy_table::CellAlignment,
    std::io::Write,
    std::path::{Path, PathBuf},
};

use super::subject::shape_text;

/// One row: an operation on a shape.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Measurement {
    /// `forward_training`, `inference` or `backward`.
    pub op: String,
    /// In memory order.
    pub shape: Vec<usize>,
    /// From 0.
    pub channel_axis: usize,
    /// `f32`, `f16` or `bf16`.
    pub dtype: String,
    /// How the work was cut.
    pub strategy: String,
    /// `cold` or `hot`.
    pub cache: String,
    /// Of everything that the operation dispatches.
    pub median_ms: f64,
    /// Of the fastest copy kernel from input to output.
    #[serde(default, deserialize_with = "number")]
    pub copy_ms: f64,
    /// Which one that was.
    #[serde(default)]
    pub copy_kernel: String,
    /// Of `copy_buffer_to_buffer`.
    #[serde(default, deserialize_with = "number")]
    pub buffer_copy_ms: f64,
    /// `median_ms / copy_ms`; none where dispatches by themselves are most of it.
    #[serde(default)]
    pub copy_ratio: Option<f64>,
    /// Bytes that the strategy moves, over the time.
    #[serde(default, deserialize_with = "number")]
    pub gb_per_s: f64,
    /// These bytes.
    #[serde(default)]
    pub bytes: u64,
    /// Of one operation.
    #[serde(default)]
    pub dispatches: usize,
    /// In one submit.
    #[serde(default)]
    pub repetitions: usize,
    /// (largest - smallest) / median over the rounds.
    #[serde(default, deserialize_with = "number")]
    pub spread: f64,
}

/// A number, or null where there is none: JSON has no infinity, and peers cannot measure everything.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(0.0))
}

impl Measurement {
    fn shape_text(&self) -> String {
        shape_text(&self.shape, self.channel_axis)
    }

    fn dispatches_text(&self) -> String {
        match self.dispatches {
            0 => "-".into(),
            n => n.to_string(),
        }
    }

    fn elements(&self) -> f64 {
        self.shape.iter().map(|&d| d as f64).product()
    }

    /// Whether another differs in its first dimension alone.
    fn grows_to(&self, other: &Measurement) -> bool {
        (&self.op, &self.dtype, &self.cache, self.channel_axis)
            == (&other.op, &other.dtype, &other.cache, other.channel_axis)
            && self.shape.get(1..) == other.shape.get(1..)
    }

    /// In copies, the least that memory allows: on chip, and read twice.
    fn ideal(&self) -> (f64, f64) {
        match self.op.as_str() {
            "inference" => (1.0, 1.0),
            "backward" => (1.5, 2.5),
            _ => (1.0, 1.5),
        }
    }
}

/// One machine's results: an adapter, or a peer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// Name, backend, type, driver.
    pub adapter: Value,
    /// What was asked for besides: a strategy, tuned plans, trusted modules. Empty where the planner chose.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub options: String,
    /// How times were taken.
    #[serde(default)]
    pub timer: String,
    /// Of a dispatch that does nothing.
    #[serde(default, deserialize_with = "number")]
    pub empty_dispatch_ms: f64,
    /// One per operation and shape.
    pub results: Vec<Measurement>,
}

impl Machine {
    fn title(&self) -> String {
        let text = |key: &str| self.adapter[key].as_str().unwrap_or_default();
        let title = format!("{} ({})", text("name"), text("backend"));
        let title = title.replace(" ()", "");
        match self.options.as_str() {
            "" => title,
            options => format!("{title}, {options}"),
        }
    }
}

/// One machine or several.
#[derive(Debug, Clone)]
pub struct Report {
    machines: Vec<Machine>,
}

impl Report {
    pub(crate) fn new(
        adapter: Value,
        timer: &str,
        empty_dispatch_ms: f64,
        results: Vec<Measurement>,
    ) -> Self {
        Report {
            machines: vec![Machine {
                options: String::new(),
                adapter,
                timer: timer.into(),
                empty_dispatch_ms,
                results,
            }],
        }
    }

    /// Reads reports and puts them side by side.
    ///
    /// # Errors
    /// One line that names the file at fault.
    #[cfg(not(target_family = "wasm"))]
    pub fn merged(paths: &[PathBuf]) -> Result<Self> {
        let mut machines = Vec::new();
        for path in paths {
            let shown = path.display();
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("{shown}: it cannot be read"))?;
            let value: Value =
                serde_json::from_str(&text).with_context(|| format!("{shown}: it is not JSON"))?;
            let parts = match value.get("machines") {
                Some(Value::Array(parts)) => parts.clone(),
                _ => vec![value],
            };
            for part in parts {
                let machine: Machine = serde_json::from_value(part).with_context(|| {
                    format!("{shown}: it is no report; give what `bench --json` wrote")
                })?;
                machines.push(machine);
            }
        }
        if machines.is_empty() {
            bail!("the reports hold no machine");
        }
        Ok(Report { machines })
    }

    /// What `bench --json` writes.
    ///
    /// # Errors
    /// None that is known: numbers and texts are all there is.
    pub fn json(&self) -> Result<String> {
        let value = match self.machines.as_slice() {
            [one] => serde_json::to_value(one)?,
            all => json!({ "machines": all }),
        };
        Ok(serde_json::to_string_pretty(&value)?)
    }

    /// Says what was asked for besides.
    #[cfg(not(target_family = "wasm"))]
    pub(super) fn asked(&mut self, options: &str) {
        for machine in &mut self.machines {
            machine.options = options.to_owned();
        }
    }

    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn write_json(&self, path: &Path) -> Result<()> {
        write(path, &(self.json()? + "\n"))
    }

    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn write_html(&self, path: &Path) -> Result<()> {
        write(path, &self.html()?)
    }

    /// A table a machine.
    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for machine in &self.machines {
            let _ = writeln!(text, "{}", machine.title());
            if machine.empty_dispatch_ms > 0.0 {
                let us = 1e3 * machine.empty_dispatch_ms;
                let _ = writeln!(
                    text,
                    "{}; an empty dispatch takes {us:.1} µs",
                    machine.timer
                );
            }
            let mut table = with_header([
                "operation",
                "shape",
                "type",
                "cache",
                "ms",
                "copy ms",
                "copies",
                "at best",
                "GB/s",
                "dispatches",
            ]);
            for r in &machine.results {
                let (resident, twice) = r.ideal();
                let best = if resident == twice {
                    format!("{resident}")
                } else {
                    format!("{resident} or {twice}")
                };
                table.add_row([
                    r.op.replace('_', " "),
                    r.shape_text(),
                    r.dtype.clone(),
                    r.cache.clone(),
                    shown(r.median_ms),
                    shown(r.copy_ms),
                    shown(r.copy_ratio.unwrap_or_default()),
                    best,
                    shown(r.gb_per_s),
                    r.dispatches_text(),
                ]);
            }
            for column in [4, 5, 6, 7, 8, 9] {
                if let Some(column) = table.column_mut(column) {
                    column.set_cell_alignment(CellAlignment::Right);
                }
            }
            let _ = writeln!(text, "{}\n", table.trim_fmt());
        }
        text += "copies: in times of a copy of the same tensor; at best: by memory traffic alone, with the data kept on \
                 chip or read twice\n\n";
        if self.machines.len() > 1 {
            let _ = write!(text, "{}", self.comparison_text());
        }
        text.trim_end().to_owned()
    }

    /// The same operation on all of them, in milliseconds, and what that is of the first one's time.
    #[cfg(not(target_family = "wasm"))]
    fn comparison_text(&self) -> String {
        let mut text = String::from("Side by side: ms, and times the first machine's\n");
        for (i, machine) in self.machines.iter().enumerate() {
            let _ = writeln!(text, "  {}: {}", i + 1, machine.title());
        }
        let header = ["operation", "shape", "type", "cache"].map(String::from);
        let numbers = (1..=self.machines.len()).map(|i| i.to_string());
        let mut table = with_header(header.into_iter().chain(numbers));
        for (r, others) in side_by_side(&self.machines) {
            let row = [
                r.op.replace('_', " "),
                r.shape_text(),
                r.dtype.clone(),
                r.cache.clone(),
            ];
            let times = others.iter().enumerate().map(|(i, other)| match other {
                Some(o) if i == 0 => shown(o.median_ms),
                Some(o) => format!("{} {}", shown(o.median_ms), times_text(o, r)),
                None => "-".into(),
            });
            table.add_row(row.into_iter().chain(times));
        }
        for column in table.column_iter_mut().skip(4) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        format!("{text}{}", table.trim_fmt())
    }

    /// What `bench --html` writes: one page, which needs nothing else.
    ///
    /// # Errors
    /// As [`Report::json`].
    pub fn html(&self) -> Result<String> {
        let mut body = String::new();
        for machine in &self.machines {
            let _ = write!(body, "<h2>{}</h2>", escape(&machine.title()));
            let driver =
                ["driver", "driver_info"].map(|k| machine.adapter[k].as_str().unwrap_or(""));
            let mut facts = vec![driver.join(" ").trim().to_owned(), machine.timer.clone()];
            if machine.empty_dispatch_ms > 0.0 {
                let us = 1e3 * machine.empty_dispatch_ms;
                facts.push(format!("empty dispatch {us:.1} µs"));
            }
            facts.retain(|fact| !fact.is_empty());
            let _ = write!(body, "<p class=\"sub\">{}</p>", escape(&facts.join(" · ")));
            for op in ["forward_training", "inference", "backward"] {
                body += &bars(machine, op);
            }
            body += "<div class=\"plots\">";
            body += &roofline(machine);
            body += &scaling(machine);
            body += "</div>";
        }
        if self.machines.len() > 1 {
            body = comparison(&self.machines) + &body;
        }
        body += &details(&self.machines);
        let data = self.json()?.replace("</", "<\\/");
        Ok(PAGE.replace("{{body}}", &body).replace("{{data}}", &data))
    }
}

/// Writes a file as a whole, or stdout where the path is `-`.
#[cfg(not(target_family = "wasm"))]
pub(super) fn write(path: &Path, text: &str) -> Result<()> {
    if path.as_os_str() == "-" {
        return crate::info::print(text.trim_end());
    }
    let written = crate::file::replace(path, folder_of(path), |out| out.write_all(text.as_bytes()));
    written.map_err(|error| cannot_be_written(path, &error))
}

/// Whether [`write`] can go to `path`, as far as that can be told before anything is measured.
#[cfg(not(target_family = "wasm"))]
pub(super) fn check_target(path: &Path) -> Result<()> {
    if path.as_os_str() == "-" {
        return Ok(());
    }
    let refused = |kind: std::io::ErrorKind| cannot_be_written(path, &kind.into());
    if path.is_dir() {
        return Err(refused(std::io::ErrorKind::IsADirectory));
    }
    tempfile::tempfile_in(folder_of(path)).map_err(|error| refused(error.kind()))?;
    Ok(())
}

#[cfg(not(target_family = "wasm"))]
fn folder_of(path: &Path) -> &Path {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    folder.unwrap_or(Path::new("."))
}

#[cfg(not(target_family = "wasm"))]
fn cannot_be_written(path: &Path, error: &std::io::Error) -> anyhow::Error {
    // Of a temporary file's error the path means nothing to the reader.
    let kind = error.kind();
    anyhow::anyhow!(
        "{}: it cannot be written: {kind}; give a path in a folder that exists and may be written to",
        path.display()
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

const OPS: [(&str, &str); 3] = [
    ("forward_training", "Training forward"),
    ("inference", "Inference"),
    ("backward", "Backward"),
];

fn title(op: &str) -> &str {
    OPS.iter()
        .find(|(name, _)| *name == op)
        .map_or(op, |(_, t)| t)
}

/// Bars of one operation: copies per shape, with a tick at what memory allows.
fn bars(machine: &Machine, op: &str) -> String {
    let rows: Vec<_> = machine
        .results
        .iter()
        .filter(|r| r.op == op && r.copy_ratio.is_some())
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let most = rows.iter().filter_map(|r| r.copy_ratio).fold(3.0, f64::max);
    let mut html = format!(
        "<h3>{}, in copies of the tensor</h3><div class=\"bars\">",
        title(op)
    );
    for r in rows {
        let ratio = r.copy_ratio.unwrap_or(0.0);
        let (resident, twice) = r.ideal();
        let percent = |v: f64| 100.0 * v / most;
        let _ = write!(
            html,
            "<div class=\"label\">{} <span>{} {}</span></div><div class=\"track\" title=\"{:.3} ms, copy {:.3} ms\">\
             <div class=\"bar {}\" style=\"width:{:.1}%\"></div><i style=\"left:{:.1}%\"></i><i style=\"left:{:.1}%\"></i>\
             </div><div class=\"value\">{ratio:.2}</div>",
            escape(&r.shape_text()),
            escape(&r.dtype),
            escape(&r.cache),
            r.median_ms,
            r.copy_ms,
            escape(op),
            percent(ratio),
            percent(resident),
            percent(twice),
        );
    }
    html + "</div><p class=\"note\">The ticks are what memory allows: data kept on chip, and data read twice.</p>"
}

/// A plot with logarithmic axes.
struct Plot {
    x: (f64, f64),
    y: (f64, f64),
    svg: String,
}

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 58.0;
const BOTTOM: f64 = 44.0;

impl Plot {
    fn new(points: &[(f64, f64)], x_label: &str, y_label: &str) -> Self {
        let range = |of: &dyn Fn(&(f64, f64)) -> f64| {
            let values = points.iter().map(of);
            let low = values.clone().fold(f64::INFINITY, f64::min);
            let high = values.fold(0.0, f64::max);
            (low / 1.5, high * 1.5)
        };
        let mut plot = Plot {
            x: range(&|p| p.0),
            y: range(&|p| p.1),
            svg: format!(
                "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{} against {}\">",
                escape(y_label),
                escape(x_label)
            ),
        };
        for decade in -6..16 {
            for (step, labelled) in [(1.0, true), (2.0, false), (5.0, false)] {
                let v = step * 10f64.powi(decade);
                if (plot.x.0..plot.x.1).contains(&v) {
                    let (x, y) = (plot.at_x(v), HEIGHT - BOTTOM);
                    let _ = write!(
                        plot.svg,
                        "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"12\" y2=\"{y}\"/>"
                    );
                    if labelled || plot.x.1 / plot.x.0 < 50.0 {
                        let _ = write!(
                            plot.svg,
                            "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                            y + 16.0,
                            short(v)
                        );
                    }
                }
                if (plot.y.0..plot.y.1).contains(&v) {
                    let y = plot.at_y(v);
                    let _ = write!(
                        plot.svg,
                        "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
                        WIDTH - 10.0
                    );
                    if labelled || plot.y.1 / plot.y.0 < 50.0 {
                        let _ = write!(
                            plot.svg,
                            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                            LEFT - 6.0,
                            y + 4.0,
                            short(v)
                        );
                    }
                }
            }
        }
        let _ = write!(
            plot.svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\" class=\"axis\">{}</text>\
             <text transform=\"translate(13 {}) rotate(-90)\" text-anchor=\"middle\" class=\"axis\">{}</text>",
            (LEFT + WIDTH) / 2.0,
            HEIGHT - 8.0,
            escape(x_label),
            (HEIGHT - BOTTOM) / 2.0,
            escape(y_label)
        );
        plot
    }

    fn at_x(&self, v: f64) -> f64 {
        LEFT + (WIDTH - 10.0 - LEFT) * (v / self.x.0).ln() / (self.x.1 / self.x.0).ln()
    }

    fn at_y(&self, v: f64) -> f64 {
        let inside = HEIGHT - BOTTOM - 12.0;
        12.0 + inside * (1.0 - (v / self.y.0).ln() / (self.y.1 / self.y.0).ln())
    }

    fn point(&mut self, (x, y): (f64, f64), class: &str, tip: &str) {
        let class = escape(class);
        let (x, y) = (self.at_x(x), self.at_y(y));
        let tip = escape(tip);
        let _ = write!(
            self.svg,
            "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\"><title>{tip}</title></circle>"
        );
    }

    fn line(&mut self, points: &[(f64, f64)], class: &str) {
        let class = escape(class);
        let list: Vec<_> = points
            .iter()
            .map(|&(x, y)| format!("{:.1},{:.1}", self.at_x(x), self.at_y(y)))
            .collect();
        let _ = write!(
            self.svg,
            "<polyline class=\"{class}\" points=\"{}\"/>",
            list.join(" ")
        );
    }

    fn finish(self, heading: &str, note: &str) -> String {
        format!(
            "<figure><figcaption>{heading}<span>{note}</span></figcaption>{}</svg></figure>",
            self.svg
        )
    }
}

/// A measured number, or a dash where there is none.
fn shown(v: f64) -> String {
    match v {
        v if v <= 0.0 || !v.is_finite() => "-".to_owned(),
        v if v < 0.1 => format!("{v:.4}"),
        v => format!("{v:.2}"),
    }
}

fn short(v: f64) -> String {
    match v {
        v if v >= 1e9 => format!("{}G", v / 1e9),
        v if v >= 1e6 => format!("{}M", v / 1e6),
        v if v >= 1e3 => format!("{}k", v / 1e3),
        v => format!("{v}"),
    }
}

/// Bytes a second against bytes moved, and the copies as the roof.
fn roofline(machine: &Machine) -> String {
    let rows: Vec<_> = machine
        .results
        .iter()
        .filter(|r| r.gb_per_s > 0.0 && r.bytes > 0)
        .collect();
    let copy = |r: &Measurement| {
        let element = if r.dtype == "f32" { 4.0 } else { 2.0 };
        let bytes = 2.0 * element * r.elements();
        (bytes, bytes / r.copy_ms / 1e6)
    };
    let mut roof: Vec<_> = rows
        .iter()
        .filter(|r| r.copy_ms > 0.0)
        .map(|r| copy(r))
        .collect();
    roof.sort_by(|a, b| a.0.total_cmp(&b.0));
    roof.dedup_by(|a, b| a.0 == b.0);
    let points: Vec<_> = rows.iter().map(|r| (r.bytes as f64, r.gb_per_s)).collect();
    let all: Vec<_> = points.iter().chain(&roof).copied().collect();
    if all.is_empty() {
        return String::new();
    }
    let mut plot = Plot::new(&all, "bytes moved", "GB/s");
    plot.line(&roof, "roof");
    for (r, point) in rows.iter().zip(points) {
        let tip = format!(
            "{} {} {}: {:.1} GB/s",
            r.op,
            r.shape_text(),
            r.dtype,
            r.gb_per_s
        );
        plot.point(point, &r.op, &tip);
    }
    let note = match roof.is_empty() {
        true => "Bandwidth of every operation.",
        false => "Bandwidth of every operation. Dashed: the copy.",
    };
    plot.finish("Roofline", note)
}

/// Time per element against elements: points, and a curve through what differs in its first dimension alone.
fn scaling(machine: &Machine) -> String {
    let timed = machine.results.iter().filter(|r| r.median_ms > 0.0);
    let mut rows: Vec<_> = timed.collect();
    if rows.is_empty() {
        return String::new();
    }
    rows.sort_by(|a, b| a.elements().total_cmp(&b.elements()));
    let of = |r: &Measurement, ms: f64| (r.elements(), 1e6 * ms / r.elements());
    let at = |r: &Measurement| of(r, r.median_ms);
    // Curves, whose first row stands for all.
    let mut curves: Vec<Vec<&Measurement>> = Vec::new();
    for &row in &rows {
        match curves.iter_mut().find(|curve| curve[0].grows_to(row)) {
            Some(curve) => curve.push(row),
            None => curves.push(vec![row]),
        }
    }
    curves.retain(|curve| curve.len() > 2);
    // The copies of one layout stand for those of all.
    let copies: Vec<_> = curves.first().map_or(Vec::new(), |curve| {
        let copied = curve.iter().filter(|r| r.copy_ms > 0.0);
        copied.map(|r| of(r, r.copy_ms)).collect()
    });
    let points: Vec<_> = rows.iter().map(|r| at(r)).chain(copies.clone()).collect();
    let mut plot = Plot::new(&points, "elements", "ns per element");
    plot.line(&copies, "roof");
    for curve in &curves {
        let last = curve[0].channel_axis + 1 == curve[0].shape.len();
        let class = format!("curve {}{}", curve[0].op, if last { " last" } else { "" });
        let points: Vec<_> = curve.iter().map(|r| at(r)).collect();
        plot.line(&points, &class);
    }
    for r in &rows {
        let tip = format!(
            "{} {} {}: {:.3} ms",
            r.op,
            r.shape_text(),
            r.dtype,
            r.median_ms
        );
        plot.point(at(r), &r.op, &tip);
    }
    let note = match (curves.is_empty(), copies.is_empty()) {
        (true, _) => "Time per element.",
        (false, true) => "Time per element. Dotted: channels last.",
        (false, false) => "Time per element. Dotted: channels last; dashed: the copy.",
    };
    plot.finish("Scaling", note)
}

/// The first machine's rows, and the same operation on every machine that has it.
fn side_by_side(machines: &[Machine]) -> Vec<(&Measurement, Vec<Option<&Measurement>>)> {
    let same = |r: &Measurement, o: &Measurement| {
        (&o.op, &o.shape, o.channel_axis, &o.dtype) == (&r.op, &r.shape, r.channel_axis, &r.dtype)
            && (o.cache == r.cache || o.cache.is_empty())
    };
    let of = |r| {
        machines
            .iter()
            .map(|machine| machine.results.iter().find(|o| same(r, o)))
            .collect()
    };
    machines.first().map_or(Vec::new(), |first| {
        first.results.iter().map(|r| (r, of(r))).collect()
    })
}

/// How many times the first machine's time another one takes; nothing where either has none.
fn times_text(other: &Measurement, first: &Measurement) -> String {
    match other.median_ms / first.median_ms {
        times if times > 0.0 && times.is_finite() => format!("×{times:.2}"),
        _ => String::new(),
    }
}

/// The same as a table, the first machine being the measure.
fn comparison(machines: &[Machine]) -> String {
    let mut html = String::from(
        "<h2>Side by side</h2><p class=\"note\">Milliseconds, and times the first machine's.</p><div class=\"scroll\">\
         <table class=\"machines\"><tr><th>operation</th><th>shape</th><th>type</th><th>cache</th>",
    );
    for machine in machines {
        let _ = write!(html, "<th>{}</th>", escape(&machine.title()));
    }
    html += "</tr>";
    for (r, others) in side_by_side(machines) {
        let _ = write!(
            html,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td>",
            escape(title(&r.op)),
            r.shape_text(),
            escape(&r.dtype),
            escape(&r.cache)
        );
        for (i, other) in others.iter().enumerate() {
            let _ = match other {
                Some(o) if i == 0 => write!(html, "<td>{}</td>", shown(o.median_ms)),
                Some(o) => {
                    let (ms, times) = (shown(o.median_ms), times_text(o, r));
                    write!(html, "<td>{ms} <span>{times}</span></td>")
                }
                None => write!(html, "<td>–</td>"),
            };
        }
        html += "</tr>";
    }
    html + "</table></div>"
}

/// Every number.
fn details(machines: &[Machine]) -> String {
    let mut html = String::from(
        "<h2>All figures</h2><div class=\"scroll\"><table><tr><th>machine</th><th>operation</th><th>shape</th><th>type</th>\
         <th>cache</th><th>strategy</th><th>ms</th><th>copy ms</th><th>copies</th><th>GB/s</th><th>dispatches</th></tr>",
    );
    for machine in machines {
        for r in &machine.results {
            let _ = write!(
                html,
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>\
                 <td>{}</td><td>{}</td><td>{}</td></tr>",
                escape(&machine.title()),
                escape(title(&r.op)),
                r.shape_text(),
                escape(&r.dtype),
                escape(&r.cache),
                escape(&r.strategy),
                shown(r.median_ms),
                shown(r.copy_ms),
                shown(r.copy_ratio.unwrap_or_default()),
                shown(r.gb_per_s),
                r.dispatches_text()
            );
        }
    }
    html + "</table></div>"
}

const PAGE: &str = include_str!("page.html");

#[cfg(test)]
mod tests {
    use super::*;

    /// What a peer writes: no copies, no dispatches, nulls.
    const PEER: &str = r#"{
        "adapter": {"name": "a peer <1>", "backend": ""},
        "empty_dispatch_ms": null,
        "results": [{
            "op": "inference", "shape": [2, 3, 4], "channel_axis": 1, "dtype": "f32", "strategy": "", "cache": "",
            "median_ms": 3.0, "copy_ms": null, "copy_ratio": null, "gb_per_s": 1.5, "bytes": 192
        }]
    }"#;

    fn merged(texts: &[String]) -> Result<Report> {
        let folder = tempfile::tempdir()?;
        let write = |(i, text): (usize, &String)| {
            let path = folder.path().join(format!("{i}.json"));
            std::fs::write(&path, text).map(|()| path)
        };
        let paths = texts.iter().enumerate().map(write);
        Report::merged(&paths.collect::<Result<Vec<_>, _>>()?)
    }

    fn ours(median_ms: f64) -> Result<String> {
        let mut report: Value = serde_json::from_str(PEER)?;
        report["adapter"] = json!({"name": "an adapter", "backend": "vulkan"});
        let row = &mut report["results"][0];
        row["cache"] = "cold".into();
        row["median_ms"] = median_ms.into();
        row["dispatches"] = 2.into();
        Ok(report.to_string())
    }

    #[test]
    fn a_peer_without_copies_stands_beside_ours() -> Result<()> {
        let report = merged(&[ours(1.5)?, PEER.into()])?;
        let text = report.text();
        assert!(text.contains("1: an adapter (vulkan)"), "{text}");
        assert!(text.contains("2: a peer <1>"), "{text}");
        assert!(text.contains("3.00 ×2.00"), "{text}");
        let page = report.html()?;
        assert!(page.contains("a peer &lt;1&gt;"), "{page}");
        assert!(page.contains("3.00 <span>×2.00</span>"), "{page}");
        Ok(())
    }

    #[test]
    fn a_merged_report_can_be_merged_again() -> Result<()> {
        let both = merged(&[ours(1.5)?, PEER.into()])?.json()?;
        let again = merged(&[both, ours(2.0)?])?;
        assert_eq!(again.machines.len(), 3);
        Ok(())
    }

    #[test]
    fn what_has_no_finite_figure_is_read_again() -> Result<()> {
        let mut report = merged(&[ours(0.0)?])?;
        report.machines[0].results[0].gb_per_s = f64::INFINITY;
        report.machines[0].results[0].spread = f64::NAN;
        let again = merged(&[report.json()?])?;
        assert!(again.text().contains(" - "), "{}", again.text());
        Ok(())
    }

    #[test]
    fn what_is_no_report_is_an_error_that_names_the_file() {
        let error = merged(&["{}".into()]).err().map(|e| format!("{e:#}"));
        assert!(error.is_some_and(|e| e.contains("0.json: it is no report")));
    }
}
