// The activation, and the gradient that it lets through. Written so that NaN stays NaN, and without infinities on the way:
// comparisons with select, not min and max, which may drop a NaN.

const RELU: u32 = 1u;
const LEAKY_RELU: u32 = 2u;
const SILU: u32 = 3u;
const GELU: u32 = 4u;
const SIGMOID: u32 = 5u;
const TANH: u32 = 6u;

// e^-z, no larger than e^88.
fn decay(z: vec4<f32>) -> vec4<f32> {
    return exp(select(-z, vec4(88.0), z < vec4(-88.0)));
}

// 1/(1 + e^-z); 0 below -88, where it is less than the smallest normal number.
fn logistic(z: vec4<f32>) -> vec4<f32> {
    let zero = vec4(bitcast<f32>(params.zero)); // not a constant: -∞·0 is to stay NaN
    return select(1.0 / (1.0 + decay(z)), zero, z < vec4(-88.0));
}

// Whether z is 0 or less, by its bits, and so false for NaN: from `z < 0` one driver made max(z, 0), which drops NaN.
fn not_positive(z: vec4<f32>) -> vec4<bool> {
    let bits = bitcast<vec4<u32>>(z);
    return (bits == vec4(0u)) | ((bits >= vec4(0x80000000u)) & (bits <= vec4(0xff800000u)));
}

// tanh z: an odd polynomial near 0 (a minimax fit, relative error 2.8e-9), (1 - e^-2|z|)/(1 + e^-2|z|) beyond.
fn hyperbolic_tangent(z: vec4<f32>) -> vec4<f32> {
    let s = z * z;
    var p = vec4(-0.00589516);
    p = fma(p, s, vec4(0.020795973));
    p = fma(p, s, vec4(-0.05378383));
    p = fma(p, s, vec4(0.13331924));
    p = fma(p, s, vec4(-0.333333));
    let near = fma(z * s, p, z);
    let e = decay(2.0 * abs(z));
    let far = sign(z) * ((1.0 - e) / (1.0 + e));
    return select(far, near, abs(z) < vec4(0.6));
}

struct Normal {
    density: vec4<f32>,       // e^(-z²/2)
    distribution: vec4<f32>,  // Φ(z) = (1 + erf(z/√2))/2
}

// The upper tail is Φ(-|z|) = e^(-z²/2)·w·P(w) with w = 1/(1 + 0.3|z|); P by a minimax fit, relative error 3.4e-9 before
// rounding, so that Φ keeps its digits in the tail too. Beyond |z| = 18 both are 0 in f32.
fn normal(z: vec4<f32>) -> Normal {
    let a = select(abs(z), vec4(18.0), abs(z) > vec4(18.0));
    let density = exp(-0.5 * a * a);
    let w = 1.0 / fma(vec4(0.3), a, vec4(1.0));
    var p = vec4(-0.02059436);
    p = fma(p, w, vec4(0.11227189));
    p = fma(p, w, vec4(-0.22781378));
    p = fma(p, w, vec4(0.19122918));
    p = fma(p, w, vec4(-0.07894095));
    p = fma(p, w, vec4(0.09588543));
    p = fma(p, w, vec4(0.07848825));
    p = fma(p, w, vec4(0.11021317));
    p = fma(p, w, vec4(0.11957464));
    p = fma(p, w, vec4(0.11968654));
    let tail = density * w * p;
    return Normal(density, select(tail, 1.0 - tail, z > vec4(0.0)));
}

fn activate(z: vec4<f32>) -> vec4<f32> {
    if ACTIVATION == RELU {
        return bitcast<vec4<f32>>(select(bitcast<vec4<u32>>(z), vec4(0u), not_positive(z)));
    }
    if ACTIVATION == LEAKY_RELU {
        return select(z, params.slope * z, not_positive(z));
    }
    if ACTIVATION == SILU {
        return z * logistic(z);
    }
    if ACTIVATION == GELU {
        return z * normal(z).distribution;
    }
    if ACTIVATION == SIGMOID {
        return logistic(z);
    }
    if ACTIVATION == TANH {
        return hyperbolic_tangent(z);
    }
    return z;
}

// grad·act'(z)
fn activation_gradient(z: vec4<f32>, grad: vec4<f32>) -> vec4<f32> {
    if ACTIVATION == RELU {
        return select(grad, vec4(0.0), not_positive(z));
    }
    if ACTIVATION == LEAKY_RELU {
        return select(grad, params.slope * grad, not_positive(z));
    }
    if ACTIVATION == SILU {
        let s = logistic(z);
        return grad * (s * fma(z, decay(z) * s, vec4(1.0))); // 1 - s = e^-z·s, without cancellation
    }
    if ACTIVATION == GELU {
        let n = normal(z);
        return grad * fma(z, 0.3989422804 * n.density, n.distribution);
    }
    if ACTIVATION == SIGMOID {
        let s = logistic(z);
        return grad * (s * (decay(z) * s));
    }
    if ACTIVATION == TANH {
        let e = decay(2.0 * abs(z));
        let s = 1.0 / (1.0 + e);
        return grad * (4.0 * e * s * s); // 1 - tanh² z, without cancellation
    }
    return grad;
}
