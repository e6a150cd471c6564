// From the moments of one statistic to what is saved and to running statistics. For kernels that bind `running` (mean,
// variance, batches tracked) and `saved` (K, δ, δ's remainder, invstd).

struct Moments {
    count: f32,
    pivot: f32, // the mean rounded to f32
    delta: f32, // what that lacks, and what that lacks
    delta_low: f32,
    m2: f32,    // in params.square_unit
}

// K + δ split anew, K the mean rounded to f32 and δ what that lacks, so that x - K is small wherever x is near the mean:
// sums of it keep their digits.
fn split_anew(count: f32, pivot: f32, delta: Pair, m2: f32) -> Moments {
    let mean = two_sum(vec4(pivot), delta.high);
    let rest = two_sum(mean.low, delta.low);
    if is_nan(count) {
        return Moments(count, count, 0.0, 0.0, count); // the mask holds something else than 0 and 1
    }
    if !is_finite(mean.high.x) {
        return Moments(count, mean.high.x, 0.0, 0.0, m2);
    }
    return Moments(count, mean.high.x, rest.high.x, rest.low.x, m2);
}

// The moments of values whose sums about a pivot are these pairs, which hold the same in all components.
fn moments_of(count: f32, pivot: f32, first: Pair, second: Pair) -> Moments {
    let delta = divide(first, vec4(max(count, 1.0)));
    let m2 = max(0.0, (second.high.x - first.high.x * (delta.high.x * params.square_unit)) + second.low.x);
    return split_anew(count, pivot, delta, select(infinity(), m2, is_finite(second.high.x)));
}

fn variance_of(m: Moments) -> f32 {
    return select(not_a_number(), m.m2 / max(m.count, 1.0) / params.square_unit, is_finite(m.pivot));
}

// Where a mask hides everything, mean and variance are 0, and the output is the bias.
fn invstd_of(m: Moments) -> f32 {
    return select(inverse_std(variance_of(m)), 0.0, m.count == 0.0);
}

fn write_saved(statistic: u32, m: Moments, invstd: f32) {
    if has(HAS_SAVED) {
        saved[statistic] = m.pivot;
        saved[params.statistics + statistic] = m.delta;
        saved[2u * params.statistics + statistic] = m.delta_low;
        saved[3u * params.statistics + statistic] = invstd;
    }
}

fn update_running(channel: u32, m: Moments) {
    if !has(HAS_RUNNING) {
        return;
    }
    let batches = running[2u * params.channels + channel] + 1u;
    var weight_new = params.weight_new;
    var weight_old = params.weight_old;
    if has(CUMULATIVE) {
        weight_new = 1.0 / f32(batches);
        weight_old = 1.0 - weight_new;
    }
    let old_mean = bitcast<f32>(running[channel]);
    let old_variance = bitcast<f32>(running[params.channels + channel]);
    let bessel = select(1.0, m.count / (m.count - 1.0), has(UNBIASED) && m.count > 1.0);
    let mean = weight_old * old_mean + weight_new * (m.pivot + m.delta);
    let variance = weight_old * old_variance + weight_new * (variance_of(m) * bessel);
    running[channel] = bitcast<u32>(mean);
    running[params.channels + channel] = bitcast<u32>(variance);
    running[2u * params.channels + channel] = batches;
}
