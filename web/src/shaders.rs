//! Every shader, for the page to give to the browser's own compiler.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use wasm_bindgen::prelude::*;
use wgpu_batchnorm::{Activation, Caps, Choices, Dtype, Error, Plan, Problem, Shader};
use wgpu_batchnorm_cli::bench::{Op, subjects};
use wgpu_batchnorm_cli::check::{Filter, cases};

/// Lanes of a workgroup where every variant is listed: what WebGPU allows by default.
const LANES: u32 = 256;

/// ResNet-50's stages: channels, and the side of a square.
const RESNET: [(usize, usize); 9] = [
    (64, 112),
    (64, 56),
    (256, 56),
    (128, 28),
    (512, 28),
    (256, 14),
    (1024, 14),
    (512, 7),
    (2048, 7),
];

/// Every module, and every variant of it, as JSON: `modules` are WGSL texts, once each; of `pipelines` each has the number
/// of its module, its entry point, its overridable constants, its storage bindings `[number, read_write]`, its name, and
/// whether some plan has it (`planned`): a plan for the headline set of `bench`, for ResNet-50, or for a case of `check`,
/// on a device with WebGPU's default limits.
///
/// # Errors
/// A problem that cannot be.
#[wasm_bindgen]
pub fn shaders() -> Result<String, JsError> {
    let planned = planned()?;
    let every = Shader::all(LANES)
        .into_iter()
        .chain(planned.iter().copied());
    let mut modules: Vec<String> = Vec::new();
    let mut numbers: BTreeMap<String, usize> = BTreeMap::new();
    let pipelines: Vec<Value> = every
        .collect::<BTreeSet<_>>()
        .into_iter()
        .map(|shader| {
            let number = *numbers.entry(shader.source()).or_insert_with_key(|source| {
                modules.push(source.clone());
                modules.len() - 1
            });
            let constants: Map<String, Value> = shader
                .constants()
                .into_iter()
                .map(|(name, value)| (name.into(), json!(value)))
                .collect();
            json!({
                "name": shader.to_string(),
                "module": number,
                "entry_point": shader.entry_point(),
                "constants": constants,
                "bindings": shader.bindings(),
                "planned": planned.contains(&shader),
            })
        })
        .collect();
    Ok(json!({ "modules": modules, "pipelines": pipelines }).to_string())
}

fn planned() -> Result<BTreeSet<Shader>, JsError> {
    let caps = Caps::webgpu_defaults();
    let choices = [
        Choices::default(),
        Choices::default().device_type(wgpu::DeviceType::Cpu),
    ];
    let mut problems: Vec<Problem> = Vec::new();
    let headline = subjects(&[], &[], &[Op::Inference], true);
    let headline = headline.map_err(|error| JsError::new(&error.to_string()))?;
    problems.extend(headline.into_iter().map(|subject| subject.problem));
    for (channels, side) in RESNET {
        for dtype in Dtype::ALL {
            for problem in [
                Problem::nchw([8, channels, side, side]),
                Problem::nhwc([8, side, side, channels]),
            ] {
                let relu = problem.clone().activation(Activation::Relu);
                problems
                    .extend([problem, relu.clone(), relu.with_residual()].map(|p| p.dtype(dtype)));
            }
        }
    }
    let mut planned = BTreeSet::new();
    let mut add = |problem: &Problem, choices: &Choices| match Plan::with(problem, &caps, choices) {
        Ok(plan) => {
            planned.extend(plan.shaders());
            Ok(())
        }
        // Some strategies that `check` forces are refused for some problems, by design.
        Err(Error::Unsupported { .. }) => Ok(()),
        Err(error) => Err(error),
    };
    for choices in &choices {
        for problem in &problems {
            add(problem, choices)?;
        }
        for case in cases(false, choices, Filter::default()) {
            add(&case.problem, &case.choices)?;
        }
    }
    Ok(planned)
}
