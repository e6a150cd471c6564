// The second pass of a backward kernel: dx = A·(dz - E) + B·(x - κ) + D with dz = dy·act'(z), over a span of a channel or a
// strip of columns; with a residual and an activation also the residual's gradient, dz itself. In place, dy is what dx is
// about to replace. Values that a mask left out of the statistics do not feel them: for those dx = A·dz, and so for all
// where the statistics are frozen; x is read then for an activation alone. For kernels that have `counting`, which elements
// of a vector count.

alias Applied = Both;

// What is read of a vector.
struct Loaded {
    x: vec4<f32>,
    grad: vec4<f32>,
    residual: vec4<f32>,
}

// Four of each coefficient: K, scale, shift, κ and A, B, D, E.
struct Both {
    forward: Coefficients,
    a: vec4<f32>,
    b: vec4<f32>,
    d: vec4<f32>,
    e: vec4<f32>,
}

fn load(vector: u32) -> Loaded {
    var r = Loaded(vec4(0.0), vec4(0.0), vec4(0.0));
    if !FROZEN || ACTIVATION != 0u {
        r.x = read_input(vector);
    }
    if IN_PLACE {
        r.grad = read_output(vector);
    } else {
        r.grad = read_grad_output(vector);
    }
    if RESIDUAL {
        r.residual = read_residual(vector);
    }
    return r;
}

fn dz_of(r: Loaded, c: Coefficients) -> vec4<f32> {
    if ACTIVATION == 0u {
        return r.grad;
    }
    var z = fma(r.x - c.pivot, c.scale, c.shift);
    if RESIDUAL {
        z += r.residual;
    }
    return activation_gradient(z, r.grad);
}

fn write_gradient(vector: u32, x: vec4<f32>, dz: vec4<f32>, c: Both) {
    if RESIDUAL && ACTIVATION != 0u {
        write_grad_residual(vector, dz);
    }
    if FROZEN {
        write_output(vector, c.a * dz);
        return;
    }
    var centred = dz - c.e;
    var through_statistics = fma(c.b, x - c.forward.kappa, c.d);
    if MASK {
        let counts = counting(vector);
        centred = select(dz, centred, counts);
        through_statistics = select(vec4(0.0), through_statistics, counts);
    }
    write_output(vector, fma(c.a, centred, through_statistics));
}

fn apply(vector: u32, r: Loaded, c: Both) {
    write_gradient(vector, r.x, dz_of(r, c.forward), c);
}
