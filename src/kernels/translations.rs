//! Every variant as the backends without hardware here would get it: HLSL for DX12, MSL for Metal. Whether a compiler
//! takes it is another matter: `tools/compilers` asks DXC.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use naga::back::{hlsl, msl, pipeline_constants::process_overrides};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{
    AddressSpace, Block, Expression, Function, Handle, LocalVariable, Module, ResourceBinding,
    ShaderStage, Statement, TypeInner,
};

use crate::Shader;

/// Lanes of the workgroups. Their number is a constant like any other, so one size stands for all.
const WORKGROUP: u32 = 64;

/// A module and its variants' places in the list: those with one source differ in constants alone.
struct Source {
    module: Module,
    info: ModuleInfo,
    variants: Vec<usize>,
}

fn sources(variants: &[Shader]) -> Vec<Source> {
    let mut by_source: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (place, variant) in variants.iter().enumerate() {
        by_source.entry(variant.source()).or_default().push(place);
    }
    by_source
        .into_iter()
        .map(|(source, variants)| {
            let module = naga::front::wgsl::parse_str(&source)
                .unwrap_or_else(|e| panic!("{}", e.emit_to_string(&source)));
            let info = Validator::new(ValidationFlags::all(), Capabilities::empty())
                .validate(&module)
                .unwrap_or_else(|e| panic!("{}", e.emit_to_string(&source)));
            Source {
                module,
                info,
                variants,
            }
        })
        .collect()
}

/// Bakes every variant's constants in and hands it to `check`, on two threads. All complaints, up to a few of them.
fn each_variant(check: impl Fn(&Shader, &Module, &ModuleInfo) -> Result<(), String> + Sync) {
    let variants = Shader::all(WORKGROUP);
    let sources = sources(&variants);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut complaints = Vec::new();
        let mut done = 0;
        while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
            for variant in source.variants.iter().map(|&place| &variants[place]) {
                let stage = (ShaderStage::Compute, variant.entry_point());
                let constants = variant
                    .constants()
                    .into_iter()
                    .map(|(name, value)| (name.to_owned(), value))
                    .collect();
                let result =
                    process_overrides(&source.module, &source.info, Some(stage), &constants)
                        .map_err(|e| format!("constants: {e}"))
                        .and_then(|(module, info)| check(variant, &module, &info));
                done += 1;
                complaints.extend(result.err().map(|e| format!("{variant}: {e}")));
            }
        }
        (done, complaints)
    };
    let (done, complaints) = std::thread::scope(|scope| {
        let other = scope.spawn(work);
        let (done, mut complaints) = work();
        let (more, others) = other
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        complaints.extend(others);
        (done + more, complaints)
    });
    assert_eq!(done, variants.len(), "some variants were left out");
    assert!(
        complaints.is_empty(),
        "{} of {done} variants, the first of them:\n{}",
        complaints.len(),
        complaints[..complaints.len().min(10)].join("\n")
    );
}

/// The bindings of group 0 and whether the shader writes them, in the order of their numbers, as the layout has them.
fn layout(module: &Module) -> BTreeMap<ResourceBinding, bool> {
    module
        .global_variables
        .iter()
        .filter_map(|(_, variable)| {
            let writes = match variable.space {
                AddressSpace::Storage { access } => access.contains(naga::StorageAccess::STORE),
                _ => false,
            };
            Some((variable.binding?, writes))
        })
        .collect()
}

/// One test, because most of its time goes into baking constants in, which all three need.
#[test]
fn every_variant_becomes_hlsl_within_the_limits_of_fxc_and_msl() {
    each_variant(|variant, module, info| {
        becomes_hlsl(variant, module, info)?;
        becomes_msl(variant, module, info)?;
        let complaints = fxc_complaints(module, info);
        if complaints.is_empty() {
            return Ok(());
        }
        Err(complaints.into_iter().collect::<Vec<_>>().join("; "))
    });
}

/// As wgpu's DX12 backend asks for it, at the lowest shader model that DXC takes.
fn becomes_hlsl(variant: &Shader, module: &Module, info: &ModuleInfo) -> Result<(), String> {
    let mut options = hlsl::Options {
        shader_model: hlsl::ShaderModel::V6_0,
        fake_missing_bindings: false,
        // The number of workgroups, which DX12 does not tell a shader.
        special_constants_binding: Some(hlsl::BindTarget {
            space: 255,
            ..hlsl::BindTarget::default()
        }),
        zero_initialize_workgroup_memory: variant.zero_initializes_workgroup_memory(),
        restrict_indexing: true,
        force_loop_bounding: true,
        ..hlsl::Options::default()
    };
    // Constant, read-only and writable buffers each have registers of their own; one counter is enough here.
    for (register, binding) in layout(module).into_keys().enumerate() {
        let target = hlsl::BindTarget {
            register: register as u32,
            ..hlsl::BindTarget::default()
        };
        options.binding_map.insert(binding, target);
    }
    let pipeline = hlsl::PipelineOptions {
        entry_point: Some((ShaderStage::Compute, variant.entry_point().to_owned())),
    };
    let mut source = String::new();
    hlsl::Writer::new(&mut source, &options, &pipeline)
        .write(module, info, None)
        .map_err(|e| format!("HLSL: {e}"))?;
    let numthreads = format!("[numthreads({WORKGROUP}, 1, 1)]");
    if !source.contains(&numthreads) {
        return Err(format!("HLSL without {numthreads}"));
    }
    Ok(())
}

/// As wgpu's Metal backend asks for it on macOS 12.
fn becomes_msl(variant: &Shader, module: &Module, info: &ModuleInfo) -> Result<(), String> {
    let entry_point = variant.entry_point().to_owned();
    let mut resources = msl::EntryPointResources::default();
    for (slot, (binding, writes)) in layout(module).into_iter().enumerate() {
        let target = msl::BindTarget {
            buffer: Some(slot as u8),
            mutable: writes,
            ..msl::BindTarget::default()
        };
        resources.resources.insert(binding, target);
    }
    // After the buffers, their sizes.
    resources.sizes_buffer = Some(resources.resources.len() as u8);
    let options = msl::Options {
        lang_version: (2, 4),
        fake_missing_bindings: false,
        per_entry_point_map: [(entry_point.clone(), resources)].into(),
        bounds_check_policies: BoundsCheckPolicies {
            index: BoundsCheckPolicy::Restrict,
            buffer: BoundsCheckPolicy::Restrict,
            image_load: BoundsCheckPolicy::Restrict,
            binding_array: BoundsCheckPolicy::Unchecked,
        },
        zero_initialize_workgroup_memory: variant.zero_initializes_workgroup_memory(),
        force_loop_bounding: true,
        ..msl::Options::default()
    };
    let pipeline = msl::PipelineOptions {
        entry_point: Some((ShaderStage::Compute, entry_point)),
        vertex_pulling_transform: true,
        ..msl::PipelineOptions::default()
    };
    let (source, reflected) =
        msl::write_string(module, info, &options, &pipeline).map_err(|e| format!("MSL: {e}"))?;
    let name = reflected.entry_point_names[0]
        .as_ref()
        .map_err(|e| format!("MSL: {e}"))?;
    if !source.contains(&format!("kernel void {name}(")) {
        return Err(format!("MSL without the kernel {name}"));
    }
    Ok(())
}

/// FXC, which wgpu falls back to where there is no DXC, has limits of its own: it indexes no vector or matrix with a
/// value that only the run knows, and no invocation may have left, or be elsewhere, where the others wait at a barrier.
fn fxc_complaints(module: &Module, info: &ModuleInfo) -> BTreeSet<String> {
    let mut complaints = BTreeSet::new();
    let entry_points = module
        .entry_points
        .iter()
        .enumerate()
        .map(|(index, entry)| (&entry.function, info.get_entry_point(index)));
    let functions = module
        .functions
        .iter()
        .map(|(handle, function)| (function, &info[handle]));
    for (function, function_info) in entry_points.chain(functions) {
        let name = function.name.as_deref().unwrap_or("the entry point");
        for (_, expression) in function.expressions.iter() {
            let Expression::Access { base, index } = *expression else {
                continue;
            };
            let constant = matches!(
                function.expressions[index],
                Expression::Literal(_) | Expression::Constant(_)
            );
            let of = function_info[base].ty.inner_with(&module.types);
            let of = match *of {
                TypeInner::Pointer { base, .. } => &module.types[base].inner,
                ref other => other,
            };
            let indexed_by_registers = matches!(
                of,
                TypeInner::Vector { .. }
                    | TypeInner::Matrix { .. }
                    | TypeInner::ValuePointer { .. }
            );
            if indexed_by_registers && !constant {
                complaints.insert(format!("{name} indexes a vector dynamically"));
            }
        }
    }
    let mut divergence = Divergence {
        module,
        known: HashMap::new(),
        complaints: BTreeSet::new(),
    };
    for entry in &module.entry_points {
        let arguments = entry.function.arguments.iter().map(|argument| {
            let same_for_all = matches!(
                argument.binding,
                Some(naga::Binding::BuiltIn(
                    naga::BuiltIn::WorkGroupId
                        | naga::BuiltIn::NumWorkGroups
                        | naga::BuiltIn::WorkGroupSize
                ))
            );
            !same_for_all
        });
        divergence.function(&entry.function, arguments.collect(), false);
    }
    complaints.extend(divergence.complaints);
    complaints
}

/// Which values and which control flow may differ between the invocations of a workgroup. What is not known to be the
/// same for all is taken to differ.
struct Divergence<'a> {
    module: &'a Module,
    /// Whether a function's result differs, by the function, which of its arguments do, and whether it is called where
    /// control flow does.
    known: HashMap<(Handle<Function>, Vec<bool>, bool), bool>,
    complaints: BTreeSet<String>,
}

/// A function as it is called in one place.
struct Frame<'a> {
    function: &'a Function,
    arguments: Vec<bool>,
    locals: HashSet<Handle<LocalVariable>>,
    calls: HashSet<Handle<Expression>>,
    /// Some invocations may have returned.
    left: bool,
    result: bool,
}

impl<'a> Divergence<'a> {
    /// Whether the result differs.
    fn function(&mut self, function: &'a Function, arguments: Vec<bool>, apart: bool) -> bool {
        let mut frame = Frame {
            function,
            arguments,
            locals: HashSet::new(),
            calls: HashSet::new(),
            left: false,
            result: false,
        };
        loop {
            // A variable of a loop is known only after the loop: until nothing is new.
            let before = (frame.locals.len(), frame.calls.len());
            frame.left = false;
            self.block(&mut frame, &function.body, apart);
            if before == (frame.locals.len(), frame.calls.len()) {
                return frame.result;
            }
        }
    }

    /// Walks a block in which invocations are `apart`, or not. Whether a loop around it may be left, or begun again, by
    /// some of them only.
    fn block(&mut self, frame: &mut Frame<'a>, block: &'a Block, apart: bool) -> bool {
        let mut breaks = false;
        for statement in block.iter() {
            let apart = apart || frame.left || breaks;
            match statement {
                Statement::Block(inner) => breaks |= self.block(frame, inner, apart),
                Statement::If {
                    condition,
                    accept,
                    reject,
                } => {
                    let apart = apart || self.differs(frame, *condition);
                    breaks |= self.block(frame, accept, apart);
                    breaks |= self.block(frame, reject, apart);
                }
                Statement::Switch { selector, cases } => {
                    let apart = apart || self.differs(frame, *selector);
                    for case in cases {
                        // A break leaves the switch alone; a continue in it is taken for one, too.
                        breaks |= self.block(frame, &case.body, apart);
                    }
                }
                Statement::Loop {
                    body,
                    continuing,
                    break_if,
                } => {
                    let mut inside = apart;
                    loop {
                        let left = frame.left;
                        let mut leaves = self.block(frame, body, inside);
                        leaves |= self.block(frame, continuing, inside || leaves);
                        leaves |= break_if.is_some_and(|e| self.differs(frame, e));
                        leaves |= frame.left && !left;
                        if inside || !leaves {
                            break;
                        }
                        // Some are in their next iteration, or done: once more, with all of it apart.
                        inside = true;
                    }
                }
                Statement::Break | Statement::Continue => breaks |= apart,
                Statement::Return { value } => {
                    frame.left |= apart;
                    frame.result |= apart || value.is_some_and(|e| self.differs(frame, e));
                }
                Statement::Store { pointer, value } => {
                    if let Some(variable) = local_of(frame.function, *pointer)
                        && (apart
                            || self.differs(frame, *value)
                            || self.index_differs(frame, *pointer))
                    {
                        frame.locals.insert(variable);
                    }
                }
                Statement::Call {
                    function,
                    arguments,
                    result,
                } => {
                    let arguments: Vec<bool> =
                        arguments.iter().map(|&e| self.differs(frame, e)).collect();
                    let key = (*function, arguments.clone(), apart);
                    let differs = match self.known.get(&key) {
                        Some(&differs) => differs,
                        None => {
                            let callee = &self.module.functions[*function];
                            let differs = self.function(callee, arguments, apart);
                            self.known.insert(key, differs);
                            differs
                        }
                    };
                    if let Some(result) = *result
                        && differs
                    {
                        frame.calls.insert(result);
                    }
                }
                Statement::ControlBarrier(_) | Statement::WorkGroupUniformLoad { .. } if apart => {
                    let name = frame.function.name.as_deref().unwrap_or("the entry point");
                    self.complaints.insert(format!(
                        "{name} has a barrier that some invocations may miss"
                    ));
                }
                _ => {}
            }
        }
        breaks
    }

    fn differs(&self, frame: &Frame<'a>, expression: Handle<Expression>) -> bool {
        let differs = |e: Handle<Expression>| self.differs(frame, e);
        match frame.function.expressions[expression] {
            Expression::Literal(_)
            | Expression::Constant(_)
            | Expression::Override(_)
            | Expression::ZeroValue(_)
            | Expression::WorkGroupUniformLoadResult { .. }
            | Expression::ArrayLength(_) => false,
            Expression::FunctionArgument(number) => frame.arguments[number as usize],
            Expression::CallResult(_) => frame.calls.contains(&expression),
            Expression::GlobalVariable(variable) => {
                match self.module.global_variables[variable].space {
                    AddressSpace::Uniform => false,
                    AddressSpace::Storage { access } => access.contains(naga::StorageAccess::STORE),
                    _ => true,
                }
            }
            Expression::LocalVariable(variable) => frame.locals.contains(&variable),
            Expression::Load { pointer } => differs(pointer),
            Expression::Access { base, index } => differs(base) || differs(index),
            Expression::AccessIndex { base, .. } => differs(base),
            Expression::Splat { value, .. } => differs(value),
            Expression::Swizzle { vector, .. } => differs(vector),
            Expression::Compose { ref components, .. } => components.iter().any(|&e| differs(e)),
            Expression::Unary { expr, .. } | Expression::As { expr, .. } => differs(expr),
            Expression::Binary { left, right, .. } => differs(left) || differs(right),
            Expression::Select {
                condition,
                accept,
                reject,
            } => differs(condition) || differs(accept) || differs(reject),
            Expression::Relational { argument, .. } => differs(argument),
            Expression::Math {
                arg,
                arg1,
                arg2,
                arg3,
                ..
            } => differs(arg) || [arg1, arg2, arg3].into_iter().flatten().any(differs),
            _ => true,
        }
    }

    /// Of a place in a variable: whether it is another one for another invocation.
    fn index_differs(&self, frame: &Frame<'a>, pointer: Handle<Expression>) -> bool {
        match frame.function.expressions[pointer] {
            Expression::Access { base, index } => {
                self.differs(frame, index) || self.index_differs(frame, base)
            }
            Expression::AccessIndex { base, .. } => self.index_differs(frame, base),
            _ => false,
        }
    }
}

/// The variable of the function that a pointer points into.
fn local_of(function: &Function, pointer: Handle<Expression>) -> Option<Handle<LocalVariable>> {
    match function.expressions[pointer] {
        Expression::LocalVariable(variable) => Some(variable),
        Expression::Access { base, .. } | Expression::AccessIndex { base, .. } => {
            local_of(function, base)
        }
        _ => None,
    }
}

/// That the search for what FXC refuses finds it.
#[test]
fn what_fxc_refuses_is_found() {
    let complaints = |body: &str| {
        let source = format!(
            "@group(0) @binding(0) var<uniform> params: vec4<u32>;
             @group(0) @binding(1) var<storage, read_write> output: array<f32>;
             var<workgroup> scratch: array<f32, 64>;
             fn wait() {{ workgroupBarrier(); }}
             fn size() -> u32 {{ return params.x; }}
             fn early(lane: u32) -> u32 {{ if lane > 3u {{ return 1u; }} return 2u; }}
             @compute @workgroup_size(64) fn main(
                 @builtin(local_invocation_index) lane: u32,
                 @builtin(workgroup_id) id: vec3<u32>,
             ) {{ {body} }}"
        );
        let module = naga::front::wgsl::parse_str(&source)
            .unwrap_or_else(|e| panic!("{}", e.emit_to_string(&source)));
        let info = Validator::new(ValidationFlags::all(), Capabilities::empty())
            .validate(&module)
            .unwrap_or_else(|e| panic!("{}", e.emit_to_string(&source)));
        fxc_complaints(&module, &info).len()
    };
    for refused in [
        "var v = vec4(0.0); v[lane] = 1.0; output[lane] = v.x;",
        "let v = vec4(f32(lane)); output[lane] = v[params.x];",
        "var m = mat2x2(0.0, 0.0, 0.0, 0.0); m[lane].x = 1.0; output[lane] = m[0].x;",
        "if lane < 8u { workgroupBarrier(); }",
        "if lane < 8u { wait(); }",
        "if lane < 8u { return; } workgroupBarrier();",
        "if output[0] > 1.0 { return; } wait();",
        "for (var i = 0u; i < lane; i++) { workgroupBarrier(); }",
        "for (var i = lane; i < 64u; i += 64u) { wait(); }",
        "for (var i = 0u; i < 8u; i++) { if i == lane { break; } workgroupBarrier(); }",
        "for (var i = 0u; i < 8u; i++) { workgroupBarrier(); if i == lane { continue; } }",
        "var n = 0u; if lane < 8u { n = 1u; } if n == 0u { workgroupBarrier(); }",
        "for (var i = 0u; i < early(lane); i++) { workgroupBarrier(); }",
        "for (var i = 0u; i < 8u; i++) { workgroupBarrier(); if i == lane { return; } }",
        "switch lane { case 0u: { workgroupBarrier(); } default: {} }",
    ] {
        assert!(complaints(refused) > 0, "nothing is found in {refused}");
    }
    for allowed in [
        "for (var i = 0u; i < size(); i++) { if i > lane { output[lane] = 1.0; } workgroupBarrier(); }",
        "if id.x > params.y { return; } wait();",
        "for (var i = lane; i < 64u; i += 8u) { output[i] = 1.0; } workgroupBarrier();",
        "let n = early(lane); workgroupBarrier(); output[lane] = f32(n);",
        "var v = vec4(0.0); v[1] = 1.0; scratch[lane] = v.y; workgroupBarrier(); if lane == 0u { return; }",
    ] {
        assert_eq!(complaints(allowed), 0, "{allowed}");
    }
}
