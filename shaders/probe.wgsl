// Whether this adapter's compiler keeps exact remainders: a, b -> the remainders of a + b and a · b.
//
// Parallel: one invocation per pair of vectors. A result of 0 where the remainder is not shows a compiler that
// simplified what `opaque` is there to hide.

@group(0) @binding(1) var<storage, read> operands: array<vec4<f32>>;          // a and b in turn
@group(0) @binding(2) var<storage, read_write> remainders: array<vec4<f32>>;  // of the sum and the product in turn

@compute @workgroup_size(WORKGROUP)
fn probe(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x < params.vectors {
        let a = operands[2u * id.x];
        let b = operands[2u * id.x + 1u];
        remainders[2u * id.x] = two_sum(a, b).low;
        remainders[2u * id.x + 1u] = two_product(a, b).low;
    }
}
