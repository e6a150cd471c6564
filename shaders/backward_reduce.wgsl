// Gradient sums: x, dy -> (Σdz, its remainder, Σdz·(x-κ), its remainder) per piece and channel (planar) or per piece and
// column, with dz = dy·act'(z).
//
// Parallel: as in reduce.wgsl, one workgroup per piece of a channel, or per piece of a tile of columns. Reads x and dy
// once, and the residual where an activation needs it.
// Barriers: only those of the workgroup sums; every invocation reaches them, lanes without work add zeros.

@group(0) @binding(7) var<storage, read> coefficients: array<vec4<f32>>;
@group(0) @binding(8) var<storage, read_write> partials: array<vec4<f32>>;

fn coefficients_of_column(group: u32, column: u32) -> Coefficients {
    let base = group * params.channels;
    let c0 = coefficients[base + column_channel(4u * column)];
    let c1 = coefficients[base + column_channel(4u * column + 1u)];
    let c2 = coefficients[base + column_channel(4u * column + 2u)];
    let c3 = coefficients[base + column_channel(4u * column + 3u)];
    return Coefficients(
        vec4(c0.x, c1.x, c2.x, c3.x),
        vec4(c0.y, c1.y, c2.y, c3.y),
        vec4(c0.z, c1.z, c2.z, c3.z),
        vec4(c0.w, c1.w, c2.w, c3.w),
    );
}

fn write_records(place: u32, s: StripGradients) {
    partials[place] = vec4(s.gradient.high.x, s.gradient.low.x, s.product.high.x, s.product.low.x);
    partials[place + 1u] = vec4(s.gradient.high.y, s.gradient.low.y, s.product.high.y, s.product.low.y);
    partials[place + 2u] = vec4(s.gradient.high.z, s.gradient.low.z, s.product.high.z, s.product.low.z);
    partials[place + 3u] = vec4(s.gradient.high.w, s.gradient.low.w, s.product.high.w, s.product.low.w);
}

@compute @workgroup_size(WORKGROUP)
fn backward_reduce_planar(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = workgroup_number(id, grid);
    let work = min(number, params.workgroups - 1u);
    let statistic = work % params.statistics;
    let piece = work / params.statistics;
    let first = first_row(statistic);
    let start = piece * params.piece_length;
    let end = min(start + params.piece_length, params.rows * params.row_vectors);
    let own = coefficients[statistic];
    let forward = Coefficients(own.xxxx, own.yyyy, own.zzzz, own.wwww);
    let total = gradient_span_sums(lane, first, start, end, forward);
    if lane == 0u && number < params.workgroups {
        partials[piece * params.slot_stride + statistic] = vec4(total.high.x, total.low.x, total.high.y, total.low.y);
    }
}

@compute @workgroup_size(WORKGROUP)
fn backward_reduce_columns(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = workgroup_number(id, grid);
    let work = min(number, params.workgroups - 1u);
    let block = block_of(work, lane);
    let readable = min(block.column, params.row_vectors - 1u);
    let end = min((block.piece + 1u) * params.piece_length, params.rows);
    let row = block.piece * params.piece_length + lane / params.tile;
    let writes = lane < params.tile && block.column < params.row_vectors && number < params.workgroups;
    let place = block.piece * params.slot_stride + block.group * params.width + 4u * block.column;
    let c = coefficients_of_column(block.group, readable);
    if ACROSS == 1u {
        let s = gradient_strip_sums(lane, block.group, readable, row, rows_at_once(), end, c);
        if writes {
            write_records(place, s);
        }
        return;
    }
    let s = strips_gradients(block.group, block.column, row, end, array(
        c,
        coefficients_of_column(block.group, block.column + WORKGROUP),
    ));
    if writes {
        write_records(place, s[0]);
        write_records(place + 4u * WORKGROUP, s[1]);
    }
}
