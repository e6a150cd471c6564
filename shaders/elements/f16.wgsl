// IEEE 754 binary16 by integer arithmetic, the same on every adapter: WGSL's own conversions leave the rounding, overflow
// and NaN open. Written without f32 denormals, which a GPU may flush.

// Codes in the lower 16 bits to values, exactly.
fn decode(code: vec4<u32>) -> vec4<f32> {
    let sign = (code & vec4(0x8000u)) << vec4(16u);
    let magnitude = code & vec4(0x7fffu);
    let shifted = magnitude << vec4(13u);
    let normal = shifted + vec4(112u << 23u);
    let denormal = bitcast<vec4<u32>>(vec4<f32>(magnitude) * 5.9604644775390625e-8); // times 2⁻²⁴
    let special = shifted | vec4(0x7f800000u); // infinity and NaN
    let finite = select(normal, denormal, magnitude < vec4(0x0400u));
    return bitcast<vec4<f32>>(sign | select(finite, special, magnitude >= vec4(0x7c00u)));
}

// Values to codes: to the nearest, ties to even; beyond 65504 and its upper half unit infinity; NaN stays NaN.
fn encode(v: vec4<f32>) -> vec4<u32> {
    let bits = bitcast<vec4<u32>>(v);
    let sign = (bits >> vec4(16u)) & vec4(0x8000u);
    let magnitude = bits & vec4(0x7fffffffu);
    let even = (magnitude >> vec4(13u)) & vec4(1u);
    let rounded = (magnitude + vec4(0x0fffu) + even - vec4(112u << 23u)) >> vec4(13u);
    let normal = select(rounded, vec4(0x7c00u), magnitude >= vec4(0x477ff000u));
    // Below 2⁻¹⁴ the unit is 2⁻²⁴, which is the unit of f32 from 0.5 to 1.
    let denormal = bitcast<vec4<u32>>(bitcast<vec4<f32>>(magnitude) + 0.5) - vec4(0x3f000000u);
    let finite = select(normal, denormal, magnitude < vec4(0x38800000u));
    return sign | select(finite, vec4(0x7e00u), magnitude > vec4(0x7f800000u));
}
