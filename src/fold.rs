//! Folding: batch norm's inference form taken into the weights and bias of the layer before it, on the host.

use crate::{Error, Result};

/// The inference form of a batch norm, `y = (x - μ)·γ/√(σ² + ε) + β`, to be folded into the linear or convolution
/// layer that computes x: one pass less at inference, and no statistics to carry.
///
/// With `scale = γ/√(σ² + ε)` per output channel, the layer's weights and bias become `W' = W·scale` and
/// `b' = (b - μ)·scale + β`. Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
/// Integer-Arithmetic-Only Inference" (2018), section 3.2, for the weights; the bias follows.
///
/// That holds where nothing stands between the two: no activation, no residual, no dropout that is still active. Where
/// the batch norm comes first, zero padding of the layer after it breaks it, and there is no method for that here.
///
/// Everything is computed in f64 and rounded once. Where |μ| is large against σ, the folded layer is less accurate than
/// the two of them: it loses |μ|/σ · 2⁻²³ in f32, because its output is a small difference of large numbers.
///
/// σ² + ε = 0 or beyond f32 gives scale 0 and so β, as everywhere in this crate. A NaN stays in its channel. A result
/// beyond the range of its type is infinite.
///
/// ```
/// use wgpu_batchnorm::{Fold, WeightLayout};
///
/// // A convolution from 1 channel to 2 with kernels of 1×1, and the batch norm after it.
/// let (mut weight, bias) = ([2.0f32, 3.0], [0.5f32, 0.5]);
/// let fold = Fold::new(&[1.0f32, -1.0], &[4.0, 1.0], 0.0).affine(&[1.0, 10.0], &[0.0, 7.0]);
/// let bias = fold.apply(&mut weight, &[2, 1, 1, 1], WeightLayout::OutFirst, Some(&bias))?;
/// assert_eq!(weight, [1.0, 30.0]);
/// assert_eq!(bias, [-0.25, 22.0]);
/// # Ok::<(), wgpu_batchnorm::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Fold<'a, T> {
    mean: &'a [T],
    variance: &'a [T],
    eps: f64,
    weight: Option<&'a [T]>,
    bias: Option<&'a [T]>,
}

/// Where a layer's weights have their output channels. All are contiguous and row-major; `k...` stands for the kernel's
/// dimensions, of any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WeightLayout {
    /// `[out, ...]`. PyTorch and ONNX: linear `[out, in]`, convolution `[out, in/groups, k...]`, depthwise convolution
    /// `[channels·multiplier, 1, k...]`.
    OutFirst,
    /// `[..., out]`. Keras, TensorFlow and Flax: dense `[in, out]`, convolution `[k..., in/groups, out]`.
    OutLast,
    /// `[in, out/groups, k...]`, a transposed convolution of PyTorch or ONNX. A group is a run of `in/groups` input
    /// channels; the output channels of group g are those from `g·out/groups`.
    Transposed {
        /// The layer's groups; 1 where it has none.
        groups: usize,
    },
    /// `[k..., out, in]`, a transposed convolution of Keras or TensorFlow.
    KerasTransposed,
    /// `[k..., channels, multiplier]`, a depthwise convolution of Keras or TensorFlow. Output channel
    /// `c·multiplier + j` comes from input channel c.
    KerasDepthwise,
}

/// The types that [`Fold`] takes: f32 and f64.
pub trait Real: Copy + Into<f64> + sealed::Sealed {
    /// The nearest value of this type.
    fn from_f64(value: f64) -> Self;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

impl Real for f32 {
    fn from_f64(value: f64) -> Self {
        value as f32
    }
}

impl Real for f64 {
    fn from_f64(value: f64) -> Self {
        value
    }
}

/// Weights as rows of `inner` values, `per` rows for each of `outer` indices. A row belongs to one output channel.
struct Rows {
    outer: usize,
    per: usize,
    inner: usize,
    groups: usize,
}

impl Rows {
    fn channels(&self) -> usize {
        self.per * self.groups
    }

    fn channel_of(&self, row: usize) -> usize {
        let group = row / self.per / (self.outer / self.groups);
        group * self.per + row % self.per
    }
}

impl<'a, T: Real> Fold<'a, T> {
    /// The running mean and variance of a batch norm, `[channels]` each, and its ε (1e-5 in PyTorch, 1e-3 in Keras), with
    /// γ = 1 and β = 0. Nothing is checked yet.
    pub fn new(mean: &'a [T], variance: &'a [T], eps: f64) -> Self {
        Fold {
            mean,
            variance,
            eps,
            weight: None,
            bias: None,
        }
    }

    /// γ and β, `[channels]` each.
    pub fn affine(self, weight: &'a [T], bias: &'a [T]) -> Self {
        self.weight(weight).bias(bias)
    }

    /// γ, `[channels]`.
    pub fn weight(mut self, weight: &'a [T]) -> Self {
        self.weight = Some(weight);
        self
    }

    /// β, `[channels]`.
    pub fn bias(mut self, bias: &'a [T]) -> Self {
        self.bias = Some(bias);
        self
    }

    /// Folds the batch norm into a layer's weights, in place, and returns the bias that the layer has from now on,
    /// `[channels]`. The layer's own bias is 0 where it has none.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::Argument`] for a length, a shape, groups or a variance that cannot be;
    /// [`Error::Eps`]. The weights are then as they were.
    pub fn apply<W: Real>(
        &self,
        weight: &mut [W],
        shape: &[usize],
        layout: WeightLayout,
        bias: Option<&[W]>,
    ) -> Result<Vec<W>> {
        let scale = self.scale()?;
        let rows = rows(shape, layout, weight.len())?;
        if rows.channels() != scale.len() {
            return Err(Error::Argument {
                tensor: "layer weight",
                problem: format!(
                    "shape {shape:?} as {layout:?} has {} output channels, but the batch norm has {}",
                    rows.channels(),
                    scale.len()
                ),
                remedy:
                    "give the layout of these weights, and the batch norm that follows this layer"
                        .into(),
            });
        }
        check_length("layer bias", bias, scale.len())?;

        for (index, row) in weight.chunks_exact_mut(rows.inner).enumerate() {
            let scale = scale[rows.channel_of(index)];
            for w in row {
                *w = W::from_f64((*w).into() * scale);
            }
        }
        Ok(self.shifted(&scale, bias))
    }

    /// `(scale, shift)`, `[channels]` each, with `y = x·scale + shift`: for pipelines that apply batch norm in kernels of
    /// their own.
    ///
    /// That form loses |μ|/σ · 2⁻²³ in f32: a mean of 10⁴ standard deviations leaves three digits. The kernels of this
    /// crate never use it; they compute `(x - K)·scale + shift` with K near the mean.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Argument`] for a variance that is negative, and [`Error::Eps`].
    pub fn scale_shift(&self) -> Result<(Vec<T>, Vec<T>)> {
        let scale = self.scale()?;
        let shift = self.shifted::<T>(&scale, None);
        Ok((scale.into_iter().map(T::from_f64).collect(), shift))
    }

    /// `γ/√(σ² + ε)`, after every check of the batch norm.
    fn scale(&self) -> Result<Vec<f64>> {
        if !(self.eps >= 0.0 && self.eps <= f64::from(f32::MAX)) {
            return Err(Error::Eps { given: self.eps });
        }
        let channels = self.mean.len();
        if channels == 0 {
            return Err(Error::Argument {
                tensor: "running_mean",
                problem: "it is empty".into(),
                remedy: "give one value per channel".into(),
            });
        }
        check_length("running_var", Some(self.variance), channels)?;
        check_length("batch norm weight", self.weight, channels)?;
        check_length("batch norm bias", self.bias, channels)?;
        if let Some((problem, remedy)) = negative(self.variance) {
            return Err(Error::Argument {
                tensor: "running_var",
                problem,
                remedy: remedy.into(),
            });
        }
        let invstd = self.variance.iter().map(|&variance| {
            let v: f64 = variance.into() + self.eps;
            if v == 0.0 || v > f64::from(f32::MAX) {
                0.0
            } else {
                1.0 / v.sqrt()
            }
        });
        Ok(match self.weight {
            None => invstd.collect(),
            Some(weight) => invstd.zip(weight).map(|(i, &w)| i * w.into()).collect(),
        })
    }

    /// `(b - μ)·scale + β`.
    fn shifted<W: Real>(&self, scale: &[f64], bias: Option<&[W]>) -> Vec<W> {
        let at = |c: usize| {
            let before: f64 = bias.map_or(0.0, |bias| bias[c].into());
            let after: f64 = self.bias.map_or(0.0, |bias| bias[c].into());
            W::from_f64((before - self.mean[c].into()) * scale[c] + after)
        };
        (0..scale.len()).map(at).collect()
    }
}

fn check_length<T>(tensor: &'static str, vector: Option<&[T]>, channels: usize) -> Result<()> {
    match vector {
        Some(vector) if vector.len() != channels => Err(Error::Shape {
            tensor,
            given: vec![vector.len()],
            expected: vec![channels],
        }),
        _ => Ok(()),
    }
}

/// What is wrong with a variance and what to do, where one is negative. A NaN may pass: a channel that diverged is still
/// a state, and the NaN stays in it.
pub(crate) fn negative<T: Real>(variance: &[T]) -> Option<(String, &'static str)> {
    let (channel, given) =
        (variance.iter().map(|&v| v.into()).enumerate()).find(|(_, v)| *v < 0.0)?;
    let remedy = "a variance is 0 or more; give σ² and neither its logarithm nor its inverse";
    Some((format!("channel {channel} has variance {given}"), remedy))
}

fn rows(shape: &[usize], layout: WeightLayout, length: usize) -> Result<Rows> {
    let refuse = |problem: String, remedy: &str| {
        Err(Error::Argument {
            tensor: "layer weight",
            problem,
            remedy: remedy.into(),
        })
    };
    let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    if elements != Some(length) {
        let elements = elements.map_or("more than can be addressed".into(), |n| n.to_string());
        return refuse(
            format!("the slice has {length} elements, but shape {shape:?} means {elements}"),
            "give the whole tensor and its shape",
        );
    }
    if length == 0 {
        return refuse(
            format!("shape {shape:?} has no elements"),
            "give at least one value per output channel",
        );
    }
    let (outer, per, inner, groups) = match (layout, shape) {
        (WeightLayout::OutFirst, [out, ..]) => (1, *out, length / out, 1),
        (WeightLayout::OutLast, [.., out]) => (length / out, *out, 1, 1),
        (WeightLayout::Transposed { groups }, [input, per, ..]) => {
            if groups == 0 || !input.is_multiple_of(groups) {
                return refuse(
                    format!(
                        "{groups} groups do not divide the {input} input channels of shape {shape:?}"
                    ),
                    "give the groups that the layer has, 1 where it has none",
                );
            }
            (*input, *per, length / input / per, groups)
        }
        (WeightLayout::KerasTransposed, [.., out, input]) => {
            (length / out / input, *out, *input, 1)
        }
        (WeightLayout::KerasDepthwise, [.., channels, multiplier]) => {
            let out = channels * multiplier;
            (length / out, out, 1, 1)
        }
        _ => {
            return refuse(
                format!(
                    "shape {shape:?} has {} axes, too few for {layout:?}",
                    shape.len()
                ),
                "give the shape of the layer's weights with all axes",
            );
        }
    };
    Ok(Rows {
        outer,
        per,
        inner,
        groups,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers in [-1, 1) that repeat from run to run.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> f64 {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1);
            (self.0 >> 40) as f64 / f64::from(1 << 23) - 1.0
        }

        fn vector<T: Real>(&mut self, n: usize) -> Vec<T> {
            (0..n).map(|_| T::from_f64(self.next())).collect()
        }

        fn positive<T: Real>(&mut self, n: usize) -> Vec<T> {
            (0..n)
                .map(|_| T::from_f64(self.next().abs() + 0.1))
                .collect()
        }
    }

    /// What a layer does with its weights and bias: a plain loop. Gives `[out channels][values]`.
    type Layer<'a> = &'a dyn Fn(&[f64], &[f64]) -> Vec<Vec<f64>>;

    fn wide<T: Real>(values: &[T]) -> Vec<f64> {
        values.iter().map(|&v| v.into()).collect()
    }

    /// The layer and the batch norm after it, against the folded layer, with and without a bias and γ, β.
    fn agree<T: Real>(
        bound: f64,
        shape: &[usize],
        layout: WeightLayout,
        out: usize,
        layer: Layer<'_>,
    ) {
        const EPS: f64 = 1e-3;
        let mut random = Random(shape.iter().fold(out as u64, |h, &d| h * 31 + d as u64));
        let (mean, variance) = (random.vector::<T>(out), random.positive::<T>(out));
        let (gamma, beta) = (random.vector::<T>(out), random.vector::<T>(out));
        let weight = random.vector::<T>(shape.iter().product());
        let bias = random.vector::<T>(out);
        for (affine, bias) in [
            (false, None),
            (false, Some(&bias)),
            (true, None),
            (true, Some(&bias)),
        ] {
            let mut fold = Fold::new(&mean, &variance, EPS);
            if affine {
                fold = fold.affine(&gamma, &beta);
            }
            let before = bias.map_or(vec![0.0; out], |bias| wide(bias));
            let want = layer(&wide(&weight), &before);
            let mut folded = weight.clone();
            let after = fold
                .apply(&mut folded, shape, layout, bias.map(|b| &b[..]))
                .unwrap();
            let got = layer(&wide(&folded), &wide(&after));
            assert_eq!((got.len(), want.len()), (out, out));
            let (scale, shift) = fold.scale_shift().unwrap();
            for c in 0..out {
                let (gamma, beta) = if affine {
                    (gamma[c].into(), beta[c].into())
                } else {
                    (1.0, 0.0)
                };
                assert_eq!(got[c].len(), want[c].len());
                assert!(!got[c].is_empty());
                for (got, x) in got[c].iter().zip(&want[c]) {
                    let want =
                        (x - mean[c].into()) / (variance[c].into() + EPS).sqrt() * gamma + beta;
                    let near = |what: &str, got: f64| {
                        assert!(
                            (got - want).abs() <= bound * want.abs().max(1.0),
                            "{what}, {layout:?} {shape:?}, channel {c}: {got}, wanted {want}"
                        )
                    };
                    near("folded", *got);
                    near("scale and shift", x * scale[c].into() + shift[c].into());
                }
            }
        }
    }

    fn agree_in_both(shape: &[usize], layout: WeightLayout, out: usize, layer: Layer<'_>) {
        agree::<f64>(1e-12, shape, layout, out, layer);
        agree::<f32>(1e-6, shape, layout, out, layer);
    }

    const SIDE: usize = 5;
    const K: usize = 3;

    /// An image `[channels, SIDE, SIDE]`.
    fn image(channels: usize) -> Vec<f64> {
        Random(7).vector(channels * SIDE * SIDE)
    }

    /// The weight that takes input channel `i` of a group to output channel `o`, at row and column of the kernel.
    type At<'a> = &'a dyn Fn(usize, usize, usize, usize) -> usize;

    /// A convolution without padding; `at(i, o, y, x)` with i within the group of o.
    fn convolution(
        channels: usize,
        out: usize,
        groups: usize,
        at: At<'_>,
        weight: &[f64],
        bias: &[f64],
    ) -> Vec<Vec<f64>> {
        let image = image(channels);
        let per_group = channels / groups;
        let side = SIDE - K + 1;
        let mut output = vec![vec![0.0; side * side]; out];
        for o in 0..out {
            for y in 0..side {
                for x in 0..side {
                    let mut sum = bias[o];
                    for i in 0..per_group {
                        let channel = o / (out / groups) * per_group + i;
                        for dy in 0..K {
                            for dx in 0..K {
                                sum += weight[at(i, o, dy, dx)]
                                    * image[(channel * SIDE + y + dy) * SIDE + x + dx];
                            }
                        }
                    }
                    output[o][y * side + x] = sum;
                }
            }
        }
        output
    }

    /// A transposed convolution of stride 2; `at(i, j, y, x)` with j within the group of i.
    fn transposed(
        channels: usize,
        out: usize,
        groups: usize,
        at: At<'_>,
        weight: &[f64],
        bias: &[f64],
    ) -> Vec<Vec<f64>> {
        let image = image(channels);
        let side = (SIDE - 1) * 2 + K;
        let mut output: Vec<_> = bias.iter().map(|&b| vec![b; side * side]).collect();
        for i in 0..channels {
            let group = i / (channels / groups);
            for j in 0..out / groups {
                for y in 0..SIDE {
                    for x in 0..SIDE {
                        for dy in 0..K {
                            for dx in 0..K {
                                output[group * (out / groups) + j]
                                    [(2 * y + dy) * side + 2 * x + dx] +=
                                    weight[at(i, j, dy, dx)] * image[(i * SIDE + y) * SIDE + x];
                            }
                        }
                    }
                }
            }
        }
        output
    }

    #[test]
    fn linear_layers_fold() {
        let (inputs, out) = (7, 4);
        let x: Vec<f64> = Random(3).vector(inputs);
        let dot = |at: &dyn Fn(usize, usize) -> usize, w: &[f64], b: &[f64]| -> Vec<Vec<f64>> {
            let sum = |o| (0..inputs).map(|i| w[at(o, i)] * x[i]).sum::<f64>();
            (0..out).map(|o| vec![b[o] + sum(o)]).collect()
        };
        let pytorch = |w: &[f64], b: &[f64]| dot(&|o, i| o * inputs + i, w, b);
        agree_in_both(&[out, inputs], WeightLayout::OutFirst, out, &pytorch);
        let keras = |w: &[f64], b: &[f64]| dot(&|o, i| i * out + o, w, b);
        agree_in_both(&[inputs, out], WeightLayout::OutLast, out, &keras);
    }

    #[test]
    fn convolutions_fold() {
        let (channels, out) = (4, 6);
        for groups in [1, 2] {
            let per = channels / groups;
            let at = |i, o, y, x| ((o * per + i) * K + y) * K + x;
            let layer = |w: &[f64], b: &[f64]| convolution(channels, out, groups, &at, w, b);
            agree_in_both(&[out, per, K, K], WeightLayout::OutFirst, out, &layer);
            let at = |i, o, y, x| ((y * K + x) * per + i) * out + o;
            let layer = |w: &[f64], b: &[f64]| convolution(channels, out, groups, &at, w, b);
            agree_in_both(&[K, K, per, out], WeightLayout::OutLast, out, &layer);
        }
    }

    #[test]
    fn depthwise_convolutions_fold() {
        let (channels, multiplier) = (3, 2);
        let out = channels * multiplier;
        let at = |_, o, y, x| (o * K + y) * K + x;
        let layer = |w: &[f64], b: &[f64]| convolution(channels, out, channels, &at, w, b);
        agree_in_both(&[out, 1, K, K], WeightLayout::OutFirst, out, &layer);
        // Keras: the last two axes are the channel and which of its outputs.
        let at =
            |_, o, y, x| ((y * K + x) * channels + o / multiplier) * multiplier + o % multiplier;
        let layer = |w: &[f64], b: &[f64]| convolution(channels, out, channels, &at, w, b);
        agree_in_both(
            &[K, K, channels, multiplier],
            WeightLayout::KerasDepthwise,
            out,
            &layer,
        );
    }

    #[test]
    fn transposed_convolutions_fold() {
        let (channels, out) = (4, 6);
        for groups in [1, 2, 4] {
            let out = if groups == 4 { 8 } else { out };
            let per = out / groups;
            let at = |i, j, y, x| ((i * per + j) * K + y) * K + x;
            let layer = |w: &[f64], b: &[f64]| transposed(channels, out, groups, &at, w, b);
            agree_in_both(
                &[channels, per, K, K],
                WeightLayout::Transposed { groups },
                out,
                &layer,
            );
        }
        let at = |i, j, y, x| ((y * K + x) * out + j) * channels + i;
        let layer = |w: &[f64], b: &[f64]| transposed(channels, out, 1, &at, w, b);
        agree_in_both(
            &[K, K, out, channels],
            WeightLayout::KerasTransposed,
            out,
            &layer,
        );
    }

    /// As in the kernels: no spread at all, or one beyond f32, gives β.
    #[test]
    fn degenerate_variances_give_the_bias() {
        let mean = [3.0f64, 3.0, 3.0, 3.0, 3.0];
        let variance = [0.0, -0.0, f64::INFINITY, 1e39, f64::NAN];
        let (gamma, beta) = ([2.0; 5], [0.5; 5]);
        let fold = Fold::new(&mean, &variance, 0.0).affine(&gamma, &beta);
        let mut weight = [1.0f64; 10];
        let bias = fold
            .apply(
                &mut weight,
                &[5, 2],
                WeightLayout::OutFirst,
                Some(&[4.0; 5]),
            )
            .unwrap();
        assert_eq!((&weight[..8], &bias[..4]), (&[0.0; 8][..], &[0.5; 4][..]));
        assert!(weight[8..].iter().all(|w| w.is_nan()) && bias[4].is_nan());
        let (scale, shift) = fold.scale_shift().unwrap();
        assert_eq!((&scale[..4], &shift[..4]), (&[0.0; 4][..], &[0.5; 4][..]));
        assert!(scale[4].is_nan() && shift[4].is_nan());
    }

    fn refused(
        fold: Fold<'_, f32>,
        shape: &[usize],
        layout: WeightLayout,
        bias: Option<&[f32]>,
        wanted: &[&str],
    ) {
        let mut weight = [1.0f32; 12];
        let error = fold
            .apply(&mut weight, shape, layout, bias)
            .unwrap_err()
            .to_string();
        assert!(
            wanted.iter().all(|w| error.contains(w)),
            "{error:?} lacks one of {wanted:?}"
        );
        assert!(!error.contains('\n'), "{error:?}");
        assert_eq!(
            weight, [1.0; 12],
            "{error:?} came after the weights were changed"
        );
    }

    #[test]
    fn bad_arguments_are_named() {
        use WeightLayout::{KerasDepthwise, KerasTransposed, OutFirst, OutLast, Transposed};
        let (zeros, ones) = ([0.0f32; 4], [1.0f32; 4]);
        let good = Fold::new(&zeros, &ones, 1e-5);
        let mut weight = [1.0f32; 12];
        assert!(good.apply(&mut weight, &[4, 3], OutFirst, None).is_ok());

        for eps in [-1e-5, f64::NAN, f64::INFINITY, 1e39] {
            let fold = Fold::new(&zeros, &ones, eps);
            refused(fold, &[4, 3], OutFirst, None, &["eps"]);
            assert_eq!(
                fold.scale_shift().unwrap_err().to_string(),
                Error::Eps { given: eps }.to_string()
            );
        }
        refused(
            Fold::new(&[], &[], 0.0),
            &[4, 3],
            OutFirst,
            None,
            &["running_mean", "empty"],
        );
        refused(
            Fold::new(&zeros, &ones[1..], 0.0),
            &[4, 3],
            OutFirst,
            None,
            &["running_var", "[3]", "[4]"],
        );
        refused(
            good.weight(&ones[2..]),
            &[4, 3],
            OutFirst,
            None,
            &["batch norm weight", "[2]", "[4]"],
        );
        refused(
            good.bias(&[]),
            &[4, 3],
            OutFirst,
            None,
            &["batch norm bias", "[0]", "[4]"],
        );
        refused(
            good,
            &[4, 3],
            OutFirst,
            Some(&ones[..3]),
            &["layer bias", "[3]", "[4]"],
        );
        refused(
            Fold::new(&zeros, &[1.0, 1.0, -0.5, 1.0], 1.0),
            &[4, 3],
            OutFirst,
            None,
            &["running_var", "channel 2", "-0.5"],
        );

        refused(
            good,
            &[4, 4],
            OutFirst,
            None,
            &["layer weight", "12 elements", "means 16"],
        );
        refused(
            good,
            &[usize::MAX, 2, 0],
            OutFirst,
            None,
            &["layer weight", "means"],
        );
        refused(
            good,
            &[3, 4],
            OutFirst,
            None,
            &["layer weight", "3 output channels", "has 4"],
        );
        refused(
            good,
            &[4, 3],
            OutLast,
            None,
            &["layer weight", "OutLast", "3 output channels"],
        );
        refused(
            good,
            &[1, 1, 4, 3],
            KerasDepthwise,
            None,
            &["layer weight", "12 output channels"],
        );
        refused(
            good,
            &[1, 3, 4],
            KerasTransposed,
            None,
            &["layer weight", "3 output channels"],
        );
        refused(
            good,
            &[3, 4],
            Transposed { groups: 3 },
            None,
            &["layer weight", "12 output channels"],
        );
        for groups in [0, 2, usize::MAX] {
            let groups_text = format!("{groups} groups");
            refused(
                good,
                &[3, 4],
                Transposed { groups },
                None,
                &["layer weight", &groups_text, "3 input"],
            );
        }
        for layout in [Transposed { groups: 1 }, KerasTransposed, KerasDepthwise] {
            refused(good, &[12], layout, None, &["layer weight", "1 axes"]);
        }
        for layout in [OutFirst, OutLast] {
            let error = good.apply(&mut [1.0f32], &[], layout, None).unwrap_err();
            assert!(error.to_string().contains("0 axes"), "{error}");
        }
        for shape in [[0, 3], [4, 0]] {
            let error = good
                .apply(&mut [0.0f32; 0], &shape, OutFirst, None)
                .unwrap_err();
            assert!(error.to_string().contains("no elements"), "{error}");
        }
    }
}
