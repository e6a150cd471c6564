// bfloat16, the upper half of an f32.

// Codes in the lower 16 bits to values, exactly.
fn decode(code: vec4<u32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(code << vec4(16u));
}

// Values to codes: to the nearest, ties to even; overflow to infinity; NaN stays NaN.
fn encode(v: vec4<f32>) -> vec4<u32> {
    let bits = bitcast<vec4<u32>>(v);
    let upper = bits >> vec4(16u);
    let rounded = (bits + vec4(0x7fffu) + (upper & vec4(1u))) >> vec4(16u);
    return select(rounded, upper | vec4(0x0040u), (bits & vec4(0x7fffffffu)) > vec4(0x7f800000u));
}
