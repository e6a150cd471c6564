//! The matrix of cases: shapes, operations and walks in full; what is fused, stored and shared pairwise, or in full too.

use std::collections::HashSet;

use wgpu_batchnorm::{Activation, Choices, Dtype, Momentum, Preset, Problem, Strategy, Walk};

use super::compare::{Case, Data, Gradient, Operation, Random};

/// Shapes that each bring a memory pattern of their own.
const SHAPES: [([usize; 3], &str); 14] = [
    ([4, 8, 64], "rows of whole vectors"),
    ([32, 27, 7], "odd rows, odd total"),
    ([6, 5, 49], "7x7 planes: rows at every alignment"),
    ([9, 128, 1], "channels last"),
    ([33, 19, 1], "channels last, odd"),
    ([1001, 1, 1], "one channel, tall"),
    ([2, 5000, 1], "many channels, two values"),
    ([1, 5, 1000], "feature-major"),
    ([500, 6, 2], "rows shorter than a vector"),
    ([70, 16, 5], "rows of one vector and a bit"),
    ([2, 3, 1], "six elements"),
    ([2, 251, 784], "one row a piece"),
    ([1, 1, 2], "two values in all"),
    ([5000, 12, 4], "rows of one vector"),
];

/// Those of them on which the full matrix takes every combination: the oddest of either layout.
const CROSSED: [[usize; 3]; 2] = [[32, 27, 7], [33, 19, 1]];

/// Data that break simpler methods.
const ADVERSARIAL: [Data; 14] = [
    Data::Normal(1e4, 1.0),
    Data::Normal(1e6, 1.0),
    Data::Normal(0.0, 1e-6),
    Data::Normal(0.0, 1e15),
    Data::Normal(0.0, 1e30),
    Data::Constant(0.1),
    Data::Constant(1e4),
    Data::Outlier(1e4, true),
    Data::Outlier(1e4, false),
    Data::Outlier(1e6, true),
    Data::Outlier(1e6, false),
    Data::Bimodal(5e3),
    Data::Ramp(1.0),
    Data::Ramp(1e4),
];

/// The activations, each with a slope that is no power of two where it has one.
pub const ACTIVATIONS: [Activation; 7] = Activation::ALL;

const PRESETS: [Preset; 4] = [
    Preset::Pytorch,
    Preset::Keras,
    Preset::Tensorflow,
    Preset::Onnx,
];

/// How the channels lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Values of a channel side by side: inner is more than 1.
    Planar,
    /// Channels side by side: inner is 1.
    ChannelsLast,
}

/// Which part of the matrix is wanted; `None` is all of it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Filter {
    /// One storage type.
    pub dtype: Option<Dtype>,
    /// One activation.
    pub activation: Option<Activation>,
    /// One layout.
    pub layout: Option<Layout>,
}

/// What is fused, stored and shared in a case, as digits: an index into the values of each feature.
type Digits = [usize; 9];

const DTYPE: usize = 0;
const ACTIVATION: usize = 1;
const RESIDUAL: usize = 2;
const AFFINE: usize = 3;
const MASK: usize = 4;
const IN_PLACE: usize = 5;
const GROUPS: usize = 6;
const PRESET: usize = 7;
const CUMULATIVE: usize = 8;
const RADIX: Digits = [3, 7, 2, 2, 2, 2, 2, 4, 2];

/// Where cases stand so far: pairs of features with each other, and with the operation, layout and walk, that have met.
struct Matrix {
    filter: Filter,
    random: Random,
    met: HashSet<[usize; 4]>,
    crossed: HashSet<(SubjectKey, Digits)>,
    cases: Vec<Case>,
    base: Choices,
}

/// What a case is about before its features are chosen.
#[derive(Clone, Copy)]
struct Subject {
    operation: Operation,
    shape: [usize; 3],
    walk: Walk,
    strategy: Strategy,
    data: Data,
    gradient: Gradient,
}

type SubjectKey = (Operation, [usize; 3], Walk, String);

/// Whether a pass can be one dispatch: vectors that are one channel's, or rows of whole vectors.
fn fuses([_, channels, inner]: [usize; 3], walk: Walk) -> bool {
    match walk {
        Walk::Planar => inner.is_multiple_of(4),
        Walk::Columns => inner == 1 && channels.is_multiple_of(4),
    }
}

const FUSED: [Strategy; 2] = [Strategy::Streaming, Strategy::Resident];

impl Subject {
    fn key(&self) -> SubjectKey {
        let data = format!("{:?} {:?} {}", self.data, self.gradient, self.strategy);
        (self.operation, self.shape, self.walk, data)
    }
}

impl Matrix {
    /// Only what makes sense together: everything else is another digit's place.
    fn sensible(&self, subject: &Subject, mut digits: Digits) -> Digits {
        let [outer, channels, inner] = subject.shape;
        if let Some(dtype) = self.filter.dtype {
            digits[DTYPE] = Dtype::ALL.iter().position(|d| *d == dtype).unwrap_or(0);
        }
        if let Some(activation) = self.filter.activation {
            digits[ACTIVATION] = ACTIVATIONS
                .iter()
                .position(|a| std::mem::discriminant(a) == std::mem::discriminant(&activation))
                .unwrap_or(0);
        }
        if matches!(subject.operation, Operation::Inference | Operation::Frozen) {
            digits[MASK] = 0; // running statistics were taken before
        }
        if subject.operation == Operation::Backward || subject.operation == Operation::Frozen {
            if digits[ACTIVATION] == 0 && digits[RESIDUAL] == 1 {
                digits[IN_PLACE] = 0; // grad_output is the residual's gradient too
            }
            digits[PRESET] = 0;
            digits[CUMULATIVE] = 0;
        }
        if outer * inner < 16 {
            digits[MASK] = 0; // not one value that counts and a variance of 0
        }
        if subject.strategy != Strategy::Split {
            digits[IN_PLACE] = 0; // runs split
            if subject.strategy == Strategy::Resident || subject.operation == Operation::Backward {
                digits[MASK] = 0; // refused, or runs split
            }
        }
        let half = outer / 2;
        let aligned = (half * channels * inner).is_multiple_of(4);
        if outer % 2 == 1 || half * inner < 2 || (subject.walk == Walk::Columns && !aligned) {
            digits[GROUPS] = 0;
        }
        digits
    }

    fn pairs(subject: &Subject, digits: &Digits) -> impl Iterator<Item = [usize; 4]> + use<> {
        let walk = usize::from(subject.walk == Walk::Columns);
        let layout = usize::from(subject.shape[2] == 1);
        let all: Vec<usize> = [subject.operation as usize, walk, layout]
            .into_iter()
            .chain(*digits)
            .collect();
        let n = all.len();
        (0..n).flat_map(move |i| {
            let all = all.clone();
            (i + 1..n).map(move |j| [i, all[i], j, all[j]])
        })
    }

    /// Adds the one of some random choices of features that brings most pairs together for the first time.
    fn add(&mut self, subject: Subject, fixed: &[(usize, usize)]) {
        let mut best: Option<(usize, Digits)> = None;
        for _ in 0..24 {
            let mut digits = RADIX.map(|radix| (self.random.uniform() * radix as f32) as usize);
            for &(feature, value) in fixed {
                digits[feature] = value;
            }
            let digits = self.sensible(&subject, digits);
            let new = Self::pairs(&subject, &digits).filter(|p| !self.met.contains(p));
            let new = new.count();
            if best.is_none_or(|(most, _)| new > most) {
                best = Some((new, digits));
            }
        }
        let Some((_, digits)) = best else { return };
        if !fixed.is_empty() && !self.crossed.insert((subject.key(), digits)) {
            return; // what makes no sense was turned into this one before
        }
        self.met.extend(Self::pairs(&subject, &digits));
        let [outer, channels, inner] = subject.shape;
        let groups = 1 + digits[GROUPS];
        let mut activation = ACTIVATIONS[digits[ACTIVATION]];
        if let (Activation::LeakyRelu(_), Some(wanted)) = (activation, self.filter.activation) {
            activation = wanted; // with its own slope
        }
        let mut problem = Problem::new(outer / groups, channels, inner)
            .groups(groups)
            .dtype(Dtype::ALL[digits[DTYPE]])
            .activation(activation)
            .preset(PRESETS[digits[PRESET]]);
        if digits[RESIDUAL] == 1 {
            problem = problem.with_residual();
        }
        if digits[MASK] == 1 {
            problem = problem.with_mask();
        }
        if digits[CUMULATIVE] == 1 {
            problem = problem.momentum(Momentum::Cumulative);
        }
        // 16 bits cannot hold what f32 can.
        if problem.dtype == Dtype::F16 && subject.data.largest() > 6e4 {
            problem = problem.dtype(Dtype::Bf16);
            if self.filter.dtype == Some(Dtype::F16) {
                return;
            }
        }
        let mut choices = self.base.clone().walk(subject.walk);
        choices.strategy = choices.strategy.or(Some(subject.strategy));
        self.cases.push(Case {
            operation: subject.operation,
            problem,
            data: subject.data,
            gradient: subject.gradient,
            affine: digits[AFFINE] == 0,
            in_place: digits[IN_PLACE] == 1,
            choices,
        });
    }
}

/// Every combination of type, activation, residual, mask and in place.
fn crossed(filter: Filter) -> impl Iterator<Item = [(usize, usize); 5]> {
    let dtypes = if filter.dtype.is_some() {
        1
    } else {
        RADIX[DTYPE]
    };
    let activations = if filter.activation.is_some() {
        1
    } else {
        RADIX[ACTIVATION]
    };
    (0..dtypes * activations * 8).map(move |n| {
        let (dtype, rest) = (n % dtypes, n / dtypes);
        let (activation, switches) = (rest % activations, rest / activations);
        [
            (DTYPE, dtype),
            (ACTIVATION, activation),
            (RESIDUAL, switches & 1),
            (MASK, switches >> 1 & 1),
            (IN_PLACE, switches >> 2),
        ]
    })
}

/// The cases of `check`: every shape with every operation and walk, several times, what is fused, stored and shared so
/// that every two features meet; where `full`, every combination of these on two odd shapes. Then the adversarial data.
pub fn cases(full: bool, base: &Choices, filter: Filter) -> Vec<Case> {
    let mut matrix = Matrix {
        filter,
        random: Random::new(2015),
        met: HashSet::new(),
        crossed: HashSet::new(),
        cases: Vec::new(),
        base: base.clone(),
    };
    let wanted = |shape: [usize; 3]| match filter.layout {
        None => true,
        Some(Layout::Planar) => shape[2] > 1,
        Some(Layout::ChannelsLast) => shape[2] == 1,
    };
    for (shape, _) in SHAPES.into_iter().filter(|(shape, _)| wanted(*shape)) {
        for operation in Operation::ALL {
            for walk in [Walk::Planar, Walk::Columns] {
                let subject = Subject {
                    operation,
                    shape,
                    walk,
                    strategy: Strategy::Split,
                    data: Data::Normal(0.5, 2.0),
                    gradient: Gradient::Normal,
                };
                let times = if full { 6 } else { 2 };
                (0..times).for_each(|_| matrix.add(subject, &[]));
                let trains = matches!(operation, Operation::Forward | Operation::Backward);
                if trains && fuses(shape, walk) && base.strategy.is_none() {
                    for strategy in FUSED {
                        let subject = Subject {
                            strategy,
                            ..subject
                        };
                        (0..times).for_each(|_| matrix.add(subject, &[]));
                    }
                }
                if full && CROSSED.contains(&shape) {
                    crossed(filter).for_each(|fixed| matrix.add(subject, &fixed));
                }
            }
        }
    }
    let shapes = [
        [32, 4, 1024],
        [8, 6, 343],
        [20000, 8, 1],
        [4099, 3, 1],
        [300, 8, 1],
    ];
    for (i, data) in ADVERSARIAL.into_iter().enumerate() {
        for (j, shape) in shapes.into_iter().enumerate() {
            if !wanted(shape) || (!full && (i + j) % 2 == 1) {
                continue;
            }
            let walk = if shape[2] == 1 {
                Walk::Columns
            } else {
                Walk::Planar
            };
            // Where there are several strategies, one after the other.
            let strategies = match fuses(shape, walk) && base.strategy.is_none() {
                true => [Strategy::Split, Strategy::Streaming, Strategy::Resident],
                false => [Strategy::Split; 3],
            };
            let mut add = |operation, gradient, turn: usize| {
                let subject = |strategy| Subject {
                    operation,
                    shape,
                    walk,
                    strategy,
                    data,
                    gradient,
                };
                if full {
                    let mut distinct = strategies.to_vec();
                    distinct.dedup();
                    for strategy in distinct {
                        let subject = subject(strategy);
                        (0..3).for_each(|dtype| matrix.add(subject, &[(DTYPE, dtype)]));
                    }
                } else {
                    matrix.add(subject(strategies[turn % 3]), &[]);
                }
            };
            add(Operation::Forward, Gradient::Normal, i);
            for (k, gradient) in [Gradient::Normal, Gradient::Ones, Gradient::Positive]
                .into_iter()
                .enumerate()
            {
                add(Operation::Backward, gradient, i + k + 1);
            }
        }
    }
    let mut cases = matrix.cases;
    if full {
        // Those that share kernels side by side, so that few kernels have to be kept at a time.
        cases.sort_by_cached_key(family);
    }
    cases
}

/// Cases of different families have few kernels in common.
pub fn family(case: &Case) -> (Operation, String) {
    let Case {
        operation,
        problem,
        choices,
        ..
    } = case;
    let Problem {
        dtype, activation, ..
    } = problem;
    let family = format!(
        "{activation} {dtype:?} {:?} {:?} {:?}",
        choices.device_type, choices.strategy, choices.walk
    );
    (*operation, family)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every two values of two features meet, in the short matrix already.
    #[test]
    fn every_two_features_meet() {
        let cases = cases(false, &Choices::default(), Filter::default());
        let features = |case: &Case| {
            let p = &case.problem;
            let activation = ACTIVATIONS.iter().position(|a| *a == p.activation);
            [
                case.operation as usize,
                p.dtype as usize,
                activation.unwrap_or(99),
                usize::from(p.residual),
                usize::from(case.affine),
                usize::from(p.mask),
                usize::from(case.in_place),
                p.groups - 1,
                usize::from(p.inner == 1),
            ]
        };
        let radix = [4, 3, 7, 2, 2, 2, 2, 2, 2];
        for i in 0..radix.len() {
            for j in i + 1..radix.len() {
                for (a, b) in (0..radix[i]).flat_map(|a| (0..radix[j]).map(move |b| (a, b))) {
                    // Inference (1) and frozen gradients (3) have no use for a mask.
                    let senseless = i == 0 && j == 5 && a % 2 == 1 && b == 1;
                    let met = cases.iter().any(|case| {
                        let f = features(case);
                        f[i] == a && f[j] == b
                    });
                    assert!(met || senseless, "feature {i} = {a} never meets {j} = {b}");
                }
            }
        }
    }
}
