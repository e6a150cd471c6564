//! The browser page's Rust: an adapter and a device through `navigator.gpu`, and on it the check, the benchmark, the live
//! picture and the list of shaders. The page itself is in `page/`.

mod live;
mod shaders;

use js_sys::Function;
use serde_json::{Value, json};
use wasm_bindgen::prelude::*;
use wgpu_batchnorm::{Choices, Gpu};
use wgpu_batchnorm_cli::bench::{self, Bench, Measurement, Op};
use wgpu_batchnorm_cli::{check, info};

pub use live::Live;
pub use shaders::shaders;

/// Runs once when the module is loaded: a panic, which would be a bug, tells its message and place.
#[wasm_bindgen(start)]
pub fn start() {
    console_error_panic_hook::set_once();
}

/// An adapter, a device on it and the kernels.
#[wasm_bindgen]
pub struct Session {
    gpu: Gpu,
    adapter: Value,
    described: Value,
}

#[wasm_bindgen]
impl Session {
    /// The browser's default adapter. What wgpu cannot know there, the page tells: the adapter's name, and the browser,
    /// which is the driver as far as a page can see.
    ///
    /// # Errors
    /// No adapter, or a device that cannot run the kernels.
    pub async fn open(name: String, browser: String) -> Result<Session, JsError> {
        let gpu = Gpu::new_async().await?;
        let known = |mut value: Value| {
            if value["name"].as_str().is_none_or(str::is_empty) {
                value["name"] = json!(name);
            }
            value["driver"] = json!(browser);
            value
        };
        let adapter = known(info::adapter(&gpu.adapter));
        let described = known(info::describe(&gpu.adapter));
        Ok(Session {
            gpu,
            adapter,
            described,
        })
    }

    /// The adapter, its limits and what it can run, as JSON: what `info --json` prints of an adapter.
    pub fn adapter(&self) -> String {
        self.described.to_string()
    }

    /// Runs the matrix of `check`, or every n-th case of it. `progress(done, all, case)` is called after each case, and
    /// stops the check by returning false.
    ///
    /// Gives JSON: `report` is what `check --json` prints, `lines` are those of the table that it prints without, and
    /// `failures` say what was wrong.
    ///
    /// # Errors
    /// What `progress` throws, and a device that is lost.
    pub async fn check(&self, every: usize, progress: &Function) -> Result<String, JsValue> {
        let cases = check::cases(false, &Choices::default(), check::Filter::default());
        let cases: Vec<_> = cases
            .into_iter()
            .enumerate()
            .step_by(every.max(1))
            .collect();
        let exact = self.gpu.keeps_remainders_async().await.map_err(failed)?;
        let (all, mut outcomes) = (cases.len(), Vec::with_capacity(cases.len()));
        for (seed, case) in cases {
            let text = case.to_string();
            outcomes.push(check::run_case(&self.gpu, case, seed as u64).await);
            if !goes_on(progress, outcomes.len(), all, &text)? {
                break;
            }
        }
        let lines: Vec<Value> = check::lines(&outcomes)
            .iter()
            .map(|line| {
                let worst = line.worst.worst();
                json!({
                    "operation": line.operation.name(),
                    "dtype": line.dtype.to_string(),
                    "strategy": line.strategy,
                    "ordinary": line.ordinary,
                    "cases": line.cases,
                    "refused": line.refused,
                    "failed": line.failed,
                    "error": worst.map(|c| c.error),
                    "of_bound": worst.map(|c| c.of_bound),
                    "tensor": worst.map(|c| c.tensor),
                    "shape": line.worst.case.problem.shape(),
                })
            })
            .collect();
        let failures: Vec<String> = outcomes
            .iter()
            .filter(|outcome| outcome.failed())
            .map(|outcome| {
                let reason = match &outcome.result {
                    Err(error) => error.clone(),
                    Ok(all) => all
                        .iter()
                        .filter(|c| c.of_bound > 1.0)
                        .map(check::Comparison::report)
                        .collect::<Vec<_>>()
                        .join("\n"),
                };
                format!("{}\n{reason}", outcome.case)
            })
            .collect();
        let all = json!({
            "report": check::report(self.adapter.clone(), exact, &outcomes),
            "lines": lines,
            "failures": failures,
        });
        Ok(all.to_string())
    }

    /// Measures shapes, written as `bench --shapes` has them; none is the headline set. `progress(done, all, next,
    /// results)` is called before each operation on a shape with what was measured so far, as JSON, and stops the
    /// benchmark by returning false.
    ///
    /// Gives JSON: `report` is what `bench --json` writes, `page` what `bench --html` writes.
    ///
    /// # Errors
    /// A shape that cannot be, a result that is wrong, what `progress` throws.
    pub async fn bench(&self, shapes: Vec<String>, progress: &Function) -> Result<String, JsValue> {
        // What is beyond a GPU's cache is beyond a tab's memory too: the headline set of software adapters.
        let subjects = bench::subjects(&shapes, &[], &Op::ALL, true).map_err(failed)?;
        let options = bench::Options::default();
        let bench = Bench::new(&self.gpu, options).await.map_err(failed)?;
        let mut results: Vec<Measurement> = Vec::new();
        for (done, subject) in subjects.iter().enumerate() {
            let so_far = serde_json::to_string(&results).map_err(failed)?;
            let (all, text) = (subjects.len(), subject.to_string());
            if !goes_on_with(progress, done, all, &text, &so_far)? {
                break;
            }
            let measured = bench.measure(subject).await;
            results.extend(measured.map_err(|error| failed(format!("{subject}: {error:#}")))?);
        }
        let report = bench.report(self.adapter.clone(), results);
        let text = report.json().map_err(failed)?;
        let page = report.html().map_err(failed)?;
        let report: Value = serde_json::from_str(&text).map_err(failed)?;
        Ok(json!({ "report": report, "page": page }).to_string())
    }
}

/// An error as the page shows it.
fn failed(error: impl std::fmt::Display) -> JsValue {
    JsError::new(&format!("{error:#}")).into()
}

fn goes_on(progress: &Function, done: usize, all: usize, text: &str) -> Result<bool, JsValue> {
    goes_on_with(progress, done, all, text, "")
}

/// Calls back into the page; anything but false means to go on.
fn goes_on_with(
    progress: &Function,
    done: usize,
    all: usize,
    text: &str,
    results: &str,
) -> Result<bool, JsValue> {
    let arguments = js_sys::Array::of4(
        &(done as f64).into(),
        &(all as f64).into(),
        &text.into(),
        &results.into(),
    );
    let answer = progress.apply(&JsValue::NULL, &arguments)?;
    Ok(answer != JsValue::FALSE)
}
