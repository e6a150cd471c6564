// The tensors that kernels bind, their loads and stores, and where their elements belong. An element header says how
// elements lie in words; a vector of 4 elements is WORDS words.
//
// One owner: a vector is read and written by one invocation, and its words hold nothing else but, after an odd 16-bit
// tensor's last element, half a word that is not the tensor's and is written as it was. So no two invocations write one
// word, and a result may replace its input in place.

@group(0) @binding(1) var<storage, read> input: array<Word>;
@group(0) @binding(2) var<storage, read> residual: array<Word>;
@group(0) @binding(3) var<storage, read> grad_output: array<Word>;
@group(0) @binding(4) var<storage, read_write> output: array<Word>;  // y or dx
@group(0) @binding(5) var<storage, read_write> grad_residual: array<Word>;
@group(0) @binding(6) var<storage, read> mask: array<f32>;           // one for each outer and inner index, 0 or 1

const PER_WORD: u32 = 4u / WORDS;

fn join(a: Word, b: Word, c: Word, d: Word) -> vec4<f32> {
    if WORDS == 2u {
        return vec4(unpack(a).xy, unpack(b).xy);
    }
    return vec4(unpack(a).x, unpack(b).x, unpack(c).x, unpack(d).x);
}

fn read_input(vector: u32) -> vec4<f32> {
    let w = WORDS * vector;
    if WORDS == 1u {
        return unpack(input[w]);
    }
    return join(input[w], input[w + 1u], input[w + 2u], input[w + 3u]);
}

fn residual_word(w: u32) -> Word {
    if JOINED {
        return input[params.residual_start + w];
    }
    return residual[w];
}

fn read_residual(vector: u32) -> vec4<f32> {
    let w = WORDS * vector;
    if WORDS == 1u {
        return unpack(residual_word(w));
    }
    return join(residual_word(w), residual_word(w + 1u), residual_word(w + 2u), residual_word(w + 3u));
}

fn grad_output_word(w: u32) -> Word {
    if JOINED {
        return input[params.grad_output_start + w];
    }
    return grad_output[w];
}

fn read_grad_output(vector: u32) -> vec4<f32> {
    let w = WORDS * vector;
    if WORDS == 1u {
        return unpack(grad_output_word(w));
    }
    return join(grad_output_word(w), grad_output_word(w + 1u), grad_output_word(w + 2u), grad_output_word(w + 3u));
}

// What the result is about to replace.
fn read_output(vector: u32) -> vec4<f32> {
    let w = WORDS * vector;
    if WORDS == 1u {
        return unpack(output[w]);
    }
    return join(output[w], output[w + 1u], output[w + 2u], output[w + 3u]);
}

fn holds(w: u32) -> bool {
    return PER_WORD * w < params.elements;
}

// The word number `w` of the result, which takes what is not the tensor's from `old`.
fn with_tail(w: u32, word: Word, old: Word) -> Word {
    if PER_WORD * (w + 1u) > params.elements {
        return keep_tail(word, old);
    }
    return word;
}

// The second word of a vector.
fn pack_second(v: vec4<f32>) -> Word {
    if WORDS == 2u {
        return pack(v.zwzw);
    }
    return pack(v.yyyy);
}

fn write_output(vector: u32, v: vec4<f32>) {
    let w = WORDS * vector;
    if WORDS == 1u {
        output[w] = pack(v);
        return;
    }
    output[w] = with_tail(w, pack(v), output[w]);
    if holds(w + 1u) { output[w + 1u] = with_tail(w + 1u, pack_second(v), output[w + 1u]); }
    if WORDS == 4u && holds(w + 2u) { output[w + 2u] = pack(v.zzzz); }
    if WORDS == 4u && holds(w + 3u) { output[w + 3u] = pack(v.wwww); }
}

fn write_grad_residual(vector: u32, v: vec4<f32>) {
    let w = WORDS * vector;
    if WORDS == 1u {
        grad_residual[w] = pack(v);
        return;
    }
    grad_residual[w] = with_tail(w, pack(v), grad_residual[w]);
    if holds(w + 1u) { grad_residual[w + 1u] = with_tail(w + 1u, pack_second(v), grad_residual[w + 1u]); }
    if WORDS == 4u && holds(w + 2u) { grad_residual[w + 2u] = pack(v.zzzz); }
    if WORDS == 4u && holds(w + 3u) { grad_residual[w + 3u] = pack(v.wwww); }
}

// ---- The mask: 1 where a value counts for the statistics, 0 where not. Anything else makes them NaN, because a device
// cannot report an error.

fn mask_weight(i: u32) -> f32 {
    let m = mask[i];
    return select(select(not_a_number(), 1.0, m == 1.0), 0.0, m == 0.0);
}

fn mask_weights(i: vec4<u32>) -> vec4<f32> {
    return vec4(mask_weight(i.x), mask_weight(i.y), mask_weight(i.z), mask_weight(i.w));
}

// ---- Reductions: which elements of a vector count.

// Of each element of a vector, its number.
fn numbers(vector: u32) -> vec4<u32> {
    return vec4(4u * vector) + vec4(0u, 1u, 2u, 3u);
}

// The element after a group's last.
fn group_end(group: u32) -> u32 {
    return (group + 1u) * params.group_elements;
}

// The first element of a channel of a group.
fn first_row(statistic: u32) -> u32 {
    let group = statistic / params.channels;
    return group * params.group_elements + (statistic - group * params.channels) * params.inner;
}

// v, or 0 for elements outside the row, which has `inner`.
fn keep_row(v: vec4<f32>, vector: u32, begin: u32, inner: u32) -> vec4<f32> {
    if !RAGGED {
        return v;
    }
    // Counted from the row's first, those before it wrap round to large numbers.
    return select(vec4(0.0), v, numbers(vector) - vec4(begin) < vec4(inner));
}

// 1 for elements of the row that the mask lets count, 0 for others. `mask_begin` is the row's place in the mask.
fn row_weights(vector: u32, begin: u32, inner: u32, mask_begin: u32) -> vec4<f32> {
    let inside = keep_row(vec4(1.0), vector, begin, inner);
    if !MASK {
        return inside;
    }
    let i = min(numbers(vector) - vec4(begin), vec4(inner - 1u));
    return select(vec4(0.0), mask_weights(vec4(mask_begin) + i), inside == vec4(1.0));
}

// v, or 0 for elements from number `end` on, where the group ends.
fn keep_before(v: vec4<f32>, vector: u32, end: u32) -> vec4<f32> {
    if !RAGGED {
        return v;
    }
    return select(vec4(0.0), v, numbers(vector) < vec4(end));
}

// 1 for elements of the group that the mask lets count, 0 for others. `masks` are the elements' places in the mask.
fn group_weights(vector: u32, end: u32, masks: vec4<u32>) -> vec4<f32> {
    let inside = keep_before(vec4(1.0), vector, end);
    if !MASK {
        return inside;
    }
    return select(vec4(0.0), mask_weights(masks), inside == vec4(1.0));
}

// ---- Walks. Planar: the vectors of one channel, row after row. A lane takes every WORKGROUP-th; a cell is one of them.
// Long loops take the walk from the parameters before they begin: a software adapter fetches a uniform for each lane anew,
// and a load costs the more the more of its address is computed next to it.

struct RowWalk {
    step_rows: u32,     // from one vector of a lane to its next: whole rows,
    step_elements: u32, // the same in elements,
    step_vectors: u32,  // and vectors beyond them
    row_vectors: u32,
    row_pitch: u32,     // from one row's first element to the next row's
    inner: u32,         // elements of a row
}

fn walk_of_rows() -> RowWalk {
    return RowWalk(
        params.step_rows,
        params.step_rows * params.outer_elements,
        params.step_vectors,
        params.row_vectors,
        params.outer_elements,
        params.inner,
    );
}

struct Cell {
    row: u32,
    begin: u32,  // the row's first element
    column: u32, // in vectors
}

// Number t of the channel whose first element is `first`.
fn cell_of(walk: RowWalk, first: u32, t: u32) -> Cell {
    let row = t / walk.row_vectors;
    return Cell(row, first + row * walk.row_pitch, t - row * walk.row_vectors);
}

fn next_cell(walk: RowWalk, cell: Cell) -> Cell {
    let column = cell.column + walk.step_vectors;
    let wraps = column >= walk.row_vectors;
    return Cell(
        cell.row + walk.step_rows + select(0u, 1u, wraps),
        cell.begin + walk.step_elements + select(0u, walk.row_pitch, wraps),
        column - select(0u, walk.row_vectors, wraps),
    );
}

fn cell_vector(cell: Cell) -> u32 {
    return cell.begin / 4u + cell.column;
}

// How many of the channel's elements the cells before number t hold.
fn elements_before(walk: RowWalk, first: u32, t: u32) -> u32 {
    let cell = cell_of(walk, first, t);
    let element = max(4u * cell_vector(cell), cell.begin);
    return cell.row * walk.inner + min(element - cell.begin, walk.inner);
}

// ---- Columns: the tensor is a matrix, and a workgroup takes a piece of a tile of columns. Neighbouring workgroups take
// neighbouring tiles, so that together they go over whole rows.
//
// The workgroups of a software adapter are a few lanes wide and run one after the other: where rows are long, the line of
// memory that a lane needs next is never near the last one. There a tile is twice as wide as a workgroup (ACROSS),
// and a lane goes down two columns at once, WORKGROUP vectors apart. Tiles are whole then, and nothing is masked or ragged.

struct Block {
    group: u32,
    piece: u32,
    column: u32, // of vectors: a lane's
}

fn block_of(work: u32, lane: u32) -> Block {
    let tiles = (params.row_vectors + params.tile - 1u) / params.tile;
    let pieces = work / tiles;
    return Block(pieces / params.pieces, pieces % params.pieces, (work % tiles) * params.tile + lane % params.tile);
}

// Rows that the lanes of a workgroup take at once.
fn rows_at_once() -> u32 {
    return max(1u, WORKGROUP / params.tile);
}

// The channel of a column; columns past the first `channels · inner` repeat them.
fn column_channel(column: u32) -> u32 {
    return (column / params.inner) % params.channels;
}

// Coefficients of a vector's 4 elements: those of the forward pass.
struct Coefficients {
    pivot: vec4<f32>,
    scale: vec4<f32>,
    shift: vec4<f32>,
    kappa: vec4<f32>,
}

// ---- Flat kernels: the vector of an invocation, and the statistic (the channel of a group) of each of its elements.

const SAME_CHANNEL: u32 = 0u;   // inner is a multiple of 4
const NEXT_CHANNEL: u32 = 1u;   // inner ≥ 4: at most one boundary in a vector
const CHANNELS_LAST: u32 = 2u;  // inner = 1, channels ≥ 4
const ANY_CHANNEL: u32 = 3u;
const GROUPED: u32 = 4u;        // several groups

struct Place {
    vector: u32,
    channel: u32, // of its first element
    inner: u32,   // index of its first element within the channel's row
}

fn place_of(vector: u32) -> Place {
    let element = 4u * min(vector, params.vectors);
    let row = element / params.inner;
    return Place(vector, row % params.channels, element - row * params.inner);
}

// What a flat kernel needs of the parameters to go on.
struct Stride {
    step_channels: u32,  // from one vector of a lane to its next: in whole channels,
    step_inner: u32,     // and in elements beyond them
    channels: u32,
    inner: u32,
    group_elements: u32,
}

fn stride_of_lanes() -> Stride {
    return Stride(params.stride_channels, params.stride_inner, params.channels, params.inner, params.group_elements);
}

fn next_place(stride: Stride, place: Place) -> Place {
    let inner = place.inner + stride.step_inner;
    let wraps = inner >= stride.inner;
    let channel = place.channel + stride.step_channels + select(0u, 1u, wraps);
    return Place(
        place.vector + WORKGROUP,
        channel - select(0u, stride.channels, channel >= stride.channels),
        inner - select(0u, stride.inner, wraps),
    );
}

fn statistic_of(stride: Stride, place: Place, element: u32) -> u32 {
    if CHANNEL_LOOKUP == GROUPED {
        let number = 4u * place.vector + element;
        return (number / stride.group_elements) * stride.channels + (number / stride.inner) % stride.channels;
    }
    if element == 0u {
        return place.channel;
    }
    var channel = place.channel;
    if CHANNEL_LOOKUP == NEXT_CHANNEL {
        channel += select(0u, 1u, place.inner + element >= stride.inner);
    } else if CHANNEL_LOOKUP == CHANNELS_LAST {
        channel += element;
    } else if CHANNEL_LOOKUP == ANY_CHANNEL {
        return (channel + (place.inner + element) / stride.inner) % stride.channels;
    }
    return select(channel, channel - stride.channels, channel >= stride.channels);
}

// Whether a vector reaches the next channel.
fn has_boundary(stride: Stride, place: Place) -> bool {
    return place.inner + 3u >= stride.inner;
}

// The coefficients of a vector's elements are those of its first or those of its last, where at most one boundary lies in
// it: true for the last.
fn beyond_boundary(stride: Stride, place: Place) -> vec4<bool> {
    return vec4(place.inner) + vec4(0u, 1u, 2u, 3u) >= vec4(stride.inner);
}
