// The second pass of a forward kernel: y = act((x - K)·scale + shift + residual), over a span of a channel or a strip of
// columns. In place, x is what y is about to replace.

alias Applied = Coefficients;

// What is read of a vector.
struct Loaded {
    x: vec4<f32>,
    residual: vec4<f32>,
}

fn residual_of(vector: u32) -> vec4<f32> {
    if RESIDUAL {
        return read_residual(vector);
    }
    return vec4(0.0);
}

fn load(vector: u32) -> Loaded {
    var r = Loaded(vec4(0.0), vec4(0.0));
    if IN_PLACE {
        r.x = read_output(vector);
    } else {
        r.x = read_input(vector);
    }
    r.residual = residual_of(vector);
    return r;
}

fn apply(vector: u32, r: Loaded, c: Coefficients) {
    var z = fma(r.x - c.pivot, c.scale, c.shift);
    if RESIDUAL {
        z += r.residual;
    }
    write_output(vector, activate(z));
}
