// The input's gradient: dx = A·(dz - E) + B·(x - κ) + D; with a residual and an activation also the residual's, dz.
//
// Parallel: as in normalize.wgsl: planar, columns, and flat for what is left. Reads x, dy (and the residual) once, writes
// dx (and dz) once.

@group(0) @binding(7) var<storage, read> coefficients: array<vec4<f32>>;

fn mask_of(i: u32) -> f32 {
    if JOINED {
        return component(coefficients[params.mask_start + i / 4u], i % 4u);
    }
    return mask_weight(i);
}

// Which elements of a vector count.
fn counting(vector: u32) -> vec4<bool> {
    let element = min(numbers(vector), vec4(params.elements - 1u));
    let i = (element / params.outer_elements) * params.inner + element % params.inner;
    return vec4(mask_of(i.x), mask_of(i.y), mask_of(i.z), mask_of(i.w)) != vec4(0.0);
}

fn coefficients_of(a: u32, b: u32, c: u32, d: u32) -> Both {
    let f0 = coefficients[a];
    let f1 = coefficients[b];
    let f2 = coefficients[c];
    let f3 = coefficients[d];
    let b0 = coefficients[params.statistics + a];
    let b1 = coefficients[params.statistics + b];
    let b2 = coefficients[params.statistics + c];
    let b3 = coefficients[params.statistics + d];
    return Both(
        Coefficients(
            vec4(f0.x, f1.x, f2.x, f3.x),
            vec4(f0.y, f1.y, f2.y, f3.y),
            vec4(f0.z, f1.z, f2.z, f3.z),
            vec4(f0.w, f1.w, f2.w, f3.w),
        ),
        vec4(b0.x, b1.x, b2.x, b3.x),
        vec4(b0.y, b1.y, b2.y, b3.y),
        vec4(b0.z, b1.z, b2.z, b3.z),
        vec4(b0.w, b1.w, b2.w, b3.w),
    );
}

fn coefficients_of_one(statistic: u32) -> Both {
    let f = coefficients[statistic];
    let b = coefficients[params.statistics + statistic];
    return Both(Coefficients(f.xxxx, f.yyyy, f.zzzz, f.wwww), b.xxxx, b.yyyy, b.zzzz, b.wwww);
}

fn coefficients_of_column(group: u32, column: u32) -> Both {
    let base = group * params.channels;
    return coefficients_of(
        base + column_channel(4u * column),
        base + column_channel(4u * column + 1u),
        base + column_channel(4u * column + 2u),
        base + column_channel(4u * column + 3u),
    );
}

@compute @workgroup_size(WORKGROUP)
fn backward_apply_planar(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = workgroup_number(id, grid);
    if number >= params.workgroups {
        return;
    }
    let statistic = number % params.statistics;
    let start = (number / params.statistics) * params.piece_length;
    let end = min(start + params.piece_length, params.rows * params.row_vectors);
    let first = first_row(statistic);
    let c = coefficients_of_one(statistic);
    span_apply(lane, first, start, end, c);
}

@compute @workgroup_size(WORKGROUP)
fn backward_apply_columns(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = workgroup_number(id, grid);
    let block = block_of(number, lane);
    if number >= params.workgroups || block.column >= params.row_vectors {
        return;
    }
    let start = block.piece * params.piece_length;
    let end = min(start + params.piece_length, params.rows);
    let c = coefficients_of_column(block.group, block.column);
    if ACROSS == 1u {
        strip_apply(block.group, block.column, start + lane / params.tile, rows_at_once(), end, c);
        return;
    }
    strips_apply(block.group, block.column, start, end, array(
        c,
        coefficients_of_column(block.group, block.column + WORKGROUP),
    ));
}

@compute @workgroup_size(WORKGROUP)
fn backward_apply(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let start = workgroup_number(id, grid) * params.chunk;
    let end = min(start + params.chunk, params.vectors);
    let stride = stride_of_lanes();
    for (var place = place_of(start + lane); place.vector < end; place = next_place(stride, place)) {
        let s = statistic_of(stride, place, 0u);
        if CHANNEL_LOOKUP == SAME_CHANNEL {
            apply(place.vector, load(place.vector), coefficients_of_one(s));
        } else if CHANNEL_LOOKUP == NEXT_CHANNEL {
            let one = coefficients_of_one(s);
            var two = one;
            if has_boundary(stride, place) {
                two = coefficients_of_one(statistic_of(stride, place, 3u));
            }
            let over = beyond_boundary(stride, place);
            apply(place.vector, load(place.vector), Both(
                Coefficients(
                    select(one.forward.pivot, two.forward.pivot, over),
                    select(one.forward.scale, two.forward.scale, over),
                    select(one.forward.shift, two.forward.shift, over),
                    select(one.forward.kappa, two.forward.kappa, over),
                ),
                select(one.a, two.a, over),
                select(one.b, two.b, over),
                select(one.d, two.d, over),
                select(one.e, two.e, over),
            ));
        } else {
            let c = coefficients_of(
                s,
                statistic_of(stride, place, 1u),
                statistic_of(stride, place, 2u),
                statistic_of(stride, place, 3u),
            );
            apply(place.vector, load(place.vector), c);
        }
    }
}
