// From exact gradient sums to parameter gradients and the coefficients of the input's gradient. For kernels that bind
// `grad_affine` (weight, bias).

// dγ and dβ of one statistic, and dx = A·(dz - E) + B·(x - κ) + D.
struct Gradient {
    weight: f32,
    bias: f32,
    coefficients: vec4<f32>, // A, B, D, E
}

// From the exact sums; `statistics` is (mean - κ, its remainder, invstd, γ), and m is how many values count.
fn gradient_of(sum_dz: Pair, sum_dz_x: Pair, statistics: vec4<f32>, m: f32) -> Gradient {
    let shifted = multiply(sum_dz, vec4(-statistics.x));
    let centred = add(add_pairs(sum_dz_x, shifted), vec4(-statistics.y * sum_dz.high.x));
    let invstd = statistics.z;
    // Where invstd is 0 by definition, x̂ is too, whatever the sums overflowed to.
    let weight = select(invstd * (centred.high.x + centred.low.x), 0.0, invstd == 0.0);
    let bias = sum_dz.high.x + sum_dz.low.x;
    let a = statistics.w * invstd;
    if has(FROZEN_STATISTICS) || m == 0.0 {
        // The statistics do not depend on the input; nor do they where nothing counts.
        return Gradient(weight, bias, vec4(a, 0.0, 0.0, 0.0));
    }
    let e = divide(sum_dz, vec4(m));
    let b = -a * invstd * (weight / m);
    let d = -b * (statistics.x + statistics.y) - a * e.low.x;
    return Gradient(weight, bias, vec4(a, b, d, e.high.x));
}

fn write_gradients(channel: u32, weight: f32, bias: f32) {
    if has(ACCUMULATE) {
        grad_affine[channel] += weight;
        grad_affine[params.channels + channel] += bias;
    } else {
        grad_affine[channel] = weight;
        grad_affine[params.channels + channel] = bias;
    }
}
