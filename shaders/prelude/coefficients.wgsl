// From statistics to coefficients. For kernels that bind `affine` (weight, bias).
//
// Coefficients are (K, scale, shift, κ), so that y = (x - K)·scale + shift; for the gradients also (mean - κ, its
// remainder, invstd, weight). κ is K on a coarse grid. Where x has the bits of K or fewer, x - K rounds the same way for
// every x of one magnitude, and Σdz·(x - K) gathers that; x - κ is exact.

fn affine_of(statistic: u32) -> vec2<f32> {
    if has(HAS_AFFINE) {
        let channel = statistic % params.channels;
        return vec2(affine[channel], affine[params.channels + channel]);
    }
    return vec2(1.0, 0.0);
}

fn coefficients_from(weight_bias: vec2<f32>, pivot: f32, delta: f32, low: f32, invstd: f32) -> vec4<f32> {
    let scale = weight_bias.x * invstd;
    let shift = (weight_bias.y - delta * scale) - low * scale;
    let kappa = coarse(vec4(pivot), vec4(0.015625 / invstd)).x; // in steps of some 2⁻⁸ standard deviations
    return vec4(pivot, scale, shift, kappa);
}

fn gradient_statistics(weight: f32, pivot: f32, delta: f32, low: f32, invstd: f32, kappa: f32) -> vec4<f32> {
    let moved = two_sum(vec4(pivot), vec4(-kappa));
    let rest = add_pairs(moved, Pair(vec4(delta), vec4(low)));
    return vec4(rest.high.x, rest.low.x, invstd, weight);
}
