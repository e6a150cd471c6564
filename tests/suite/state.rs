//! A layer's state: from the device to files and back, into other layers.

use wgpu_batchnorm::{Batch, BatchNorm, Error, Gpu, Momentum, Naming, Preset, Problem, State};
use wgpu_batchnorm_cli::check::{Data, Random, input};

use crate::api::{empty, storage};
use crate::conformance::path;
use crate::on_every_adapter;

const CHANNELS: usize = 7;

fn template(preset: Preset) -> Problem {
    Problem::nchw([4, CHANNELS, 5, 5]).preset(preset)
}

/// A layer with a weight and bias of its own, after three batches.
fn trained(gpu: &Gpu, preset: Preset) -> BatchNorm {
    let layer = BatchNorm::new(&gpu.kernels, &template(preset)).unwrap();
    let mut random = Random::new(5);
    let mut vector = || {
        (0..CHANNELS)
            .map(|_| random.uniform() - 0.5)
            .collect::<Vec<_>>()
    };
    layer.set_affine(&gpu.queue, &vector(), &vector()).unwrap();
    for seed in 0..3 {
        let x = input(
            Data::Normal(seed as f32, 2.0),
            &template(preset),
            &mut Random::new(seed),
        );
        let (x, y) = (storage(gpu, x.as_slice().unwrap()), empty(gpu, x.len()));
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        layer
            .forward(&mut encoder, &Batch::new(4, 25, &x), &y)
            .unwrap();
        gpu.queue.submit([encoder.finish()]);
    }
    layer
}

fn inferred(gpu: &Gpu, layer: &BatchNorm) -> Vec<u32> {
    let x = input(
        Data::Normal(1.0, 3.0),
        &template(Preset::Pytorch),
        &mut Random::new(9),
    );
    let (x, y) = (storage(gpu, x.as_slice().unwrap()), empty(gpu, x.len()));
    let operation = layer.bind_inference(&Batch::new(4, 25, &x), &y).unwrap();
    let read = gpu.submit_and_read(Some(&operation), &[&y]).unwrap();
    read.wait().unwrap().remove(0)
}

fn state(gpu: &Gpu, layer: &BatchNorm) -> State {
    layer
        .submit_and_read_state(&gpu.queue)
        .unwrap()
        .wait()
        .unwrap()
}

/// Through a file with other layers and tensors in it, a new layer gives the same bits in inference and continues the
/// running statistics.
#[test]
fn a_saved_layer_is_the_same_layer() {
    on_every_adapter(|gpu| {
        for (naming, preset) in [
            (Naming::Pytorch, Preset::Pytorch),
            (Naming::Keras, Preset::Keras),
        ] {
            let layer = trained(gpu, preset);
            let want = state(gpu, &layer);
            assert_eq!(want.num_batches_tracked, Some(3));
            assert_ne!(want.running_mean, Some(vec![0.0; CHANNELS]));
            let other = State {
                weight: Some(vec![9.0; 3]),
                ..State::default()
            };
            let layers = [
                ("layer1.0.", &other),
                ("layer1.bn.", &want),
                ("layer1.bn.x.", &other),
            ];
            let bytes = State::all_to_bytes(naming, layers).unwrap();

            let read = State::from_bytes(&bytes, "layer1.bn.").unwrap();
            let new = BatchNorm::new(&gpu.kernels, &template(preset)).unwrap();
            assert_ne!(inferred(gpu, &new), inferred(gpu, &layer));
            new.set_state(&gpu.queue, &read).unwrap();
            assert_eq!(inferred(gpu, &new), inferred(gpu, &layer));
            // Keras' names have none for the batches, so a new layer's stay at 0.
            let batches = (naming == Naming::Pytorch).then_some(3).or(Some(0));
            assert_eq!(
                state(gpu, &new),
                State {
                    num_batches_tracked: batches,
                    ..want
                }
            );
        }
    });
}

#[test]
fn what_a_state_lacks_stays() {
    on_every_adapter(|gpu| {
        let layer = trained(gpu, Preset::Pytorch);
        let before = state(gpu, &layer);
        layer.set_state(&gpu.queue, &State::default()).unwrap();
        assert_eq!(state(gpu, &layer), before);
        let bias = Some(vec![4.0; CHANNELS]);
        let some = State {
            bias: bias.clone(),
            num_batches_tracked: Some(u32::MAX.into()),
            ..State::default()
        };
        layer.set_state(&gpu.queue, &some).unwrap();
        let want = State {
            bias,
            num_batches_tracked: some.num_batches_tracked,
            ..before
        };
        assert_eq!(state(gpu, &layer), want);

        let new = BatchNorm::new(&gpu.kernels, &template(Preset::Pytorch)).unwrap();
        let [zeros, ones] = [0.0, 1.0].map(|v| Some(vec![v; CHANNELS]));
        let want = State {
            weight: ones.clone(),
            bias: zeros.clone(),
            running_mean: zeros,
            running_var: ones,
            num_batches_tracked: Some(0),
        };
        assert_eq!(state(gpu, &new), want);
    });
}

/// Through the device and back, NaNs with payloads, -0 and subnormals keep their bits.
#[test]
fn every_value_keeps_its_bits() {
    on_every_adapter(|gpu| {
        let layer = BatchNorm::new(&gpu.kernels, &template(Preset::Pytorch)).unwrap();
        let words = [
            0x7fc0_1234,
            0x7f80_0001,
            0x8000_0000,
            1,
            0xff80_0000,
            0x0080_0000,
            0x3f80_0001,
        ];
        let given = State {
            weight: Some(words.map(f32::from_bits).to_vec()),
            ..State::default()
        };
        layer.set_state(&gpu.queue, &given).unwrap();
        let got = state(gpu, &layer).weight.unwrap();
        assert_eq!(got.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), words);
    });
}

/// The count goes on where it was: the fourth batch weighs a quarter.
#[test]
fn cumulative_momentum_goes_on() {
    on_every_adapter(|gpu| {
        let problem = template(Preset::Pytorch).momentum(Momentum::Cumulative);
        let layer = BatchNorm::new(&gpu.kernels, &problem).unwrap();
        let statistics = State {
            running_mean: Some(vec![8.0; CHANNELS]),
            running_var: Some(vec![4.0; CHANNELS]),
            num_batches_tracked: Some(3),
            ..State::default()
        };
        layer.set_state(&gpu.queue, &statistics).unwrap();
        let x = storage(gpu, &[0.0; 4 * CHANNELS * 25]);
        let y = empty(gpu, 4 * CHANNELS * 25);
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        layer
            .forward(&mut encoder, &Batch::new(4, 25, &x), &y)
            .unwrap();
        gpu.queue.submit([encoder.finish()]);
        let got = state(gpu, &layer);
        assert_eq!(got.running_mean, Some(vec![6.0; CHANNELS]));
        assert_eq!(got.running_var, Some(vec![3.0; CHANNELS]));
        assert_eq!(got.num_batches_tracked, Some(4));
    });
}

#[test]
fn a_readback_is_a_future() {
    on_every_adapter(|gpu| {
        let layer = trained(gpu, Preset::Pytorch);
        let future = layer.submit_and_read_state(&gpu.queue).unwrap();
        let device = gpu.device.clone();
        let poller = std::thread::spawn(move || device.poll(wgpu::PollType::wait_indefinitely()));
        let got = pollster::block_on(future).unwrap();
        poller.join().unwrap().unwrap();
        assert_eq!(got, state(gpu, &layer));
    });
}

/// Nothing is written when something is wrong.
#[test]
fn a_state_that_does_not_fit_is_refused() {
    on_every_adapter(|gpu| {
        let layer = trained(gpu, Preset::Pytorch);
        let before = state(gpu, &layer);
        let good = |n: usize| State {
            weight: Some(vec![1.0; n]),
            bias: Some(vec![1.0; n]),
            running_mean: Some(vec![1.0; n]),
            running_var: Some(vec![1.0; n]),
            num_batches_tracked: Some(1),
        };
        let refused = |state: State, wanted: &[&str]| {
            let error = layer.set_state(&gpu.queue, &state).unwrap_err();
            let text = error.to_string();
            assert!(
                wanted.iter().all(|w| text.contains(w)),
                "{text:?} lacks one of {wanted:?}"
            );
            error
        };
        let error = refused(good(CHANNELS + 1), &["weight", "[8]", "[7]"]);
        assert!(matches!(error, Error::Shape { .. }));
        let mut wrong = good(CHANNELS);
        wrong.bias = Some(vec![0.0; 3]);
        refused(wrong, &["bias", "3 values", "has 7"]);
        let mut wrong = good(CHANNELS);
        wrong.running_var = Some(vec![1.0, 1.0, 1.0, -1e-9, 1.0, 1.0, 1.0]);
        refused(wrong, &["running_var", "channel 3", "0 or more"]);
        refused(
            State {
                running_mean: None,
                ..good(CHANNELS)
            },
            &["running_mean", "both"],
        );
        let batches = Some(1 << 32);
        refused(
            State {
                num_batches_tracked: batches,
                ..good(CHANNELS)
            },
            &["num_batches_tracked", "4294967295"],
        );
        assert_eq!(state(gpu, &layer), before);
    });
}

/// Files that PyTorch and Keras wrote, into a layer and out again: to the bit. What was saved here went through
/// `torch.nn.BatchNorm2d` and back (tests/conformance/roundtrip.py), and is still the same. After a change that is meant:
/// `UPDATE_STATES=1 cargo test states_of`, then the script.
#[test]
fn states_of_pytorch_and_keras_keep_their_bits() {
    on_every_adapter(|gpu| {
        for (file, naming, prefix) in [
            ("state_pytorch.safetensors", Naming::Pytorch, "layer1.bn."),
            ("state_pytorch.safetensors", Naming::Pytorch, "layer2.bn."),
            ("state_pytorch_plain.safetensors", Naming::Pytorch, ""),
            ("state_keras.safetensors", Naming::Keras, "block1_bn/"),
            ("state_keras.safetensors", Naming::Keras, ""),
        ] {
            let theirs = State::load(path(file), prefix).unwrap();
            let channels = theirs.running_mean.as_ref().unwrap().len();
            let problem = Problem::nchw([4, channels, 5, 5]);
            let layer = BatchNorm::new(&gpu.kernels, &problem).unwrap();
            layer.set_state(&gpu.queue, &theirs).unwrap();
            let mut ours = state(gpu, &layer);
            if naming == Naming::Keras {
                ours.num_batches_tracked = None; // Keras counts none
            }
            assert_eq!(ours, theirs, "{file} {prefix}");
            let bytes = ours.to_bytes(naming, prefix).unwrap();
            assert_eq!(State::from_bytes(&bytes, prefix).unwrap(), theirs);
            if prefix == "layer1.bn." {
                let saved_here = path("state_saved_here.safetensors");
                if std::env::var_os("UPDATE_STATES").is_some() {
                    ours.save(&saved_here, naming, prefix).unwrap();
                }
                assert!(
                    std::fs::read(saved_here).unwrap() == bytes,
                    "the file changed"
                );
                let back = path("state_back_from_pytorch.safetensors");
                assert_eq!(State::load(back, prefix).unwrap(), theirs);
            }
        }
    });
}
