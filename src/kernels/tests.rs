//! Holds the table and the shaders together, by reflection.

use std::collections::BTreeSet;

use naga::valid::{Capabilities, ValidationFlags, Validator};

use super::key::compose;
use super::table::Override;
use super::*;
use crate::plan::{Params, flags};

const ELEMENTS: [Elements; 9] = [
    Elements::F32x4,
    Elements::F32x4By64,
    Elements::F32x1,
    Elements::F16x4,
    Elements::F16x4By64,
    Elements::F16x2,
    Elements::Bf16x4,
    Elements::Bf16x4By64,
    Elements::Bf16x2,
];

fn parse(source: &str) -> (naga::Module, naga::valid::ModuleInfo) {
    let module = naga::front::wgsl::parse_str(source)
        .unwrap_or_else(|e| panic!("{}", e.emit_to_string(source)));
    // Those that need 64-bit integers say so; no other needs anything.
    let capabilities = match source.contains("u64") {
        true => Capabilities::SHADER_INT64,
        false => Capabilities::empty(),
    };
    let info = Validator::new(ValidationFlags::all(), capabilities)
        .validate(&module)
        .unwrap_or_else(|e| panic!("{}", e.emit_to_string(source)));
    (module, info)
}

#[test]
fn the_table_is_in_the_order_of_the_enum() {
    for entry in &TABLE {
        assert!(
            std::ptr::eq(entry.kernel.entry(), entry),
            "{:?} is at another kernel's place",
            entry.kernel
        );
    }
}

/// Every binding that an entry point uses is in the table with the same number, name and access, and the other way
/// round: a binding that is declared but never touched would cost a storage buffer for nothing.
#[test]
fn shaders_and_table_agree_on_bindings() {
    for elements in ELEMENTS {
        for entry in &TABLE {
            let (module, info) = parse(&compose(elements, entry));
            let index = module
                .entry_points
                .iter()
                .position(|e| e.name == entry.entry_point)
                .unwrap_or_else(|| {
                    panic!(
                        "{}.wgsl has no entry point {}",
                        entry.file, entry.entry_point
                    )
                });
            let used = info.get_entry_point(index);
            let mut found = BTreeSet::new();
            for (handle, variable) in module.global_variables.iter() {
                if used[handle].is_empty() {
                    continue;
                }
                let Some(binding) = &variable.binding else {
                    continue;
                };
                assert_eq!(
                    binding.group, 0,
                    "{}: all bindings are in group 0",
                    entry.entry_point
                );
                if variable.space == naga::AddressSpace::Uniform {
                    assert_eq!(
                        binding.binding, 0,
                        "{}: the parameters are binding 0",
                        entry.entry_point
                    );
                    continue;
                }
                let naga::AddressSpace::Storage { access } = variable.space else {
                    panic!("{}: {:?} is no buffer", entry.entry_point, variable.name)
                };
                let writes = access.contains(naga::StorageAccess::STORE);
                found.insert((
                    binding.binding,
                    variable.name.clone().unwrap_or_default(),
                    writes,
                ));
            }
            let table = entry
                .bindings
                .iter()
                .map(|b| (b.number, b.name.to_owned(), b.writes))
                .collect();
            assert_eq!(
                found, table,
                "{} in {}.wgsl and the table differ",
                entry.entry_point, entry.file
            );
        }
    }
}

/// Every entry point of every file is in the table.
#[test]
fn every_entry_point_has_a_row() {
    for entry in &TABLE {
        let (module, _) = parse(&compose(Elements::F32x4, entry));
        for found in &module.entry_points {
            let row = TABLE
                .iter()
                .any(|e| e.file == entry.file && e.entry_point == found.name);
            assert!(
                row,
                "{}.wgsl: entry point {} is in no row",
                entry.file, found.name
            );
        }
    }
}

/// The constants that `PipelineKey` sets exist, and each entry point uses exactly those that its row lists: one too few
/// would share a pipeline between different codes, one too many would compile equal code twice.
#[test]
fn shaders_and_table_agree_on_overrides() {
    for entry in &TABLE {
        let (module, info) = parse(&compose(Elements::F32x4, entry));
        let named = |handle: naga::Handle<naga::Override>| {
            module.overrides[handle].name.clone().unwrap_or_default()
        };
        let index = module
            .entry_points
            .iter()
            .position(|e| e.name == entry.entry_point)
            .unwrap();
        let mut used = BTreeSet::new();
        let mut collect = |function: &naga::Function| {
            for (_, expression) in function.expressions.iter() {
                if let naga::Expression::Override(handle) = expression {
                    used.insert(named(*handle));
                }
            }
        };
        collect(&module.entry_points[index].function);
        for function in reachable(&module, &module.entry_points[index].function) {
            collect(&module.functions[function]);
        }
        let _ = info;
        used.remove("WORKGROUP");
        let name = |o: &Override| {
            match o {
                Override::Activation => "ACTIVATION",
                Override::Residual => "RESIDUAL",
                Override::ChannelLookup => "CHANNEL_LOOKUP",
                Override::Ragged => "RAGGED",
                Override::Mask => "MASK",
                Override::InPlace => "IN_PLACE",
                Override::Frozen => "FROZEN",
                Override::Joined => "JOINED",
                Override::Held => "HELD",
                Override::Across => "ACROSS",
            }
            .to_owned()
        };
        let table: BTreeSet<String> = entry.overrides.iter().map(name).collect();
        assert_eq!(
            used, table,
            "{} in {}.wgsl and the table differ on overrides",
            entry.entry_point, entry.file
        );
        let key = PipelineKey::new(entry.kernel, Elements::F32x4, 64);
        let known: BTreeSet<String> = module
            .overrides
            .iter()
            .filter_map(|(_, o)| o.name.clone())
            .collect();
        for (constant, _) in key.constants() {
            assert!(
                known.contains(constant),
                "{constant} is no override of {}.wgsl",
                entry.file
            );
        }
    }
}

fn reachable(
    module: &naga::Module,
    from: &naga::Function,
) -> BTreeSet<naga::Handle<naga::Function>> {
    fn calls(block: &naga::Block, out: &mut Vec<naga::Handle<naga::Function>>) {
        for statement in block.iter() {
            match statement {
                naga::Statement::Call { function, .. } => out.push(*function),
                naga::Statement::Block(b) => calls(b, out),
                naga::Statement::If { accept, reject, .. } => {
                    calls(accept, out);
                    calls(reject, out);
                }
                naga::Statement::Loop {
                    body, continuing, ..
                } => {
                    calls(body, out);
                    calls(continuing, out);
                }
                naga::Statement::Switch { cases, .. } => {
                    cases.iter().for_each(|c| calls(&c.body, out))
                }
                _ => {}
            }
        }
    }
    let mut seen = BTreeSet::new();
    let mut open = Vec::new();
    calls(&from.body, &mut open);
    while let Some(function) = open.pop() {
        if seen.insert(function) {
            calls(&module.functions[function].body, &mut open);
        }
    }
    seen
}

/// The parameter struct has the same fields at the same offsets on both sides.
#[test]
fn shaders_and_rust_agree_on_parameters() {
    macro_rules! offsets {
        ($($field:ident),* $(,)?) => { vec![$((stringify!($field), std::mem::offset_of!(Params, $field) as u32)),*] };
    }
    let rust = offsets![
        elements,
        zero,
        channels,
        inner,
        count,
        statistics,
        group_elements,
        outer_elements,
        workgroups,
        rows,
        row_vectors,
        pieces,
        piece_length,
        step_rows,
        step_vectors,
        tile,
        slots,
        slot_stride,
        width,
        repetitions,
        span,
        vectors,
        chunk,
        stride_channels,
        stride_inner,
        slope,
        flags,
        eps,
        weight_old,
        weight_new,
        present,
        start_0,
        start_1,
        start_2,
        absent_0,
        absent_1,
        absent_2,
        mask_pieces,
        square_unit,
        residual_start,
        grad_output_start,
        mask_start,
        result_unit,
        pad_0,
    ];
    let (module, _) = parse(&compose(Elements::F32x4, &TABLE[0]));
    let (_, params) = module
        .types
        .iter()
        .find(|(_, t)| t.name.as_deref() == Some("Params"))
        .unwrap();
    let naga::TypeInner::Struct { members, span } = &params.inner else {
        panic!("Params is no struct")
    };
    let wgsl: Vec<_> = members
        .iter()
        .map(|m| (m.name.as_deref().unwrap_or(""), m.offset))
        .collect();
    assert_eq!(wgsl, rust);
    assert_eq!(*span as usize, size_of::<Params>());
}

/// The flags have the same bits on both sides.
#[test]
fn shaders_and_rust_agree_on_flags() {
    let rust = [
        ("HAS_AFFINE", flags::HAS_AFFINE),
        ("HAS_RUNNING", flags::HAS_RUNNING),
        ("HAS_SAVED", flags::HAS_SAVED),
        ("CUMULATIVE", flags::CUMULATIVE),
        ("FROM_RUNNING", flags::FROM_RUNNING),
        ("FOR_BACKWARD", flags::FOR_BACKWARD),
        ("HAS_GRAD_AFFINE", flags::HAS_GRAD_AFFINE),
        ("FROZEN_STATISTICS", flags::FROZEN_STATISTICS),
        ("UNBIASED", flags::UNBIASED),
        ("HAS_COEFFICIENTS", flags::HAS_COEFFICIENTS),
        ("HAS_COUNTS", flags::HAS_COUNTS),
        ("GROUP_GRADIENTS", flags::GROUP_GRADIENTS),
        ("ACCUMULATE", flags::ACCUMULATE),
    ];
    let (module, _) = parse(&compose(Elements::F32x4, &TABLE[0]));
    for (name, value) in rust {
        let (_, constant) = module
            .constants
            .iter()
            .find(|(_, c)| c.name.as_deref() == Some(name))
            .unwrap_or_else(|| panic!("{name}"));
        let naga::Expression::Literal(naga::Literal::U32(bits)) =
            module.global_expressions[constant.init]
        else {
            panic!("{name} is no u32")
        };
        assert_eq!(bits, value, "{name}");
    }
}

/// The files stay few and readable.
#[test]
fn there_are_at_most_ten_shader_files() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/shaders");
    let files = std::fs::read_dir(folder)
        .unwrap()
        .map(|f| f.unwrap().path())
        .filter(|f| f.is_file());
    let mut names: Vec<_> = files
        .map(|f| f.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert!(names.len() <= 10, "{names:?}");
    let known: BTreeSet<&str> = TABLE.iter().map(|e| e.file).collect();
    assert_eq!(
        names,
        known.into_iter().collect::<Vec<_>>(),
        "a file that no row uses"
    );
}

/// Where arguments share a buffer, every storage binding of a kernel is read_write, and the kernel is valid so.
#[test]
fn pooled_kernels_bind_everything_read_write() {
    for elements in ELEMENTS {
        for entry in &TABLE {
            let key = PipelineKey {
                pooled: true,
                ..PipelineKey::new(entry.kernel, elements, 64)
            };
            let (module, _) = parse(&key.source());
            for (_, variable) in module.global_variables.iter() {
                if let naga::AddressSpace::Storage { access } = variable.space {
                    assert!(
                        access.contains(naga::StorageAccess::STORE),
                        "{:?} of {} stays read",
                        variable.name,
                        entry.file
                    );
                }
            }
        }
    }
}
