//! Tuning: what it may choose, that what it chose computes the same, and the file that remembers it. No test asserts a time.

use std::sync::LazyLock;

use ndarray::{Array1, Array3};
use serde_json::{Value, json};
use tempfile::TempDir;
use wgpu_batchnorm::reference::{self, Inputs, Statistics};
use wgpu_batchnorm::{
    Activation, Arrays, Choices, Dtype, Error, Gpu, Kernels, Plan, Problem, Through, Tuned,
    TuningCache,
};

use crate::{GPUS, but_on_gl, name, on_every_adapter};

/// Rows of whole vectors, and short: every strategy and both walks can run.
fn problem() -> Problem {
    Problem::nchw([6, 16, 4, 4]).activation(Activation::Relu)
}

fn kernels() -> &'static Kernels {
    &GPUS[0].0.kernels
}

static TUNED: LazyLock<Tuned> = LazyLock::new(|| {
    let gpu = &GPUS[0].0;
    gpu.kernels.tune(&gpu.queue, &problem()).unwrap()
});

fn text_of(tuned: &Tuned) -> String {
    let mut cache = TuningCache::new(kernels());
    cache.insert(tuned);
    cache.to_json().unwrap()
}

fn value_of(tuned: &Tuned) -> Value {
    serde_json::from_str(&text_of(tuned)).unwrap()
}

fn agrees(gpu: &Gpu, problem: &Problem, choices: &Choices) {
    let plan = Plan::with(problem, gpu.kernels.caps(), choices).unwrap();
    let shape = problem.shape();
    let values = |step: f32| {
        Array3::from_shape_fn(shape, |(o, c, i)| {
            ((o * 31 + c * 7 + i * 3) as f32 * step).sin() + 0.1 * c as f32
        })
    };
    let (x, dy) = (values(0.7), values(1.3));
    let weight = Array1::from_shape_fn(problem.channels, |c| 0.5 + 0.1 * c as f32);
    let arrays = Arrays {
        weight: Some(weight.view()),
        ..Arrays::new(x.view())
    };
    let forward = gpu.forward_training(&plan, &arrays, None).unwrap();
    let saved = Through::Saved(&forward.saved);
    let backward = gpu.backward(&plan, &arrays, dy.view(), saved).unwrap();

    let (x, dy, weight) = (
        x.mapv(f64::from),
        dy.mapv(f64::from),
        weight.mapv(f64::from),
    );
    let inputs = Inputs {
        weight: Some(weight.view()),
        ..Inputs::new(x.view())
    };
    let statistics = Statistics::of(problem, x.view()).unwrap();
    let want = reference::forward(problem, &inputs, &statistics).unwrap();
    let gradients = reference::backward(problem, &inputs, &statistics, dy.view(), false).unwrap();
    for (what, got, want, bound) in [
        ("output", forward.output, want, 1e-6),
        ("grad_input", backward.input, gradients.input, 2e-6),
    ] {
        let scale = want.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
        assert_eq!(got.dim(), want.dim(), "{what}");
        for (got, want) in got.iter().zip(&want) {
            let error = (f64::from(*got) - want).abs();
            assert!(
                error <= bound * scale,
                "{what} by {choices:?} on {}: off by {error:e}",
                name(gpu)
            );
        }
    }
}

#[test]
fn the_winner_is_a_candidate_and_all_of_them_agree() {
    on_every_adapter(but_on_gl(|gpu| {
        let tuned = gpu.kernels.tune(&gpu.queue, &problem()).unwrap();
        let candidates = tuned.candidates();
        assert_eq!(candidates[0].choices, Choices::default(), "{tuned}");
        assert!(candidates.len() > 4, "{tuned}");
        assert!(candidates.contains(tuned.winner()), "{tuned}");
        assert_eq!(tuned.choices(), &tuned.winner().choices);
        assert!(
            candidates.iter().all(|c| c.total_ms().is_finite()),
            "{tuned}"
        );
        for candidate in candidates {
            agrees(gpu, &problem(), &candidate.choices);
        }
    }));
}

/// Arguments that only some problems have, and rows that leave split alone to run.
#[test]
fn whatever_can_be_planned_can_be_tuned() {
    let gpu = &GPUS[0].0;
    for problem in [
        Problem::nchw([4, 6, 7, 7])
            .dtype(Dtype::F16)
            .with_residual()
            .activation(Activation::Silu),
        Problem::new(3, 5, 9).groups(2).with_mask(),
    ] {
        let tuned = gpu.kernels.tune(&gpu.queue, &problem).unwrap();
        assert_eq!(tuned.problem(), &problem);
        Plan::with(&problem, gpu.kernels.caps(), tuned.choices()).unwrap();
    }
}

#[test]
fn what_cannot_be_tuned_is_refused() {
    let gpu = &GPUS[0].0;
    let one = gpu.kernels.tune(&gpu.queue, &Problem::nc([1, 8]));
    assert!(
        matches!(one, Err(Error::OneValuePerChannel { .. })),
        "{one:?}"
    );
    let empty = gpu.kernels.tune(&gpu.queue, &Problem::nc([0, 8]));
    assert!(matches!(empty, Err(Error::EmptyTensor { .. })), "{empty:?}");
    // A plan there is, in chunks, but no buffer of that size.
    let small = Gpu::with_limits(gpu.adapter.clone(), wgpu::Limits::default()).unwrap();
    let large = Problem::nchw([1024, 64, 56, 56]);
    assert!(Plan::new(&large, small.kernels.caps()).is_ok());
    let refused = small.kernels.tune(&small.queue, &large);
    assert!(
        matches!(
            refused,
            Err(Error::Limit {
                name: "max_buffer_size",
                ..
            })
        ),
        "{refused:?}"
    );
}

/// Whoever awaits it may do so on any thread, and polls the device as they like.
#[test]
fn the_async_form_does_not_poll() {
    use std::task::{Context, Poll, Waker};
    fn sendable<T: Send>(value: T) -> T {
        value
    }
    let gpu = &GPUS[0].0;
    let problem = Problem::nc([8, 4]).dtype(Dtype::Bf16).with_residual();
    let mut future = std::pin::pin!(sendable(gpu.kernels.tune_async(&gpu.queue, &problem)));
    let mut context = Context::from_waker(Waker::noop());
    let mut waits = 0;
    let tuned = loop {
        if let Poll::Ready(tuned) = future.as_mut().poll(&mut context) {
            break tuned.unwrap();
        }
        waits += 1;
        gpu.device
            .poll(wgpu::PollType::wait_indefinitely())
            .unwrap();
    };
    assert!(waits > 0);
    assert!(tuned.candidates().contains(tuned.winner()));
}

#[test]
fn a_file_brings_the_choices_back() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("tuning.json");
    let mut cache = TuningCache::load(&path, kernels()).unwrap(); // not there yet
    assert_eq!(cache.choices_for(&problem()), None);
    cache.insert(&TUNED);
    cache.insert(&TUNED); // in place of the first
    cache.save(&path).unwrap();
    let names = std::fs::read_dir(folder.path()).unwrap();
    assert_eq!(names.count(), 1, "a temporary file was left");

    let again = TuningCache::load(&path, kernels()).unwrap();
    assert_eq!(
        again.choices_for(&problem()).as_ref(),
        Some(TUNED.choices())
    );
    // Numbers that no time depends on.
    let other = problem()
        .eps(1e-3)
        .momentum(wgpu_batchnorm::Momentum::Cumulative);
    assert!(again.choices_for(&other).is_some());
    for other in [
        problem().dtype(Dtype::F16),
        problem().with_residual(),
        problem().activation(Activation::None),
        Problem::nchw([7, 16, 4, 4]),
    ] {
        assert_eq!(again.choices_for(&other), None, "{other:?}");
    }
    assert_eq!(again.to_json().unwrap(), text_of(&TUNED));
}

#[test]
fn every_choice_survives_the_file() {
    let mut document = value_of(&TUNED);
    document["adapters"][0]["tuned"][0]["choices"] = json!({
        "strategy": "split", "walk": "columns", "pieces": 3, "reduce_workgroup": 16, "flat_workgroup": 32,
        "flat_workgroups": 64,
    });
    let cache = TuningCache::from_json(&document.to_string(), kernels()).unwrap();
    let choices = cache.choices_for(&problem()).unwrap();
    let want = Choices::default()
        .strategy(wgpu_batchnorm::Strategy::Split)
        .walk(wgpu_batchnorm::Walk::Columns)
        .pieces(3)
        .reduce_workgroup(16)
        .flat_workgroup(32)
        .flat_workgroups(64);
    assert_eq!(choices, want);
    let written: Value = serde_json::from_str(&cache.to_json().unwrap()).unwrap();
    assert_eq!(written, document);
}

/// Other adapters, drivers and versions: not used, and kept whatever their entries hold.
#[test]
fn what_others_measured_is_kept() {
    for (key, value) in [
        ("name", json!("another")),
        ("vendor", json!(1)),
        ("device", json!(2)),
        ("backend", json!("metal")),
        ("driver", json!("another")),
        ("driver_info", json!("0.1")),
        ("version", json!("99.0.0")),
    ] {
        let mut document = value_of(&TUNED);
        document["adapters"][0]["adapter"][key] = value;
        document["adapters"][0]["tuned"][0]["of a later version"] = json!([1, 2]);
        let theirs = document["adapters"][0].clone();
        let mut cache = TuningCache::from_json(&document.to_string(), kernels()).unwrap();
        assert_eq!(cache.choices_for(&problem()), None, "another {key}");
        cache.insert(&TUNED);
        assert!(cache.choices_for(&problem()).is_some());
        let written: Value = serde_json::from_str(&cache.to_json().unwrap()).unwrap();
        let sections = written["adapters"].as_array().unwrap();
        assert_eq!(sections.len(), 2);
        assert_eq!(sections[0], theirs, "another {key}");
    }
}

/// Found on another adapter, a result goes to that one's entries.
#[test]
fn a_result_belongs_to_its_adapter() {
    for (gpu, _) in GPUS.iter().skip(1) {
        let mut cache = TuningCache::new(&gpu.kernels);
        cache.insert(&TUNED);
        cache.insert(&TUNED);
        assert_eq!(cache.choices_for(&problem()), None);
        let back = TuningCache::from_json(&cache.to_json().unwrap(), kernels()).unwrap();
        assert_eq!(back.choices_for(&problem()).as_ref(), Some(TUNED.choices()));
    }
}

/// What a device with lower limits cannot run is not offered there.
#[test]
fn choices_that_the_device_does_not_allow_are_none() {
    let mut document = value_of(&TUNED);
    let lanes = kernels().caps().max_workgroup_size * 2;
    document["adapters"][0]["tuned"][0]["choices"] = json!({ "reduce_workgroup": lanes });
    let cache = TuningCache::from_json(&document.to_string(), kernels()).unwrap();
    assert_eq!(cache.choices_for(&problem()), None);
}

#[test]
fn a_damaged_file_is_refused_and_says_so() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("tuning.json");
    let whole = text_of(&TUNED);
    let mut strategy = value_of(&TUNED);
    strategy["adapters"][0]["tuned"][0]["choices"] = json!({ "strategy": "fastest" });
    let mut format = value_of(&TUNED);
    format["format"] = json!(2);
    for text in [
        String::new(),
        whole[..whole.len() / 2].to_owned(),
        "[]".to_owned(),
        "{\"format\": 1}".to_owned(),
        strategy.to_string(),
        format.to_string(),
    ] {
        std::fs::write(&path, &text).unwrap();
        let error = TuningCache::load(&path, kernels()).unwrap_err();
        assert!(matches!(error, Error::File { .. }), "{error:?}");
        let line = error.to_string();
        assert!(
            line.contains("tuning.json") && line.contains("tune anew"),
            "{line}"
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "was touched");
    }
    let folder = TuningCache::load(folder.path(), kernels()).unwrap_err();
    assert!(matches!(folder, Error::File { .. }), "{folder:?}");
    let nowhere = TuningCache::new(kernels()).save("/no/such/folder/tuning.json");
    assert!(matches!(nowhere, Err(Error::File { .. })), "{nowhere:?}");
}
