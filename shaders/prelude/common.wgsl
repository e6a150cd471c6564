// What all kernels share: parameters, exact sums, the reduction over a workgroup.
//
// The tensor is flat and contiguous, [groups, outer, channels, inner]; a "vector" is an aligned group of 4 of its elements.
// Each channel of each group has statistics of its own: statistic s is channel s % channels of group s / channels.

struct Params {
    elements: u32,         // of the tensor
    zero: u32,             // 0, which no compiler knows: see `opaque`. Not first: a driver was seen to inline that word
    channels: u32,
    inner: u32,
    count: u32,            // values per channel of a group: outer · inner
    statistics: u32,       // groups · channels
    group_elements: u32,
    outer_elements: u32,   // of one outer index: channels · inner
    workgroups: u32,       // of this dispatch; a 2-D grid may hold a few more
    // Reductions. Planar: a row is one channel of one outer index. Columns: the tensor is a matrix of `width` columns.
    rows: u32,
    row_vectors: u32,      // vectors that one row touches, whatever its alignment; columns: width / 4
    pieces: u32,           // that one channel (planar) or column is cut into
    piece_length: u32,     // planar: vectors; columns: rows
    step_rows: u32,        // planar: from one vector of a lane to its next, in rows and vectors
    step_vectors: u32,
    tile: u32,             // columns: vectors side by side in a workgroup; merges: channels side by side
    // Partial results: slot s, repetition k and column i of channel c of group g are at
    // s·slot_stride + g·width + (k·channels + c)·span + i.
    slots: u32,
    slot_stride: u32,
    width: u32,
    repetitions: u32,
    span: u32,
    // Flat kernels.
    vectors: u32,
    chunk: u32,            // vectors of one workgroup
    stride_channels: u32,  // WORKGROUP vectors on: in whole channels, modulo `channels`,
    stride_inner: u32,     // and in elements beyond them
    slope: f32,            // of leaky ReLU below 0
    // Statistics.
    flags: u32,
    eps: f32,
    weight_old: f32,       // running = weight_old·running + weight_new·batch
    weight_new: f32,
    // Copies of per-channel vectors: which are there (bit i for vector i), where each starts, in words, and what stands
    // for one that is not there.
    present: u32,
    start_0: u32,
    start_1: u32,
    start_2: u32,
    absent_0: u32,
    absent_1: u32,
    absent_2: u32,
    mask_pieces: u32,      // that a group's mask is counted in
    square_unit: f32,      // a power of two that squares are summed in, and the unit of M2 in records that are merged
    // Where one binding holds several tensors: in words, and for the mask in vectors of the coefficients.
    residual_start: u32,
    grad_output_start: u32,
    mask_start: u32,
    result_unit: f32,      // of M2 in the records that a merge writes
    pad_0: u32,            // to a multiple of 16 bytes
}

const HAS_AFFINE: u32 = 1u;
const HAS_RUNNING: u32 = 2u;
const HAS_SAVED: u32 = 4u;
const CUMULATIVE: u32 = 8u;
const FROM_RUNNING: u32 = 16u;   // coefficients from running statistics, not saved ones
const FOR_BACKWARD: u32 = 32u;   // coefficients for the gradients too
const HAS_GRAD_AFFINE: u32 = 64u;
const FROZEN_STATISTICS: u32 = 128u; // they do not depend on the input
const UNBIASED: u32 = 256u;       // running variance is M2/(m-1)
const HAS_COEFFICIENTS: u32 = 512u;
const HAS_COUNTS: u32 = 1024u;    // values per channel that the mask lets count, one number a group
const GROUP_GRADIENTS: u32 = 2048u; // parameter gradients of each group, to be summed
const ACCUMULATE: u32 = 4096u;    // parameter gradients are added to what is there

const NOT_A_COUNT: u32 = 0xffffffffu; // of a mask that holds something else than 0 and 1

override WORKGROUP: u32 = 64u;
override ACTIVATION: u32 = 0u;
override RESIDUAL: bool = false;
override CHANNEL_LOOKUP: u32 = 0u;
override RAGGED: bool = true;    // false where every vector of a reduction lies in its row or matrix as a whole
override MASK: bool = false;
override IN_PLACE: bool = false; // the result replaces the input, or the output's gradient
override FROZEN: bool = false;   // the gradient does not go through the statistics
override ACROSS: u32 = 1u;       // vectors of a row that a lane takes at once, 1 or 2; see `Block`
override HELD: u32 = 0u;         // vectors of a tensor that a lane holds in registers
override JOINED: bool = false;   // residual and grad_output lie behind the input, and the mask behind the coefficients

@group(0) @binding(0) var<uniform> params: Params;

fn has(flag: u32) -> bool {
    return (params.flags & flag) != 0u;
}

// The number of this workgroup in a grid that is 2-D only because one dimension holds 65535.
fn workgroup_number(id: vec3<u32>, grid: vec3<u32>) -> u32 {
    return id.y * grid.x + id.x;
}

// ---- Exact arithmetic. Compilers simplify (a + b) - a; a value that went through `opaque` they cannot see through.

fn opaque(v: vec4<f32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(v) ^ vec4<u32>(params.zero));
}

struct Pair {
    high: vec4<f32>,
    low: vec4<f32>,
}

// a + b = high + low exactly (Knuth's TwoSum).
fn two_sum(a: vec4<f32>, b: vec4<f32>) -> Pair {
    let high = opaque(a + b);
    let b_part = opaque(high - a);
    let a_part = opaque(high - b_part);
    return Pair(high, opaque(a - a_part) + opaque(b - b_part));
}

fn add(p: Pair, v: vec4<f32>) -> Pair {
    let sum = two_sum(p.high, v);
    return Pair(sum.high, p.low + sum.low);
}

fn add_pairs(a: Pair, b: Pair) -> Pair {
    let sum = two_sum(a.high, b.high);
    return Pair(sum.high, (a.low + b.low) + sum.low);
}

// The upper 12 bits of the significand: products of two such halves are exact.
fn upper_half(v: vec4<f32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(bitcast<vec4<u32>>(v) & vec4<u32>(0xfffff000u));
}

// a · b = high + low exactly (Dekker's TwoProduct; `fma` may be unfused).
fn two_product(a: vec4<f32>, b: vec4<f32>) -> Pair {
    let high = opaque(a * b);
    let a1 = upper_half(a);
    let b1 = upper_half(b);
    let a2 = a - a1;
    let b2 = b - b1;
    let rest = opaque(a1 * b1 - high) + a1 * b2;
    return Pair(high, opaque(rest + a2 * b1) + a2 * b2);
}

fn multiply(p: Pair, v: vec4<f32>) -> Pair {
    let product = two_product(p.high, v);
    return two_sum(product.high, product.low + p.low * v);
}

fn divide(p: Pair, v: vec4<f32>) -> Pair {
    let quotient = p.high / v;
    let product = two_product(quotient, v);
    let rest = opaque(p.high - product.high) - product.low + p.low;
    return two_sum(quotient, rest / v);
}

fn is_finite(v: f32) -> bool {
    return (bitcast<u32>(v) & 0x7f800000u) != 0x7f800000u;
}

fn infinity() -> f32 {
    return bitcast<f32>(0x7f800000u | params.zero);
}

fn not_a_number() -> f32 {
    return bitcast<f32>(0x7fc00000u | params.zero);
}

// high + low split anew, so that low is below half a unit of high: after many additions it may be many units. Infinity
// stays what it is, with whatever low became of it.
fn normalised(p: Pair) -> Pair {
    let exponent = bitcast<vec4<u32>>(p.high) & vec4(0x7f800000u);
    let sum = two_sum(p.high, p.low);
    let finite = exponent != vec4(0x7f800000u);
    return Pair(select(p.high, sum.high, finite), select(p.low, sum.low, finite));
}

// ---- Sums over a workgroup, in a fixed order: lane l takes in lane l + s for s = WORKGROUP/2 down to `tile`, so that
// lanes 0 to tile-1 end with the sums over all lanes of equal l % tile. Every invocation must call these.

var<workgroup> scratch_high: array<vec4<f32>, WORKGROUP>;
var<workgroup> scratch_low: array<vec4<f32>, WORKGROUP>;

fn sum_exactly(lane: u32, tile: u32, pair: Pair) -> Pair {
    scratch_high[lane] = pair.high;
    scratch_low[lane] = pair.low;
    workgroupBarrier(); // all lanes have written
    for (var s = WORKGROUP / 2u; s >= tile; s /= 2u) {
        if lane < s {
            let sum = add_pairs(Pair(scratch_high[lane], scratch_low[lane]),
                                Pair(scratch_high[lane + s], scratch_low[lane + s]));
            scratch_high[lane] = sum.high;
            scratch_low[lane] = sum.low;
        }
        workgroupBarrier(); // this level is complete
    }
    let total = Pair(scratch_high[lane % tile], scratch_low[lane % tile]);
    workgroupBarrier(); // read by all, before the scratch is written again
    return normalised(total);
}

fn sum_both(lane: u32, tile: u32, pair: Pair) -> Pair {
    scratch_high[lane] = pair.high;
    scratch_low[lane] = pair.low;
    workgroupBarrier(); // all lanes have written
    for (var s = WORKGROUP / 2u; s >= tile; s /= 2u) {
        if lane < s {
            scratch_high[lane] += scratch_high[lane + s];
            scratch_low[lane] += scratch_low[lane + s];
        }
        workgroupBarrier(); // this level is complete
    }
    let total = Pair(scratch_high[lane % tile], scratch_low[lane % tile]);
    workgroupBarrier(); // read by all, before the scratch is written again
    return total;
}

// ---- Partial results and coefficients, one channel at a time.

fn partial_index(slot: u32, statistic: u32, record: u32) -> u32 {
    let group = statistic / params.channels;
    let channel = statistic - group * params.channels;
    let repetition = record / params.span;
    let column = record % params.span;
    return slot * params.slot_stride + group * params.width + (repetition * params.channels + channel) * params.span + column;
}

// 1/√(variance + ε), refined by a Newton step whose residue is exact; 0 where that is infinite or the variance is.
fn inverse_std(variance: f32) -> f32 {
    let v = two_sum(vec4(variance), vec4(params.eps));
    if !is_finite(v.high.x) {
        return select(0.0, not_a_number(), is_nan(v.high.x));
    }
    if v.high.x <= 0.0 {
        return select(0.0, not_a_number(), v.high.x < 0.0); // no variance is negative
    }
    let y = vec4(inverseSqrt(v.high.x));
    let one = multiply(multiply(v, y), y);
    let residue = (opaque(1.0 - one.high) - one.low).x;
    return y.x + 0.5 * y.x * residue;
}

fn is_nan(v: f32) -> bool {
    return (bitcast<u32>(v) & 0x7fffffffu) > 0x7f800000u;
}

// The multiple of a power of two, 1/4 to 1/8 of `spread`, that is nearest to v; v where that is no coarser. What is
// subtracted from many values must not have bits below theirs: their differences would all be rounded the same way.
fn coarse(v: vec4<f32>, spread: vec4<f32>) -> vec4<f32> {
    let exponent = (bitcast<vec4<u32>>(spread) >> vec4(23u)) & vec4(0xffu);
    let bounded = clamp(exponent, vec4(10u), vec4(240u));
    let grid = bitcast<vec4<f32>>((bounded - vec4(2u)) << vec4(23u));
    let steps = v * bitcast<vec4<f32>>((vec4(256u) - bounded) << vec4(23u)); // v / grid
    return select(v, round(steps) * grid, (exponent == bounded) & (abs(steps) < vec4(8388608.0)));
}

// ---- Reductions: runs and pivots.


const PIVOT_VECTORS: u32 = 64u;  // 256 values
const PIVOT_ROWS: u32 = 16u;

fn across(v: vec4<f32>) -> f32 {
    return (v.x + v.y) + (v.z + v.w);
}

// v[i], by a mask: FXC cannot index vectors dynamically.
fn component(v: vec4<f32>, i: u32) -> f32 {
    return across(select(vec4(0.0), v, vec4(i) == vec4(0u, 1u, 2u, 3u)));
}
