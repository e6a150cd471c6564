//! Sets of shapes, written as `--shapes` has them.
//!
//! From oneDNN's `inputs/bnorm`, MIOpen's `bn_test_data.hpp`, FlagGems, cuDNN's samples, ncnn's `test_batchnorm.cpp` and
//! PyTorch's tests.

/// The headline set; the second part only where memory and cache are a GPU's.
const HEADLINE: [&str; 8] = [
    "32x64x56x56:f32",
    "32x256x28x28:f32",
    "32x512x7x7:f32",
    "256x1024:f32",
    "32x56x56x64:last:f32",
    "32x28x28x256:last:f32",
    "32x2048x7x7:f16",
    "8x40x40x320:last:bf16",
];
const BEYOND_CACHE: [&str; 6] = [
    "256x64x56x56:f32",
    "256x256x56x56:f32",
    "256x56x56x64:last:f32",
    "256x512x28x28:f16",
    "256x2048x7x7:f16",
    "256x64x112x112:bf16",
];

/// The batch norm layers of ResNet-50: channels, height and width, how often.
pub const RESNET50: [(usize, usize, usize); 9] = [
    (64, 112, 1),
    (64, 56, 6),
    (256, 56, 4),
    (128, 28, 8),
    (512, 28, 5),
    (256, 14, 12),
    (1024, 14, 7),
    (512, 7, 6),
    (2048, 7, 4),
];

const RESNET50_BATCHES: [usize; 6] = [1, 32, 50, 96, 128, 256];

/// Channels, height and width, at a batch of 96.
const INCEPTION_V3: [(usize, usize); 15] = [
    (32, 149),
    (32, 147),
    (64, 147),
    (80, 73),
    (192, 71),
    (96, 35),
    (64, 35),
    (48, 35),
    (160, 17),
    (192, 17),
    (384, 17),
    (128, 17),
    (320, 8),
    (384, 8),
    (448, 8),
];

const OTHERS: [&str; 51] = [
    // CosmicTagger.
    "4x8x640x1024",
    "4x16x320x512",
    "4x24x160x256",
    "4x32x80x128",
    "4x40x40x64",
    "4x48x20x32",
    "4x56x10x16",
    "4x168x10x16",
    "4x256x10x16",
    // PointNet.
    "16x512",
    "16x256",
    // cuDNN.
    "32x256x14x14",
    "4x32x16x16",
    // Channels last.
    "32x56x56x64:last",
    "32x28x28x256:last",
    "8x40x40x320:last",
    // Odd ones.
    "256x1024",
    "1x32x30",
    "32x128x10",
    "32x27x7",
    "9x128x1",
    "1x257x28x28",
    "1x1024x28x17",
    "5x33x27x27",
    "4x200x17x16",
    "1x19x4x6x6",
    "2x251x28x28",
    "8x322x16x16",
    "88x600x16x16",
    "88x800x16x16",
    "88x900x16x16",
    "88x980x16x16",
    "2x128x2x2",
    "2x1024x2x2",
    "64x256x28x28",
    "16x8x128x256",
    "16x16x8x88",
    "20x6x65536",
    "128x2048x4x4",
    "3072x64x112x112",
    "6x7x16",
    "3x5x13",
    "6x16",
    "7x15",
    "2x64x50x50",
    "131072x1",
    "160000x256",
    "65535x256x5",
    "880801x256x5",
    "131070x2048",
    "880801x64x4x4",
];

/// The headline set, of what a software adapter can do in reasonable time.
pub fn headline(software: bool) -> Vec<String> {
    let beyond = BEYOND_CACHE.iter().filter(|_| !software);
    HEADLINE
        .iter()
        .chain(beyond)
        .map(ToString::to_string)
        .collect()
}

/// The different layers of ResNet-50 at one batch.
pub fn resnet50(batch: usize) -> Vec<String> {
    let layer =
        |(channels, side, _): (usize, usize, usize)| format!("{batch}x{channels}x{side}x{side}");
    RESNET50.into_iter().map(layer).collect()
}

/// All shapes that count, each once, without types.
pub fn all() -> Vec<String> {
    let inception = |(channels, side)| format!("96x{channels}x{side}x{side}");
    let mut shapes: Vec<String> = RESNET50_BATCHES.into_iter().flat_map(resnet50).collect();
    shapes.extend(INCEPTION_V3.into_iter().map(inception));
    shapes.extend(OTHERS.map(str::to_owned));
    shapes
}

/// One shape at growing batches, from 10⁶ to 5·10⁸ elements (10⁸ on a software adapter), in both layouts.
pub fn scaling(software: bool) -> Vec<String> {
    let most = if software { 500 } else { 2500 };
    let batches = [5, 16, 50, 158, 500, 1580, 2491];
    let batches = batches.into_iter().filter(move |&batch| batch <= most);
    let shapes = batches.flat_map(|batch| {
        [
            format!("{batch}x64x56x56"),
            format!("{batch}x56x56x64:last"),
        ]
    });
    shapes.collect()
}
